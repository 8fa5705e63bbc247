"""The pipeline: many texts at once, rows of tokens with tags, and reports that can be merged."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.cleaning import CleanerReport, Pipeline
from finetune.errors import FinetuneError
from finetune.registry import cleaners
from tests.conftest import ROOT

OPTIONS: dict[str, dict[str, Any]] = {"length": {"min_words": 2}, "language": {"languages": ["en"]}}
ALIGNED = [name for name in cleaners.names() if "tokens" in cleaners.get(name).attributes]
REFUSING = [name for name in cleaners.names() if name not in ALIGNED]
TEXTS = ["<b>The</b> card", "", "plain words", " A  b ", "\U0001f44d!!!", "a@b.example", "plain words", "x"]
PIECES = [
    *TEXTS,
    "the",
    "II",
    "<p>",
    "</b>",
    "&amp;",
    "\u00a0",
    "\u200b",
    "...",
    "'",
    "www.x.example",
    "1.2.3.4",
    "\ud800",
    "soooo",
]
anything = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)


def test_which_cleaners_there_are() -> None:
    assert [
        *("control", "emails", "emoji", "html", "ips", "language", "length", "lowercase", "punctuation"),
        *("repeats", "stopwords", "unicode", "urls", "whitespace"),
    ] == ALIGNED
    assert REFUSING == ["cards", "contractions", "ibans", "phones"]


@pytest.mark.parametrize("name", cleaners.names())
@settings(deadline=None, max_examples=60)
@given(text=anything | st.text(st.characters()))
def test_no_text_makes_a_cleaner_fail(name: str, text: str) -> None:
    cleaned = cleaners.get(name).build(OPTIONS.get(name, {}))(text)
    assert cleaned is None or isinstance(cleaned, str)


@settings(deadline=None, max_examples=60)
@given(st.lists(anything, max_size=6), st.lists(st.sampled_from(cleaners.names()), max_size=4))
def test_many_texts_at_once_are_cleaned_like_one_after_the_other(texts: list[str], names: list[str]) -> None:
    parts = [(name, OPTIONS.get(name, {})) for name in names if name != "language"]
    at_once, one_by_one = Pipeline(parts), Pipeline(parts)
    cleaned, rejected = at_once.texts(texts)
    assert [(text, rejected.get(index, "")) for index, text in enumerate(cleaned)] == [*map(one_by_one.text, texts)]
    assert [report.rows_touched for report in at_once.reports] == [r.rows_touched for r in one_by_one.reports]
    assert [report.rows_rejected for report in at_once.reports] == [r.rows_rejected for r in one_by_one.reports]


def test_the_texts_given_are_not_changed() -> None:
    given_texts = [" a "]
    Pipeline([("whitespace", {})]).texts(given_texts)
    assert given_texts == [" a "]


def test_examples_are_different_from_each_other() -> None:
    pipeline = Pipeline([("lowercase", {})])
    pipeline.texts(["A", "A", "B", "A", "C", "D"])
    assert pipeline.reports[0].rows_touched == 6
    assert [example["before"] for example in pipeline.reports[0].examples] == ["A", "B", "C"]


def test_taken_reports_of_parts_merge_into_the_report_of_the_whole() -> None:
    parts: list[tuple[str, dict[str, Any]]] = [("lowercase", {}), ("length", {"min_words": 2})]
    whole, chunked = Pipeline(parts), Pipeline(parts)
    whole.texts(TEXTS)
    chunked.texts(TEXTS[:3])
    merged = chunked.take_reports()
    assert [report.as_json() for report in chunked.reports] == [
        {"name": name, "rows_touched": 0, "rows_rejected": 0, "examples": []} for name in ("lowercase", "length")
    ]
    chunked.texts(TEXTS[3:])
    for report, other in zip(merged, chunked.take_reports(), strict=True):
        report.merge(other)
    assert [report.as_json() for report in merged] == [report.as_json() for report in whole.reports]
    assert merged[1].as_json()["rows_rejected"] == 4


def test_merging_does_not_share_examples() -> None:
    first, second = CleanerReport("x"), CleanerReport("x", 1, 0, [{"before": "a", "after": "b"}])
    first.merge(second)
    first.examples[0]["after"] = "changed"
    assert second.examples == [{"before": "a", "after": "b"}]


@pytest.mark.parametrize("name", REFUSING)
def test_cleaners_that_look_across_tokens_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(FinetuneError) as refused:
        Pipeline([("unicode", {}), (name, {})], tokens=True)
    reason = cleaners.get(name).attributes["across"]
    assert f"found {name} ({reason})" in str(refused.value)
    assert "Take them out of data.clean" in str(refused.value)
    assert "unicode, urls, whitespace" in str(refused.value)


@pytest.mark.parametrize(
    ("names", "tokens", "tags", "expected"),
    [
        (
            ["html"],
            ["<b>", "New", "York", "</b>"],
            ["O", "B-LOC", "I-LOC", "O"],
            (["New", "York"], ["B-LOC", "I-LOC"], ""),
        ),
        (["stopwords"], ["The", "Hague", "calls"], ["B-LOC", "I-LOC", "O"], (["Hague", "calls"], ["B-LOC", "O"], "")),
        (["stopwords"], ["The", "Who", "play"], ["B-ORG", "I-ORG", "O"], ([], [], "entity_lost_by_stopwords")),
        (["stopwords"], ["The", "Who"], ["B-ORG", "I-ORG"], ([], [], "entity_lost_by_stopwords")),
        (["stopwords"], ["is", "it"], ["O", "O"], ([], [], "nothing_left_after_cleaning")),
        (["stopwords"], ["New", "of", "York"], ["B-X", "I-X", "I-X"], (["New", "York"], ["B-X", "I-X"], "")),
        (["stopwords"], ["a", "b", "c"], ["B-X", "B-X", "I-X"], ([], [], "entity_lost_by_stopwords")),
        (["html"], ["a<br>b", "&nbsp;", "c"], ["B-X", "I-X", "O"], (["a_b", "c"], ["B-X", "O"], "")),
        (["whitespace"], ["New\u00a0 York", " x "], None, (["New_York", "x"], None, "")),
        (["urls", "lowercase"], ["See", "http://x.example"], ["O", "O"], (["see", "[url]"], ["O", "O"], "")),
        (["length"], ["one"], ["O"], ([], [], "rejected_by_length")),
        (["length"], ["one", "two"], None, (["one", "two"], None, "")),
        (["length"], ["one"], None, ([], None, "rejected_by_length")),
        ([], ["a", "b"], ["O", "B-X"], (["a", "b"], ["O", "B-X"], "")),
    ],
)
def test_tokens_and_tags_stay_side_by_side(
    names: list[str], tokens: list[str], tags: list[str] | None, expected: tuple[list[str], list[str] | None, str]
) -> None:
    pipeline = Pipeline([(name, OPTIONS.get(name, {})) for name in names], tokens=True)
    assert pipeline.tokens(tokens, tags) == expected


def test_rows_of_tokens_are_counted_as_rows() -> None:
    pipeline = Pipeline([("stopwords", {}), ("urls", {"action": "keep"}), ("length", {"min_words": 2})], tokens=True)
    pipeline.tokens(["The", "Who", "play"], ["B-ORG", "I-ORG", "O"])
    pipeline.tokens(["the", "card", "www.x.example"], ["O", "O", "O"])
    pipeline.tokens(["card"], ["O"])
    words, links, limits = pipeline.take_reports()
    assert (words.rows_touched, words.rows_rejected) == (1, 1)
    assert words.examples == [
        {"before": "The Who play", "after": ""},
        {"before": "the card www.x.example", "after": "card www.x.example"},
    ]
    assert (links.rows_touched, links.examples) == (
        1,
        [{"before": "card www.x.example", "after": "card www.x.example"}],
    )
    assert (limits.rows_touched, limits.rows_rejected) == (0, 1)


def entities(tags: list[str]) -> list[str]:
    """Return the types of the entities in order; fail if the tags are no valid IOB2."""
    found: list[str] = []
    previous = "O"
    for tag in tags:
        assert tag == "O" or tag[:2] in {"B-", "I-"}
        if tag.startswith("I-"):
            assert previous[2:] == tag[2:]
        if tag.startswith("B-"):
            found.append(tag[2:])
        previous = tag
    return found


@st.composite
def tagged_rows(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    token = (st.sampled_from(PIECES) | st.text(st.characters(), max_size=4)).filter(lambda text: bool(text.strip()))
    tags: list[str] = []
    for kind, size in draw(st.lists(st.tuples(st.sampled_from(["O", "PER", "LOC"]), st.integers(1, 3)), max_size=6)):
        tags += ["O"] * size if kind == "O" else [f"B-{kind}", *[f"I-{kind}"] * (size - 1)]
    return draw(st.lists(token, min_size=len(tags), max_size=len(tags))), tags


@pytest.mark.parametrize("name", ALIGNED)
@settings(deadline=None, max_examples=60)
@given(row=tagged_rows())
def test_entities_outlive_cleaning_or_the_row_is_rejected(name: str, row: tuple[list[str], list[str]]) -> None:
    tokens, tags = row
    cleaned, cleaned_tags, reason = Pipeline([(name, OPTIONS.get(name, {}))], tokens=True).tokens(tokens, tags)
    assert cleaned_tags is not None
    assert len(cleaned) == len(cleaned_tags)
    assert all(token.strip() for token in cleaned)
    if reason:
        assert (cleaned, cleaned_tags) == ([], [])
        assert reason in {f"rejected_by_{name}", f"entity_lost_by_{name}", "nothing_left_after_cleaning"}
    else:
        assert entities(cleaned_tags) == entities(tags)


def test_naming_the_cleaners_imports_nothing_heavy() -> None:
    code = "import sys; from finetune.registry import cleaners; cleaners.names(); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"ftfy", "emoji", "py3langid", "numpy", "pyarrow", "html5lib"} == set()
