"""Regression: a number for each text, or several.

Rows: `text` (or `text`, `text_pair`) and one number for each of the option `targets`, the roles that hold them:
`score`, unless the recipe names others (`targets: [grammar, content]`). A row whose number is missing, is none, or lies
outside of the declared range (`minimum`, `maximum`) is dropped with its reason and line, and the latter is an error.

The model reads one text, or a pair (cut at `model.max_length`, every cut counted; or in windows, whose outputs are
averaged), and gives one output for each target. It learns the targets standardized: less their mean and divided by
their standard deviation over the training rows, which stay with the run (`fitted.json`). Everything that it says is in
the targets' own units again, and no less than `minimum` and no more than `maximum` where they are declared.

Training minimizes the loss that the recipe chooses (`mse`, the default, `mae`, or `huber`, whose `delta` is in standard
deviations), the mean over all scores (rows × targets).

Metrics, the mean over targets: Pearson's and Spearman's correlation (scipy), R², RMSE and MAE (scikit-learn). A
quantized model agrees with its original on a row if they differ by at most 5 % of each target's standard deviation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder
from finetune.models.heads import Head
from finetune.registry import tasks
from finetune.tasks import Batch, Criterion, Fitted, Row, TaskSpec
from finetune.tasks.number_reports import details, difficulty, example, sections
from finetune.tasks.sequences import pad_inputs, pooled, weighted, weights_of
from finetune.tasks.voting import Voting, mean_of_fitted

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable
    from finetune.evaluation.predictions.numbers import NumberPredictions

TEXT_ROLES = ("text", "text_pair")
# The other columns of rows and of a split's file: a role of that name would stand there twice
RESERVED = {
    *("number", "file", "line", "raw", "key_high", "key_low", "joined", "origin", "operation"),
    *("length", "scores", "input_ids", "token_type_ids"),
}
SCORE = ("score",)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for targets that cannot be told apart, or an empty range."""
    targets, low, high = options["targets"], options["minimum"], options["maximum"]
    bad = [name for name in targets if not name or name in RESERVED or name in TEXT_ROLES or name.startswith("extra:")]
    if not targets or bad or len(set(targets)) < len(targets):
        found = f"{bad[0]!r}, which is taken" if bad else repr(targets)
        raise ValueError(
            f"targets: expected one or more different names of roles, found {found}. Choose other names, and map them "
            "in data.columns: {name: column in the file}"
        )
    if low is not None and high is not None and low >= high:
        raise ValueError(f"minimum: expected less than the maximum ({high:g}), found {low:g}")


def fit_targets(names: Sequence[str], rows: Iterable[Row]) -> dict[str, Any]:
    """Return each target's mean and standard deviation over the training rows; 1 as that of a constant target."""
    import numpy as np

    scores = np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
    means, deviations = scores.mean(axis=0), scores.std(axis=0)
    deviations[(scores == scores[0]).all(axis=0)] = 1.0
    return {
        "mean": dict(zip(names, means.tolist(), strict=True)),
        "deviation": dict(zip(names, deviations.tolist(), strict=True)),
    }


def mean_of_numbers(names: Sequence[str], outputs: Sequence[torch.Tensor], fitted: Sequence[Fitted]) -> torch.Tensor:
    """Return outputs, shape (windows, targets), that stand for the mean of the numbers which several models say."""
    import torch

    def scales(name: str, of: Sequence[Fitted]) -> torch.Tensor:
        return torch.tensor([[one[name][target] for target in names] for one in of]).to(outputs[0])[:, None]

    said = torch.stack([part.reshape(-1, len(names)) for part in outputs])
    numbers = (said * scales("deviation", fitted) + scales("mean", fitted)).mean(dim=0)
    together = [mean_of_fitted(fitted)]
    return (numbers - scales("mean", together)[0]) / scales("deviation", together)[0]


def describe(predictions: NumberPredictions, answer: int, row: Row) -> dict[str, Any]:  # noqa: ARG001
    """Return each target's number, to a ten-thousandth of the target's deviation."""
    answers = zip(predictions.names, predictions.values[answer], predictions.deviations, strict=True)
    return {name: round(float(value), 4 - math.floor(math.log10(deviation))) for name, value, deviation in answers}


