"""Small trainings of every kind to plan: tiny random models, rows, recipes, and counts that are not the planner's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from finetune.artifacts import PreparedData
from finetune.learners import open_learner
from finetune.models.freezing import set_training_mode
from finetune.planning.memory import Estimate, estimate_memory
from finetune.prepare import prepare
from finetune.progress import Silent
from finetune.recipe import Recipe, load_recipe
from finetune.runtime import Runtime
from finetune.training.loop import Learner, training_batch
from tests.conftest import FILLER, LABEL_WORDS, build_tiny_model, make_rows, write_jsonl
from tests.tasks.question_world import pair_model, question_rows
from tests.tasks.written_world import SIZES, gpt2, llama, save, t5, word_tokenizer

CPU = Runtime("cpu", threads=1)
WORDS = [word for words in LABEL_WORDS.values() for word in words]


def _tagged() -> list[dict[str, Any]]:
    kinds = {word: f"B-{label}" for label, words in LABEL_WORDS.items() for word in words}
    split = [row["body"].split() for row in make_rows()]
    return [{"tokens": words, "tags": [kinds.get(word, "O") for word in words]} for words in split]


def _answered() -> list[dict[str, Any]]:
    return [{"source": row["body"], "target": f"{row['body'].split()[0]} {row['body']}"} for row in make_rows()]


def _asked() -> list[dict[str, Any]]:
    return [{"prompt": row["body"], "completion": " ".join(row["body"].split()[::-1][:5])} for row in make_rows()]


def _ranked() -> list[dict[str, Any]]:
    return [
        {
            "query": f"{FILLER[number % 20]} {WORDS[number % 15]} {FILLER[number // 20]}",
            "text": f"{FILLER[number % 7]} {WORDS[(number + place) % 15]} " + " ".join(FILLER[: number % 9]),
            "relevance": 1 - place,
        }
        for number in range(40)
        for place in range(2)
    ]


def _pairs() -> list[dict[str, Any]]:
    return [
        {
            "anchor": f"{FILLER[number % 9]} {WORDS[number % 15]} {FILLER[number // 9]}",
            "positive": f"{FILLER[-1 - number % 15]} {FILLER[number // 9]} today " + " ".join(FILLER[: number % 7]),
        }
        for number in range(45)
    ]


def _several() -> list[dict[str, Any]]:
    labels = {word: label for label, words in LABEL_WORDS.items() for word in words}
    return [
        {"text": row["body"], "labels": sorted({labels[word] for word in row["body"].split() if word in labels})[:2]}
        for row in make_rows()
    ]


def _numbered() -> list[dict[str, Any]]:
    return [{"text": row["body"], "score": float(len(row["body"]))} for row in make_rows()]


def _texts() -> list[dict[str, Any]]:
    return [{"text": row["body"]} for row in make_rows()]


@dataclass(frozen=True)
class Kind:
    """A kind of training: its task, the model that it begins with, its rows and their columns."""

    task: Mapping[str, Any]
    model: str
    rows: Callable[[], list[dict[str, Any]]]
    columns: Mapping[str, str] | None = None


KINDS = {
    "text-classification": Kind({}, "bert", make_rows, {"text": "body", "label": "intent"}),
    "token-classification": Kind({}, "bert", _tagged),
    "multi-label": Kind({}, "bert", _several),
    "regression": Kind({}, "bert", _numbered),
    "ranking": Kind({}, "pairs", _ranked),
    "embedding": Kind({}, "bert", _pairs),
    "question-answering": Kind({}, "pairs", lambda: question_rows(60, longest=20)),
    "masked-lm": Kind({}, "bert", _texts),
    "causal-lm": Kind({}, "llama", _texts),
    "causal-lm packed": Kind({"pack": True}, "llama", _texts),
    "causal-lm answers": Kind({"rows": "completion"}, "gpt2", _asked),
    "seq2seq": Kind({"max_target_length": 20}, "t5", _answered),
}
WRITING = ("causal-lm", "causal-lm packed", "causal-lm answers", "seq2seq")
MODELS: dict[str, Callable[[Path], object]] = {
    "bert": build_tiny_model,
    "pairs": lambda folder: pair_model(folder, dropout=0.1),
    "gpt2": lambda folder: save(folder, gpt2(), word_tokenizer()),
    "llama": lambda folder: save(folder, llama(max_position_embeddings=64), word_tokenizer()),
    "t5": lambda folder: save(folder, t5(), word_tokenizer()),
}


class Plans:
    """A folder of tiny models, and of recipes over them with their prepared data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prepared: dict[str, PreparedData] = {}
        self._estimates: dict[str, Estimate] = {}
        self.model = cache(self._model)

    def _model(self, name: str) -> Path:
        folder = self.folder / name
        MODELS[name](folder)
        return folder

    def file(self, kind: str, **sections: Any) -> Path:
        """Write a recipe of that kind; sections are merged into it, and other ones replaced."""
        about = KINDS[kind]
        data: dict[str, Any] = {
            "source": str(write_jsonl(self.folder / f"{kind}.jsonl", about.rows())),
            "near_duplicates": "off",
            "split": {"name": "random", "train": 0.6, "validation": 0.2, "test": 0.2},
        }
        recipe: dict[str, Any] = {
            "name": "planned",
            "task": {"name": kind.split()[0], **about.task},
            "seed": 7,
            "data": {**data, **({"columns": dict(about.columns)} if about.columns else {})},
            "model": {"id": str(self.model(about.model)), "max_length": 32},
            "train": {"epochs": 2, "batch_size": 8, "threads": 1, "device": "cpu"},
            **({"generation": {"max_new_tokens": 6, "validation_rows": 4}} if kind in WRITING else {}),
        }
        for name, value in sections.items():
            both = isinstance(recipe.get(name), dict) and isinstance(value, dict)
            recipe[name] = {**recipe[name], **value} if both else value
        path = self.folder / "recipe.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        return path

    def recipe(self, kind: str, **sections: Any) -> Recipe:
        """Return a recipe of that kind."""
        return load_recipe(self.file(kind, **sections))

    def data(self, recipe: Recipe) -> PreparedData:
        """Return the recipe's prepared data, made once for all recipes that prepare alike."""
        resolved = recipe.resolved()
        prepares = json.dumps([resolved.get(section) for section in ("task", "data", "model", "tokenizer")])
        if prepares not in self._prepared:
            self._prepared[prepares] = prepare(recipe, self.folder / f"data-{len(self._prepared)}")
        return self._prepared[prepares]

    def estimate(self, kind: str, **sections: Any) -> Estimate:
        """Return what a training of that kind needs, estimated once for all recipes that are the same."""
        recipe = self.recipe(kind, **sections)
        resolved = json.dumps(recipe.resolved())
        if resolved not in self._estimates:
            self._estimates[resolved] = estimate_memory(recipe, self.data(recipe), CPU)
        return self._estimates[resolved]


def old_model(folder: Path) -> Path:
    """Save a tiny model of a family that can neither compute activations twice nor keep a cache."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**SIZES, **sizes))
    return save(folder, model, word_tokenizer())


def kept_by_autograd(recipe: Recipe, data: PreparedData, windows: list[int]) -> int:
    """Return the bytes that a real forward pass keeps for the backward pass, as autograd's hooks see it.

    Storages are counted once, the batch's among them, and those of parameters and buffers not at all.
    """
    learner, _ = open_learner(recipe, data, CPU, Silent())
    set_training_mode(learner.model, learner.freezing)
    held = [*learner.model.parameters(), *learner.model.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in held}
    sizes: dict[int, int] = {}
    saved: list[torch.Tensor] = []  # so that no address is used twice

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        batch = training_batch(learner, data.split("train").features, windows, _draw(recipe, learner))
        loss, count = learner.task.loss(learner.task.forward(learner.model, batch.inputs), batch, learner.fitted)
    for tensor in (*batch.inputs.values(), *batch.targets.values(), loss, count):
        see(tensor)
    return sum(sizes.values())


def _draw(recipe: Recipe, learner: Learner) -> tuple[int, int] | None:
    return (recipe.seed, 0) if learner.draws else None
