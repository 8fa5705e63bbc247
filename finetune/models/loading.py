"""Finding a pretrained model's folder, proving that it is the one meant, and loading it safely."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError
from finetune.models.dropout import set_dropout
from finetune.models.families import AUTO_CLASSES, NEEDS, TEXT_FAMILIES, Kind, check_family
from finetune.models.folders import PICKLES, foreign_weights, hub_folder, package_folder
from finetune.models.heads import Head, apply_plan, listed, plan_head, set_labels

if TYPE_CHECKING:
    from finetune.recipe import ModelSection

WEIGHTS = "*.safetensors"
POSITIONS = ("max_position_embeddings", "n_positions")
# Their first position lies behind the padding token's id
OFFSET_FAMILIES = {
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "xmod", "data2vec-text"),
    *("mpnet", "longformer", "ibert", "luke", "lilt", "markuplm"),
}
ATTENTION_HINT = "Use another (every model has eager), or leave model.attention out."
ALLOW_CODE_HINT = "If you trust it, add --allow-code to the command; no recipe can switch this on."


@dataclass(frozen=True)
class LoadedModel:
    """A model in the number format that was asked for, which of its parameters are random, and what was done to it."""

    model: Any
    new_parameters: frozenset[str]
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ModelSettings:
    """How to load a model, whatever the task.

    `attention` is one of transformers' implementations (None: the best that it has for the family), `dropout` replaces
    every rate of dropout in the configuration, `dtype` is the number format of the parameters, `quantization` is how
    transformers quantizes them while loading. An `empty` model has shapes alone (torch's `meta` device).
    """

    allow_code: bool = False
    attention: str | None = None
    dropout: float | None = None
    dtype: str = "float32"
    quantization: Any = None
    empty: bool = False


def find_model(section: ModelSection, *, allow_code: bool = False) -> Path:
    """Return the folder of the model's files; from the Hub it is fetched first, pinned to the revision.

    Raises FinetuneError when there is none, or when it holds no safetensors weights and code is not allowed.
    """
    if section.id.startswith("package:"):
        folder = package_folder(section.id.removeprefix("package:"))
    elif Path(section.id).is_absolute():
        folder = Path(section.id)
        if not folder.is_dir():
            raise FinetuneError(f"model.id: expected a model's folder, found nothing at {folder}")
    else:
        folder = hub_folder(section.id, section.revision, allow_code)
    check_model_files(folder, allow_code=allow_code)
    return folder


def check_model_files(folder: Path, *, allow_code: bool) -> None:
    """Raise FinetuneError unless the folder holds a configuration and weights that cannot carry code."""
    foreign = foreign_weights(folder)
    if not (folder / "config.json").is_file():
        found = f"no config.json, but {foreign}: take the model that it was made from" if foreign else "no config.json"
        raise FinetuneError(f"{folder}: expected a Hugging Face model (config.json and weights), found {found}")
    if (folder / "adapter_config.json").exists():  # it would bring in weights from elsewhere, past every check
        raise FinetuneError(
            f"{folder}: expected a whole model, found an adapter (adapter_config.json). Merge it into the model that "
            "it was trained on (adapter.merge: true, or peft's merge_and_unload), and give the merged model's folder"
        )
    if not any(folder.glob(WEIGHTS)) and not allow_code:
        pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
        found = f"only pickle files ({', '.join(pickles)}), which can run code" if pickles else "no weights"
        found += f" but {foreign}, which cannot be trained" if foreign and not pickles else ""
        raise FinetuneError(
            f"{folder}: expected weights as safetensors, found {found}. {ALLOW_CODE_HINT if pickles else ''}"
        )
    config = read_json(folder / "config.json")
    if "auto_map" in config and not allow_code:
        raise FinetuneError(
            f"{folder}: this model comes with its own code (auto_map in config.json). {ALLOW_CODE_HINT}"
        )
    if "quantization_config" in config:
        raise FinetuneError(
            f"{folder}: expected a model in full or half precision, found one that is quantized already "
            "(quantization_config in config.json). Take the model that it was made from"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise FinetuneError if it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FinetuneError(f"{path}: expected a JSON file, found none that can be read ({error})") from None
    if not isinstance(values, dict):
        raise FinetuneError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the weights; of several files, that of the lines `digest  name` in order of name.

    Pickle weights count only where there are no safetensors, since then they are what is loaded.
    """
    files = sorted(folder.glob(WEIGHTS)) or sorted(path for pattern in PICKLES for path in folder.glob(pattern))
    digests = [(file_digest(path), path.name) for path in files]
    if len(digests) == 1:
        return digests[0][0]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in digests).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_weights(folder: Path, expected: str | None) -> None:
    """Raise FinetuneError unless the weights have the SHA-256 that the recipe names."""
    if expected is None:
        return
    found = weights_digest(folder)
    if found != expected:
        raise FinetuneError(
            f"model.sha256: expected weights with SHA-256 {expected}, found {found} in {folder}. "
            "These are other weights: check where they come from before you change the recipe."
        )


