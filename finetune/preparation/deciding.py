"""The second step: which of the usable rows stay, and in which split each is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import registry
from finetune.data.checks import Finding, Severity
from finetune.data.duplicates import clusters_of, find_conflicts, find_leaks, merge_clusters, repeats
from finetune.data.near_duplicates import NearDuplicates, find_near_duplicates, redundant
from finetune.data.rows import Column
from finetune.data.selection import EXTRA, KEY_HIGH, KEY_LOW
from finetune.data.splitting import KEPT_FOR_TEST, SPLITS, SplitInput
from finetune.data.store import RowStore
from finetune.errors import FinetuneError
from finetune.preparation.reading import Collected
from finetune.preparation.remaining import Remaining, codes_of, describe_place
from finetune.progress import Progress
from finetune.recipe import STRATIFIED, DataSection, FoldSection, Part, Recipe
from finetune.tasks import TaskSpec

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

EXAMPLES = 5
MOST_PAIRS_LISTED = 10_000
LISTS = {"labels", "tags", "answers"}
MISSING_REASONS = ("missing", "blank")


@dataclass
class Decided:
    """The rows that stay, the split of each, and what was found on the way."""

    rows: RowStore
    clusters: NDArray[np.int64]
    splits: NDArray[np.int8]
    labels: list[str]
    dropped: Counter[str]
    exact_repeats: int
    near_repeats: int = 0
    near_pairs: list[dict[str, Any]] = field(default_factory=list)
    leaks: list[dict[str, Any]] = field(default_factory=list)
    leak_count: int = 0
    problems: list[Finding] = field(default_factory=list)


class Deciding:
    """Goes from all usable rows to those that stay; every method drops rows, or finds something out about them."""

    def __init__(
        self,
        recipe: Recipe,
        collected: Collected,
        columns: Mapping[str, Column],
        spec: TaskSpec,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.data: DataSection = recipe.data
        self.seed = recipe.seed if recipe.data.seed is None else recipe.data.seed
        self.collected, self.columns, self.spec, self.progress = collected, columns, spec, progress
        self.left = Remaining(collected, columns, spec.text_roles, folder)
        self.problems: list[Finding] = []
        self.leak_count, self.near_repeats = 0, 0
        self.near_listed: list[dict[str, Any]] = []
        self.kind = columns[spec.label_role].kind if spec.label_role else ""
        answers = (role for role, column in columns.items() if column.kind == "answers")
        self.taught = spec.label_role or next(answers, "")  # what rows of the same text may differ in

    def decide(self) -> Decided:
        """Do it all, in the order in which one thing depends on another."""
        self._refuse_missing()
        self._require_rows()
        given = self._given_splits()
        exact_repeats = self._drop_exact(given)
        self._require_rows()
        clusters = self._find_near(self._given_splits())
        for name in self.data.group_by:
            clusters = merge_clusters(clusters, self._groups(name))
        if self.spec.unit_role:
            clusters = merge_clusters(clusters, self._units())
        clusters = self._drop_rare(clusters)
        self._require_rows()
        splits, clusters, leaks = self._split(clusters)
        # of all splits: what a fold's model is asked about may have a label that is in the test split alone
        labels = classes(self.left.rows, self.spec, self.kind, self.data.labels)
        if self.data.fold is not None:
            splits, clusters = self._take_fold(splits, clusters, self.data.fold)
        self._require_splits(splits)
        return Decided(
            rows=self.left.rows,
            clusters=clusters,
            splits=splits,
            labels=labels,
            dropped=self.left.dropped(),
            exact_repeats=exact_repeats,
            near_repeats=self.near_repeats,
            near_pairs=self.near_listed,
            leaks=leaks,
            leak_count=self.leak_count,
            problems=self.problems,
        )

    def _refuse_missing(self) -> None:
        """Call it an error if a value is missing where the recipe says that none may be."""
        missing = self.data.missing
        roles = [*self.columns, *(("text", "spans") if "spans" in self.data.columns else ())]
        policies = missing if isinstance(missing, dict) else dict.fromkeys(roles, missing)
        strict = [role for role in roles if policies.get(role) == "error"]
        found = []
        for role in strict:
            for reason in (f"{kind}_{role}" for kind in MISSING_REASONS):
                if count := self.collected.dropped[reason]:
                    lines = ", ".join(str(drop.line) for drop in self.collected.examples[reason])
                    found.append(f"{count} with {reason.replace('_', ' ')} (first: line {lines})")
        if found:
            message = (
                f"expected every row to have its values (data.missing: error), found rows {'; '.join(found)}. "
                "Mend the data, or set data.missing: drop or {fill: VALUE}."
            )
            count = sum(self.collected.dropped[f"{kind}_{role}"] for kind in MISSING_REASONS for role in strict)
            self.problems.append(Finding("missing-values", "error", count, message, []))

    def _require_rows(self) -> None:
        if not len(self.left.rows):
            listed = ", ".join(f"{reason} {count}" for reason, count in self.left.dropped().most_common())
            raise FinetuneError(
                f"{self.left.name}: expected usable rows, but all {self.collected.rows_read} were dropped: {listed}"
            )

    def _drop_exact(self, given: NDArray[np.int8] | None) -> int:
        """Settle texts that are the same, within each split that the user gave; return how many rows repeat another."""
        exact = clusters_of(self.left.keys())
        inside = exact if given is None else _within(exact, given)
        repeated = repeats(inside)
        conflicting = find_conflicts(inside, self._target_codes()) if self.taught else repeated & False
        repeated &= ~conflicting
        if self.data.conflicts == "error":  # wherever the rows are
            self._found_conflicts(find_conflicts(exact, self._target_codes()) if self.taught else conflicting, exact)
        if self.data.duplicates in {"error", "report"}:
            self._found_repeats(repeats(exact) & ~conflicting, exact)
        if self.data.conflicts == "drop":
            self.left.drop(conflicting, "conflicting_labels")
            repeated = repeated[~conflicting]
        if self.data.duplicates == "drop":
            self.left.drop(repeated, "duplicate")
        return int(repeats(exact).sum())

    def _find_near(self, given: NDArray[np.int8] | None) -> NDArray[np.int64]:
        """Find texts that are nearly the same; drop those that repeat an earlier one if the recipe says so."""
        import numpy as np

        settings = self.data.near_duplicates
        exact = clusters_of(self.left.keys())
        if settings.action == "off":
            return exact
        # rows of one unit share most of their text: what may be nearly the same are units
        columns, same = self.left.text_columns, exact
        if self.spec.unit_role in columns:
            columns, same = [self.spec.unit_role], self._units()
        inside = same if given is None else _within(same, given)
        found = find_near_duplicates(
            [self.left.rows.column(name) for name in columns],
            inside,
            threshold=settings.threshold,
            shingles=settings.shingles,
            size=settings.size,
            permutations=settings.permutations,
            seed=self.seed,
            parts=given,
            progress=self.progress,
        )
        clusters = merge_clusters(found.clusters, same)
        self.near_repeats = len(np.unique(same)) - len(np.unique(clusters))
        self.near_listed = [
            {**self.left.pair(first, second), "similarity": round(float(similarity), 4)}
            for (first, second), similarity in zip(found.pairs[:MOST_PAIRS_LISTED], found.similarities, strict=False)
        ]
        if settings.action == "report" and self.near_repeats:
            message = (
                f"{self.near_repeats} texts are nearly the same as an earlier one (similarity {settings.threshold:g} "
                "or more). They stay together in one split; data.near_duplicates: drop removes them."
            )
            self.problems.append(
                Finding("near-duplicates", "warning", self.near_repeats, message, self.near_listed[:EXAMPLES])
            )
        if settings.action == "drop":
            mask = redundant(found if given is None else _links_within(found, given), inside)
            self.left.drop(mask, "near_duplicate")
            return _renumber(clusters, ~mask)
        return clusters

    def _drop_rare(self, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
        """Drop labels with fewer texts than there are splits, if the recipe says so: a check names them otherwise."""
        import numpy as np

        if self.kind != "label":
            return clusters
        codes = self._target_codes()
        if self.data.rare_labels == "drop":
            pairs = np.unique(np.stack([codes, clusters_of(self.left.keys())], axis=1), axis=0)
            texts = np.bincount(pairs[:, 0], minlength=int(codes.max()) + 1)
            rare = texts[codes] < splits_wanted(self.data)
            self.left.drop(rare, "rare_label")
            clusters, codes = _renumber(clusters, ~rare), codes[~rare]
        if len(codes) and (codes == codes[0]).all():
            only = self.left.rows.column(self.spec.label_role or "")[0].as_py()
            message = f"expected at least 2 labels, found only {only!r}"
            self.problems.append(Finding("labels", "error", len(codes), message, []))
        return clusters

    # -- splits

    def _given_splits(self) -> NDArray[np.int8] | None:
        """Return each row's split where the user gave one: by file, or in a column."""
        import numpy as np

        if "" not in self.data.sources:
            by_file: NDArray[np.int8] = np.asarray(self.collected.given, dtype=np.int8)[self.left.rows.numbers("file")]
            return by_file
        if not registry.splitters.get(self.data.split.name).attributes.get("given"):
            return None
        given: NDArray[np.int8] = self._run_splitter(np.arange(len(self.left.rows)))
        return given

    def _take_fold(
        self, splits: NDArray[np.int8], clusters: NDArray[np.int64], fold: FoldSection
    ) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
        """Leave the test split out, and divide the other rows so that one fold of them is held out as `test`."""
        tested = splits == SPLITS.index("test")
        self.left.drop(tested, KEPT_FOR_TEST)
        clusters = _renumber(clusters, ~tested)
        part = self.data.split
        if "folds" not in part.options:  # the splits were given, with files or in a column
            part = STRATIFIED
        salt = {"salt": f"{part.options['salt']} folds"} if "salt" in part.options else {}  # not the digits of the test
        options = {**part.options, **salt, "folds": fold.of, "fold": fold.number}
        return self._run_splitter(clusters, Part(name=part.name, options=options)), clusters

    def _run_splitter(self, clusters: NDArray[np.int64], part: Part | None = None) -> NDArray[np.int8]:
        part = part or self.data.split
        splitter = registry.splitters.get(part.name).build(part.options)
        extras = {
            name.removeprefix(EXTRA): self.left.rows.column(name)
            for name in self.left.rows.table.column_names
            if name.startswith(EXTRA)
        }
        target = self.left.rows.column(self.spec.label_role) if self.spec.label_role else None
        given = SplitInput(
            clusters=clusters,
            kind=self.kind,
            target=target,
            keys=self.left.keys(),
            extras=extras,
            names=lambda row: describe_place(self.left.place(row)),
        )
        return splitter(given, self.seed)  # type: ignore[no-any-return]

    def _split(self, clusters: NDArray[np.int64]) -> tuple[NDArray[np.int8], NDArray[np.int64], list[dict[str, Any]]]:
        """Return the split of each row, the clusters, and the leaks: rows of one cluster in two given splits."""
        import numpy as np

        splits = self._given_splits()
        if splits is None:
            return self._run_splitter(clusters), clusters, []
        pairs = np.asarray(find_leaks(clusters, splits), dtype=np.int64).reshape(-1, 2)
        leaks = [self._leak(splits, int(first), int(second)) for first, second in pairs[:MOST_PAIRS_LISTED]]
        self.leak_count = len(np.unique(pairs[:, 0]))
        if not len(pairs):
            return splits, clusters, []
        if self.data.leaks == "drop-from-train":
            later = np.zeros(len(splits), dtype=np.int8)
            np.maximum.at(later, clusters, splits)
            leaking = splits < later[clusters]
            self.left.drop(leaking, "leak")
            return splits[~leaking], _renumber(clusters, ~leaking), leaks
        severity: Severity = "error" if self.data.leaks == "error" else "warning"
        message = (
            f"{self.leak_count} rows of validation or test have the same text as a row of an earlier split, nearly the "
            "same, or the same group. Remove them from one of the two, or set data.leaks: drop-from-train, or report."
        )
        self.problems.append(Finding("leaks", severity, self.leak_count, message, leaks[:EXAMPLES]))
        return splits, clusters, leaks

    def _leak(self, splits: NDArray[np.int8], row: int, other: int) -> dict[str, Any]:
        earlier = {f"other_{key}": value for key, value in self.left.place(other).items()}
        return {
            "kind": self._kind_of_leak(row, other),
            "split": SPLITS[splits[row]],
            **self.left.place(row),
            "other_split": SPLITS[splits[other]],
            **earlier,
            "text": self.left.text(row),
            "other_text": self.left.text(other),
        }

    def _kind_of_leak(self, row: int, other: int) -> str:
        """Return what two rows of one cluster share; rows that are nearly the same may be so by way of others."""
        if all(self.left.rows.column(name)[row] == self.left.rows.column(name)[other] for name in (KEY_HIGH, KEY_LOW)):
            return "same text"
        groups = [self.left.rows.column(f"{EXTRA}{name}") for name in self.data.group_by]
        if self.spec.unit_role:
            groups.append(self.left.rows.column(self.spec.unit_role))
        same = any(group[row].is_valid and group[row] == group[other] for group in groups)
        return "same group" if same else "nearly the same text"

    def _require_splits(self, splits: NDArray[np.int8]) -> None:
        given = self.data.sources
        options = self.data.split.options
        test = "test" in given if "" not in given else bool(options.get("folds") or options.get("test"))
        test = test or self.data.fold is not None
        for code, name in enumerate(SPLITS if test else SPLITS[:2]):
            if not (splits == code).any():
                raise FinetuneError(
                    f"data.split: expected rows in every split, found none for {name} ({len(splits)} rows in all)"
                )

    def _groups(self, name: str) -> NDArray[np.int64]:
        """Return the group of each row by a column of the file; a row without a value is a group of its own."""
        import numpy as np

        codes, known = codes_of(self.left.rows.column(f"{EXTRA}{name}"))
        return np.where(codes < 0, known + np.arange(len(codes)), codes)

    def _units(self) -> NDArray[np.int64]:
        """Return the unit of each row (its document, its query), named by its first row."""
        import numpy as np

        assert self.spec.unit_role
        codes, _ = codes_of(self.left.rows.column(self.spec.unit_role))
        _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        return np.asarray(first[inverse], dtype=np.int64)

    def _target_codes(self) -> NDArray[np.int32]:
        """Return a number for what each row is to teach: the same for equal labels, or numbers equal in all columns."""
        import numpy as np

        assert self.taught
        if self.kind == "number":
            numbers = [role for role, column in self.columns.items() if column.kind == "number"]
            codes = np.stack([codes_of(self.left.rows.column(role))[0] for role in numbers], axis=1)
            return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)
        column = self.left.rows.column(self.taught)
        if self.columns[self.taught].kind == "answers":
            column = _as_texts(column)
        return codes_of(_joined(column) if self.columns[self.taught].kind in LISTS else column)[0]

    def _found_repeats(self, repeated: NDArray[np.bool_], clusters: NDArray[np.int64]) -> None:
        import numpy as np

        rows = np.flatnonzero(repeated)
        if not len(rows):
            return
        shown = [self.left.pair(int(clusters[row]), int(row)) for row in rows[:EXAMPLES]]
        lines = "; ".join("lines " + " and ".join(map(str, pair["lines"])) for pair in shown)
        texts = "1 text that repeats another" if len(rows) == 1 else f"{len(rows)} texts that repeat another"
        message = f"found {texts}: {lines}. Mend the data, or set data.duplicates: drop."
        severity: Severity = "error" if self.data.duplicates == "error" else "warning"
        self.problems.append(Finding("duplicates", severity, len(rows), message, shown))

    def _found_conflicts(self, conflicting: NDArray[np.bool_], clusters: NDArray[np.int64]) -> None:
        import numpy as np

        texts = np.unique(clusters[conflicting])
        if not len(texts):
            return
        groups = [np.flatnonzero(clusters == text)[:2].tolist() for text in texts[:EXAMPLES]]
        shown = [self.left.pair(*group) for group in groups]
        lines = "; ".join("lines " + " and ".join(map(str, pair["lines"])) for pair in shown)
        stand = "1 text stands" if len(texts) == 1 else f"{len(texts)} texts stand"
        targets = {"number": "numbers", "answers": "answers"}.get(self.columns[self.taught].kind, "labels")
        message = f"{stand} under different {targets}: {lines}. Mend the data, or set data.conflicts: drop."
        self.problems.append(Finding("conflicting-labels", "error", len(texts), message, shown))


