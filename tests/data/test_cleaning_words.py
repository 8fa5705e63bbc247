"""Cleaners of words and of characters: contractions, stop words, emoji, control characters, case, repeats, marks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.cleaning.characters import control, lowercase, punctuation, repeats, unicode
from finetune.data.cleaning.words import contractions, emoji, stopwords
from finetune.registry import cleaners


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("I don't, you can't and we won't", "I do not, you cannot and we will not"),
        ("Don\u2019t! CAN'T! won\u02bct", "Do not! CANNOT! will not"),
        ("I'm sure they're here", "I am sure they are here"),
        ("i'm I'M", "i am I AM"),
        ("she's late, she's been late, it's got worse", "she is late, she has been late, it has got worse"),
        ("I'd go; you'd better go; it'd been", "I would go; you had better go; it had been"),
        ("they shouldn't've, I'd've, we'll've", "they should not have, I would have, we will have"),
        ("Let's go, y'all. 'Tis late", "Let us go, you all. It is late"),
        ("'don't' and \u2018I\u2019m\u2019", "'do not' and \u2018I am\u2019"),
        ("John's dog, the dogs' bone, o'clock, ain't", "John's dog, the dogs' bone, o'clock, ain't"),
        ("rock'n'roll, don'tx, xdon't, '90s", "rock'n'roll, don'tx, xdon't, '90s"),
    ],
)
def test_contractions_are_written_out_in_their_case(before: str, after: str) -> None:
    assert contractions(before) == after
    assert contractions(after) == after


@pytest.mark.parametrize(
    ("before", "options", "after"),
    [
        ("The card is not on the table", {}, "card table"),
        ("the card is not here", {"keep": ["not"]}, "card not "),
        ("I don\u2019t know, it's HIS", {}, "know, "),
        ("where is my card, please", {"words": ["Please"]}, "card, "),
        ("the card please", {"english": False, "words": ["please"]}, "the card "),
        ("a@b.example /the/a over-the-top 3.a it.is", {}, "a@b.example /the/a over-the-top 3.a it.is"),
    ],
)
def test_stopwords_go_and_their_blanks_with_them(before: str, options: dict[str, Any], after: str) -> None:
    assert stopwords(before, **options) == after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": ["of course"]}, "expected single words .* found 'of course'"),
        ({"keep": [""]}, "expected single words .* found ''"),
        ({"english": False}, "nothing would be removed"),
    ],
)
def test_stopwords_that_could_never_be_found_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cleaners.get("stopwords").attributes["check"](options)


@pytest.mark.parametrize(
    ("before", "described", "removed"),
    [
        ("good \U0001f44d", "good :thumbs_up:", "good "),
        ("\u2764\ufe0f and \u2764", ":red_heart: and :red_heart:", " and "),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467!", ":family_man_woman_girl:!", "!"),
        ("\U0001f44d\U0001f3fd\U0001f1e9\U0001f1ea", ":thumbs_up_medium_skin_tone::Germany:", ""),
        ("press 1\ufe0f\u20e3", "press :keycap_1:", "press "),
        ("caf\u00e9 \u00a9 2020 X\u2122 \u2194 5 \u20ac", *["caf\u00e9 \u00a9 2020 X\u2122 \u2194 5 \u20ac"] * 2),
        ("1 # *", "1 # *", "1 # *"),
    ],
)
def test_emoji_are_described_or_removed_and_plain_signs_stay(before: str, described: str, removed: str) -> None:
    assert emoji(before) == described
    assert emoji(before, action="remove") == removed
    assert emoji(before, action="keep") == before


def test_every_emoji_of_the_library_is_found() -> None:
    import emoji as library

    plain = {found for found in library.EMOJI_DATA if emoji(found, action="remove")}
    assert plain == set(
        "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194\u2195\u2196\u2197\u2198\u2199\u21a9\u21aa\u3030\u303d"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("bell\x07 zero\u200bwidth \ufeffmark\x7f", "bell zerowidth mark"),
        ("page\x1fbreak\x85line", "page break line"),
        ("tabs\tand\r\nlines\u2028stay", "tabs\tand\r\nlines\u2028stay"),
        ("don\u00e2\u20ac\u2122t \u201cq\u201d", "don\u00e2\u20ac\u2122t \u201cq\u201d"),
        ("\U0001f468\u200d\U0001f469 \u0645\u06cc\u200c\u062e", "\U0001f468\u200d\U0001f469 \u0645\u06cc\u200c\u062e"),
    ],
)
def test_control_drops_what_cannot_be_seen_and_nothing_else(before: str, after: str) -> None:
    assert control(before) == after


def test_lowercase_and_its_folding() -> None:
    assert lowercase("Stra\u00dfe \u00c4RGER") == "stra\u00dfe \u00e4rger"
    assert lowercase("Stra\u00dfe", casefold=True) == "strasse"


@pytest.mark.parametrize(
    ("before", "most", "after"),
    [
        ("soooo gooood!!!!", 2, "soo good!!"),
        ("soooo", 1, "so"),
        ("10000 www.x World War III AAA XXXVIII", 2, "10000 www.x World War III AAA XXXVIII"),
        ("book   keeper", 2, "book   keeper"),
        ("NOOOO \u00e4\u00e4\u00e4\u00e4", 3, "NOOO \u00e4\u00e4\u00e4"),
    ],
)
def test_repeats_are_shortened_but_not_digits_and_numerals(before: str, most: int, after: str) -> None:
    assert repeats(before, most=most) == after


@pytest.mark.parametrize(
    ("before", "inside", "without"),
    [
        ("Hello, world! (yes)", "Hello world yes", "Hello world yes"),
        ("don't pay 3.50 to well-known x_y", "don't pay 3.50 to well-known x_y", "dont pay 3 50 to well known x y"),
        ("wait...what -- no", "wait what  no", "wait what  no"),
        ("see [URL], ([EMAIL])[x]", "see [URL] [EMAIL]x", "see [URL] [EMAIL]x"),
        ("\u00bfqu\u00e9? \u300c\u306f\u3044\u300d\u3002", "qu\u00e9 \u306f\u3044", "qu\u00e9 \u306f\u3044"),
        ("nothing \u20ac5 \U0001f44d", "nothing \u20ac5 \U0001f44d", "nothing \u20ac5 \U0001f44d"),
    ],
)
def test_punctuation_goes_without_gluing_words(before: str, inside: str, without: str) -> None:
    assert punctuation(before) == inside
    assert punctuation(before, keep_inside=False) == without


def test_punctuation_keeps_what_it_is_told_to() -> None:
    assert punctuation("$5 (100%)!", keep="$%") == "$5 100%"


def test_ascii_without_control_characters_is_no_work_for_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    import ftfy

    monkeypatch.setattr(ftfy, "fix_text", None)
    for text in ["plain words, 'quotes' & <b>", "lines\nand\ttabs", ""]:
        assert unicode(text) == text


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(codec="ascii")))
def test_what_unicode_leaves_alone_by_its_short_cut_ftfy_would_too(text: str) -> None:
    import ftfy

    if unicode(text) == text:
        assert ftfy.fix_text(text, unescape_html=False) == text


BROKEN = [
    "\u00e2\u20ac\u2122",
    "\u00c3",
    "\u00a9",
    "\u00ad",
    "\u200b",
    "\ufb01",
    "e",
    "\u0301",
    "\r",
    "\n",
    " ",
    "\x85",
    "I",
    "a",
]
SPECIAL = [
    "'",
    "\u2019",
    "n't",
    "don",
    "the",
    "a",
    "is",
    ".",
    "-",
    "!!!",
    "[",
    "]",
    "URL",
    "\U0001f44d",
    "\ufe0f",
    "\u200d",
    "III",
]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(BROKEN + SPECIAL) | st.text(max_size=2), max_size=12).map("".join))
def test_what_is_clean_stays_clean(text: str) -> None:
    for clean in (unicode, control, lowercase, repeats, punctuation, contractions, stopwords, emoji):
        cleaned = clean(text)
        assert clean(cleaned) == cleaned, clean.__name__
