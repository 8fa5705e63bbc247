"""The plain script to compare `finetune prepare` with: the same steps with `datasets.map`, as people write them.

python benchmarks/_reference_prepare.py ROWS.jsonl OUTPUT MODEL_FOLDER NUM_PROC
"""

from __future__ import annotations

import re
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ftfy
from datasets import ClassLabel, DatasetDict, load_dataset
from transformers import AutoTokenizer

URL = re.compile(r"(?:https?://|www\.)[^\s<>\"']+", re.IGNORECASE)


class Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def strip_html(text: str) -> str:
    if "<" not in text and "&" not in text:
        return text
    parser = Text()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)


def clean(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    texts = []
    for text in batch["text"]:
        text = unicodedata.normalize("NFC", ftfy.fix_text(text, unescape_html=False, normalization=None))
        texts.append(" ".join(URL.sub("[URL]", strip_html(text)).split()))
    return {"text": texts}


def main() -> None:
    source, output, model, processes = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    workers = processes if processes > 1 else None
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = load_dataset("json", data_files=source, split="train", cache_dir=str(output / "cache"))
    rows = rows.map(clean, batched=True, num_proc=workers)
    seen: set[str] = set()

    def first(text: str) -> bool:
        key = " ".join(text.casefold().split())
        new = key not in seen
        seen.add(key)
        return new

    rows = rows.filter(lambda batch: [first(text) for text in batch["text"]], batched=True)
    rows = rows.cast_column("label", ClassLabel(names=sorted(rows.unique("label"))))
    outer = rows.train_test_split(test_size=0.2, stratify_by_column="label", seed=42)
    inner = outer["test"].train_test_split(test_size=0.5, stratify_by_column="label", seed=42)
    splits = DatasetDict(train=outer["train"], validation=inner["train"], test=inner["test"])

    def tokenize(batch: dict[str, list[Any]]) -> Any:
        return tokenizer(batch["text"], truncation=True, max_length=128)

    splits = splits.map(tokenize, batched=True, num_proc=workers)
    splits.save_to_disk(str(output / "prepared"))


if __name__ == "__main__":
    main()
