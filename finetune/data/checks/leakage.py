"""The check whether texts name their own label."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from finetune.data.checks.columns_in_bulk import as_texts, take_rows
from finetune.data.checks.inputs import CheckInput, Outcome, amount, listed
from finetune.registry import checks

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

CHARACTERS_LOOKED_AT = 1_000
# How many comparisons of a text with a name of another label are made, all names together
COMPARISONS = 5_000_000


class Leak(NamedTuple):
    """A label whose name stands in many of its own texts (rows and share) and in few others (share)."""

    name: str
    rows: NDArray[Any]
    share: float
    elsewhere: float


@checks.register("label-leakage", severity="warning", kinds=("label", "labels"))
def label_leakage(
    rows: CheckInput,
    *,
    share: Share = 0.5,
    ratio: Annotated[float, Field(ge=1)] = 10.0,
    rows_per_label: Count = 10,
    rows_looked_at: Count = 100_000,
) -> list[Outcome]:
    """Find labels whose name stands in at least `share` of their texts and `ratio` times less often in others.

    The name is looked for as whole words, whatever their case and what parts them. Labels with fewer than
    `rows_per_label` rows are passed over, and names without letters or with fewer than three Latin ones. Beyond
    `rows_looked_at` rows as many are taken at even distances; of each text the first 1,000 characters count.
    """
    leaks = _leaks(rows, share, ratio, rows_per_label, rows_looked_at)
    if not leaks:
        return []
    named = [f"{leak.name!r} in {leak.share:.1%} of its texts, {leak.elsewhere:.1%} of others" for leak in leaks]
    examples = [
        rows.example(row, label=leak.name) for leak in leaks for row in leak.rows[: 5 if len(leaks) == 1 else 2]
    ]
    message = (
        f"{amount(len(leaks), 'label stands', 'labels stand')} by name in the texts: {listed(named, '; ')}; a model "
        "may read the name alone and fail without it, so see whether it came in with the labels, and remove it then."
    )
    return [Outcome(len(leaks), message, examples)]


def _leaks(rows: CheckInput, share: float, ratio: float, least: int, most: int) -> list[Leak]:
    import numpy as np
    import pyarrow as pa

    if not len(rows):
        return []
    sample = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))
    texts = _texts(rows, sample)
    own: list[tuple[str, NDArray[Any], NDArray[Any], str]] = []
    for name, positions in _members(rows, sample):
        pattern = name_pattern(name)
        if not pattern or len(positions) < least:
            continue
        hits = positions[_matches(texts.take(pa.array(positions)), pattern)]
        if len(hits) and len(hits) >= share * len(positions):
            own.append((name, positions, hits, pattern))
    step = 1 + len(own) * len(sample) // COMPARISONS
    some = np.arange(0, len(sample), step)
    compared = texts.take(pa.array(some)) if step > 1 and own else texts
    leaks = []
    for name, positions, hits, pattern in own:
        others = ~np.isin(some, positions)
        elsewhere = float(_matches(compared, pattern)[others].mean()) if others.any() else 0.0
        if elsewhere * ratio <= len(hits) / len(positions):
            leaks.append(Leak(name, sample[hits], len(hits) / len(positions), elsewhere))
    return leaks


def _members(rows: CheckInput, sample: NDArray[Any]) -> list[tuple[str, NDArray[Any]]]:
    """Return for each label its name and the positions in the sample of the rows that have it."""
    import numpy as np

    table = rows.labels
    position = np.full(len(rows), -1, dtype=np.int64)
    position[sample] = np.arange(len(sample))
    positions = position[table.rows]
    codes, positions = table.codes[positions >= 0], positions[positions >= 0]
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(table.names) + 1))
    return [(name, positions[order[bounds[code] : bounds[code + 1]]]) for code, name in enumerate(table.names)]


def _texts(rows: CheckInput, sample: NDArray[Any]) -> pa.Array:
    """Return what is looked at of the sampled rows, the texts of one row joined."""
    import pyarrow.compute as pc

    parts = [
        pc.utf8_slice_codeunits(as_texts(take_rows(rows.values[role], sample)), 0, CHARACTERS_LOOKED_AT)
        for role in rows.text_roles
    ]
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "\n")


def _matches(texts: pa.Array, pattern: str) -> NDArray[Any]:
    import pyarrow.compute as pc

    found = pc.match_substring_regex(texts, pattern, ignore_case=True)
    return found.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def name_pattern(name: str) -> str:
    """Return the regular expression (RE2) for a label's name in a text, or nothing for a name that says too little."""
    words = [re.escape(word) for word in re.split(r"[\s_-]+", name) if word]
    letters = [letter for letter in name if letter.isalpha()]
    if not 0 < len(name) <= 100 or len(letters) < (3 if all(letter.isascii() for letter in letters) else 2):
        return ""
    pattern = r"[\s_-]+".join(words)
    # RE2's \b knows ASCII words only, so it is of use only where the name begins and ends with one
    before, after = (r"\b" if re.match(r"[0-9A-Za-z]", edge) else "" for edge in (words[0][0], words[-1][-1]))
    return f"{before}{pattern}{after}"
