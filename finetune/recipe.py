"""The recipe: everything that decides what a run does, strict and frozen, checked before anything heavy is imported."""

from __future__ import annotations

import glob
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from finetune import registry
from finetune.documents import Document, Keys, assign, dotted, override, read_document
from finetune.errors import FinetuneError, Problem, RecipeError, suggestion
from finetune.space import TuneSection
from finetune.urls import without_secrets


class Section(BaseModel):
    """The base of the recipe and its sections: strict, frozen, no unknown settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Part(Section):
    """A registered part chosen by a recipe: its name and all of its options, defaults filled in."""

    name: str
    options: dict[str, Any]

    def resolved(self) -> dict[str, Any]:
        """Return the part as a recipe writes it."""
        return {"name": self.name, **self.options}


class _BadOptions(ValueError):
    """The options of a part do not fit; carries what pydantic found, which it would otherwise flatten to text."""

    def __init__(self, error: ValidationError, options: type[BaseModel]) -> None:
        super().__init__(str(error))
        self.error, self.options = error, options


class _Problems(ValueError):
    """Several things are wrong below one setting; each with the keys that lead to it from there."""

    def __init__(self, problems: Sequence[tuple[Keys, str]]) -> None:
        super().__init__("; ".join(message for _, message in problems))
        self.problems = problems


def _part_of(parts: registry.Registry) -> BeforeValidator:
    def check(value: object) -> Part:
        if isinstance(value, Part):
            return value
        given: Mapping[str, Any] = value if isinstance(value, dict) else {"name": value}
        name = given.get("name")
        if not isinstance(name, str):
            raise ValueError(f"expected the name of a {parts.kind} or a mapping with `name`, found {value!r}")
        try:
            entry = parts.get(name)
        except FinetuneError as error:
            raise ValueError(str(error)) from None
        try:
            options = entry.options.model_validate({key: item for key, item in given.items() if key != "name"})
        except ValidationError as error:
            raise _BadOptions(error, entry.options) from None
        if "check" in entry.attributes:  # what the types of the single options cannot say
            entry.attributes["check"](options.model_dump())
        return Part(name=name, options=options.model_dump())

    return BeforeValidator(check)


def _known_metric(name: str) -> str:
    return _known(registry.metrics, name)


def _known_score(name: str) -> str:
    return name if name == "loss" else _known_metric(name)


def _known(parts: registry.Registry, name: str) -> str:
    try:
        parts.get(name)
    except FinetuneError as error:
        raise ValueError(str(error)) from None
    return name


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _no_backend(task: str) -> str:
    known = ", ".join(registry.backends.names())
    return f"no backend ({known}) can quantize what {task} trains, a model that writes texts; remove it"


def _unfit(loss: str, default: str | None, task: str) -> str:
    """Return why a loss is not for a task, whose default says which targets it has; empty if it is."""
    if default is None:
        return f"{task} has a loss of its own; remove it, or see the options of `task`"
    entries = {name: registry.losses.get(name).attributes["of"] for name in registry.losses.names()}
    targets = set(entries[default])
    if targets & set(entries[loss]):
        return ""
    fitting = [name for name, of in entries.items() if targets & set(of)]
    return f"expected a loss for what {task} predicts ({', '.join(fitting)}), found {loss}, for {entries[loss][0]}"


def is_written(metric: str) -> bool:
    """Tell whether a metric is about texts that were written, and not about tokens that were guessed."""
    return "texts" in _judges(metric) and "language" not in _judges(metric)


def _judges(metric: str) -> tuple[str, ...]:
    """Return the kinds of predictions that a metric is for."""
    return registry.metrics.get_any(metric).attributes["of"]  # type: ignore[no-any-return]


Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], BeforeValidator(_as_tuple)]
Metric = Annotated[str, AfterValidator(_known_metric)]
Score = Annotated[str, AfterValidator(_known_score)]
SourceFormat = Annotated[Part, _part_of(registry.sources)]
Cleaner = Annotated[Part, _part_of(registry.cleaners)]
Augmenter = Annotated[Part, _part_of(registry.augmenters)]
Tokenizer = Annotated[Part, _part_of(registry.tokenizers)]
Splitter = Annotated[Part, _part_of(registry.splitters)]
Task = Annotated[Part, _part_of(registry.tasks)]
Freezer = Annotated[Part, _part_of(registry.freezers)]
Optimizer = Annotated[Part, _part_of(registry.optimizers)]
Loss = Annotated[Part, _part_of(registry.losses)]
Schedule = Annotated[Part, _part_of(registry.schedules)]
Tracker = Annotated[Part, _part_of(registry.trackers)]
Backend = Annotated[Part, _part_of(registry.backends)]

STRATIFIED = Part(
    name="stratified",
    options={"train": 0.8, "validation": 0.1, "test": 0.1, "folds": None, "fold": 0, "bins": 10},
)


def _paths(value: object) -> str | tuple[str, ...]:
    if value == [None]:  # what YAML makes of a lonely dash
        return "-"
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) and item for item in value):
        return tuple(value)
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"expected a path, or a list of paths, found {value!r}")


Paths = Annotated[str | tuple[str, ...], PlainValidator(_paths)]


class GivenSplits(Section):
    """Files for each split: taken as they are, no row moves."""

    train: Paths
    validation: Paths
    test: Paths | None = None


def _source(value: object) -> str | tuple[str, ...] | GivenSplits:
    return _settings(GivenSplits, value) if isinstance(value, (dict, GivenSplits)) else _paths(value)


Settings = TypeVar("Settings", bound=Section)


def _settings(section: type[Settings], value: object) -> Settings:
    """Return nested settings; what is wrong with them is reported as if they stood in the recipe directly."""
    try:
        return section.model_validate(value)
    except ValidationError as error:
        raise _BadOptions(error, section) from None


class Fill(Section):
    """What to put where a value is missing."""

    fill: str | int | float


def _on_missing(value: object) -> str | Fill:
    if value in ("drop", "error"):
        return str(value)
    if isinstance(value, (dict, Fill)):
        return _settings(Fill, value)
    raise ValueError(f"expected drop, error or {{fill: VALUE}}, found {value!r}")


def _missing(value: object) -> str | Fill | dict[str, str | Fill]:
    """Read what to do about missing values: one thing for all roles, or one for each."""
    if not isinstance(value, dict) or set(value) == {"fill"}:
        return _on_missing(value)
    policies: dict[str, str | Fill] = {}
    problems = []
    for role, policy in value.items():
        try:
            policies[role] = _on_missing(policy)
        except ValueError as error:
            problems.append(((role,), str(error)))
    if problems:
        raise _Problems(problems)
    return policies


class NearDuplicates(Section):
    """Texts that are nearly the same: Jaccard similarity of their shingles at or above the threshold."""

    action: Literal["keep", "report", "drop", "off"] = "keep"
    threshold: Annotated[float, Field(ge=0.3, lt=1)] = 0.8
    shingles: Literal["words", "characters"] = "characters"
    size: Annotated[int, Field(ge=1, le=20)] = 5
    permutations: Annotated[int, Field(ge=16, le=1024)] = 128


def _action(value: object) -> object:
    return {"action": value} if isinstance(value, str) else value


class Augment(Section):
    """More rows for training, made from those that there are; validation and test are never touched."""

    operations: Annotated[Many[Augmenter], Field(min_length=1)]
    copies: Annotated[int, Field(ge=0, le=100)] = 1
    balance: bool = False
    target: Annotated[float, Field(gt=0, le=1)] = 1.0


def _check_setting(name: str, value: object) -> tuple[str | None, dict[str, Any]]:
    """Return a check's severity (None: its own) and its options, as `data.checks.NAME` gives them."""
    entry = registry.checks.get(name)
    given = dict(value) if isinstance(value, dict) else {"severity": value}
    severity = given.pop("severity", None)
    if severity not in (None, "error", "warning", "note", "off"):
        raise ValueError(f"expected error, warning, note or off, found {severity!r}")
    try:
        options = entry.options.model_validate(given)
    except ValidationError as error:
        raise _BadOptions(error, entry.options) from None
    return severity, options.model_dump(exclude_unset=True)


