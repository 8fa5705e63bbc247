"""Cleaners of markup: HTML tags and entities."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

from finetune.registry import cleaners

_MARKUP = re.compile(r"<[a-zA-Z/!]|&[#a-zA-Z]")
_BREAKING = re.compile(
    "address|article|aside|blockquote|br|caption|dd|div|dl|dt|fieldset|figcaption|figure|footer|form|h[1-6]|header|hr"
    "|li|main|nav|ol|option|p|pre|section|table|td|th|tr|ul"
)
_HIDDEN = {"script", "style", "head", "title", "template"}


@cleaners.register("html", tokens="each")
def html(text: str, *, keep_links: bool = False) -> str:
    """Remove HTML tags, comments, scripts and styles and decode entities; text without markup is left alone.

    `keep_links` writes the address of a link in brackets behind its words.
    """
    if ("<" not in text and "&" not in text) or not _MARKUP.search(text):
        return text
    extractor = _TextExtractor(keep_links)
    extractor.feed(text)
    if extractor.rawdata.startswith("<"):  # "5 apples <b and more": a tag without an end is text; Pythons differ here
        extractor.parts.append(unescape(extractor.rawdata))
    else:
        extractor.close()
    return "".join(extractor.parts)


class _TextExtractor(HTMLParser):
    def __init__(self, keep_links: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._keep_links = keep_links
        self._hidden: list[str] = []
        self._links: list[str] = []

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """Take `<![word[` for a comment, as browsers do; the library's own parser fails on it."""
        if self.rawdata.startswith("<![CDATA[", i):
            return super().parse_marked_section(i, report)
        return self.parse_bogus_comment(i, report)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            self._hidden.append(tag)
        if _BREAKING.fullmatch(tag):
            self.parts.append("\n")
        if tag == "a":
            self._links.append(dict(attrs).get("href") or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if _BREAKING.fullmatch(tag):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._hidden and tag == self._hidden[-1]:
            self._hidden.pop()
        if _BREAKING.fullmatch(tag):
            self.parts.append("\n")
        if tag == "a" and self._links:
            address = self._links.pop()
            if self._keep_links and address:
                self.parts.append(f" [{address}]")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)
