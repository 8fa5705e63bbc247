"""The section `tune` of a recipe: how to search, and which settings may take which values."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from finetune.errors import suggestion

Keys = tuple[str | int, ...]
Values = dict[str, Any]

TRIALS = 20  # where a recipe does not say how many
LARGEST_GRID = 1000
# What may be searched: what is scored, and by what, has to be the same in all trials
SEARCHED = ("adapter", "data.augment", "freeze", "generation", "model", "train")
YARDSTICK = "scores by different yardsticks cannot be compared; set `tune.metric`"
ONE_MACHINE = "a search runs as a whole on one device, in one precision; set it in the recipe"
REFUSED = {
    "seed": "the best of several seeds is luck, not a setting",
    "data": "it decides which rows are scored, and scores on different rows cannot be compared; of the data only "
    "`data.augment` can be searched, which leaves the validation split alone",
    "task": "it decides what is scored",
    "tokenizer": "it decides what is scored; train a tokenizer in a recipe of its own",
    "generation.validation_rows": "it decides which rows are scored",
    "train.early_stopping.metric": YARDSTICK,
    "train.device": ONE_MACHINE,
    "train.threads": ONE_MACHINE,
    "train.precision": ONE_MACHINE,
}
WHOLE = ("data", "generation", "train", "train.early_stopping")  # sections of which single settings are searched


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Range(_Settings):
    """Numbers from `low` to `high`, both included: whole ones if both are; with `log` even in their logarithm."""

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return all(isinstance(number, int) for number in (self.low, self.high))

    def values(self) -> tuple[Any, ...] | None:
        """Return the numbers one by one, or None where there is no end of them."""
        step = self.step or (1 if self.whole else None)
        if step is None:
            return None
        low, high, width = (Decimal(str(number)) for number in (self.low, self.high, step))
        numbers = (low + index * width for index in range(int((high - low) / width) + 1))
        return tuple((int if self.whole else float)(number) for number in numbers)


Setting = tuple[Any, ...] | Range


def label(value: Any) -> Any:
    """Return a value as Optuna can keep it: a mapping or a list as JSON text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def _setting(value: object) -> Setting:
    if isinstance(value, (tuple, Range)):
        return value
    if isinstance(value, list) and value:
        labels = [label(item) for item in value]
        twice = [item for index, item in enumerate(labels) if item in labels[:index]]
        if twice:
            raise ValueError(f"expected different values, found {twice[0]!r} twice")
        return tuple(value)
    if isinstance(value, dict) and value:
        return _range(value)
    raise ValueError(f"expected a list of values, or a range such as {{low: 1, high: 5}}, found {value!r}")


def _range(value: Mapping[str, Any]) -> Range:
    unknown = [key for key in value if key not in Range.model_fields]
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]} of a range{suggestion(unknown[0], Range.model_fields)}")
    try:
        found = Range.model_validate(value)
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from None
    if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low < found.high):
        raise ValueError(f"expected low below high, found {found.low} and {found.high}")
    if found.log and found.low <= 0:
        raise ValueError(f"expected a low above 0, since `log` has no other numbers; found {found.low}")
    if found.step is not None:
        _check_step(found, found.step)
    return found


def _first_problem(error: ValidationError) -> str:
    name = str(error.errors()[0]["loc"][0])
    missing = error.errors()[0]["type"] == "missing"
    kind = "true or false" if name == "log" else "a number"
    return f"expected {kind} as {name}, found {'nothing' if missing else repr(error.errors()[0]['input'])}"


def _check_step(found: Range, step: float) -> None:
    if found.log:
        raise ValueError("expected `step` or `log`, found both; write a list of values instead")
    if not (math.isfinite(step) and step > 0) or (found.whole and not isinstance(step, int)):
        raise ValueError(f"expected a step above 0{', a whole number' if found.whole else ''}, found {step}")
    if (Decimal(str(found.high)) - Decimal(str(found.low))) % Decimal(str(step)):
        raise ValueError(f"expected a high that steps of {step} from {found.low} lead to, found {found.high}")


