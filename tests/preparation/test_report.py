"""What `report.json` and `report.md` say, counted a second time from the files; and that data cannot disturb them."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from finetune.data.store import read_stream
from finetune.training.batching import step_groups
from tests.conftest import FILLER
from tests.preparation.test_windows import long_rows
from tests.preparation.world import World, columns_of, digests, findings, plain_rows, tagged_rows


def test_the_report_has_the_parts_that_others_read(world: World) -> None:
    rows = [*plain_rows(60), plain_rows(3)[2], {"body": " "}]
    report = world.prepare(rows, model={"max_length": 4}).report
    assert {"exact": 1, "near": 0}.items() <= report["duplicates"].items()
    assert report["leaks"] == 0
    tokens = report["tokens"]
    assert all(isinstance(tokens[name], int) for name in ("rows_cut", "tokens_lost", "entities_lost", "max_length"))
    assert all(0 <= tokens[name] <= 1 for name in ("unknown_rate", "padding"))
    assert report["rows_read"] == 62
    assert report["dropped"] == {"duplicate": 1, "blank_text": 1}
    for finding in report["warnings"]:
        assert set(finding) == {"check", "severity", "count", "message", "examples"}
        assert finding["severity"] in {"error", "warning", "note"}
        assert isinstance(finding["count"], int)
        assert len(finding["examples"]) <= 5
    severities = [("error", "warning", "note").index(finding["severity"]) for finding in report["warnings"]]
    assert severities == sorted(severities)
    assert report["next_steps"]


@pytest.mark.parametrize("bucket", [True, False])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (7, 3), (500, 1)])
@pytest.mark.parametrize("model", [{"max_length": 32}, {"max_length": 12, "overflow": "window", "stride": 3}])
def test_padding_is_that_of_the_batches_of_training(
    world: World, bucket: bool, batch: int, accumulation: int, model: dict[str, Any]
) -> None:
    train = {"batch_size": batch, "gradient_accumulation": accumulation, "bucket_by_length": bucket}
    data = world.prepare(long_rows(90), model=model, train=train)
    lengths = data.split("train").features.lengths
    groups = step_groups(lengths, batch_size=batch, accumulation=accumulation, seed=7, epoch=0, bucket_by_length=bucket)
    batches = [[lengths[row] for row in rows] for group in groups for rows in group]
    padded = sum(max(rows) * len(rows) for rows in batches)
    assert data.report["tokens"]["padding"] == pytest.approx(1 - sum(lengths) / padded, abs=1e-6)
    assert padded > sum(lengths)


def test_unknown_tokens_and_tokens_of_a_word_are_shares_of_what_is_there(world: World) -> None:
    from transformers import AutoTokenizer

    rows = [{"body": f"{FILLER[n % 20]} strange{n}, {FILLER[n // 20]}!", "intent": "ab"[n % 2]} for n in range(60)]
    data = world.prepare(rows)
    tokenizer = AutoTokenizer.from_pretrained(str(world.model))
    ids = [tokenizer(row["body"])["input_ids"] for row in rows]
    unknown = sum(row.count(tokenizer.unk_token_id) for row in ids)
    assert data.report["tokens"]["unknown_rate"] == pytest.approx(unknown / sum(map(len, ids)), abs=1e-6)
    words = sum(len(row["body"].split()) for row in rows)
    assert data.report["tokens"]["tokens_per_word"] == pytest.approx(sum(len(row) - 2 for row in ids) / words, abs=1e-6)


@pytest.mark.parametrize("overflow", ["truncate", "window"])
def test_tokens_of_a_word_count_all_tokens_whatever_the_model_reads(world: World, overflow: str) -> None:
    rows = tagged_rows(60, words=10)
    model = {"max_length": 8, "overflow": overflow, "stride": 2}
    data = world.prepare(rows, task="token-classification", model=model)
    assert data.report["tokens"]["tokens_per_word"] == 1.0  # the tiny tokenizer has whole words
    texts = [{"body": " ".join(row["tokens"]), "intent": "ab"[n % 2]} for n, row in enumerate(rows)]
    assert world.prepare(texts, model=model).report["tokens"]["tokens_per_word"] == 1.0


@pytest.mark.parametrize("overflow", ["truncate", "window"])
def test_the_share_of_unknown_tokens_is_one_at_most(world: World, overflow: str) -> None:
    rows = [{"tokens": [f"odd{n}", *["strange"] * 30], "tags": ["B-X", *["O"] * 30]} for n in range(60)]
    model = {"max_length": 8, "overflow": overflow, "stride": 4}
    data = world.prepare(rows, task="token-classification", model=model)
    assert 0.5 < data.report["tokens"]["unknown_rate"] <= 1


@pytest.mark.parametrize("model", [{}, {"overflow": "window", "stride": 3}])
def test_lengths_are_those_of_the_rows_before_they_are_cut(world: World, model: dict[str, Any]) -> None:
    rows = long_rows(90)
    data = world.prepare(rows, model={"max_length": 20, **model})
    whole = [len(row["body"].split()) + 2 for row in rows]
    for name in data.manifest["splits"]:
        lengths = sorted(whole[line - 1] for line in data.split(name).lines)
        stored = columns_of(data, name)["length"]
        found = data.report["tokens"]["splits"][name]
        assert found == {"total": sum(stored), "median": lengths[len(lengths) // 2], "longest": lengths[-1]}
    histogram = data.report["tokens"]["histogram"]
    counts, _ = np.histogram(whole, bins=histogram["edges"])
    assert histogram["counts"] == counts.tolist()
    assert sum(histogram["counts"]) == 90


@pytest.mark.parametrize("task", ["text-classification", "regression"])
def test_no_number_of_the_report_is_no_number(world: World, task: str) -> None:
    rows = [{"body": "the saw", "text": f"the saw {n}", "score": n % 2, "intent": "a"} for n in range(30)]
    rows = [{**row, "body": f"{row['body']} {n}", "intent": "ab"[n % 2]} for n, row in enumerate(rows)]
    report = world.prepare(rows, task=task).report

    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [found for item in value.values() for found in numbers(item)]
        if isinstance(value, list):
            return [found for item in value for found in numbers(item)]
        return [value] if isinstance(value, float) else []

    assert all(math.isfinite(number) for number in numbers(report))


HOSTILE = [
    "<script>alert(1)</script>",
    "[click](http://evil.example)",
    "a | b | c",
    "![x](http://evil.example/x.png)",
    "\u202eright to left",
    "`code` *stars* __lines__",
    "\x1b[31mred",
    "www.evil.example",
]


def test_texts_and_labels_cannot_write_markup_into_the_report(world: World) -> None:
    rows: list[dict[str, Any]]
    rows = [{"body": f"{text} {n}", "intent": HOSTILE[n % 3], "<b>col": "<i>"} for n, text in enumerate(HOSTILE * 8)]
    rows += [{"body": f"{text} twice", "intent": HOSTILE[n % 2]} for text in HOSTILE for n in (0, 1)]
    rows += [{"body": f"{text} without", "intent": None} for text in HOSTILE]
    data = world.prepare(rows, data={"rare_labels": "drop", "near_duplicates": "report"})
    markdown = (data.folder / "report.md").read_text(encoding="utf-8")
    for markup in ("<script", "<b>", "<i>", "\x1b", "\u202e", "www.evil", "http://evil", "`code`", "*stars*"):
        assert markup not in markdown, markup
    assert not re.search(r"(?<!\\)\]\(http", markdown)
    assert "click" in markdown
    assert any(finding["examples"] for finding in data.report["warnings"])
    lines = markdown.splitlines()
    tables = [line for line in lines if line.startswith("|")]
    for first, second in pairwise(lines):
        if first.startswith("|") and second.startswith("|"):
            assert cells(first) == cells(second), "a stroke in a text makes no column"
    assert tables


def cells(line: str) -> int:
    return line.replace("\\|", "").count("|")


def test_no_file_says_where_the_work_was_done(world: World) -> None:
    rows = [*plain_rows(60), {"body": " "}, plain_rows(2)[1]]
    table = world.folder / "words.tsv"
    table.write_text("the\tthis, that\nnew\tfresh\n")
    augment = {"operations": [{"name": "synonyms", "table": str(table), "rate": 0.5}]}
    source = [world.write(rows[:40], "one.jsonl"), world.write(rows[40:], "two.jsonl")]
    data = world.prepare(data={"source": source, "augment": augment, "near_duplicates": "report"})
    for name in data.manifest["files"]:
        assert str(world.folder).encode() not in (data.folder / name).read_bytes(), name
    assert data.report["augmented"]["rows"] > 10
    assert str(world.folder) not in (data.folder / "report.md").read_text()


def test_the_same_rows_elsewhere_give_the_same_files(world: World) -> None:
    rows = [*plain_rows(60), {"body": " "}, plain_rows(2)[1]]
    here = world.prepare(rows)
    far = World(world.folder / "a" / "far" / "place", world.model)
    far.folder.mkdir(parents=True)
    there = far.prepare(rows)
    assert digests(there.folder) == digests(here.folder)


def test_cleaners_are_counted(world: World) -> None:
    rows = [*plain_rows(40), {"body": "  many   blanks ", "intent": "tool"}, {"body": "<b></b>", "intent": "tool"}]
    report = world.prepare(rows, data={"clean": ["html", "whitespace"]}).report
    assert [(item["name"], item["rows_touched"]) for item in report["cleaners"]] == [("html", 1), ("whitespace", 1)]
    assert report["dropped"] == {"nothing_left_after_cleaning_text": 1}


def test_features_are_all_that_the_manifest_says(world: World) -> None:
    data = world.prepare(plain_rows(40))
    schema = read_stream(data.folder / "train.arrow").schema
    assert set(schema.names) == {"line", *data.manifest["roles"], *data.manifest["features"], "length"}
    assert findings(data.report, "too-few-rows")
