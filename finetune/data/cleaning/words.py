"""Cleaners of words: English contractions, stop words and emoji."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Literal

from finetune.registry import cleaners

_APOSTROPHE = "['\u2019\u02bc]"
_CONTRACTION = re.compile(
    rf"(?<!\w)(?<!\w{_APOSTROPHE})(?:[a-z]+(?:{_APOSTROPHE}[a-z]+)+|{_APOSTROPHE}(?:tis|twas|cause))"
    rf"(?!{_APOSTROPHE}?\w)",
    re.IGNORECASE,
)
_NEXT_WORD = re.compile(r"\s+([a-z]+)", re.IGNORECASE)
_IRREGULAR = {
    "can't": "cannot",
    "can't've": "cannot have",
    "won't": "will not",
    "won't've": "will not have",
    "shan't": "shall not",
    "let's": "let us",
    "y'all": "you all",
    "i'm": "i am",
    "'tis": "it is",
    "'twas": "it was",
    "'cause": "because",
}
_VERBS = "are could did do does had has have is might must need ought should was were would"
_SUBJECTS = "i you he she it we they that this these those there here who what where when why how"
_ENDINGS = {"re": "are", "ve": "have", "ll": "will", "ll've": "will have", "d've": "would have"}


@functools.cache
def _expansions() -> dict[str, str]:
    """Return what contractions stand for, all in small letters; `'s` and `'d` depend on the word that follows."""
    return {
        **{f"{verb}n't": f"{verb} not" for verb in _VERBS.split()},
        **{f"{verb}n't've": f"{verb} not have" for verb in _VERBS.split()},
        **{f"{verb}'ve": f"{verb} have" for verb in _VERBS.split()},
        **{f"{who}'{ending}": f"{who} {full}" for who in _SUBJECTS.split() for ending, full in _ENDINGS.items()},
        **_IRREGULAR,
    }


@cleaners.register("contractions", across="it makes two words of one")
def contractions(text: str) -> str:
    """Write out the contractions of English (`don't` to `do not`, `I'M` to `I AM`); others and `John's` stay.

    `'s` becomes `is`, or `has` before `been` and `got`; `'d` becomes `would`, or `had` before `been` and `better`.
    """
    if "'" not in text and "\u2019" not in text and "\u02bc" not in text:
        return text
    return _CONTRACTION.sub(_expand, text)


def _expand(found: re.Match[str]) -> str:
    written = re.sub(_APOSTROPHE, "'", found[0])
    small = written.lower()
    subject, _, ending = small.partition("'")
    full = _expansions().get(small)
    if full is None and subject in _SUBJECTS.split() and ending in {"s", "d"}:
        following = _NEXT_WORD.match(found.string, found.end())
        participle = following is not None and following[1].lower() in {"been", "got" if ending == "s" else "better"}
        full = f"{subject} {('has' if participle else 'is') if ending == 's' else ('had' if participle else 'would')}"
    if full is None:
        return found[0]
    if written.isupper():
        return full.upper()
    return full[0].upper() + full[1:] if written.lstrip("'")[0].isupper() else full


# The words of English that carry grammar rather than meaning, with their contractions
_ENGLISH = (
    "a about above after again against all am an and any are aren't as at be because been before being below between "
    "both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each few for from "
    "further had hadn't has hasn't have haven't having he he'd he'll he's her here here's hers herself him himself his "
    "how how's i i'd i'll i'm i've if in into is isn't it it'd it'll it's its itself just let's me more most mustn't "
    "my myself no nor not now of off on once only or other ought our ours ourselves out over own same shall shan't she "
    "she'd she'll she's should shouldn't so some such than that that'll that's the their theirs them themselves then "
    "there there's these they they'd they'll they're they've this those through to too under until up upon us very was "
    "wasn't we we'd we'll we're we've were weren't what what's when when's where where's which while who who's whom "
    "whose why why's will with won't would wouldn't you you'd you'll you're you've your yours yourself yourselves"
)
# Not a part of an address, a path, a number or a compound
_WORD = re.compile(r"(?<![\w'\u2019.@/&-])(\w+(?:['\u2019]\w+)*)(?![\w'\u2019@/&-]|\.\w)\s*")


def _check_stopwords(options: Mapping[str, Any]) -> None:
    """Raise ValueError if something is no single word, or nothing would be removed."""
    words = [*(options.get("words") or []), *(options.get("keep") or [])]
    wrong = [word for word in words if not re.fullmatch(r"\w+(?:['\u2019]\w+)*", word)]
    if wrong:
        raise ValueError(f"expected single words without blanks or hyphens; found {wrong[0]!r}")
    if options.get("english") is False and not options.get("words"):
        raise ValueError("expected `words` where `english` is false; found none, so nothing would be removed")


@cleaners.register("stopwords", tokens="each", check=_check_stopwords)
def stopwords(text: str, *, english: bool = True, words: list[str] | None = None, keep: list[str] | None = None) -> str:
    """Remove words that carry little meaning, with the white space behind them; capitals make no difference.

    `english` takes the list of English, `words` adds to it, `keep` takes words off it (such as `not` and `no`).
    """
    stopped = _stopped(english, tuple(words or ()), tuple(keep or ()))
    return _WORD.sub(lambda found: "" if found[1].lower().replace("\u2019", "'") in stopped else found[0], text)


@functools.cache
def _stopped(english: bool, words: tuple[str, ...], keep: tuple[str, ...]) -> frozenset[str]:
    def plain(some: tuple[str, ...]) -> set[str]:
        return {word.lower().replace("\u2019", "'") for word in some}

    return frozenset(((set(_ENGLISH.split()) if english else set()) | plain(words)) - plain(keep))


# Every emoji has one of these characters; a quick look before the library's slow one
_EMOJI = re.compile("[\u203c\u2049\u20e3\u2122\u2139\u2194-\u2bff\u3030\u303d\u3297\u3299\ufe0f\U0001f000-\U0001faff]")
# Signs of plain writing, unless a variation selector makes them emoji
_SIGNS = frozenset("\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194\u2195\u2196\u2197\u2198\u2199\u21a9\u21aa\u3030\u303d")


@cleaners.register("emoji", tokens="each")
def emoji(text: str, *, action: Literal["describe", "remove", "keep"] = "describe") -> str:
    """Describe emoji in words (`:red_heart:`), or remove them; signs of plain writing such as `©` and `™` stay.

    The names are those of Unicode's Common Locale Data Repository, from the library emoji.
    """
    if action == "keep" or text.isascii() or not _EMOJI.search(text):
        return text
    import emoji as library

    def replace(found: str, names: dict[str, str]) -> str:
        if found in _SIGNS:
            return found
        return names["en"] if action == "describe" else ""

    replaced: str = library.replace_emoji(text, replace)
    return replaced
