"""Baselines of generated texts: what was asked, said again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from finetune.evaluation.baselines import BaselineInput
from finetune.registry import baselines

if TYPE_CHECKING:
    from finetune.evaluation.predictions.texts import TextPredictions

# A sentence's last mark, with what closes behind it: blanks follow, or the mark is one that needs none
_END = re.compile(r"[.!?\u2026]+[\"'\u2019\u201d\u00bb)\]]*(?=\s)|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d\uff09]*")
# Where a full stop ends nothing: behind a letter alone (an initial, "U.S.") and behind a title
_SHORTENED = re.compile(r"(?:\b[^\W\d_]|\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs))\.$")


@baselines.register("copy-source", of=("texts",), title="the source itself")
def copy_source(given: BaselineInput) -> TextPredictions:
    """Say what was asked."""
    like = cast("TextPredictions", given.like)
    return like.saying(like.sources.tolist())


@baselines.register("lead-sentence", of=("texts",), title="the source's first sentence")
def lead_sentence(given: BaselineInput) -> TextPredictions:
    """Say the first sentence of the source, the lead baseline of summaries (Nenkova 2005)."""
    like = cast("TextPredictions", given.like)
    return like.saying([first_sentence(source) for source in like.sources])


def first_sentence(text: str) -> str:
    """Return the first sentence of a text's first line that is not blank; the line, where no mark ends one.

    A full stop behind a title or a single letter ends none, and nothing does before a lower-case letter.
    """
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    for end in _END.finditer(line):
        shortened = _SHORTENED.search(line[: end.end()])
        if not shortened and not line[end.end() :].lstrip()[:1].islower():
            return line[: end.end()]
    return line
