"""What the rows' targets may look like: labels, several labels, numbers, tags, spans; and what is done without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.artifacts import PreparedData
from finetune.data.tagging import entities
from finetune.errors import FinetuneError, RecipeError
from tests.preparation.world import World, columns_of, dropped, findings, plain_rows, reasons, split_of, tagged_rows

SPLITS = ("train", "validation", "test")


def all_rows(data: PreparedData, role: str) -> list[Any]:
    return [value for name in data.manifest["splits"] for value in columns_of(data, name)[role]]


# -- values that are missing


GAPS: list[dict[str, Any]] = [
    {"body": None, "intent": "tool"},
    {"body": " \t", "intent": "tool"},
    {"body": "without a label"},
    {"body": "with a blank one", "intent": "  "},
]


def test_rows_with_gaps_are_dropped_unless_the_recipe_says_otherwise(world: World) -> None:
    data = world.prepare([*GAPS, *plain_rows(20)])
    assert reasons(data) == [(1, "missing_text"), (2, "blank_text"), (3, "missing_label"), (4, "missing_label")]


@pytest.mark.parametrize(("missing", "said"), [("error", r"2.*text|2.*label"), ({"label": "error"}, r"2 with missing")])
def test_gaps_may_be_an_error(world: World, missing: Any, said: str) -> None:
    with pytest.raises(FinetuneError, match=said):
        world.prepare([*GAPS, *plain_rows(20)], data={"missing": missing})


def test_gaps_in_another_role_are_no_error(world: World) -> None:
    data = world.prepare([*GAPS[:2], *plain_rows(20)], data={"missing": {"label": "error", "text": "drop"}})
    assert data.report["dropped"] == {"missing_text": 1, "blank_text": 1}


def test_gaps_may_be_filled(world: World) -> None:
    missing = {"label": {"fill": "tool"}, "text": {"fill": "nothing was said"}}
    data = world.prepare([*GAPS[1:], *plain_rows(20)], data={"missing": missing})
    assert dropped(data) == []
    found = dict(zip(all_rows(data, "text"), all_rows(data, "label"), strict=True))
    assert (found["without a label"], found["with a blank one"], found["nothing was said"]) == ("tool",) * 3


def test_a_number_fills_a_gap_in_numbers_alone(world: World) -> None:
    rows = [{"text": row["body"], "score": None if number < 3 else number} for number, row in enumerate(plain_rows(30))]
    rows.append({"text": "one more", "score": "half"})
    data = world.prepare(rows, task="regression", data={"missing": {"score": {"fill": -1.5}}})
    assert sorted(all_rows(data, "score"))[:4] == [-1.5, -1.5, -1.5, 3.0]
    assert reasons(data) == [(31, "not_a_number_in_score")]


@pytest.mark.parametrize("text", [None, "", "  "])
def test_a_pair_needs_both_of_its_texts(world: World, text: str | None) -> None:
    rows = [{"text": row["body"], "text_pair": "answer", "label": row["intent"]} for row in plain_rows(30)]
    rows[4]["text_pair"] = text
    columns = {"text": "text", "text_pair": "text_pair"}
    data = world.prepare(rows, data={"columns": columns})
    assert reasons(data) == [(5, "missing_text_pair" if text is None else "blank_text_pair")]


@pytest.mark.parametrize("gap", [{"text": None}, {"spans": None}, {"text": " "}])
def test_gaps_in_text_with_spans_may_be_an_error_too(world: World, gap: dict[str, Any]) -> None:
    rows = [*spans_of(tagged_rows(30)), {"text": "Bob", "spans": [], **gap}]
    with pytest.raises(FinetuneError, match="line 31"):
        world.prepare(rows, task="token-classification", data={"columns": SPAN_COLUMNS, "missing": "error"})


def test_a_role_that_does_not_exist_cannot_be_missing(world: World) -> None:
    with pytest.raises(RecipeError, match="lable"):
        world.recipe(plain_rows(3), data={"missing": {"lable": "error"}})


# -- labels


def test_labels_are_mapped_before_they_are_compared(world: World) -> None:
    rows = plain_rows(40)
    again = [{"body": rows[0]["body"], "intent": "Fruit"}, {"body": "quite new", "intent": "FRUIT"}]
    data = world.prepare([*rows, *again], data={"label_map": {"Fruit": "fruit", "FRUIT": "fruit"}})
    assert reasons(data) == [(41, "duplicate")]
    assert data.labels == ["fruit", "tool"]


def test_declared_labels_give_the_order_and_unknown_ones_are_dropped(world: World) -> None:
    rows = [*plain_rows(40), {"body": "new", "intent": "tol"}, {"body": "newer", "intent": 5}]
    settings_ = {"labels": ["tool", "never", "fruit"], "checks": {"unknown-labels": "warning"}}
    data = world.prepare(rows, data=settings_)
    assert data.labels == ["tool", "never", "fruit"]
    assert reasons(data) == [(41, "unknown_label"), (42, "unknown_label")]
    stored = columns_of(data, "train")
    assert all(data.labels[index] == label for index, label in zip(stored["label_id"], stored["label"], strict=True))
    assert data.report["labels"]["never"] == {"train": 0, "validation": 0, "test": 0}
    assert len(findings(data.report, "unknown-labels")) == 2


def test_unknown_labels_are_an_error_unless_the_recipe_says_otherwise(world: World) -> None:
    rows = [*plain_rows(40), {"body": "new", "intent": "tol"}]
    with pytest.raises(FinetuneError, match="unknown-labels: 1 row"):
        world.prepare(rows, data={"labels": ["tool", "fruit"]})


def test_numbers_and_truth_values_are_labels(world: World) -> None:
    rows = [
        {"body": row["body"], "intent": [1, True, 0, False][number % 4]} for number, row in enumerate(plain_rows(60))
    ]
    assert world.prepare(rows).labels == ["0", "1", "false", "true"]


def test_rare_labels_are_refused_or_dropped(world: World) -> None:
    rows = [*plain_rows(40), {"body": "new", "intent": "rare"}, {"body": "newer", "intent": "rare"}]
    with pytest.raises(FinetuneError, match=r"rare-labels.*'rare'"):
        world.prepare(rows)
    data = world.prepare(rows, data={"rare_labels": "drop"})
    assert (reasons(data), data.labels) == ([(41, "rare_label"), (42, "rare_label")], ["fruit", "tool"])


def test_one_label_is_nothing_to_learn(world: World) -> None:
    with pytest.raises(FinetuneError, match="only 'fruit'"):
        world.prepare(plain_rows(40, ["fruit"]))


# -- several labels


def test_several_labels_become_a_row_of_zeros_and_ones(world: World) -> None:
    wanted = [["a"], ["b", "a", "a"], [], ["c"], ["c", "b"], "b"]
    rows = [{"text": row["body"], "labels": wanted[n % 6]} for n, row in enumerate(plain_rows(60))]
    rows += [{"text": "x", "labels": None}, {"text": "y", "labels": [None]}, {"text": "z", "labels": {"a": 1}}]
    data = world.prepare(rows, task="multi-label")
    assert data.labels == ["a", "b", "c"]
    expected = {row["text"]: sorted(set(row["labels"] or [])) for row in rows[:60] if row["text"] not in {"x", "y"}}
    for name in data.manifest["splits"]:
        stored = columns_of(data, name)
        for text, labels, targets in zip(stored["text"], stored["labels"], stored["label_ids"], strict=True):
            assert labels == expected[text]
            assert targets == [int(label in labels) for label in data.labels]
    assert [reason for _, reason in reasons(data)] == ["missing_labels", "missing_labels", "wrong_type_of_labels"]
    assert sum(data.report["labels"]["a"].values()) == sum("a" in labels for labels in expected.values())


def test_labels_in_one_text_are_parted_by_the_separator(world: World) -> None:
    wanted = ["a|b", "b", "", "c| a ", "c", "||"]
    rows = [{"text": row["body"], "labels": wanted[n % 6]} for n, row in enumerate(plain_rows(60))]
    data = world.prepare(rows, task="multi-label", data={"label_separator": "|"})
    found = dict(zip(all_rows(data, "text"), all_rows(data, "labels"), strict=True))
    assert [found[row["text"]] for row in rows[:6]] == [["a", "b"], ["b"], [], ["a", "c"], ["c"], []]


def test_columns_that_mark_their_label_are_read_as_labels(world: World) -> None:
    marks = [(1, 0), ("0", "1"), (False, True), (0.0, 0.0), ("Yes", " no "), ("true", 1.0)]
    rows = [
        {"text": row["body"], "angry": marks[n % 6][0], "urgent": marks[n % 6][1]}
        for n, row in enumerate(plain_rows(60))
    ]
    odd = [{"text": "x", "angry": 2, "urgent": 0}, {"text": "y", "angry": 1}, {"text": "z", "angry": "", "urgent": 1}]
    data = world.prepare([*rows, *odd], task="multi-label", data={"label_columns": ["urgent", "angry"]})
    assert data.labels == ["angry", "urgent"]
    found = dict(zip(all_rows(data, "text"), all_rows(data, "labels"), strict=True))
    wanted = [["angry"], ["urgent"], ["urgent"], [], ["angry"], ["angry", "urgent"]]
    assert [found[row["text"]] for row in rows[:6]] == wanted
    assert [reason for _, reason in reasons(data)] == ["neither_yes_nor_no_in_labels", *("missing_labels",) * 2]


def test_a_column_that_should_mark_its_label_and_is_not_there_is_named(world: World) -> None:
    rows = [{"text": row["body"], "angry": n % 2} for n, row in enumerate(plain_rows(60))]
    with pytest.raises(FinetuneError, match="'angri' for data.label_columns; .*Did you mean angry.*Correct data.l"):
        world.prepare(rows, task="multi-label", data={"label_columns": ["angri"]})


def test_a_column_that_the_task_could_read_and_the_recipe_does_not_name_is_told(world: World) -> None:
    rows = [{**row, "text_pair": f"and {row['body']}", "topic": "x"} for row in plain_rows(60)]
    (found,) = findings(world.check(rows), "unread-columns")
    assert found["severity"] == "warning"
    assert found["message"].startswith("The task can read 'text_pair', which the file has")
    assert "data.columns: {text_pair: text_pair}" in found["message"]
    named = {"text": "body", "label": "intent", "text_pair": "text_pair"}
    under_another_role = {"text": "text_pair", "label": "intent"}
    for columns in (named, under_another_role):
        assert not findings(world.check(rows, data={"columns": columns}), "unread-columns")
    empty = [{**row, "text_pair": None} for row in plain_rows(60)]
    assert not findings(world.check(empty), "unread-columns")


def test_the_order_of_labels_is_no_contradiction(world: World) -> None:
    rows = [{"text": row["body"], "labels": ["a", "b"] if n % 2 else ["c"]} for n, row in enumerate(plain_rows(60))]
    again = [{"text": rows[1]["text"], "labels": ["b", "a"]}, {"text": rows[3]["text"], "labels": ["b"]}]
    data = world.prepare([*rows, *again], task="multi-label")
    assert data.report["dropped"] == {"conflicting_labels": 2, "duplicate": 1}


# -- numbers


def test_numbers_are_stored_as_they_are(world: World) -> None:
    rows = [{"text": row["body"], "score": n / 8 if n % 2 else str(n / 8)} for n, row in enumerate(plain_rows(60))]
    odd: list[Any] = ["inf", "nan", True, [1], "", None, 10**400, "1,5"]
    rows += [{"text": f"odd {n}", "score": value} for n, value in enumerate(odd)]
    data = world.prepare(rows, task="regression")
    assert sorted(all_rows(data, "score")) == [n / 8 for n in range(60)]
    assert [reason for _, reason in reasons(data)] == [
        *("not_a_number_in_score",) * 2,
        *("wrong_type_of_score",) * 2,
        *("missing_score",) * 2,
        *("not_a_number_in_score",) * 2,
    ]
    assert set(data.report["target"]) == set(SPLITS)
    values = columns_of(data, "train")["score"]
    assert data.report["target"]["train"]["mean"] == pytest.approx(sum(values) / len(values))
    assert "labels" not in data.report


# -- tags


SPAN_COLUMNS = {"text": "text", "spans": "spans"}


def spans_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of words as texts with spans of characters."""
    found = []
    for row in rows:
        starts = [sum(len(word) + 1 for word in row["tokens"][:index]) for index in range(len(row["tokens"]))]
        spans = [
            {"start": starts[first], "end": starts[last - 1] + len(row["tokens"][last - 1]), "label": kind}
            for first, last, kind in entities(row["tags"])
        ]
        found.append({"text": " ".join(row["tokens"]), "spans": spans})
    return found


