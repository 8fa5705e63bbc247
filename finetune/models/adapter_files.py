"""An adapter's folder in peft's format: how it is written, and what has to hold before it is put on a base model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from finetune.artifacts import write_json, write_tensors
from finetune.errors import FinetuneError
from finetune.models.adapters import ADAPTER, peft_library, wrap
from finetune.models.folders import PICKLES
from finetune.models.heads import listed
from finetune.models.loading import first_line, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names, which other programs look for
UNSAFE = (*PICKLES, "*.bin", "*.pkl", "*.pickle", "*.py")
UNDERSTOOD = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save", "task_type"),
    *("fan_in_fan_out", "use_rslora", "use_dora", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "inference_mode"),
}
# Where it came from, and the names of classes, which only peft's own AutoPeftModel would import
IGNORED = {"auto_mapping", "base_model_name_or_path", "revision", "peft_version", "runtime_config"}


def save_adapter(model: Any, folder: Path, base_model: str = "") -> None:
    """Write the adapters, and what was trained whole, as safetensors and JSON that peft, and what reads it, opens.

    `base_model` is what the files call the base model; no path of this machine gets into them. Equal adapters make
    equal files.
    """
    from peft import get_peft_model_state_dict

    config = model.peft_config[ADAPTER]
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    values |= {"base_model_name_or_path": base_model, "inference_mode": True}
    values["modules_to_save"] = sorted(set(values["modules_to_save"] or ())) or None  # peft adds to it at each opening
    if config.task_type is None:
        inner = type(model.get_base_model())
        values["auto_mapping"] = {"base_model_class": inner.__name__, "parent_library": inner.__module__}
    tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, {name: tensor.clone() for name, tensor in sorted(tensors.items())})
    write_json(folder / CONFIG, dict(sorted(values.items())))


def load_adapter(base_model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """Put a saved adapter on a base model, in place; return peft's model, in eval mode, frozen unless `trainable`.

    Nothing of the folder is run or fetched, and no setting is followed that could. Raises FinetuneError for a folder
    that is no LoRA adapter, holds pickles or code, or was made for a model of another shape. That the weights are the
    ones it was trained on cannot be seen here: compare their SHA-256.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    config = _read_config(folder)
    tensors = _read_tensors(folder / WEIGHTS)
    config.inference_mode = not trainable
    try:
        model, notices = wrap(base_model, config)
    except (ValueError, TypeError) as error:
        raise FinetuneError(f"{folder}: an adapter for another model: {first_line(error)}") from error
    for notice in notices:
        warnings.warn(notice, stacklevel=2)
    expected = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    _check_fit(folder, expected, tensors)
    set_peft_model_state_dict(model, tensors, adapter_name=ADAPTER)
    return model.eval()


def _read_config(folder: Path) -> Any:
    """Return peft's configuration, made of the settings that are understood; refuse a folder that has others."""
    lora_config = peft_library().LoraConfig
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise FinetuneError(f"{folder}: expected an adapter ({CONFIG} and {WEIGHTS}), found no such files")
    unsafe = sorted({path.name for pattern in UNSAFE for path in folder.glob(pattern)})
    if unsafe:
        raise FinetuneError(
            f"{folder}: expected an adapter of safetensors and JSON alone, found files that can run code: "
            f"{listed(unsafe)}. Nothing here needs them: remove them if the rest comes from a source that you trust"
        )
    values = read_json(folder / CONFIG)
    if values.get("peft_type") != "LORA":
        raise FinetuneError(f"{folder}: expected an adapter of the type LORA, found {values.get('peft_type')!r}")
    defaults = lora_config().to_dict()
    foreign = sorted(
        key
        for key, value in values.items()
        if key not in UNDERSTOOD | IGNORED and value != defaults.get(key) and value not in (None, {}, False)
    )
    if foreign:
        raise FinetuneError(
            f"{folder}: expected plain LoRA, DoRA or rsLoRA, found settings that this version does not follow, since "
            f"such can import modules, fetch files or change the base model: {listed(foreign)}"
        )
    try:
        return lora_config(**{key: values[key] for key in UNDERSTOOD if key in values})
    except (TypeError, ValueError) as error:
        raise FinetuneError(f"{folder / CONFIG}: not a configuration of LoRA: {first_line(error)}") from None


def _read_tensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise FinetuneError(f"{path}: expected tensors as safetensors, found none that can be read ({error})") from None


def _check_fit(folder: Path, expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise FinetuneError unless an adapter has exactly the tensors that the base model with adapters asks for."""
    lacks, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [
        f"{name} has {list(found[name].shape)}, the model needs {list(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if found[name].shape != expected[name].shape
    ]
    problems = [f"{len(lacks)} tensors missing, such as {lacks[0]}"] if lacks else []
    problems += [f"{len(extra)} tensors without a place, such as {extra[0]}"] if extra else []
    problems += [f"{len(shapes)} of another shape: {shapes[0]}"] if shapes else []
    if problems:
        raise FinetuneError(
            f"{folder}: this adapter was made for another base model ({'; '.join(problems)}). Load the model that it "
            "was trained on, with as many labels"
        )
