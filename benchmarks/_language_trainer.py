"""One run of the reference of `language.py`: Trainer or Seq2SeqTrainer, set up as transformers' example scripts do.

    python benchmarks/_language_trainer.py JOB.json FOLDER

The scripts are run_clm (texts joined, an end of text behind each, and cut into blocks of equal length) and
run_summarization (sources and targets cut, padded to the longest of a batch); prompts and completions are joined as
supervised fine-tuning has them, the prompt's labels masked. The best of ten evaluations is put back at the end.
"""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path
from typing import Any

from _language_data import Row, read_rows
from _measure import Rows

NO_TARGET = -100


def encode(job: dict[str, Any], rows: list[Row], tokenizer: Any) -> list[dict[str, list[int]]]:
    """Return what the model reads of some rows, and its labels."""
    most = job["max_length"]
    if job["kind"] == "seq2seq":
        sources = tokenizer([row["source"] for row in rows], truncation=True, max_length=most)
        targets = tokenizer(text_target=[row["target"] for row in rows], truncation=True, max_length=most)
        return [
            {"input_ids": source, "attention_mask": [1] * len(source), "labels": target}
            for source, target in zip(sources["input_ids"], targets["input_ids"], strict=True)
        ]
    if job["kind"] == "completion":
        return [_completion(row, tokenizer, most) for row in rows]
    end = [tokenizer.eos_token_id]
    texts = tokenizer([row["text"] for row in rows], add_special_tokens=False)["input_ids"]
    joined = list(chain.from_iterable(text + end for text in texts))
    blocks = [joined[start : start + most] for start in range(0, len(joined) // most * most, most)]
    return [{"input_ids": block, "attention_mask": [1] * most, "labels": list(block)} for block in blocks]


def _completion(row: Row, tokenizer: Any, most: int) -> dict[str, list[int]]:
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = (prompt + answer)[:most]
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": ([NO_TARGET] * len(prompt) + answer)[:most],
    }


def main() -> None:
    """Train, and save the best model."""
    import torch
    import transformers as t

    job, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    t.logging.set_verbosity_error()
    torch.set_num_threads(1)
    tokenizer = t.AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    seq2seq = job["kind"] == "seq2seq"
    kind = t.AutoModelForSeq2SeqLM if seq2seq else t.AutoModelForCausalLM
    model = kind.from_pretrained(job["model"])
    train, validation = (
        Rows(encode(job, read_rows(job["files"][name]), tokenizer)) for name in ("train", "validation")
    )
    settings = {
        "output_dir": str(folder), "report_to": [], "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True,
        "seed": job["seed"], "max_steps": job["steps"], "learning_rate": job["learning_rate"],
        "per_device_train_batch_size": job["batch_size"], "per_device_eval_batch_size": 64,
        "lr_scheduler_type": "linear", "warmup_steps": job["warmup_steps"], "eval_strategy": "steps",
        "eval_steps": job["eval_every"], "save_strategy": "steps", "save_steps": job["eval_every"],
        "save_total_limit": 1, "save_only_model": True, "load_best_model_at_end": True,
        "metric_for_best_model": "loss", "greater_is_better": False, "prediction_loss_only": True,
    }  # fmt: skip
    arguments = (t.Seq2SeqTrainingArguments if seq2seq else t.TrainingArguments)(**settings)
    collator = t.DataCollatorForSeq2Seq(tokenizer, model if seq2seq else None, label_pad_token_id=NO_TARGET)
    t.set_seed(job["seed"])
    trainer = (t.Seq2SeqTrainer if seq2seq else t.Trainer)(
        model, arguments, train_dataset=train, eval_dataset=validation, data_collator=collator,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder / "run" / "model"))


if __name__ == "__main__":
    main()
