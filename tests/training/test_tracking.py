"""Trackers are told what the log says, once, whatever interrupts a training, and nobody else is told anything."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from finetune.artifacts import PreparedData, Run
from finetune.errors import FinetuneError, RecipeError
from finetune.fingerprints import run_inputs
from finetune.pipeline import Job
from finetune.prepare import prepare
from finetune.progress import Silent
from finetune.recipe import Recipe, load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from finetune.training.log import read_log
from finetune.training.trackers import others
from finetune.training.tracking import MAX_CHARACTERS, Trackers, configuration, values_of
from tests.conftest import ROOT, RecipeMaker, build_tiny_model, make_rows, write_jsonl

pytest.importorskip("tensorboard")
pytest.importorskip("mlflow")
pytest.importorskip("alembic")

CPU = Runtime("cpu", threads=1)
URI = "MLFLOW_TRACKING_URI"
Points = dict[str, list[tuple[int, float]]]

WATCHED = """
import json, socket, sys
asked = []
def watch(name):
    original = getattr(socket.socket, name)
    def watched(self, address):
        asked.append(str(address))
        raise OSError("no network in this test")
    setattr(socket.socket, name, watched)
watch("connect"); watch("connect_ex")
from finetune.cli import app
try:
    app(sys.argv[1:], prog_name="finetune")
except SystemExit as end:
    assert not end.code, end.code
import mlflow.telemetry
print(json.dumps({"asked": asked, "telemetry": mlflow.telemetry.get_telemetry_client() is not None}))
"""


def alone(script: str, *arguments: str | Path, folder: Path) -> dict[str, Any]:
    """Run Python with no variable that a library could take for a test or for continuous integration."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": matplotlib.get_cachedir(),
    }  # fmt: skip
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    return {**json.loads(last), "said": "\n".join(said) + done.stderr}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a training with both trackers did, as a user of the command line has it, and where it is."""
    folder = tmp_path_factory.mktemp("tracked runs #1 of 50%20")  # which URIs would write otherwise
    rows = write_jsonl(folder / "rows.jsonl", make_rows())
    recipe = {
        "name": "tiny", "task": "text-classification", "seed": 7,
        "data": {"source": str(rows), "columns": {"text": "body", "label": "intent"}, "near_duplicates": "off"},
        "model": {"id": str(build_tiny_model(folder / "model")), "max_length": 32},
        "train": {
            "max_steps": 6, "eval_every": 3, "batch_size": 8, "learning_rate": 5e-3, "ema": 0.9, "threads": 1,
            "trackers": ["tensorboard", {"name": "mlflow", "experiment": "messages of May"}],
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    found = alone(WATCHED, "train", folder / "recipe.yaml", "--quiet", folder=folder)
    return {**found, "folder": folder, "run": Run(folder / "outputs" / "tiny" / "run")}


def events(folder: Path) -> Points:
    """Return the points that TensorBoard draws."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {name: [(point.step, point.value) for point in found.Scalars(name)] for name in found.Tags()["scalars"]}


def mlflow_runs(uri: str) -> list[Any]:
    """Return MLflow's runs, the oldest first."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))


def history(uri: str, run: Any) -> Points:
    """Return the points of a run of MLflow's, in the order in which they came."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    found = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(point.step, point.value) for point in points] for name, points in found.items()}


def logged(run: Run) -> Points:
    """Return what `log.jsonl` says, written out by hand."""
    found: Points = {}
    for line in read_log(run.folder / "log.jsonl"):
        values = {}
        if "loss" in line:
            values = {f"train/{name}": line[name] for name in ("loss", "learning_rate", "gradient_norm")}
            values["train/tokens_per_second"] = line["tokens"] / line["seconds"]
        for group in {"validation", "average"} & line.keys():
            values |= {f"{group}/{name}": value for name, value in line[group].items()}
        if "restored_step" in line:
            values = {"restored_step": line["restored_step"]}
        for name, value in values.items():
            found.setdefault(name, []).append((line["step"], value))
    return found


def rounded(points: Points) -> Points:
    """Return points as single precision, which is what event files have."""
    return {name: [(step, float(np.float32(value))) for step, value in of] for name, of in points.items()}