def test_each_word_has_its_tag_at_its_first_token(world: World) -> None:
    rows = tagged_rows(60)
    data = world.prepare(rows, task="token-classification")
    names = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert data.labels == ["LOC", "PER"]
    by_tokens = {tuple(row["tokens"]): row["tags"] for row in rows}
    for name in data.manifest["splits"]:
        stored = columns_of(data, name)
        for tokens, tags, words, targets in zip(
            stored["tokens"], stored["tags"], stored["word_ids"], stored["label_ids"], strict=True
        ):
            assert tags == by_tokens[tuple(tokens)]
            assert (words[0], words[-1], targets[0], targets[-1]) == (-1, -1, -100, -100)
            starts = [place for place, word in enumerate(words) if word >= 0 and words[place - 1] != word]
            assert [names[targets[place]] for place in starts] == tags
            assert sum(target != -100 for target in targets) == len(tags)
    for kind in data.labels:
        assert sum(data.report["labels"][kind].values()) == sum(
            found == kind for row in rows for _, _, found in entities(row["tags"])
        )


def iobes_of(tags: Sequence[str]) -> list[str]:
    found = list(tags)
    for first, last, kind in entities(tags):
        inside = [f"I-{kind}"] * (last - first - 2)
        found[first:last] = [f"S-{kind}"] if last - first == 1 else [f"B-{kind}", *inside, f"E-{kind}"]
    return found


