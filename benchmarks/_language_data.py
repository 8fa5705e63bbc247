"""The data sets of `language.py`: rows and splits for both systems, the model that both start from, the budget."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, str]
SPLIT_SEED = 0
END_OF_STORY = "<|endoftext|>"


@dataclass(frozen=True)
class LanguageSet:
    """One data set: its kind of rows, the rows of train, validation and test, the start, the budget, the score.

    `kind` is seq2seq (source, target), completion (prompt, completion) or text. `start` is a folder of MODELS, or the
    configuration of a model with random weights, whose tokenizer is trained on the training rows. A step reads
    `batch_size` rows; of texts as many tokens as so many of `max_length` have.
    """

    name: str
    kind: str
    sizes: tuple[int, int, int]
    start: str | dict[str, Any]
    tokenizer: dict[str, Any] | None
    max_length: int
    steps: int
    batch_size: int
    learning_rate: float
    score: str
    max_new_tokens: int = 64


def t5(dropout: float) -> dict[str, Any]:
    return {"model_type": "t5", "num_layers": 2, "num_decoder_layers": 2, "d_model": 128, "num_heads": 8, "d_kv": 16,
            "d_ff": 256, "dropout_rate": dropout}  # fmt: skip


LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4,
         "intermediate_size": 344, "max_position_embeddings": 256, "tie_word_embeddings": True}  # fmt: skip

LANGUAGE_SETS = (
    LanguageSet("e2e_nlg", "seq2seq", (4200, 470, 4693), t5(0.1), {"name": "bpe", "vocabulary": 1200, "template": "t5"},
                128, 1500, 32, 1e-3, "chrF", 80),
    LanguageSet("gsm8k", "completion", (6000, 200, 1000), "stories260k", None, 512, 250, 16, 1e-3, "loss"),
    LanguageSet("tinystories", "text", (1700, 100, 400), LLAMA, {"name": "bpe", "vocabulary": 1500, "template": "gpt2"},
                256, 300, 16, 2e-3, "loss"),
    LanguageSet("scan", "seq2seq", (16328, 400, 4182), t5(0.0),
                {"name": "unigram", "vocabulary": 100, "template": "t5"}, 64, 4500, 64, 2e-3, "exact match"),
)  # fmt: skip


def read_all(data_set: LanguageSet, data: Path) -> dict[str, list[Row]]:
    """Return the rows of a data set, those that its authors keep apart apart."""
    folder = data / data_set.name
    if data_set.name == "tinystories":
        stories = next(folder.glob("*.txt")).read_text("utf-8").split(END_OF_STORY)
        return {"train": [{"text": story.strip()} for story in stories[:-1] if story.strip()]}  # the last one is cut
    if data_set.name == "gsm8k":
        rows = read_rows(folder / "train.jsonl")
        return {"train": [{"prompt": f"{row['question']}\n", "completion": row["answer"]} for row in rows]}
    first = "dev" if data_set.name == "e2e_nlg" else "train"
    return {"train": read_rows(folder / f"{first}.jsonl"), "test": read_rows(folder / "test.jsonl")}


def write_splits(data_set: LanguageSet, data: Path, folder: Path) -> dict[str, Path]:
    """Write the three files that both systems read, if they are not there; rows with one source stay together."""
    files = {name: folder / f"{name}.jsonl" for name in ("train", "validation", "test")}
    if all(file.is_file() for file in files.values()):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    found = read_all(data_set, data)
    units: dict[str, list[Row]] = {}
    for row in found["train"]:
        units.setdefault(next(iter(row.values())), []).append(row)
    drawn = list(units.values())
    random.Random(SPLIT_SEED).shuffle(drawn)
    waiting = iter(drawn)
    splits = {"test": found["test"]} if "test" in found else {}
    for name, size in zip(("test", "validation", "train"), reversed(data_set.sizes), strict=True):
        if name not in splits:
            splits[name] = []
            while len(splits[name]) < size and (unit := next(waiting, None)) is not None:
                splits[name] += unit
    for name, rows in splits.items():
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def read_rows(file: Path | str) -> list[Row]:
    # not splitlines: a text may hold other ends of lines
    return [json.loads(line) for line in Path(file).read_text("utf-8").split("\n") if line]


def write_start(data_set: LanguageSet, files: dict[str, Path], models: Path, seed: int, folder: Path) -> Path:
    """Return the folder of the model that both systems start from with this seed, made if need be."""
    if isinstance(data_set.start, str):
        return models / data_set.start
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    import transformers

    from finetune.data.tokenizer_training import save_tokenizer, train_tokenizer

    options = {name: value for name, value in (data_set.tokenizer or {}).items() if name != "name"}
    texts = [list(row.values()) for row in read_rows(files["train"])]
    tokenizer = train_tokenizer((data_set.tokenizer or {})["name"], options, texts)
    save_tokenizer(tokenizer, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    settings = {name: value for name, value in data_set.start.items() if name != "model_type"}
    settings |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    settings |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    if data_set.kind == "seq2seq":
        settings["decoder_start_token_id"] = tokenizer.pad_token_id
    config = transformers.CONFIG_MAPPING[data_set.start["model_type"]](**settings)
    kind = transformers.AutoModelForSeq2SeqLM if data_set.kind == "seq2seq" else transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    kind.from_config(config).save_pretrained(folder)
    return folder