def _checks(value: object) -> object:
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping such as `imbalance: error`, found {value!r}")
    checked = {}
    problems: list[tuple[Keys, str]] = []
    for name, setting in value.items():
        try:
            severity, options = _check_setting(name, setting)
        except _BadOptions as error:
            known = list(error.options.model_fields)
            problems += [((name, *found["loc"]), _explain(found, known, None)) for found in error.error.errors()]
            continue
        except (FinetuneError, ValueError) as error:
            problems.append(((name,), str(error)))
            continue
        checked[name] = {**({"severity": severity} if severity else {}), **options}
    if problems:
        raise _Problems(problems)
    return checked


class FoldSection(Section):
    """One of several folds of the rows that are not for test: its rows are held out, the rest trains and validates.

    It is what a recipe's `folds` gives to each of its trainings.
    """

    number: Annotated[int, Field(ge=0)]
    of: Annotated[int, Field(ge=2, le=100)]

    @model_validator(mode="after")
    def _is_one_of_them(self) -> FoldSection:
        if self.number >= self.of:
            raise ValueError(f"expected a number from 0 to {self.of - 1} (of is {self.of}), found {self.number}")
        return self


def _separator(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise ValueError(f'expected what stands between labels, in quotes, such as "|", found {value!r}')


class DataSection(Section):
    """Which rows, which of their columns, how they are cleaned, checked, split and augmented."""

    source: Annotated[str | tuple[str, ...] | GivenSplits, PlainValidator(_source)]
    format: SourceFormat | None = None
    columns: dict[str, str] = {}
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    clean: Many[Cleaner] = ()
    missing: Annotated[str | Fill | dict[str, str | Fill], PlainValidator(_missing)] = "drop"
    labels: Many[str] = ()
    label_map: dict[str, str] = {}
    label_separator: Annotated[str | None, PlainValidator(_separator)] = None
    label_columns: Many[str] = ()
    tag_scheme: Literal["iob2", "iob1", "iobes"] = "iob2"
    duplicates: Literal["drop", "keep", "report", "error"] = "drop"
    near_duplicates: Annotated[NearDuplicates, BeforeValidator(_action)] = NearDuplicates()
    conflicts: Literal["drop", "keep", "error"] = "drop"
    rare_labels: Literal["error", "drop"] = "error"
    leaks: Literal["error", "drop-from-train", "report"] = "error"
    group_by: Annotated[Many[str], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = ()
    checks: Annotated[dict[str, dict[str, Any]], BeforeValidator(_checks)] = {}
    split: Splitter = STRATIFIED
    fold: FoldSection | None = None
    augment: Augment | None = None

    @property
    def sources(self) -> dict[str, str | tuple[str, ...]]:
        """The files, by the split that the recipe gives them to; under the name "" when the rows are split here."""
        if not isinstance(self.source, GivenSplits):
            return {"": self.source}
        given = {name: getattr(self.source, name) for name in ("train", "validation", "test")}
        return {name: paths for name, paths in given.items() if paths}

    @property
    def form(self) -> tuple[str, dict[str, Any]] | None:
        """The files' format with its options; None goes by their suffix."""
        return (self.format.name, self.format.options) if self.format else None

    @property
    def paths(self) -> list[str]:
        """Everything that `source` names, as it is written."""
        return [path for paths in self.sources.values() for path in ((paths,) if isinstance(paths, str) else paths)]

    @property
    def source_name(self) -> str:
        """The files as messages name them."""
        return ", ".join(self.paths[:3]) + (f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else "")

    @field_validator("source")
    @classmethod
    def _exists(cls, source: Any, info: ValidationInfo) -> Any:
        if info.context and info.context.get("check_inputs"):
            paths = DataSection.model_construct(source=source).paths
            problems = [message for path in paths if (message := _missing_file(path))]
            if problems:
                raise ValueError("; ".join(problems))
        return source


def _missing_file(source: str) -> str:
    """Return what is wrong with a path of rows, if that can be seen without opening it."""
    path = Path(source)
    if source == "-" or "://" in source or source.startswith("hub:") or path.is_file():
        return ""
    if path.is_dir():
        return "" if any(path.iterdir()) else f"expected rows, found an empty folder at {source}"
    if glob.has_magic(source):
        found = glob.glob(source, recursive=True)  # noqa: PTH207 -- Path.glob takes no absolute patterns
        return "" if found else f"expected files, found none that match {source}"
    folder = path.parent
    beside = [item.name for item in folder.iterdir() if item.is_file()][:50] if folder.is_dir() else []
    return f"expected a file of rows, found nothing at {source}{suggestion(path.name, beside)}"


def _length(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 2:
        return value
    raise ValueError(f"expected a whole number of at least 2, or auto, found {value!r}")


class Scratch(Section):
    """A model with random weights: a family of transformers, and how large it is to be.

    `architecture` is transformers' name of the family (bert, distilbert, gpt2, llama, t5, ...). Of an encoder with a
    decoder, both have so many layers and heads. Without `feed_forward_size` it is four times the hidden size; what is
    left out of the rest is the family's own. `config` holds any other setting under the family's name for it.
    """

    architecture: str
    layers: Annotated[int, Field(ge=1)]
    hidden_size: Annotated[int, Field(ge=1)]
    heads: Annotated[int, Field(ge=1)]
    feed_forward_size: Annotated[int, Field(ge=1)] | None = None
    context: Annotated[int, Field(ge=2)] = 512
    positions: Literal["learned", "sinusoidal", "rotary", "relative"] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    initializer_range: Annotated[float, Field(gt=0)] | None = None
    tie_embeddings: bool | None = None
    config: dict[str, Any] = {}


class ModelSection(Section):
    """The model: a Hub id with its revision, a local folder, or `package:NAME/FOLDER`; or `scratch`.

    With both, the model is new and only its tokenizer is that of `id`.
    """

    id: str = ""
    scratch: Scratch | None = None
    revision: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    max_length: Annotated[int | Literal["auto"], PlainValidator(_length)] = 128
    overflow: Literal["truncate", "error", "window"] = "truncate"
    stride: Annotated[int, Field(ge=0)] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None

    @property
    def title(self) -> str:
        """What a report calls the model: no path of this machine."""
        if self.scratch is not None:
            return f"{self.scratch.architecture} from scratch"
        return Path(self.id).name if Path(self.id).is_absolute() else self.id

    @model_validator(mode="after")
    def _says_which(self) -> ModelSection:
        if not self.id and self.scratch is None:
            raise ValueError("expected `id` (a pretrained model) or `scratch` (a new one), found neither")
        if self.scratch is not None and self.sha256:
            raise ValueError("`sha256` is for pretrained weights, and those of `scratch` are random; remove one")
        return self

    @field_validator("id")
    @classmethod
    def _exists(cls, model_id: str, info: ValidationInfo) -> str:
        checks = bool(info.context and info.context.get("check_inputs"))
        if checks and Path(model_id).is_absolute() and not Path(model_id).is_dir():
            path = Path(model_id)
            made = path.parts[-2:] == ("run", "model")
            hint = f". A run makes it: `finetune run` the recipe {path.parts[-3]} first" if made else ""
            raise ValueError(f"expected a model's folder, found nothing at {model_id}{hint}")
        return model_id

    @model_validator(mode="after")
    def _flash_attention_in_half_precision(self) -> ModelSection:
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ValueError("`attention: flash_attention_2` computes in half precision alone; set `dtype: bfloat16`")
        return self

    @model_validator(mode="after")
    def _revision_of_hub_only(self) -> ModelSection:
        if self.revision and (self.id.startswith("package:") or Path(self.id).is_absolute()):
            raise ValueError(
                "`revision` belongs to a model of the Hub; remove it, or use `sha256` to pin these weights"
            )
        return self


class Adapter(Section):
    """Adapters beside a frozen model, and whether the run's model has them merged in.

    `rank`, `alpha`, `dropout`, `dora` and `rslora` are LoRA's. `targets` is auto, all-linear, a list of endings of
    modules' names, or a regular expression for whole names; `also_train` names modules that learn as a whole. `bits`
    (4 or 8) loads the frozen model quantized, as QLoRA does, on NVIDIA GPUs.
    """

    name: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[int, Field(ge=1)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Annotated[str, Field(min_length=1)] | Annotated[Many[str], Field(min_length=1)] = "auto"
    also_train: Many[str] = ()
    dora: bool = False
    rslora: bool = False
    bits: Literal[4, 8] | None = None
    merge: bool = False


def _adapter(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class EarlyStopping(Section):
    """Which validation score chooses the best model, and how long training goes on without a better one."""

    metric: Score = "loss"
    patience: Annotated[int, Field(ge=1)] | None = None
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class PenaltySection(Section):
    """Terms for the size of the weights, or for their distance from where training began."""

    l1: Annotated[float, Field(ge=0)] = 0.0
    l2: Annotated[float, Field(ge=0)] = 0.0
    around: Literal["zero", "start"] = "zero"

    @model_validator(mode="after")
    def _is_one(self) -> PenaltySection:
        if not self.l1 and not self.l2:
            raise ValueError("expected `l1` or `l2` above 0, found neither; remove it, or set one")
        return self


class TrainSection(Section):
    """The training loop.

    `learning_rate_of` says for steps of how many rows `learning_rate` is meant: for other ones it is scaled linearly
    (Goyal et al. 2017).

    With `gradient_checkpointing` the layers' activations are computed again in the backward pass instead of being kept
    (Chen et al. 2016): the same gradients with less memory, for about a third more time. With `layer_decay` below 1
    each layer learns at so much of the rate of the one above it, the embeddings slowest. `sampling: balanced` draws
    rows of each class equally often.

    `ema` is the decay of a moving average of the weights that is scored beside them, `average_best` how many of the
    best models are averaged at the end; either is kept if validation says that it is better. A checkpoint is saved with
    every evaluation, unless `save_every` (steps) or `save_minutes` say otherwise.
    """

    epochs: Annotated[int, Field(ge=1)] = 3
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 32
    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    gradient_checkpointing: bool = False
    learning_rate: Annotated[float, Field(gt=0, lt=10)] = 5e-5
    learning_rate_of: Annotated[int, Field(ge=1)] | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    loss: Loss | None = None
    optimizer: Optimizer = Part(name="adamw", options={"weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8})
    schedule: Schedule = Part(name="linear", options={"warmup_steps": 0, "warmup_ratio": 0.0})
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = 1.0
    penalty: PenaltySection | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    average_best: Annotated[int, Field(ge=2)] | None = None
    early_stopping: EarlyStopping = EarlyStopping()
    eval_every: Annotated[int, Field(ge=1)] | None = None
    save_every: Annotated[int, Field(ge=1)] | None = None
    save_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    keep_checkpoints: Annotated[int, Field(ge=1)] = 1
    eval_batch_size: Annotated[int, Field(ge=1)] = 64
    bucket_by_length: bool = True
    sampling: Literal["all", "balanced"] = "all"
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    trackers: Many[Tracker] = ()

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate that the schedule multiplies: the recipe's, or scaled by the rows of a step."""
        if self.learning_rate_of is None:
            return self.learning_rate
        return self.learning_rate * self.batch_size * self.gradient_accumulation / self.learning_rate_of

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[Part, ...]) -> tuple[Part, ...]:
        names = [part.name for part in trackers]
        if several := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected each tracker once, found {', '.join(several)} several times")
        return trackers

    @field_validator("device")
    @classmethod
    def _device_name(cls, device: str) -> str:
        return check_device(device)

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> TrainSection:
        problems: list[tuple[Keys, str]] = []
        warmup = self.schedule.options.get("warmup_steps", 0)
        if self.max_steps is not None and warmup >= self.max_steps:
            message = f"expected fewer steps than train.max_steps ({self.max_steps}), found {warmup}"
            problems.append((("schedule", "warmup_steps"), message))
        if self.precision == "tf32" and self.device != "auto" and not self.device.startswith("cuda"):
            message = f"tf32 is of NVIDIA GPUs, and `device` is {self.device}; use fp32 or bf16"
            problems.append((("precision",), message))
        if self.average_best and self.eval_every and self.max_steps and self.max_steps < 2 * self.eval_every:
            message = "one evaluation leaves nothing to be averaged; lower train.eval_every, or remove it"
            problems.append((("average_best",), message))
        if problems:
            raise _Problems(problems)
        return self


class GenerationSection(Section):
    """How texts are written, by the tasks that write: the settings of transformers' `generate` that people change.

    `validation_rows` is how many validation rows are written at an evaluation during training, always the same ones
    (0: none). Without `seed` sampling draws from the recipe's.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    beams: Annotated[int, Field(ge=1)] = 1
    length_penalty: float = 1.0
    no_repeat_ngram: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    sample: bool = False
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 32
    validation_rows: Annotated[int, Field(ge=0)] = 100

    def deciding(self, seed: int) -> dict[str, Any]:
        """Return the settings that decide a text; `seed` is the recipe's."""
        values = {"max_new_tokens": self.max_new_tokens, "beams": self.beams, "sample": self.sample}
        chosen = ("min_new_tokens", "length_penalty", "no_repeat_ngram", "repetition_penalty")
        fields = type(self).model_fields
        values |= {name: getattr(self, name) for name in chosen if getattr(self, name) != fields[name].default}
        if self.sample:
            values |= {name: getattr(self, name) for name in ("temperature", "top_k", "top_p")}
            values["seed"] = seed if self.seed is None else self.seed
            values["batch_size"] = self.batch_size  # what is drawn goes batch after batch
        return values

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> GenerationSection:
        problems: list[tuple[Keys, str]] = []
        if self.min_new_tokens > self.max_new_tokens:
            problems.append((("min_new_tokens",), f"expected at most max_new_tokens ({self.max_new_tokens})"))
        if not self.sample:
            for name in ("temperature", "top_k", "top_p", "seed"):
                if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                    problems.append(((name,), "it is for sampling alone; add `sample: true`, or remove it"))
        if self.beams == 1 and self.length_penalty != 1:
            problems.append((("length_penalty",), "it is for several beams alone; set `beams`, or remove it"))
        if problems:
            raise _Problems(problems)
        return self


def check_device(device: str) -> str:
    """Return the device's name; raise ValueError when it has not the form of one."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"expected auto, cpu, cuda, cuda:N or mps, found {device!r}")
    return device


_GATE = re.compile(r"(<=|>=|<|>)\s*(\S+)")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


class Gate(Section):
    """A bound that a result must keep: `accuracy: ">= 0.85"`, `quantized.accuracy.drop.high: "<= 0.02"`."""

    path: str
    comparison: str
    bound: float

    @property
    def quantized(self) -> bool:
        """Whether the gate is about the quantized model."""
        return self.path.startswith("quantized.")

    @property
    def keys(self) -> tuple[str, ...]:
        """The result's name and, behind it, `drop` and `low`, `high` or `value` as far as the path has them.

        A metric's name may have dots of its own (`evaluate:./metric.py`), so the path is read from both ends.
        """
        match = re.fullmatch(r"(.+?)(?:\.(drop))?(?:\.(low|high|value))?", self.path.removeprefix("quantized."))
        assert match is not None
        return tuple(part for part in match.groups() if part)

    def holds(self, value: float) -> bool:
        """Tell whether a value keeps the bound; NaN never does."""
        return not math.isnan(value) and _COMPARISONS[self.comparison](value, self.bound)

    def __str__(self) -> str:
        return f"{self.path} {self.comparison} {self.bound:g}"


def _gates(value: object) -> tuple[Gate, ...]:
    if isinstance(value, tuple):
        return value
    if value is None:  # as when every gate is commented out
        return ()
    if not isinstance(value, dict):
        raise ValueError(f'expected a mapping such as `accuracy: ">= 0.85"`, found {value!r}')
    gates, problems = [], []
    for path, text in value.items():
        try:
            gates.append(_gate(path, text))
        except ValueError as error:
            problems.append(((path,), str(error)))
    if problems:
        raise _Problems(problems)
    return tuple(gates)


def _gate(path: str, text: object) -> Gate:
    match = _GATE.fullmatch(text.strip()) if isinstance(text, str) else None
    try:
        bound = float(match[2]) if match else math.nan
    except ValueError:
        bound = math.nan
    if match is None or math.isnan(bound):
        raise ValueError(f'expected a comparison such as ">= 0.85", found {text!r}')
    gate = Gate(path=path, comparison=match[1], bound=bound)
    _check_gate(gate)
    return gate


def _check_gate(gate: Gate) -> None:
    name, *rest = gate.keys
    if gate.quantized and name in {"agreement", "size_ratio"} and not rest:
        return
    try:
        registry.metrics.get(name)
        if "drop" in rest and not gate.quantized:
            raise FinetuneError("a drop is between two models, so it belongs to quantized.METRIC.drop")
    except FinetuneError as error:
        raise ValueError(
            f"{str(error).removeprefix('metrics: ')}; a gate is METRIC, METRIC.low, METRIC.high, quantized.METRIC, "
            "quantized.METRIC.drop, quantized.agreement or quantized.size_ratio"
        ) from None


def _several_seeds(seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if seeds is not None and (len(seeds) < 2 or len(set(seeds)) < len(seeds)):
        raise ValueError(f"expected two or more different seeds, such as [1, 2, 3], found {list(seeds)}")
    return seeds


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[Many[Seed] | None, AfterValidator(_several_seeds)]


class Recipe(Section):
    """One reusable description of a whole job, from raw rows to a quantized model.

    With `seeds` it is done once with each of them on the same rows, with `folds` once on each fold of the rows that
    are not for test.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    task: Task
    seed: Seed = 42
    seeds: Seeds = None
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    data: DataSection
    model: ModelSection
    tokenizer: Tokenizer | None = None
    freeze: Freezer = Part(name="none", options={})
    adapter: Annotated[Adapter | None, BeforeValidator(_adapter)] = None
    train: TrainSection = TrainSection()
    generation: GenerationSection = GenerationSection()
    metrics: Many[Metric] = ()
    quantize: Backend | None = None
    gates: Annotated[tuple[Gate, ...], BeforeValidator(_gates)] = ()
    tune: TuneSection | None = None

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Recipe:
        problems: list[tuple[Keys, str]] = [*self._problems_of_columns(), *self._problems_of_training()]
        problems += self._problems_of_repeats()
        if "" not in self.data.sources and self.data.split != STRATIFIED:
            message = "the files of `data.source` say already which split their rows are in; remove one of the two"
            problems.append((("data", "split"), message))
        splitter = registry.splitters.get(self.data.split.name)
        if splitter.attributes.get("groups") and not self.data.group_by and not self.spec.unit_role:
            message = f"{self.data.split.name} keeps groups together; name their column in `data.group_by`"
            problems.append((("data", "split"), message))
        if self.adapter and self.freeze.name != "none":
            problems.append((("freeze",), "with `adapter` the model is frozen already; remove one of the two"))
        if self.adapter and self.train.layer_decay != 1:
            problems.append((("train", "layer_decay"), "with `adapter` the layers are frozen; remove one of the two"))
        if self.adapter and self.model.scratch is not None:
            problems.append((("adapter",), "a model from scratch is trained as a whole; remove it"))
        if self.adapter and self.adapter.merge and self.adapter.bits:
            message = "a model in few bits cannot take an adapter in; remove one of the two"
            problems.append((("adapter", "merge"), message))
        if self.adapter and not self.adapter.merge and self.quantize:
            problems.append((("adapter", "merge"), "expected true, since what is quantized is a merged model"))
        if self.quantize is None:
            for gate in self.gates:
                if gate.quantized:
                    message = (
                        "a gate on the quantized model, but the recipe has no `quantize: NAME`; nothing would check it"
                    )
                    problems.append((("gates", gate.path), message))
        if self.model.scratch is not None and self.freeze.name != "none":
            problems.append((("freeze",), "a model from scratch has nothing to keep as it is; remove it"))
        if self.model.scratch is not None and self.model.id and self.tokenizer is not None:
            message = "with `scratch` it is for its tokenizer, and `tokenizer` trains another; remove one of the two"
            problems.append((("model", "id"), message))
        if self.model.scratch is not None and not self.model.id and self.tokenizer is None:
            message = "a model from scratch needs a tokenizer: add `tokenizer`, or `model.id` to take that model's"
            problems.append((("model", "scratch"), message))
        if problems:
            raise _Problems(problems)
        return self

    @model_validator(mode="after")
    def _can_be_tuned(self, info: ValidationInfo) -> Recipe:
        """Build the recipe with every value of `tune.space`, so that no trial meets an illegal one."""
        if self.tune is None:
            return self
        metric = self.tune.metric or self.train.early_stopping.metric
        problems = [*self.tune.problems(metric), *self._problems_with(("metric",), {}, info)]
        for tried in (self.tune.samples, self.tune.together):
            if not problems:
                problems = [found for keys, values in tried() for found in self._problems_with(keys, values, info)]
        problems = problems or list(self._problems_of_yardstick(metric))
        if problems:
            raise _Problems([(("tune", *keys), message) for keys, message in problems])
        return self

    def _problems_of_yardstick(self, metric: str) -> Iterator[tuple[Keys, str]]:
        """Yield the settings that would change what the score means."""
        assert self.tune is not None
        if metric == "loss" and not self.spec.adds_up and "train.batch_size" in self.tune.space:
            message = "the loss compares the rows of a batch, and is another one for batches of another size"
            yield ("space", "train.batch_size"), f"{message}; set `tune.metric`"
        if self.spec.kind in {"language", "texts"} and (metric == "loss" or not is_written(metric)):
            for name in {"model", "model.id"} & set(self.tune.space) if metric != "bits-per-byte" else ():
                message = f"{metric} is by token, and other models have other tokens"
                yield ("space", name), f"{message}; set `tune.metric`, for example to bits-per-byte"

    def _problems_with(self, keys: Keys, values: Mapping[str, Any], info: ValidationInfo) -> list[tuple[Keys, str]]:
        try:
            self.trial(values, context=info.context)
        except RecipeError as error:
            used = ", ".join(f"{name} {value}" for name, value in values.items())
            said = {*values} if len(values) == 1 else {"train.early_stopping.metric"} - {*values}
            return [
                (keys, problem.message if problem.path in said else f"{problem} (with {used})")
                for problem in error.problems
            ]
        return []

    def trial(self, values: Mapping[str, Any], *, context: Any = None) -> Recipe:
        """Return the recipe of a trial: with values of some settings, by their dotted names, judged by `tune.metric`.

        Raises RecipeError for values that are not allowed.
        """
        plain = {name: value for name, value in self.resolved().items() if name != "tune"}
        settings = dict(values)
        if self.tune is not None and self.tune.metric is not None:
            settings["train.early_stopping.metric"] = self.tune.metric
        document = Document(plain)
        for name, value in settings.items():
            document = assign(document, name, value)
        try:
            made = Recipe.model_validate(document.values, context=context)
        except ValidationError as error:
            raise RecipeError(list(_problems(error, document, Recipe, ()))) from None
        data = made.data.model_copy(update={"source": self.data.source})  # with what gives access to it
        return made.model_copy(update={"data": data})

    @property
    def _task(self) -> Any:
        return registry.tasks.get(self.task.name).build(self.task.options)

    @property
    def spec(self) -> Any:
        """The declaration of the recipe's task (a `tasks.TaskSpec`)."""
        spec = registry.tasks.get(self.task.name).attributes["spec"]
        return spec(self.task.options) if callable(spec) else spec

    def _problems_of_columns(self) -> Iterator[tuple[Keys, str]]:
        """Yield what does not fit between the task's columns and the settings that name them."""
        name, columns = self.task.name, self._task.columns
        known = [*columns]
        if any(column.kind == "tags" for column in columns.values()):
            known += ["text", "spans"]  # words and tags may come as text with spans in characters
        asked = [role for role in self.spec.question or () if role not in known]  # roles of `predict` alone
        for setting, roles in (("columns", [*known, *asked]), ("missing", known)):
            given = getattr(self.data, setting)
            for role in given if isinstance(given, dict) else ():
                if role not in roles:
                    yield ("data", setting, role), f"unknown role of {name}{suggestion(role, roles)}"
        if self.data.label_columns:
            several = next((role for role, column in columns.items() if column.kind == "labels"), None)
            beside = "label_separator" if self.data.label_separator else f"columns.{several}"
            if several is None:
                yield ("data", "label_columns"), f"it is for rows with several labels, and {name} reads none; remove it"
            elif self.data.label_separator or several in self.data.columns:
                yield ("data", "label_columns"), f"each of its columns is a label; remove data.{beside}"
        labelled = any(column.kind == "label" and column.required for column in columns.values())
        if self.data.rare_labels == "drop" and not labelled:
            yield ("data", "rare_labels"), f"drop is for tasks with one label a row, and {name} has none; remove it"
        if self.data.augment is not None and self.data.augment.balance and not labelled:
            yield ("data", "augment", "balance"), f"expected a task with one label a row, found {name}"
        if self.model.overflow == "window" and not self.spec.windows:
            yield ("model", "overflow"), f"{name} reads no text in windows: use truncate or error"
        elif self.model.overflow == "window" and "text_pair" in self.data.columns:
            message = "windows over pairs of texts are not supported: use truncate or error, or one text"
            yield ("model", "overflow"), message

    def _problems_of_training(self) -> Iterator[tuple[Keys, str]]:
        """Yield what does not fit between the task and how it is trained and judged."""
        spec, name = self.spec, self.task.name
        asked: list[tuple[Keys, str]] = [(("metrics", index), metric) for index, metric in enumerate(self.metrics)]
        asked.append((("train", "early_stopping", "metric"), self.train.early_stopping.metric))
        asked += [
            (("gates", gate.path), gate.keys[0])
            for gate in self.gates
            if gate.keys[0] not in {"agreement", "size_ratio"}
        ]
        for keys, metric in asked:
            if metric in spec.undefined:
                yield keys, f"{metric} is not defined here: {spec.undefined[metric]}"
            fitting = [known for known in registry.metrics.names() if spec.kind in _judges(known)]
            if metric != "loss" and spec.kind not in registry.metrics.get(metric).attributes["of"]:
                message = f"{metric} does not judge what {name} predicts{suggestion(metric, fitting)}"
                yield keys, message
        if spec.prompt is None and self.generation != GenerationSection():
            yield ("generation",), f"{name} writes no texts; remove it"
        if spec.prompt is not None and self.quantize is not None:
            yield ("quantize",), _no_backend(name)
        judge = self.train.early_stopping.metric
        if spec.prompt is not None and not self.generation.validation_rows and judge != "loss" and is_written(judge):
            message = f"expected 1 or more, since train.early_stopping judges by {judge}, for which texts are written"
            yield ("generation", "validation_rows"), message
        if self.train.loss is not None and (message := _unfit(self.train.loss.name, spec.loss, name)):
            yield ("train", "loss"), message
        if self.train.sampling == "balanced" and spec.class_id is None:
            yield ("train", "sampling"), f"balanced is for tasks with one label a row, and {name} has none; remove it"
        elif self.train.sampling == "balanced" and self.model.overflow == "window":
            message = "balanced sampling would draw the windows of a row apart; remove it, or set model.overflow"
            yield ("train", "sampling"), message
        if self.train.gradient_accumulation > 1 and not spec.adds_up:
            message = (
                "expected 1, since this loss compares each row with the others of its batch and does not add up over "
                f"several; found {self.train.gradient_accumulation}. Raise train.batch_size instead."
            )
            yield ("train", "gradient_accumulation"), message
        if self.train.batch_size == 1 and not spec.adds_up:
            message = "expected 2 or more, since this loss compares each row with the others of its batch; found 1"
            yield ("train", "batch_size"), message

    @property
    def repeated(self) -> bool:
        """Whether it is done several times, with several seeds or on several folds."""
        return bool(self.seeds or self.folds)

    @property
    def no_average(self) -> str:
        """Why the models of a repeated training cannot answer as one; empty if they can."""
        if self.spec.voting is None:
            return f"what several models of the task {self.task.name} say has no average"
        return "each fold's model reads with a tokenizer of its own" if self.folds and self.tokenizer else ""

    def _problems_of_repeats(self) -> Iterator[tuple[Keys, str]]:
        """Yield what does not fit between `seeds`, `folds`, the splitter and what is asked of the result."""
        setting, splitter = ("seeds" if self.seeds else "folds"), self.data.split
        if self.seeds and self.folds:
            yield ("folds",), "`seeds` repeats the training on the same rows, `folds` on others; remove one of the two"
        if self.data.fold is not None and self.repeated:
            yield ("data", "fold"), f"it is one of the trainings that `{setting}` makes; remove one of the two"
        if self.folds or self.data.fold:
            if splitter.options.get("folds"):
                message = "it makes a fold the test split, and here the rows that are not for test are divided; "
                yield ("data", "split", "folds"), message + "remove one of the two"
            if splitter.name == "time":
                message = "of rows in the order of time, later ones would say what earlier ones are; use another "
                yield ("data", "split"), message + "splitter, or `folds` and `fold` of this one, one after another"
            if "-" in self.data.paths:
                yield ("data", "source"), "standard input can be read once, and each fold reads the rows; use a file"
        if self.repeated and self.quantize is not None and self.no_average and self.spec.prompt is None:
            message = f"with `{setting}` it is for the ensemble of all models, but {self.no_average}"
            yield ("quantize",), f"{message}; remove one of the two"
        for gate in self.gates if self.repeated else ():
            if not gate.quantized and gate.keys[1:] and gate.keys[-1] != "value":
                message = f"with `{setting}` a gate is on the mean, which has no {gate.keys[-1]} end; remove it"
                yield ("gates", gate.path), message

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain values, every default written out, in the form that `load_recipe` reads.

        What gives access in a source's URL (user, password, signature) is left out: a recipe is stored with its run.
        """
        plain: dict[str, Any] = _plain(self)
        plain["data"]["source"] = _without_secrets(plain["data"]["source"])
        if self.spec.prompt is None:
            del plain["generation"]
        return plain

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML text."""
        from ruamel.yaml import YAML
        from ruamel.yaml.compat import StringIO

        stream = StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.width = 4096
        yaml.dump(self.resolved(), stream)
        return str(stream.getvalue())


def _without_secrets(source: Any) -> Any:
    if isinstance(source, dict):
        return {name: _without_secrets(paths) for name, paths in source.items()}
    return [without_secrets(path) for path in source] if isinstance(source, list) else without_secrets(source)


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.resolved() if value.options else value.name
    if isinstance(value, tuple) and value and all(isinstance(item, Gate) for item in value):
        return {gate.path: f"{gate.comparison} {gate.bound!r}" for gate in value}
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        plain = {name: _plain(getattr(value, name)) for name in fields}
        # what says nothing is left out: null or no text where that is the default, and no gates
        return {
            name: item
            for name, item in plain.items()
            if not (item in (None, "") and fields[name].default == item) and not (name == "gates" and not item)
        }
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def load_recipe(path: Path, overrides: Sequence[str] = (), *, check_inputs: bool = False) -> Recipe:
    """Read, merge and check a recipe; raise RecipeError with every problem, each with its file and line.

    With `check_inputs` the file of rows has to exist as well.
    """
    document = override(read_document(path), list(overrides))
    try:
        return Recipe.model_validate(document.values, context={"check_inputs": check_inputs})
    except ValidationError as error:
        raise RecipeError(sorted(_problems(error, document, Recipe, ()), key=_place)) from None


def _place(problem: Problem) -> tuple[str, int]:
    """Return file and line, to list problems in the order in which a reader meets them."""
    file, _, line = problem.where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (problem.where, 0)


def _problems(error: ValidationError, document: Document, model: type[BaseModel], prefix: Keys) -> Iterator[Problem]:
    for details in error.errors():
        keys = (*prefix, *details["loc"])
        nested = details.get("ctx", {}).get("error")
        if isinstance(nested, _BadOptions):
            yield from _problems(nested.error, document, nested.options, keys)
            continue
        if isinstance(nested, _Problems):
            for inner, message in nested.problems:
                yield Problem(document.origin((*keys, *inner)), dotted((*keys, *inner)), message)
            continue
        known = _known_fields(model, details["loc"])
        yield Problem(document.origin(keys), dotted(keys), _explain(details, known, nested))


def _known_fields(model: type[BaseModel], keys: Keys) -> list[str]:
    """Return the settings that exist beside the last key."""
    for key in keys[:-1]:
        field = model.model_fields.get(str(key))
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()  # of `Section | None` its parts
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _explain(details: Any, known: Sequence[str], nested: object) -> str:
    kind, found = details["type"], details["input"]
    if kind == "extra_forbidden":
        return f"unknown setting{suggestion(str(details['loc'][-1]), known)}"
    if kind == "missing":
        return "expected a value, found nothing; this setting is required"
    if kind == "value_error":
        return str(nested)
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return f"expected a mapping of settings, found {found!r}"
    if kind == "too_short":
        return f"expected at least {details['ctx']['min_length']} item, found {found!r}"
    if kind == "tuple_type":
        return f"expected a list, found {found!r}"
    if kind == "string_pattern_mismatch":
        return f"expected text of the form {details['ctx']['pattern']}, found {found!r}"
    expected = re.sub(r"^Input should be ", "expected ", details["msg"])
    return f"{expected}, found {found!r}"