def iob1_of(tags: Sequence[str]) -> list[str]:
    before = ["O", *tags[:-1]]
    return [
        f"I{tag[1:]}" if tag[0] == "B" and last[2:] != tag[2:] else tag for last, tag in zip(before, tags, strict=True)
    ]


@pytest.mark.parametrize("scheme", ["iobes", "iob1"])
def test_other_schemes_are_written_as_iob2(world: World, scheme: str) -> None:
    rows = tagged_rows(40)
    convert = {"iobes": iobes_of, "iob1": iob1_of}[scheme]
    given_rows = [{**row, "tags": convert(row["tags"])} for row in rows]
    assert any(old["tags"] != new["tags"] for old, new in zip(rows, given_rows, strict=True))
    data = world.prepare(given_rows, task="token-classification", data={"tag_scheme": scheme})
    assert sorted(zip(all_rows(data, "tokens"), all_rows(data, "tags"), strict=True)) == sorted(
        (row["tokens"], row["tags"]) for row in rows
    )


TAG_ROWS = st.lists(
    st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-PER", "S-LOC"]), min_size=1, max_size=8),
    min_size=1,
    max_size=20,
)


@pytest.mark.parametrize("scheme", ["iobes", "iob1"])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=TAG_ROWS)
def test_seqeval_reads_the_same_entities_before_and_after(world: World, found: list[list[str]], scheme: str) -> None:
    sequence_labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    scheme_classes = pytest.importorskip("seqeval.scheme")
    letters = "BI" if scheme == "iob1" else "BIES"
    tags = [[tag if tag[0] in letters else "O" for tag in row] for row in found]
    if scheme == "iobes":
        tags = [row for row in tags if row == iobes_of(iob2_by_seqeval(row, scheme_classes))]
    else:
        tags = [row for row in tags if row == iob1_of(iob2_by_seqeval(row, scheme_classes, "IOB1"))]
    rows = [{"tokens": [f"w{n}", *["x"] * (len(row) - 1)], "tags": row} for n, row in enumerate(tags)]
    filler = tagged_rows(30)
    filler = [{**row, "tags": (iobes_of if scheme == "iobes" else iob1_of)(row["tags"])} for row in filler]
    data = world.prepare([*rows, *filler], task="token-classification", data={"tag_scheme": scheme})
    converted = dict(zip(map(tuple, all_rows(data, "tokens")), all_rows(data, "tags"), strict=True))
    wanted = scheme_classes.IOBES if scheme == "iobes" else scheme_classes.IOB1
    for row in rows:
        before = scheme_classes.Entities([row["tags"]], scheme=wanted).entities[0]
        after = sequence_labeling.get_entities(converted[tuple(row["tokens"])])
        assert [(kind, first, last + 1) for kind, first, last in after] == [
            (entity.tag, entity.start, entity.end) for entity in before
        ]


