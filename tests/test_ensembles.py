"""An ensemble is quantized member by member, and the result is an ensemble too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune import quantize, registry
from finetune.artifacts import Run
from finetune.errors import FinetuneError
from finetune.inference import open_run
from finetune.pipeline import Job
from finetune.recipe import Recipe, load_recipe
from finetune.repeats import Repeats
from finetune.runtime import Runtime
from tests.conftest import RecipeMaker


class Rounded:
    """A model whose weights were rounded, as a backend's `load` returns it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        self.folder, self.model = folder, AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        return self.model(**inputs).logits

    def in_threads(self, threads: int) -> Rounded:
        return Rounded(self.folder)


def round_weights(model: Any, forward: Any, inputs: Any, folder: Path, *, digits: int = 2) -> None:
    """Write a model with rounded weights."""
    import copy

    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.round(decimals=digits)
    rounded.save_pretrained(folder)


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register a backend that is quick: what is tested here is what is made of its models."""
    registry.backends.names()  # loads the others
    entries = dict(registry.backends._entries)
    registry.backends.register("rounded", format="rounded", load=lambda folder, _: Rounded(folder), title="rounding")(
        round_weights
    )
    monkeypatch.setattr(quantize, "ROUNDS", 2)
    monkeypatch.setattr(quantize, "WARM_UP_ROUNDS", 0)
    yield
    registry.backends._entries = entries


@pytest.fixture
def recipe(make_recipe: RecipeMaker) -> Recipe:
    train = {"max_steps": 2, "learning_rate": 2e-2}
    return load_recipe(make_recipe(seeds=[1, 2], train=train, metrics=["accuracy", "log-loss"], quantize="rounded"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantized")


@pytest.fixture
def root(tmp_path: Path, store: Path, recipe: Recipe) -> Path:
    """A folder with a quantized ensemble of two seeds, made once and copied for each test."""
    if not (store / "out").exists():
        repeats = Repeats(Job(recipe, store / "out"))
        repeats.quantized(repeats.run(asked=True))
    return Path(shutil.copytree(store / "out", tmp_path / "out"))


def report(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "run-rounded" / "reports" / "quantization.json").read_text(encoding="utf-8")))


def probabilities(folder: Path) -> dict[str, float]:
    from finetune.predict import Answering

    (answer,) = Answering(Run(folder), Runtime("cpu", 1)).texts(["we saw the big apple"])
    return dict(answer["probabilities"])


def test_each_member_is_quantized_and_the_result_averages_what_they_say(root: Path) -> None:
    quantized = Run(root / "run-rounded")
    assert quantized.format == "ensemble"
    assert [member.folder for member in quantized.members] == [root / "seeds" / s / "run-rounded" for s in "12"]
    members = [probabilities(member.folder) for member in quantized.members]
    mean = {label: (members[0][label] + members[1][label]) / 2 for label in members[0]}
    assert probabilities(quantized.folder) == pytest.approx(mean, abs=2e-6)
    assert probabilities(quantized.folder) != probabilities(root / "run")


def test_the_report_compares_the_two_ensembles_on_the_same_rows(root: Path) -> None:
    found = report(root)
    assert found["rows"] == 18
    sizes = [
        sum((root / "seeds" / s / name / "model" / "model.safetensors").stat().st_size for s in "12")
        for name in ("run", "run-rounded")
    ]
    assert [found["size_bytes"]["before"], found["size_bytes"]["after"]] == sizes
    repeats = json.loads((root / "seeds" / "1" / "run-rounded" / "reports" / "quantization.json").read_text())
    assert repeats["before"]["log-loss"] != found["before"]["log-loss"]


def test_nothing_is_done_again_unless_forced_and_a_lost_member_is_made_again(root: Path, recipe: Recipe) -> None:
    job = Job(recipe, root)
    before = (root / "seeds" / "1" / "run-rounded" / "manifest.json").stat().st_mtime_ns
    job.quantized(Run(root / "run"))
    assert [stage.status for stage in job.stages] == ["skipped"]
    shutil.rmtree(root / "seeds" / "2" / "run-rounded")
    with pytest.raises(FinetuneError, match=r"expected its seed 2 .* found nothing\. .*finetune quantize --force"):
        open_run(Run(root / "run-rounded"), Runtime("cpu", 1))
    shutil.rmtree(root / "run-rounded")
    job.quantized(Run(root / "run"))
    assert len(Run(root / "run-rounded").members) == 2
    assert (root / "seeds" / "1" / "run-rounded" / "manifest.json").stat().st_mtime_ns == before
    Job(recipe, root, force=True).quantized(Run(root / "run"))
    assert (root / "seeds" / "1" / "run-rounded" / "manifest.json").stat().st_mtime_ns > before


def test_a_quantized_ensemble_is_not_quantized_again(root: Path, recipe: Recipe) -> None:
    with pytest.raises(
        FinetuneError, match=r"seeds/1/run-rounded: expected a run in full precision, found .* 'rounded'"
    ):
        Job(recipe, root / "twice").quantized(Run(root / "run-rounded"))
    assert not (root / "twice" / "run-rounded").exists()
