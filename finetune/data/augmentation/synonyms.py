"""Augmenters that know what words mean: `synonyms`, `insert`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

from finetune.data.augmentation.choices import Rate, draw, how_many, in_case_of, is_negation, is_number, replaced
from finetune.data.augmentation.text import Piece, is_word
from finetune.errors import FinetuneError
from finetune.registry import augmenters

Source = Literal["english", "wordnet"]
Find = Callable[[str], tuple[str, ...]]

# WordNet knows these only as nouns and verbs of another sense: `can` as a tin, `in` as an inch
_FUNCTION_WORDS = """
a about above after all am an and any are as at be because been before being below but by can could did do does
down each for from had has have he her here him his how i if in into is it its just like may me might more most
must my now of off on one or other our out over own she should so some such than that the their them then there
these they this those through to too two under up us very was we were what when where which while who whom why
will with would yet you your
"""


def _check_source(options: Mapping[str, Any]) -> None:
    if options["table"] is not None and options["source"] != "english":
        raise ValueError(f"expected either `table` or `source: {options['source']}`, found both")


@augmenters.register("synonyms", level="words", tokens=True, check=_check_source)
def synonyms(
    words: Sequence[str], random: Random, *, rate: Rate = 0.1, source: Source = "english", table: str | None = None
) -> list[Piece]:
    """Replace words by synonyms, written as the word is written.

    They come from a small English table of this package, from WordNet (its first sense; needs the package nltk and
    its corpus), or from a `table`, a file of lines `word<TAB>synonym, synonym`. A word has to stand there as it is,
    without regard to capitals; `a` and `an` keep their sound; negations and numbers have no synonyms.
    """
    find = find_synonyms(source, table)
    found: dict[int, list[str]] = {}
    for position, word in enumerate(words):
        article = words[position - 1].lower() if position else ""
        fitting = [new for new in _synonyms(word, find) if article not in ("a", "an") or _sounds_alike(new, word)]
        if fitting:
            found[position] = fitting
    chosen = draw(list(found), how_many(words, rate), random)
    return replaced(words, {position: random.choice(found[position]) for position in chosen})


@augmenters.register("insert", level="words", tokens=True, check=_check_source)
def insert(
    words: Sequence[str],
    random: Random,
    *,
    rate: Rate = 0.1,
    what: Literal["synonym", "word"] = "synonym",
    source: Source = "english",
    table: str | None = None,
) -> list[Piece]:
    """Insert, before words drawn at random, a synonym of a word of the row or, with `what: word`, one of its words.

    Synonyms come from where those of `synonyms` come from. Negations, numbers and punctuation are never inserted.
    """
    plain = [word for word in words if is_word(word) and not is_negation(word) and not is_number(word)]
    new = [[word] for word in plain]
    if what == "synonym":
        find = find_synonyms(source, table)
        new = [choices for word in plain if (choices := _synonyms(word.lower(), find))]
    places = [position for position, word in enumerate(words) if is_word(word)] if new else []
    chosen = set(draw(places, how_many(words, rate), random))
    pieces: list[Piece] = []
    for position, word in enumerate(words):
        if position in chosen:
            pieces.append((random.choice(random.choice(new)), None))
        pieces.append((word, position))
    return pieces


def _synonyms(word: str, find: Find) -> list[str]:
    plain = word.lower()
    if word not in (plain, word.capitalize(), word.upper()) or is_negation(plain) or is_number(plain):
        return []
    return [in_case_of(new, word) for new in find(plain)]


def _sounds_alike(new: str, word: str) -> bool:
    return (new[0].lower() in "aeiou") == (word[0].lower() in "aeiou")


@functools.cache
def find_synonyms(source: Source, table: str | None) -> Find:
    """Return the function from a word in small letters to its synonyms; it finds none for most words.

    Raises FinetuneError for a table that cannot be read or a WordNet that is not installed.
    """
    if table is not None:
        known = read_table(Path(table))
    elif source == "wordnet":
        return _wordnet()
    else:
        from importlib.resources import as_file, files

        with as_file(files("finetune.data.augmentation") / "synonyms.tsv") as path:
            known = read_table(path)
    return lambda word: known.get(word, ())


def read_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the synonyms of each word of a table: UTF-8, lines of `word<TAB>synonym, synonym`, notes behind `#`.

    Raises FinetuneError with the line that is not so, or that gives synonyms to a negation or a number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(f"{path}: expected a table of synonyms in UTF-8, found none ({error})") from None
    known: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition("\t")
        word = word.strip().lower()
        new = [" ".join(synonym.split()) for synonym in rest.split(",")]
        if not word or not all(new):
            raise FinetuneError(f"{path}:{number}: expected `word<TAB>synonym, synonym`, found {line!r}")
        if is_negation(word) or is_number(word):
            raise FinetuneError(
                f"{path}:{number}: expected no synonyms of negations and numbers, since they change what a label says; "
                f"found {word!r}. Remove the line"
            )
        known[word] = tuple(dict.fromkeys((*known.get(word, ()), *(one for one in new if one.lower() != word))))
    if not known:
        raise FinetuneError(f"{path}: expected lines of `word<TAB>synonym, synonym`, found none")
    return known


def _wordnet() -> Find:
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except ImportError:
        raise FinetuneError("source: wordnet needs the package nltk: pip install nltk") from None
    except LookupError:
        raise FinetuneError(
            "source: wordnet needs the corpus of WordNet, which is not installed: python -m nltk.downloader wordnet"
        ) from None

    function_words = frozenset(_FUNCTION_WORDS.split())

    @functools.lru_cache(maxsize=100_000)
    def find(word: str) -> tuple[str, ...]:
        if len(word) < 3 or word in function_words:
            return ()
        for synset in wordnet.synsets(word):  # the most frequent sense comes first
            names = synset.lemma_names()
            if word in names:  # else WordNet found it by cutting an ending off, and its synonyms have none
                return tuple(name.replace("_", " ") for name in names if name != word)
        return ()

    return find
