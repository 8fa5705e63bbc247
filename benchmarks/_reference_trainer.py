"""One run of the reference of `quality.py`: transformers' Trainer, set up as its example scripts set it up.

    python benchmarks/_reference_trainer.py JOB.json RESULT.json FOLDER

The scripts are run_glue, run_classification, run_ner and run_qa of transformers' examples/pytorch: inputs cut at
`max_length` (contexts in windows), padding to the longest of a batch, TrainingArguments' own optimizer, schedule and
clipping, an evaluation after each epoch, and the best model put back at the end. Pairs are encoded as pairs, tags stand
at the first token of a word, several labels are decided at 0.5, and answers are the best of 20 x 20 spans.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _measure import trainer_arguments
from _quality_data import Row, read_rows
from _quality_scores import score

NO_TARGET = -100
BEST_SPANS, LONGEST_ANSWER = 20, 30


@dataclass
class Part:
    """The rows of one file, what the model reads of them, and what truncation took."""

    rows: list[Row]
    features: list[dict[str, Any]] = field(default_factory=list)
    row_ids: list[int] = field(default_factory=list)
    offsets: list[list[Any]] = field(default_factory=list)
    words: list[list[int | None]] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)


Logits = Any  # an array of shape (rows, outputs) or (rows, length, tags), or two of shape (windows, length)


class Reference:
    """How one kind of target is encoded, learned and decoded."""

    def __init__(self, job: dict[str, Any], tokenizer: Any) -> None:
        self.job, self.kind, self.tokenizer = job, job["kind"], tokenizer
        self.rows = {name: read_rows(path) for name, path in job["files"].items()}
        self.labels = self._labels(self.rows["train"])

    def _labels(self, rows: Sequence[Row]) -> list[str]:
        if self.kind == "label":
            return sorted({row["label"] for row in rows})
        if self.kind == "labels":
            return sorted({label for row in rows for label in row["labels"]})
        return sorted({tag for row in rows for tag in row["tags"]}) if self.kind == "tags" else []

    def model(self, folder: str) -> Any:
        """Load the model with the head that the script gives it."""
        import transformers as t

        if self.kind == "answer":
            return t.AutoModelForQuestionAnswering.from_pretrained(folder)
        if self.kind == "number":
            return t.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, problem_type="regression")
        names = {"id2label": dict(enumerate(self.labels)), "label2id": {name: i for i, name in enumerate(self.labels)}}
        if self.kind == "tags":
            return t.AutoModelForTokenClassification.from_pretrained(folder, **names)
        problem = "single_label_classification" if self.kind == "label" else "multi_label_classification"
        return t.AutoModelForSequenceClassification.from_pretrained(folder, problem_type=problem, **names)

    def collator(self) -> Any:
        import transformers as t

        if self.kind == "tags":
            return t.DataCollatorForTokenClassification(self.tokenizer)
        return t.DataCollatorWithPadding(self.tokenizer)

    def encode(self, name: str) -> Part:
        """Return one file as the model reads it."""
        part = Part(self.rows[name])
        {"tags": self._encode_words, "answer": self._encode_contexts}.get(self.kind, self._encode_texts)(part)
        return part

    def _encode_texts(self, part: Part) -> None:
        texts = [row["text"] for row in part.rows]
        pairs = [row["text_pair"] for row in part.rows] if "text_pair" in part.rows[0] else None
        cut = self.tokenizer(texts, pairs, truncation=True, max_length=self.job["max_length"])
        whole = self.tokenizer(texts, pairs)
        part.features = [dict(zip(cut, values, strict=True)) for values in zip(*cut.values(), strict=True)]
        for feature, row in zip(part.features, part.rows, strict=True):
            feature["labels"] = self._target(row)
        lengths = zip(cut["input_ids"], whole["input_ids"], strict=True)
        part.lost = {"rows cut": sum(len(kept) < len(all_) for kept, all_ in lengths)}

    def _target(self, row: Row) -> Any:
        if self.kind == "number":
            return float(row["score"])
        if self.kind == "labels":
            return [float(label in row["labels"]) for label in self.labels]
        return self.labels.index(row["label"])

    def _encode_words(self, part: Part) -> None:
        tokens = [row["tokens"] for row in part.rows]
        encoded = self.tokenizer(tokens, truncation=True, max_length=self.job["max_length"], is_split_into_words=True)
        entities = labels = cut = 0
        for index, row in enumerate(part.rows):
            words = encoded.word_ids(index)
            firsts = [
                word if word is not None and word != before else None
                for word, before in zip(words, [None, *words[:-1]], strict=True)
            ]
            part.words.append(firsts)
            part.features.append({name: encoded[name][index] for name in encoded})
            part.features[-1]["labels"] = [
                NO_TARGET
                if word is None or row["tags"][word] not in self.labels
                else self.labels.index(row["tags"][word])
                for word in firsts
            ]
            kept = 1 + max(word for word in words if word is not None)
            following = [*row["tags"][1:], "O"]
            pairs = list(zip(row["tags"], following, strict=True))[kept:]
            entities += sum(tag != "O" and after != f"I-{tag[2:]}" for tag, after in pairs)
            labels += len(pairs)
            cut += bool(pairs)
        part.lost = {"rows cut": cut, "labels": labels, "entities": entities}

    def _encode_contexts(self, part: Part) -> None:
        """As run_qa's prepare_train_features and prepare_validation_features do."""
        encoded = self.tokenizer(
            [row["question"].lstrip() for row in part.rows], [row["context"] for row in part.rows],
            truncation="only_second", max_length=self.job["max_length"], stride=self.job["stride"],
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        inputs = [name for name in encoded if name not in {"overflow_to_sample_mapping", "offset_mapping"}]
        seen = set()
        for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
            inside = [kind == 1 for kind in encoded.sequence_ids(window)]
            offsets = [
                place if is_context else None
                for place, is_context in zip(encoded["offset_mapping"][window], inside, strict=True)
            ]
            answers = part.rows[row]["answers"]
            start, end = _answer_tokens(offsets, answers["answer_start"][0], len(answers["text"][0]))
            part.offsets.append(offsets)
            part.row_ids.append(row)
            part.features.append({name: encoded[name][window] for name in inputs})
            part.features[-1] |= {"start_positions": start, "end_positions": end}
            seen |= {row} if start else set()
        part.lost = {
            "rows in windows": len({row for row in part.row_ids if part.row_ids.count(row) > 1}),
            "answers": len(part.rows) - len(seen),
        }

    def decode(self, part: Part, logits: Logits) -> list[Any]:
        """Return the answer to each row of a file, as the example scripts write them."""
        if self.kind == "answer":
            return _answers(part, *logits)
        if self.kind == "number":
            return [float(value) for value in np.asarray(logits).reshape(-1)]
        if self.kind == "label":
            return [self.labels[index] for index in logits.argmax(-1)]
        if self.kind == "labels":
            return [[self.labels[index] for index in np.flatnonzero(row > 0)] for row in logits]
        said = []
        for row, words, scores in zip(part.rows, part.words, logits, strict=True):
            tags = ["O"] * len(row["tokens"])  # what was cut off is not tagged
            for token, word in enumerate(words):
                if word is not None:
                    tags[word] = self.labels[int(scores[token].argmax())]
            said.append(tags)
        return said

    def measure(self, part: Part, predictions: list[Any]) -> float:
        """Return the score by which the best epoch is chosen."""
        return score(self.kind, [TRUE[self.kind](row) for row in part.rows], predictions)[self.job["score"]].value


TRUE: dict[str, Callable[[Row], Any]] = {
    "label": lambda row: row["label"],
    "labels": lambda row: row["labels"],
    "number": lambda row: row["score"],
    "tags": lambda row: row["tags"],
    "answer": lambda row: row["answers"]["text"],
}


def _answer_tokens(offsets: Sequence[Any], start: int, length: int) -> tuple[int, int]:
    """Return the first and the last token of an answer, 0 and 0 (the first token) where the window lacks a part."""
    context = [token for token, place in enumerate(offsets) if place is not None]
    if not context or offsets[context[0]][0] > start or offsets[context[-1]][1] < start + length:
        return 0, 0
    first = max(token for token in context if offsets[token][0] <= start)
    last = min(token for token in context if offsets[token][1] >= start + length)
    return first, last


def _answers(part: Part, starts: Any, ends: Any) -> list[str]:
    """As utils_qa's postprocess_qa_predictions does, where every question has an answer."""
    best: list[tuple[float, str]] = [(-np.inf, "empty")] * len(part.rows)
    for window, row in enumerate(part.row_ids):
        offsets = part.offsets[window]
        inside = {token for token, place in enumerate(offsets) if place is not None}
        context = part.rows[row]["context"]
        for start in np.argsort(starts[window])[-1 : -BEST_SPANS - 1 : -1].tolist():
            for end in np.argsort(ends[window])[-1 : -BEST_SPANS - 1 : -1].tolist():
                if {start, end} <= inside and start <= end < start + LONGEST_ANSWER:
                    value = float(starts[window][start] + ends[window][end])
                    best[row] = max(best[row], (value, context[offsets[start][0] : offsets[end][1]]), key=_first)
    return [text for _, text in best]


def _first(pair: tuple[float, str]) -> float:
    return pair[0]


def main() -> None:
    """Train, choose the best epoch, answer the test file, and write the result."""
    import torch
    import transformers

    job, result, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), Path(sys.argv[3])
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    reference = Reference(job, tokenizer)
    train, validation, test = (reference.encode(name) for name in ("train", "validation", "test"))
    arguments = trainer_arguments(
        folder, seed=job["seed"], max_steps=job["steps"], learning_rate=job["learning_rate"],
        per_device_train_batch_size=job["batch_size"], per_device_eval_batch_size=64, lr_scheduler_type="linear",
        warmup_steps=0, eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, save_only_model=True,
        load_best_model_at_end=True, metric_for_best_model="score", greater_is_better=True,
    )  # fmt: skip
    transformers.set_seed(job["seed"])

    def measure(output: Any) -> dict[str, float]:
        return {"score": reference.measure(validation, reference.decode(validation, output.predictions))}

    trainer = transformers.Trainer(
        reference.model(job["model"]), arguments, train_dataset=train.features,
        eval_dataset=validation.features, data_collator=reference.collator(), processing_class=tokenizer,
        compute_metrics=measure,
    )  # fmt: skip
    trainer.train()
    trainer.compute_metrics = None  # it is about the validation rows
    predictions = reference.decode(test, trainer.predict(test.features).predictions)
    found = {
        "validation": trainer.state.best_metric,
        "steps": trainer.state.global_step,
        "predictions": predictions,
        "lost": {name: part.lost for name, part in (("train", train), ("test", test))},
    }
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
