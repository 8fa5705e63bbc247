"""Texts that a model wrote, beside those that were wanted, and how well it would have guessed those."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from finetune.errors import FinetuneError
from finetune.evaluation.predictions import objects
from finetune.evaluation.predictions.language import Guesses, sums_of
from finetune.evaluation.rouge import rouge_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMBER = re.compile(r"([+-]?)(\d+|\d{1,3}(?:,\d{3})+)(?:\.(\d+))?", re.ASCII)


@dataclass(frozen=True)
class TextPredictions:
    """What was said, what would have been right, and what was asked; all arrays have the shape (answers,).

    `said` is empty as long as nothing has been written. `references` are tuples of one or more texts, any of which
    would do; the array is empty if they are unknown. `rows` number the rows that were answered, which may be some of
    many. `pattern` is a regular expression that finds the answer within a text, as `answer_of` says. `guesses` are of
    the references' tokens, each told from the true ones before it, and `bytes` the UTF-8 bytes of these, shape
    (answers,); without them metrics of language are not defined. `finished` says of each text that was written whether
    the model ended it, and not the limit of length; `cut` counts tokens of its prompt for which there was no room.
    """

    said: NDArray[Any]
    references: NDArray[Any]
    sources: NDArray[Any]
    rows: NDArray[Any]
    pattern: str | None = None
    guesses: tuple[Guesses, ...] = ()
    bytes: NDArray[Any] | None = None
    finished: NDArray[Any] | None = None
    cut: NDArray[Any] | None = None
    kind: ClassVar[str] = "texts"
    same: ClassVar[str] = "exactly the same text"

    @classmethod
    def of(
        cls,
        said: Sequence[str],
        references: Sequence[Sequence[str]],
        sources: Sequence[str],
        rows: Sequence[int] | None = None,
        pattern: str | None = None,
        guesses: tuple[Guesses, ...] = (),
        sizes: Sequence[int] | None = None,
    ) -> TextPredictions:
        """Return predictions of plain lists; without `rows` the first so many were answered. `sizes` are bytes."""
        import numpy as np

        assert len(said) in (0, len(sources)), "every answer has its source"
        assert not references or (len(sources) == len(references) and all(references)), "one or more for every answer"
        numbers = np.arange(len(sources)) if rows is None else np.array(rows, dtype=np.int64)
        texts = (objects(said), objects([*map(tuple, references)]), objects(sources))
        counted = None if sizes is None else np.array(sizes, dtype=np.int64)
        return cls(*texts, numbers, pattern, guesses, counted)

    def take(self, answers: NDArray[Any]) -> TextPredictions:
        """Return some answers, by index, in that order; one may be taken twice."""
        chosen = answers.tolist()
        return replace(
            self,
            said=self.said[answers] if len(self.said) else self.said,
            references=self.references[answers] if len(self.references) else self.references,
            sources=self.sources[answers],
            rows=self.rows[answers],
            guesses=tuple(self.guesses[answer] for answer in chosen if self.guesses),
            bytes=None if self.bytes is None else self.bytes[answers],
            finished=None if self.finished is None else self.finished[answers],
            cut=None if self.cut is None else self.cut[answers],
        )

    def agrees(self, other: TextPredictions) -> NDArray[Any]:
        """Tell for each answer whether another model wrote exactly the same text."""
        return self.said == other.said  # type: ignore[no-any-return]

    def saying(self, texts: Sequence[str]) -> TextPredictions:
        """Return predictions for the same rows of who says these texts, and guesses no tokens."""
        assert len(texts) == len(self)
        return replace(self, said=objects(texts), guesses=(), bytes=None, finished=None, cut=None)

    def writing(self, texts: Sequence[str], finished: Sequence[bool], cut: Sequence[int]) -> TextPredictions:
        """Return the predictions with what the same model wrote, whether it ended each, and what of prompts was cut."""
        import numpy as np

        assert len(texts) == len(finished) == len(cut) == len(self)
        return replace(self, said=objects(texts), finished=_truths(finished), cut=np.array(cut, dtype=np.int64))

    def sums(self) -> NDArray[Any]:
        """Return for each answer its loss in nats, tokens, bytes, and tokens guessed rightly, shape (answers, 4)."""
        import numpy as np

        return sums_of(self.guesses, self.bytes) if self.guesses else np.zeros((len(self), 4))

    @cached_property
    def exact(self) -> NDArray[Any]:
        """Whether each text is a reference, but for white space: any run of it is one blank, at the ends none."""
        return _truths(_spaced(said) in map(_spaced, references) for said, references in self._pairs())

    @cached_property
    def answered(self) -> NDArray[Any]:
        """Whether each answer that the pattern finds is that of a reference, and whether any reference has one.

        Shape (answers, 2). A text without an answer is wrong; where no reference has one, nothing can be judged.
        Raise FinetuneError without a pattern.
        """
        import numpy as np

        if self.pattern is None:
            raise FinetuneError(
                "metrics: answer-match compares what a pattern finds in the texts; expected a pattern, found none. "
                "Give the task one, or take exact-match."
            )
        pattern = compiled(self.pattern)
        right, judged = [], []
        for said, references in self._pairs():
            wanted = {comparable(answer) for text in references if (answer := answer_of(text, pattern)) is not None}
            answer = answer_of(said, pattern)
            right.append(answer is not None and comparable(answer) in wanted)
            judged.append(bool(wanted))
        return np.column_stack([_truths(right), _truths(judged)])

    @cached_property
    def rouge(self) -> NDArray[Any]:
        """F-measures of ROUGE-1, 2, L and Lsum, shape (answers, 4)."""
        import numpy as np

        scores = [rouge_scores(said, references) for said, references in self._pairs()]
        return np.array(scores, dtype=np.float64).reshape(-1, 4)

    def _pairs(self) -> Iterable[tuple[str, tuple[str, ...]]]:
        assert len(self.references) == len(self.said) == len(self), "what was said and what is true are known"
        return zip(self.said, self.references, strict=True)

    def __len__(self) -> int:
        return len(self.sources)


def compiled(pattern: str) -> re.Pattern[str]:
    """Return the pattern of answers, ready to use; raise FinetuneError if it is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise FinetuneError(
            f"expected a regular expression that finds the answer, such as '#### (\\S+)'; found {pattern!r}: {error}"
        ) from None


def answer_of(text: str, pattern: re.Pattern[str]) -> str | None:
    """Return the first group of the pattern's last match in a text, the whole match if it has no group; None if none.

    A group that took no part in the match is no answer either.
    """
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0][min(1, pattern.groups)] if last else None


def comparable(answer: str) -> str:
    """Return an answer as it is compared: numbers by their values, everything else but for white space.

    A number may have commas before every three digits, and a full stop or comma behind it that is the sentence's:
    `1,234.50.` is `1234.5`. GSM8K's evaluation (Cobbe et al. 2021) takes the commas out and compares the texts.
    """
    text = _spaced(answer)
    number = _NUMBER.fullmatch(text.rstrip(".,"))
    if not number:
        return text
    sign, whole, fraction = number.groups(default="")
    value = f"{whole.replace(',', '').lstrip('0') or '0'}.{fraction.rstrip('0')}".rstrip(".")
    return f"-{value}" if sign == "-" and value != "0" else value


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _truths(values: Iterable[bool]) -> NDArray[Any]:
    import numpy as np

    return np.array(list(values), dtype=bool)
