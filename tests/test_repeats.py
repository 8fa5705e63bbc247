"""A recipe done with several seeds: what they share, what is done again, and what they say together."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.artifacts import Run, has_manifest, publish
from finetune.errors import FinetuneError, RecipeError
from finetune.inference import open_run
from finetune.pipeline import Job
from finetune.progress import Silent
from finetune.recipe import Recipe, load_recipe
from finetune.repeats import Repeats, summary
from finetune.runtime import Runtime
from tests.conftest import RecipeMaker

LoadRecipe = Callable[..., Recipe]
QUICK: dict[str, Any] = {
    "seeds": [1, 2, 3],
    "train": {"max_steps": 3, "learning_rate": 2e-2, "eval_every": 3},
    "metrics": ["accuracy", "log-loss"],
}


@pytest.fixture
def recipe(make_recipe: RecipeMaker) -> LoadRecipe:
    """Return a function that makes a recipe of three seeds and three steps; keyword arguments change it."""

    def make(**sections: Any) -> Recipe:
        train = {**QUICK["train"], **sections.pop("train", {})}
        return load_recipe(make_recipe(**{**QUICK, **sections, "train": train}))

    return make


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the repeats that these tests start from are kept."""
    return tmp_path_factory.mktemp("seeds")


@pytest.fixture
def root(tmp_path: Path, store: Path, recipe: LoadRecipe) -> Path:
    """A folder in which all seeds have been trained and scored, made once and copied for each test."""
    if not (store / "out").exists():
        repeats = Repeats(Job(recipe(), store / "out"))
        repeats.report(repeats.run(asked=True))
    return Path(shutil.copytree(store / "out", tmp_path / "out"))


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def done(repeats: Repeats) -> list[str]:
    """Return what was done and not skipped."""
    return [f"{stage.of} {stage.name}".strip() for stage in repeats.stages if stage.status == "done"]


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_the_report_has_each_score_with_their_mean_and_sample_deviation(root: Path) -> None:
    report = read(root / "run" / "reports" / "repeats.json")
    for name in ("accuracy", "log-loss"):
        own = [
            read(root / "seeds" / seed / "run" / "reports" / "test.json")["metrics"][name]["value"] for seed in "123"
        ]
        found = report["metrics"][name]
        assert found["values"] == own
        assert [run["metrics"][name]["value"] for run in report["runs"]] == own
        assert found["mean"] == pytest.approx(sum(own) / 3)
        assert found["deviation"] == pytest.approx(statistics.stdev(own))
    assert report["metrics"]["log-loss"]["deviation"] > 0
    assert report["rows"] == 18


def test_all_seeds_learn_from_the_same_data_and_are_ordinary_runs(root: Path, recipe: LoadRecipe) -> None:
    plain = Job(recipe(seeds=None, seed=2, data={"seed": 7}), root / "plain").run(asked=True)
    run = Run(root / "seeds" / "2" / "run")
    assert not (root / "seeds" / "2" / "data").exists()
    assert run.data_folder() == root / "data"
    assert run.fingerprint == plain.fingerprint
    weights = "model.safetensors"
    assert (run.model_folder / weights).read_bytes() == (plain.model_folder / weights).read_bytes()
    others = [(root / "seeds" / seed / "run" / "model" / weights).read_bytes() for seed in "13"]
    assert (run.model_folder / weights).read_bytes() not in others


def test_what_is_finished_is_skipped(root: Path, recipe: LoadRecipe) -> None:
    repeats = Repeats(Job(recipe(), root))
    before = read(root / "run" / "reports" / "repeats.json")
    assert repeats.report(repeats.run(asked=True)) == before
    assert done(repeats) == []


def test_one_more_seed_trains_that_one_alone(root: Path, recipe: LoadRecipe) -> None:
    repeats = Repeats(Job(recipe(seeds=[1, 2, 3, 4]), root))
    run = repeats.run(asked=True)
    assert done(repeats) == ["seed 4 train", "ensemble"]
    assert [member["name"] for member in summary(run)["runs"]] == ["seed 1", "seed 2", "seed 3", "seed 4"]


def test_seeds_in_another_order_train_nothing_and_keep_their_scores(root: Path, recipe: LoadRecipe) -> None:
    before = read(root / "run" / "reports" / "repeats.json")["metrics"]["log-loss"]["values"]
    repeats = Repeats(Job(recipe(seeds=[3, 1, 2]), root))
    report = repeats.report(repeats.run(asked=True))
    assert done(repeats) == ["ensemble", "eval"]
    assert report["metrics"]["log-loss"]["values"] == [before[2], before[0], before[1]]
    assert [run["name"] for run in report["runs"]] == ["seed 3", "seed 1", "seed 2"]


