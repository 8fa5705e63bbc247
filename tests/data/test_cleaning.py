"""Cleaners: what each changes, what it leaves alone, and what is counted."""

from __future__ import annotations

import random
from html import escape
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.cleaning import Pipeline
from finetune.data.cleaning.characters import unicode, whitespace
from finetune.data.cleaning.markup import html
from finetune.data.cleaning.masking import urls
from finetune.errors import FinetuneError


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("I don\u00e2\u20ac\u2122t", "I don't"),
        ("M\u00c3\u00bcller", "M\u00fcller"),
        ("\u201cquoted\u201d \u2018too\u2019", "\"quoted\" 'too'"),
        ("cafe\u0301", "caf\u00e9"),
        ("zero\u200bwidth soft\u00adhyphen \ufeffmark", "zerowidth softhyphen mark"),
        ("\u202eright to left\u202c \u2067isolate\u2069 \u200fmark", "right to left isolate mark"),
        ("bell\x07 escape\x1b delete\x7f", "bell escape delete"),
        ("page\x0cbreak\x1funit", "page break unit"),
        ("lines\r\nand\u2028more\n\ttabs", "lines\nand\nmore\n\ttabs"),
        ("\uff26\uff55\uff4c\uff4c", "Full"),
        ("&amp; <b>stays</b>", "&amp; <b>stays</b>"),
        (
            "family \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd",
            "family \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd",
        ),
        ("plain \u2013 text, \u20ac5", "plain \u2013 text, \u20ac5"),
    ],
)
def test_unicode_repairs_what_is_broken_and_nothing_else(before: str, after: str) -> None:
    assert unicode(before) == after
    assert unicode(after) == after


def test_unicode_options_choose_the_form_and_keep_curly_quotes() -> None:
    assert (unicode("x\u00b2"), unicode("x\u00b2", form="NFKC")) == ("x\u00b2", "x2")
    assert unicode("\u201chi\u201d", straight_quotes=False) == "\u201chi\u201d"


@pytest.mark.parametrize(
    ("before", "one_line", "with_lines"),
    [
        ("  a \t b  ", "a b", "a b"),
        ("a\u00a0\u2003b\u3000", "a b", "a b"),
        ("one \n\n  two\r\n\r\nthree ", "one two three", "one\ntwo\nthree"),
        (" \n\t ", "", ""),
    ],
)
def test_whitespace_becomes_single_blanks_or_single_line_breaks(before: str, one_line: str, with_lines: str) -> None:
    assert whitespace(before) == one_line
    assert whitespace(before, keep_lines=True) == with_lines


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<b>bold</b> and <i class='x'>slanted</i>", "bold and slanted"),
        ("one<br>two<br/>three<p>four</p>five", "one\ntwo\nthree\nfour\nfive"),
        ("fish &amp; chips &pound;5 &#8364;6 &#x41;", "fish & chips \u00a35 \u20ac6 A"),
        ("&lt;b&gt; is a tag", "<b> is a tag"),
        ("<style>p {color: red}</style>seen<script>if (a < b) alert('<p>')</script>", "seen"),
        ("<head><title>unseen</title></head>seen", "seen"),
        ("before<!-- <b>unseen</b> -->after", "beforeafter"),
        ("a<![CDATA[unseen]]>b", "ab"),
        ("<a href='https://x.example'>words</a>", "words"),
        ("</b>stray ends</p>", "stray ends\n"),
        ("<!DOCTYPE html><?xml version='1.0'?>seen<!--> and <!---> seen", "seen and  seen"),
        ("<!--[if IE]>unseen<![endif]-->seen<![if !IE]> too<![endif]>", "seen too"),
        ("<head><meta charset=utf-8><title>unseen</title><body class=x>seen", "seen"),
        ("<SCRIPT async>unseen</SCRIPT >seen<script src=x />too", "seentoo"),
        ("<i title='a > b'>quoted</i> <i title=\"<b>x</b>\">tag</i>", "quoted tag"),
        ('<i title=it\'s>don\'t</i> <img alt="He said "hi" there" src=x>stop', "don't stop"),
        ("<td nowrap>17</td><i data-x>18</i>", "\n17\n18"),
        ("<svg viewBox='0 0'><g><path d='M0'/></g></svg><g>", "<g>"),
        ("<svg><title>unseen</title><g>never closed", "<g>never closed"),
        ("<o:p>seen</o:p><my-part id=x> too</my-part>", "seen too"),
        ("&amp;lt; &#38;#38; &NotEqualTilde; &#0; &#99999999;", "&lt; &#38; \u2242\u0338 \ufffd \ufffd"),
    ],
)
def test_html_leaves_what_a_reader_of_the_page_sees(before: str, after: str) -> None:
    assert html(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "I <3 you & yours",
        "5 < 6 > 4",
        "AT&T, Q&A",
        "a <- b",
        "the price is <50",
        "no markup\n at all ",
        "open <b and more",
        "a<b and c>d",
        "if a <b and c=3 then d> e",
        "see https://x.com/?id=1&region=eu&section=2&timestamp=3",
        "&copy 2024, &notit; &bogus; &#; &#x;",
        "how do I use <script> in html?",
        "the <title> tag matters a lot",
        "the <style>, <head> and <template> elements hide <!-- what they <![CDATA[ hold",
        "Dear <first-name>, <PERSON> said <unk> [MASK] <mask> <|end|>",
        "vector<int> f(map<string, int> m); <T extends U>",
        "<!important> <?php echo 1 ?> </>",
    ],
)
def test_html_leaves_text_without_markup_alone(text: str) -> None:
    assert html(text) == text