def _within(clusters: NDArray[np.int64], splits: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return the clusters cut apart at the borders of given splits."""
    import numpy as np

    _, first, inverse = np.unique(clusters * len(SPLITS) + splits, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)


def _links_within(found: NearDuplicates, splits: NDArray[np.int8]) -> NearDuplicates:
    """Return the links between rows of the same split only."""
    same = splits[found.pairs[:, 0]] == splits[found.pairs[:, 1]]
    return NearDuplicates(found.clusters, found.pairs[same], found.similarities[same])


def _renumber(clusters: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the clusters of the rows that are kept, named again by their first row."""
    import numpy as np

    _, first, inverse = np.unique(clusters[kept], return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)


def classes(rows: RowStore, spec: TaskSpec, kind: str, declared: Sequence[str]) -> list[str]:
    """Return the labels, or the types of entities, in the order of their indices."""
    import pyarrow.compute as pc

    if kind not in {"label", "labels", "tags"} or not spec.label_role:
        return []
    if declared:
        return list(declared)
    column = rows.column(spec.label_role)
    values = column if kind == "label" else pc.list_flatten(column)
    found = {value.as_py() for value in pc.unique(values)}
    if kind == "tags":
        found = {tag[2:] for tag in found if tag[:2] in {"B-", "I-"}}
    return sorted(found)


def splits_wanted(data: DataSection) -> int:
    """Return how many splits the recipe asks for."""
    if "" not in data.sources:
        return len(data.sources)
    options = data.split.options
    return len(SPLITS) if options.get("folds") else sum(bool(options.get(name, True)) for name in SPLITS)


def _as_texts(answers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return lists of answers as lists of texts: each answer's place and words."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = []
    for chunk in answers.chunks:
        each = pc.list_flatten(chunk)
        places = pc.cast(pc.struct_field(each, "start"), pa.string())
        texts = pc.binary_join_element_wise(places, pc.struct_field(each, "text"), "\x1e")
        lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
        chunks.append(pa.ListArray.from_arrays(pa.array(offsets), texts))
    return pa.chunked_array(chunks, pa.list_(pa.string()))


def _joined(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pa.chunked_array([pc.binary_join(chunk, "\x1f") for chunk in lists.chunks], pa.string())
