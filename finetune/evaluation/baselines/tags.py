"""The baseline of tagged words: what a word mostly was, it is again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
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

    Words of a type that the run does not know count as O, as they do for the model. An I- that continues nothing
    starts an entity, so that no entity is lost to the strict reading of the tags.
    """
    import numpy as np

    tagged = list(_tagged_words(given.train, given.labels))
    as_written = _most_frequent(tagged)
    in_small = _most_frequent((word.lower(), tag) for word, tag in tagged)
    said = []
    for row in given.rows:
        tags = [as_written.get(word) or in_small.get(word.lower(), OUTSIDE) for word in row["tokens"]]
        said.append(to_iob2(tags, "iob1"))
    scores = tuple(np.ones(len(tags)) for tags in said)
    return replace(cast("TagPredictions", given.like), predicted=tuple(said), scores=scores)


def _tagged_words(rows: Iterable[Mapping[str, Any]], types: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Yield the words with their tags; a tag of another type is O."""
    for row in rows:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            yield word, tag if tag[2:] in types else OUTSIDE


def _most_frequent(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the most frequent tag of each word; of equally frequent ones the first in the alphabet."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for word, tag in pairs:
        counts[word][tag] += 1
    return {word: min(tags, key=lambda tag: (-tags[tag], tag)) for word, tags in counts.items()}
