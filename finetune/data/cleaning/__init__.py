"""Cleaners: functions from text to text, run in the order of the recipe, each counted and shown by example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.data.cleaning.alignment import clean_tokens, keep_tokens
from finetune.errors import FinetuneError
from finetune.registry import Entry, cleaners

EXAMPLES_KEPT = 3
EXAMPLE_CHARACTERS = 300
Clean = Callable[[str], str | None]


@dataclass
class CleanerReport:
    """What one cleaner did: how many rows it changed and how many it rejected, and the first few before and after.

    A cleaner whose action is `keep` changes nothing; the rows in which it found something count as touched.
    The `after` of a rejected row is empty.
    """

    name: str
    rows_touched: int = 0
    rows_rejected: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def count(self, before: str, after: str, *, rejected: bool = False) -> None:
        """Count one row that the cleaner changed or rejected, and keep it if it is a new example and there is room."""
        self.rows_rejected += rejected
        self.rows_touched += not rejected
        if len(self.examples) < EXAMPLES_KEPT:
            self._keep({"before": before[:EXAMPLE_CHARACTERS], "after": after[:EXAMPLE_CHARACTERS]})

    def merge(self, other: CleanerReport) -> None:
        """Add the other's counts, and its examples behind this one's as long as there is room."""
        assert self.name == other.name, "reports of two cleaners cannot be merged"
        self.rows_touched += other.rows_touched
        self.rows_rejected += other.rows_rejected
        for example in other.examples:
            self._keep(dict(example))

    def as_json(self) -> dict[str, Any]:
        """Return it as an entry of the report."""
        return {
            "name": self.name,
            "rows_touched": self.rows_touched,
            "rows_rejected": self.rows_rejected,
            "examples": self.examples,
        }

    def _keep(self, example: dict[str, str]) -> None:
        if len(self.examples) < EXAMPLES_KEPT and example not in self.examples:
            self.examples.append(example)


class _Step:
    """One cleaner with its options and its counts."""

    def __init__(self, entry: Entry, options: Mapping[str, Any]) -> None:
        self.name = entry.name
        self.filters_rows = entry.attributes.get("tokens") == "row"
        # `keep` only counts: the cleaner removes what it finds from a copy, and the copy is thrown away
        self.only_counts = options.get("action") == "keep"
        self.clean: Clean = entry.build({**options, "action": "remove"} if self.only_counts else options)
        self.reason = f"rejected_by_{entry.name}"
        self.report = CleanerReport(entry.name)

    def texts(self, texts: list[str]) -> list[str | None]:
        """Return the cleaned texts, None for each that is rejected, and count what changed."""
        cleaned = list(map(self.clean, texts))
        if cleaned == texts:
            return cleaned
        for before, after in zip(texts, cleaned, strict=True):
            if before is not after and before != after:
                shown = before if self.only_counts else after
                self.report.count(before, shown or "", rejected=shown is None)
        return [*texts] if self.only_counts else cleaned

    def tokens(self, tokens: list[str], tags: list[str] | None) -> tuple[list[str], list[str] | None, str]:
        """Return the cleaned tokens, their tags and `""`, or two empty lists and why the row is rejected."""
        before = " ".join(tokens)
        if self.filters_rows:
            return (tokens, tags, "") if self.clean(before) is not None else self._reject(before, tags, self.reason)
        cleaned = clean_tokens(tokens, self.clean)
        if cleaned == tokens:
            return tokens, tags, ""
        if self.only_counts:
            self.report.count(before, before)
            return tokens, tags, ""
        kept = keep_tokens(cleaned, tags)
        if kept is None:
            return self._reject(before, tags, f"entity_lost_by_{self.name}")
        self.report.count(before, " ".join(kept[0]))
        return *kept, "" if kept[0] else "nothing_left_after_cleaning"

    def _reject(self, before: str, tags: list[str] | None, reason: str) -> tuple[list[str], list[str] | None, str]:
        self.report.count(before, "", rejected=True)
        return [], None if tags is None else [], reason


class Pipeline:
    """The recipe's cleaners in their order; the same ones run wherever a model meets text.

    `parts` are names and options; `tokens` says that the rows are tokens with tags, which some cleaners refuse.
    """

    def __init__(self, parts: Sequence[tuple[str, Mapping[str, Any]]], *, tokens: bool = False) -> None:
        entries = [(cleaners.get(name), options) for name, options in parts]
        if tokens:
            _demand_alignment([entry for entry, _ in entries])
        self._steps = [_Step(entry, options) for entry, options in entries]
        self._for_tokens = tokens

    def __call__(self, text: str) -> str:
        """Return the cleaned text; `""` if a cleaner rejects it."""
        return self.text(text)[0]

    def text(self, text: str) -> tuple[str, str]:
        """Return the cleaned text and `""`, or `""` and why it is rejected."""
        cleaned, rejected = self.texts([text])
        return cleaned[0], rejected.get(0, "")

    def texts(self, texts: Sequence[str]) -> tuple[list[str], dict[int, str]]:
        """Return the cleaned texts, and why the rejected ones are, by index; the text of these is `""`."""
        current, places = list(texts), list(range(len(texts)))
        rejected: dict[int, str] = {}
        for step in self._steps:
            cleaned = step.texts(current)
            if None in cleaned:
                rejected |= {place: step.reason for place, text in zip(places, cleaned, strict=True) if text is None}
                places = [place for place in places if place not in rejected]
            current = [text for text in cleaned if text is not None]
        if not rejected:
            return current, {}
        result = [""] * len(texts)
        for place, text in zip(places, current, strict=True):
            result[place] = text
        return result, dict(sorted(rejected.items()))

    def tokens(self, tokens: Sequence[str], tags: Sequence[str] | None) -> tuple[list[str], list[str] | None, str]:
        """Return the cleaned tokens, the IOB2 tags of those that are left (None as given), and `""`.

        A row that is rejected gives no tokens, no tags and the reason: `rejected_by_…`, `entity_lost_by_…` when the
        cleaner takes every token of an entity, or `nothing_left_after_cleaning`.
        """
        assert self._for_tokens, "build the pipeline with tokens=True"
        current, current_tags, reason = list(tokens), None if tags is None else list(tags), ""
        for step in self._steps:
            current, current_tags, reason = step.tokens(current, current_tags)
            if reason:
                break
        return current, current_tags, reason

    @property
    def reports(self) -> list[CleanerReport]:
        """What each cleaner did since the reports were last taken."""
        return [step.report for step in self._steps]

    def take_reports(self) -> list[CleanerReport]:
        """Return what each cleaner did since the last call, and start counting anew."""
        taken = self.reports
        for step in self._steps:
            step.report = CleanerReport(step.name)
        return taken


def _demand_alignment(entries: Sequence[Entry]) -> None:
    """Raise FinetuneError naming the cleaners that cannot keep tokens and tags side by side."""
    refusing = [entry for entry in entries if "tokens" not in entry.attributes]
    if not refusing:
        return
    found = "; ".join(
        f"{entry.name} ({entry.attributes.get('across', 'it works on whole texts')})" for entry in refusing
    )
    able = ", ".join(name for name in cleaners.names() if "tokens" in cleaners.get(name).attributes)
    raise FinetuneError(
        f"data.clean: expected cleaners that keep one tag for each token, as the rows are tokens with tags; found "
        f"{found}. Take them out of data.clean, and clean the texts before they are cut into tokens; these work on "
        f"tokens: {able}."
    )
