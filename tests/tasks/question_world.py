"""A tiny world of questions about contexts: rows, a tokenizer that knows pairs, and a model under it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.conftest import FILLER, LABEL_WORDS, build_tiny_model


def question_rows(count: int, *, longest: int = 30, unanswerable: int = 0, seed: int = 3) -> list[dict[str, Any]]:
    """Return rows in SQuAD's form, two about each context of 8 to `longest` words: for its fruit and for its tool.

    Every `unanswerable`-th row asks for the weather, of which there is none in the context.
    """
    generator = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        if number % 2 == 0:
            words = generator.choices(FILLER[:9], k=generator.randint(6, longest - 2))
            here = {kind: generator.choice(LABEL_WORDS[kind]) for kind in ("fruit", "tool")}
            for word in here.values():
                words.insert(generator.randrange(len(words) + 1), word)
        missing = bool(unanswerable) and number % unanswerable == 0
        answer, about = list(here.values())[number % 2], "weather" if missing else list(here)[number % 2]
        texts = [] if missing else [answer]
        rows.append(
            {
                "context": " ".join(words),
                "question": f"{FILLER[number % 20]} {generator.choice(LABEL_WORDS[about])} {FILLER[number // 20 % 20]}",
                "answers": {"text": texts, "answer_start": [_place(words, text) for text in texts]},
            }
        )
    return rows


def _place(words: list[str], word: str) -> int:
    """Return the first character of a word in a text of words with a blank between them."""
    return sum(len(before) + 1 for before in words[: words.index(word)])


def pair_model(folder: Path, *, dropout: float = 0.0) -> Path:
    """Save the tiny model with a tokenizer that puts `[SEP]` between two texts and numbers their segments."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    build_tiny_model(folder, dropout=dropout)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save_pretrained(folder)
    return folder


def pair_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of that model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pair_model(folder / "pairs"))