def iob2_by_seqeval(tags: Sequence[str], scheme_classes: Any, scheme: str = "IOBES") -> list[str]:
    """Return the tags as IOB2 by way of seqeval's entities."""
    found = ["O"] * len(tags)
    for entity in scheme_classes.Entities([list(tags)], scheme=getattr(scheme_classes, scheme)).entities[0]:
        found[entity.start : entity.end] = [f"B-{entity.tag}", *[f"I-{entity.tag}"] * (entity.end - entity.start - 1)]
    return found


def test_broken_tags_are_refused_with_their_line(world: World) -> None:
    rows = tagged_rows(40)
    rows[6]["tags"] = ["O", "I-PER", *rows[6]["tags"][2:]]
    with pytest.raises(FinetuneError, match=r"invalid-tags.*line 7"):
        world.prepare(rows, task="token-classification")


def test_words_and_tags_have_to_be_as_many(world: World) -> None:
    rows: list[dict[str, Any]] = tagged_rows(40)
    rows[6]["tags"] = rows[6]["tags"][1:]
    rows[7]["tokens"] = [*rows[7]["tokens"][1:], 5]
    rows[8]["tokens"], rows[9]["tags"] = [], None
    data = world.prepare(rows, task="token-classification")
    assert reasons(data) == [
        (7, "tokens_and_tags_differ_in_number"),
        (8, "wrong_type_of_tokens"),
        (9, "missing_tokens"),
        (10, "missing_tags"),
    ]


