"""Schemes of tags, entities, and tags from spans of characters."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.cleaning import Pipeline
from finetune.data.tagging import (
    SpanError,
    blank_bounded,
    entities,
    fits,
    guess_scheme,
    invalid_positions,
    spans_to_iob2,
    to_iob2,
)

# One sentence in every scheme: two neighbours of one type, an entity of one word, one of three
IOB2 = ["B-PER", "B-PER", "I-PER", "O", "B-LOC", "I-LOC", "I-LOC", "B-ORG"]
IOB1 = ["I-PER", "B-PER", "I-PER", "O", "I-LOC", "I-LOC", "I-LOC", "I-ORG"]
IOBES = ["S-PER", "B-PER", "E-PER", "O", "B-LOC", "I-LOC", "E-LOC", "S-ORG"]
BILOU = ["U-PER", "B-PER", "L-PER", "O", "B-LOC", "I-LOC", "L-LOC", "U-ORG"]

TAGS = st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y", "B-a-b", "I-a-b"]), max_size=12)
ANY_TAGS = st.lists(st.sampled_from(["O", "B-X", "I-X", "E-X", "S-Y", "L-Y", "U-X", "B", "I-", "-X", "", "o"]))
TEXTS = st.text(alphabet="ab ,\u00e9\u4e2d\n-_'", max_size=24) | st.lists(
    st.sampled_from(["<b>", "<p class='a b'>", "&amp;", "a@b.example", "www.x.y", "1.2.3.4", "::1", "a", ".", " "])
).map("".join)
SPANS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6), st.sampled_from(["X", "Y"])), max_size=4)


def as_iob1(tags: list[str]) -> list[str]:
    """Write valid IOB2 as IOB1: B- remains only directly behind an entity of the same type."""
    return [
        tag.replace("B-", "I-", 1) if tag[:1] == "B" and (not index or tags[index - 1][2:] != tag[2:]) else tag
        for index, tag in enumerate(tags)
    ]


def as_iobes(tags: list[str]) -> list[str]:
    found = []
    for tag, following in zip(tags, [*tags, "O"][1:], strict=True):
        last = following != f"I-{tag[2:]}"
        found.append(tag if tag == "O" or not last else {"B": "S", "I": "E"}[tag[0]] + tag[1:])
    return found


@pytest.mark.parametrize(("scheme", "tags"), [("iob2", IOB2), ("iob1", IOB1), ("iobes", IOBES), ("iobes", BILOU)])
def test_every_scheme_becomes_iob2(scheme: Any, tags: list[str]) -> None:
    assert to_iob2(tags, scheme) == IOB2
    assert guess_scheme([["O", "O"], tags]) == scheme


@settings(deadline=None, max_examples=200)
@given(TAGS)
def test_valid_tags_come_back_from_every_scheme(tags: list[str]) -> None:
    valid = to_iob2(tags, "iob1")
    assert invalid_positions(valid) == []
    assert to_iob2(as_iob1(valid), "iob1") == valid
    assert to_iob2(as_iobes(valid), "iobes") == valid
    assert to_iob2(valid, "iob2") == valid


def test_rows_without_entities_are_iob2() -> None:
    assert guess_scheme([]) == "iob2"
    assert guess_scheme([["O"], [], ["?", ""]]) == "iob2"


def test_a_few_broken_tags_do_not_turn_the_guess() -> None:
    assert guess_scheme([IOB2, IOB2, ["O", "I-PER", "S-PER"]]) == "iob2"
    assert guess_scheme([IOB1, IOB1, ["O", "B-PER", "O"]]) == "iob1"
    assert guess_scheme([IOBES, IOBES, ["O", "I-PER"]]) == "iobes"


def test_what_is_no_tag_of_the_scheme_is_left_to_be_found() -> None:
    assert to_iob2(["PER", "I-X", "b-X", "", "B-"], "iob1") == ["PER", "B-X", "b-X", "", "B-"]
    assert to_iob2(["E-X", "PER", "S"], "iobes") == ["I-X", "PER", "S"]


def test_entities_have_their_end_behind_the_last_word() -> None:
    assert entities(IOB2) == [(0, 1, "PER"), (1, 3, "PER"), (4, 7, "LOC"), (7, 8, "ORG")]
    assert entities(["I-X", "I-Y", "O", "I-Y"]) == [(0, 1, "X"), (1, 2, "Y"), (3, 4, "Y")]
    assert entities([]) == entities(["O", "PER", ""]) == []


@settings(deadline=None, max_examples=300)
@given(TAGS)
def test_entities_are_those_of_a_pattern_over_the_row(tags: list[str]) -> None:
    written = "".join(f"<{tag}>" for tag in tags)
    expected = []
    for match in re.finditer(r"<[BI]-([^>]*)>(<I-\1>)*", written):
        start = written[: match.start()].count("<")
        expected.append((start, start + match.group().count("<"), match.group(1)))
    assert entities(tags) == expected


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y", "B", "I", "B-", "B-a-b"])))
def test_entities_equal_those_of_seqeval(tags: list[str]) -> None:
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    assert entities(tags) == [(start, end + 1, kind) for kind, start, end in seqeval.get_entities(tags)]


@pytest.mark.parametrize(
    ("tags", "positions"),
    [
        (IOB2, []),
        (["I-X", "I-X"], [0]),
        (["B-X", "I-Y", "I-Y"], [1]),
        (["B-X", "O", "I-X"], [2]),
        (["B-X", "PER", "I-X", "", "B-", "S-X"], [1, 2, 3, 4, 5]),
    ],
)
def test_positions_that_break_iob2(tags: list[str], positions: list[int]) -> None:
    assert invalid_positions(tags) == positions


@settings(deadline=None, max_examples=200)
@given(ANY_TAGS, st.sampled_from(["iob1", "iob2", "iobes"]))
def test_no_tags_whatever_raise(tags: list[str], scheme: Any) -> None:
    assert len(to_iob2(tags, scheme)) == len(tags)
    assert all(0 <= start < end <= len(tags) for start, end, _ in entities(tags))
    assert set(invalid_positions(tags)) <= set(range(len(tags)))
    assert guess_scheme([tags]) in {"iob1", "iob2", "iobes"}


def test_spans_become_words_and_tags() -> None:
    text = "Dr. Ada Lovelace, London (UK)"
    spans = [{"start": 18, "end": 24, "label": "LOC"}, {"start": 4, "end": 16, "label": "PER"}]
    tokens, tags = spans_to_iob2(text, spans)
    assert tokens == ["Dr", ".", "Ada", "Lovelace", ",", "London", "(", "UK", ")"]
    assert tags == ["O", "O", "B-PER", "I-PER", "O", "B-LOC", "O", "O", "O"]


def test_a_span_inside_a_word_splits_it_and_blanks_at_its_ends_do_not_count() -> None:
    assert spans_to_iob2("Berliner Bär", [{"start": 0, "end": 6, "label": "LOC"}]) == (
        ["Berlin", "er", "Bär"],
        ["B-LOC", "O", "O"],
    )
    assert spans_to_iob2("a  b ", [{"start": 1, "end": 5, "label": "X"}]) == (["a", "b"], ["O", "B-X"])


def test_spans_with_blanks_at_their_ends_are_counted() -> None:
    spans = [{"start": start, "end": end, "label": "X"} for start, end in [(0, 1), (1, 4), (5, 7), (7, 9)]]
    assert spans_to_iob2("a  b  c d", spans)[0] == ["a", "b", "c", "d"]
    assert blank_bounded("a  b  c d", spans) == 3
    assert blank_bounded("a  b", []) == 0


PRIVATE = "<b>Ann</b> a.b@x.com https://x.y/z 10.0.0.1"


def test_cleaners_of_single_tokens_find_addresses_and_markup_in_a_text_with_spans() -> None:
    tokens, tags = spans_to_iob2(PRIVATE, [{"start": 3, "end": 6, "label": "PER"}])
    assert tokens == ["<b>", "Ann", "</b>", "a.b@x.com", "https://x.y/z", "10.0.0.1"]
    pipeline = Pipeline([(name, {}) for name in ("emails", "urls", "html", "ips")], tokens=True)
    cleaned, cleaned_tags, reason = pipeline.tokens(tokens, tags)
    assert (cleaned, cleaned_tags, reason) == (["Ann", "[EMAIL]", "[URL]", "[IP]"], ["B-PER", "O", "O", "O"], "")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("(see www.x.example/a?b=1&amp;c, or b@x.example).", "( see www.x.example/a?b=1&amp;c , or b@x.example ) ."),
        ("AT&amp;T &lt;3 &nbsp;a&b; Q&A", "AT &amp; T &lt; 3 &nbsp; a & b ; Q & A"),
        ("ip=10.0.0.1:80 ::1/128 1.2.3 3.5", "ip = 10.0.0.1 : 80 ::1 / 128 1 . 2 . 3 3 . 5"),
        ("a<br/>b<!--c-->d <e> 5<6", "a <br/> b <!--c--> d < e > 5 < 6"),
        ("x@y a.b http:// @home", "x @ y a . b http : / / @ home"),
    ],
)
def test_addresses_markup_and_entities_are_one_token_each(text: str, tokens: str) -> None:
    assert spans_to_iob2(text, [])[0] == tokens.split()


def test_an_address_in_a_tag_is_the_tags_and_a_script_is_one_token() -> None:
    text = 'to <a href="https://x.example/a b@x.example">me</a><script>if (a < 1) go()</script>'
    tokens = ["to", '<a href="https://x.example/a b@x.example">', "me", "</a>", "<script>if (a < 1) go()</script>"]
    assert spans_to_iob2(text, [])[0] == tokens
    assert Pipeline([("html", {})], tokens=True).tokens(tokens, None)[0] == ["to", "me"]


def test_a_span_inside_an_address_splits_it() -> None:
    text = "https://x.example/ann b@x.example"
    spans = [{"start": 18, "end": 21, "label": "PER"}, {"start": 24, "end": 33, "label": "HOST"}]
    assert spans_to_iob2(text, spans) == (
        ["https://x.example/", "ann", "b", "@", "x", ".", "example"],
        ["O", "B-PER", "O", "O", "B-HOST", "I-HOST", "I-HOST"],
    )


def test_neighbouring_spans_of_one_label_stay_two_entities() -> None:
    spans = [{"start": 0, "end": 2, "label": "X"}, {"start": 2, "end": 4, "label": "X"}]
    assert spans_to_iob2("abcd", spans) == (["ab", "cd"], ["B-X", "B-X"])


@pytest.mark.parametrize(
    ("spans", "reason", "message"),
    [
        ([{"start": 0, "end": 9, "label": "X"}], "span_out_of_text", "out of the text"),
        ([{"start": -1, "end": 2, "label": "X"}], "span_out_of_text", "out of the text"),
        ([{"start": 2, "end": 1, "label": "X"}], "span_out_of_text", "out of the text"),
        ([{"start": 1, "end": 1, "label": "X"}], "empty_span", "empty"),
        ([{"start": 2, "end": 3, "label": "X"}], "empty_span", "empty"),
        (
            [{"start": 0, "end": 2, "label": "X"}, {"start": 1, "end": 4, "label": "Y"}],
            "overlapping_spans",
            "overlap at character 1",
        ),
        ([{"start": 0, "end": 2}], "invalid_spans", "start, end, label"),
        ([{"start": "0", "end": 2, "label": "X"}], "invalid_spans", "start, end, label"),
        ([{"start": True, "end": 2, "label": "X"}], "invalid_spans", "start, end, label"),
        (["X"], "invalid_spans", "start, end, label"),
    ],
)
def test_spans_that_mark_no_text_are_refused_with_the_reason(spans: Any, reason: str, message: str) -> None:
    with pytest.raises(SpanError, match=message) as refused:
        spans_to_iob2("ab cd", spans)
    assert refused.value.reason == reason
    assert isinstance(refused.value, ValueError)


@settings(deadline=None, max_examples=300)
@given(TEXTS, SPANS)
def test_entities_from_spans_have_exactly_the_spans_characters(text: str, drawn: list[tuple[int, int, str]]) -> None:
    spans: list[dict[str, Any]] = []
    place = 0
    for start, length, label in sorted(drawn):
        if start >= place and text[start : start + length].strip():
            spans.append({"start": start, "end": min(start + length, len(text)), "label": label})
            place = start + length
    tokens, tags = spans_to_iob2(text, spans)
    assert "".join("".join(tokens).split()) == "".join(text.split())
    assert invalid_positions(tags) == []
    assert [("".join("".join(tokens[start:end]).split()), kind) for start, end, kind in entities(tags)] == [
        ("".join(text[span["start"] : span["end"]].split()), span["label"]) for span in spans
    ]


@pytest.mark.parametrize(
    ("tokens", "tags", "fit"),
    [
        (["a", "b"], ["O", "B-X"], True),
        ([], [], True),
        (["a"], [], False),
        (["a"], [None], False),
        ([1], ["O"], False),
        ("a", "O", False),
        (None, None, False),
    ],
)
def test_tokens_and_tags_fit_when_both_are_texts_of_one_number(tokens: Any, tags: Any, fit: bool) -> None:
    assert fits(tokens, tags) is fit