def _pruning(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class Pruning(_Settings):
    """Which trials end early.

    With successive halving (Jamieson and Talwalkar 2016; the asynchronous form of Li et al. 2020) a trial has to be
    among the best 1/`factor` of those that came as far, at its evaluations number `first`, `first` x `factor`,
    `first` x `factor`^2 and so on; the others end there.
    """

    name: Literal["successive-halving", "none"] = "successive-halving"
    first: Annotated[int, Field(ge=1)] = 1
    factor: Annotated[int, Field(ge=2)] = 3


class TuneSection(_Settings):
    """A search for better settings: `space` maps settings, by their dotted names, to the values that they may take.

    Without `trials` there are 20, and of a grid all. Without `metric` the one of `train.early_stopping` is the score,
    and without `seed` the recipe's seed decides what is drawn.
    """

    search: Literal["tpe", "random", "grid"] = "tpe"
    trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    metric: str | None = None
    pruning: Annotated[Pruning, BeforeValidator(_pruning)] = Pruning()
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    space: Annotated[dict[str, Annotated[Any, PlainValidator(_setting)]], Field(min_length=1)]

    @property
    def planned(self) -> int:
        """How many trials there are to be."""
        return self.combinations if self.search == "grid" else self.trials or TRIALS

    @property
    def combinations(self) -> int:
        """How many trials a grid has."""
        return math.prod(len(_listed(setting) or ()) for setting in self.space.values())

    def grid(self) -> Iterator[Values]:
        """Yield all combinations of the values; those of the last setting change fastest."""
        listed = [_listed(setting) or () for setting in self.space.values()]
        for values in itertools.product(*listed):
            yield dict(zip(self.space, values, strict=True))

    def problems(self, metric: str) -> Iterator[tuple[Keys, str]]:
        """Yield what is wrong with the section by itself; `metric` is what the trials are judged by."""
        for name in self.space:
            if reason := _refused(name, metric):
                yield ("space", name), reason
            for other in self.space:
                if name.startswith(f"{other}."):
                    message = f"{other} is searched too; write its options there: [{{name: ..., option: ...}}, ...]"
                    yield ("space", name), message
        if self.search == "grid":
            yield from self._problems_of_grid()

    def _problems_of_grid(self) -> Iterator[tuple[Keys, str]]:
        endless = [name for name, setting in self.space.items() if _listed(setting) is None]
        for name in endless:
            yield ("space", name), "a grid has single values: add `step`, or write them as a list"
        if not endless and self.combinations > LARGEST_GRID:
            yield ("space",), f"expected at most {LARGEST_GRID} combinations in a grid, found {self.combinations}"
        if self.trials is not None and not endless:
            yield ("trials",), f"a grid has a trial for each combination, which are {self.combinations}; remove it"

    def samples(self) -> Iterator[tuple[Keys, Values]]:
        """Yield each value of each setting, of a range its ends, and where it stands; of a grid all combinations."""
        for name, setting in self.space.items():
            if isinstance(setting, Range):
                yield ("space", name, "low"), {name: setting.low}
                yield ("space", name, "high"), {name: setting.high}
                continue
            for index, value in enumerate(setting):
                yield ("space", name, index), {name: value}

    def together(self) -> Iterator[tuple[Keys, Values]]:
        """Yield the combinations that are known now: those of a grid."""
        if self.search == "grid" and len(self.space) > 1:
            yield from ((("space",), values) for values in self.grid())


def _listed(setting: Setting) -> tuple[Any, ...] | None:
    return setting.values() if isinstance(setting, Range) else setting


def _refused(name: str, metric: str) -> str:
    """Return why a setting cannot be searched; empty if it can."""
    below = [known for known in SEARCHED if name == known or name.startswith(f"{known}.")]
    reasons = [reason for known, reason in REFUSED.items() if name == known or name.startswith(f"{known}.")]
    if reasons and (not below or reasons[0] is not REFUSED["data"]):
        return reasons[0]
    if name in WHOLE:
        return f"expected a setting of it, such as {name}.{'patience' if '.' in name else 'SETTING'}, found all of it"
    if not below:
        first = name.partition(".")[0]
        return f"expected a setting of {', '.join(SEARCHED)}, found {name}{suggestion(first, SEARCHED)}"
    if metric == "loss" and (name == "train.loss" or name.startswith("train.loss.")):
        return f"trials are judged by the loss, and {YARDSTICK}"
    return ""
