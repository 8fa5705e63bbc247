"""Token classification (tagging, named entities): one tag for each word, and the entities that the tags mark.

Rows: `tokens`, `tags` (IOB2; `data.tag_scheme` and the CoNLL source convert others), or `text` with character `spans`.

The model gives scores for O and for B- and I- of each type at every token. With `align: first` a word's tag stands at
its first token (Devlin et al., 2019), with `align: all` at each of its tokens, and the word's probabilities are the
mean over them; the other tokens have the target -100. Where a long row is read in windows, each token counts in the
one in which it has most context, in training as in decoding, so that none counts twice. Training minimizes the
loss that the recipe chooses, else cross-entropy, each target counting the same.

Decoding: `decoding: constrained` takes the most probable tags in which every I- continues an entity of its type
(Viterbi's algorithm, every allowed step equally likely); `argmax` takes each word's most probable tag, as published
scripts do. There an I- that continues nothing is no entity to the strict metrics, and starts one to the lenient
metrics and to `predict`. Words that truncation took are O; they stay in the denominators, and the report counts them.

Metrics are seqeval's (Nakayama, 2018), of whole entities as CoNLL-2003 defines them (Tjong Kim Sang and De Meulder):
strict IOB2, and lenient, its default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from finetune.data.ownership import NO_WORD, deciding_words
from finetune.data.rows import Column
from finetune.data.tagging import OUTSIDE, entities
from finetune.data.tokenization import NO_TARGET, Encoded, Encoder, WordWindow, nested
from finetune.models.heads import Head
from finetune.registry import tasks
from finetune.tasks import Batch, Criterion, Fitted, Frequencies, Row, TaskSpec
from finetune.tasks.sequences import pad_inputs
from finetune.tasks.tag_reports import describe, details, difficulty, example, sections
from finetune.tasks.voting import Voting, mean_of_probabilities

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable, Split
    from finetune.evaluation.predictions.tags import TagPredictions


def tag_names(types: Sequence[str]) -> list[str]:
    """Return the tags that entity types give, in the order of their indices: O, then B- and I- of each type."""
    return [OUTSIDE, *(f"{mark}-{kind}" for kind in types for mark in ("B", "I"))]


def frequencies(split: Split, labels: Sequence[str]) -> Frequencies:
    """Return how many targets each tag has; what truncation took has none."""
    import numpy as np

    names, targets = tag_names(labels), split.features.values("label_ids")
    counts = np.bincount(targets[targets != NO_TARGET], minlength=len(names))
    return Frequencies(dict(zip(names, counts.tolist(), strict=True)), int(counts.sum()))


SPEC = TaskSpec(
    kind="tags",
    metrics=(
        *("entity-f1", "token-accuracy", "entity-precision", "entity-recall", "entity-f1-macro"),
        *("entity-f1-lenient", "entity-precision-lenient", "entity-recall-lenient"),
    ),
    baselines=("word-tags",),
    text_roles=("tokens",),
    label_role="tags",
    loss="cross-entropy",
    frequencies=frequencies,
    question={"tokens": Column("tokens")},
    describe=describe,
    example=example,
    difficulty=difficulty,
    worst_means="The rows with most wrong entities; of equals those whose words' tags were least likely.",
    voting=Voting("the probabilities of each word's tags", mean_of_probabilities),
    details=details,
    sections=sections,
    by_token=True,
)


@tasks.register("token-classification", spec=SPEC)
class TokenClassification:
    """Words, and one tag for each."""

    criterion: Criterion

    columns = {"tokens": Column("tokens"), "tags": Column("tags")}  # noqa: RUF012 -- read-only

    def __init__(
        self,
        *,
        align: Literal["first", "all"] = "first",
        decoding: Literal["constrained", "argmax"] = "constrained",
    ) -> None:
        self._every_token = align == "all"
        self._constrained = decoding == "constrained"

    def head(self, labels: Sequence[str]) -> Head:
        """Return a head with one output for each tag."""
        return Head("tokens", tuple(tag_names(labels)))

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:
        """Return token ids, the word that each token decides (-1: none) and, where there are tags, their indices."""
        windows, lengths, lost = encoder.words(rows["tokens"])
        limits = encoder.limits
        deciding = [deciding_words(row, limits.stride, every_token=self._every_token) for row in windows]
        features = {
            "input_ids": nested([[window.ids for window in row] for row in windows], limits),
            "word_ids": nested(deciding, limits),
        }
        entities_lost = None
        if "tags" in rows:
            index = {tag: number for number, tag in enumerate(tag_names(labels))}
            targets = [_targets(row, tags, index) for row, tags in zip(deciding, rows["tags"], strict=True)]
            features["label_ids"] = nested(targets, limits)
            entities_lost = _entities_lost(windows, rows["tags"])
        parts = [window for row in windows for window in row]
        unknown = sum(token == encoder.unknown_id for window in parts for token in window.ids)
        text_tokens = int(lengths.sum()) - encoder.special_tokens() * len(windows)
        words = sum(map(len, rows["tokens"]))
        return Encoded(features, lengths, lost, unknown, words, text_tokens, entities_lost)

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad to the longest window; targets are there when the rows have tags, -100 where no token decides a word."""
        import torch

        inputs = pad_inputs(features, tokenizer)
        if "label_ids" not in features[0]:
            return Batch(inputs, {})
        labels = torch.full_like(inputs["input_ids"], NO_TARGET)
        for row, window in enumerate(features):
            labels[row, : len(window["label_ids"])] = torch.tensor(window["label_ids"])
        return Batch(inputs, {"labels": labels})

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return logits of shape (windows, length, tags)."""
        return model(**inputs).logits  # type: ignore[no-any-return]

    def loss(self, outputs: torch.Tensor, batch: Batch, fitted: Fitted) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss and the number of targets: of words, or of tokens with `align: all`."""
        labels = batch.targets["labels"]
        wanted = labels != NO_TARGET
        losses, counts = self.criterion(outputs[wanted].float(), labels[wanted], fitted)
        return losses.sum(), counts.sum()

    def decode(
        self,
        outputs: Sequence[NDArray[Any]],
        features: FeatureTable,
        rows: Sequence[Row],
        labels: Sequence[str],
        fitted: Fitted,  # noqa: ARG002
    ) -> TagPredictions:
        """Turn logits, one array of shape (tokens, tags) a window, into a tag for each word of each row."""
        import numpy as np

        from finetune.evaluation.predictions.tags import TagPredictions

        names, tokens = tag_names(labels), []
        targets: list[list[str]] = []
        for row in rows:
            tokens.append(len(row["tokens"]))
            targets += [row["tags"]] if "tags" in row else []
        predicted, scores = [], []
        for probabilities, seen in _of_words(outputs, features, tokens, len(names)):
            chosen = most_probable(probabilities, constrained=self._constrained)
            predicted.append([names[tag] for tag in chosen])
            scores.append(np.where(seen, probabilities[np.arange(len(chosen)), chosen], np.nan))
        return TagPredictions(_types(labels, targets), tuple(targets), tuple(predicted), tuple(scores))


