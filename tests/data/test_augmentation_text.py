"""Texts taken apart and put together: byte for byte when unchanged, and without stray blanks when changed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.augmentation.text import Piece, join, split


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=300)
def test_an_unchanged_text_comes_back_byte_for_byte(text: str) -> None:
    words, gaps = split(text)
    assert len(gaps) == len(words) + 1
    assert all(word and not any(letter.isspace() for letter in word) for word in words)
    assert all(not gap.strip() for gap in gaps)
    assert join([(word, position) for position, word in enumerate(words)], words, gaps) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"Hi," she said.', ['"', "Hi", ',"', "she", "said", "."]),
        ("don't well-known 3.14 and/or", ["don't", "well-known", "3.14", "and/or"]),
        ("at -5\u00b0 or 5% (#topic @name)", ["at", "-5\u00b0", "or", "5%", "(", "#topic", "@name", ")"]),
        ("see https://x.org/a?b=c. [URL]! <mask>,", ["see", "https://x.org/a?b=c", ".", "[URL]", "!", "<mask>", ","]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940\u0964", ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u0964"]),
        ("wait\u2026 what?!", ["wait", "\u2026", "what", "?!"]),
        (" \n ", []),
    ],
)  # fmt: skip
def test_words_keep_the_marks_inside_and_lose_those_at_their_ends(text: str, words: list[str]) -> None:
    assert split(text)[0] == words


def change(text: str, *pieces: str) -> str:
    """Join pieces, written as the words themselves; `+word` is inserted, `old>new` is replaced."""
    words, gaps = split(text)
    made: list[Piece] = []
    for piece in pieces:
        old, arrow, new = piece.partition(">")
        made.append((piece[1:], None) if piece[0] == "+" else (new if arrow else old, words.index(old)))
    return join(made, words, gaps)


@pytest.mark.parametrize(
    ("text", "pieces", "after"),
    [
        ("the big cat, sat.", "the cat , sat .", "the cat, sat."),
        ("the big cat, sat.", "the big , sat .", "the big, sat."),
        (" the big cat. ", "big cat .", " big cat. "),
        (" the big cat. ", "the big", " the big "),
        ("a (big dog) ran", "a ( dog ) ran", "a (dog) ran"),
        ("a (big dog) ran", "a ( big ) ran", "a (big) ran"),
        ("one two\nthree four", "one three four", "one\nthree four"),
        ("one two\nthree four", "one two four", "one two\nfour"),
        ("cat, dog", "cat dog", "cat dog"),
        ("a  b, c", "b a , c", "b  a, c"),
        ("a b\nc d", "a c b d", "a c\nb d"),
        ("the cat, sat.", "the +big cat , sat .", "the big cat, sat."),
        ("the cat, sat.", "the cat +big , sat .", "the cat big, sat."),
        ("the cat, sat.", "+big the cat , sat . +now", "big the cat, sat. now"),
        ("a (dog) ran", "a ( +big +old dog ) ran", "a (big old dog) ran"),
        ("one.\ntwo", "one . +new two", "one.\nnew two"),
        ("... so", "+well ... so", "well... so"),
        ("remove it, now", "remove>take it +away , now", "take it away, now"),
        ("a  b", "a b>x", "a  x"),
        ("a b", "a b>x b>y", "a x y"),
    ],
)
def test_changed_words_leave_no_stray_blanks(text: str, pieces: str, after: str) -> None:
    assert change(text, *pieces.split()) == after


def test_nothing_left_of_a_text_is_its_white_space_at_the_ends() -> None:
    words, gaps = split(" a b\n")
    assert join([], words, gaps) == " \n"
