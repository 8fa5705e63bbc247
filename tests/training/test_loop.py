"""The traps that simple trainers fall into: each test fails for the usual way of doing it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import registry
from finetune.artifacts import FeatureTable, feature_table
from finetune.data.tokenization import Encoder, Limits
from finetune.inference import Predictor, run_model
from finetune.models.freezing import apply_freezing, set_training_mode
from finetune.models.loading import ModelSettings, load_model, load_tokenizer
from finetune.runtime import Runtime
from finetune.tasks import open_task
from finetune.training.batching import step_groups
from finetune.training.loop import Learner, Step, optimizer_steps, planned_groups
from finetune.training.optimizers import adamw, give_rates
from tests.conftest import LABEL_WORDS, make_rows

LABELS = list(LABEL_WORDS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_learner(
    folder: Path, *, freeze: str = "none", options: dict[str, Any] | None = None, learning_rate: float = 1e-3
) -> Learner:
    torch.manual_seed(3)
    task, _ = open_task("text-classification", {})
    loaded = load_model(folder, task.head(LABELS), ModelSettings())
    freezing = apply_freezing(loaded.model, freeze, options or {}, loaded.new_parameters)
    accelerator = Runtime(device="cpu").accelerator()
    optimizer = adamw(loaded.model.named_parameters(), learning_rate)
    model, optimizer = accelerator.prepare(loaded.model, optimizer)
    return Learner(accelerator, model, optimizer, freezing, task, load_tokenizer(folder))


def ask(learner: Learner, features: FeatureTable, batch_size: int) -> None:
    """Run the learner's model over rows, as an evaluation in the middle of training does."""
    task, spec = open_task("text-classification", {})
    encoder = Encoder.of(learner.tokenizer, Limits(32))
    model = learner.model.eval()
    device = torch.device("cpu")
    predictor = Predictor(model, partial(task.forward, model), learner.tokenizer, task, spec, LABELS, device, encoder)
    assert run_model(predictor, features, batch_size).loss is not None


def make_features(folder: Path, count: int) -> FeatureTable:
    rows = make_rows(per_label=count)[:count]
    task, _ = open_task("text-classification", {})
    columns = {"text": [row["body"] for row in rows], "label": [row["intent"] for row in rows]}
    return feature_table(task.encode(columns, Encoder.of(load_tokenizer(folder), Limits(32)), LABELS).features)


def take_steps(
    learner: Learner,
    features: FeatureTable,
    *,
    steps: int,
    batch_size: int = 8,
    accumulation: int = 1,
    done: int = 0,
    max_norm: float | None = None,
    learning_rate: float = 1e-3,
) -> list[Step]:
    lengths = features.lengths
    return list(
        optimizer_steps(
            learner,
            features,
            lambda epoch: step_groups(lengths, batch_size=batch_size, accumulation=accumulation, seed=5, epoch=epoch),
            learning_rate=learning_rate,
            schedule=lambda step, total: 1 - step / total,
            total_steps=steps,
            max_gradient_norm=max_norm,
            seed=5,
            done_steps=done,
        )
    )


def parameters_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


@pytest.mark.parametrize("rows", [16, 13], ids=["full groups", "a short last group"])
def test_micro_batches_of_any_size_give_the_same_gradients(still_model: Path, rows: int) -> None:
    """13 rows leave a group of 5: in micro-batches of 8, of 2 (2, 2, 1) and of 1 it has to be the same step."""
    features = make_features(still_model, rows)
    runs = {
        (size, accumulation): take_steps(
            make_learner(still_model), features, steps=4, batch_size=size, accumulation=accumulation
        )
        for size, accumulation in ((8, 1), (2, 4), (1, 8))
    }
    reference = runs[8, 1]
    assert {step.rows for step in reference} == ({8} if rows == 16 else {8, 5})
    for steps in runs.values():
        assert [step.gradient_norm for step in steps] == pytest.approx([s.gradient_norm for s in reference], rel=1e-4)
        assert [step.loss for step in steps] == pytest.approx([s.loss for s in reference], rel=1e-4)


def test_the_gradient_is_that_of_the_mean_loss_over_the_step_group(still_model: Path) -> None:
    features = make_features(still_model, 8)
    learner = make_learner(still_model)
    [step] = take_steps(learner, features, steps=1, batch_size=3, accumulation=3)
    reference = make_learner(still_model)
    batch = reference.task.collate(list(features), reference.tokenizer)
    loss = torch.nn.functional.cross_entropy(reference.model(**batch.inputs).logits, batch.targets["labels"])
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.model.parameters() if p.grad is not None])
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)
    assert step.gradient_norm == pytest.approx(norm.item(), rel=1e-4)


