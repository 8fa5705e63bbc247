"""A frozen encoder under a trained head is a linear probe: scikit-learn finds the same one on the same features."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from finetune.artifacts import PreparedData
from finetune.inference import Predictor, open_run
from finetune.prepare import prepare
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from tests.conftest import LABEL_WORDS, RecipeMaker, make_rows, write_jsonl

CPU = Runtime("cpu", threads=1)


@pytest.fixture
def lively_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A tiny encoder whose random weights are large, so that its features differ from text to text."""
    folder = tmp_path / "lively"
    shutil.copytree(tiny_model, folder)
    torch.manual_seed(1)
    config = transformers.BertConfig.from_pretrained(tiny_model)
    config.update({"initializer_range": 0.3, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 24})
    config.update({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def pooled_features(data: PreparedData, split: str, predictor: Predictor) -> tuple[np.ndarray, list[str]]:
    """Return what the frozen encoder gives to the head, and the labels."""
    rows = data.split(split)
    features = []
    with torch.no_grad():
        for start in range(0, len(rows), 100):
            inputs = predictor.task.collate(rows.features[start : start + 100], predictor.tokenizer).inputs
            features.append(predictor.model.bert(**inputs).pooler_output.double().numpy())
    return np.concatenate(features), [row["label"] for row in rows.rows]


def test_a_probe_agrees_with_logistic_regression_on_the_same_features(
    make_recipe: RecipeMaker, lively_model: Path, tmp_path: Path
) -> None:
    generator = random.Random(5)
    rows = make_rows(420)
    for row in rows:  # so that no line parts the labels, and there is one best probe
        if generator.random() < 0.35:
            row["intent"] = generator.choice(list(LABEL_WORDS))
    train_rows, test_rows = rows[:260], rows[260:]
    learned = str(write_jsonl(tmp_path / "learned.jsonl", train_rows))
    recipe = load_recipe(
        make_recipe(
            model={"id": str(lively_model)},
            data={
                # judged on what it learns from, the best step is the one with the lowest loss of training
                "source": {
                    "train": learned,
                    "validation": learned,
                    "test": str(write_jsonl(tmp_path / "test.jsonl", test_rows)),
                },
                "split": {"name": "stratified"},
                "leaks": "report",
            },
            freeze="encoder",
            train={
                "max_steps": 400,
                "batch_size": 512,
                "learning_rate": 0.2,
                "optimizer": {"name": "adamw", "weight_decay": 0.0},
                "schedule": "cosine",
                "max_gradient_norm": None,
                "eval_every": 100,
                "threads": 1,
            },
        )
    )
    data = prepare(recipe, tmp_path / "data")
    run = train(recipe, data, tmp_path / "run", runtime=CPU)
    predictor = open_run(run, CPU)
    learned_features, learned_labels = pooled_features(data, "train", predictor)
    test_features, test_labels = pooled_features(data, "test", predictor)
    reference = LogisticRegression(C=np.inf, max_iter=20_000, tol=1e-8).fit(learned_features, learned_labels)

    found = run.manifest["metrics"]["loss"]
    best = log_loss(learned_labels, reference.predict_proba(learned_features))
    assert found == pytest.approx(best, abs=2e-3)

    test = data.split("test")
    ours = predictor.predict(test.rows, test.features, 64)
    theirs = reference.predict_proba(test_features)
    assert list(reference.classes_) == list(ours.labels)  # type: ignore[attr-defined]
    right = np.array(test_labels)
    ours_accuracy = float((np.array(ours.labels)[ours.predicted] == right).mean())  # type: ignore[attr-defined]
    assert ours_accuracy == pytest.approx(float((reference.predict(test_features) == right).mean()), abs=0.005)
    assert np.abs(ours.probabilities - theirs).mean() < 0.02  # type: ignore[attr-defined]
