"""Losses against formulas written out in float64, their gradients included, and what is fitted against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from finetune import registry
from finetune.errors import FinetuneError
from finetune.recipe import Recipe
from finetune.tasks import Frequencies

Array = NDArray[np.float64]
Reference = Callable[[Array, Array], tuple[Array, Array]]
LABELS = ("cat", "dog", "owl")
WEIGHTS = {"cat": 0.5, "dog": 3.0, "owl": 1.25}
SHARES = {"cat": math.log(0.7), "dog": math.log(0.1), "owl": math.log(0.2)}
VECTOR = np.array(list(WEIGHTS.values()))


def log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def of_truth(values: Array, targets: Array) -> Array:
    return values[np.arange(len(values)), targets.astype(int)]


def smoothed(scores: Array, targets: Array, weights: Array, smoothing: float) -> tuple[Array, Array]:
    """Return the cross-entropy to a target of which so much is spread, every class's part times its weight."""
    logs = log_softmax(scores)
    wanted = (1 - smoothing) * np.eye(logs.shape[1])[targets.astype(int)] + smoothing / logs.shape[1]
    return -(wanted * weights * logs).sum(axis=1), weights[targets.astype(int)]


def focal(scores: Array, targets: Array, weights: Array, gamma: float) -> tuple[Array, Array]:
    logs, counts = of_truth(log_softmax(scores), targets), weights[targets.astype(int)]
    return -counts * (1 - np.exp(logs)) ** gamma * logs, counts


def binary(scores: Array, targets: Array, weights: Array, gamma: float, smoothing: float) -> tuple[Array, Array]:
    positive = 1 / (1 + np.exp(-scores))
    wanted = targets * (1 - smoothing) + smoothing / 2
    there = -weights * wanted * (1 - positive) ** gamma * np.log(positive)
    absent = -(1 - wanted) * positive**gamma * np.log(1 - positive)
    return there + absent, np.ones_like(scores)


def huber(scores: Array, targets: Array, delta: float) -> tuple[Array, Array]:
    gap = np.abs(scores - targets)
    return np.where(gap <= delta, gap**2 / 2, delta * (gap - delta / 2)), np.ones_like(gap)


ONES = np.ones(3)
# A loss with options, what is fitted for it, and the formula; of each registered loss at least one
CASES: list[tuple[str, dict[str, Any], dict[str, Any], Reference]] = [
    ("cross-entropy", {}, {}, lambda s, t: smoothed(s, t, ONES, 0.0)),
    ("cross-entropy", {"label_smoothing": 0.2}, {}, lambda s, t: smoothed(s, t, ONES, 0.2)),
    ("cross-entropy", {"class_weights": WEIGHTS}, {"class_weights": WEIGHTS},
     lambda s, t: smoothed(s, t, VECTOR, 0.0)),
    ("cross-entropy", {"class_weights": "balanced", "label_smoothing": 0.1}, {"class_weights": WEIGHTS},
     lambda s, t: smoothed(s, t, VECTOR, 0.1)),
    ("focal", {}, {}, lambda s, t: focal(s, t, ONES, 2.0)),
    ("focal", {"gamma": 0.5, "class_weights": WEIGHTS}, {"class_weights": WEIGHTS},
     lambda s, t: focal(s, t, VECTOR, 0.5)),
    ("focal", {"gamma": 0.0}, {}, lambda s, t: smoothed(s, t, ONES, 0.0)),
    ("logit-adjustment", {}, {"log_priors": SHARES},
     lambda s, t: smoothed(s + np.array(list(SHARES.values())), t, ONES, 0.0)),
    ("logit-adjustment", {"strength": 0.5, "label_smoothing": 0.3}, {"log_priors": SHARES},
     lambda s, t: smoothed(s + 0.5 * np.array(list(SHARES.values())), t, ONES, 0.3)),
    ("binary-cross-entropy", {}, {}, lambda s, t: binary(s, t, ONES, 0.0, 0.0)),
    ("binary-cross-entropy", {"label_smoothing": 0.2, "positive_weights": WEIGHTS}, {"positive_weights": WEIGHTS},
     lambda s, t: binary(s, t, VECTOR, 0.0, 0.2)),
    ("binary-focal", {}, {}, lambda s, t: binary(s, t, ONES, 2.0, 0.0)),
    ("binary-focal", {"gamma": 1.5, "positive_weights": "balanced"}, {"positive_weights": WEIGHTS},
     lambda s, t: binary(s, t, VECTOR, 1.5, 0.0)),
    ("mse", {}, {}, lambda s, t: ((s - t) ** 2, np.ones_like(s))),
    ("mae", {}, {}, lambda s, t: (np.abs(s - t), np.ones_like(s))),
    ("huber", {"delta": 0.7}, {}, lambda s, t: huber(s, t, 0.7)),
]  # fmt: skip


def world(of: str) -> tuple[Array, Array]:
    """Return scores and targets of the form that a loss for these targets is given."""
    generator = np.random.default_rng(5)
    scores = 2 * generator.standard_normal((8, len(LABELS)))
    if of == "classes":
        return scores, np.array([0, 1, 2, 1, 0, 0, 2, 1])
    if of == "label sets":
        return scores, generator.integers(0, 2, scores.shape).astype(np.float64)
    return scores, scores + generator.standard_normal(scores.shape)


def test_every_loss_has_its_reference() -> None:
    assert {name for name, *_ in CASES} == set(registry.losses.names())


