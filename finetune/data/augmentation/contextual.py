"""The augmenter `contextual`: words replaced by what a masked language model expects in their places.

The method is that of Kobayashi, Contextual Augmentation: Data Augmentation by Words with Paradigmatic Relations, 2018,
https://aclanthology.org/N18-2072, with a pretrained model that does not see the label.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from random import Random
from typing import Annotated, Any

from pydantic import Field

from finetune.data.augmentation.choices import (
    Rate,
    draw,
    how_many,
    in_case_of,
    is_code,
    is_negation,
    replaced,
)
from finetune.data.augmentation.text import Piece, is_word
from finetune.errors import FinetuneError
from finetune.registry import augmenters

WINDOW = 50  # words on either side that the model sees; more hardly change what fits


@augmenters.register("contextual", level="words", tokens=True)
class Contextual:
    """Replace words by others that a masked language model finds likely in their places.

    Each word is drawn from the `top_k` likeliest whole words, by their probabilities, never the word itself and never
    a negation. Negations, numbers, addresses, masks and words in capitals stay. A masked language model does not know
    the label: `good` may become `bad`, so look at the preview. The model is loaded at the first row; its weights have
    to be safetensors and its own code never runs.
    """

    def __init__(
        self, *, model: str, revision: str | None = None, rate: Rate = 0.1, top_k: Annotated[int, Field(ge=1)] = 10
    ) -> None:
        self._model, self._revision = model, revision
        self._rate, self._top_k = rate, top_k

    def __call__(self, words: Sequence[str], random: Random) -> list[Piece]:
        """Return the words, some of them replaced; raise FinetuneError when the model cannot be loaded."""
        possible = [
            position
            for position, word in enumerate(words)
            if is_word(word) and not is_negation(word) and not is_code(word)
        ]
        chosen = draw(possible, how_many(words, self._rate), random)
        model = _load(self._model, self._revision)
        new: dict[int, str] = {}
        for position, likely in zip(chosen, model.expect(words, chosen), strict=True):
            choices = _first(likely, words[position], self._top_k)
            if choices:
                drawn = random.choices([word for word, _ in choices], [weight for _, weight in choices])
                new[position] = in_case_of(drawn[0], words[position])
        return replaced(words, new)


def _first(likely: Iterator[tuple[str, float]], word: str, most: int) -> list[tuple[str, float]]:
    """Return the likeliest words that may replace this one, each with its probability."""
    found: dict[str, float] = {}
    for new, probability in likely:
        if new.casefold() != word.casefold() and not is_negation(new):
            found.setdefault(new, probability)
        if len(found) == most:
            break
    return list(found.items())


class _MaskedModel:
    """A masked language model, its tokenizer, and which of its tokens are whole words."""

    def __init__(self, model: Any, tokenizer: Any, limit: int | None) -> None:
        self._model, self._tokenizer, self._limit = model, tokenizer, limit
        self._words: dict[int, str] = {}  # "" for a token that is no word

    def expect(self, words: Sequence[str], positions: Sequence[int]) -> list[Iterator[tuple[str, float]]]:
        """Return for each position the words that fit there with their probabilities, the likeliest first."""
        import torch

        if not positions:
            return []
        texts = [self._hide(words, position) for position in positions]
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=self._limit, return_tensors="pt")
        masks = batch["input_ids"] == self._tokenizer.mask_token_id
        with torch.inference_mode():
            logits = self._model(**batch).logits
        return [self._rank(logits[row][masks[row]]) for row in range(len(texts))]

    def _hide(self, words: Sequence[str], position: int) -> str:
        mask = self._tokenizer.mask_token
        seen = [word.replace(mask, "") for word in words[max(0, position - WINDOW) : position + WINDOW + 1]]
        seen[min(position, WINDOW)] = mask
        return " ".join(seen)

    def _rank(self, logits: Any) -> Iterator[tuple[str, float]]:
        """Yield whole words from the first mask's logits, shape (masks, tokens); no mask is left after a cut."""
        if not len(logits):
            return
        probabilities = logits[0].float().softmax(dim=-1)
        for token in probabilities.argsort(descending=True, stable=True).tolist():
            if word := self._word(token):
                yield word, float(probabilities[token])

    def _word(self, token: int) -> str:
        """Return the token's word, or nothing where it is a part of a word, a mark, a number or a special token."""
        if token not in self._words:
            word = self._tokenizer.decode([token]).strip()
            is_whole = word.isalpha() and token not in self._tokenizer.all_special_ids
            is_whole = is_whole and self._tokenizer(f" {word}", add_special_tokens=False)["input_ids"] == [token]
            self._words[token] = word if is_whole else ""
        return self._words[token]


@functools.lru_cache(maxsize=2)
def _load(model_id: str, revision: str | None) -> _MaskedModel:
    from finetune.data.augmentation.loading import load_pretrained
    from finetune.models.loading import context_length

    folder, model, tokenizer = load_pretrained(model_id, revision, "AutoModelForMaskedLM")
    if tokenizer.mask_token is None:
        raise FinetuneError(f"{folder}: expected a masked language model, found one whose tokenizer has no mask")
    return _MaskedModel(model, tokenizer, context_length(folder, tokenizer))
