"""Tagged words: what a model said of each word of a row, beside what is true, and the entities that both mark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from finetune.data.tagging import entities
from finetune.evaluation.predictions.counts import LabelCounts

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tags = Sequence[str]
Reading = Callable[[Tags], list["Entity"]]


class Entity(NamedTuple):
    """Some words in a row: the first, the one behind the last, and the type of entity that they are."""

    start: int
    end: int
    type: str


def lenient(tags: Tags) -> list[Entity]:
    """Return the entities as seqeval finds them by default: an I- that continues nothing starts one."""
    return [Entity(*found) for found in entities(tags)]


def strict(tags: Tags) -> list[Entity]:
    """Return the entities of IOB2 as seqeval finds them with mode="strict" and scheme=IOB2: each starts with a B-."""
    return [entity for entity in lenient(tags) if tags[entity.start].startswith("B")]


@dataclass(frozen=True)
class TagPredictions:
    """IOB2 tags, one for each word of each row.

    `labels` are the types of entities. Of each row `targets` has the true tags (empty if they are unknown),
    `predicted` those that the model said, and `scores` the probability of each of these, of shape (words,). What the
    model said of a word that it did not see is O, and the score is NaN.
    """

    labels: tuple[str, ...]
    targets: tuple[Tags, ...]
    predicted: tuple[Tags, ...]
    scores: tuple[NDArray[Any], ...]
    kind: ClassVar[str] = "tags"
    same: ClassVar[str] = "the same entities"

    @property
    def rows(self) -> NDArray[Any]:
        """An answer is about the row of the same number."""
        import numpy as np

        return np.arange(len(self))

    def take(self, answers: NDArray[Any]) -> TagPredictions:
        """Return the predictions for some rows, by index, in that order; a row may be taken twice."""
        return TagPredictions(
            self.labels,
            tuple(self.targets[answer] for answer in answers),
            tuple(self.predicted[answer] for answer in answers),
            tuple(self.scores[answer] for answer in answers),
        )

    def agrees(self, other: TagPredictions) -> NDArray[Any]:
        """Tell for each row whether another model marks the same entities."""
        import numpy as np

        pairs = zip(self.predicted, other.predicted, strict=True)
        return np.array([lenient(ours) == lenient(theirs) for ours, theirs in pairs], dtype=bool)

    def label_counts(self, weights: NDArray[Any]) -> LabelCounts:
        """Return for each type how many entities were found, said, and true, each of shape (resamples, labels).

        `weights` of shape (resamples, rows) say how often each row counts. The reading is the strict one.
        """
        counts = self.strict_counts
        return LabelCounts(weights @ counts.hits, weights @ counts.predicted, weights @ counts.actual)

    @cached_property
    def strict_counts(self) -> LabelCounts:
        """The entities of each row and type in the strict reading, each of shape (rows, labels)."""
        return self._counts(strict)

    @cached_property
    def lenient_counts(self) -> LabelCounts:
        """The entities of each row and type in the lenient reading, each of shape (rows, labels)."""
        return self._counts(lenient)

    @cached_property
    def right_words(self) -> NDArray[Any]:
        """How many words of each row have the true tag, and how many there are, shape (rows, 2)."""
        import numpy as np

        pairs = zip(self.targets, self.predicted, strict=True)
        counts = [(sum(map(str.__eq__, true, said)), len(true)) for true, said in pairs]
        return np.asarray(counts, dtype=np.float64).reshape(-1, 2)

    def _counts(self, read: Reading) -> LabelCounts:
        import numpy as np

        index = {label: number for number, label in enumerate(self.labels)}
        hits, predicted, actual = (np.zeros((len(self), len(index))) for _ in range(3))
        for row, (true_tags, said_tags) in enumerate(zip(self.targets, self.predicted, strict=True)):
            true, said = read(true_tags), read(said_tags)
            for found, counts in ((true, actual), (said, predicted), (set(true).intersection(said), hits)):
                for entity in found:
                    counts[row, index[entity.type]] += 1
        return LabelCounts(hits, predicted, actual)

    def __len__(self) -> int:
        return len(self.predicted)
