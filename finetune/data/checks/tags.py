"""Checks of tagged words: tags that break IOB2, entities with odd edges, types that are rare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from finetune.data.checks.columns_in_bulk import list_lengths, windows
from finetune.data.checks.inputs import EXAMPLES_KEPT, CheckInput, Outcome, amount, listed
from finetune.registry import checks

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

Count = Annotated[int, Field(ge=1)]

BLANK = "^[\\s\u0085\u00a0\u2000-\u200b\u3000\ufeff]*$"
PUNCTUATION = "^[.,;:!?…\u3001\u3002\uff0c\uff1b\uff1a\uff01\uff1f]+$"  # the Chinese and Japanese ones too


@checks.register("invalid-tags", severity="error", kinds=("tags",))
def invalid_tags(rows: CheckInput) -> list[Outcome]:
    """Find tags that break IOB2: an I-X behind no B-X or I-X, and what is neither O nor B-X nor I-X."""
    import numpy as np

    found = rows.entities
    if not len(found.invalid_rows):
        return []
    several = np.unique(found.invalid_rows)
    examples = [
        rows.example(row, position=int(position), tags=_around(rows, int(row), int(position)))
        for row, position in zip(found.invalid_rows[:EXAMPLES_KEPT], found.invalid_positions, strict=False)
    ]
    message = (
        f"{amount(len(found.invalid_rows), 'tag breaks', 'tags break')} IOB2 in {amount(len(several), 'row', 'rows')} "
        f"({rows.places(several)}); correct the tags, or set data.tag_scheme to the scheme of the file (iob1, iobes)."
    )
    return [Outcome(len(found.invalid_rows), message, examples)]


def _around(rows: CheckInput, row: int, position: int) -> list[Any]:
    """Return a tag with its neighbours."""
    tags: list[Any] = rows.values[rows.target_role][row].as_py()
    return tags[max(0, position - 1) : position + 2]


@checks.register("entity-boundaries", severity="warning", kinds=("tags",))
def entity_boundaries(rows: CheckInput) -> list[Outcome]:
    """Find words that are blank, entities that begin or end with one, and entities that end in punctuation."""
    role = next((role for role in rows.text_roles if rows.columns[role].kind == "tokens"), None)
    if role is None:
        return []
    blank_rows, blanks, bounded, ended = _edges(rows, role)
    outcomes = []
    if blanks:
        message = f"{amount(blanks, 'word is', 'words are')} blank ({rows.places(blank_rows)}); "
        message += "remove each with its tag."
        outcomes.append(Outcome(blanks, message, rows.examples(blank_rows)))
    if bounded:
        message = (
            f"{amount(len(bounded), 'entity begins or ends', 'entities begin or end')} "
            "with a blank word; tag words alone."
        )
        outcomes.append(Outcome(len(bounded), message, _entity_examples(rows, role, bounded)))
    if ended:
        message = (
            f"{amount(len(ended), 'entity ends', 'entities end')} in punctuation; see whether the tags reach too far."
        )
        outcomes.append(Outcome(len(ended), message, _entity_examples(rows, role, ended)))
    return outcomes


def _edges(rows: CheckInput, role: str) -> tuple[list[int], int, list[int], list[int]]:
    """Return rows with blank words, how many such words, and the numbers of entities with blank or punctuated edges."""
    import numpy as np

    found = rows.entities
    blank_rows: list[int] = []
    blanks, bounded, ended = 0, [], []
    for start, piece in windows(rows.values[role]):
        words, lengths = piece.flatten(), list_lengths(piece)
        offsets = np.cumsum(lengths) - lengths
        blank = np.flatnonzero(_matches(words, BLANK))
        blanks += len(blank)
        blank_rows += (np.unique(np.searchsorted(offsets + lengths, blank, side="right")) + start).tolist()
        low, high = np.searchsorted(found.rows, [start, start + len(piece)])
        numbers = np.arange(low, high)
        numbers = numbers[found.ends[numbers] <= lengths[found.rows[numbers] - start]]
        first = offsets[found.rows[numbers] - start]
        begins, last = first + found.starts[numbers], first + found.ends[numbers] - 1
        bounded += numbers[np.isin(begins, blank) | np.isin(last, blank)].tolist()
        ended += numbers[_matches(words.take(last), PUNCTUATION)].tolist()
    return blank_rows, blanks, bounded, ended


def _matches(words: pa.Array, pattern: str) -> NDArray[Any]:
    import pyarrow.compute as pc

    found = pc.match_substring_regex(pc.fill_null(words, ""), pattern)
    return found.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _entity_examples(rows: CheckInput, role: str, numbers: Sequence[int]) -> list[dict[str, Any]]:
    found = rows.entities
    examples = []
    for number in numbers[:EXAMPLES_KEPT]:
        row = int(found.rows[number])
        words = rows.values[role][row].as_py()[found.starts[number] : found.ends[number]]
        examples.append(rows.example(row, entity=" ".join(map(str, words)), type=found.types[found.codes[number]]))
    return examples


@checks.register("rare-entities", severity="warning", kinds=("tags",))
def rare_entities(rows: CheckInput, *, entities: Count = 10) -> list[Outcome]:
    """Find entity types with fewer than `entities` mentions; that there are none at all is an error."""
    import numpy as np

    found = rows.entities
    if not found.types:
        message = (
            f"No row has an entity, so there is nothing to learn; see whether data.columns.{rows.target_role} names "
            "the right column."
        )
        return [Outcome(len(rows), message, rows.examples(range(len(rows))), "error")] if len(rows) else []
    counts = np.bincount(found.codes, minlength=len(found.types))
    order = np.argsort(counts, kind="stable")
    rare = order[counts[order] < entities]
    if not len(rare):
        return []
    named = listed([f"{found.types[code]!r} ({counts[code]})" for code in rare])
    message = (
        f"{amount(len(rare), 'entity type has', 'entity types have')} "
        f"fewer than {entities} mentions: {named}; add rows, or "
        "merge types."
    )
    firsts = [int(found.rows[np.argmax(found.codes == code)]) for code in rare[:EXAMPLES_KEPT]]
    examples = [
        rows.example(row, type=found.types[code], mentions=int(counts[code]))
        for row, code in zip(firsts, rare, strict=False)
    ]
    return [Outcome(len(rare), message, examples)]
