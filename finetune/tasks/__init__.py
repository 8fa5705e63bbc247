"""What a model learns: one file per task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from finetune import registry
from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder
from finetune.evaluation.predictions import Predictions
from finetune.evaluation.sections import Section
from finetune.tasks.voting import Voting

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable, Split
    from finetune.models.heads import Head

Row = Mapping[str, Any]
Fitted = Mapping[str, Any]
# From scores, targets and what was fitted to the loss of each target, and what it counts as in their mean
Criterion = Callable[["torch.Tensor", "torch.Tensor", Fitted], tuple["torch.Tensor", "torch.Tensor"]]


@dataclass(frozen=True)
class Frequencies:
    """How often each label is among the targets of the training rows, in the order of the model's outputs.

    `decisions` is how often it could have been: of one class out of several the number of targets, of label sets that
    of rows.
    """

    counts: Mapping[str, int]
    decisions: int


@dataclass(frozen=True)
class Batch:
    """Tensors of a few windows, their first dimension: what the model takes, and what the loss needs beside it.

    `inputs` always has `input_ids` and `attention_mask` of shape (windows, length); `targets` is empty when the rows
    have none.
    """

    inputs: dict[str, torch.Tensor]
    targets: dict[str, torch.Tensor]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        moved = ({name: tensor.to(device) for name, tensor in part.items()} for part in (self.inputs, self.targets))
        return Batch(*moved)


class PreparesRows(Protocol):
    """The half of a task that `prepare` needs: which columns there are, and what the model reads of them."""

    columns: Mapping[str, Column]

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:
        """Return the features of rows that are given column by column; targets only where the rows have them."""

    def head(self, labels: Sequence[str]) -> Head:
        """Return what the task needs on top of the pretrained model."""


class Task(PreparesRows, Protocol):
    """What a task has to do. `fitted` is what was fitted on the data beside the weights, and stays with the run."""

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad the features of a few windows into one batch of tensors."""

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the model's raw outputs, one entry a window; by tensor operations alone, since it is exported."""

    def loss(self, outputs: torch.Tensor, batch: Batch, fitted: Fitted) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of the losses and the number of targets (with weights: their sum) that it is a sum over."""

    def decode(
        self,
        outputs: Sequence[NDArray[Any]],
        features: FeatureTable,
        rows: Sequence[Row],
        labels: Sequence[str],
        fitted: Fitted,
    ) -> Predictions:
        """Turn the model's raw outputs, one array a window, into predictions that metrics understand.

        `features.row_ids` says which row each window is of. What is not in `fitted` has not been fitted yet.
        """


@dataclass(frozen=True)
class TaskSpec:
    """What the rest of the toolkit must know about a task without knowing the task.

    `kind` is the kind of its predictions, by which metrics and baselines are chosen. Rows equal in `unit_role` stay
    in one split, and intervals are over them; without it, over rows. `question` are the columns that `predict` asks
    for; without it, those of the text roles.

    How people read it: `describe` gives one answer as `predict` writes it and `example` the cells of a worst example
    (both of predictions, the answer's number and its row); `difficulty` orders the examples, the worst highest.
    `details` adds keys to the JSON report, and `sections` makes tables and pictures of that report.

    The feature `class_id` is each row's class, by which what is learned from may be balanced.

    `loss` is the default of tasks whose loss a recipe may choose, from those that are for the same targets; the others
    have their own. `frequencies` counts what such a loss may have to know of the training rows.

    What is fitted beside the weights: `fit_targets` on the training rows before training, `fit_decisions` on
    predictions for the validation split. Features equal in `together` share a micro-batch (`row`: the parts of a row),
    and batch sizes count such groups; those of like size share a batch, a window being as large as its features
    `sized_by` are long together. With `steps` a step's windows are drawn whatever their size, since of targets that are
    many in a window those of short ones would count more, each in a step of few; `parts` of like size are then computed
    one after another, or the `whole` step, in which a task packs them. A loss that does not add up over micro-batches
    refuses accumulation. Where `draws`, each window that is learned from or scored has a `draw`, three
    numbers that seed what `collate` draws: other ones in each epoch, always the same in evaluation. `reduce` makes of
    raw outputs, too large to be kept for all windows, what `decode` needs of them, one entry a window. `in_words` puts
    predictions of tokens into words (of predictions and the tokenizer). A task with a `prompt` writes texts: of a
    window's features it is the ids after which writing begins.
    """

    kind: str
    metrics: tuple[str, ...]
    baselines: tuple[str, ...]
    text_roles: tuple[str, ...]
    label_role: str | None
    describe: Callable[[Any, int, Row], dict[str, Any]]
    example: Callable[[Any, int, Row], dict[str, Any]]
    difficulty: Callable[[Any], NDArray[Any]]
    worst_means: str
    details: Callable[[Any, int], dict[str, Any]]
    sections: Callable[[Mapping[str, Any]], list[Section]]
    unit: Literal["row", "document", "query", "source"] = "row"
    unit_role: str | None = None
    question: Mapping[str, Column] | None = None
    class_id: str | None = None
    loss: str | None = None
    frequencies: Callable[[Split, Sequence[str]], Frequencies] | None = None
    fit_targets: Callable[[Iterable[Row]], dict[str, Any]] | None = None
    fit_decisions: Callable[[Any], dict[str, Any]] | None = None
    together: str | None = None
    sized_by: tuple[str, ...] = ("input_ids",)
    steps: Literal["parts", "whole"] | None = None
    adds_up: bool = True
    by_token: bool = False
    draws: bool = False
    reduce: Callable[[torch.Tensor, Batch], torch.Tensor] | None = None
    in_words: Callable[[Any, Any], Any] | None = None
    prompt: Callable[[Mapping[str, Any]], list[int]] | None = None
    voting: Voting | None = None  # how several models answer as one; None: what they say has no average
    windows: bool = True  # whether long texts may become windows
    whole_tokenizer: bool = False  # whether encoding takes more than the tokenizer's fast backend
    undefined: Mapping[str, str] = field(default_factory=dict)  # metrics of its kind that it can't have, and why

    @property
    def judged_by_text(self) -> bool:
        """Whether what the model writes is scored; of other tasks that write it is only shown."""
        return self.prompt is not None and self.kind == "texts"


def open_task(
    name: str, options: Mapping[str, Any], loss: tuple[str, Mapping[str, Any]] | None = None
) -> tuple[Task, TaskSpec]:
    """Return the task of that name and its declaration; `loss` is the name and the options of a loss that fits it.

    A task whose loss can be chosen finds it, or its default, as its `criterion`.
    """
    entry = registry.tasks.get(name)
    task, spec = entry.build(options), entry.attributes["spec"]
    spec = spec(options) if callable(spec) else spec
    if spec.loss is not None:
        chosen, settings = loss or (spec.loss, {})
        task.criterion = registry.losses.get(chosen).build(settings)
    return cast(Task, task), spec


def reads_words(task: PreparesRows) -> bool:
    """Tell whether rows are words, which byte-level tokenizers must be told to part by blanks."""
    return any(column.kind == "tokens" for column in task.columns.values())


def prepare_tokenizer(task: PreparesRows, tokenizer: Any) -> None:
    """Let a task change the tokenizer before anything is tokenized, if it wants to: tokens or a template of its own."""
    prepare = getattr(task, "prepare_tokenizer", None)
    if prepare is not None:
        prepare(tokenizer)


def check_model(task: Task, model: Any) -> None:
    """Let a task refuse a loaded model that cannot do what its options ask for."""
    check = getattr(task, "check_model", None)
    if check is not None:
        check(model)


def end_ids(task: Task, tokenizer: Any) -> list[int]:
    """Return the tokens by which a task's texts end beside the tokenizer's end of text, if it has any."""
    found = getattr(task, "end_ids", None)
    return [] if found is None else found(tokenizer)


def save_extras(task: Task, folder: Path, max_length: int) -> None:
    """Write what a task wants to lie beside its model, if anything: what other libraries need to open it."""
    save = getattr(task, "save_extras", None)
    if save is not None:
        save(folder, max_length)
