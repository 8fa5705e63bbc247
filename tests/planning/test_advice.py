"""Warnings come when they should, and what they advise is what another plan would say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from finetune.planning import memory
from finetune.planning.advice import FEW_STEPS, MUCH_PADDING, NEARLY_ALL, Planned, Warned, find_warnings
from finetune.planning.memory import estimate_memory
from finetune.planning.timing import Timing
from finetune.planning.work import count_disk, count_work
from finetune.recipe import load_recipe
from finetune.reports.plan import advised
from tests.conftest import FILLER, make_rows, write_jsonl
from tests.planning.world import CPU, Plans, old_model

CLASSIFYING = "text-classification"
ENOUGH = 10**15
PROCESS = 10**6


@pytest.fixture(autouse=True)
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program itself be always as large, as on a GPU, where it takes nothing."""
    monkeypatch.setattr(memory, "process_bytes", lambda: PROCESS)


def planned(plans: Plans, kind: str = CLASSIFYING, *, available: int = ENOUGH, **sections: Any) -> Planned:
    """Return what is known of a training that nothing speaks against, unless the sections do."""
    train = {"epochs": 20, **sections.pop("train", {})}
    recipe = plans.recipe(kind, train=train, **sections)
    data = plans.data(recipe)
    estimate = estimate_memory(recipe, data, CPU)
    disk = dataclasses.replace(count_disk(recipe, estimate, plans.folder), free=ENOUGH)
    return Planned(recipe, data, CPU, estimate, count_work(recipe, data, estimate), disk, available, None)


def checks(one: Planned) -> list[str]:
    return [warned.check for warned in find_warnings(one)]


def warning(one: Planned, check: str) -> Warned:
    return next(warned for warned in find_warnings(one) if warned.check == check)


@pytest.fixture(scope="module")
def calm(plans: Plans) -> Planned:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "process_bytes", lambda: PROCESS)
        return planned(plans)


def test_a_training_that_fits_has_no_warnings(calm: Planned) -> None:
    assert calm.work.steps == 140
    assert find_warnings(calm) == []


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def test_too_little_memory_begins_where_nearly_all_of_it_would_be_taken(calm: Planned) -> None:
    edge = int(calm.estimate.memory.peak / NEARLY_ALL)
    assert "memory" not in checks(dataclasses.replace(calm, available=edge + 2))
    assert checks(dataclasses.replace(calm, available=edge - 2)) == ["memory"]


def test_each_advice_has_the_peak_of_a_new_estimate_with_it(plans: Plans, calm: Planned) -> None:
    advice = warning(dataclasses.replace(calm, available=1), "memory").advice
    assert [setting for setting, _ in advice] == [
        "train.batch_size=4 train.gradient_accumulation=2",
        "train.gradient_checkpointing=true",
        "adapter=lora",
    ]
    file = plans.file(CLASSIFYING, train={"epochs": 20})
    for setting, peak in advice:
        recipe = load_recipe(file, setting.split())
        assert peak == estimate_memory(recipe, calm.data, CPU).memory.peak < calm.estimate.memory.peak


def test_a_smaller_evaluation_is_advised_where_evaluation_takes_most(plans: Plans) -> None:
    one = planned(plans, train={"batch_size": 1, "gradient_accumulation": 8, "eval_batch_size": 64}, available=1)
    assert one.estimate.memory.scoring > one.estimate.memory.activations
    advice = dict(warning(one, "memory").advice)
    assert "train.batch_size=0 train.gradient_accumulation=16" not in advice, "half of one is none"
    smaller = load_recipe(
        plans.file(CLASSIFYING, train={"batch_size": 1, "gradient_accumulation": 8}), ["train.eval_batch_size=1"]
    )
    assert advice["train.eval_batch_size=1"] == estimate_memory(smaller, one.data, CPU).memory.peak


def test_half_a_batch_is_no_advice_for_a_loss_that_compares_the_rows_of_a_batch(plans: Plans) -> None:
    advice = warning(planned(plans, "embedding", available=1), "memory").advice
    assert "train.gradient_checkpointing=true" in dict(advice)
    assert not any("batch_size" in setting for setting, _ in advice)


def test_what_is_set_already_is_not_advised(plans: Plans) -> None:
    one = planned(plans, adapter="lora", train={"gradient_checkpointing": True}, available=1)
    settings = [setting for setting, _ in warning(one, "memory").advice]
    assert settings == ["train.batch_size=4 train.gradient_accumulation=2"]
    frozen = planned(plans, freeze="encoder", available=1)
    assert "adapter=lora" not in dict(warning(frozen, "memory").advice)


def test_what_a_family_cannot_do_is_not_advised(plans: Plans) -> None:
    one = planned(plans, model={"id": str(old_model(plans.folder / "old"))}, available=1)
    settings = dict(warning(one, "memory").advice)
    assert "train.gradient_checkpointing=true" not in settings
    assert "train.batch_size=4 train.gradient_accumulation=2" in settings


def test_what_is_advised_is_a_recipe(plans: Plans) -> None:
    one = planned(plans, quantize="onnx-int8", available=1)
    file = plans.file(CLASSIFYING, quantize="onnx-int8")
    settings = [setting for setting, _ in warning(one, "memory").advice]
    assert "adapter.name=lora adapter.merge=true" in settings
    for setting in settings:
        load_recipe(file, setting.split())


