"""How people read written texts: beside their references, the worst first, and how long they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.evaluation.sections import Histogram, Section, Table
from finetune.tasks import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.texts import TextPredictions

SAMPLES = 10  # texts that a report shows as they come, beside the worst
POINTS_DRAWN = 1000


def describe(predictions: TextPredictions, answer: int, row: Row) -> dict[str, Any]:  # noqa: ARG001
    """Return the text that was written, and where the limit of length took its end, or the beginning of the prompt."""
    assert predictions.finished is not None
    assert predictions.cut is not None
    unfinished = {} if predictions.finished[answer] else {"unfinished": True}
    cut = {"prompt_tokens_cut": int(predictions.cut[answer])} if predictions.cut[answer] else {}
    return {"text": predictions.said[answer], **unfinished, **cut}


def difficulty(predictions: TextPredictions) -> NDArray[Any]:
    """Return how little each text has in common with its references: 1 - ROUGE-L, of equal ones exact ones lowest."""
    from finetune.evaluation.rouge import VARIANTS

    overlap: NDArray[Any] = predictions.rouge[:, VARIANTS.index("rougeL")]
    hardness: NDArray[Any] = 1 - overlap - predictions.exact
    return hardness


def example(predictions: TextPredictions, answer: int, row: Row) -> dict[str, Any]:  # noqa: ARG001
    """Return what was asked, what was wanted and what was written."""
    from finetune.evaluation.rouge import VARIANTS

    return {
        "source": predictions.sources[answer],
        "wanted": " | ".join(predictions.references[answer]),
        "written": predictions.said[answer],
        "rougeL": round(float(predictions.rouge[answer, VARIANTS.index("rougeL")]), 3),
    }


def details(predictions: TextPredictions, seed: int) -> dict[str, Any]:
    """Return how long the texts are beside their references, how many have no end, samples, and what makes BLEU."""
    from finetune.evaluation.metrics.answers import shares
    from finetune.evaluation.metrics.texts import signatures, word_counts
    from finetune.evaluation.statistics import interval_of_sums

    assert predictions.finished is not None
    assert predictions.cut is not None
    counts = word_counts(predictions)
    shown = range(min(SAMPLES, len(predictions)))
    return {
        "length_ratio": interval_of_sums(counts, shares, seed).as_json(),
        "unfinished": int((~predictions.finished).sum()),
        "prompts_cut": int((predictions.cut > 0).sum()),
        "words": {"written": counts[:POINTS_DRAWN, 0].tolist(), "wanted": counts[:POINTS_DRAWN, 1].tolist()},
        "signatures": signatures(predictions),
        "samples": [
            {
                "source": predictions.sources[answer],
                "wanted": predictions.references[answer][0],
                "written": predictions.said[answer],
            }
            for answer in shown
        ],
        **({"without_answer": int((~predictions.answered[:, 1]).sum())} if predictions.pattern else {}),
    }


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Return a few texts as they are, facts about all of them, and a picture of their lengths."""
    facts: list[list[Any]] = [
        ["words written by words wanted", report["length_ratio"]],
        ["texts that reached the limit of length before their end", report["unfinished"]],
        ["prompts that lost their beginning, since the model would have had no room to write", report["prompts_cut"]],
    ]
    if "without_answer" in report:
        facts.append(["references in which the pattern finds no answer", report["without_answer"]])
    facts += [[f"settings of {name}", signature] for name, signature in report["signatures"].items()]
    facts += [[f"generation.{name}", str(value)] for name, value in report["generation"].items()]
    samples = [[sample["source"], sample["wanted"], sample["written"]] for sample in report["samples"]]
    return [
        Table("Samples", ["source", "wanted", "written"], samples, "The first texts of the split.", text_columns=3),
        Table("How they were written", ["what", "value"], facts),
        Histogram("Lengths", report["words"], "words"),
    ]
