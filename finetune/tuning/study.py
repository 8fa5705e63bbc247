"""The study: Optuna's SQLite file, touched under a lock: several processes can share it, and any may be killed."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError
from finetune.space import Range, Setting, TuneSection, label

if TYPE_CHECKING:
    import optuna

NAME = "tune"
STUDY = "study.db"
MAX_DEATHS = 3
# What Optuna calls the states of trials, and what we do
STATES = {
    "RUNNING": "unfinished",
    "WAITING": "unfinished",
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
}


def import_optuna() -> Any:
    """Return Optuna, silenced: what is worth saying, we say. Raises FinetuneError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise FinetuneError("tune needs the library optuna: pip install 'finetune-toolkit[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextlib.contextmanager
def quiet_optuna() -> Iterator[Any]:
    """Give Optuna, its warnings of experimental features left out."""
    optuna = import_optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield optuna


@dataclass(frozen=True)
class Trial:
    """A trial that this process works on: `lock` is held as long as it does, and goes with the process."""

    number: int
    values: dict[str, Any]
    resumed: bool
    handle: optuna.trial.Trial
    lock: Any


@dataclass(frozen=True)
class Outcome:
    """What is known of a trial; its score is the best of its evaluations, or, if it was pruned, the last."""

    number: int
    state: str
    values: dict[str, Any]
    score: float | None
    steps: int
    evaluations: int
    seconds: float
    failure: str

    def as_json(self) -> dict[str, Any]:
        """Return it as a report keeps it."""
        return {**vars(self), "seconds": round(self.seconds, 2)}


class Study:
    """The trials of a search, in a folder: each has a number, from 0, and is begun, judged and ended here."""

    def __init__(self, folder: Path, settings: TuneSection, *, seed: int, higher_is_better: bool) -> None:
        """Open the study of a folder, or make one; `seed` decides all that is drawn."""
        self.folder, self.settings, self.seed, self.higher_is_better = folder, settings, seed, higher_is_better
        from filelock import FileLock

        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / f".{STUDY}.lock")
        optuna = import_optuna()
        with self.locked():
            self.study = optuna.create_study(
                storage=f"sqlite:///{(folder / STUDY).resolve()}",
                study_name=NAME,
                direction="maximize" if higher_is_better else "minimize",
                pruner=self._pruner(),
                load_if_exists=True,
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes off the study; SQLite alone does not promise what reading and then writing needs."""
        with self._lock:
            yield

    def _pruner(self) -> Any:
        pruners = import_optuna().pruners
        settings = self.settings.pruning
        if settings.name == "none":
            return pruners.NopPruner()
        return pruners.SuccessiveHalvingPruner(min_resource=settings.first, reduction_factor=settings.factor)

    def _sampler(self, number: int) -> Any:
        """Return what draws a trial's values: seeded by its number, so that a search goes on as if never interrupted.

        TPE is the multivariate one of Optuna (Bergstra et al. 2011; Falkner et al. 2018), behind ten random trials.
        """
        samplers = import_optuna().samplers
        digest = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
        kind = samplers.TPESampler if self.settings.search == "tpe" else samplers.RandomSampler
        return kind(seed=int.from_bytes(digest[:4], "little"))

    def begin(self) -> Trial | None:
        """Return the next trial: one that was interrupted, else a new one; None when all have been begun."""
        with self.locked(), quiet_optuna():
            for found in self._trials("RUNNING"):
                if trial := self._take_over(found):
                    return trial
            begun = len(self._trials("RUNNING", "COMPLETE", "PRUNED", "FAIL"))
            if begun >= self.settings.planned:
                return None
            lock = self._lock_of(begun)
            lock.acquire()
            return self._ask(begun, lock)

    def _ask(self, number: int, lock: Any) -> Trial:
        if self.settings.search == "grid" and not self._trials("WAITING"):
            values = next(values for index, values in enumerate(self.settings.grid()) if index == number)
            self.study.enqueue_trial({name: label(value) for name, value in values.items()})
        self.study.sampler = self._sampler(number)
        handle = self.study.ask()
        assert handle.number == number
        return self._opened(handle, lock, resumed=False)

    def _take_over(self, found: optuna.trial.FrozenTrial) -> Trial | None:
        """Return a trial whose process is gone; None if the process is there, or was killed too often."""
        from filelock import Timeout

        lock = self._lock_of(found.number)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        if found.user_attrs.get("deaths", 0) >= MAX_DEATHS:
            self._fail(found.number, f"killed {MAX_DEATHS} times while it was trained, perhaps for want of memory")
            lock.release()
            return None
        self.study.sampler = self._sampler(found.number)
        handle = import_optuna().trial.Trial(self.study, found._trial_id)
        return self._opened(handle, lock, resumed=True)

    def _opened(self, handle: optuna.trial.Trial, lock: Any, *, resumed: bool) -> Trial:
        values = {name: _suggest(handle, name, setting) for name, setting in self.settings.space.items()}
        # taken back when the process can say that it ends
        handle.set_user_attr("deaths", handle.user_attrs.get("deaths", 0) + 1)
        return Trial(handle.number, values, resumed, handle, lock)

    def _lock_of(self, number: int) -> Any:
        from filelock import FileLock

        folder = self.trial_folder(number)
        folder.parent.mkdir(exist_ok=True)
        return FileLock(folder.with_name(f".{folder.name}.lock"))

    def trial_folder(self, number: int) -> Path:
        """Return where a trial's recipe, log and, if it is the best, run are."""
        return self.folder / "trials" / f"{number:04d}"

    def goes_on(self, trial: Trial, step: int, score: float) -> bool:
        """Keep the score of an evaluation; return whether the trial is to go on.

        Evaluations are what trials are compared by, not steps, of which an epoch has more if batches are smaller.
        A trial that goes on from a checkpoint repeats what it said, and gets the same answers.
        """
        with self.locked(), quiet_optuna():
            steps = trial.handle.user_attrs.get("evaluated", [])
            if step not in steps:
                steps = [*steps, step]
                trial.handle.set_user_attr("evaluated", steps)
                trial.handle.report(score, len(steps))
                if trial.handle.should_prune():
                    trial.handle.set_user_attr("pruned_at", step)
            return self.pruned_at(trial) != step

    def pruned_at(self, trial: Trial) -> int | None:
        """Return the step at which a trial was ended for not being good enough, if it was."""
        return trial.handle.user_attrs.get("pruned_at")

    def end(self, trial: Trial, *, score: float | None, steps: int, seconds: float, failure: str = "") -> None:
        """Record how a trial ended: with a score, pruned without one, or failed; then let go of it."""
        from optuna.trial import TrialState

        with self.locked(), quiet_optuna():
            trial.handle.set_user_attr("steps", steps)
            self._add_seconds(trial, seconds)
            if failure:
                self._fail(trial.number, failure)
            elif score is None:
                self.study.tell(trial.number, state=TrialState.PRUNED)
            else:
                self.study.tell(trial.number, score)
        trial.lock.release()

    def interrupt(self, trial: Trial, seconds: float) -> None:
        """Let go of a trial that is to go on another time: its process was told to end, and nothing killed it."""
        with self.locked(), quiet_optuna():
            self._add_seconds(trial, seconds)
            trial.handle.set_user_attr("deaths", trial.handle.user_attrs["deaths"] - 1)
        trial.lock.release()

    def _add_seconds(self, trial: Trial, seconds: float) -> None:
        trial.handle.set_user_attr("seconds", trial.handle.user_attrs.get("seconds", 0.0) + seconds)

    def _fail(self, number: int, message: str) -> None:
        from optuna.trial import TrialState

        found = next(trial for trial in self.study.get_trials(deepcopy=False) if trial.number == number)
        self.study._storage.set_trial_user_attr(found._trial_id, "failure", message)
        self.study.tell(number, state=TrialState.FAIL)

    def _trials(self, *states: str) -> Sequence[optuna.trial.FrozenTrial]:
        return [found for found in self.study.get_trials(deepcopy=False) if found.state.name in states]

    def outcomes(self) -> list[Outcome]:
        """Return what is known of all trials, in the order of their numbers."""
        with self.locked():
            return [self._outcome(found) for found in self.study.get_trials(deepcopy=False)]

    def _outcome(self, found: optuna.trial.FrozenTrial) -> Outcome:
        attributes = found.user_attrs
        return Outcome(
            number=found.number,
            state=STATES[found.state.name],
            values=values_of(self.settings.space, found.params),
            score=found.value if found.state.name in ("COMPLETE", "PRUNED") else None,
            steps=attributes.get("steps", 0),
            # of the last evaluation nobody asks whether to go on
            evaluations=len(attributes.get("evaluated", [])) + (found.state.name == "COMPLETE"),
            seconds=attributes.get("seconds", 0.0),
            failure=attributes.get("failure", ""),
        )

    def best(self) -> Outcome | None:
        """Return the finished trial of the best score, of several the first."""
        sign = -1.0 if self.higher_is_better else 1.0
        finished = [found for found in self.outcomes() if found.state == "finished" and found.score is not None]
        return min(finished, key=lambda found: (sign * (found.score or 0.0), found.number), default=None)


def _suggest(handle: optuna.trial.Trial, name: str, setting: Setting) -> Any:
    """Return a trial's value of a setting: drawn now, or as it was drawn before."""
    if isinstance(setting, Range):
        suggest = handle.suggest_int if setting.whole else handle.suggest_float
        step = {} if setting.step is None else {"step": setting.step}
        return suggest(name, setting.low, setting.high, log=setting.log, **step)  # type: ignore[arg-type]
    handle.suggest_categorical(name, [label(value) for value in setting])
    return values_of({name: setting}, handle.params)[name]


def values_of(space: Mapping[str, Setting], labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that Optuna's labels stand for."""
    found = {}
    for name, setting in space.items():
        if name not in labels:  # a trial that was killed while its values were drawn
            continue
        value = labels[name]
        if not isinstance(setting, Range):
            value = setting[[label(item) for item in setting].index(value)]
        found[name] = value
    return found
