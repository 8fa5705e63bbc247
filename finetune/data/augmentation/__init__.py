"""Augmentation: more rows for training, made from those that there are, with labels and entities as they were."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from finetune.data.augmentation.copies import plan_copies
from finetune.data.augmentation.tags import OUTSIDE, carry_tags
from finetune.data.augmentation.text import Piece, join, split
from finetune.data.rows import Column
from finetune.errors import FinetuneError
from finetune.registry import augmenters

__all__ = ["Augmentation", "Augmented", "Piece", "join", "plan_copies", "split"]

ROUNDS = 3  # how often each operation is tried on a row that it does not change


@dataclass(frozen=True)
class Augmented:
    """A new row: its values under all roles, and the operation that made it."""

    values: dict[str, Any]
    operation: str


@dataclass(frozen=True)
class _Operation:
    """An augmenter with its options: words to pieces for the level `words`, text to text for the level `text`."""

    name: str
    level: str
    run: Callable[..., Any]


class Augmentation:
    """The recipe's augmenters, over rows of one kind.

    `parts` are names and options in the order of the recipe, `columns` what the rows hold under each role. All texts of
    a row are augmented, each by itself, but those that are `fixed`: rows belong together by them, and answers stand at
    places of them. Tokens take their tags along; everything else is copied. Raises FinetuneError
    when there is nothing to augment, or when an augmenter cannot run on tokens.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, Mapping[str, Any]]],
        columns: Mapping[str, Column],
        *,
        seed: int,
        fixed: Collection[str] = (),
    ) -> None:
        assert parts, "an augmentation without operations"
        self._texts, self._tokens, self._tags = (
            [role for role, column in columns.items() if column.kind == kind and role not in fixed]
            for kind in ("text", "tokens", "tags")
        )
        assert len(self._tokens) <= 1 >= len(self._tags), "tags could not say whose they are"
        if not self._texts and not self._tokens:
            raise FinetuneError("data.augment: expected rows with a text or with tokens, found neither")
        self._operations = [self._operation(name, options) for name, options in parts]
        self._seed = seed

    def _operation(self, name: str, options: Mapping[str, Any]) -> _Operation:
        entry = augmenters.get(name)
        if self._tokens and not entry.attributes.get("tokens", False):
            able = ", ".join(name for name in augmenters.names() if augmenters.get(name).attributes.get("tokens"))
            raise FinetuneError(
                f"data.augment: {name} writes a new text, in which the tags of the tokens would have no place. "
                f"Rows of tokens can be augmented by {able}"
            )
        return _Operation(name, entry.attributes["level"], entry.build(options))

    def augment(self, values: Mapping[str, Any], key: int, copy: int) -> Augmented | None:
        """Return a changed row, or nothing when no operation changes it; a pure function of seed and arguments.

        `key` numbers the row, `copy` the copies of it. One operation is drawn, each as likely as the others; where it
        changes nothing the others follow, in an order drawn as well.
        """
        start = f"{self._seed}/{key}/{copy}"
        order = _random(start).sample(self._operations, len(self._operations))
        for attempt in range(ROUNDS):
            for operation in order:
                if attempt and operation.level == "text":  # costly, and mostly with one result
                    continue
                changed = self._apply(operation, values, f"{start}/{attempt}")
                if changed is not None:
                    return Augmented(changed, operation.name)
        return None

    def _apply(self, operation: _Operation, values: Mapping[str, Any], start: str) -> dict[str, Any] | None:
        """Return the row after the operation, or nothing when the operation changes none of its texts and tokens."""
        new: dict[str, Any] = {}
        for role in self._texts:
            if values.get(role):
                text = _augment_text(operation, values[role], _random(start, role))
                new.update({role: text} if text != values[role] else {})
        for role in self._tokens:
            if values.get(role):
                tokens = list(values[role])
                pieces = operation.run(tokens, _random(start, role))
                new_tokens, new_tags = carry_tags(pieces, tokens, self._tags_of(values))
                if new_tokens != tokens:
                    new[role] = new_tokens
                    new.update((tag_role, new_tags) for tag_role in self._tags if values.get(tag_role))
        return {**values, **new} if new else None

    def _tags_of(self, values: Mapping[str, Any]) -> list[str]:
        """Return the row's tags; where there are none all tokens are outside."""
        given = next((list(values[role]) for role in self._tags if values.get(role)), None)
        return given if given is not None else [OUTSIDE for role in self._tokens for _ in values[role]]

    def show(self, values: Mapping[str, Any]) -> str:
        """Return what of a row is augmented, for a reader: its texts, and its tokens with their tags."""
        shown = [str(values[role]) for role in self._texts if values.get(role)]
        for role in self._tokens:
            pairs = zip(values[role], self._tags_of(values), strict=True)
            shown.append(" ".join(token if tag == OUTSIDE else f"{token}/{tag}" for token, tag in pairs))
        return " | ".join(shown)


def _random(*parts: str) -> Random:
    """Return a generator that the parts alone decide about, in every process."""
    return Random("/".join(parts))  # noqa: S311 -- no secret


def _augment_text(operation: _Operation, text: str, random: Random) -> str:
    if operation.level == "text":
        return str(operation.run(text, random))
    words, gaps = split(text)
    pieces = operation.run(words, random)
    return join(pieces, words, gaps)