def test_spans_of_characters_become_tagged_words(world: World) -> None:
    rows = tagged_rows(60)
    odd: list[dict[str, Any]] = [
        {"text": "Bob met Ann", "spans": [{"start": 0, "end": 30, "label": "PER"}]},
        {
            "text": "Bob met Al",
            "spans": [{"start": 0, "end": 5, "label": "PER"}, {"start": 4, "end": 7, "label": "PER"}],
        },
        {"text": "Bob met Em", "spans": "none"},
    ]
    data = world.prepare([*spans_of(rows), *odd], task="token-classification", data={"columns": SPAN_COLUMNS})
    assert sorted(zip(all_rows(data, "tokens"), all_rows(data, "tags"), strict=True)) == sorted(
        (row["tokens"], row["tags"]) for row in rows
    )
    assert reasons(data) == [(61, "span_out_of_text"), (62, "overlapping_spans"), (63, "wrong_type_of_spans")]
    assert dropped(data)[0]["row"] == odd[0]


def test_the_same_words_under_other_tags_are_a_contradiction(world: World) -> None:
    rows = tagged_rows(40)
    other = {**rows[3], "tags": ["O"] * len(rows[3]["tags"])}
    data = world.prepare([*rows, other, rows[5]], task="token-classification")
    assert reasons(data) == [(4, "conflicting_labels"), (41, "conflicting_labels"), (42, "duplicate")]


