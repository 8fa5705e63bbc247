"""Cleaners that mask or remove addresses: of the web, of e-mail and of the Internet Protocol."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from finetune.registry import cleaners

Action = Literal["mask", "remove", "keep"]
Span = tuple[int, int]


def replace_spans(text: str, spans: Iterable[Span], action: Action, mask: str) -> str:
    """Return the text with the mask, or nothing, in place of the spans, which ascend and do not overlap.

    `keep` returns the text as it is: the pipeline then counts the rows in which something is found.
    """
    if action == "keep":
        return text
    parts, done = [], 0
    for start, end in spans:
        parts += [text[done:start], mask if action == "mask" else ""]
        done = end
    return "".join([*parts, text[done:]]) if done else text


# An address may hold and end in brackets of its own, as in `https://[::1]` and `https://x.example/[EMAIL]`
_BRACKETS = r"\[[^\s<>\"'\[\]]*\]"
_URL = re.compile(
    rf"(?:https?://|www\.)(?>{_BRACKETS}|[^\s<>\"'])*(?:{_BRACKETS}|[^\s<>\"'.,;:!?)\]}}])", re.IGNORECASE
)


@cleaners.register("urls", tokens="each")
def urls(text: str, *, action: Action = "mask", mask: str = "[URL]") -> str:
    """Mask or remove web addresses: what begins with `http://`, `https://` or `www.`, without closing punctuation."""
    if not _may_hold_url(text):
        return text
    return replace_spans(text, (found.span() for found in _URL.finditer(text)), action, mask)


def _may_hold_url(text: str) -> bool:
    return "//" in text or ("." in text and "www." in text.lower())


_DOMAIN = r"@(?:[\w-]{1,63}\.)+(?:xn--[\w-]{1,59}|[^\W\d_]{2,63})"
# The first two conditions let a search begin at the start of a run of letters only: its time is linear in the text.
# Addresses that are glued together are one
_EMAIL = re.compile(rf"(?<![\w.%+-])(?<![\w.%+-]')[\w.%+-]+(?:'[\w.%+-]+)*{_DOMAIN}(?:[\w.%+'-]+{_DOMAIN})*")


@cleaners.register("emails", tokens="each")
def emails(text: str, *, action: Action = "mask", mask: str = "[EMAIL]") -> str:
    """Mask or remove e-mail addresses, international ones too; a host without a dot is none."""
    if "@" not in text:
        return text
    return replace_spans(text, (found.span() for found in _EMAIL.finditer(text)), action, mask)


_IP_V4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\.?\w)")
_IP_V6 = re.compile(r"(?<![\w:.])[\w:]*:[\w:]*:[\w:.]*(?:%\w+)?")
_LABEL = re.compile(r"\w+:(?=\w|::)")


@cleaners.register("ips", tokens="each")
def ips(text: str, *, action: Action = "mask", mask: str = "[IP]") -> str:
    """Mask or remove Internet Protocol addresses, version 4 and 6; ports and lengths of prefixes behind them stay."""
    if text.count(":") > 1:
        text = replace_spans(text, _ip_v6_spans(text), action, mask)
    if text.count(".") > 2:
        text = replace_spans(text, _ip_v4_spans(text), action, mask)
    return text


def address_spans(text: str) -> Iterator[Span]:
    """Yield start and end of the addresses that `urls`, `emails` and `ips` find, kind by kind; they may overlap."""
    if _may_hold_url(text):
        yield from (found.span() for found in _URL.finditer(text))
    if "@" in text:
        yield from (found.span() for found in _EMAIL.finditer(text))
    if text.count(":") > 1:
        yield from _ip_v6_spans(text)
    if text.count(".") > 2:
        yield from _ip_v4_spans(text)


def _ip_v4_spans(text: str) -> Iterator[Span]:
    for found in _IP_V4.finditer(text):
        if _is_address(found[0]):
            yield found.span()


def _ip_v6_spans(text: str) -> Iterator[Span]:
    for found in _IP_V6.finditer(text):
        start, end = found.span()
        if found[0].endswith((".", ":")) and not found[0].endswith("::"):
            end -= 1  # the sentence's
        label = _LABEL.match(text, start, end)  # "address:2001:db8::1"
        if label and not _is_address(text[start:end]):
            start = label.end()
        # `::` and `a::b` are addresses too, but more often something else
        if any(map(str.isdigit, text[start:end])) and _is_address(text[start:end]):
            yield start, end


def _is_address(text: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
