"""Loading of the pretrained models that write new text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError


def load_pretrained(model_id: str, revision: str | None, kind: str) -> tuple[Path, Any, Any]:
    """Return a model's folder, the model in float32 and its tokenizer; `kind` is one of transformers' auto classes.

    Only safetensors are read, and no code of the model runs. Raises FinetuneError when there is no such model, when it
    is of another kind, or when some of its weights are missing, since random ones write nonsense.
    """
    import torch

    from finetune.models.loading import find_model, first_line, load_tokenizer, quiet_transformers
    from finetune.recipe import ModelSection

    folder = find_model(ModelSection(id=model_id, revision=revision))
    tokenizer = load_tokenizer(folder)
    with quiet_transformers():
        import transformers

        try:
            model, info = getattr(transformers, kind).from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise FinetuneError(f"{folder}: not loadable as {kind}: {first_line(error)}") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise FinetuneError(f"{folder}: expected the weights of {kind}, found a checkpoint without {missing}")
    return folder, model.eval(), tokenizer
