"""Token classification (tagging, named entities): one tag for each word.

Rows: `tokens`, `tags` (IOB2; `data.tag_scheme` and the CoNLL source convert others), or `text` with character `spans`.
A word's tag stands at its first token, the other tokens have the target -100; in windows each word is decided by the
one window in which it has most context. Its rows can be prepared and checked; training comes with the metrics that
judge it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.rows import Column
from finetune.data.tagging import entities
from finetune.data.tokenization import NO_TARGET, Encoded, Encoder, WordWindow, nested, owned_words
from finetune.registry import tasks
from finetune.tasks import TaskSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPEC = TaskSpec(metrics=(), baselines=(), unit="row", text_roles=("tokens",), label_role="tags", trains=False)


def tag_names(types: Sequence[str]) -> list[str]:
    """Return the tags that entity types give, in the order of their indices: O, then B- and I- of each type."""
    return ["O", *(f"{mark}-{kind}" for kind in types for mark in ("B", "I"))]


@tasks.register("token-classification", spec=SPEC)
class TokenClassification:
    """Words, and one tag for each."""

    columns = {"tokens": Column("tokens"), "tags": Column("tags")}  # noqa: RUF012 -- read-only

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:
        """Return token ids, the word of each token (-1: a special token) and, where there are tags, their indices."""
        windows, lengths, lost = encoder.words(rows["tokens"])
        limits = encoder.limits
        features = {
            "input_ids": nested([[window.ids for window in row] for row in windows], limits),
            "word_ids": nested([[window.words for window in row] for row in windows], limits),
        }
        entities_lost = None
        if "tags" in rows:
            index = {tag: number for number, tag in enumerate(tag_names(labels))}
            targets = [_targets(row, tags, index) for row, tags in zip(windows, rows["tags"], strict=True)]
            features["label_ids"] = nested(targets, limits)
            entities_lost = _entities_lost(windows, rows["tags"])
        parts = [window for row in windows for window in row]
        unknown = sum(token == encoder.unknown_id for window in parts for token in window.ids)
        text_tokens = int(lengths.sum()) - encoder.special_tokens() * len(windows)
        words = sum(map(len, rows["tokens"]))
        return Encoded(features, lengths, lost, unknown, words, text_tokens, entities_lost)


def _targets(windows: Sequence[WordWindow], tags: Sequence[str], index: Mapping[str, int]) -> list[list[int]]:
    return [
        [
            index.get(tags[word], 0) if owns and start else NO_TARGET
            for word, start, owns in zip(window.words, window.starts, owned, strict=True)
        ]
        for window, owned in zip(windows, owned_words(windows), strict=True)
    ]


def _entities_lost(windows: Sequence[Sequence[WordWindow]], tags: Sequence[Sequence[str]]) -> NDArray[Any]:
    """Return, for each row, how many entities have a word that no window sees: truncation took it."""
    import numpy as np

    lost = []
    for row, row_tags in zip(windows, tags, strict=True):
        seen = {word for window in row for word in window.words}
        lost.append(sum(not seen.issuperset(range(start, end)) for start, end, _ in entities(row_tags)))
    return np.asarray(lost, dtype=np.int32)
