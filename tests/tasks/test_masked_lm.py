"""Masked language modelling: what is hidden, that each token counts once, and what becomes of the run."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.artifacts import FeatureTable, Run, feature_table
from finetune.data.tokenization import Encoder, Limits
from finetune.errors import FinetuneError
from finetune.evaluate import evaluate
from finetune.evaluation.baselines import BaselineInput
from finetune.evaluation.baselines.language import learned_tokens, unigram
from finetune.evaluation.predictions.language import Guesses, LanguagePredictions
from finetune.evaluation.statistics import RESAMPLES, bootstrap, point
from finetune.inference import open_run
from finetune.models.freezing import apply_freezing
from finetune.models.loading import ModelSettings, load_model, load_tokenizer
from finetune.pipeline import Job
from finetune.predict import Answering
from finetune.runtime import Runtime
from finetune.tasks import Task, open_task, prepare_tokenizer
from finetune.training.batching import step_groups
from finetune.training.loop import Learner, Step, optimizer_steps
from finetune.training.optimizers import adamw
from tests.conftest import FILLER, LABEL_WORDS
from tests.preparation.world import World
from tests.tasks.test_token_classification import pieces_model

NO_TARGET = -100


def texts(count: int, longest: int = 40, seed: int = 2) -> list[str]:
    """Return texts of 3 to `longest` words, in which the word after "the" is a fruit and the one after "a" a tool."""
    generator = random.Random(seed)
    found = []
    for number in range(count):
        words: list[str] = []
        while len(words) < 3 + number * (longest - 3) // count:
            article, kind = generator.choice([("the", "fruit"), ("a", "tool")])
            words += [article, generator.choice(LABEL_WORDS[kind]), generator.choice(FILLER[2:])]
        found.append(" ".join(words))
    return found


def features_of(folder: Path, rows: Sequence[str], limits: Limits, **options: Any) -> tuple[Task, FeatureTable, Any]:
    task, _ = open_task("masked-lm", options)
    tokenizer = load_tokenizer(folder)
    return task, feature_table(task.encode({"text": list(rows)}, Encoder.of(tokenizer, limits), []).features), tokenizer


def collated(task: Task, features: FeatureTable, tokenizer: Any, epoch: int = 0, seed: int = 1) -> Any:
    return task.collate([{**window, "draw": (seed, epoch, n)} for n, window in enumerate(features)], tokenizer)


@pytest.mark.parametrize("limits", [Limits(64), Limits(16, "window", 4), Limits(12)])
@pytest.mark.parametrize("probability", [0.15, 0.5])
def test_the_share_of_each_window_that_may_be_hidden_is_hidden(
    tiny_model: Path, limits: Limits, probability: float
) -> None:
    task, features, tokenizer = features_of(tiny_model, texts(40), limits, probability=probability)
    batch = collated(task, features, tokenizer)
    hidden = (batch.targets["labels"] != NO_TARGET).sum(dim=1).tolist()
    free = [sum(word >= 0 for word in window["word_ids"]) for window in features]
    assert hidden == [max(1, round(probability * count)) for count in free]
    whole = [len(text.split()) for text in texts(40)]
    kept = [min(length, limits.max_length - 2) for length in whole] if not limits.windows else whole
    assert sum(free) == sum(kept), "each token of a row may be hidden in exactly one window"


def test_labels_are_the_true_tokens_and_the_rest_is_as_it_was(tiny_model: Path) -> None:
    task, features, tokenizer = features_of(tiny_model, texts(200), Limits(64))
    batch = collated(task, features, tokenizer)
    fate: Counter[str] = Counter()
    for window, ids, labels in zip(features, batch.inputs["input_ids"], batch.targets["labels"], strict=True):
        for place, true in enumerate(window["input_ids"]):
            if labels[place] == NO_TARGET:
                assert ids[place] == true
                continue
            assert labels[place] == true
            fate["mask" if ids[place] == tokenizer.mask_token_id else "kept" if ids[place] == true else "other"] += 1
        assert (labels[len(window["input_ids"]) :] == NO_TARGET).all()
    total = fate.total()
    assert fate["mask"] / total == pytest.approx(0.8, abs=0.06)
    assert fate["other"] / total == pytest.approx(0.1, abs=0.05)
    assert fate["kept"] / total == pytest.approx(0.1, abs=0.05)


def test_what_is_hidden_changes_with_epoch_and_seed_and_not_with_the_company(tiny_model: Path) -> None:
    task, features, tokenizer = features_of(tiny_model, texts(30), Limits(64))
    first, again = (collated(task, features, tokenizer).targets["labels"] for _ in range(2))
    assert torch.equal(first, again)
    for other in ({"epoch": 1}, {"seed": 2}):
        assert not torch.equal(first, collated(task, features, tokenizer, **other).targets["labels"])
    for number in (0, 7, 29):
        (alone,) = task.collate([{**features[number], "draw": (1, 0, number)}], tokenizer).targets["labels"]
        assert torch.equal(alone, first[number, : len(alone)])


def test_whole_words_are_hidden_with_all_their_tokens(tmp_path: Path) -> None:
    folder = pieces_model(tmp_path / "pieces")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    rows = [" ".join(f"{word}{word[::-1]}" for word in text.split()) for text in texts(20, longest=12)]
    for whole in (True, False):
        task, _ = open_task("masked-lm", {"whole_words": whole, "probability": 0.3})
        features = feature_table(task.encode({"text": rows}, Encoder.of(tokenizer, Limits(64)), []).features)
        labels = collated(task, features, tokenizer).targets["labels"]
        parted = 0
        for window, targets in zip(features, labels, strict=True):
            words = np.array(window["word_ids"])
            hidden = targets[: len(words)].numpy() != NO_TARGET
            parted += sum(0 < hidden[words == word].sum() < (words == word).sum() for word in set(words) - {-1})
        assert (parted == 0) == whole


def take_steps(folder: Path, features: FeatureTable, batch_size: int, accumulation: int) -> list[Step]:
    torch.manual_seed(3)
    task, spec = open_task("masked-lm", {})
    loaded = load_model(folder, task.head([]), ModelSettings())
    freezing = apply_freezing(loaded.model, "none", {}, loaded.new_parameters)
    accelerator = Runtime(device="cpu").accelerator()
    model, optimizer = accelerator.prepare(loaded.model, adamw(loaded.model.named_parameters(), 1e-3))
    learner = Learner(accelerator, model, optimizer, freezing, task, load_tokenizer(folder), {}, spec.draws)

    def groups(epoch: int) -> list[list[list[int]]]:
        return step_groups(features.lengths, batch_size=batch_size, accumulation=accumulation, seed=5, epoch=epoch)

    settings: dict[str, Any] = {"learning_rate": 1e-3, "schedule": lambda step, total: 1.0, "max_gradient_norm": None}
    return list(optimizer_steps(learner, features, groups, total_steps=5, seed=5, **settings))


def test_micro_batches_of_any_size_hide_the_same_and_give_the_same_gradients(still_model: Path) -> None:
    _, features, _ = features_of(still_model, texts(20), Limits(16, "window", 4))
    plain, *others = (take_steps(still_model, features, *sizes) for sizes in ((8, 1), (2, 4), (1, 8)))
    assert plain[0].loss != pytest.approx(plain[-1].loss, abs=1e-3)
    for steps in others:
        assert [step.loss for step in steps] == pytest.approx([step.loss for step in plain], abs=1e-5)
        assert [step.gradient_norm for step in steps] == pytest.approx([step.gradient_norm for step in plain], rel=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, still_model: Path) -> Run:
    """A run that has learned which words follow which, from rows in windows."""
    world = World(tmp_path_factory.mktemp("masked"), still_model)
    rows = [{"text": text} for text in texts(160, longest=30)]
    recipe = world.recipe(
        rows, task="masked-lm", data={"split": "random"}, train={"epochs": 30, "learning_rate": 1e-2},
        model={"max_length": 20, "overflow": "window", "stride": 4},
    )  # fmt: skip
    return Job(recipe, world.folder / "out", Runtime(threads=1)).run()


def test_a_run_learns_more_than_the_frequencies_of_words(run: Run) -> None:
    report = evaluate(run)
    scores = {name: found["perplexity"]["value"] for name, found in report["baselines"].items()}
    assert report["metrics"]["perplexity"]["value"] < 0.75 * scores["unigram"]
    assert report["gains"]["unigram"]["perplexity"]["low"] > 0
    assert report["tokens"] >= sum(entry["times"] for entry in report["costly_tokens"]) > 20
    assert "Tokens that cost most" in (run.reports / "test.md").read_text(encoding="utf-8")


def test_perplexity_is_that_of_plain_torch_over_each_hidden_token_once(run: Run) -> None:
    from transformers import AutoModelForMaskedLM

    predictor = open_run(run, Runtime(threads=1))
    data = Job(run.recipe, run.folder.parent, Runtime(threads=1)).data()
    split = data.split("test")
    predictions = predictor.predict(split.rows, split.features, 64)
    model = AutoModelForMaskedLM.from_pretrained(run.model_folder).eval()
    losses = []
    for number, window in enumerate(split.features):
        batch = predictor.task.collate([{**window, "draw": (2**32, 0, number)}], predictor.tokenizer)
        with torch.no_grad():
            scores = model(**batch.inputs).logits[0].double()
        for place, target in enumerate(batch.targets["labels"][0].tolist()):
            if target != NO_TARGET:
                losses.append(float(torch.logsumexp(scores[place], 0) - scores[place, target]))
    assert sum(len(row.targets) for row in predictions.guesses) == len(losses)
    assert point("perplexity", predictions) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_predict_fills_the_masks_of_a_text_in_their_order(run: Run) -> None:
    asking = Answering(run, Runtime(threads=1))
    text = "the [MASK] near a hammer old the plum [MASK] a saw big"
    filled, nothing = asking.texts([text, "no mask here"])
    first, second = filled["masks"]
    assert first[0]["token"] in LABEL_WORDS["fruit"]
    assert second[0]["token"] in FILLER
    assert [entry["probability"] for entry in first] == sorted((e["probability"] for e in first), reverse=True)
    assert nothing["masks"] == []
    (by_file,) = asking.lines([json.dumps({"masked": text})])
    assert by_file["masks"] == filled["masks"]


def test_a_mask_that_two_windows_see_is_filled_once(run: Run) -> None:
    words = ["the", "small", "plum", "near", "a", "big", "hammer", "on", "the", "old", "table"]
    for place in range(18, 30):
        text = " ".join([*(words * 4)[:place], "[MASK]", *(words * 2)[:12]])
        (answer,) = Answering(run, Runtime(threads=1)).texts([text])
        assert len(answer["masks"]) == 1, place


def test_a_tokenizer_without_a_mask_is_refused(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    task, _ = open_task("masked-lm", {})
    prepare_tokenizer(task, tokenizer)
    tokenizer.mask_token = None
    with pytest.raises(FinetuneError, match=r"expected a tokenizer with a mask token, found none.*bert or roberta"):
        prepare_tokenizer(task, tokenizer)


def test_what_was_learned_is_where_another_task_starts(run: Run, tmp_path: Path) -> None:
    task, _ = open_task("text-classification", {})
    loaded = load_model(run.model_folder, task.head(["good", "bad"]), ModelSettings())
    learned = open_run(run, Runtime(threads=1)).model.bert.state_dict()
    for name, values in loaded.model.bert.state_dict().items():
        if not name.startswith("pooler"):
            assert torch.equal(values, learned[name]), name
    assert any("classifier" in notice for notice in loaded.notices)


def predictions_of(rows: Sequence[tuple[list[int], list[float], list[int]]]) -> LanguagePredictions:
    guesses = tuple(Guesses(np.array(t, int), np.array(losses, float), np.array(f, int)) for t, losses, f in rows)
    return LanguagePredictions(np.array([f"row {n}" for n in range(len(rows))], dtype=object), guesses, np.arange(3))


def test_metrics_count_tokens_and_not_rows() -> None:
    said = predictions_of([([1, 2], [0.5, 1.5], [1, 1]), ([3], [4.0], [3]), ([4], [1.0], [1])])
    assert point("perplexity", said) == pytest.approx(math.exp(7 / 4), abs=1e-12)
    assert point("top-1-accuracy", said) == 0.5
    assert point("bits-per-byte", said) == pytest.approx(7 / math.log(2) / 3, abs=1e-12)
    found = bootstrap(["perplexity", "top-1-accuracy"], said, seed=3)
    generator = np.random.default_rng([3, 0xB007])
    draws = [said.take(generator.integers(0, 3, 3, dtype=np.int32)) for _ in range(RESAMPLES)]
    for name, interval in found.items():
        values = [point(name, draw) for draw in draws]
        assert [interval.low, interval.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-9)


def test_a_unigram_model_knows_frequencies_alone() -> None:
    like = predictions_of([([1, 2], [0.5, 1.5], [1, 1]), ([0], [4.0], [3]), ([], [], [])])
    windows = [
        {"input_ids": [9, 1, 1, 2, 9], "word_ids": [-1, 0, 1, 2, -1]},
        {"input_ids": [8, 1, 7], "label_ids": [NO_TARGET, 1, NO_TARGET]},
    ]
    assert [learned_tokens(window) for window in windows] == [[1, 1, 2], [1]]
    given = BaselineInput([], [], [], (), ("text",), None, like, lambda: like, windows, vocabulary=6)
    said = unigram(given)
    assert said.guesses[0].losses.tolist() == pytest.approx([-math.log(4 / 10), -math.log(2 / 10)])
    assert said.guesses[1].losses.tolist() == pytest.approx([-math.log(1 / 10)])
    assert said.guesses[0].firsts.tolist() == [1, 1]
    assert len(said.guesses[2].losses) == 0
