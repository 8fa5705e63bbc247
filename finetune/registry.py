"""Named parts whose keyword-only parameters, with their types and defaults, are their settings in a recipe."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, create_model

from finetune.errors import FinetuneError, suggestion

Target = TypeVar("Target", bound=Callable[..., Any])


# What a name ends in that takes an argument
MARKS = (":", "@")


class Options(BaseModel):
    """The base of every generated options model: strict, frozen, closed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Entry:
    """One registered part: what to call, the model of its options, and what else its author declared about it."""

    name: str
    target: Callable[..., Any]
    options: type[Options]
    attributes: Mapping[str, Any]
    arguments: tuple[str, ...] = ()

    def build(self, options: Mapping[str, Any]) -> Any:
        """Return the class's instance, or the function with its options filled in."""
        make = self.target if inspect.isclass(self.target) else functools.partial
        first = () if inspect.isclass(self.target) else (self.target,)
        return make(*first, *self.arguments, **options)


class Registry:
    """The named parts of one kind.

    `room` is the module, or the package of modules, that registers the parts. It is imported at the first look-up,
    so that this module stands below all rooms and nobody keeps a list of them.
    """

    def __init__(self, kind: str, room: str) -> None:
        self.kind = kind
        self._room = room
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def register(self, name: str, **attributes: Any) -> Callable[[Target], Target]:
        """Register a function or class under a name.

        A name that ends in `:` or `@` takes the rest of a recipe's name as its first argument: `ndcg@10`.
        """

        def decorate(target: Target) -> Target:
            assert name not in self._entries, f"the {self.kind} {name!r} is registered twice"
            self._entries[name] = Entry(name, target, _options_model(name, target), attributes)
            return target

        return decorate

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        self._load()
        return sorted(self._entries)

    def get(self, name: str) -> Entry:
        """Return the part of that name; raise FinetuneError with the nearest name if there is none."""
        self._load()
        for mark in MARKS:
            prefix, found, argument = name.partition(mark)
            if found and prefix + mark in self._entries:
                return self._with_argument(prefix + mark, name, argument)
        if name not in self._entries:
            raise FinetuneError(f"unknown {self.kind} {name!r}{suggestion(name, self._entries)}")
        return self._entries[name]

    def get_any(self, name: str) -> Entry:
        """Return the part registered under exactly this name, with no look at an argument behind its mark."""
        self._load()
        return self._entries[name]

    def _with_argument(self, registered: str, name: str, argument: str) -> Entry:
        entry = self._entries[registered]
        if not argument:
            raise FinetuneError(
                f"{self.kind} {name!r}: expected something behind the {registered[-1]!r}, such as "
                f"{registered}{entry.attributes.get('example', 'NAME')}"
            )
        if "check_argument" in entry.attributes:
            entry.attributes["check_argument"](argument)
        return replace(entry, name=name, arguments=(argument,))

    def _load(self) -> None:
        if self._loaded:
            return
        room = importlib.import_module(self._room)
        for module in pkgutil.iter_modules(getattr(room, "__path__", [])):
            importlib.import_module(f"{self._room}.{module.name}")
        self._loaded = True


def _options_model(name: str, target: Callable[..., Any]) -> type[Options]:
    """Build the options model from the keyword-only parameters; nothing else of the signature is resolved."""
    namespace = vars(sys.modules[target.__module__])
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        annotation = parameter.annotation
        if isinstance(annotation, str):
            annotation = eval(annotation, namespace)  # noqa: S307 -- our own annotations, never a user's text
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[parameter.name] = (annotation, default)
    model: type[Options] = create_model(f"{name} options", __base__=Options, **fields)
    return model


sources = Registry("source", room="finetune.data.sources")
cleaners = Registry("cleaner", room="finetune.data.cleaning")
checks = Registry("check", room="finetune.data.checks")
splitters = Registry("splitter", room="finetune.data.splitting")
augmenters = Registry("augmenter", room="finetune.data.augmentation")
tokenizers = Registry("tokenizer", room="finetune.data.tokenizer_training")
tasks = Registry("task", room="finetune.tasks")
freezers = Registry("freezing strategy", room="finetune.models.freezing")
optimizers = Registry("optimizer", room="finetune.training.optimizers")
schedules = Registry("schedule", room="finetune.training.schedules")
losses = Registry("loss", room="finetune.training.losses")
trackers = Registry("tracker", room="finetune.training.trackers")
metrics = Registry("metric", room="finetune.evaluation.metrics")
baselines = Registry("baseline", room="finetune.evaluation.baselines")
backends = Registry("quantization backend", room="finetune.quantization")

ALL = (
    sources,
    cleaners,
    checks,
    splitters,
    augmenters,
    tokenizers,
    tasks,
    freezers,
    optimizers,
    schedules,
    losses,
    trackers,
    metrics,
    baselines,
    backends,
)
