"""How reports write counts, shares, examples, and two texts side by side; texts come out escaped."""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from finetune.reports.markdown import escape, table

TEXT_LIMIT = 240
# Two texts that begin alike for longer than this are shown from a little before their first difference
LEAD = 120


def many(count: int, noun: str) -> str:
    """Return a count with its noun: `1 row`, `1,400 rows`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def share(part: float, whole: float) -> str:
    """Return a share in percent that never rounds something to nothing, nor nearly everything to everything."""
    if not whole:
        return "-"
    found = part / whole
    if 0 < found < 0.001:
        return "under 0.1%"
    return "over 99.9%" if 0.999 < found < 1 else f"{found:.1%}"


def list_names(names: Sequence[Any]) -> str:
    """Return the first few names, escaped, and how many more there are."""
    more = [f"{len(names) - 5} more"] if len(names) > 5 else []
    return ", ".join([*(escape(str(name)) for name in names[:5]), *more])


def examples_table(examples: Sequence[Mapping[str, Any]]) -> str:
    """Return examples of any shape as a table, their texts last; two texts of one example stand side by side."""
    shown = [_cells(example) for example in examples]
    keys = sorted(dict.fromkeys(key for cells in shown for key in cells), key=lambda key: key.endswith("text"))
    rows = [[cells.get(key, "") for key in keys] for cells in shown]
    return table([escape(key) for key in keys], rows, text_columns=len(keys))


def _cells(example: Mapping[str, Any]) -> dict[str, str]:
    single = {key: value for key, value in example.items() if key not in {"text", "texts", "other_text"}}
    cells = {key.replace("_", " "): escape(as_text(value)) for key, value in single.items()}
    texts = example.get("texts") or [example[key] for key in ("text", "other_text") if key in example]
    if len(texts) != 2 or texts[0] == texts[1]:
        return {**cells, **({"text": escape(as_text(texts[0]))} if texts else {})}
    first, second = difference(*texts)
    return {**cells, "first text": first, "second text": second}


def as_text(value: Any) -> str:
    """Return any JSON value as text, not escaped: floats with four digits, lists with commas, mappings as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(as_text, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def difference(first: str, second: str) -> tuple[str, str]:
    """Return two texts, escaped and cut to where they differ, the words that differ in bold.

    Texts that look the same are written with `␣` for a blank and with codes for what cannot be seen.
    """
    pairs = enumerate(zip(first, second, strict=False))
    start = next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(first), len(second)))
    if start > LEAD and first != second:
        first, second = ("…" + text[start - LEAD // 3 :] for text in (first, second))
    if first != second and _looks(first) == _looks(second):
        composed = unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second)
        first, second = (_visible(text, str.isascii if composed else str.isprintable) for text in (first, second))
    left, right = _looks(first), _looks(second)
    changes = difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    return (
        _marked((left[start:end], kind != "equal") for kind, start, end, _, _ in changes),
        _marked((right[start:end], kind != "equal") for kind, _, _, start, end in changes),
    )


def _looks(text: str) -> list[str]:
    """Return the words of a text as a report shows them: composed, without control characters, cut."""
    shown = "".join(character if character.isprintable() else " " for character in unicodedata.normalize("NFC", text))
    shown = " ".join(shown.split())
    return (shown if len(shown) <= TEXT_LIMIT else shown[: TEXT_LIMIT - 1] + "…").split()


def _visible(text: str, seen: Callable[[str], bool]) -> str:
    shown = (c if seen(c) and c.isprintable() else ascii(c)[1:-1] for c in text)
    return "".join(shown).replace(" ", "␣")


def _marked(runs: Iterable[tuple[list[str], bool]]) -> str:
    texts = ((escape(" ".join(words)), differs) for words, differs in runs if words)
    return " ".join(f"**{text}**" if differs else text for text, differs in texts)