def test_a_program_that_grows_while_it_plans_loses_no_advice(plans: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter(range(PROCESS, 100 * PROCESS, PROCESS))
    monkeypatch.setattr(memory, "process_bytes", lambda: next(sizes))
    one = planned(plans, available=1)
    assert len(warning(one, "memory").advice) == 3


def test_a_shorter_length_is_advised_where_few_windows_are_long(plans: Plans) -> None:
    rows = [*make_rows(), *({"body": " ".join(FILLER * 2 + [f"plum{n}"]), "intent": "fruit"} for n in range(3))]
    source = write_jsonl(plans.folder / "long.jsonl", rows)
    one = planned(
        plans,
        data={"source": str(source), "columns": {"text": "body", "label": "intent"}, "near_duplicates": "off"},
        model={"max_length": 64},
        available=1,
    )
    lengths = sorted(one.data.split("train").features.lengths)
    setting, peak = next(item for item in warning(one, "memory").advice if "max_length" in item[0])
    shorter = lengths[int(0.95 * (len(lengths) - 1))]
    cut = sum(length > shorter for length in lengths)
    assert 0 < cut <= 3
    assert setting == f"model.max_length={shorter}, which cuts {cut} window{'s' * (cut > 1)}"
    assert peak is not None
    assert peak < one.estimate.memory.peak


# ---------------------------------------------------------------------------------------------------------------------
# Everything else
# ---------------------------------------------------------------------------------------------------------------------


def test_too_little_disk_begins_where_model_and_checkpoints_do_not_fit(calm: Planned) -> None:
    written = calm.disk.model + calm.disk.checkpoints
    full, fits = (dataclasses.replace(calm.disk, free=free) for free in (written - 1, written))
    assert checks(dataclasses.replace(calm, disk=full)) == ["disk"]
    assert checks(dataclasses.replace(calm, disk=fits)) == []


def test_rows_that_are_cut_are_told_with_windows_where_the_task_has_them(plans: Plans) -> None:
    found = warning(planned(plans, model={"max_length": 8}), "length")
    lengths = [len(row["body"].split()) + 2 for row in make_rows()]
    assert any(length > 8 for length in lengths)
    assert "of 54 training rows are cut at model.max_length (8 tokens)" in found.message
    assert [setting for setting, _ in found.advice] == ["a larger model.max_length", "model.overflow=window"]
    answers = warning(planned(plans, "causal-lm answers", model={"max_length": 12}), "length")
    assert [setting for setting, _ in answers.advice] == ["a larger model.max_length"]


def test_windows_cut_nothing(plans: Plans) -> None:
    assert "length" not in checks(planned(plans, model={"max_length": 8, "overflow": "window", "stride": 2}))


def test_much_padding_is_told_with_what_would_make_it_less(plans: Plans, calm: Planned) -> None:
    mixed = planned(plans, train={"bucket_by_length": False, "batch_size": 16})
    assert mixed.work.padding > MUCH_PADDING
    assert [setting for setting, _ in warning(mixed, "padding").advice] == ["train.bucket_by_length=true"]
    bucketed = dataclasses.replace(calm, work=dataclasses.replace(calm.work, padding=0.5))
    assert [setting for setting, _ in warning(bucketed, "padding").advice] == ["a smaller train.batch_size"]
    edge = dataclasses.replace(calm, work=dataclasses.replace(calm.work, padding=MUCH_PADDING))
    assert checks(edge) == []
    apart = planned(plans, "causal-lm", train={"bucket_by_length": False, "batch_size": 16})
    assert "task.pack=true" in dict(warning(apart, "padding").advice)


def test_few_steps_are_told(calm: Planned) -> None:
    few, enough = (dataclasses.replace(calm.work, steps=steps) for steps in (FEW_STEPS - 1, FEW_STEPS))
    assert "training takes 49 optimizer steps" in warning(dataclasses.replace(calm, work=few), "steps").message
    assert checks(dataclasses.replace(calm, work=enough)) == []


@pytest.mark.parametrize(
    ("training", "scoring", "writing", "told"),
    [(10, 5, 5, False), (10, 5, 6, True), (10, 11, 0, True), (10, 3, 0, False)],
)
def test_evaluations_that_take_longer_than_training_are_told(
    calm: Planned, training: float, scoring: float, writing: float, told: bool
) -> None:
    timing = Timing([0.1] * 3, training, scoring, writing, training + scoring + writing, 10)
    one = dataclasses.replace(calm, timing=timing)
    assert checks(one) == (["evaluations"] if told else [])
    if told:
        assert [setting for setting, _ in warning(one, "evaluations").advice] == ["a larger train.eval_every"]
        writes = dataclasses.replace(one, work=dataclasses.replace(calm.work, writes=4))
        assert "fewer generation.validation_rows" in dict(warning(writes, "evaluations").advice)


def test_the_most_serious_comes_first_and_reads_as_a_sentence(plans: Plans) -> None:
    one = planned(plans, model={"max_length": 8}, train={"epochs": 1, "bucket_by_length": False}, available=1)
    one = dataclasses.replace(one, disk=dataclasses.replace(one.disk, free=0))
    found = find_warnings(one)
    assert [warned.check for warned in found if warned.check != "padding"] == ["memory", "disk", "length", "steps"]
    lines = advised({"warnings": [warned.as_json() for warned in found]})
    assert lines[0].startswith("training needs ")
    assert ". Try train.batch_size=4 train.gradient_accumulation=2 (peak " in lines[0]
    assert lines[1].endswith("0 kB are free there. Try --output DIR on another disk.")
    plain = Warned("check", "something is wrong").as_json()
    assert (plain, advised({"warnings": [plain]})) == (
        {"check": "check", "message": "something is wrong", "advice": []},
        ["something is wrong."],
    )


def test_a_folder_that_is_not_there_yet_is_on_the_disk_of_its_parents(calm: Planned, tmp_path: Path) -> None:
    assert count_disk(calm.recipe, calm.estimate, tmp_path / "a" / "b").free > 0