@pytest.mark.parametrize(
    "before",
    [
        "<table><tr><td>order</td><td>17</td></tr></table>",
        "<tr><th>order</th><th>17</th></tr>",
        "<dl><dt>order</dt><dd>17</dd></dl>",
        "<section>order</section><section>17</section>",
        "<option>order</option><option>17</option>",
        "<pre>order</pre><address>17</address>",
    ],
)
def test_html_does_not_glue_the_words_of_two_cells_or_blocks_together(before: str) -> None:
    assert html(before).split() == ["order", "17"]


def test_html_keeps_the_address_of_a_link_on_demand() -> None:
    text = "<a href='https://x.example/a'>here</a> or <a name=top>there</a>"
    assert html(text, keep_links=True) == "here [https://x.example/a] or there"
    text = '<a title="no href=y" HREF = "/?a=1&amp;b=2&reg=3">x</a><a href=/z>y</a></a>'
    assert html(text, keep_links=True) == "x [/?a=1&b=2&reg=3]y [/z]"


def test_html_takes_a_declaration_that_nobody_declared_for_a_comment() -> None:
    assert html("see <![note] this> thing") == "see  thing"


def test_no_text_makes_html_fail() -> None:
    generator = random.Random(0)
    pieces = [
        "<",
        "!",
        "[",
        "]",
        "--",
        "a",
        ">",
        "&",
        "#",
        "x",
        "/",
        "?",
        "=",
        "'",
        '"',
        "script",
        "style",
        " ",
        "CDATA",
    ]
    for _ in range(5_000):
        text = "".join(generator.choices(pieces, k=generator.randint(2, 9)))
        assert isinstance(html(text), str)


