"""Answers to questions: of each the best span of its context, how it compares with no answer, and what is true."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from finetune.evaluation.answer_scores import answer_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class AnswerPredictions:
    """The best span of each question's context, and the true answers; all arrays have the shape (questions,).

    `targets` are tuples of texts, empty where the context holds no answer; the array is empty if they are unknown.
    Of the best span there are its text, its first character and the one behind its last, and its probability.
    `no_answer` says how far the model's score of "no answer" is above that of the best span; above the `threshold` no
    answer is given, without one always. `contexts` number the contexts: equal numbers, equal contexts.
    """

    questions: NDArray[Any]
    contexts: NDArray[Any]
    targets: NDArray[Any]
    texts: NDArray[Any]
    starts: NDArray[Any]
    ends: NDArray[Any]
    probabilities: NDArray[Any]
    no_answer: NDArray[Any]
    threshold: float | None = None
    kind: ClassVar[str] = "answers"
    same: ClassVar[str] = "the same span, or none in both"

    @property
    def rows(self) -> NDArray[Any]:
        """An answer is about the row of the same number."""
        import numpy as np

        return np.arange(len(self))

    def take(self, answers: NDArray[Any]) -> AnswerPredictions:
        """Return the predictions for some rows, by index, in that order; a row may be taken twice."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "threshold"}
        return replace(self, **{name: values[answers] for name, values in arrays.items()})

    def agrees(self, other: AnswerPredictions) -> NDArray[Any]:
        """Tell for each row whether another model gives the same span, or none as well."""
        same = (self.starts == other.starts) & (self.ends == other.ends)
        return (self.answered == other.answered) & (same | ~self.answered)  # type: ignore[no-any-return]

    @property
    def answered(self) -> NDArray[Any]:
        """Whether each question is given an answer."""
        import numpy as np

        found = self.texts != ""
        return found if self.threshold is None else found & (self.no_answer <= np.float64(self.threshold))  # type: ignore[no-any-return]

    @property
    def said(self) -> NDArray[Any]:
        """The text that each question is given, `""` for no answer."""
        import numpy as np

        return np.where(self.answered, self.texts, "")

    @cached_property
    def answerable(self) -> NDArray[Any]:
        """Whether each question has a true answer."""
        return _each(map(bool, self.targets))

    @cached_property
    def scores(self) -> NDArray[Any]:
        """Exact match and F1 of each answer as SQuAD defines them, shape (questions, 2)."""
        import numpy as np

        pairs = zip(self.said, self.targets, strict=True)
        return np.array([answer_scores(said, targets) for said, targets in pairs], dtype=np.float64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.texts)


def fit_threshold(predictions: AnswerPredictions) -> float:
    """Return the threshold of `no_answer` with the highest mean F1, as SQuAD 2.0's evaluation script looks for it.

    It lies midway between two neighbouring values (half of 1 beyond the least and the greatest); of several with the
    same F1 it is the one nearest to 0, where no answer and the best span are as likely.
    """
    import numpy as np

    answering, silent = (
        _each(answer_scores(said, targets)[1] for said, targets in zip(texts, predictions.targets, strict=True))
        for texts in (predictions.texts, [""] * len(predictions))
    )
    order = np.argsort(predictions.no_answer, kind="stable")
    ranked = predictions.no_answer[order]
    # what is scored when the first 0, 1, ... questions in this order are answered and the others are not
    totals = np.concatenate([[0], answering[order].cumsum()]) + np.concatenate(
        [silent[order][::-1].cumsum()[::-1], [0]]
    )
    totals[1:-1][ranked[:-1] == ranked[1:]] = -np.inf  # equal values cannot be parted
    middles = np.convolve(np.concatenate([[ranked[0] - 1], ranked, [ranked[-1] + 1]]), [0.5, 0.5], mode="valid")
    best = np.flatnonzero(totals >= totals.max() - 1e-9)
    return float(middles[best[np.abs(middles[best]).argmin()]])


def _each(values: Any) -> NDArray[Any]:
    import numpy as np

    return np.array(list(values))
