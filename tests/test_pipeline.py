"""A job over the tiny model: what is built, skipped and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.artifacts import has_manifest, write_json
from finetune.errors import FinetuneError
from finetune.pipeline import Job, find_run
from finetune.recipe import Recipe, load_recipe
from tests.conftest import RecipeMaker, build_tiny_model, make_rows, write_jsonl

QUICK: dict[str, Any] = {"train": {"max_steps": 1}, "metrics": ["accuracy"]}
LoadRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe(make_recipe: RecipeMaker) -> LoadRecipe:
    """Return a function that makes a recipe of one training step; keyword arguments change it."""

    def make(**sections: Any) -> Recipe:
        train = {**QUICK["train"], **sections.pop("train", {})}
        return load_recipe(make_recipe(**{**QUICK, **sections, "train": train}))

    return make


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the job that all these tests start from is kept, in `out`, beside `stages.json`."""
    return tmp_path_factory.mktemp("built")


@pytest.fixture
def root(tmp_path: Path, store: Path, recipe: LoadRecipe) -> Path:
    """A folder in which the recipe has been prepared, trained and evaluated, made once and copied for each test."""
    if not (store / "stages.json").exists():
        job = Job(recipe(), store / "out")
        job.report(job.run(asked=True))
        write_json(store / "stages.json", [stage.as_json() for stage in job.stages])
    return Path(shutil.copytree(store / "out", tmp_path / "out"))


def run_all(job: Job) -> dict[str, Any]:
    """Do what `finetune run` does, without quantization; return the report."""
    job.rebuild_stale = True
    job.data(asked=True)
    return job.report(job.run(asked=True))


def statuses(job: Job) -> dict[str, str]:
    return {stage.name: stage.status for stage in job.stages}


def state(root: Path) -> dict[str, int]:
    """Return when each file was written."""
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in files}


ALL_SKIPPED = {"prepare": "skipped", "train": "skipped", "eval": "skipped"}
ALL_DONE = {"prepare": "done", "train": "done", "eval": "done"}
FROM_TRAIN = {"prepare": "skipped", "train": "done", "eval": "done"}
ONLY_EVAL = {"prepare": "skipped", "train": "skipped", "eval": "done"}


def test_what_is_missing_is_built_before_what_was_asked_for(root: Path, store: Path) -> None:
    stages = json.loads((store / "stages.json").read_text(encoding="utf-8"))
    assert [(stage["name"], stage["status"]) for stage in stages] == [
        ("prepare", "done"),
        ("train", "done"),
        ("eval", "done"),
    ]
    assert has_manifest(root / "data")
    assert has_manifest(root / "run")


def test_what_did_not_change_is_skipped_and_not_touched(root: Path, recipe: LoadRecipe) -> None:
    before = state(root)
    job = Job(recipe(), root)
    report = run_all(job)
    assert statuses(job) == ALL_SKIPPED
    assert state(root) == before
    assert report == json.loads((root / "run" / "reports" / "test.json").read_text(encoding="utf-8"))


def test_a_skipped_stage_says_so_in_one_line(root: Path, recipe: LoadRecipe) -> None:
    from finetune.progress import Silent

    class Listener(Silent):
        said: list[str] = []  # noqa: RUF012 -- one test, one listener

        def note(self, message: str) -> None:
            self.said.append(message)

    Job(recipe(), root, progress=Listener()).data(asked=True)
    assert Listener.said == ["prepare: skipped, nothing changed"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"gates": {"accuracy": ">= 0.01"}}, id="gates"),
        pytest.param({"train": {"threads": 2}}, id="threads"),
        pytest.param({"train": {"eval_batch_size": 7}}, id="eval_batch_size"),
        pytest.param({"train": {"save_every": 1}}, id="save_every"),
        pytest.param({"train": {"device": "cpu"}}, id="device"),
        pytest.param({"name": "renamed"}, id="name"),
    ],
)
def test_changing_what_decides_no_result_redoes_nothing(root: Path, recipe: LoadRecipe, change: dict[str, Any]) -> None:
    job = Job(recipe(**change), root)
    run_all(job)
    assert statuses(job) == ALL_SKIPPED


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"metrics": ["accuracy", "f1-macro"]}, ONLY_EVAL, id="metrics"),
        pytest.param({"gates": {"f1-macro": ">= 0.01"}}, ONLY_EVAL, id="a-gate-on-a-new-metric"),
        pytest.param({"train": {"learning_rate": 1e-4}}, FROM_TRAIN, id="learning_rate"),
        pytest.param({"model": {"max_length": 16}}, ALL_DONE, id="max_length"),
    ],
)
def test_changing_a_setting_redoes_the_stages_that_depend_on_it(
    root: Path, recipe: LoadRecipe, change: dict[str, Any], expected: dict[str, str]
) -> None:
    job = Job(recipe(**change), root)
    run_all(job)
    assert statuses(job) == expected


