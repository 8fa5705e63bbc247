"""Tokens and their IOB2 tags, kept side by side while tokens change and disappear."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def clean_tokens(tokens: Sequence[str], clean: Callable[[str], str | None]) -> list[str]:
    """Clean each token by itself; `""` stands for a token that is gone, and one token stays one.

    White space inside a changed token becomes `_`, so that the tokens can be joined by blanks and cut again.
    """
    cleaned = []
    for token in tokens:
        after = clean(token)
        assert after is not None, "a cleaner of single tokens rejects nothing"
        cleaned.append(token if after == token else "_".join(after.split()))
    return cleaned


def keep_tokens(tokens: Sequence[str], tags: Sequence[str] | None) -> tuple[list[str], list[str] | None] | None:
    """Return the tokens that are not empty and their tags, or None if an entity would lose all its tokens.

    The first token left of an entity gets the tag `B-…` (IOB2: Ramshaw and Marcus 1995, as used by Tjong Kim Sang
    and Veenstra 1999).
    """
    kept = [token for token in tokens if token]
    if tags is None:
        return kept, None
    kept_tags: list[str] = []
    begun = True  # whether a tag of the entity at hand has been kept
    for token, tag in zip(tokens, tags, strict=True):
        if not tag.startswith("I-"):
            if not begun:
                return None
            begun = not tag.startswith("B-")
        if not token:
            continue
        kept_tags.append(tag if begun else "B" + tag[1:])
        begun = True
    return (kept, kept_tags) if begun else None
