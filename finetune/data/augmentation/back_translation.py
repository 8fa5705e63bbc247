"""The augmenter `back-translation`: a text into another language and back.

The method is that of Sennrich, Haddow and Birch, Improving Neural Machine Translation Models with Monolingual Data,
2016, https://aclanthology.org/P16-1009, used for paraphrases as in Xie et al., Unsupervised Data Augmentation for
Consistency Training, 2020, https://arxiv.org/abs/1904.12848.
"""

from __future__ import annotations

import functools
from random import Random
from typing import Annotated, Any

from pydantic import Field

from finetune.registry import augmenters


@augmenters.register("back-translation", level="text", tokens=False)
class BackTranslation:
    """Translate a text with the model `there` and translate the result with the model `back`.

    Both are sequence-to-sequence models such as MarianMT or T5, whose task goes into `there_prefix` and `back_prefix`
    (`translate English to German: `). Each line of a text is translated by itself, by the likeliest token at each
    place, so that a text has one result. A text with a line that is longer than a model reads, or whose translation
    does not end within `max_tokens`, is left as it is. Weights have to be safetensors; no code of a model runs.
    """

    def __init__(
        self,
        *,
        there: str,
        back: str,
        there_revision: str | None = None,
        back_revision: str | None = None,
        there_prefix: str = "",
        back_prefix: str = "",
        max_tokens: Annotated[int, Field(ge=2)] = 256,
    ) -> None:
        self._models = ((there, there_revision, there_prefix), (back, back_revision, back_prefix))
        self._max_tokens = max_tokens

    def __call__(self, text: str, random: Random) -> str:  # noqa: ARG002 -- nothing is drawn
        """Return the translated text; raise FinetuneError when a model cannot be loaded."""
        lines = text.split("\n")
        filled = [line.strip() for line in lines if line.strip()]
        for model_id, revision, prefix in self._models:
            translated = _load(model_id, revision).translate([prefix + line for line in filled], self._max_tokens)
            if translated is None:
                return text
            filled = translated
        new = iter(filled)
        return "\n".join(next(new) if line.strip() else line for line in lines)


class _Translator:
    """A sequence-to-sequence model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, limit: int | None) -> None:
        self._model, self._tokenizer, self._limit = model, tokenizer, limit

    def translate(self, lines: list[str], max_tokens: int) -> list[str] | None:
        """Return each line's translation, or nothing when one is empty or would be cut."""
        import torch

        from finetune.models.loading import quiet_transformers

        if not lines:
            return None
        batch = self._tokenizer(lines, padding=True, return_tensors="pt", return_token_type_ids=False)
        if self._limit is not None and batch["input_ids"].shape[1] > self._limit:
            return None
        with torch.inference_mode(), quiet_transformers():
            tokens = self._model.generate(
                **batch, do_sample=False, num_beams=1, max_new_tokens=max_tokens, max_length=None
            )
        if tokens.shape[1] > max_tokens:  # the first is the start: the longest line reached the limit
            return None
        new = [" ".join(line.split()) for line in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        return new if all(new) else None


@functools.lru_cache(maxsize=4)
def _load(model_id: str, revision: str | None) -> _Translator:
    from finetune.data.augmentation.loading import load_pretrained
    from finetune.models.loading import context_length

    folder, model, tokenizer = load_pretrained(model_id, revision, "AutoModelForSeq2SeqLM")
    return _Translator(model, tokenizer, context_length(folder, tokenizer))
