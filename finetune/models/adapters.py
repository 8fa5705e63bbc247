"""Adapters with peft: small matrices that learn beside a frozen model, saved alone, and merged into it on request."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune.errors import FinetuneError
from finetune.models.adapter_targets import (
    AUTO,
    as_endings,
    endings_of,
    ends_with,
    inside,
    shared_weights,
    target_modules,
    whole_modules,
)
from finetune.models.freezing import Freezing, FreezingRow
from finetune.models.heads import listed

ADAPTER = "default"  # peft's name for the only adapter
INSTALL = "pip install 'finetune-toolkit[adapters]'"
# What peft warns of and then sets right (GPT-2's Conv1D), or this module does (copies of tied weights)
ANSWERED = ("fan_in_fan_out", "ensure_weight_tying")
# What peft calls the kinds of models; of others (masked language models) it only keeps the class
TASK_TYPES = {
    "sequence": "SEQ_CLS",
    "tokens": "TOKEN_CLS",
    "spans": "QUESTION_ANS",
    "none": "FEATURE_EXTRACTION",
    "causal": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
}


@dataclass(frozen=True)
class AdapterSettings:
    """What the adapters are like: LoRA (Hu et al. 2021), a product of two matrices of `rank` beside a linear layer.

    Their product counts `alpha / rank`, or `alpha / sqrt(rank)` with `rslora` (Kalajdzievski 2023); `dora` learns the
    length of each output's weights apart from their direction (Liu et al. 2024). `dropout` is on the adapters' input.
    `targets` and `also_train` are explained in adapter_targets; `bits` is of QLoRA's base model.
    """

    name: Literal["lora"] = "lora"
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: str | tuple[str, ...] = AUTO
    also_train: tuple[str, ...] = ()
    dora: bool = False
    rslora: bool = False
    bits: Literal[4, 8] | None = None

    def __post_init__(self) -> None:
        """Raise FinetuneError for numbers that make no adapter."""
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1 or not self.targets:
            raise FinetuneError(
                "adapter: expected a rank and an alpha of at least 1, a dropout from 0 up to 1, and targets; found "
                f"rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}, targets {self.targets!r}"
            )


@dataclass(frozen=True)
class AdapterRow:
    """One line of the table of what is trained."""

    group: str
    modules: int
    parameters: int


@dataclass(frozen=True)
class AppliedAdapter:
    """A model with adapters, of which only they and the modules in `whole` are trained.

    `freezing` is the same for the training loop. Its blocks all run in train mode, dropout on, as LoRA is trained:
    adapters in them learn. `notices` tell which layers were chosen, and why.
    """

    model: Any
    targets: tuple[str, ...]
    whole: tuple[str, ...]
    table: tuple[AdapterRow, ...]
    freezing: Freezing
    notices: tuple[str, ...]

    def trains_whole(self, ending: str) -> bool:
        """Tell whether a module whose name ends so is trained as a whole."""
        return any(ends_with(name, [ending]) for name in self.whole)


def apply_adapter(
    model: Any, settings: AdapterSettings, new_parameters: Iterable[str], head_kind: str
) -> AppliedAdapter:
    """Put adapters into a transformers model, in place, and freeze the rest but the head and what else is named.

    Adapters begin as no change at all: their first matrix is drawn from torch's global generator (seed it first), the
    second is zero. Raises FinetuneError where peft is not installed or the targets match nothing.
    """
    lora_config = peft_library().LoraConfig
    if settings.bits:
        assert getattr(model, "is_quantized", False), "load the model with quantization_config(settings) first"
        model = peft_library().prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    whole = whole_modules(model, new_parameters, head_kind, settings.also_train)
    names, chosen = target_modules(model, settings.targets, whole, quantized=bool(settings.bits))
    config = lora_config(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        target_modules=as_endings(model, names, whole),
        modules_to_save=list(whole) or None,  # peft adds to it in place
        task_type=TASK_TYPES.get(head_kind),
    )
    shared = [path for name in whole for path in shared_weights(model, name)]
    wrapped, notices = wrap(model, config)
    assert set(names) == set(_adapted(wrapped)), "peft took other modules than those that were chosen"
    assert set(whole) <= set(_trained_whole(wrapped)), "peft did not take every module that is to be trained whole"
    notices.insert(0, f"adapters on {listed(endings_of(names))} ({len(names)} modules): {chosen}")
    if shared:
        notices.append(
            f"tied, so neither trained nor untied, but saved with the adapter since it is in the head: {listed(shared)}"
        )
    table = _table(wrapped)
    trained_whole = tuple(_trained_whole(wrapped))
    freezing = _freezing(wrapped, table)
    return AppliedAdapter(wrapped, tuple(endings_of(names)), trained_whole, table, freezing, tuple(notices))


def peft_library() -> Any:
    """Return the library; raise FinetuneError with the command that installs it."""
    try:
        import peft
    except ImportError:
        raise FinetuneError(f"adapter: expected the library peft, found none. Install it: {INSTALL}") from None
    return peft


def wrap(model: Any, config: Any) -> tuple[Any, list[str]]:
    """Return peft's model around a transformers model, and what peft warns of."""
    with _as_notices() as notices:
        wrapped = peft_library().get_peft_model(model, config, adapter_name=ADAPTER)
    _tie_again(wrapped)
    return wrapped, notices