def test_gradients_are_clipped_and_the_norm_before_is_reported(still_model: Path) -> None:
    features = make_features(still_model, 8)
    free, clipped = make_learner(still_model), make_learner(still_model)
    [step_free] = take_steps(free, features, steps=1)
    [step_clipped] = take_steps(clipped, features, steps=1, max_norm=1e-3)
    assert step_clipped.gradient_norm == pytest.approx(step_free.gradient_norm)
    sgd_like = [state["exp_avg"] for state in clipped.optimizer.state.values()]  # (1 - beta) × the clipped gradient
    assert torch.nn.utils.get_total_norm(sgd_like).item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_stopping_in_the_middle_of_an_epoch_and_going_on_takes_the_same_steps(tiny_model: Path) -> None:
    """With dropout; state is handed over in memory here, through files in test_checkpoints.py."""
    features = make_features(tiny_model, 30)
    whole = make_learner(tiny_model)
    expected = take_steps(whole, features, steps=7)
    parts = make_learner(tiny_model)
    lengths = features.lengths
    generator = optimizer_steps(
        parts, features,
        lambda epoch: step_groups(lengths, batch_size=8, accumulation=1, seed=5, epoch=epoch),
        learning_rate=1e-3, schedule=lambda step, total: 1 - step / total, total_steps=7,
        max_gradient_norm=None, seed=5,
    )  # fmt: skip
    first = [next(generator) for _ in range(3)]
    generator.close()
    torch.manual_seed(999)
    torch.rand(100)  # whatever happened to the global generator in between
    rest = take_steps(parts, features, steps=7, done=3)
    assert [(s.number, s.loss, s.gradient_norm) for s in first + rest] == [
        (s.number, s.loss, s.gradient_norm) for s in expected
    ]
    for name, tensor in parameters_of(whole).items():
        assert torch.equal(tensor, parameters_of(parts)[name]), name


def test_evaluating_between_steps_changes_no_later_loss(tiny_model: Path) -> None:
    features = make_features(tiny_model, 24)
    expected = [step.loss for step in take_steps(make_learner(tiny_model), features, steps=6)]
    learner = make_learner(tiny_model)
    lengths = features.lengths
    losses = []
    for step in optimizer_steps(
        learner, features,
        lambda epoch: step_groups(lengths, batch_size=8, accumulation=1, seed=5, epoch=epoch),
        learning_rate=1e-3, schedule=lambda step, total: 1 - step / total, total_steps=6,
        max_gradient_norm=None, seed=5,
    ):  # fmt: skip
        losses.append(step.loss)
        ask(learner, features, 5)
    assert losses == expected


def test_scoring_leaves_the_global_generator_as_it_was(tiny_model: Path) -> None:
    learner = make_learner(tiny_model)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    ask(learner, make_features(tiny_model, 5), 2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("freeze", "options", "moving"),
    [
        ("encoder", {}, lambda name: name.startswith("classifier.")),
        ("first-layers", {"count": 1}, lambda name: not name.startswith(("bert.embeddings.", "bert.encoder.layer.0."))),
        (
            "rules",
            {"rules": [{"*.layer.1.*": "trainable"}, {"classifier.*": "trainable"}, {"*": "frozen"}]},
            lambda name: ".layer.1." in name or name.startswith("classifier."),
        ),
    ],
)
def test_frozen_tensors_stay_bit_identical_while_all_others_move(
    tiny_model: Path, freeze: str, options: dict[str, Any], moving: Any
) -> None:
    learner = make_learner(tiny_model, freeze=freeze, options=options)
    before = parameters_of(learner)
    take_steps(learner, make_features(tiny_model, 24), steps=3)
    after = parameters_of(learner)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # the bias of the keys shifts all scores of a row alike: softmax takes it away, so its gradient is zero
    assert {name for name in before if moving(name)} - moved <= {n for n in before if n.endswith("self.key.bias")}
    assert not {name for name in moved if not moving(name)}