@pytest.mark.parametrize(("name", "options", "fitted", "reference"), CASES)
def test_a_loss_and_its_gradient_are_those_of_the_formula(
    name: str, options: dict[str, Any], fitted: dict[str, Any], reference: Reference
) -> None:
    entry = registry.losses.get(name)
    scores, targets = world(entry.attributes["of"][0])
    tensor = torch.tensor(scores, requires_grad=True)
    losses, counts = entry.build(options)(tensor, torch.tensor(targets), fitted)
    expected, expected_counts = reference(scores, targets)
    assert losses.shape == counts.shape == targets.shape
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(counts.numpy(), expected_counts, rtol=1e-12)
    losses.sum().backward()
    assert tensor.grad is not None
    step = 1e-6
    for place in np.ndindex(scores.shape):
        shift = np.zeros_like(scores)
        shift[place] = step
        rise = (reference(scores + shift, targets)[0].sum() - reference(scores - shift, targets)[0].sum()) / (2 * step)
        assert float(tensor.grad[place]) == pytest.approx(rise, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", ["cross-entropy", "binary-cross-entropy"])
def test_weighted_means_are_those_of_torch(name: str) -> None:
    entry = registry.losses.get(name)
    scores, targets = (torch.tensor(values) for values in world(entry.attributes["of"][0]))
    setting, module = {
        "cross-entropy": ("class_weights", torch.nn.CrossEntropyLoss(weight=torch.tensor(VECTOR))),
        "binary-cross-entropy": ("positive_weights", torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(VECTOR))),
    }[name]
    losses, counts = entry.build({setting: WEIGHTS})(scores, targets, {setting: WEIGHTS})
    assert float(losses.sum() / counts.sum()) == pytest.approx(float(module(scores, targets)), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("name", ["focal", "binary-focal"])
def test_focal_losses_have_gradients_where_the_truth_is_certain(name: str, gamma: float) -> None:
    scores = torch.tensor([[300.0, -300.0]], requires_grad=True)
    targets = torch.tensor([0]) if name == "focal" else torch.tensor([[1.0, 0.0]])
    losses, _ = registry.losses.get(name).build({"gamma": gamma})(scores, targets, {})
    losses.sum().backward()
    assert scores.grad is not None
    assert bool(torch.isfinite(scores.grad).all())


def fit(name: str, counts: dict[str, int], decisions: int, **options: Any) -> dict[str, dict[str, float]]:
    entry = registry.losses.get(name)
    settings = entry.options.model_validate(options).model_dump()
    return dict(entry.attributes["fit"](Frequencies(counts, decisions), settings))


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    rows = ["cat"] * 50 + ["dog"] * 3 + ["owl"] * 7
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=np.array(rows))
    found = fit("cross-entropy", {label: rows.count(label) for label in LABELS}, 60, class_weights="balanced")
    assert found == {"class_weights": pytest.approx(dict(zip(LABELS, expected, strict=True)))}


def test_a_class_without_training_rows_leaves_the_weights_of_the_others_as_they_are() -> None:
    found = fit("focal", {"cat": 50, "dog": 0, "owl": 10}, 60, class_weights="balanced")
    assert found == {"class_weights": pytest.approx({"cat": 60 / (2 * 50), "dog": 1.0, "owl": 60 / (2 * 10)})}


def test_balanced_positives_count_as_much_as_all_negatives() -> None:
    found = fit("binary-cross-entropy", {"cat": 5, "dog": 0, "owl": 20}, 20, positive_weights="balanced")
    assert found == {"positive_weights": {"cat": 3.0, "dog": 1.0, "owl": 1.0}}


def test_given_weights_leave_the_others_at_one() -> None:
    counts = dict.fromkeys(LABELS, 4)
    assert fit("cross-entropy", counts, 12, class_weights={"dog": 9.0}) == {
        "class_weights": {"cat": 1.0, "dog": 9.0, "owl": 1.0}
    }


def test_weights_of_labels_that_are_not_there_are_refused_with_the_nearest() -> None:
    with pytest.raises(FinetuneError, match=r"class_weights: expected labels of the data, found 'dgo'.*dog"):
        fit("cross-entropy", dict.fromkeys(LABELS, 4), 12, class_weights={"dgo": 2.0})


def test_priors_are_shares_to_which_each_class_has_added_a_row() -> None:
    found = fit("logit-adjustment", {"cat": 7, "dog": 0}, 7)["log_priors"]
    assert {label: math.exp(value) for label, value in found.items()} == pytest.approx({"cat": 8 / 9, "dog": 1 / 9})


@pytest.mark.parametrize(
    ("task", "loss", "message"),
    [
        ("regression", "focal", r"expected a loss for what regression predicts \(huber, mae, mse\), found focal"),
        ("text-classification", "mse", r"cross-entropy, focal, logit-adjustment\), found mse, for numbers"),
        ("multi-label", "cross-entropy", r"\(binary-cross-entropy, binary-focal\), found cross-entropy"),
        ("question-answering", "focal", "question-answering has a loss of its own"),
        ("text-classification", "focl", "did you mean focal"),
    ],
)
def test_a_loss_that_is_not_for_the_task_is_refused_with_those_that_are(task: str, loss: str, message: str) -> None:
    values = {"name": "x", "task": task, "data": {"source": "x"}, "model": {"id": "x"}, "train": {"loss": loss}}
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(values)