class _Reader(HTMLParser):
    """What the standard library reads from a page that is written without mistakes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in {"script", "style", "title"}

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in {"script", "style", "title"}

    def handle_data(self, data: str) -> None:
        self.seen.append("" if self.hidden else data)


WORDS = st.text(alphabet="ab1 .'\"=/-", max_size=8).map(escape) | st.sampled_from(["&amp;", "&nbsp;", "&#65;"])
ATTRIBUTES = st.lists(
    st.builds(
        "{}{}".format,
        st.sampled_from([" class=", " data-x = ", "\ntitle="]),
        st.sampled_from(["'a > b'", '"<b>"', "plain", '"it\'s"']),
    ),
    max_size=2,
).map("".join)
PAGES = st.recursive(
    WORDS
    | st.sampled_from(["<br>", "<img src=x>", "<hr/>", "<!-- <b> -->", "<script>a<b</script>", "<title>x</title>"]),
    lambda inner: st.builds(
        "<{0}{1}>{2}</{0}>".format,
        st.sampled_from(["p", "B", "div", "td", "h1"]),
        ATTRIBUTES,
        st.lists(inner, max_size=4).map("".join),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(PAGES)
def test_a_page_without_mistakes_is_read_as_the_standard_library_reads_it(page: str) -> None:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert html(page).replace("\n", "") == "".join(reader.seen)


@pytest.mark.parametrize(
    "unit", ['<a b="', "<a b='\"", "<script>", '<title><b c="\'"\'"', "<!--", "<svg><math>", "<![CDATA[", "<a b="]
)
def test_what_is_opened_ever_again_and_never_closed_is_text(unit: str) -> None:
    text = unit * 20_000  # a search that began anew at each of them would take hours
    assert html(text) == text.replace("<svg><math>", "")


@pytest.mark.parametrize(
    ("before", "masked", "removed"),
    [
        ("see https://x.example/a?b=c#d now", "see [URL] now", "see  now"),
        ("(HTTP://x.example). www.y.example, ok", "([URL]). [URL], ok", "(). , ok"),
        ("'https://x.example/a!'", "'[URL]!'", "'!'"),
        ("no address: x.example, http://, a@b.example", *["no address: x.example, http://, a@b.example"] * 2),
    ],
)
def test_urls_are_masked_or_removed_without_the_punctuation_around_them(before: str, masked: str, removed: str) -> None:
    assert urls(before) == masked
    assert urls(before, action="remove") == removed


@pytest.mark.parametrize("mask", ["<link>", "", r"\url", r"\1", r"\g<0>"])
def test_a_mask_is_put_in_as_it_is_written(mask: str) -> None:
    assert urls("see https://x.example now", mask=mask) == f"see {mask} now"


def test_cleaners_run_in_the_order_of_the_recipe() -> None:
    entity = "a&nbsp;b"
    assert Pipeline([("html", {}), ("whitespace", {})])(entity) == "a b"
    assert Pipeline([("whitespace", {}), ("html", {})])(entity) == "a\u00a0b"


def test_no_cleaner_changes_nothing() -> None:
    assert Pipeline([])(" <b> \u200b ") == " <b> \u200b "


def test_a_cleaner_counts_the_rows_it_changed_and_keeps_the_first_examples() -> None:
    pipeline = Pipeline([("html", {}), ("whitespace", {})])
    for text in ["<b>a</b>", "untouched", " b ", "<i>c</i> ", "<p>d", "<u>e</u>"]:
        pipeline(text)
    by_html, by_whitespace = pipeline.reports
    assert (by_html.name, by_html.rows_touched) == ("html", 4)
    assert by_html.examples == [
        {"before": "<b>a</b>", "after": "a"},
        {"before": "<i>c</i> ", "after": "c "},
        {"before": "<p>d", "after": "\nd"},
    ]
    assert (by_whitespace.name, by_whitespace.rows_touched) == ("whitespace", 3)
    assert by_whitespace.examples[0] == {"before": " b ", "after": "b"}


def test_an_example_shows_no_more_than_300_characters() -> None:
    pipeline = Pipeline([("whitespace", {})])
    pipeline(" " + "x" * 1_000)
    assert pipeline.reports[0].examples == [{"before": " " + "x" * 299, "after": "x" * 300}]


@pytest.mark.parametrize(("name", "nearest"), [("htlm", "html"), ("white-space", "whitespace")])
def test_an_unknown_cleaner_is_named_with_the_nearest(name: str, nearest: str) -> None:
    parts: list[tuple[str, dict[str, Any]]] = [(name, {})]
    with pytest.raises(FinetuneError, match=f"unknown cleaner '{name}', did you mean {nearest}"):
        Pipeline(parts)
