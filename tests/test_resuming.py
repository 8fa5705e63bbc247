"""Trainings that are interrupted: what is saved, what goes on, and that the result is as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune import train as stage
from finetune.artifacts import PreparedData, Run, partial_folder
from finetune.errors import FinetuneError, Terminated
from finetune.models.loading import weights_digest
from finetune.prepare import prepare
from finetune.recipe import Recipe, load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from finetune.training.checkpoints import latest_checkpoint, read_state
from finetune.training.log import read_log
from tests.conftest import RecipeMaker

CPU = Runtime("cpu", threads=1)
RecipeOf = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Let Ctrl-C be heard, also where these tests run in the background, for which shells ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def recipe_of(make_recipe: RecipeMaker) -> RecipeOf:
    return lambda **settings: load_recipe(make_recipe(train=settings))


@pytest.fixture
def data(make_recipe: RecipeMaker, tmp_path: Path) -> PreparedData:
    return prepare(load_recipe(make_recipe()), tmp_path / "data")


class Notes:
    """Keeps what a training says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)

    def bar(self, *arguments: Any, **named: Any) -> Any:
        from finetune.progress import Silent

        return Silent().bar(*arguments, **named)


def steps_of(run: Run) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key != "seconds"} for line in read_log(run.folder / "log.jsonl")
    ]


def logged_steps(folder: Path) -> int:
    log = partial_folder(folder) / "log.jsonl"
    return log.read_text().count("learning_rate") if log.is_file() else 0


def test_twenty_kills_over_a_run_change_nothing(recipe_of: RecipeOf, data: PreparedData, tmp_path: Path) -> None:
    """Each kill comes at a random moment, at the earliest some steps after the training went on."""
    settings = {"ema": 0.9, "average_best": 3, "penalty": {"l2": 0.01, "around": "start"}, "keep_checkpoints": 3}
    recipe = recipe_of(max_steps=90, eval_every=7, save_every=2, **settings)
    whole = train(recipe, data, tmp_path / "whole", runtime=CPU)
    draw, kills = random.Random(11), 0
    while kills < 20:
        before, wanted = logged_steps(tmp_path / "killed"), draw.randint(1, 4)
        child = os.fork()
        if child == 0:
            train(recipe, data, tmp_path / "killed", runtime=CPU)
            os._exit(0)
        while logged_steps(tmp_path / "killed") < before + wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "the run was over before"
        kills += 1
    run = train(recipe, data, tmp_path / "killed", runtime=CPU)
    assert weights_digest(run.model_folder) == weights_digest(whole.model_folder)
    assert steps_of(run) == steps_of(whole)
    assert run.manifest["metrics"] == whole.manifest["metrics"]


