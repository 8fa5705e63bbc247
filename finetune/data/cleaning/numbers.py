"""Cleaners that mask or remove numbers of persons: telephones, payment cards and bank accounts."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator

from finetune.data.cleaning.masking import Action, Span, replace_spans
from finetune.registry import cleaners

_DATE = r"(?:\d{4}[./\-]\d\d?[./\-]\d\d?|\d\d?[./\-]\d\d?[./\-](?:\d{4}|\d\d)|\d\d? [01]?\d (?:19|20)\d\d)(?![./\-]?\d)"
_NO_DATE = rf"(?!{_DATE}|\d\d?:\d\d)"
_GAP = rf"(?:[.\-/\u2011]|[ \u00a0]{_NO_DATE})"
# International: `+44 20 7946 0958`, `+44(0)20...`, `+33 1 23 45 67 89`; with 00 in place of + as well
_PART = rf"(?:{_GAP}?\(\d{{1,5}}\)\d{{0,12}}|{_GAP}(?:\d{{2,12}}|\d(?={_GAP}\d\d)))"
_INTERNATIONAL = rf"[1-9]\d{{0,14}}{_PART}{{0,8}}"
# National, with the 0 that is dialled within a country: `020 7946 0958`, `(0171) 1234567`, `089 / 123 456 78`
_TRUNK = (
    rf"(?:\(0[1-9]\d{{0,4}}\)(?: ?[/\-] ?|[ .])?|0[1-9]\d{{0,4}}(?: ?[/\-] ?|{_GAP}))"
    rf"\d{{2,8}}(?:{_GAP}\d{{2,8}}){{0,5}}"
)
_NATIONAL = (
    r"(?:1[ .\-])?\([2-9]\d\d\)[ .\-]?[2-9]\d\d[ .\-]\d{4}",  # North America: (415) 555-0123
    r"(?:1[ .\-])?[2-9]\d\d(?P<gap>[ .\-])[2-9]\d\d(?P=gap)\d{4}",  # 415-555-0123
    r"0[1-9]\d{8,9}",  # Europe and elsewhere, without a gap: 07700900123
    r"[6-9]\d{4} \d{5}",  # India: 98765 43210
    r"1[3-9]\d[ \-]\d{4}[ \-]\d{4}",  # China: 138 1234 5678
    r"\(\d\d\) ?9?\d{4}-\d{4}",  # Brazil: (11) 91234-5678
    r"8[ \-]?\(?\d{3}\)?[ \-]?\d{3}-\d\d-\d\d",  # Russia: 8 (495) 123-45-67
)
# Not a part of a word, a longer number, a date or an amount
_BEFORE = r"(?<!\d[.,/:\-])"
_AFTER = r"(?!\w)(?![.,/:\-]\d)"
_LAST_PART = re.compile(r"\D+\d+\Z")
_ENOUGH_DIGITS = re.compile(r"\d[\d ().\-/\u00a0\u2011]{7,}\d")


@cleaners.register("phones", across="a phone number may stretch over several tokens")
def phones(text: str, *, action: Action = "mask", mask: str = "[PHONE]", bare: bool = False) -> str:
    """Mask or remove telephone numbers: international ones, and national ones as they are commonly written.

    Dates, times, prices and short numbers stay, and so do numbers that nothing marks as a telephone's: no `+`, no
    leading 0, no gaps. `bare` takes any run of 10 or 11 digits for one, such as `4155550123`.
    """
    if not _ENOUGH_DIGITS.search(text):
        return text
    return replace_spans(text, _phone_spans(text, bare), action, mask)


@functools.cache
def _phone(bare: bool) -> re.Pattern[str]:
    """Return the pattern of all numbers; it is compiled at the first text that needs it."""
    national = "|".join([*_NATIONAL, r"\d{10,11}"] if bare else _NATIONAL)
    return re.compile(
        rf"(?<![\w+])(?:(?P<international>(?:\+|{_BEFORE}00){_INTERNATIONAL})(?!\d)"
        rf"|{_BEFORE}{_NO_DATE}(?:(?P<trunk>{_TRUNK})|{national}){_AFTER})"
    )


def _phone_spans(text: str, bare: bool) -> Iterator[Span]:
    for found in _find(_phone(bare), text, [*_card_spans(text), *_iban_spans(text)]):
        start, end = found.span()
        # E.164 numbers have at most 15 digits, the country's among them; what follows is another number
        least, most = (9, 15) if found["international"] else (9, 12) if found["trunk"] else (0, 15)
        if text.startswith("00", start):
            least, most = 11, 17
        while _count_digits(text[start:end]) > most and (last := _LAST_PART.search(text, start, end)):
            end = last.start()
        if least <= _count_digits(text[start:end]) <= most:
            yield start, end


def _find(pattern: re.Pattern[str], text: str, taken: Iterable[Span]) -> Iterator[re.Match[str]]:
    """Yield the matches outside the spans taken: groups of four can look like another kind of number."""
    done = 0
    for start, end in [*sorted(taken), (len(text), len(text))]:
        yield from pattern.finditer(text, done, start)
        done = end


def _count_digits(text: str) -> int:
    return sum(map(str.isdigit, text))


# Groups of digits; all but the last of at least four, unlike those of dates and times
_CARD_NUMBERS = re.compile(r"(?<!\w)(?:\d{4,}[ \-\u00a0])*\d+(?!\w)")
_THIRTEEN_DIGITS = re.compile(r"\d(?:[ \-\u00a0]?\d){12}")
_DIGITS = re.compile(r"\d+")


@cleaners.register("cards", across="a card number may stretch over several tokens")
def cards(text: str, *, action: Action = "mask", mask: str = "[CARD]") -> str:
    """Mask or remove numbers of payment cards: 13 to 19 digits from 2 to 6 on whose last one is right (Luhn 1960).

    One other number in ten with as many digits passes too: the check digit says no more.
    """
    if not _THIRTEEN_DIGITS.search(text):
        return text
    return replace_spans(text, _card_spans(text), action, mask)


def _card_spans(text: str) -> Iterator[Span]:
    for numbers in _find(_CARD_NUMBERS, text, _iban_spans(text)):
        groups = [found.span() for found in _DIGITS.finditer(text, *numbers.span())]
        while groups:
            start = groups[0][0]
            # A security code or a date of expiry may follow: fewer groups make a number before more do
            ends = [index for index, (_, end) in enumerate(groups[:5]) if _is_card(text[start:end])]
            if ends:
                yield start, groups[ends[0]][1]
            groups = groups[ends[0] + 1 if ends else 1 :]


def _is_card(text: str) -> bool:
    """Tell whether digits and gaps are 13 to 19 digits whose weighted sum ends in 0 (ISO/IEC 7812)."""
    digits = [int(character) for character in text if character.isdecimal()]
    if not 13 <= len(digits) <= 19 or digits[0] not in range(2, 7):
        return False
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


# How many characters an account number has in each country of the IBAN registry (ISO 13616)
_IBAN_REGISTRY = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
    "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
    "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
    "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
    "YE30"
)
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBAN_REGISTRY.split()}
# Found without being passed over: behind an account, the pattern runs on into the words that follow it
_IBAN = re.compile(r"(?<!\w)(?=([A-Z]{2}[0-9]{2}(?:[ \-\u00a0]?[A-Z0-9]){11,30}))", re.IGNORECASE | re.ASCII)


@cleaners.register("ibans", across="an account number may stretch over several tokens")
def ibans(text: str, *, action: Action = "mask", mask: str = "[IBAN]") -> str:
    """Mask or remove International Bank Account Numbers of the right length and check digits (ISO 13616, mod 97)."""
    return replace_spans(text, _iban_spans(text), action, mask)


def _iban_spans(text: str) -> Iterator[Span]:
    done = 0
    for found in _IBAN.finditer(text):
        start = found.start()
        places = [place for place in range(start, found.end(1)) if text[place].isalnum()]
        expected = _IBAN_LENGTHS.get(text[start : start + 2].upper(), len(places) + 1)
        if start < done or expected > len(places):
            continue
        end = places[expected - 1] + 1
        goes_on = text[end : end + 1].isalnum()
        if not goes_on and _is_iban("".join(text[place] for place in places[:expected])):
            yield start, end
            done = end


def _is_iban(characters: str) -> bool:
    """Tell whether the number that the letters (A is 10) and digits spell, its head at the end, is 1 modulo 97."""
    return int("".join(str(int(character, 36)) for character in characters[4:] + characters[:4])) % 97 == 1
