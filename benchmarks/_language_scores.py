"""The scorer of `language.py`, one for both systems and neither's: transformers alone opens the model and runs it.

    python benchmarks/_language_scores.py JOB.json MODEL RESULT.json

RESULT has a unit for each test row, and what is summed over rows: the score and 1, or the loss and the tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from _language_data import Row, read_rows

BATCH = 32


def sequences(kind: str, rows: list[Row], tokenizer: Any, most: int) -> list[tuple[list[int], int]]:
    """Return the ids of each row, and how many of them are given and not guessed."""
    end = tokenizer.eos_token_id
    if kind == "completion":
        prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
        answers = tokenizer([row["completion"] for row in rows], add_special_tokens=False)["input_ids"]
        found = [([*prompt, *answer, end], len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]
        return [(ids, given) for ids, given in found if len(ids) <= most]  # whole rows alone
    texts = tokenizer([row["text"] for row in rows], add_special_tokens=False)["input_ids"]
    # a text begins behind the end of another, as the reference has learned it, and ours has not
    return [([end, *text, end][:most], 1) for text in texts]


def losses(job: dict[str, Any], model: Any, tokenizer: Any, rows: list[Row]) -> dict[str, Any]:
    """Return the summed loss and the number of guessed tokens of each row."""
    import torch

    asked = sequences(job["kind"], rows, tokenizer, job["max_length"])
    sums = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        width = max(len(ids) for ids, _ in part)
        ids = torch.tensor([one + [0] * (width - len(one)) for one, _ in part])
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one, _ in part])
        logits = model(input_ids=ids, attention_mask=mask).logits.double().log_softmax(dim=-1)
        told = -logits[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]
        for row, (one, given) in enumerate(part):
            sums.append([float(told[row, given - 1 : len(one) - 1].sum()), len(one) - given])
    return {"units": list(range(len(asked))), "sums": sums, "left_out": len(rows) - len(asked)}


def written(job: dict[str, Any], model: Any, tokenizer: Any, rows: list[Row]) -> dict[str, Any]:
    """Return the score of what is written for each source, against all of its references."""
    import torch
    from sacrebleu.metrics import CHRF

    references: dict[str, list[str]] = {}
    for row in rows:
        references.setdefault(row["source"], []).append(row["target"])
    sources = sorted(references, key=len)
    chrf = CHRF()
    scores: dict[str, float] = {}
    for start in range(0, len(sources), BATCH):
        part = sources[start : start + BATCH]
        inputs = tokenizer(part, padding=True, truncation=True, max_length=job["max_length"], return_tensors="pt")
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            ids = model.generate(**given, max_new_tokens=job["max_new_tokens"], num_beams=1, do_sample=False)
        for source, text in zip(part, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            known = references[source]
            exact = float(text.strip() in [one.strip() for one in known])
            scores[source] = exact if job["score"] == "exact match" else chrf.sentence_score(text, known).score / 100
    return {"units": list(range(len(scores))), "sums": [[scores[source], 1] for source in references], "left_out": 0}


def main() -> None:
    """Open the model, answer the test rows, and write the sums."""
    import torch
    import transformers as t

    job, folder, result = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], Path(sys.argv[3])
    t.logging.set_verbosity_error()
    torch.set_num_threads(1)
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    kind = t.AutoModelForSeq2SeqLM if job["kind"] == "seq2seq" else t.AutoModelForCausalLM
    model = kind.from_pretrained(folder).eval()
    rows = read_rows(job["files"]["test"])
    with torch.no_grad():
        found = (written if job["kind"] == "seq2seq" else losses)(job, model, tokenizer, rows)
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
