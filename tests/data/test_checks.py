"""Checks: each finds what it is for, with exact counts, and is silent about rows that are in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from finetune.data.checks import CheckInput, Finding, run_checks
from finetune.data.rows import Column, Kind
from finetune.errors import FinetuneError
from finetune.registry import checks

TYPES = {
    "text": pa.string(),
    "label": pa.string(),
    "number": pa.float64(),
    "labels": pa.list_(pa.string()),
    "tokens": pa.list_(pa.string()),
    "tags": pa.list_(pa.string()),
}
WORDS = ["lamp", "door", "chair", "table", "shelf", "mirror", "carpet", "candle", "basket", "pillow", "curtain"]


def chunked(values: Sequence[Any], kind: Kind, size: int = 7) -> pa.ChunkedArray:
    """Return values as Arrow in several chunks, one of them empty and each a slice of something longer."""
    whole = pa.array([*values, *values[:1]], TYPES[kind])
    chunks = [whole.slice(start, min(size, len(values) - start)) for start in range(0, len(values), size)]
    return pa.chunked_array([whole.slice(0, 0), *chunks], TYPES[kind])


def world(values: Mapping[str, tuple[Kind, Sequence[Any]]], **more: Any) -> CheckInput:
    """Return the input of checks: rows as they are given, without anything suspicious around them."""
    size = len(next(iter(values.values()))[1])
    settings: dict[str, Any] = {
        "columns": {role: Column(kind) for role, (kind, _) in values.items()},
        "values": {role: chunked(column, kind) for role, (kind, column) in values.items()},
        "splits": None,
        "clusters": np.arange(size),
        "where": lambda row: {"line": row + 1},
        "dropped": {},
        "dropped_examples": {},
        "sample": [],
        "used": {role: role for role in values},
        "classes": [],
    }
    return CheckInput(**settings | more)


def texts(count: int) -> list[str]:
    """Return different texts of five words."""
    size = len(WORDS)
    return [
        " ".join(["the", WORDS[row % size], WORDS[row // size % size], WORDS[row // size**2 % size], "here"])
        for row in range(count)
    ]


def labelled(labels: Sequence[str], **more: Any) -> CheckInput:
    return world({"text": ("text", texts(len(labels))), "label": ("label", labels)}, **more)


def multi(labels: Sequence[list[str]], **more: Any) -> CheckInput:
    return world({"text": ("text", texts(len(labels))), "labels": ("labels", labels)}, **more)


def numbers(values: Sequence[float | None], **more: Any) -> CheckInput:
    return world({"text": ("text", texts(len(values))), "score": ("number", values)}, **more)


def run(rows: CheckInput, name: str, **options: Any) -> list[Finding]:
    """Return what one check finds, all others being off."""
    off: dict[str, tuple[str | None, Mapping[str, Any]]] = {other: ("off", {}) for other in checks.names()}
    return run_checks(rows, {**off, name: (None, options)})


def brief(found: Sequence[Finding]) -> list[tuple[str, int]]:
    return [(finding.severity, finding.count) for finding in found]


def lines(finding: Finding) -> list[int]:
    return [example["line"] for example in finding.examples]


GOOD = ["a", "b"] * 100


def test_rows_in_order_give_no_finding() -> None:
    splits = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2] * 20, dtype=np.int8)[:200]
    sample = [{"text": text, "label": label} for text, label in zip(texts(200), GOOD, strict=True)]
    assert run_checks(labelled(GOOD, splits=splits, sample=sample, given_labels=["a", "b"]), {}) == []


# run_checks


BAD = labelled(["a"] * 30 + ["b"] * 2, dropped={"missing_label": 4}, sample=[{"number": row} for row in range(30)])


def test_findings_come_by_severity_then_by_name() -> None:
    found = [(finding.severity, finding.check) for finding in run_checks(BAD, {"rare-labels": (None, {"texts": 3})})]
    assert found == [
        ("error", "rare-labels"),
        ("warning", "imbalance"),
        ("warning", "many-dropped"),
        ("warning", "missing-labels"),
        ("warning", "too-few-rows"),
        ("warning", "too-few-rows"),
        ("note", "id-like-columns"),
    ]


def test_a_severity_in_the_settings_goes_for_all_that_a_check_finds() -> None:
    rows = labelled(["a"] * 3, dropped={"missing_label": 9})
    assert brief(run(rows, "missing-labels")) == [("error", 9)]
    off: dict[str, tuple[str, dict[str, Any]]] = dict.fromkeys(checks.names(), ("off", {}))
    assert brief(run_checks(rows, {**off, "missing-labels": ("note", {})})) == [("note", 9)]
    assert run_checks(rows, off) == []


def test_an_unknown_check_is_refused_with_the_nearest() -> None:
    with pytest.raises(FinetuneError, match="unknown check 'imbalanse', did you mean imbalance?"):
        run_checks(BAD, {"imbalanse": ("off", {})})


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 1"):
        run(BAD, "imbalance", ratio=0.5)


def test_checks_of_labels_do_not_run_without_a_target() -> None:
    rows = world({"text": ("text", texts(3))}, dropped={"missing_label": 4, "conflicting_labels": 2})
    assert {finding.check for finding in run_checks(rows, {})} == {"many-dropped", "too-few-rows"}


def test_a_finding_as_json_has_at_most_five_short_examples() -> None:
    rows = world({"text": ("text", ["\ufffd" + "x" * 300] * 9)}, where=lambda row: {"file": "b.csv", "line": row + 1})
    (finding,) = run(rows, "encoding-damage")
    found = finding.as_json()
    assert list(found) == ["check", "severity", "count", "message", "examples"]
    assert [(example["file"], example["line"]) for example in found["examples"]] == [
        ("b.csv", line) for line in range(1, 6)
    ]
    assert found["examples"][0]["text"] == "\ufffd" + "x" * 198 + "…"


@pytest.mark.parametrize("name", checks.names())
def test_every_check_declares_a_severity_and_known_kinds(name: str) -> None:
    attributes = checks.get(name).attributes
    assert attributes["severity"] in {"error", "warning", "note"}
    assert set(attributes.get("kinds", ())) <= {"label", "labels", "tags", "number"}


# labels


@pytest.mark.parametrize(
    ("dropped", "expected"),
    [
        ({}, []),
        ({"duplicate": 50}, []),
        ({"missing_label": 3}, [("warning", 3)]),
        ({"missing_label": 2, "blank_label": 1, "missing_text": 9}, [("warning", 3)]),
        ({"missing_label": 10}, [("warning", 10)]),
        ({"missing_label": 11}, [("error", 11)]),
    ],
)
def test_missing_labels(dropped: dict[str, int], expected: list[tuple[str, int]]) -> None:
    assert brief(run(labelled(["a"] * 10, dropped=dropped), "missing-labels")) == expected


def test_missing_labels_says_the_share_and_shows_rows() -> None:
    rows = labelled(
        ["a"] * 9,
        dropped={"missing_label": 1},
        dropped_examples={"missing_label": [{"line": 4, "row": {"text": "hello", "label": None}}]},
    )
    (finding,) = run(rows, "missing-labels")
    assert "1 row of 10 (10.0%) had to be dropped for want of label (line 4); fill" in finding.message
    assert finding.examples == [{"line": 4, "text": "hello"}]
    assert brief(run(rows, "missing-labels", share=0.05)) == [("error", 1)]


def test_dropped_rows_that_are_no_records_are_shown_as_they_are() -> None:
    found = [
        {"line": 4, "row": {"x": 1}},
        {"file": "b", "line": 5, "row": {"text": "\ud800"}},
        {"line": 6, "row": None},
    ]
    (finding,) = run(
        labelled(GOOD, dropped={"missing_label": 3}, dropped_examples={"missing_label": found}), "missing-labels"
    )
    assert finding.examples == [
        {"line": 4, "text": '{"x": 1}'},
        {"file": "b", "line": 5, "text": "?"},
        {"line": 6, "text": "null"},
    ]


def test_missing_targets_of_other_kinds() -> None:
    assert brief(run(numbers([1.0, 2.0], dropped={"missing_score": 1}), "missing-labels")) == [("warning", 1)]
    rows = tagged([["a"]], [["O"]], dropped={"missing_spans": 1})
    assert brief(run(rows, "missing-labels")) == [("warning", 1)]


def test_unknown_labels() -> None:
    rows = labelled(["a", "b", "c", "c", "d"], given_labels=["a", "b"])
    (finding,) = run(rows, "unknown-labels")
    assert (finding.severity, finding.count) == ("error", 3)
    assert "does not list: 'c' (line 3, 4); 'd' (line 5); correct it" in finding.message
    assert [(example["line"], example["label"]) for example in finding.examples] == [(3, "c"), (5, "d")]
    assert run(labelled(["a", "b"], given_labels=["a", "b"]), "unknown-labels") == []
    assert run(labelled(["a", "b"]), "unknown-labels") == []


def test_unknown_labels_counts_what_was_dropped_and_names_what_is_unused() -> None:
    rows = labelled(["a"], given_labels=["b", "a"], dropped={"unknown_label": 2})
    assert brief(run(rows, "unknown-labels")) == [("error", 2), ("warning", 1)]
    assert "'b'" in run(rows, "unknown-labels")[1].message


def test_unknown_labels_of_dropped_rows_are_named_with_their_lines() -> None:
    raw = [" tol ", "Tool", 5, "tol", "mop"]
    dropped = [{"line": line, "row": {"text": "x", "kind": label}} for line, label in enumerate(raw, 11)]
    rows = labelled(
        ["tool", "fruit"],
        given_labels=["tool", "fruit"],
        used={"text": "text", "label": "kind"},
        dropped={"unknown_label": 7},
        dropped_examples={"unknown_label": dropped},
        label_map={"Tool": "machine"},
    )
    (finding,) = run(rows, "unknown-labels")
    assert (finding.severity, finding.count) == ("error", 7)
    assert (
        "does not list: 'tol' (line 11, 14); 'machine' (line 12); '5' (line 13); 'mop' (line 15); and 2 more rows; "
        "correct it" in finding.message
    )
    assert [example["label"] for example in finding.examples] == [" tol ", "Tool", "5", "tol", "mop"]


def test_only_the_unknown_ones_of_several_labels_are_named() -> None:
    raw = [["a", "x"], "b|y | x", None, [f"z{number}" for number in range(6)]]
    dropped = [{"line": line, "row": {"labels": labels}} for line, labels in enumerate(raw, 1)]
    rows = multi(
        [["a"], ["b"]],
        given_labels=["a", "b"],
        dropped={"unknown_label": 4},
        dropped_examples={"unknown_label": dropped},
        label_separator="|",
    )
    (finding,) = run(rows, "unknown-labels")
    assert "'x' (line 1, 2); 'y' (line 2); 'z0' (line 4); 'z1' (line 4); 'z2' (line 4); and 3 more labels; correct" in (
        finding.message
    )


def test_a_row_with_two_unknown_entity_types_counts_once() -> None:
    rows = tagged([["Rome", "Bob"]], [["B-LOC", "B-PER"]], given_labels=["ORG"])
    assert [(found.severity, found.count) for found in run(rows, "unknown-labels")] == [("error", 1), ("warning", 1)]


def test_unknown_entity_types() -> None:
    rows = tagged([["Rome", "x"]], [["B-LOC", "O"]], given_labels=["PER", "LOC"])
    assert brief(run(rows, "unknown-labels")) == [("warning", 1)]


def same_texts(*pairs: tuple[str, str], clusters: Sequence[int]) -> CheckInput:
    found, labels = zip(*pairs, strict=True)
    return world({"text": ("text", found), "label": ("label", labels)}, clusters=np.array(clusters))


def test_conflicting_labels_among_kept_rows() -> None:
    pairs = [("hi", "a"), ("yo", "a"), ("HI", "a"), ("yo", "a"), ("x", "b"), ("Hi ", "b")]
    (finding,) = run(same_texts(*pairs, clusters=[0, 1, 0, 1, 4, 0]), "conflicting-labels")
    assert (finding.severity, finding.count) == ("warning", 3)
    assert finding.message.startswith("1 text stands under different labels, on 3 rows")
    assert [(example["line"], example["label"]) for example in finding.examples] == [(1, "a"), (6, "b")]


def test_texts_that_are_nearly_the_same_may_differ_in_their_labels() -> None:
    rows = same_texts(("I cancel", "a"), ("I don't cancel", "b"), clusters=[0, 0])
    assert run(rows, "conflicting-labels") == []


def test_conflicting_labels_that_were_dropped() -> None:
    found = [{"line": line, "row": {"text": "yo", "label": label}} for line, label in ((4, "a"), (9, "b"))]
    rows = labelled(
        GOOD, dropped={"conflicting_labels": 4, "duplicate": 1}, dropped_examples={"conflicting_labels": found}
    )
    (finding,) = run(rows, "conflicting-labels")
    assert (finding.severity, finding.count) == ("warning", 4)
    assert "a text stands under different labels (line 4, 9 and 2 more); decide" in finding.message
    assert finding.examples == [{"line": 4, "text": "yo", "label": "a"}, {"line": 9, "text": "yo", "label": "b"}]


def test_conflicting_numbers() -> None:
    dropped = [{"line": 4, "row": {"text": "yo", "score": 1.5}}]
    values: dict[str, tuple[Kind, Sequence[Any]]] = {
        "text": ("text", ["x", "X", "y", "y", "z"]),
        "score": ("number", [1.0, 2.0, 3.0, 3.0, None]),
    }
    rows = world(
        values,
        clusters=np.array([0, 0, 2, 2, 4]),
        dropped={"conflicting_labels": 1},
        dropped_examples={"conflicting_labels": dropped},
    )
    gone, kept = run(rows, "conflicting-labels")
    assert "1 row had to be dropped because a text stands with different numbers (line 4); decide which number" in (
        gone.message
    )
    assert gone.examples == [{"line": 4, "text": "yo", "number": "1.5"}]
    assert kept.message.startswith("1 text stands with different numbers, on 2 rows that are kept (line 1, 2); decide")
    assert [(example["line"], example["number"]) for example in kept.examples] == [(1, 1.0), (2, 2.0)]


def test_conflicting_lists_of_labels_and_tags() -> None:
    values: dict[str, tuple[Kind, Sequence[Any]]] = {
        "text": ("text", ["x", "x", "y", "y"]),
        "labels": ("labels", [["a"], ["a", "b"], [], []]),
    }
    assert brief(run(world(values, clusters=np.array([0, 0, 2, 2])), "conflicting-labels")) == [("warning", 2)]
    rows = tagged([["Rome"], ["Rome"]], [["B-LOC"], ["O"]], clusters=np.array([0, 0]))
    assert brief(run(rows, "conflicting-labels")) == [("warning", 2)]


def test_label_variants_are_mapped_to_the_most_frequent() -> None:
    rows = labelled(["refund", "Refund", "refund", "give-up", "give up", "give up", "Give_Up", "other"])
    (finding,) = run(rows, "label-variants")
    assert (finding.severity, finding.count) == ("warning", 2)
    assert "'refund' (2), 'Refund' (1)" in finding.message
    assert "data.label_map: {" in finding.message
    assert "'Refund': 'refund'" in finding.message
    assert "'Give_Up': 'give up', 'give-up': 'give up'" in finding.message
    assert run(labelled(["a", "b", "-", "_"]), "label-variants") == []


def test_label_variants_of_entity_types() -> None:
    (finding,) = run(tagged([["a", "b"]], [["B-Per", "B-PER"]]), "label-variants")
    assert "data.label_map" not in finding.message
    assert finding.count == 1


# frequencies


SPLITS = np.array([0, 1, 2, 0, 1, 2], dtype=np.int8)


def test_rare_labels_count_texts_not_rows() -> None:
    rows = labelled(["a", "a", "a", "b", "b", "b"], splits=SPLITS, clusters=np.array([0, 1, 2, 3, 3, 3]))
    (finding,) = run(rows, "rare-labels")
    assert (finding.severity, finding.count) == ("error", 1)
    assert "fewer than 3 different texts: 'b' has 1 (line 4, 5, 6)" in finding.message
    assert finding.examples[0]["label"] == "b"
    assert run(dataclasses.replace(rows, clusters=np.arange(6)), "rare-labels") == []
    assert brief(run(dataclasses.replace(rows, clusters=np.arange(6)), "rare-labels", texts=4)) == [("error", 2)]


def test_rare_labels_want_as_many_texts_as_there_are_splits() -> None:
    rows = labelled(["a", "a", "b", "b"], splits=np.array([0, 1, 0, 1], dtype=np.int8))
    assert run(rows, "rare-labels") == []
    assert run(dataclasses.replace(rows, splits=None), "rare-labels") == []


def test_many_rare_labels_are_listed_in_part() -> None:
    (finding,) = run(labelled([f"{row:02}" for row in range(14)]), "rare-labels")
    assert "'09' has 1 (line 10); and 4 more; add" in finding.message
    assert len(finding.examples) == 5


def test_rare_labels_of_rows_with_several() -> None:
    rows = multi([["a", "b"], ["a"], [], ["a"], ["b"], ["a", "c"]], splits=SPLITS)
    (finding,) = run(rows, "rare-labels")
    assert finding.count == 2
    assert finding.severity == "warning"
    assert "'b' has 2 (line 1, 5); 'c' has 1 (line 6); add rows, or correct the label." in finding.message


def test_labels_seen_once() -> None:
    (finding,) = run(labelled(["a", "b", "a", "c"]), "labels-seen-once")
    assert (finding.severity, finding.count, lines(finding)) == ("note", 2, [2, 4])
    assert run(labelled(["a", "a"]), "labels-seen-once") == []


def test_a_label_that_train_lacks_is_an_error_and_one_that_another_split_lacks_a_warning() -> None:
    rows = labelled(["a", "a", "a", "a", "b", "b"], splits=SPLITS)
    (absent,) = run(rows, "label-in-one-split")
    assert (absent.severity, absent.count, lines(absent)) == ("error", 1, [5])
    assert "learn from it: 'b' (line 5, 6); add" in absent.message
    rows = labelled(["a", "a", "a", "b", "a", "b"], splits=SPLITS)
    (absent,) = run(rows, "label-in-one-split")
    assert (absent.severity, absent.count) == ("warning", 1)
    assert "in validation" in absent.message
    assert run(labelled(["a", "a", "a", "b", "b", "b"], splits=SPLITS), "label-in-one-split") == []
    assert run(labelled(["a", "b"]), "label-in-one-split") == []


def test_entity_types_and_one_of_several_labels_in_one_split() -> None:
    tags = [["B-X"], ["B-X"], ["B-X"], ["O"], ["B-Y"], ["O"]]
    found = run(tagged([["w"]] * 6, tags, splits=SPLITS), "label-in-one-split")
    assert brief(found) == [("warning", 1), ("warning", 1)]
    assert "in train" in found[0].message
    assert "in test" in found[1].message
    found = run(multi([["a"], ["a", "b"], ["a"], [], [], []], splits=SPLITS), "label-in-one-split")
    assert brief(found) == [("warning", 1), ("warning", 1)]


def test_imbalance() -> None:
    rows = labelled(["a"] * 40 + ["b"] * 4 + ["c"] * 5 + ["d"] * 2)
    (finding,) = run(rows, "imbalance")
    assert (finding.severity, finding.count, lines(finding)) == ("warning", 2, [50, 41])
    assert "'a' has 40 rows, 20.0 times as many as 'd' (2)" in finding.message
    assert run(labelled(["a"] * 39 + ["b"] * 4), "imbalance") == []
    assert brief(run(rows, "imbalance", ratio=20.0)) == [("warning", 1)]
    assert brief(run(multi([["a"]] * 9 + [["a", "b"]]), "imbalance")) == [("warning", 1)]


def test_too_few_rows() -> None:
    assert brief(run(labelled(["a"] * 40 + ["b"] * 9), "too-few-rows")) == [("warning", 49), ("warning", 1)]
    assert run(labelled(["a"] * 40 + ["b"] * 10), "too-few-rows") == []
    assert run(numbers([1.0] * 50), "too-few-rows") == []
    assert brief(run(numbers([1.0] * 50), "too-few-rows", rows_in_all=60)) == [("warning", 50)]


# rows in all


def test_many_dropped() -> None:
    (finding,) = run(labelled(["a"] * 80, dropped={"blank_text": 5, "duplicate": 15}), "many-dropped")
    assert (finding.severity, finding.count) == ("warning", 20)
    assert "20 of 100 rows (20.0%) were dropped: duplicate 15, blank_text 5" in finding.message
    assert run(labelled(["a"] * 90, dropped={"duplicate": 10}), "many-dropped") == []
    assert brief(run(labelled(["a"] * 90, dropped={"duplicate": 10}), "many-dropped", share=0.05)) == [("warning", 10)]


def test_splits_that_differ_in_length() -> None:
    splits = np.array([0] * 40 + [1] * 40 + [2] * 40, dtype=np.int8)
    values = ["one two three"] * 80 + ["one two three four five six"] * 40
    (finding,) = run(world({"text": ("text", values)}, splits=splits), "split-shift")
    assert (finding.severity, finding.count) == ("warning", 40)
    assert "6 words in test and 3 in train" in finding.message
    assert run(world({"text": ("text", values)}, splits=splits), "split-shift", length=2.5) == []
    assert run(world({"text": ("text", values[:80])}, splits=splits[:80]), "split-shift") == []
    few = world({"text": ("text", values[70:])}, splits=splits[70:])
    assert run(few, "split-shift") == []


def test_splits_that_differ_in_the_shares_of_their_labels() -> None:
    splits = np.array([0] * 200 + [2] * 100, dtype=np.int8)
    (finding,) = run(labelled(GOOD + ["a"] * 80 + ["b"] * 20, splits=splits), "split-shift")
    assert "by 30.0%, most that of 'a' (80.0% against 50.0%)" in finding.message
    assert run(labelled(GOOD + ["a", "b"] * 50, splits=splits), "split-shift") == []


def test_a_difference_that_chance_explains_is_no_shift() -> None:
    splits = np.array([0] * 200 + [1] * 40, dtype=np.int8)
    labels = [f"label {row % 40}" for row in range(200)] + [f"label {row % 31}" for row in range(40)]
    assert run(labelled(labels, splits=splits), "split-shift") == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0] * 5, []),
        ([2.0] * 9, [("error", 9)]),
        ([1.0, 2.0, 3.0, 4.0, float("nan"), None, float("inf")], [("error", 3)]),
        ([1.0, 2.0, 3.0, 4.0] * 5 + [99.0, -50.0], [("warning", 2)]),
        ([1.0] * 20 + [5.0], []),
        ([None, None], [("error", 2)]),
        ([], []),
    ],
)
def test_number_range(values: list[float | None], expected: list[tuple[str, int]]) -> None:
    assert brief(run(numbers(values), "number-range")) == expected


def test_outliers_are_shown_and_their_bound_is_an_option() -> None:
    rows = numbers([1.0, 2.0, 3.0, 4.0] * 5 + [9.0])
    assert run(rows, "number-range") == []
    (finding,) = run(rows, "number-range", spread=2.0)
    assert finding.examples[0]["score"] == 9.0


# tags


def tagged(tokens: Sequence[list[str]], tags: Sequence[list[str]], **more: Any) -> CheckInput:
    return world({"tokens": ("tokens", tokens), "tags": ("tags", tags)}, **more)


def test_invalid_tags() -> None:
    tags = [["O", "B-X", "I-X"], ["I-X", "B-X", "I-Y"], ["B-X", "X", "B-X"], ["O", "O", "I-X"]]
    (finding,) = run(tagged([["a", "b", "c"]] * 4, tags), "invalid-tags")
    assert (finding.severity, finding.count) == ("error", 4)
    assert "in 3 rows (line 2, 3, 4)" in finding.message
    assert [(example["line"], example["position"]) for example in finding.examples] == [(2, 0), (2, 2), (3, 1), (4, 2)]
    assert finding.examples[1]["tags"] == ["B-X", "I-Y"]
    assert run(tagged([["a", "b", "c"]], tags[:1]), "invalid-tags") == []


def test_entity_boundaries() -> None:
    tokens = [["Rome", ".", "x"], ["in", " ", "Oslo"], ["\u00a0", "U.S.", "!"], ["a", "(", ")"], []]
    tags = [["B-L", "I-L", "O"], ["O", "B-L", "I-L"], ["O", "B-L", "O"], ["B-L", "I-L", "I-L"], []]
    blank, bounded, ended = run(tagged(tokens, tags), "entity-boundaries")
    assert (blank.count, lines(blank)) == (2, [2, 3])
    assert (bounded.count, lines(bounded)) == (1, [2])
    assert (ended.count, lines(ended)) == (1, [1])
    assert (ended.examples[0]["entity"], ended.examples[0]["type"]) == ("Rome .", "L")
    assert {blank.severity, bounded.severity, ended.severity} == {"warning"}
    assert run(tagged(tokens[3:], tags[3:]), "entity-boundaries") == []


def test_rare_entities_count_mentions() -> None:
    tags = [["B-X", "B-X", "O"]] * 5 + [["B-Y", "I-Y", "O"]] * 9
    (finding,) = run(tagged([["a", "b", "c"]] * 14, tags), "rare-entities")
    assert (finding.severity, finding.count, lines(finding)) == ("warning", 1, [6])
    assert "'Y' (9)" in finding.message
    assert run(tagged([["a", "b", "c"]] * 14, tags), "rare-entities", entities=9) == []


def test_rows_without_any_entity_are_an_error() -> None:
    assert brief(run(tagged([["a"]] * 3, [["O"]] * 3), "rare-entities")) == [("error", 3)]
