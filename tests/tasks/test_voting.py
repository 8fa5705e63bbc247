"""Several models as one: the average of what they say, task by task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from finetune import registry
from finetune.tasks import open_task
from finetune.tasks.regression import mean_of_numbers
from finetune.tasks.voting import (
    mean_of_fitted,
    mean_of_label_probabilities,
    mean_of_probabilities,
    mean_of_scores,
)

# What a model writes, and the vectors of models that do not share a space, have no average
WITHOUT = {"embedding", "seq2seq", "causal-lm", "masked-lm"}


def outputs(*shape: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [5 * torch.randn(*shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", registry.tasks.names())
def test_a_task_says_how_its_models_vote_or_has_no_average(name: str) -> None:
    _, spec = open_task(name, {})
    assert (spec.voting is None) == (name in WITHOUT)
    assert spec.voting is None or spec.voting.averages


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3)])
def test_the_probabilities_of_labels_are_averaged(shape: tuple[int, ...]) -> None:
    given = outputs(*shape)
    expected = np.mean([softmax(part.double().numpy(), axis=-1) for part in given], axis=0)
    found = mean_of_probabilities(given, [{}] * 3)
    np.testing.assert_allclose(softmax(found.double().numpy(), axis=-1), expected, rtol=1e-5)
    np.testing.assert_allclose(found.exp().numpy(), expected, rtol=1e-5)  # log-probabilities


def test_the_probabilities_of_label_sets_are_averaged() -> None:
    given = outputs(4, 3)
    expected = np.mean([expit(part.double().numpy()) for part in given], axis=0)
    found = mean_of_label_probabilities(given, [{}] * 3)
    np.testing.assert_allclose(expit(found.double().numpy()), expected, rtol=1e-5)


def test_extreme_outputs_stay_finite() -> None:
    given = [torch.tensor([[200.0, -200.0]]), torch.tensor([[150.0, -150.0]])]
    for average in (mean_of_probabilities, mean_of_label_probabilities, mean_of_scores):
        assert torch.isfinite(average(given, [{}, {}])).all()


def test_numbers_are_averaged_in_the_units_of_the_targets() -> None:
    given = outputs(4, 2)
    fitted = [{"mean": {"a": float(place), "b": 10.0}, "deviation": {"a": 1.0 + place, "b": 2.0}} for place in range(3)]
    found = mean_of_numbers(("a", "b"), given, fitted).numpy()
    numbers = np.mean(
        [part.numpy() * [1.0 + place, 2.0] + [float(place), 10.0] for place, part in enumerate(given)], axis=0
    )
    together = mean_of_fitted(fitted)
    deviations, means = list(together["deviation"].values()), list(together["mean"].values())
    np.testing.assert_allclose(found * deviations + means, numbers, rtol=1e-5)


def test_what_was_fitted_is_averaged_over_the_models_that_have_it() -> None:
    fitted = [{"thresholds": {"x": 0.2}, "unanswerable": False}, {"thresholds": {"x": 0.6}, "unanswerable": True}]
    assert mean_of_fitted([*fitted, {"null_threshold": 3.0}]) == {
        "thresholds": {"x": pytest.approx(0.4)},
        "unanswerable": True,
        "null_threshold": 3.0,
    }
