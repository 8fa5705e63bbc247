"""Questions about words: a text, or a list of words, read as rows of words are prepared, each word with its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.data.cleaning import Pipeline
from finetune.data.tagging import spans_to_iob2
from finetune.data.values import without_surrogates

Offsets = list[tuple[int, int]]


def read_words(value: Any, clean: Pipeline) -> tuple[dict[str, Any], str]:
    """Return a question's words with their places in its text, or the reason why there are none.

    A text is cut into words and punctuation marks as a text with spans is; a list of words is a text with one blank
    between two of them. The row has the cleaned `tokens`, the `text` as it was given, the `offsets` of each token in it
    (its first character, and the one behind its last), and whether the text was `joined` from words.
    """
    if value is None:
        return {}, "missing_tokens"
    if isinstance(value, str):
        text, joined = value, False
        words, _ = spans_to_iob2(without_surrogates(text), [])
        offsets = offsets_of(words, without_surrogates(text))
    elif isinstance(value, list) and all(isinstance(word, str) for word in value):
        text, joined = " ".join(value), True
        words = [without_surrogates(word) for word in value]
        offsets = offsets_of(words, " ".join(words))
    else:
        return {}, "wrong_type_of_tokens"
    if not text.strip():
        return {}, "blank_tokens" if text else "missing_tokens"
    # in place of a tag each word carries its number, so that what is left of them says which words are left
    tokens, numbers, reason = clean.tokens(words, [str(number) for number in range(len(words))])
    if reason:
        return {}, f"{reason}_tokens"
    assert numbers is not None, "numbers were given"
    kept = [offsets[int(number)] for number in numbers]
    return {"tokens": tokens, "text": text, "offsets": kept, "joined": joined}, ""


def offsets_of(words: Sequence[str], text: str) -> Offsets:
    """Return where words, which stand in a text in this order, begin and end there, in characters."""
    found: Offsets = []
    place = 0
    for word in words:
        start = text.index(word, place)
        place = start + len(word)
        found.append((start, place))
    return found