def test_changing_the_rows_redoes_everything(root: Path, recipe: LoadRecipe, rows_file: Path) -> None:
    write_jsonl(rows_file, make_rows(seed=2))
    job = Job(recipe(), root)
    run_all(job)
    assert statuses(job) == ALL_DONE


def test_moving_the_rows_redoes_nothing(root: Path, recipe: LoadRecipe, rows_file: Path) -> None:
    moved = rows_file.rename(rows_file.with_name("moved.jsonl"))
    job = Job(recipe(data={"source": str(moved)}), root)
    run_all(job)
    assert statuses(job) == ALL_SKIPPED


def test_other_weights_under_the_same_tokenizer_redo_the_training_alone(
    root: Path, recipe: LoadRecipe, tmp_path: Path
) -> None:
    other = build_tiny_model(tmp_path / "other", seed=1)
    job = Job(recipe(model={"id": str(other)}), root)
    run_all(job)
    assert statuses(job) == FROM_TRAIN


# Stale artifacts


def test_stale_data_before_the_asked_stage_is_refused_with_what_changed_and_what_to_run(
    root: Path, recipe: LoadRecipe, rows_file: Path
) -> None:
    write_jsonl(rows_file, make_rows(seed=2))
    before = state(root)
    with pytest.raises(FinetuneError) as caught:
        Job(recipe(model={"max_length": 16}), root, recipe_name="my.yaml").run(asked=True)
    assert str(caught.value) == (
        f"{root / 'data'} is stale: it was made from other inputs (changed: data.source.all.files, model.max_length). "
        "Run `finetune prepare my.yaml` first, or add --force to rebuild it now."
    )
    assert state(root) == before


def test_a_stale_run_before_the_asked_stage_is_refused(root: Path, recipe: LoadRecipe) -> None:
    job = Job(recipe(train={"learning_rate": 1e-4}), root, recipe_name="my.yaml")
    with pytest.raises(
        FinetuneError, match=r"run is stale: .*\(changed: train\.learning_rate\)\. Run `finetune train "
    ):
        job.run()


def test_the_asked_stage_replaces_its_own_stale_artifact(root: Path, recipe: LoadRecipe) -> None:
    job = Job(recipe(train={"learning_rate": 1e-4}), root)
    run = job.run(asked=True)
    assert statuses(job) == {"prepare": "skipped", "train": "done"}
    assert run.manifest["inputs"]["train"]["learning_rate"] == 1e-4


def test_force_rebuilds_stale_data_before_the_asked_stage(root: Path, recipe: LoadRecipe, rows_file: Path) -> None:
    write_jsonl(rows_file, make_rows(seed=2))
    job = Job(recipe(), root, rebuild_stale=True, force=True)
    job.run(asked=True)
    assert statuses(job) == {"prepare": "done", "train": "done"}


def test_force_does_the_asked_stage_again_and_only_that(root: Path, recipe: LoadRecipe) -> None:
    job = Job(recipe(), root, rebuild_stale=True, force=True)
    job.run(asked=True)
    assert statuses(job) == {"prepare": "skipped", "train": "done"}


