"""Cleaners of markup: HTML tags and entities."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape, unescape
from html.entities import html5
from html.parser import HTMLParser
from typing import NamedTuple

from finetune.registry import cleaners

# The elements of the HTML standard, those it calls obsolete, and the two that embed drawings and formulas
_ELEMENT_NAMES = (
    "a abbr acronym address applet area article aside audio b base basefont bdi bdo bgsound big blink blockquote body "
    "br button canvas caption center cite code col colgroup data datalist dd del details dfn dialog dir div dl dt em "
    "embed fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i "
    "iframe img input ins isindex kbd keygen label legend li link listing main map mark marquee math menu menuitem "
    "meta meter nav nobr noembed noframes noscript object ol optgroup option output p param picture plaintext pre "
    "progress q rb rp rt rtc ruby s samp script search section select slot small source spacer span strike strong "
    "style sub summary sup svg table tbody td template textarea tfoot th thead time title tr track tt u ul var video "
    "wbr xmp"
)
_BREAKING_NAMES = (
    "address article aside blockquote br caption dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 "
    "h6 header hr li main nav ol option p pre section table td th tr ul"
)
_ELEMENTS = frozenset(_ELEMENT_NAMES.split())
_BREAKING = frozenset(_BREAKING_NAMES.split())
_FOREIGN = frozenset({"svg", "math"})  # within them, any name is that of an element
_OFFICE = frozenset({"m", "o", "st1", "v", "w", "x"})  # name spaces that word processors write, as in `<o:p>`
_BOOLEAN = (
    "allowfullscreen|async|autofocus|autoplay|checked|compact|controls|default|defer|disabled|download|formnovalidate"
    "|hidden|inert|ismap|itemscope|loop|multiple|muted|nohref|nomodule|noresize|noshade|novalidate|nowrap|open"
    "|playsinline|readonly|required|reversed|selected"
)
# What makes `<b and c>` text and `<b class=x>` a tag: the first attribute has a value, a hyphen or a well-known name
_FIRST_ATTRIBUTE = rf"(?:[^\s\"'<>/=]++\s*+=|(?:(?:{_BOOLEAN})|[a-z]++-[\w-]++)(?=[\s/>]))"
# A search must take linear time whatever the text is. The first pattern stops at the next `<`. The second lets quotes
# hold one; as every quote opens or closes, searches from three places at most can be on their way at once: two of
# them within quotes, each of its own kind, and one outside, which ends at the next `<`
_UNTIL_END = r"(?:[^<>\"'=]++|=\s*+(?:\"[^\"<]*+\"|'[^'<]*+'|(?![\"']))|[\"'])*+>"
_UNTIL_END_QUOTED = r"(?:[^<>\"']++|\"[^\"]*+\"|'[^']*+')*+>"
_MARK = re.compile(
    rf"<(?P<slash>/?)(?P<name>[a-z][a-z0-9:-]*+)"
    rf"(?:\s*+/?>|(?P<attributes>\s++(?={_FIRST_ATTRIBUTE})(?:{_UNTIL_END}|{_UNTIL_END_QUOTED})))"
    r"|<!---?>|(?P<opening><!--|<!\[cdata\[)|<!doctype\b[^<>]*>|<!\[[^<>]*>|<\?xml\b[^<>]*>",
    re.IGNORECASE | re.ASCII,
)
_ENDS = {
    "<!--": re.compile("--!?>"),
    "<![cdata[": re.compile(r"\]\]>"),
    "head": re.compile(r"</head(?:[\s/][^<>]*)?>|(?=<body[\s>])", re.IGNORECASE),
    **{
        name: re.compile(rf"</{name}(?:[\s/][^<>]*)?>", re.IGNORECASE)
        for name in ("script", "style", "title", "template", "svg", "math")
    },
}
_BARE = re.compile(r"&(?!#?[a-zA-Z0-9]{1,32};)")  # as in the address `/?a=1&region=eu`
_ENTITY = re.compile(r"&(?:#(?:[0-9]{1,8}|[xX][0-9a-fA-F]{1,8})|[a-zA-Z][a-zA-Z0-9]{1,31});")


class _Mark(NamedTuple):
    """A piece of markup: its place, the name of its tag (`p`, `/p`; empty for other markup) and the attributes."""

    start: int
    end: int
    name: str
    attributes: str


@cleaners.register("html", tokens="each")
def html(text: str, *, keep_links: bool = False) -> str:
    """Remove HTML tags, comments, scripts and styles and decode entities; text without markup is left alone.

    Only what is real markup goes: tags of HTML's elements, bare or with attributes, and not `a <b and c> d`; scripts,
    styles, heads, titles and templates that are closed; entities with their semicolon, so that `?a=1&region=eu` stays.
    `keep_links` writes the address of a link in brackets behind its words.
    """
    if "<" not in text:
        return _decode(text) if "&" in text else text
    parts: list[str] = []
    done = 0
    for mark in _marks(text):  # what only looks like markup is written so that the parser takes it for text
        parts.append(escape(_decode(text[done : mark.start]), quote=False))
        parts.append(_BARE.sub("&amp;", text[mark.start : mark.end]) if mark.name else "")  # comments and such go
        done = mark.end
    if not parts:
        return _decode(text)
    extractor = _TextExtractor(keep_links)
    extractor.feed("".join([*parts, escape(_decode(text[done:]), quote=False)]))
    extractor.close()
    return "".join(extractor.parts)


class _TextExtractor(HTMLParser):
    """Collects the text of a page without the elements that a browser hides."""

    def __init__(self, keep_links: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._keep_links = keep_links
        self._links: list[str] = []

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """Take `<![word[` for a comment, as browsers do; the library's own parser fails on it."""
        if self.rawdata.startswith("<![CDATA[", i):
            return super().parse_marked_section(i, report)
        return self.parse_bogus_comment(i, report)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BREAKING:
            self.parts.append("\n")
        if tag == "a":
            self._links.append(dict(attrs).get("href") or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag in _BREAKING:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in _BREAKING:
            self.parts.append("\n")
        if tag == "a" and self._links:
            address = self._links.pop()
            if self._keep_links and address:
                self.parts.append(f" [{address}]")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def markup_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of what `html` takes out of a text or decodes, entities behind all else.

    A script, or another element that is hidden with what it holds, is one span.
    """
    if "<" in text:
        yield from ((mark.start, mark.end) for mark in _marks(text))
    if "&" in text:
        yield from (found.span() for found in _ENTITY.finditer(text) if _character(found) != found[0])


def _marks(text: str) -> Iterator[_Mark]:
    """Yield the pieces of markup in their order; none is within another."""
    endless: set[str] = set()

    def find_end(name: str, start: int) -> int:
        """Return the place behind the end of an element or a comment, 0 without one; what has none has none later."""
        last = None if name in endless else _ENDS[name].search(text, start)
        if last is None:
            endless.add(name)
        return last.end() if last else 0

    foreign_end = place = 0
    while found := _MARK.search(text, place):
        start, end = found.span()
        place = start + 1
        name = (found["name"] or found["opening"] or "").lower()
        if found["name"] and start >= foreign_end and not _is_element(name, found):
            continue
        if name in _ENDS and not found["slash"] and not found[0].endswith("/>"):
            if name not in _FOREIGN:
                end, name = find_end(name, end), ""
                if not end:
                    continue  # "how do I use <script>?"
            elif start >= foreign_end:
                foreign_end = find_end(name, end)
        yield _Mark(start, end, (found["slash"] or "") + name, found["attributes"] or "")
        place = end


def _is_element(name: str, found: re.Match[str]) -> bool:
    """Tell whether a tag is one of HTML; a custom element needs more than a name, for `<first-name>` is a place holder.

    Names of custom elements have a hyphen (HTML standard, "valid custom element name").
    """
    if name in _ELEMENTS or (":" in name and name.partition(":")[0] in _OFFICE):
        return True
    return "-" in name and bool(found["slash"] or found["attributes"])


def _decode(text: str) -> str:
    return _ENTITY.sub(_character, text) if "&" in text else text


def _character(found: re.Match[str]) -> str:
    # The library would take `&notit;` for `&not` and `it;`
    return unescape(found[0]) if found[0][1] == "#" else html5.get(found[0][1:], found[0])
