"""When a training ends: no better score for a while, or a loss that is lost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from finetune.errors import FinetuneError
from finetune.recipe import EarlyStopping
from finetune.training.checkpoints import TrainingState
from finetune.training.curves import higher_is_better

# A loss has exploded that stays above so many times that of the first steps for so many steps: far more than a
# warm-up, a new head or a few odd batches do
FIRST_STEPS, TIMES, STREAK = 10, 10.0, 20


@dataclass
class Patience:
    """Which score counts, which was best, and whether to stop."""

    settings: EarlyStopping

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is better."""
        return higher_is_better(self.settings.metric)

    def better(self, score: float, other: float) -> bool:
        """Tell whether a score is better than another."""
        return score > other if self.higher_is_better else score < other

    def update(self, state: TrainingState, score: float) -> TrainingState:
        """Return the state after an evaluation; its `best_step` is this step if the score is the best so far."""
        if math.isnan(score):
            raise FinetuneError(
                f"early stopping: expected a number as {self.settings.metric}, found NaN at step {state.step}"
            )
        sign = 1.0 if self.higher_is_better else -1.0
        best = state.best_score
        if best is None or sign * (score - best) > self.settings.min_delta:
            return replace(state, best_score=score, best_step=state.step, evaluations_without_gain=0)
        waited = state.evaluations_without_gain + 1
        if self.settings.patience is not None and waited >= self.settings.patience:
            reason = f"{self.settings.metric} did not improve in {waited} evaluations"
            return replace(state, evaluations_without_gain=waited, stopped_because=reason)
        return replace(state, evaluations_without_gain=waited)


@dataclass
class Explosion:
    """Watches the training losses, those before a resumption among them."""

    _first: list[float] = field(default_factory=list)
    _streak: int = 0

    def see(self, losses: Iterable[float]) -> Explosion:
        """Take the losses of the next steps."""
        for loss in losses:
            if len(self._first) < FIRST_STEPS:
                self._first.append(abs(loss))
            self._streak = self._streak + 1 if loss > TIMES * self._usual else 0
        return self

    @property
    def _usual(self) -> float:
        return sum(self._first) / len(self._first)

    @property
    def found(self) -> str:
        """What is the matter, if something is."""
        if self._streak < STREAK:
            return ""
        return (
            f"the loss has been above {TIMES * self._usual:.3g} for {STREAK} steps, {TIMES:g} times that of the first "
            f"{len(self._first)} ({self._usual:.3g})"
        )
