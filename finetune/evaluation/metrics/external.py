"""Metrics of the evaluate library, which are code from outside."""

from __future__ import annotations

import importlib
import numbers
from typing import Any

from finetune.errors import FinetuneError
from finetune.registry import metrics


@metrics.register("evaluate:", of=("label", "labels", "numbers"), higher_is_better=True, needs_code=True)
def from_evaluate(argument: str, predictions: Any) -> float:
    """Any metric of the evaluate library that takes predictions and references, by its name or a local module's path.

    Its module is code, so it runs only under `--allow-code`. The first number that it returns counts, and higher is
    taken to be better.
    """
    try:
        import evaluate
    except ImportError:
        raise FinetuneError(
            f"evaluate:{argument} needs the evaluate library: pip install 'finetune-toolkit[evaluate]'"
        ) from None
    try:
        try:
            module = evaluate.load(argument)
        except ModuleNotFoundError:  # it copies the module to a folder that Python believes to know already
            importlib.invalidate_caches()
            module = evaluate.load(argument)
        result = module.compute(predictions=predictions.predicted.tolist(), references=predictions.targets.tolist())
    except Exception as error:  # the module is somebody's code: anything may come out of it
        raise FinetuneError(f"evaluate:{argument} cannot be computed: {type(error).__name__}: {error}") from error
    found = [value for value in (result or {}).values() if isinstance(value, numbers.Real)]
    if not found:
        raise FinetuneError(f"evaluate:{argument}: expected a result with a number, found {result!r}")
    return float(found[0])