def test_frozen_blocks_compute_the_same_every_time_and_the_others_keep_their_dropout(tiny_model: Path) -> None:
    learner = make_learner(tiny_model, freeze="first-layers", options={"count": 1})
    set_training_mode(learner.model, learner.freezing)
    bert = learner.model.bert
    assert not bert.embeddings.dropout.training
    assert not any(module.training for module in bert.encoder.layer[0].modules())
    assert all(module.training for module in bert.encoder.layer[1].modules())
    assert learner.model.dropout.training


def test_with_nothing_frozen_every_dropout_is_on(tiny_model: Path) -> None:
    """ "All its parameters are frozen" is true of a Dropout, which has none: it must not switch it off."""
    learner = make_learner(tiny_model)
    set_training_mode(learner.model, learner.freezing)
    assert learner.freezing.eval_modules == ()
    assert all(module.training for module in learner.model.modules())


def test_every_step_sees_its_own_dropout(tiny_model: Path) -> None:
    learner = make_learner(tiny_model, learning_rate=0.0)
    features = make_features(tiny_model, 8)
    losses = [step.loss for step in take_steps(learner, features, steps=4)]
    assert len(set(losses)) > 1, "the same rows and weights give other losses only through dropout"


GOLDEN = [
    1.0946, 1.0842, 1.3278, 1.1159, 1.1020, 1.0977, 1.0745, 1.1380, 1.1238, 1.1384, 1.0879, 1.1017,
    1.1154, 1.0904, 1.0889, 1.0862, 1.0808, 1.0766, 1.0472, 1.0535, 1.0519, 1.0513, 0.9743, 0.9774,
]  # fmt: skip


def test_the_loss_curve_of_a_tiny_model_is_the_golden_one(still_model: Path) -> None:
    """Any change to order, loss, gradient, optimizer or schedule shows here; change the numbers only on purpose."""
    learner = make_learner(still_model)
    steps = take_steps(learner, make_features(still_model, 24), steps=24, max_norm=1.0, learning_rate=1e-2)
    assert [round(step.loss, 4) for step in steps] == pytest.approx(GOLDEN, abs=5e-3)
    assert [step.learning_rate for step in steps] == pytest.approx([1e-2 * (1 - n / 24) for n in range(24)])


def test_an_evaluation_fills_its_batches_and_repeats_nothing(still_model: Path) -> None:
    learner, features = make_learner(still_model), make_features(still_model, 11)
    sizes: list[int] = []
    learner.model.register_forward_pre_hook(
        lambda _model, _args, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    ask(learner, features, 4)
    assert sizes == [4, 4, 3]


def test_steps_count_rows_tokens_and_epochs(still_model: Path) -> None:
    features = make_features(still_model, 13)
    steps = take_steps(make_learner(still_model), features, steps=4)
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert [step.epoch for step in steps] == [0, 0, 1, 1]
    tokens = sum(features.lengths)
    assert sum(step.tokens for step in steps[:2]) == tokens
    assert sum(step.rows for step in steps[2:]) == 13


def test_planning_from_a_later_step_is_the_tail_of_the_whole_plan() -> None:
    def groups(epoch: int) -> list[list[list[int]]]:
        return [[[epoch, index]] for index in range(3)]

    whole = list(planned_groups(groups, 8, 0))
    assert [number for number, _, _ in whole] == list(range(8))
    for done in range(9):
        assert list(planned_groups(groups, 8, done)) == whole[done:]


def test_the_loop_gives_each_parameter_its_own_learning_rate(still_model: Path) -> None:
    """SGD without momentum: what a parameter moves is its rate times its gradient."""
    features = make_features(still_model, 8)
    moved = {}
    for rates in ({}, {"classifier.weight": 3.0}):
        learner = make_learner(still_model)
        make = registry.optimizers.get("sgd").build({"momentum": 0.0})
        optimizer = make(learner.model.named_parameters(), 1e-2)
        give_rates(optimizer, learner.model, rates)
        learner.optimizer = learner.accelerator.prepare(optimizer)
        before = parameters_of(learner)
        take_steps(learner, features, steps=1, learning_rate=1e-2)
        moved[bool(rates)] = {name: tensor - before[name] for name, tensor in parameters_of(learner).items()}
    assert moved[False]["classifier.weight"].abs().max() > 0
    for name, tensor in moved[True].items():
        factor = 3.0 if name == "classifier.weight" else 1.0
        torch.testing.assert_close(tensor, factor * moved[False][name], rtol=1e-3, atol=1e-7)
