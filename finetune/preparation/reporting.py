"""The last step: what happened to the rows and their tokens, as the plain values that `report.json` holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.checks import Finding
from finetune.data.splitting import SPLITS
from finetune.data.tokenization import Limits
from finetune.preparation.deciding import Decided
from finetune.preparation.encoding import HISTOGRAM_BINS, Tokens
from finetune.preparation.reading import Collected
from finetune.preparation.remaining import codes_of
from finetune.recipe import Recipe
from finetune.tasks import TaskSpec
from finetune.training.batching import padding_share, part_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXAMPLES = 5
NAMED_FILES = 20
# The parts of the report that say something about tokens: they are made anew when the rows are not
TOKEN_KEYS = ("truncated", "tokens", "tokenizer", "augmented", "windows", "trains", "next_steps")


def rows_report(
    recipe: Recipe, collected: Collected, decided: Decided, spec: TaskSpec, kind: str, findings: Sequence[Finding]
) -> dict[str, Any]:
    """Return what happened to the rows; the counts add up, or it is our bug."""
    sizes = {name: int((decided.splits == code).sum()) for code, name in enumerate(SPLITS)}
    kept = len(decided.rows)
    assert collected.rows_read == kept + decided.dropped.total(), "every row read is kept or dropped, once"
    assert kept == sum(sizes.values()), "every row kept is in one split"
    near = recipe.data.near_duplicates
    return {
        "name": recipe.name,
        "task": recipe.task.name,
        "seed": recipe.seed if recipe.data.seed is None else recipe.data.seed,
        "source": _some(collected.files),
        "rows_read": collected.rows_read,
        "rows_kept": kept,
        "dropped": dict(decided.dropped.most_common()),
        "cleaners": [report.as_json() for report in collected.cleaners],
        "duplicates": {
            "exact": decided.exact_repeats,
            "near": decided.near_repeats,
            **({"searched": False} if near.action == "off" else {"threshold": near.threshold}),
            "examples": decided.near_pairs[:EXAMPLES],
        },
        "leaks": decided.leak_count,
        "leak_examples": decided.leaks[:EXAMPLES],
        "splits": {name: size for name, size in sizes.items() if size},
        "split": _split(recipe),
        **_targets(decided, spec, kind),
        "warnings": [finding.as_json() for finding in findings],
    }


def short_report(
    recipe: Recipe, collected: Collected, dropped: Counter[str], findings: Sequence[Finding]
) -> dict[str, Any]:
    """Return what there is to say about rows that could be read but not divided into splits."""
    return {
        "name": recipe.name,
        "task": recipe.task.name,
        "source": _some(collected.files),
        "rows_read": collected.rows_read,
        "rows_kept": collected.rows_read - dropped.total(),
        "dropped": dict(dropped.most_common()),
        "splits": {},
        "warnings": [finding.as_json() for finding in findings],
    }


def _some(files: Sequence[str]) -> list[str]:
    """Return the names of files, of very many the first and how many more there are."""
    more = len(files) - NAMED_FILES
    return [*files[:NAMED_FILES], f"and {more:,} more"] if more > 0 else list(files)


def _split(recipe: Recipe) -> dict[str, Any]:
    """Return how the rows were split, without the options that say nothing."""
    fold = recipe.data.fold
    held_out = {} if fold is None else {"held_out": f"fold {fold.number} (from 0) of {fold.of}"}
    if "" not in recipe.data.sources:
        return {"name": "given by files", **held_out}
    options = {name: value for name, value in recipe.data.split.options.items() if value not in (None, "")}
    folds = {"fold"} if "folds" not in options else {"test"}
    described = {name: value for name, value in options.items() if name not in folds}
    return {"name": recipe.data.split.name, **described, **held_out}


def _targets(decided: Decided, spec: TaskSpec, kind: str) -> dict[str, Any]:
    """Return rows by label and split, entities by type and split, or what numbers there are in each split."""
    import numpy as np

    names = [name for code, name in enumerate(SPLITS) if (decided.splits == code).any()]
    if not spec.label_role:
        return {}
    column = decided.rows.column(spec.label_role)
    if kind == "number":
        numbers = [field.name for field in decided.rows.table.schema if field.type == "double"]
        found = {role: _by_split(decided, role, names) for role in numbers}
        return {"target": found[spec.label_role], **({"targets": found} if len(found) > 1 else {})}
    items, owners = _items(column, kind)
    codes, _ = codes_of(items)
    known = [value.as_py() for value in _dictionary(items)]
    counts = np.zeros((len(known), len(SPLITS)), dtype=np.int64)
    np.add.at(counts, (codes, decided.splits[owners]), 1)
    prefix = "B-" if kind == "tags" else ""
    rows = {value.removeprefix(prefix): counts[i] for i, value in enumerate(known) if value.startswith(prefix)}
    labels = {}
    for label in decided.labels:
        found = rows.get(label, np.zeros(len(SPLITS), dtype=np.int64))
        labels[label] = {name: int(found[SPLITS.index(name)]) for name in names}
    return {"labels": labels}


def _by_split(decided: Decided, role: str, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return what numbers a column has in each split."""
    values = decided.rows.column(role).to_numpy()
    return {name: _numbers(values[decided.splits == SPLITS.index(name)]) for name in names}