def test_a_changed_recipe_trains_all_again(root: Path, recipe: LoadRecipe) -> None:
    repeats = Repeats(Job(recipe(train={"learning_rate": 1e-3}), root))
    repeats.run(asked=True)
    assert done(repeats) == ["seed 1 train", "seed 2 train", "seed 3 train", "ensemble"]


def interrupt(job: Job, monkeypatch: pytest.MonkeyPatch, call: int = 1) -> None:
    """Train until the run of that number is to be published, and end there as Ctrl-C does."""
    import finetune.train

    calls = []

    def stop(folder: Path, manifest: Any) -> None:
        calls.append(folder)
        if len(calls) == call:
            raise KeyboardInterrupt
        publish(folder, manifest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(finetune.train, "publish", stop)
        (Repeats(job) if job.recipe.repeated else job).run(asked=True)


def test_what_was_interrupted_goes_on_with_the_seed_that_was_in_work(
    root: Path, recipe: LoadRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupt(Job(recipe(), tmp_path / "new"), monkeypatch, call=2)
    assert has_manifest(tmp_path / "new" / "seeds" / "1" / "run")
    assert not has_manifest(tmp_path / "new" / "run")
    progress = Notes()
    repeats = Repeats(Job(recipe(), tmp_path / "new", progress=progress))
    report = repeats.report(repeats.run(asked=True))
    assert [stage for stage in done(repeats) if "train" in stage] == ["seed 2 train", "seed 3 train"]
    assert "going on from the checkpoint of step 3 of 3" in progress.notes
    assert report == read(root / "run" / "reports" / "repeats.json")


def test_resume_wants_a_seed_to_go_on_with(
    root: Path, recipe: LoadRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(FinetuneError, match=r"--resume: expected an unfinished run .* among the seeds in .*out/seeds"):
        Repeats(Job(recipe(), root, resume=True)).run(asked=True)
    interrupt(Job(recipe(seeds=[1, 2]), tmp_path / "new"), monkeypatch, call=2)
    repeats = Repeats(Job(recipe(seeds=[1, 2]), tmp_path / "new", resume=True, force=True, rebuild_stale=True))
    repeats.run(asked=True)
    assert done(repeats) == ["seed 2 train", "ensemble"]


def test_the_unfinished_run_of_the_recipe_without_seeds_is_not_thrown_away(
    recipe: LoadRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupt(Job(recipe(seeds=None), tmp_path / "new"), monkeypatch)
    with pytest.raises(FinetuneError, match="holds an unfinished run of this recipe without `seeds`"):
        Repeats(Job(recipe(), tmp_path / "new")).run(asked=True)
    assert any((tmp_path / "new" / "run.partial" / "checkpoints").glob("step-*"))


def test_gates_are_held_against_the_mean(root: Path, recipe: LoadRecipe) -> None:
    mean = read(root / "run" / "reports" / "repeats.json")["metrics"]["log-loss"]["mean"]
    gates = {"log-loss": f"<= {mean - 1e-9!r}", "accuracy": ">= 0"}
    repeats = Repeats(Job(recipe(gates=gates), root))
    report = repeats.report(repeats.run(asked=True))
    assert [(gate["value"], gate["holds"]) for gate in report["gates"]] == [
        (pytest.approx(mean), False),
        (pytest.approx(report["metrics"]["accuracy"]["mean"]), True),
    ]
    assert done(repeats) == []


def test_other_rows_are_scored_by_every_seed_and_the_ensemble(root: Path, recipe: LoadRecipe, rows_file: Path) -> None:
    repeats = Repeats(Job(recipe(), root))
    report = repeats.report(repeats.run(), source=rows_file)
    assert report["rows"] == report["ensemble"]["rows"] == 90
    assert read(root / "run" / "reports" / "repeats-rows.json") == report
    assert (root / "run" / "reports" / "repeats-rows.md").is_file()


def call(arguments: list[str]) -> None:
    from finetune.cli import app

    with pytest.raises(SystemExit) as end:
        app(arguments, prog_name="finetune")
    assert not end.value.code


def test_the_command_line_tells_mean_and_deviation(
    root: Path, recipe: LoadRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe()
    arguments = [str(tmp_path / "recipe.yaml"), "--output", str(root), "--quiet"]
    report = read(root / "run" / "reports" / "repeats.json")
    for command, place in (("train", None), ("eval", None), ("run", "report")):
        call([command, *arguments, "--json"])
        found = json.loads(capsys.readouterr().out)
        found = found[place] if place else found
        if command == "train":
            assert found["validation"]["accuracy"].keys() == {"mean", "deviation", "lowest", "highest", "values"}
        else:
            assert found == report
    call(["eval", *arguments[:-1]])
    shown = capsys.readouterr().out
    scores = report["metrics"]["log-loss"]
    assert f"{scores['mean']:.3f}" in shown
    assert f"{scores['deviation']:.3f}" in shown
    call(["train", *arguments[:-1]])
    assert " ± " in capsys.readouterr().out


# The ensemble


def test_the_ensemble_says_the_mean_of_its_members_probabilities(root: Path) -> None:
    import numpy as np

    from finetune.predict import Answering

    def probabilities(run: Run) -> list[float]:
        (answer,) = Answering(run, Runtime("cpu", 1)).texts(["we saw the big apple"])
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
        return list(answer["probabilities"].values())

    members = [probabilities(Run(root / "seeds" / seed / "run")) for seed in "123"]
    assert np.std(members, axis=0).max() > 1e-3, "they do not say the same"
    assert probabilities(Run(root / "run")) == pytest.approx(np.mean(members, axis=0), abs=2e-6)


def test_the_report_of_the_ensemble_is_one_of_any_run(root: Path) -> None:
    report = read(root / "run" / "reports" / "test.json")
    assert report["rows"] == 18
    assert set(report["baselines"]) == {"majority", "tfidf-logreg"}
    together = read(root / "run" / "reports" / "repeats.json")["ensemble"]
    assert together["metrics"] == report["metrics"]
    assert together["averages"] == "the probabilities of the labels"


def test_a_member_that_was_moved_is_named(root: Path) -> None:
    (root / "seeds" / "2").rename(root / "elsewhere")
    with pytest.raises(FinetuneError, match=r"run: expected its seed 2 at .*seeds/2/run, found nothing\. Put it back"):
        open_run(Run(root / "run"), Runtime("cpu", 1))


def test_a_member_that_was_trained_again_is_named(root: Path, recipe: LoadRecipe) -> None:
    Job(recipe(seeds=None, seed=2, train={"max_steps": 1}), root / "seeds" / "2").run(asked=True)
    with pytest.raises(FinetuneError, match="expected its seed 2 at .* found a run that was trained again since"):
        open_run(Run(root / "run"), Runtime("cpu", 1))


def test_a_member_whose_weights_were_touched_is_refused(root: Path) -> None:
    weights = root / "seeds" / "2" / "run" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(FinetuneError, match=r"seeds/2/run: damaged \(model/model.safetensors has other content\)"):
        open_run(Run(root / "run"), Runtime("cpu", 1))


def test_the_whole_folder_can_be_moved(root: Path) -> None:
    moved = root.rename(root.with_name("moved"))
    assert has_manifest(moved / "run")
    assert len(Run(moved / "run").members) == 3


# Mistakes in a recipe

MISTAKES = {
    "both": ({"folds": 3}, "`seeds` repeats the training on the same rows, `folds` on others; remove one of the two"),
    "one seed": ({"seeds": [1]}, r"expected two or more different seeds, such as \[1, 2, 3\], found \[1\]"),
    "equal seeds": ({"seeds": [1, 1]}, r"expected two or more different seeds, .* found \[1, 1\]"),
    "no seed": ({"seeds": [1, -2]}, "greater than or equal to 0"),
    "an end of an interval": ({"gates": {"accuracy.low": ">= 0"}}, "a gate is on the mean, which has no low end"),
    "a fold of a split": (
        {"seeds": None, "folds": 3, "data": {"split": {"name": "random", "folds": 3}}},
        "data.split.folds: it makes a fold the test split",
    ),
    "folds of time": (
        {"seeds": None, "folds": 3, "data": {"split": {"name": "time", "by": "when"}}},
        "of rows in the order of time, later ones would say what earlier ones are",
    ),
    "a single fold beside": ({"data": {"fold": {"number": 0, "of": 3}}}, "one of the trainings that `seeds` makes"),
    "no such fold": (
        {"seeds": None, "data": {"fold": {"number": 3, "of": 3}}},
        r"expected a number from 0 to 2 \(of is 3\), found 3",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_refused_before_anything_is_read(recipe: LoadRecipe, mistake: str) -> None:
    sections, message = MISTAKES[mistake]
    if "data" in sections:
        data = {"source": "rows.jsonl", "columns": {"text": "body", "label": "intent"}, **sections["data"]}
        sections = {**sections, "data": data}
    with pytest.raises(RecipeError, match=message):
        recipe(**sections)
