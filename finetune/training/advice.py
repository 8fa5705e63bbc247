"""What to change when learning curves show something: sentences with the recipe's settings and their values."""

from __future__ import annotations

from finetune.recipe import Recipe
from finetune.training.curves import LOSS, Curve, Scores

ENOUGH_EVALUATIONS = 8


def _length(recipe: Recipe) -> str:
    """Return the setting that says how long training is, with its value."""
    train = recipe.train
    return f"train.max_steps (now {train.max_steps:,})" if train.max_steps else f"train.epochs (now {train.epochs})"


def evaluate_more(curve: Curve, recipe: Recipe, *, too_few: bool) -> tuple[str, ...]:
    """Return what to do to have steps enough, and evaluations if they are `too_few`."""
    steps = curve.steps[-1] if curve.steps else 0
    every = max(1, steps // ENOUGH_EVALUATIONS)
    evaluations = (f"set train.eval_every: {every}, for {steps // every} evaluations",) if too_few else ()
    return evaluations if curve.smoothed is not None else (*evaluations, f"raise {_length(recipe)}")


def longer(curve: Curve, recipe: Recipe) -> tuple[str, ...]:
    """Return what to do when more training would help."""
    stopping = recipe.train.early_stopping
    if stopping.patience is not None and "did not improve" in curve.because:
        return (f"raise train.early_stopping.patience (now {stopping.patience})",)
    return (f"raise {_length(recipe)}", f"or raise train.learning_rate (now {recipe.train.learning_rate:g})")


def less_fit(curve: Curve, recipe: Recipe, step: int) -> tuple[str, ...]:
    """Return what to do when the training rows are learned by heart."""
    train, change = recipe.train, []
    if 0 < curve.best_step <= step:
        change.append(f"the model of step {curve.best_step:,} was kept, so the steps since cost time alone")
    if train.early_stopping.patience is None:
        change.append("set train.early_stopping.patience to stop sooner")
    change += ["add training rows, or data.augment", "raise model.dropout or the weight decay of train.optimizer"]
    if recipe.adapter is None and recipe.freeze.name == "none" and recipe.model.scratch is None:
        change.append("train less of the model (freeze or adapter)")
    return (*change, f"lower train.learning_rate (now {train.learning_rate:g}) or {_length(recipe)}")


def surer_than_right(curve: Curve, metric: Scores) -> tuple[str, ...]:
    """Return what to do when the answers still get better and only their probabilities worse."""
    kept = f"the model of step {curve.best_step:,} was kept, by its {curve.decisive}"
    if curve.decisive == LOSS:
        return (
            kept,
            f"where answers count and not their probabilities, set train.early_stopping.metric: {metric.name}",
        )
    return (kept, "where the probabilities of its answers count, set train.early_stopping.metric: loss")


def calmer(curve: Curve, recipe: Recipe, low: int, high: int) -> tuple[str, ...]:
    """Return what to do when the training loss rises, from its step number `low` to number `high`."""
    train = recipe.train
    rates = curve.learning_rates[low], curve.learning_rates[high]
    change = [f"lower train.learning_rate (now {train.learning_rate:g})"]
    if rates[1] > rates[0]:
        change.append(f"let train.schedule rise more slowly: the rate went from {rates[0]:.2g} to {rates[1]:.2g} there")
    if not any(train.schedule.options.get(name) for name in ("warmup_steps", "warmup_ratio")):
        change.append(f"warm up: train.schedule: {{name: {train.schedule.name}, warmup_ratio: 0.1}}")
    if train.max_gradient_norm is None:
        change.append("set train.max_gradient_norm: 1.0")
    return (*change, f"raise train.batch_size (now {train.batch_size}) or train.gradient_accumulation")


def fit_more(recipe: Recipe) -> tuple[str, ...]:
    """Return what to do when hardly anything is learned."""
    train = recipe.train
    change = [f"raise train.learning_rate (now {train.learning_rate:g}) or {_length(recipe)}"]
    if recipe.adapter is not None:
        change.append(f"raise adapter.rank (now {recipe.adapter.rank})")
    elif recipe.freeze.name != "none":
        change.append(f"train more of the model than freeze: {recipe.freeze.name} does")
    return (*change, "look whether what is to be learned follows from the texts at all")
