"""The stage `prepare`: every row is accounted for, splits are honest, and the same recipe gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.artifacts import PreparedData
from finetune.data.splitting import SPLITS
from finetune.errors import FinetuneError
from finetune.prepare import prepare
from finetune.progress import Silent
from finetune.recipe import load_recipe
from tests.conftest import RecipeMaker, make_rows, write_jsonl

DIRT: list[dict[str, Any]] = [
    {"body": "  ", "intent": "fruit"},
    {"intent": "tool", "id": 9},
    {"body": 5, "intent": "tool"},
    {"body": "<br>", "intent": "tool"},
    {"body": "an apple", "intent": None},
    {"body": "rain or plum", "intent": "fruit"},
    {"body": "Rain or  plum", "intent": "weather"},
]
CLEAN = ["unicode", "html", "whitespace"]


class Notes(Silent):
    """Listens to what the stage tells the user."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, message: str) -> None:
        self.heard.append(message)


@pytest.fixture
def make_data(make_recipe: RecipeMaker, tmp_path: Path) -> Any:
    """Return a function that prepares the given rows (or the 90 of the tiny world) under the given settings."""

    def make(
        rows: list[dict[str, Any]] | None = None, folder: str = "data", notes: Notes | None = None, **sections: Any
    ) -> PreparedData:
        if rows is not None:
            source = str(write_jsonl(tmp_path / "own.jsonl", rows))
            sections["data"] = {"source": source, **sections.get("data", {})}
        return prepare(load_recipe(make_recipe(**sections)), tmp_path / folder, progress=notes)

    return make