@contextlib.contextmanager
def _as_notices() -> Iterator[list[str]]:
    notices: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notices
    told = {str(item.message) for item in caught if issubclass(item.category, (UserWarning, RuntimeWarning))}
    told -= {text for text in told if any(part in text for part in ANSWERED)}
    notices += [f"peft: {text}" for text in sorted(told)]


def _tie_again(wrapped: Any) -> None:
    """Let the copies that peft made of whole modules share, frozen, what the originals share with other modules.

    Otherwise a language model's new head would learn a vocabulary of its own, which a merged model, saved with tied
    embeddings, would lose.
    """
    for name, wrapper in _wrappers(wrapped).items():
        prefix = f"{name}.original_module."
        tied = shared_weights(wrapped, name)
        for path, parameter in wrapper.original_module.named_parameters(remove_duplicate=False):
            if prefix + path in tied:
                owner, _, leaf = path.rpartition(".")
                setattr(wrapper.modules_to_save[ADAPTER].get_submodule(owner), leaf, parameter)


def _wrappers(wrapped: Any) -> dict[str, Any]:
    from peft.utils.other import ModulesToSaveWrapper

    return {name: module for name, module in wrapped.named_modules() if isinstance(module, ModulesToSaveWrapper)}


def _trained_whole(wrapped: Any) -> list[str]:
    prefix = "base_model.model."
    return [name.removeprefix(prefix) for name in _wrappers(wrapped)]


def _adapted(wrapped: Any) -> list[str]:
    from peft.tuners.lora import LoraLayer

    return [name for name, module in wrapped.base_model.model.named_modules() if isinstance(module, LoraLayer)]


def _table(wrapped: Any) -> tuple[AdapterRow, ...]:
    inner = wrapped.base_model.model
    adapted, whole = _adapted(wrapped), _trained_whole(wrapped)
    groups = [(f"adapters of {end}", [n for n in adapted if ends_with(n, (end,))]) for end in endings_of(adapted)]
    groups += [(f"{name}, whole", [name]) for name in whole]
    return tuple(
        AdapterRow(group, len(names), sum(_trainable(inner.get_submodule(name)) for name in names))
        for group, names in groups
    )


def _trainable(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _freezing(wrapped: Any, table: Sequence[AdapterRow]) -> Freezing:
    """Return the loop's view; the originals of modules that are trained whole take no part and are not counted."""
    replaced = [f"{name}.original_module" for name in _wrappers(wrapped)]
    frozen = {name: p.numel() for name, p in wrapped.named_parameters() if not p.requires_grad}
    base = sum(size for name, size in frozen.items() if not inside(name, replaced))
    rows = [FreezingRow("base model", base, 0)]
    rows += [FreezingRow(f"{row.group} ({row.modules})", row.parameters, row.parameters) for row in table]
    return Freezing(frozenset(frozen), tuple(rows), eval_modules=())


def quantization_config(settings: AdapterSettings, keep: Sequence[str] = ()) -> Any:
    """Return how transformers is to load QLoRA's base model, or None where the recipe asks for no quantization.

    4 bits are normal floats, quantized twice, computed in bfloat16 (Dettmers et al. 2023, section 3); 8 bits are
    LLM.int8 (Dettmers et al. 2022). `keep` names modules to leave in full precision: a new head, which has to learn.
    Raises FinetuneError without an NVIDIA GPU or without bitsandbytes.
    """
    import torch

    if settings.bits is None:
        return None
    missing = [] if torch.cuda.is_available() else ["an NVIDIA GPU"]
    missing += [] if importlib.util.find_spec("bitsandbytes") else ["the library bitsandbytes"]
    if missing:
        raise FinetuneError(
            f"adapter.bits: a base model in {settings.bits} bits needs an NVIDIA GPU and bitsandbytes (pip install "
            f"bitsandbytes); not found: {' and '.join(missing)}. Leave adapter.bits out to train in full precision"
        )
    from transformers import BitsAndBytesConfig

    kept = {"llm_int8_skip_modules": list(keep)} if keep else {}
    if settings.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, **kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        **kept,
    )