def database(run: Run) -> str:
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(run.folder / "trackers" / "mlflow" / "mlflow.db")).render_as_string()


def test_tensorboard_has_every_number_of_the_log(told: dict[str, Any]) -> None:
    expected = logged(told["run"])
    assert {"train/loss", "validation/accuracy", "average/loss", "restored_step"} <= expected.keys()
    assert [step for step, _ in expected["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert events(told["run"].folder / "trackers" / "tensorboard") == rounded(expected)


def test_mlflow_has_every_number_of_the_log_and_the_recipe(told: dict[str, Any]) -> None:
    [run] = mlflow_runs(database(told["run"]))
    assert history(database(told["run"]), run) == logged(told["run"])
    assert run.info.status == "FINISHED"
    settings = configuration(load_recipe(told["folder"] / "recipe.yaml"))
    assert run.data.params == {name: str(value) for name, value in settings.items()}
    assert (settings["train.learning_rate"], settings["train.optimizer.betas"]) == (5e-3, "[0.9, 0.999]")


def test_nothing_leaves_the_machine_and_nothing_is_written_elsewhere(told: dict[str, Any]) -> None:
    assert told["asked"] == []
    assert not told["telemetry"]
    assert {path.name for path in told["folder"].iterdir()} == {"rows.jsonl", "model", "recipe.yaml", "outputs"}
    assert "mlflow" not in told["said"].lower(), "what the library says of its database is nothing to users"


def test_mlflow_would_send_telemetry_if_it_were_not_switched_off(tmp_path: Path) -> None:
    script = WATCHED[: WATCHED.index("from finetune.cli")] + WATCHED[WATCHED.index("import mlflow.telemetry") :]
    assert alone(script, folder=tmp_path)["telemetry"]


def test_trackers_make_no_run_stale_or_damaged(told: dict[str, Any], make_recipe: RecipeMaker) -> None:
    assert not [name for name in told["run"].manifest["files"] if name.startswith("trackers")]
    with_trackers = load_recipe(make_recipe(train={"trackers": ["tensorboard"]}))
    without = load_recipe(make_recipe())
    assert without.train.trackers == ()
    assert run_inputs(with_trackers, "data") == run_inputs(without, "data")


@pytest.fixture
def store(told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an MLflow store with one run in it: making one takes seconds."""
    monkeypatch.delenv(URI, raising=False)
    shutil.copy(told["run"].folder / "trackers" / "mlflow" / "mlflow.db", tmp_path / "mlflow.db")
    yield f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert URI not in os.environ, "the next training would take it for the user's"


@pytest.fixture
def data(make_recipe: RecipeMaker, tmp_path: Path) -> PreparedData:
    return prepare(load_recipe(make_recipe()), tmp_path / "data")


class Killed(BaseException):
    """Stands for SIGKILL: no checkpoint is saved."""


class Stopping(Silent):
    """A listener that stops a training after a step, and remembers what it was told."""

    def __init__(self, after: int = 0, by: type[BaseException] = Killed) -> None:
        self.after, self.by, self.notes = after, by, list[str]()

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextlib.contextmanager
    def bar(self, title: str, total: int | None, start: int = 0) -> Iterator[Any]:
        self.done = start
        yield self

    def advance(self, amount: int, text: str = "") -> None:
        self.done += amount
        if self.done == self.after:
            raise self.by


def settings(*trackers: Any, **others: Any) -> dict[str, Any]:
    return {
        "max_steps": 10, "eval_every": 4, "batch_size": 8, "learning_rate": 5e-3, "threads": 1,
        "trackers": list(trackers), **others,
    }  # fmt: skip


def test_a_training_that_goes_on_tells_each_step_once(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData, store: str
) -> None:
    places = [
        {"name": "tensorboard", "folder": str(tmp_path / "events")},
        {"name": "mlflow", "tracking_uri": store},
    ]
    recipe = load_recipe(make_recipe(train=settings(*places)))
    ends = [(7, Killed, "FAILED"), (9, KeyboardInterrupt, "KILLED")]
    for after, by, status in ends:
        with pytest.raises(by):
            train(recipe, data, tmp_path / "run", runtime=CPU, progress=Stopping(after, by))
        assert mlflow_runs(store)[-1].info.status == status
    run = train(recipe, data, tmp_path / "run", runtime=CPU)
    [_, tracked] = mlflow_runs(store)
    assert tracked.info.status == "FINISHED"
    told, expected = history(store, tracked), logged(run)
    speeds = "train/tokens_per_second"  # steps 5 to 7 were taken twice, and not in the same time
    assert [step for step, _ in told.pop(speeds)] == [step for step, _ in expected[speeds]] == [*range(1, 11)]
    assert told == {name: points for name, points in expected.items() if name != speeds}
    [place] = (tmp_path / "events").iterdir()
    assert events(place) == rounded(expected)


def test_a_changed_recipe_begins_a_run_of_its_own(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData, store: str
) -> None:
    tracker = {"name": "mlflow", "tracking_uri": store}
    with pytest.raises(Killed):
        recipe = load_recipe(make_recipe(train=settings(tracker)))
        train(recipe, data, tmp_path / "run", runtime=CPU, progress=Stopping(6))
    recipe = load_recipe(make_recipe(train=settings(tracker, learning_rate=1e-3)))
    train(recipe, data, tmp_path / "run", runtime=CPU, resume=True, force=True)
    [_, first, second] = mlflow_runs(store)
    assert [run.data.params["train.learning_rate"] for run in (first, second)] == ["0.005", "0.001"]
    assert [step for step, _ in history(store, second)["train/loss"]] == [5, 6, 7, 8, 9, 10]


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.tracking import TensorBoardTracker

    original = TensorBoardTracker.log

    def log(self: Any, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        if step == 3:
            raise OSError("no space left")
        original(self, values, step, **options)

    monkeypatch.setattr(TensorBoardTracker, "log", log)
    progress = Stopping()
    recipe = load_recipe(make_recipe(train=settings("tensorboard")))
    run = train(recipe, data, tmp_path / "run", runtime=CPU, progress=progress)
    assert run.manifest["last_step"] == 10
    [note] = [note for note in progress.notes if "tracker" in note]
    assert "tensorboard failed at step 3 (OSError: no space left)" in note
    assert [step for step, _ in events(run.folder / "trackers" / "tensorboard")["train/loss"]] == [1, 2]


def test_a_tracker_that_cannot_start_ends_the_training_before_its_first_step(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv(URI, "http://someone:secret@127.0.0.1:9")
    recipe = load_recipe(make_recipe(train=settings("tensorboard", "mlflow")))
    with pytest.raises(
        FinetuneError, match=r"train.trackers: mlflow could not start \(MlflowException: .*127.0.0.1"
    ) as told:
        train(recipe, data, tmp_path / "run", runtime=CPU)
    assert "secret" not in str(told.value)
    assert not (tmp_path / "run.partial").exists()
    assert os.environ[URI] == "http://someone:secret@127.0.0.1:9"


def test_a_database_in_no_folder_is_refused_at_once(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    tracker = {"name": "mlflow", "tracking_uri": f"sqlite:///{tmp_path}/nowhere/mlflow.db"}
    recipe = load_recipe(make_recipe(train=settings(tracker)))
    with (
        pytest.raises(FinetuneError, match=r"expected a folder for its database, found none at .*nowhere$"),
        Trackers(recipe, tmp_path, 0, Silent()),
    ):
        pass


def test_an_open_run_of_mlflow_is_refused_and_left_open(
    make_recipe: RecipeMaker, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri(store)
    try:
        with mlflow.start_run() as run:
            recipe = load_recipe(make_recipe(train=settings("mlflow")))
            with (
                pytest.raises(FinetuneError, match=run.info.run_id),
                Trackers(recipe, tmp_path, 0, Silent()),
            ):
                pass
            assert mlflow.active_run() is not None
    finally:
        mlflow.set_tracking_uri(None)


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_prepared(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    lacking = {"wandb", "alembic"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in lacking else there(name, *more)
    )
    monkeypatch.delenv(URI, raising=False)
    recipe = load_recipe(make_recipe(train=settings("wandb", "mlflow")))
    with pytest.raises(FinetuneError, match=r"none for wandb \(lacks wandb\), mlflow \(lacks alembic\)") as told:
        Job(recipe, tmp_path / "out", CPU).run(asked=True)
    assert "pip install wandb 'finetune-toolkit[mlflow]'" in str(told.value)
    assert not (tmp_path / "out").exists()
    server = {"name": "mlflow", "tracking_uri": "https://host"}  # whose database it is, needs the packages for it
    assert load_recipe(make_recipe(train=settings(server))).train.trackers
    with pytest.raises(FinetuneError, match=r"none for wandb \(lacks wandb\)\. "):
        Job(load_recipe(make_recipe(train=settings("wandb", server))), tmp_path / "out", CPU).run(asked=True)


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        (["tensorbord"], "unknown tracker 'tensorbord', did you mean tensorboard"),
        (["tensorboard", {"name": "tensorboard"}], "expected each tracker once, found tensorboard several times"),
        ([{"name": "mlflow", "experimnt": "x"}], "unknown setting, did you mean experiment"),
        ([{"name": "mlflow", "tracking_uri": "./mlruns"}], "expected a server .* or a database"),
        ([{"name": "mlflow", "tracking_uri": "https://me:secret@host"}], "expected a URI without user"),
        ([{"name": "mlflow", "tracking_uri": "https://host?token=secret"}], "expected a URI without user"),
    ],
)
def test_wrong_trackers_are_refused_by_the_recipe(make_recipe: RecipeMaker, trackers: list[Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as told:
        load_recipe(make_recipe(train={"trackers": trackers}))
    assert "secret" not in str(told.value)


def test_a_folder_of_event_files_is_relative_to_the_recipe(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    [part] = load_recipe(make_recipe(train={"trackers": [{"name": "tensorboard", "folder": "logs"}]})).train.trackers
    assert part.options == {"folder": str(tmp_path / "logs")}


def test_what_trackers_are_told_of_the_recipe_is_plain_and_without_secrets(make_recipe: RecipeMaker) -> None:
    source = "https://me:hidden@host/rows.csv?token=hidden"
    labels = [f"label {number}" for number in range(500)]
    recipe: Recipe = load_recipe(
        make_recipe(
            data={"source": source, "label_map": {"ä, b": "c"}, "labels": labels}, train={"trackers": ["tensorboard"]}
        )
    )
    told = configuration(recipe)
    assert {type(value) for value in told.values()} <= {str, int, float, bool}
    assert "hidden" not in json.dumps(told)
    assert (told["data.source"], told["data.label_map"]) == ("https://host/rows.csv", '{"ä, b": "c"}')
    assert len(str(told["data.labels"])) == MAX_CHARACTERS
    assert not [name for name in told if "trackers" in name]


def test_scores_that_are_not_defined_are_left_out_and_names_are_plain() -> None:
    line = {"step": 3, "epoch": 0, "validation": {"loss": 0.5, "ndcg@10": 0.25, "spearman": None}, "best": True}
    assert values_of(line) == {"validation/loss": 0.5, "validation/ndcg_10": 0.25}
    mean = {"step": 9, "averaged_steps": [3, 6], "average": {"loss": 0.5}, "kept": False}
    assert values_of(mean) == {"average_best/loss": 0.5}


def test_every_tracker_of_accelerate_has_its_name() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert {*others.NAMES, "tensorboard", "mlflow"} == set(LOGGER_TYPE_TO_CLASS)


def test_a_tracker_by_name_is_started_told_and_ended_through_accelerate(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import tracking

    calls: list[tuple[Any, ...]] = []

    class Stub:
        requires_logging_directory = True

        def __init__(self, *arguments: Any) -> None:
            calls.append(("opened", *arguments))

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments, **options: calls.append((name, *arguments, *options.values()))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "aim", Stub)
    recipe = load_recipe(make_recipe(train={"trackers": ["aim"]}))
    with Trackers(recipe, tmp_path, 0, Silent()) as trackers:
        trackers.log({"step": 2, "epoch": 0, "validation": {"loss": 0.5}, "best": True})
        trackers.log({"step": 2, "something": "else"})
    assert calls == [
        ("opened", "tiny", tmp_path / "trackers" / "aim"),
        ("start",),
        ("store_init_configuration", configuration(recipe)),
        ("log", {"validation/loss": 0.5}, 2),
        ("finish",),
    ]