@pytest.mark.parametrize(("number", "meaning"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize("moment", ["in a step", "in an evaluation"])
def test_a_signal_saves_what_there_is_and_nothing_is_done_twice(
    recipe_of: RecipeOf,
    data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    meaning: type[BaseException],
    moment: str,
) -> None:
    recipe = recipe_of(max_steps=8, eval_every=4, save_every=100)
    whole = train(recipe, data, tmp_path / "whole", runtime=CPU)
    name = {"in a step": "training_batch", "in an evaluation": "score_batch"}[moment]
    place: Any = __import__(f"finetune.{'training.loop' if moment == 'in a step' else 'inference'}", fromlist=[name])
    true, calls = getattr(place, name), [0]

    def struck(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == (6 if moment == "in a step" else 1):
            os.kill(os.getpid(), number)
        return true(*arguments, **named)

    notes = Notes()
    with monkeypatch.context() as patched:
        patched.setattr(place, name, struck)
        with pytest.raises(meaning):
            train(recipe, data, tmp_path / "run", runtime=CPU, progress=notes)
    checkpoint = latest_checkpoint(partial_folder(tmp_path / "run") / "checkpoints")
    assert checkpoint is not None
    state = read_state(checkpoint)
    assert (state.step, state.unscored) == ((6, False) if moment == "in a step" else (4, True))
    assert any("stopping after this step" in said for said in notes.said) == (moment == "in a step")
    run = train(recipe, data, tmp_path / "run", runtime=CPU)
    assert steps_of(run) == steps_of(whole)
    assert weights_digest(run.model_folder) == weights_digest(whole.model_folder)


def test_a_second_signal_does_not_wait(
    recipe_of: RecipeOf, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.training import loop

    true = loop.training_batch

    def struck(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return true(*arguments)

    monkeypatch.setattr(loop, "training_batch", struck)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_of(max_steps=8, eval_every=4), data, tmp_path / "run", runtime=CPU)
    assert not partial_folder(tmp_path / "run").exists(), "the step was half-done: nothing could be saved"


def test_signals_mean_what_they_did_before_when_training_is_over(
    recipe_of: RecipeOf, data: PreparedData, tmp_path: Path
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(recipe_of(max_steps=2), data, tmp_path / "run", runtime=CPU)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# ---------------------------------------------------------------------------------------------------------------------
# A changed recipe
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(
    recipe_of: RecipeOf, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Return a function that leaves a run that was interrupted after step 6."""

    def interrupt(**settings: Any) -> None:
        true = stage._Training._save

        def stop(training: Any, log: Any) -> None:
            true(training, log)
            if training.state.step == 6:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(stage._Training, "_save", stop)
            with pytest.raises(KeyboardInterrupt):
                train(recipe_of(max_steps=12, eval_every=3, **settings), data, tmp_path / "run", runtime=CPU)

    return interrupt


def test_a_longer_patience_or_training_goes_on_where_it_changes_no_step(
    recipe_of: RecipeOf, data: PreparedData, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    patient = {"early_stopping": {"patience": 9}, "schedule": {"name": "constant", "warmup_steps": 2}}
    interrupted(schedule=patient["schedule"], early_stopping={"patience": 5})
    longer, notes = recipe_of(max_steps=15, eval_every=3, **patient), Notes()
    run = train(longer, data, tmp_path / "run", runtime=CPU, progress=notes)
    assert "going on with a changed recipe: train.early_stopping.patience, train.max_steps" in notes.said
    whole = train(longer, data, tmp_path / "whole", runtime=CPU)
    assert weights_digest(run.model_folder) == weights_digest(whole.model_folder)
    assert steps_of(run) == steps_of(whole)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"max_steps": 15}, "train.max_steps"),  # the schedule falls to zero at the end
        ({"max_steps": 12, "learning_rate": 1e-3}, "train.learning_rate"),
        ({"max_steps": 12, "early_stopping": {"metric": "accuracy"}}, "train.early_stopping.metric"),
    ],
)
def test_what_would_change_the_steps_is_refused_unless_the_user_insists(
    recipe_of: RecipeOf,
    data: PreparedData,
    tmp_path: Path,
    interrupted: Callable[..., None],
    settings: dict[str, Any],
    changed: str,
) -> None:
    interrupted()
    other = recipe_of(eval_every=3, **settings)
    for resume in (False, True):
        with pytest.raises(
            FinetuneError, match=rf"\(changed: {changed}\), at step 6\. .*add --resume --force to go on"
        ):
            train(other, data, tmp_path / "run", runtime=CPU, resume=resume)
    notes = Notes()
    run = train(other, data, tmp_path / "run", runtime=CPU, resume=True, force=True, progress=notes)
    assert f"going on with a changed recipe: {changed}" in notes.said
    assert "going on from the checkpoint of step 6" in " ".join(notes.said)
    assert run.recipe.train == other.train
    assert [line["step"] for line in steps_of(run) if "loss" in line] == list(range(1, settings["max_steps"] + 1))


@pytest.mark.parametrize(
    ("settings", "changed"), [({"optimizer": "sgd"}, "train.optimizer.name"), ({"ema": 0.9}, "train.ema")]
)
def test_what_no_checkpoint_fits_is_refused_even_then(
    recipe_of: RecipeOf,
    data: PreparedData,
    tmp_path: Path,
    interrupted: Callable[..., None],
    settings: dict[str, Any],
    changed: str,
) -> None:
    interrupted()
    other = recipe_of(max_steps=12, eval_every=3, **settings)
    with pytest.raises(FinetuneError, match=rf"cannot go on with another .*{changed}"):
        train(other, data, tmp_path / "run", runtime=CPU, resume=True, force=True)
    with pytest.raises(FinetuneError, match="add --force to throw it away") as caught:
        train(other, data, tmp_path / "run", runtime=CPU)
    assert "--resume --force" not in str(caught.value)
    run = train(other, data, tmp_path / "run", runtime=CPU, force=True)
    assert json.loads((run.folder / "log.jsonl").read_text().splitlines()[0])["step"] == 1


def test_force_alone_starts_again(
    recipe_of: RecipeOf, data: PreparedData, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    interrupted()
    notes = Notes()
    train(recipe_of(max_steps=12, eval_every=3), data, tmp_path / "run", runtime=CPU, force=True, progress=notes)
    assert not any("going on" in said for said in notes.said)