# -- pairs


def test_a_pair_is_encoded_as_a_pair(world: World) -> None:
    from transformers import AutoTokenizer

    rows = [{"text": row["body"], "text_pair": f"the new {row['intent']} saw", "label": row["intent"]} for row in plain_rows(40)]  # fmt: skip  # noqa: E501
    data = world.prepare(rows, data={"columns": {"text": "text", "text_pair": "text_pair"}})
    tokenizer = AutoTokenizer.from_pretrained(str(world.model))
    for name in data.manifest["splits"]:
        stored = columns_of(data, name)
        expected = tokenizer(stored["text"], stored["text_pair"], truncation=True, max_length=32)
        assert stored["input_ids"] == expected["input_ids"]
        assert stored["token_type_ids"] == expected["token_type_ids"]
    assert len(split_of(data)) == 40


def test_an_optional_text_that_is_not_mapped_is_not_read(world: World) -> None:
    rows = [{**row, "text_pair": "the same for all"} for row in plain_rows(30)]
    data = world.prepare(rows)
    assert "text_pair" not in columns_of(data, "train")


def test_types_of_entities_can_be_mapped(world: World) -> None:
    rows = [{**row, "tags": [tag.replace("PER", "PERSON") for tag in row["tags"]]} if number % 2 else row
            for number, row in enumerate(tagged_rows(60))]  # fmt: skip
    data = world.prepare(rows, task="token-classification", data={"label_map": {"PERSON": "PER"}})
    assert data.labels == ["LOC", "PER"]


def test_near_duplicates_and_groups_are_different_texts_of_a_label(world: World) -> None:
    rows = plain_rows(60, ["fruit", "tool", "weather"])
    rows += [
        {"body": f"please refund my order with the number {n} as soon as you can", "intent": "refund"}
        for n in range(10)
    ]
    data = world.prepare(
        rows, data={"near_duplicates": "keep", "rare_labels": "drop", "checks": {"label-in-one-split": "note"}}
    )
    assert "rare_label" not in data.report["dropped"]
    assert sum(data.report["labels"]["refund"].values()) == 10


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_without_the_column_is_named_even_if_others_have_it(world: World, kind: str) -> None:
    good, bad = plain_rows(30), [{"Body": row["body"], "intent": row["intent"]} for row in plain_rows(60)[30:]]
    if kind == "jsonl":
        paths = [world.write(good, "a.jsonl"), world.write(bad, "b.jsonl")]
        data = world.prepare(data={"source": paths})
        assert data.report["dropped"] == {"missing_text": 30}
        return
    for name, rows in (("a.csv", good), ("b.csv", bad)):
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        world.write("\n".join(lines).encode(), name)
    with pytest.raises(FinetuneError, match=r"b\.csv: expected a column 'body' for text; found Body, intent"):
        world.prepare(data={"source": [str(world.folder / "a.csv"), str(world.folder / "b.csv")]})


def test_spans_that_are_trimmed_or_cut_a_word_are_counted_and_shown(world: World) -> None:
    rows: list[dict[str, Any]] = [
        {"text": f"Ann{number} saw the old storm", "spans": [{"start": 0, "end": 3 + len(str(number)), "label": "PER"}]}
        for number in range(60)
    ]
    rows[3]["spans"][0]["end"] += 1  # the blank behind the name
    rows[7]["spans"][0]["end"] = 2
    columns = {"text": "text", "spans": "spans"}
    data = world.prepare(rows, task="token-classification", data={"columns": columns})
    spans = data.report["cleaners"][0]
    assert (spans["name"], spans["rows_touched"]) == ("spans", 2)
    assert spans["examples"][1] == {"before": "[An]n7 saw the old storm", "after": "An n7 saw the old storm"}