def _items(column: Any, kind: str) -> tuple[Any, NDArray[np.int64]]:
    """Return single labels or tags, and the row of each."""
    import numpy as np
    import pyarrow.compute as pc

    if kind == "label":
        return column, np.arange(len(column))
    lengths = pc.list_value_length(column).to_numpy()
    return pc.list_flatten(column), np.repeat(np.arange(len(column)), lengths)


def _dictionary(values: Any) -> Any:
    encoded = values.dictionary_encode().combine_chunks()
    chunk = encoded if not hasattr(encoded, "chunks") else encoded.chunk(0)
    return chunk.dictionary


def _numbers(values: NDArray[Any]) -> dict[str, float]:
    return {
        "min": float(values.min()),
        "mean": float(values.mean()),
        "max": float(values.max()),
        "deviation": float(values.std()),
    }


def tokens_report(recipe: Recipe, tokens: Tokens, limits: Limits) -> dict[str, Any]:
    """Return what became of the tokens: cut, lost, unknown, and the padding that training will add to them."""
    facts = tokens.splits
    total = sum(split.tokens for split in facts.values())
    train = facts["train"].window_lengths()
    settings = recipe.train
    padding = padding_share(
        train,
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation,
        seed=recipe.seed,
        bucket_by_length=settings.bucket_by_length,
        part_tokens=part_tokens(recipe.spec.steps, "cpu"),
    )
    report: dict[str, Any] = {
        "truncated": {
            name: {"rows": split.cut, "tokens_lost": split.tokens_lost, "lines": split.lines}
            for name, split in facts.items()
        },
        "tokens": {
            "rows_cut": sum(split.cut for split in facts.values()),
            "tokens_lost": sum(split.tokens_lost for split in facts.values()),
            "entities_lost": sum(split.entities_lost for split in facts.values()),
            "unknown_rate": _share(tokens.unknown_tokens, total),
            "tokens_per_word": _share(tokens.text_tokens, tokens.words),
            "padding": padding,
            "batch_size": settings.batch_size,
            "max_length": limits.max_length,
            "overflow": limits.overflow,
            **({"stride": limits.stride, "windows": _windows(facts)} if limits.windows else {}),
            "splits": {name: _lengths(split.tokens, split.all_lengths()) for name, split in facts.items()},
            "histogram": _histogram([split.all_lengths() for split in facts.values()]),
        },
    }
    if tokens.operations:
        operations = dict(tokens.operations.most_common())
        report["augmented"] = {"rows": sum(operations.values()), "operations": operations}
    return report


def _share(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0


def _windows(facts: Mapping[str, Any]) -> int:
    return sum(len(split.window_lengths()) for split in facts.values())


def _lengths(total: int, lengths: NDArray[Any]) -> dict[str, int]:
    """Return the tokens that the model reads, and how long the rows are before anything is cut."""
    import numpy as np

    return {
        "total": total,
        "median": int(np.sort(lengths)[len(lengths) // 2]),
        "longest": int(lengths.max()),
    }


def _histogram(lengths: Sequence[NDArray[Any]]) -> dict[str, list[int]]:
    """Return how many rows have how many tokens, in bins of equal width."""
    import numpy as np

    values = np.concatenate(lengths)
    width = max(1, -(-int(values.max()) // HISTOGRAM_BINS))
    edges = np.arange(0, int(values.max()) + width + 1, width)
    counts, _ = np.histogram(values, bins=edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
