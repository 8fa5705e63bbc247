"""Measured time: three steps of usual size speak for all, and nothing of them is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.pipeline import Job
from finetune.planning import timing
from finetune.planning.memory import estimate_memory, largest_step
from finetune.planning.timing import Timing, measure
from finetune.planning.work import Work, count_work
from finetune.training.batching import StepGroup
from finetune.training.loop import Step
from tests.planning.world import CPU, Plans

CLASSIFYING = "text-classification"


def measured(plans: Plans, kind: str = CLASSIFYING, **sections: Any) -> tuple[Timing, Work, Any]:
    recipe = plans.recipe(kind, **sections)
    data = plans.data(recipe)
    estimate = estimate_memory(recipe, data, CPU)
    work = count_work(recipe, data, estimate)
    return measure(recipe, data, estimate, work, CPU), work, (recipe, data, estimate)


@pytest.mark.parametrize("kind", [CLASSIFYING, "embedding", "causal-lm packed", "seq2seq"])
def test_three_steps_are_timed_and_every_part_takes_time(plans: Plans, kind: str) -> None:
    # so many steps and evaluations that nothing of them is rounded to zero
    found, work, _ = measured(plans, kind, train={"max_steps": 5000, "eval_every": 1})
    assert (work.steps, work.evaluations) == (5000, 5000)
    assert len(found.steps) == 3
    assert min(*found.steps, found.training, found.scoring) > 0
    assert (found.writing > 0) == (kind == "seq2seq")
    assert found.total == pytest.approx(found.training + found.scoring + found.writing, abs=0.2)
    assert found.peak > 1e6
    assert found.as_json()["steps"] == found.steps


Fake = Callable[[float], list[StepGroup]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return a function that lets steps take a second for every id; it returns where the steps will be noted."""

    def fake(per_id: float) -> list[StepGroup]:
        seen: list[StepGroup] = []

        def step_of(learner: Any, features: Any, epoch_groups: Any, **settings: Any) -> Iterator[Step]:
            lengths = features.lengths
            assert settings["schedule"](0, 1) == 0.0, "nothing may be learned"
            for number, group in enumerate(epoch_groups(0)):
                seen.append(group)
                ids = sum(len(windows) * max(lengths[window] for window in windows) for windows in group)
                # the first one warms up: what it takes says nothing
                yield Step(number, 0, 1.0, 0.0, 1.0, 1, 1, seconds=1e6 if number == 0 else ids * per_id)

        monkeypatch.setattr(timing, "optimizer_steps", step_of)
        return seen

    return fake


@pytest.mark.parametrize("settings", [{}, {"batch_size": 5, "gradient_accumulation": 2}, {"batch_size": 54}])
def test_the_whole_training_takes_as_long_as_its_ids(plans: Plans, steps: Fake, settings: dict[str, Any]) -> None:
    seen = steps(0.25)
    found, work, (_, data, estimate) = measured(plans, train=settings)
    lengths = data.split("train").features.lengths

    def ids(step: StepGroup) -> int:
        return sum(len(windows) * max(lengths[window] for window in windows) for windows in step)

    epoch = estimate.batches.epoch(0)
    expected = 0.25 * sum(map(ids, epoch)) * work.steps / work.steps_per_epoch
    assert found.training == pytest.approx(expected, abs=0.06)
    assert seen[0] == largest_step(estimate.batches, lengths)
    assert len(seen) == 4
    assert [ids(step) for step in seen[1:]] == sorted(ids(step) for step in seen[1:])
    assert found.steps == [round(0.25 * ids(step), 4) for step in seen[1:]]
    assert all(step in epoch for step in seen[1:])


@pytest.mark.parametrize("wanted", [0, 3, 100])
def test_few_rows_are_written_for_all_that_an_evaluation_writes(
    plans: Plans, monkeypatch: pytest.MonkeyPatch, wanted: int
) -> None:
    asked: list[list[int]] = []
    real = timing.predictor_of

    def watched(*arguments: Any) -> Any:
        predictor = real(*arguments)

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(predictor, name)

            def write_rows(self, features: Any, rows: Any) -> Any:
                asked.append(list(rows))
                return predictor.write_rows(features, rows)

        return Watched()

    monkeypatch.setattr(timing, "predictor_of", watched)
    measured(plans, "seq2seq", generation={"validation_rows": wanted})
    assert [len(rows) for rows in asked] == ([min(8, wanted)] if wanted else [])


def test_weights_and_generators_stay_as_they_were(plans: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    learners: list[Any] = []
    real = timing.open_learner

    def opened(*arguments: Any) -> Any:
        learner, spec = real(*arguments)
        learners.append((learner.model, {name: p.detach().clone() for name, p in learner.model.named_parameters()}))
        return learner, spec

    monkeypatch.setattr(timing, "open_learner", opened)
    measured(plans)
    [(model, before)] = learners
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_measuring_leaves_no_file_but_the_plan(plans: Plans, tmp_path: Path) -> None:
    job = Job(plans.recipe(CLASSIFYING), tmp_path / "out", CPU)
    job.data(asked=True)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    report = job.plan(measure=True)
    after = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} - before
    assert {str(path) for path in after} == {
        *("out/plan", "out/plan/plan.json", "out/plan/plan.md", "out/plan/schedule.png")
    }
    assert len(report["time"]["steps"]) == 3
    assert "| time | about " in (job.plan_folder / "plan.md").read_text(encoding="utf-8")