def spec_of(options: Mapping[str, Any]) -> TaskSpec:
    """Return what the toolkit must know, which depends on the targets."""
    targets = tuple(options.get("targets", SCORE))
    return TaskSpec(
        kind="numbers",
        metrics=("rmse", "pearson", "spearman", "r2", "mae"),
        baselines=("mean", "tfidf-ridge"),
        text_roles=TEXT_ROLES,
        label_role=targets[0],
        loss="mse",
        describe=describe,
        example=example,
        difficulty=difficulty,
        worst_means="The rows with the largest errors, measured in standard deviations of the training scores.",
        voting=Voting("the numbers", functools.partial(mean_of_numbers, targets)),
        details=details,
        sections=sections,
        fit_targets=functools.partial(fit_targets, targets),
    )


@tasks.register("regression", spec=spec_of, check=check_options)
class Regression:
    """One text, or a pair, and one number or several."""

    criterion: Criterion

    def __init__(
        self,
        *,
        targets: list[str] = ["score"],  # noqa: B006 -- an option's default: never changed
        minimum: Annotated[float, Field(allow_inf_nan=False)] | None = None,
        maximum: Annotated[float, Field(allow_inf_nan=False)] | None = None,
    ) -> None:
        number = Column("number", minimum=minimum, maximum=maximum)
        self.columns: dict[str, Column] = {
            "text": Column("text"),
            "text_pair": Column("text", required=False),
            **dict.fromkeys(targets, number),
        }
        self._targets = tuple(targets)
        self._range = (-math.inf if minimum is None else minimum, math.inf if maximum is None else maximum)

    def head(self, labels: Sequence[str]) -> Head:  # noqa: ARG002
        """Return a head with one output for each target."""
        names = self._targets if len(self._targets) > 1 else ()  # one number goes on from one, whatever its name
        return Head("sequence", names, outputs=len(self._targets), problem="regression")

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:  # noqa: ARG002
        """Return token ids and, where the rows have them, their scores: a list with one number for each target."""
        encoded = encoder.texts(rows["text"], rows.get("text_pair"))
        if any(name not in rows for name in self._targets):
            return encoded
        import pyarrow as pa

        scores = list(zip(*(rows[name] for name in self._targets), strict=True))
        return encoded.with_features(scores=pa.array(scores, pa.list_(pa.float64())))

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad to the longest window; the scores of shape (windows, targets) are there when the rows have them."""
        import torch

        inputs = pad_inputs(features, tokenizer)
        if "scores" not in features[0]:
            return Batch(inputs, {})
        whole = torch.tensor([row["scores"] for row in features], dtype=torch.float64)
        scores, rests = in_two_parts(whole)
        return Batch(inputs, {"scores": scores, "rests": rests, **weights_of(features)})

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return standardized scores of shape (windows, targets)."""
        return model(**inputs).logits  # type: ignore[no-any-return]

    def loss(self, outputs: torch.Tensor, batch: Batch, fitted: Fitted) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss and the number of scores; each window of a row counts as its share of the row."""
        import torch

        means, deviations = (torch.from_numpy(values) for values in self._scale(fitted))
        mean, rest = (part.to(outputs.device) for part in in_two_parts(means))
        deviation = deviations.float().to(outputs.device)
        standardized = ((batch.targets["scores"] - mean) + (batch.targets["rests"] - rest)) / deviation
        return weighted(*self.criterion(outputs.float(), standardized, fitted), batch)

    def decode(
        self,
        outputs: Sequence[NDArray[Any]],
        features: FeatureTable,
        rows: Sequence[Row],
        labels: Sequence[str],  # noqa: ARG002
        fitted: Fitted,
    ) -> NumberPredictions:
        """Return the mean over each row's windows in the targets' own units, held within the declared range."""
        import numpy as np

        from finetune.evaluation.predictions.numbers import NumberPredictions

        names = self._targets
        known = len(rows) > 0 and all(name in rows[0] for name in names)
        targets = np.array([[row[name] for name in names] for row in rows] if known else [], dtype=np.float64)
        means, deviations = self._scale(fitted)
        said = (
            pooled(np.asarray(outputs, dtype=np.float64).reshape(-1, len(names)), features, rows) * deviations + means
        )
        return NumberPredictions(names, targets.reshape(-1, len(names)), said, deviations, *self._range).saying(said)

    def _scale(self, fitted: Fitted) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return mean and deviation of the targets, each of shape (targets,)."""
        import numpy as np

        return (
            np.array([fitted.get("mean", {}).get(name, 0.0) for name in self._targets]),
            np.array([fitted.get("deviation", {}).get(name, 1.0) for name in self._targets]),
        )


def in_two_parts(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float64 numbers as float32 and what that leaves of them, since not every device has float64.

    Otherwise scores far from 0 for their deviation (years, timestamps) would lose the digits in which they differ.
    """
    rounded = values.float()
    return rounded, (values - rounded.double()).float()