def load_tokenizer(folder: Path, *, allow_code: bool = False, pretokenized: bool = False) -> Any:
    """Load the tokenizer; one without a padding token pads with its end-of-text token, which the mask hides.

    With `pretokenized` it will be given words: byte-level tokenizers then have to put the blank before each.
    """
    with quiet_transformers():
        from transformers import AutoTokenizer

        try:
            options = {"add_prefix_space": True} if pretokenized else {}
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=allow_code, **options)
        except ImportError as error:
            raise FinetuneError(f"{folder}: its tokenizer needs a library: {first_line(error)}") from error
        except (OSError, ValueError, KeyError) as error:
            family = read_json(folder / "config.json").get("model_type", "unknown")
            raise FinetuneError(
                f"{folder}: expected a text model with its tokenizer (families such as {TEXT_FAMILIES}), found one of "
                f"the family {family!r} whose tokenizer cannot be loaded: {first_line(error)}"
            ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise FinetuneError(f"{folder}: its tokenizer has neither a padding nor an end-of-text token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # padding before the text would shift the positions of decoder models
    return tokenizer


def context_length(folder: Path, tokenizer: Any) -> int | None:
    """Return how many tokens the model can read at most, if its files say so."""
    limits = _positions(read_json(folder / "config.json"))
    if tokenizer.model_max_length < 1_000_000:  # larger numbers mean "not known"
        limits.append(int(tokenizer.model_max_length))
    return min(limits, default=None)


def config_context(config: dict[str, Any]) -> int | None:
    """Return how many tokens a model of this configuration has positions for; None where they have no end."""
    if config.get("is_encoder_decoder") and "relative_attention_num_buckets" in config:
        return None
    return min(_positions(config), default=None)


def _positions(config: dict[str, Any]) -> list[int]:
    parts = [config, config.get("text_config") or {}]
    limits = [part[key] for part in parts for key in POSITIONS if isinstance(part.get(key), int)]
    if config.get("model_type") in OFFSET_FAMILIES:
        return [limit - config.get("pad_token_id", 1) - 1 for limit in limits]
    return limits


def check_context(folder: Path, tokenizer: Any, max_length: int) -> None:
    """Raise FinetuneError when rows may become longer than the model can read."""
    check_length(context_length(folder, tokenizer), max_length)


def check_length(limit: int | None, max_length: int) -> None:
    """Raise FinetuneError when rows may become longer than a limit, if there is one."""
    if limit is not None and max_length > limit:
        raise FinetuneError(
            f"model.max_length: expected at most {limit} tokens, the longest that this model reads; found {max_length}"
            f". Set it to {limit} or less; with model.overflow: window longer texts are read in pieces of that length"
        )


def check_kind(folder: Path, kind: Kind, *, allow_code: bool = False) -> None:
    """Raise FinetuneError for a model that cannot do what a task needs; only its configuration is read."""
    with quiet_transformers():
        check_family(_read_config(folder, allow_code=allow_code), kind)


def load_model(folder: Path, head: Head, settings: ModelSettings) -> LoadedModel:
    """Load a pretrained model under the head that a task needs.

    Labels of the checkpoint are matched by name; what does not fit is made anew, and each of this brings a notice. New
    parameters are drawn from torch's global generator: seed it first. A run's own model comes back as it was saved.
    Raises FinetuneError for a model of another kind, and for settings that this model or machine does not have.
    """
    with quiet_transformers():
        config = _read_config(folder, allow_code=settings.allow_code)
        check_family(config, head.kind)
        plan = plan_head(config, head)
        trained_for = getattr(config, "problem_type", None)
        set_labels(config, head, plan.outputs)
        config.problem_type = head.problem or trained_for
        if settings.dropout is not None:
            set_dropout(config, settings.dropout)
        model, info = _open(folder, config, head, settings)
        mismatched = frozenset(str(item[0] if isinstance(item, tuple) else item) for item in info["mismatched_keys"])
        new = frozenset(info["missing_keys"]) | mismatched
        unused = [*info["unexpected_keys"]]
        if head.kind == "none":
            new, unused = without_pooler(model, new, unused)
        notices = _notices(model, new, mismatched, unused)
        changed, more = apply_plan(model, head, plan, new, mismatched)
    if head.problem and trained_for not in (None, head.problem) and not new | changed:
        more.append(f"the checkpoint's head was trained for {trained_for} and goes on for {head.problem}")
    return LoadedModel(model, new | changed, notices + more)


def fit_to_tokenizer(model: Any, tokenizer: Any) -> list[str]:
    """Give a model as many embeddings as its tokenizer has tokens, if it has fewer; return what was done."""
    try:
        known = model.get_input_embeddings().weight.shape[0]
    except (AttributeError, NotImplementedError):  # CANINE and Perceiver read characters and bytes
        return []
    if len(tokenizer) <= known:
        return []
    with quiet_transformers():
        # without content there is no mean to draw around
        model.resize_token_embeddings(len(tokenizer), mean_resizing=model.device.type != "meta")
    return [f"{len(tokenizer) - known} tokens are new to the model; their embeddings are drawn like its own"]


def embeddings_of(model: Any) -> list[str]:
    """Return the last names of the modules that hold a row for each token; of tied ones only the first."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    holding = [inputs] if outputs is None or outputs.weight is inputs.weight else [inputs, outputs]
    found = (next(name for name, module in model.named_modules() if module is one) for one in holding)
    return [name.rpartition(".")[2] for name in found]


def _read_config(folder: Path, *, allow_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=allow_code)
    except (OSError, ValueError, KeyError) as error:
        raise FinetuneError(
            f"{folder}: expected a configuration that transformers knows, found another: {first_line(error)}"
        ) from error


def _open(folder: Path, config: Any, head: Head, settings: ModelSettings) -> tuple[Any, dict[str, Any]]:
    """Return the model and what transformers says of its parameters."""
    import torch
    import transformers
    from safetensors import SafetensorError

    if settings.attention == "flash_attention_2" and not torch.cuda.is_available():
        raise FinetuneError(f"model.attention: flash_attention_2 needs an NVIDIA GPU, found none. {ATTENTION_HINT}")
    try:
        return getattr(transformers, AUTO_CLASSES[head.kind]).from_pretrained(  # type: ignore[no-any-return]
            folder,
            config=config,
            attn_implementation=settings.attention,
            dtype=getattr(torch, settings.dtype),  # otherwise a checkpoint in half precision trains in half precision
            trust_remote_code=settings.allow_code,
            use_safetensors=None if settings.allow_code else True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **({"quantization_config": settings.quantization} if settings.quantization else {}),
            **({"device_map": "meta"} if settings.empty else {}),
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if settings.attention and "attention" in str(error).lower():
            reason = re.split(r"\. |\n", first_line(error))[0]
            raise FinetuneError(
                f"model.attention: expected an implementation that this model and this machine have, found "
                f"{settings.attention} ({reason}). {ATTENTION_HINT}"
            ) from error
        raise FinetuneError(f"{folder}: not loadable as {NEEDS[head.kind]}: {first_line(error)}") from error


def without_pooler(model: Any, new: frozenset[str], unused: list[str]) -> tuple[frozenset[str], list[str]]:
    """Take off the layer that some encoders have for the first token: nothing would read or train it."""
    if "add_pooling_layer" not in inspect.signature(type(model).__init__).parameters or model.pooler is None:
        return new, unused
    names = {f"pooler.{name}" for name, _ in model.pooler.named_parameters()}
    model.pooler = None
    return new - names, [*unused, *sorted(names - new)]


def _notices(model: Any, new: frozenset[str], mismatched: frozenset[str], unused: Sequence[str]) -> list[str]:
    """Tell what the checkpoint brought and what not; raise FinetuneError when the encoder itself is not in it."""
    notices = []
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    inside = sorted(name for name in new if name.startswith(prefix))
    if inside and len(inside) > len(list(model.base_model.parameters())) // 2:
        raise FinetuneError(
            "model.id: most of the encoder's weights are not in this checkpoint "
            f"({len(inside)} missing, such as {inside[0]}): it belongs to another architecture"
        )
    foreign = sorted(name for name in mismatched if name in inside)
    if foreign:
        raise FinetuneError(
            f"model.id: the encoder's weights do not have the shapes that config.json says ({', '.join(foreign[:3])})"
        )
    if mismatched:
        notices.append(f"the checkpoint's head does not fit and is made anew: {', '.join(sorted(mismatched))}")
    if new - mismatched:
        notices.append(f"new, not from the checkpoint: {', '.join(sorted(new - mismatched))}")
    if unused:
        notices.append(f"in the checkpoint but not used: {listed(sorted(unused))}")
    return notices


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own reports and bars; what matters in them comes back as our notices."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