def test_force_replaces_an_artifact_of_another_format_version(root: Path, recipe: LoadRecipe) -> None:
    manifest = json.loads((root / "data" / "manifest.json").read_text(encoding="utf-8"))
    write_json(root / "data" / "manifest.json", {**manifest, "format_version": 0})
    job = Job(recipe(), root, rebuild_stale=True, force=True)
    job.data(asked=True)
    assert statuses(job) == {"prepare": "done"}


def test_deleted_data_is_made_again_and_the_run_is_kept(root: Path, recipe: LoadRecipe) -> None:
    shutil.rmtree(root / "data")
    job = Job(recipe(), root)
    run_all(job)
    assert statuses(job) == {"prepare": "done", "train": "skipped", "eval": "skipped"}


def test_what_a_kill_between_two_renames_left_is_used(root: Path, recipe: LoadRecipe) -> None:
    shutil.copytree(root / "data", root / "data.old")
    (root / "data").rename(root / "data.partial")
    job = Job(recipe(), root)
    job.data(asked=True)
    assert statuses(job) == {"prepare": "skipped"}
    assert not (root / "data.partial").exists()
    assert not (root / "data.old").exists()


# Reports and gates


def test_new_gates_are_checked_against_the_stored_report_and_written_to_it(root: Path, recipe: LoadRecipe) -> None:
    job = Job(recipe(gates={"accuracy": ">= 0", "accuracy.low": "> 1"}), root)
    report = run_all(job)
    assert statuses(job) == ALL_SKIPPED
    assert [(gate["gate"], gate["holds"]) for gate in report["gates"]] == [
        ("accuracy >= 0", True),
        ("accuracy.low > 1", False),
    ]
    assert json.loads((root / "run" / "reports" / "test.json").read_text(encoding="utf-8")) == report


def test_a_report_that_was_cut_off_is_made_again(root: Path, recipe: LoadRecipe) -> None:
    (root / "run" / "reports" / "test.json").write_text('{"metrics": {', encoding="utf-8")
    job = Job(recipe(), root)
    run_all(job)
    assert statuses(job) == ONLY_EVAL


def test_a_missing_file_of_new_rows_is_named(root: Path, recipe: LoadRecipe, tmp_path: Path) -> None:
    job = Job(recipe(), root)
    with pytest.raises(FinetuneError, match=r"--data: expected a file of labelled rows, found nothing at .*new\.jsonl"):
        job.report(job.run(), source=tmp_path / "new.jsonl")


# Code from outside


@pytest.mark.parametrize("where", ["metrics", "gates", "early_stopping"])
def test_no_recipe_can_make_a_metric_run_its_code(root: Path, recipe: LoadRecipe, tmp_path: Path, where: str) -> None:
    module = tmp_path / "spy.py"
    module.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    sections: dict[str, Any] = {
        "metrics": {"metrics": [f"evaluate:{module}"]},
        "gates": {"gates": {f"evaluate:{module}": ">= 0"}},
        "early_stopping": {"train": {"early_stopping": {"metric": f"evaluate:{module}"}}},
    }[where]
    with pytest.raises(FinetuneError, match="add --allow-code"):
        run_all(Job(recipe(**sections), root))
    assert not (tmp_path / "ran").exists()


# Other


def test_quantizing_without_a_backend_says_which_there_are(root: Path, recipe: LoadRecipe) -> None:
    with pytest.raises(FinetuneError, match=r"add `quantize: NAME` \(known: onnx-int8"):
        Job(recipe(), root).require_backend()


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_run_is_found_by_its_folder_or_the_one_around_it(root: Path, inside: str) -> None:
    assert find_run(root / inside).folder == root / "run"


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing", "found nothing"), ("run/model", "found a folder without one"), ("data", "expected run of format 3")],
)
def test_what_is_no_run_is_refused(root: Path, path: str, message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        find_run(root / path)
