"""How well a language model guessed each token of some texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Guesses(NamedTuple):
    """The tokens of one row that were to be guessed, each array of shape (tokens,).

    `targets` are the ids of the true tokens, `losses` the negative logarithms of the probabilities that they were given
    (nats), `firsts` the ids of the most probable tokens.
    """

    targets: NDArray[Any]
    losses: NDArray[Any]
    firsts: NDArray[Any]


class Best(NamedTuple):
    """What a model holds most probable at each token of one row that it was asked about.

    `ids` of shape (tokens,) are those that it read, `best` of shape (tokens, k) the most probable ones and
    `probabilities` of the same shape theirs.
    """

    ids: NDArray[Any]
    best: NDArray[Any]
    probabilities: NDArray[Any]


@dataclass(frozen=True)
class LanguagePredictions:
    """What was to be guessed in each row and how well that went; `texts` and `bytes` are of shape (rows,).

    `bytes` counts the UTF-8 bytes that the guessed tokens stand for, where all of a text is guessed, else 0. Of rows
    that are asked about, with nothing known to guess, `best` says what the model would put where. `words` are the
    tokens that occur, by their ids, as people read them, and `mask` is the id of the token that hides others. `samples`
    are beginnings of texts, and how the model goes on.
    """

    texts: NDArray[Any]
    guesses: tuple[Guesses, ...]
    bytes: NDArray[Any]
    best: tuple[Best, ...] = ()
    words: Mapping[int, str] = field(default_factory=dict)
    mask: int | None = None
    samples: tuple[tuple[str, str], ...] = ()
    kind: ClassVar[str] = "language"
    same: ClassVar[str] = "the same most probable token"

    @property
    def rows(self) -> NDArray[Any]:
        """An answer is about the row of the same number."""
        import numpy as np

        return np.arange(len(self))

    def take(self, answers: NDArray[Any]) -> LanguagePredictions:
        """Return the predictions for some rows, by index, in that order; a row may be taken twice."""
        chosen = answers.tolist()
        return replace(
            self,
            texts=self.texts[answers],
            guesses=tuple(self.guesses[answer] for answer in chosen if self.guesses),
            bytes=self.bytes[answers],
            best=tuple(self.best[answer] for answer in chosen if self.best),
        )

    def agrees(self, other: LanguagePredictions) -> NDArray[Any]:
        """Return for each row the share of its tokens for which another model has the same most probable one."""
        import numpy as np

        pairs = zip(self.guesses, other.guesses, strict=True)
        return np.array([(one.firsts == two.firsts).mean() if len(one.firsts) else 1.0 for one, two in pairs])

    def with_samples(self, samples: Sequence[tuple[str, str]]) -> LanguagePredictions:
        """Return the predictions with beginnings of texts, and how the model goes on from them."""
        return replace(self, samples=tuple(samples))

    def losing(self, losses: Iterator[NDArray[Any]], firsts: Sequence[int]) -> LanguagePredictions:
        """Return predictions of the same tokens with other losses, and with the same most probable token everywhere."""
        import numpy as np

        given = zip(self.guesses, losses, firsts, strict=True)
        guesses = (Guesses(own.targets, found, np.full(len(found), first)) for own, found, first in given)
        return replace(self, guesses=tuple(guesses), samples=())

    def sums(self) -> NDArray[Any]:
        """Return for each row its loss in nats, its tokens, bytes, and tokens guessed rightly, shape (rows, 4)."""
        return sums_of(self.guesses, self.bytes)

    def __len__(self) -> int:
        return len(self.texts)


def sums_of(guesses: Sequence[Guesses], sizes: NDArray[Any] | None) -> NDArray[Any]:
    """Return for each row its loss in nats, its tokens, its bytes and the tokens guessed rightly, shape (rows, 4)."""
    import numpy as np

    counts = np.zeros(len(guesses)) if sizes is None else sizes
    return np.array(
        [
            (row.losses.sum(dtype=np.float64), len(row.targets), size, (row.firsts == row.targets).sum())
            for row, size in zip(guesses, counts, strict=True)
        ],
        dtype=np.float64,
    ).reshape(-1, 4)
