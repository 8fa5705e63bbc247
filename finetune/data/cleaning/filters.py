"""Cleaners that change nothing and reject rows: by length and by language."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from finetune.errors import FinetuneError, suggestion
from finetune.registry import cleaners

Limit = Annotated[int, Field(ge=1)] | None


def _check_limits(options: Mapping[str, Any]) -> None:
    """Raise ValueError if no limit is set, or a lower one is above the upper one."""
    if all(options.get(name) is None for name in ("min_characters", "max_characters", "min_words", "max_words")):
        raise ValueError("expected at least one of min_characters, max_characters, min_words, max_words; found none")
    for unit in ("characters", "words"):
        least, most = options.get(f"min_{unit}"), options.get(f"max_{unit}")
        if least is not None and most is not None and least > most:
            raise ValueError(f"expected min_{unit} to be at most max_{unit}; found {least} and {most}")


@cleaners.register("length", tokens="row", check=_check_limits)
def length(
    text: str,
    *,
    min_characters: Limit = None,
    max_characters: Limit = None,
    min_words: Limit = None,
    max_words: Limit = None,
) -> str | None:
    """Reject texts with fewer or more characters, or words between white space, than the limits, which are allowed."""
    if min_characters is not None and len(text) < min_characters:
        return None
    if max_characters is not None and len(text) > max_characters:
        return None
    if min_words is None and max_words is None:
        return text
    words = len(text.split())
    if (min_words is not None and words < min_words) or (max_words is not None and words > max_words):
        return None
    return text


def _check_languages(options: Mapping[str, Any]) -> None:
    """Raise ValueError if no language is named, or one cannot be a code."""
    languages = options["languages"]
    wrong = [language for language in languages if not re.fullmatch("[a-z]{2,3}", language)]
    if wrong or not languages:
        found = repr(wrong[0]) if wrong else "none"
        raise ValueError(f"expected ISO 639 codes in small letters, such as [en, de]; found {found}")


@cleaners.register("language", tokens="row", check=_check_languages)
def language(
    text: str,
    *,
    languages: list[str],
    min_probability: Annotated[float, Field(ge=0, le=1)] = 0.1,
    min_letters: Annotated[int, Field(ge=1)] = 10,
) -> str | None:
    """Reject texts that are, by all appearance, in none of the languages (ISO 639 codes).

    A text stays if the languages' probabilities add up to `min_probability`; one of fewer than `min_letters` letters
    is too short to tell and stays. The probabilities are py3langid's (Lui and Baldwin 2012, retrained by Barbaresi).
    Raises FinetuneError if the library is missing or does not know a language.
    """
    if len(text) < min_letters or sum(map(str.isalpha, text)) < min_letters:
        return text
    ranked = _identifier(tuple(languages)).rank(text)
    probability = sum(share for name, share in ranked if name in languages)
    return text if probability >= min_probability else None


@functools.cache
def _identifier(languages: tuple[str, ...]) -> Any:
    """Return the identifier, which takes half a second to load."""
    identifier = _load_identifier()
    for name in languages:
        if name not in identifier.labels:
            raise FinetuneError(
                f"data.clean: language: expected languages that can be told apart; found {name!r}"
                f"{suggestion(name, identifier.labels)}"
            )
    return identifier


@functools.cache
def _load_identifier() -> Any:
    try:
        library = importlib.import_module("py3langid.langid")
    except ModuleNotFoundError as missing:
        raise FinetuneError(
            "data.clean: language: expected the library py3langid; it is not installed. "
            "Install it with: pip install 'finetune-toolkit[language]'"
        ) from missing
    return library.LanguageIdentifier.from_model_file(library.MODEL_FILE, norm_probs=True)