def _targets(deciding: Sequence[Sequence[int]], tags: Sequence[str], index: Mapping[str, int]) -> list[list[int]]:
    """Return the targets of each window; a type that `data.labels` leaves out is O, and prepare's checks count it."""
    return [[NO_TARGET if word == NO_WORD else index.get(tags[word], 0) for word in window] for window in deciding]


def _entities_lost(windows: Sequence[Sequence[WordWindow]], tags: Sequence[Sequence[str]]) -> NDArray[Any]:
    """Return, for each row, how many entities have a word that no window sees: truncation took it."""
    import numpy as np

    lost = []
    for row, row_tags in zip(windows, tags, strict=True):
        seen = {word for window in row for word in window.words}
        lost.append(sum(not seen.issuperset(range(start, end)) for start, end, _ in entities(row_tags)))
    return np.asarray(lost, dtype=np.int32)


def _of_words(
    outputs: Sequence[NDArray[Any]], features: FeatureTable, lengths: Sequence[int], tags: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield for each row the probabilities of its words, shape (words, tags), and which of them the model saw.

    Those of a word are the mean over the tokens that decide it; a word without any is O.
    """
    import numpy as np
    from scipy.special import softmax

    sums = [np.zeros((length, tags)) for length in lengths]
    for number, row in enumerate(features.row_ids):
        words = np.asarray(features[number]["word_ids"])
        at = np.flatnonzero(words != NO_WORD)
        np.add.at(sums[row], words[at], softmax(outputs[number][at].astype(np.float64), axis=-1))
    for probabilities in sums:
        seen: NDArray[Any] = probabilities.sum(axis=1) > 0
        probabilities[~seen, 0] = 1.0
        yield probabilities / probabilities.sum(axis=1, keepdims=True), seen


def most_probable(probabilities: NDArray[Any], *, constrained: bool) -> NDArray[Any]:
    """Return the index of a tag for each word, shape (words,), of probabilities of shape (words, tags).

    The tags are those of `tag_names`. Constrained, they are the most probable ones that are IOB2 (Viterbi, 1967);
    otherwise the most probable of each word.
    """
    import numpy as np

    best = probabilities.argmax(axis=1)
    if not constrained or _is_iob2(best):  # then nothing can be more probable
        return best  # type: ignore[no-any-return]
    logs = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    inside = np.arange(2, logs.shape[1], 2)
    came_from = np.zeros(logs.shape, dtype=np.int64)
    scores = logs[0].copy()
    scores[inside] = -np.inf
    for word in range(1, len(logs)):
        came_from[word] = scores.argmax()
        came_from[word, inside] = np.where(scores[inside] >= scores[inside - 1], inside, inside - 1)
        scores = scores[came_from[word]] + logs[word]
    tags = [int(scores.argmax())]
    for word in range(len(logs) - 1, 0, -1):
        tags.append(int(came_from[word, tags[-1]]))
    return np.asarray(tags[::-1])


def _is_iob2(tags: NDArray[Any]) -> bool:
    """Tell whether every I- (an even index but 0) stands behind a B- or an I- of its type."""
    import numpy as np

    before = np.concatenate([[0], tags[:-1]])
    starts = (tags % 2 == 1) | (tags == 0)
    return bool(np.all(starts | (before == tags) | (before == tags - 1)))


def _types(labels: Sequence[str], targets: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return the types that the model knows, and behind them others that are true: they count as missed."""
    true = {kind for tags in targets for _, _, kind in entities(tags)}
    return (*labels, *sorted(true.difference(labels)))
