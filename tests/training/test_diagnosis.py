"""Synthetic learning curves of each kind, noisy and with several seeds, and those that only look like one."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from finetune.recipe import Part, Recipe
from finetune.tasks import Frequencies
from finetune.training.curves import Curve
from finetune.training.diagnosis import Finding, chance_loss, diagnose

SEEDS = range(5)
CHANCE = math.log(3)
SELDOM = 0.1  # noise can look like anything: so often it may, as docs/training.md says
Shape = Callable[[float], float]


def recipe_with(**sections: Any) -> Recipe:
    base = {"name": "x", "task": "text-classification", "data": {"source": "x.jsonl"}, "model": {"id": "some/model"}}
    return Recipe.model_validate({**base, **sections})


def fall(first: float, last: float, speed: float) -> Shape:
    """A loss that falls exponentially; the argument of a shape is how much of the training is done, 0 to 1."""
    return lambda done: last + (first - last) * math.exp(-speed * done)


def bend(low: float, turn: float, rise: float, first: float = 1.1) -> Shape:
    """A loss that falls to `low` at `turn` and then rises in a straight line to `rise` more."""

    def shape(done: float) -> float:
        if done <= turn:
            return low + (first - low) * (1 - done / turn) ** 2
        return low + rise * (done - turn) / (1 - turn)

    return shape


FITTED, LEVELLED_OFF = fall(1.1, 0.05, 5), fall(1.1, 0.4, 12)


@dataclass(frozen=True)
class Training:
    """What is drawn: the noise of the training loss is a share of it, that of validation the same everywhere."""

    train: Shape = FITTED
    validation: Shape = LEVELLED_OFF
    metric: Shape | None = None
    steps: int = 400
    evaluations: int = 10
    train_noise: float = 0.3
    noise: float = 0.01
    decisive: str = "loss"
    because: str = "all epochs done"
    rate: Shape = lambda done: 1e-4 * (1 - done)

    def curve(self, seed: int = 0) -> Curve:
        generator = random.Random(seed)
        every = self.steps // self.evaluations
        lines: list[dict[str, Any]] = []
        for step in range(1, self.steps + 1):
            done = step / self.steps
            loss = self.train(done) * max(0.01, 1 + generator.gauss(0, self.train_noise))
            lines.append({"step": step, "loss": loss, "gradient_norm": 1.0, "learning_rate": self.rate(done)})
            if step % every == 0:
                found = {"loss": max(1e-6, self.validation(done) + generator.gauss(0, self.noise))}
                if self.metric is not None:
                    found["accuracy"] = self.metric(done) + generator.gauss(0, self.noise)
                lines.append({"step": step, "validation": found})
        evaluated = [line for line in lines if "validation" in line]
        sign = -1 if self.decisive == "loss" else 1
        best = max(evaluated, key=lambda line: sign * line["validation"][self.decisive], default={"step": 0})
        lines.append({"step": self.steps, "restored_step": best["step"], "because": self.because})
        return Curve.of(lines, self.decisive)

    def findings(self, seed: int = 0, **sections: Any) -> list[Finding]:
        return diagnose(self.curve(seed), recipe_with(**sections), CHANCE)

    def names(self, seed: int = 0) -> list[str]:
        return [finding.name for finding in self.findings(seed)]


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, [finding.name for finding in findings]
    return findings[0]


# Overfitting


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("evaluations", [8, 20, 100])
@pytest.mark.parametrize("turn", [0.25, 0.5])
def test_overfitting_is_found_from_about_where_validation_turns(turn: float, evaluations: int, seed: int) -> None:
    training = Training(validation=bend(0.4, turn, 0.3), evaluations=evaluations)
    found = only(training.findings(seed))
    assert found.name == "overfitting"
    assert found.step is not None
    assert abs(found.step / training.steps - turn) <= 0.15
    assert "validation loss was lowest at step" in found.evidence


@pytest.mark.parametrize("seed", SEEDS)
def test_a_large_rise_is_seen_in_three_evaluations(seed: int) -> None:
    found = only(Training(validation=bend(0.4, 1 / 3, 0.6), evaluations=3, steps=120).findings(seed))
    assert (found.name, found.step) == ("overfitting", 40)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_training_loss_of_batches_of_unlike_length_is_seen_to_fall_through_its_noise(seed: int) -> None:
    training = Training(train=fall(1.1, 0.5, 3), train_noise=0.4, validation=bend(0.7, 0.5, 0.15), steps=800)
    assert training.names(seed) == ["overfitting"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_metric_that_improves_while_the_loss_rises_is_told_apart(seed: int) -> None:
    rising = Training(validation=bend(0.4, 0.3, 0.4), metric=lambda done: 0.6 + 0.3 * done)
    found = only(rising.findings(seed))
    assert found.name == "overfitting"
    assert "accuracy improved all the same" in found.evidence
    assert any("train.early_stopping.metric: accuracy" in sentence for sentence in found.change)
    by_metric = only(replace(rising, decisive="accuracy").findings(seed))
    assert any("train.early_stopping.metric: loss" in sentence for sentence in by_metric.change)

    falling = replace(rising, metric=lambda done: 0.8 - 0.2 * max(0.0, done - 0.3))
    found = only(falling.findings(seed))
    assert "accuracy got worse too" in found.evidence
    assert any("data.augment" in sentence for sentence in found.change)


def test_a_metric_that_stays_while_the_loss_rises_is_said_to_stay() -> None:
    staying = Training(validation=bend(0.4, 0.3, 0.4), metric=lambda _: 0.8)
    held = ["accuracy did not clearly change" in only(staying.findings(seed)).evidence for seed in range(60)]
    assert sum(held) >= (1 - SELDOM) * 60


def test_a_metric_that_was_at_its_peak_there_is_not_said_to_have_improved() -> None:
    curve = Training(validation=bend(0.4, 0.3, 0.4), metric=lambda _: 0.0, noise=0).curve()
    peak = replace(curve.scores["accuracy"], values=(0.4, 0.6, 0.8, 0.71, 0.7, 0.72, 0.74, 0.76, 0.77, 0.78))
    found = only(diagnose(replace(curve, scores={**curve.scores, "accuracy": peak}), recipe_with()))
    assert found.step == 120
    assert "accuracy did not clearly change (0.8 at step 120, 0.74 at the median since)" in found.evidence


def test_the_advice_names_the_step_that_was_kept_and_leaves_out_what_is_done_already() -> None:
    training = Training(validation=bend(0.4, 0.5, 0.3))
    plain = " ".join(only(training.findings()).change)
    assert "the model of step 200 was kept" in plain
    assert "patience" in plain
    assert "freeze" in plain
    done = {"train": {"early_stopping": {"patience": 9}, "learning_rate": 3e-4, "max_steps": 400}, "freeze": "encoder"}
    fitted = " ".join(only(training.findings(**done)).change)
    assert "patience" not in fitted
    assert "freeze" not in fitted
    assert "lower train.learning_rate (now 0.0003) or train.max_steps (now 400)" in fitted


NO_OVERFITTING = {
    "levelled-off": Training(),
    "last-evaluation-worse": Training(validation=lambda done: 0.4 + 0.7 * math.exp(-8 * done) + 0.1 * (done > 0.95)),
    "one-outlier": Training(validation=lambda done: 0.4 + 0.7 * math.exp(-12 * done) + 0.5 * (0.55 < done < 0.65)),
    "one-lucky-evaluation": Training(
        validation=lambda done: 0.5 + 0.6 * math.exp(-12 * done) - 0.2 * (0.45 < done < 0.55), noise=0.02
    ),
    "both-losses-rise": Training(train=bend(0.6, 0.5, 0.08), validation=bend(0.6, 0.5, 0.08), train_noise=0.05),
    "a-gap-alone": Training(train=fall(1.1, 0.001, 9)),
    "rise-that-nobody-sees": Training(validation=bend(0.4, 0.4, 0.003), noise=0.0005),
}


@pytest.mark.parametrize("name", NO_OVERFITTING)
def test_what_only_looks_like_overfitting_is_hardly_ever_called_so(name: str) -> None:
    called = sum("overfitting" in NO_OVERFITTING[name].names(seed) for seed in range(60))
    assert called <= SELDOM * 60


@pytest.mark.parametrize("noise", [0.025, 0.05])
@pytest.mark.parametrize("evaluations", [3, 4, 6, 10, 25, 100])
def test_a_validation_loss_that_is_nothing_but_noise_seldom_gets_a_finding(evaluations: int, noise: float) -> None:
    training = Training(validation=lambda _: 0.5, evaluations=evaluations, noise=noise, steps=200)
    counts = Counter(name for seed in range(150) for name in training.names(seed))
    assert counts["overfitting"] + counts["still-improving"] <= SELDOM * 150
    assert counts["unstable"] + counts["underfitting"] == 0


# Still improving


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("evaluations", [4, 8, 20])
def test_a_loss_that_falls_to_the_end_still_improves(evaluations: int, seed: int) -> None:
    training = Training(train=fall(1.1, 0.2, 1.5), validation=fall(1.1, 0.2, 1.5), evaluations=evaluations)
    found = only(training.findings(seed))
    assert found.name == "still-improving"
    assert any("train.epochs (now 3)" in sentence for sentence in found.change)


def test_a_metric_that_chooses_the_model_is_the_one_that_has_to_improve() -> None:
    rising = Training(metric=lambda done: 0.3 + 0.5 * done, decisive="accuracy")
    by_metric, by_loss = (
        Counter(only(training.findings(seed)).name for seed in range(40))
        for training in (rising, replace(rising, decisive="loss"))
    )
    assert by_metric["still-improving"] >= 0.75 * 40
    assert by_loss["fine"] >= (1 - SELDOM) * 40


def test_impatience_is_answered_with_patience() -> None:
    training = Training(
        train=fall(1.1, 0.2, 1.5), validation=fall(1.1, 0.2, 1.5), because="loss did not improve in 1 evaluations"
    )
    found = only(training.findings(train={"early_stopping": {"patience": 1}}))
    assert found.change == ("raise train.early_stopping.patience (now 1)",)


@pytest.mark.parametrize("training", [Training(), Training(noise=0.03), Training(evaluations=25)])
def test_a_loss_that_has_levelled_off_is_fine(training: Training) -> None:
    found = [only(training.findings(seed)) for seed in range(40)]
    assert sum((one.name, one.change, one.step) == ("fine", (), None) for one in found) >= (1 - SELDOM) * 40


# Unstable


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("steps", [200, 5000])
def test_a_training_loss_that_jumps_up_is_unstable_from_where_it_does(steps: int, seed: int) -> None:
    training = Training(train=lambda done: fall(1.1, 0.3, 6)(done) + 0.8 * (0.5 < done < 0.7), steps=steps)
    found = next(finding for finding in training.findings(seed) if finding.name == "unstable")
    assert found.step is not None
    assert 0.35 <= found.step / steps <= 0.55
    assert any("lower train.learning_rate (now 5e-05)" in sentence for sentence in found.change)
    assert any("warmup_ratio: 0.1" in sentence for sentence in found.change)


def test_a_training_that_never_comes_back_is_unstable_and_underfits() -> None:
    gone = Training(train=lambda done: 1.1 if done < 0.2 else 2.5, validation=lambda done: 1.1 + done, train_noise=0.1)
    assert gone.names()[:2] == ["unstable", "underfitting"]


def test_a_rise_where_the_rate_rose_is_said_to_be_there() -> None:
    restart = Training(
        train=lambda done: fall(1.1, 0.3, 6)(done) + 0.8 * (0.5 < done < 0.7), rate=lambda done: 1e-4 * done
    )
    warmed = {"schedule": {"name": "cosine-restarts", "warmup_ratio": 0.1}, "max_gradient_norm": None}
    change = " ".join(restart.findings(train=warmed)[0].change)
    assert "let train.schedule rise more slowly" in change
    assert "warmup_ratio" not in change
    assert "train.max_gradient_norm: 1.0" in change


CALM = {
    "noisy": Training(train_noise=0.6, steps=1000),
    "flat": Training(train=lambda _: 1.0, train_noise=0.3),
    "single-spikes": Training(train=lambda done: fall(1.1, 0.05, 5)(done) * (4 if round(done * 400) % 97 == 0 else 1)),
    "ripples-near-zero": Training(train=lambda done: fall(1.1, 0.03, 12)(done) + 0.01 * math.sin(40 * done)),
    "too-short": Training(train=lambda done: 1 + done, steps=18, evaluations=2),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CALM)
def test_noise_is_not_called_unstable(name: str, seed: int) -> None:
    assert "unstable" not in CALM[name].names(seed)


# Underfitting


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_that_stay_at_chance_are_underfitting(seed: int) -> None:
    training = Training(train=fall(1.12, 1.08, 5), validation=fall(1.11, 1.07, 5), train_noise=0.05)
    found = next(finding for finding in training.findings(seed, freeze="encoder") if finding.name == "underfitting")
    assert found.step is None
    assert "1.099" in found.evidence
    assert any("freeze: encoder" in sentence for sentence in found.change)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (fall(1.1, 0.1, 5), fall(1.1, 1.08, 5)),  # learned by heart
        (fall(1.1, 1.05, 5), fall(1.1, 0.8, 5)),  # strong dropout
        (fall(1.1, 0.9, 5), fall(1.1, 0.9, 5)),  # hard, and some of it learned
    ],
    ids=["by-heart", "dropout", "hard"],
)
def test_who_learned_something_does_not_underfit(train: Shape, validation: Shape, seed: int) -> None:
    training = Training(train=train, validation=validation, train_noise=0.05)
    assert "underfitting" not in training.names(seed)


def test_without_a_yardstick_nothing_is_said_of_underfitting() -> None:
    curve = Training(train=lambda _: 1.1, validation=lambda _: 1.1, train_noise=0.05).curve()
    assert "underfitting" in [finding.name for finding in diagnose(curve, recipe_with(), CHANCE)]
    assert "underfitting" not in [finding.name for finding in diagnose(curve, recipe_with())]


def test_the_loss_of_guessing_is_the_entropy_of_the_targets() -> None:
    classes = Frequencies({"a": 50, "b": 25, "c": 25, "d": 0}, 100)
    assert chance_loss("cross-entropy", None, classes) == pytest.approx(1.5 * math.log(2))
    default = Part(name="cross-entropy", options={"label_smoothing": 0.0, "class_weights": None})
    assert chance_loss("cross-entropy", default, classes) == pytest.approx(1.5 * math.log(2))
    sets = Frequencies({"a": 50, "b": 0}, 100)
    assert chance_loss("binary-cross-entropy", None, sets) == pytest.approx(math.log(2) / 2)
    assert chance_loss("mse", None, None) == 1.0


@pytest.mark.parametrize(
    ("default", "chosen"),
    [
        ("cross-entropy", Part(name="focal", options={"gamma": 2.0})),
        ("cross-entropy", Part(name="cross-entropy", options={"label_smoothing": 0.1, "class_weights": None})),
        ("cross-entropy", Part(name="cross-entropy", options={"label_smoothing": 0.0, "class_weights": "balanced"})),
        ("mse", Part(name="mae", options={})),
        (None, None),
    ],
)
def test_the_loss_of_guessing_is_not_known_for_other_losses(default: str | None, chosen: Part | None) -> None:
    assert chance_loss(default, chosen, Frequencies({"a": 1, "b": 1}, 2) if default != "mse" else None) is None


# Few numbers


@pytest.mark.parametrize("evaluations", [1, 2, 3])
def test_few_evaluations_cannot_tell(evaluations: int) -> None:
    found = only(Training(evaluations=evaluations, steps=120).findings())
    assert found.name == "cannot-tell"
    assert found.evidence.startswith(f"{evaluations} evaluation")
    assert found.change == ("set train.eval_every: 15, for 8 evaluations",)


def test_steps_too_few_to_be_smoothed_can_only_show_that_nothing_was_learned() -> None:
    few = Training(train=fall(1.1, 0.2, 1.5), validation=fall(1.1, 0.2, 1.5), steps=18, evaluations=6)
    found = only(replace(few, validation=lambda _: 0.4, noise=0).findings())
    assert (found.name, found.change) == ("cannot-tell", ("raise train.epochs (now 3)",))
    at_chance = replace(few, train=lambda _: 1.1, validation=lambda _: 1.1, train_noise=0.05)
    assert at_chance.names() == ["underfitting", "cannot-tell"]


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_training_of_hardly_any_steps_is_survived(steps: int) -> None:
    lines = [{"step": n, "loss": 1.0, "gradient_norm": 1.0, "learning_rate": 1.0} for n in range(1, steps + 1)]
    found = only(diagnose(Curve.of(lines), recipe_with(), CHANCE))
    assert found.name == "cannot-tell"
    assert found.change[-1] == "raise train.epochs (now 3)"


def test_scores_that_are_not_defined_are_left_out() -> None:
    steps = [{"step": n, "loss": 1.0, "gradient_norm": 1.0, "learning_rate": 1.0} for n in range(1, 41)]
    scores = [{"loss": 0.1, "accuracy": None if n % 2 else 0.5, "f1-macro": None} for n in range(8)]
    for undefined, expected in (({}, "fine"), ({"loss": None}, "cannot-tell")):
        found = [{"step": 5 * n, "validation": {**one, **undefined}} for n, one in enumerate(scores, start=1)]
        assert only(diagnose(Curve.of([*steps, *found]), recipe_with())).name == expected


def test_a_finding_is_kept_as_json() -> None:
    found = Finding("overfitting", "numbers", ("more rows",), 7)
    assert found.as_json() == {"name": "overfitting", "evidence": "numbers", "change": ["more rows"], "step": 7}