def dropped(data: PreparedData) -> list[dict[str, Any]]:
    lines = (data.folder / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def lines_of(data: PreparedData) -> dict[str, list[int]]:
    return {name: data.split(name).lines for name in data.manifest["splits"]}


def test_clean_rows_are_all_kept_in_the_shares_of_the_recipe(make_data: Any) -> None:
    data = make_data()
    assert (data.report["rows_read"], data.report["rows_kept"], data.report["dropped"]) == (90, 90, {})
    assert data.report["splits"] == {"train": 54, "validation": 18, "test": 18}
    assert data.report["labels"] == {
        label: {"train": 18, "validation": 6, "test": 6} for label in ("fruit", "tool", "weather")
    }
    assert sorted(line for lines in lines_of(data).values() for line in lines) == list(range(1, 91))
    assert dropped(data) == []


def test_each_row_is_stored_with_its_line_text_label_and_tokens(make_data: Any) -> None:
    rows, data = make_rows(), make_data()
    for name in SPLITS:
        split = data.split(name)
        lengths = split.features.lengths
        for line, row, features, length in zip(split.lines, split.rows, split.features, lengths, strict=True):
            assert row == {"text": rows[line - 1]["body"], "label": rows[line - 1]["intent"]}
            assert features["label_id"] == ["fruit", "tool", "weather"].index(row["label"])
            assert (features["input_ids"][0], features["input_ids"][-1]) == (2, 3)
            assert len(features["input_ids"]) == length == len(row["text"].split()) + 2
    for name, tokens in data.report["tokens"]["splits"].items():
        lengths = sorted(data.split(name).features.lengths)
        assert tokens == {"total": sum(lengths), "median": lengths[len(lengths) // 2], "longest": lengths[-1]}
    assert list(data.report["tokens"]["splits"]) == list(SPLITS)


def test_every_dropped_row_is_written_with_its_line_and_reason(make_data: Any) -> None:
    rows = make_rows(10)
    data = make_data([*DIRT, *rows, rows[0], {"body": "", "intent": "tool"}], data={"clean": CLEAN})
    assert [(row["line"], row["reason"]) for row in dropped(data)] == [
        (1, "blank_text"),
        (2, "missing_text"),
        (3, "wrong_type_of_text"),
        (4, "nothing_left_after_cleaning_text"),
        (5, "missing_label"),
        (6, "conflicting_labels"),
        (7, "conflicting_labels"),
        (38, "duplicate"),
        (39, "blank_text"),
    ]
    assert [row["row"] for row in dropped(data)][:5] == DIRT[:5]
    assert list(data.report["dropped"].values()) == [2, 2, 1, 1, 1, 1, 1], "the most frequent reason comes first"
    assert data.report["dropped"]["conflicting_labels"] == data.report["dropped"]["blank_text"] == 2
    assert (data.report["rows_read"], data.report["rows_kept"], sum(data.report["dropped"].values())) == (39, 30, 9)
    assert sorted(line for lines in lines_of(data).values() for line in lines) == list(range(8, 38))


def test_lines_that_are_no_rows_are_counted_too(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "own.jsonl", make_rows(10))
    source.write_bytes(b"\n[1]\nnot json\n\xff\n" + source.read_bytes())
    data = prepare(load_recipe(make_recipe(data={"source": str(source)})), tmp_path / "data")
    assert [(row["line"], row["reason"]) for row in dropped(data)] == [
        (1, "empty_line"), (2, "not_an_object"), (3, "not_json"), (4, "not_utf8"),
    ]  # fmt: skip
    assert (data.report["rows_read"], data.report["rows_kept"]) == (34, 30)


def test_texts_are_stored_as_the_cleaners_left_them(make_data: Any) -> None:
    rows = [{**row, "body": f"<b>{row['body']}</b> \u200b!"} for row in make_rows(10)]
    data = make_data(rows, data={"clean": CLEAN})
    texts = {row["text"] for name in SPLITS for row in data.split(name).rows}
    assert texts == {f"{row['body']} !" for row in make_rows(10)}
    assert [(item["name"], item["rows_touched"]) for item in data.report["cleaners"]] == [
        ("unicode", 30), ("html", 30), ("whitespace", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("clean", [[], ["whitespace"], CLEAN])
@pytest.mark.parametrize("column", ["body", "intent"])
def test_half_an_emoji_is_no_reason_to_fail(make_data: Any, column: str, clean: list[str]) -> None:
    rows = make_rows(10)
    odd = [{**row, column: f"  {row[column]} \ud83d "} if row["intent"] == "tool" else row for row in rows]
    assert make_data(odd, data={"clean": clean}).report["rows_kept"] == 30


def test_dropped_rows_are_valid_json_whatever_they_held(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "own.jsonl", [{"body": float("nan"), "intent": "tool"}, *make_rows(10)])
    data = prepare(load_recipe(make_recipe(data={"source": str(source)})), tmp_path / "data")
    assert "NaN" not in (data.folder / "dropped.jsonl").read_text(encoding="utf-8")
    assert [row["line"] for row in dropped(data)] == [1]


def test_arrow_files_open_as_datasets(make_data: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    data = make_data()
    for name in SPLITS:
        split, opened = data.split(name), Dataset.from_file(str(data.folder / f"{name}.arrow"))
        assert opened.column_names == ["line", "text", "label", "input_ids", "label_id", "length"]
        assert (opened["line"][:], opened["length"][:]) == (split.lines, split.features.lengths)
        assert opened["text"][:] == [row["text"] for row in split.rows]
        assert opened["input_ids"][:] == [row["input_ids"] for row in split.features]


def test_a_split_is_an_arrow_stream_with_readable_text_and_int32_ids(make_data: Any) -> None:
    import pyarrow as pa

    with (make_data().folder / "train.arrow").open("rb") as stream:
        schema = pa.ipc.open_stream(stream).schema
    assert {field.name: str(field.type) for field in schema} == {
        "line": "int64",
        "text": "string",
        "label": "string",
        "input_ids": "list<item: int32>",
        "label_id": "int32",
        "length": "int32",
    }


def test_repeated_preparation_gives_the_same_bytes(make_data: Any) -> None:
    rows = [*DIRT, *make_rows(10)]
    first, second = make_data(rows, folder="one/data"), make_data(rows, folder="two/data")
    names = {str(path.relative_to(first.folder)) for path in first.folder.rglob("*") if path.is_file()}
    pictures = {name for name in names if name.startswith("reports/")}
    assert names - pictures == {
        "train.arrow", "validation.arrow", "test.arrow", "dropped.jsonl", "report.json", "report.md", "manifest.json",
    }  # fmt: skip
    assert pictures
    assert {Path(name).suffix for name in pictures} == {".png"}
    for name in names:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes(), name


def test_the_seed_decides_the_split(make_data: Any) -> None:
    first, other = lines_of(make_data()), lines_of(make_data(folder="other", seed=8))
    assert lines_of(make_data(folder="again")) == first
    assert other != first
    assert {name: len(lines) for name, lines in other.items()} == {name: len(lines) for name, lines in first.items()}


def test_the_tokenizer_settings_do_not_change_the_split(make_data: Any) -> None:
    assert lines_of(make_data(folder="short", model={"max_length": 6})) == lines_of(make_data())


def test_the_manifest_says_what_is_in_the_folder_and_what_made_it(make_data: Any) -> None:
    data = make_data()
    manifest = data.manifest
    assert {key: manifest[key] for key in ("kind", "format_version", "task", "labels", "roles", "splits", "seed")} == {
        "kind": "data", "format_version": 3, "task": {"name": "text-classification"},
        "labels": ["fruit", "tool", "weather"], "roles": ["text", "label"],
        "splits": {"train": 54, "validation": 18, "test": 18}, "seed": 7,
    }  # fmt: skip
    assert manifest["features"] == ["input_ids", "label_id"]
    assert manifest["limits"] == data.limits == {"max_length": 32, "overflow": "truncate", "stride": 0}
    assert {"python", "tokenizers", "transformers"} <= manifest["versions"].keys()


def test_fingerprints_follow_rows_and_tokens_but_not_training_or_places(
    make_data: Any, rows_file: Path, tmp_path: Path
) -> None:
    def fingerprints(folder: str, **sections: Any) -> tuple[str, str]:
        manifest = make_data(folder=folder, **sections).manifest
        return manifest["rows_fingerprint"], manifest["fingerprint"]

    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(rows_file.read_bytes())
    rows, tokens = fingerprints("base")
    assert fingerprints("training", train={"epochs": 9}, name="other") == (rows, tokens)
    assert fingerprints("moved", data={"source": str(moved)}) == (rows, tokens)
    shorter = fingerprints("shorter", model={"max_length": 16})
    assert (shorter[0] == rows, shorter[1] == tokens) == (True, False)
    for folder, sections in {"seed": {"seed": 8}, "clean": {"data": {"clean": []}}}.items():
        changed = fingerprints(folder, **sections)
        assert (changed[0] == rows, changed[1] == tokens) == (False, False)


def test_truncated_rows_and_lost_tokens_are_counted_and_told(make_data: Any) -> None:
    notes = Notes()
    data = make_data(model={"max_length": 8}, notes=notes)
    rows = make_rows()
    for name in SPLITS:
        split = data.split(name)
        lost = {line: len(rows[line - 1]["body"].split()) + 2 - 8 for line in split.lines}
        cut = [line for line in split.lines if lost[line] > 0]
        assert data.report["truncated"][name] == {
            "rows": len(cut), "tokens_lost": sum(lost[line] for line in cut), "lines": cut[:20],
        }  # fmt: skip
        assert max(split.features.lengths) == 8
        told = f"{len(cut)} rows of {name} are longer than 8 tokens and lose {sum(map(lost.get, cut))} of them"
        assert told in notes.heard
    truncated, tokens = data.report["truncated"].values(), data.report["tokens"]
    assert sum(split["rows"] for split in truncated) == sum(len(row["body"].split()) > 6 for row in rows)
    assert (tokens["rows_cut"], tokens["tokens_lost"]) == (
        sum(split["rows"] for split in truncated),
        sum(split["tokens_lost"] for split in truncated),
    )


def test_a_length_beyond_what_the_model_reads_is_refused(make_data: Any) -> None:
    with pytest.raises(FinetuneError, match=r"model\.max_length: expected at most 64 tokens, .* found 65"):
        make_data(model={"max_length": 65})


def test_many_dropped_rows_are_told_and_few_are_not(make_data: Any) -> None:
    notes, rows = Notes(), make_rows(10)
    make_data([*rows, *DIRT[:3]], notes=notes)
    assert notes.heard == []
    make_data([*rows, *DIRT[:4]], notes=notes, data={"clean": CLEAN})
    assert notes.heard == ["4 of 34 rows were dropped; dropped.jsonl says which and why"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["random", "stratified"])
def test_kept_duplicates_never_straddle_splits(make_data: Any, name: str, seed: int) -> None:
    rows = [{**row, "body": text} for row in make_rows(10) for text in (row["body"], row["body"].upper())]
    split = {"name": name, "train": 0.5, "validation": 0.25, "test": 0.25}
    data = make_data(rows, data={"duplicates": "keep", "split": split}, seed=seed)
    places = {line: name for name, lines in lines_of(data).items() for line in lines}
    assert len(places) == 60
    assert all(places[line] == places[line + 1] for line in range(1, 60, 2))


@pytest.mark.parametrize(("duplicates", "kept"), [("drop", 30), ("keep", 31)])
def test_a_repeated_row_is_dropped_or_kept(make_data: Any, duplicates: str, kept: int) -> None:
    rows = make_rows(10)
    data = make_data([*rows, rows[4]], data={"duplicates": duplicates})
    assert (data.report["rows_kept"], data.report["dropped"].get("duplicate", 0)) == (kept, 31 - kept)


@pytest.mark.parametrize(
    ("extra", "setting", "message"),
    [
        ({}, "duplicates", r"duplicates: found 1 texts? that repeats? another: lines 5 and 31\."),
        ({"intent": "fruit"}, "conflicts", r"conflicting-labels: 1 text stands under different labels.* 5(,| and) 31"),
    ],
)
def test_repeated_texts_are_refused_with_their_lines_on_demand(
    make_data: Any, tmp_path: Path, extra: dict[str, str], setting: str, message: str
) -> None:
    rows = make_rows(10)
    with pytest.raises(FinetuneError, match=message):
        make_data([*rows, {**rows[4], **extra}], data={setting: "error"})
    assert not (tmp_path / "data").exists()


def test_texts_that_cleaning_makes_equal_are_duplicates(make_data: Any) -> None:
    rows = make_rows(10)
    data = make_data([*rows, {**rows[0], "body": f"<p>{rows[0]['body'].upper()}</p>"}], data={"clean": CLEAN})
    assert [(row["line"], row["reason"]) for row in dropped(data)] == [(31, "duplicate")]


RARE = [{"body": "a whale", "intent": "animal"}, {"body": "a shrew", "intent": "animal"}]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (RARE[:1], "'animal' has 1 (line 31)"),
        (RARE, "'animal' has 2 (line 31, 32)"),
        ([RARE[0], {"body": "A Whale ", "intent": "animal"}, RARE[1]], "'animal' has 2 (line 31, 32, 33)"),
    ],
)
def test_a_label_with_fewer_texts_than_splits_is_refused_with_its_lines(
    make_data: Any, rows: list[dict[str, Any]], found: str
) -> None:
    with pytest.raises(FinetuneError) as caught:
        make_data([*make_rows(10), *rows], data={"duplicates": "keep"})
    first, problem, advice = str(caught.value).splitlines()
    assert first == "the data has 1 error:"
    assert problem == (
        f"  rare-labels: 1 label stands on fewer than 3 different texts: {found}; "
        "add rows, correct the label, or set data.rare_labels: drop."
    )
    assert advice.endswith("data.checks.rare-labels: warning.")


def test_a_rare_label_is_dropped_on_demand(make_data: Any) -> None:
    data = make_data([*make_rows(10), *RARE], data={"rare_labels": "drop"})
    assert data.labels == ["fruit", "tool", "weather"]
    assert [(row["line"], row["reason"]) for row in dropped(data)] == [(31, "rare_label"), (32, "rare_label")]
    assert data.report["rows_kept"] == 30


def test_a_label_needs_no_row_for_a_split_that_is_not_there(make_data: Any) -> None:
    split = {"name": "stratified", "train": 0.5, "validation": 0.5, "test": 0}
    data = make_data([*make_rows(10), *RARE], data={"split": split})
    assert data.report["labels"]["animal"] == {"train": 1, "validation": 1}
    assert list(data.manifest["splits"]) == ["train", "validation"]
    assert not (data.folder / "test.arrow").exists()


def test_one_label_alone_is_nothing_to_learn(make_data: Any) -> None:
    rows = [row for row in make_rows(10) if row["intent"] == "tool"]
    with pytest.raises(FinetuneError, match="expected at least 2 labels, found only 'tool'"):
        make_data(rows)


@pytest.mark.parametrize("role", ["text", "label"])
def test_a_wrong_column_lists_what_the_file_has(make_data: Any, role: str) -> None:
    columns = {"text": "body", "label": "intent", role: "nowhere"}
    with pytest.raises(FinetuneError) as caught:
        make_data(data={"columns": columns})
    assert str(caught.value) == (
        f"rows.jsonl: expected a column 'nowhere' for {role}; found body, intent. "
        f"Rename it, or set data.columns.{role}."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected rows, found an empty file (0 bytes)"),
        ("\n\n[]\n", "none of its 3 rows can be read (empty_line 2, not_an_object 1)"),
        (
            '{"body": "", "intent": "a"}\n{"body": "b", "intent": null}\nx\n{"body": " ", "intent": "a"}\n',
            "expected usable rows, but all 4 were dropped: blank_text 2, missing_label 1, not_json 1",
        ),
    ],
)
def test_a_file_without_a_usable_row_is_refused(
    make_recipe: RecipeMaker, tmp_path: Path, content: str, message: str
) -> None:
    source = tmp_path / "own.jsonl"
    source.write_text(content, encoding="utf-8")
    with pytest.raises(FinetuneError) as caught:
        prepare(load_recipe(make_recipe(data={"source": str(source)})), tmp_path / "data")
    assert str(caught.value) == f"own.jsonl: {message}"
    assert not (tmp_path / "data").exists()


def test_a_failed_preparation_leaves_the_old_data_and_nothing_half_made(make_data: Any, tmp_path: Path) -> None:
    before = make_data().manifest
    with pytest.raises(FinetuneError):
        make_data(make_rows(1))
    assert PreparedData(tmp_path / "data").manifest == before
    assert not (tmp_path / "data.partial").exists()


def test_new_data_replaces_the_old_whole(make_data: Any) -> None:
    make_data()
    data = make_data(make_rows(10), data={"split": {"name": "random", "train": 0.5, "validation": 0.5, "test": 0}})
    assert data.report["splits"] == {"train": 15, "validation": 15}
    assert not (data.folder / "test.arrow").exists()


def test_the_report_is_written_for_people_too_with_their_texts_escaped(make_data: Any) -> None:
    rows = make_rows(10)
    rows[0]["body"] = "  <img src=x> *bold* apple  "
    data = make_data(rows)
    text = (data.folder / "report.md").read_text(encoding="utf-8")
    assert "30" in text
    assert "<img" not in text
    assert "*bold*" not in text.replace("\\*bold\\*", "")


def test_fractions_that_do_not_add_up_are_a_mistake_of_the_recipe(make_recipe: RecipeMaker) -> None:
    path = make_recipe(data={"split": {"name": "random", "train": 0.5}})
    with pytest.raises(FinetuneError, match="add up to 1"):
        load_recipe(path)
