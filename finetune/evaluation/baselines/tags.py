"""The baseline of tagged words: what a word mostly was, it is again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from finetune.data.tagging import OUTSIDE, to_iob2
from finetune.evaluation.baselines import BaselineInput
from finetune.registry import baselines

if TYPE_CHECKING:
    from finetune.evaluation.predictions.tags import TagPredictions


@baselines.register("word-tags", of=("tags",), title="most frequent tag of each word")
def word_tags(given: BaselineInput) -> TagPredictions:
    """Give each word the tag that it has most often in training: as it is written, or else in any capitals, or else O.

    An I- that continues nothing starts an entity, so that no entity is lost to the strict reading of the tags.
    """
    import numpy as np

    as_written = _most_frequent(_tagged_words(given.train))
    in_small = _most_frequent((word.lower(), tag) for word, tag in _tagged_words(given.train))
    said = []
    for row in given.rows:
        tags = [as_written.get(word) or in_small.get(word.lower(), OUTSIDE) for word in row["tokens"]]
        said.append(to_iob2(tags, "iob1"))
    scores = tuple(np.ones(len(tags)) for tags in said)
    return replace(cast("TagPredictions", given.like), predicted=tuple(said), scores=scores)


def _tagged_words(rows: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    for row in rows:
        yield from zip(row["tokens"], row["tags"], strict=True)


def _most_frequent(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the most frequent tag of each word; of equally frequent ones the first in the alphabet."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for word, tag in pairs:
        counts[word][tag] += 1
    return {word: min(tags, key=lambda tag: (-tags[tag], tag)) for word, tags in counts.items()}
