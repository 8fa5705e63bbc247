"""URLs and paths: their parts, their suffixes, and what of them may be shown."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

COMPRESSIONS = ("gz", "zst")
# Chained URLs, such as zip://rows.csv::s3://bucket/archive.zip; a host may be [::1]
_CHAIN = re.compile(r"::(?![0-9A-Fa-f:.]*\])")
# One slash is left of two when a URL went through a Path; a letter alone is a drive
_SCHEME = re.compile(r"([A-Za-z][\w+.-]+):/{1,2}")
# A slash in a password ends the host too early: what follows the colon is no port then
_USER = re.compile(r"\A(?:[^/]*@|[^/:\[]*:(?!\d*(?:[/?#]|$)).*@)", re.DOTALL)
# A question mark in front of no `name=` belongs to a glob, but for web addresses
_QUERY = re.compile(r"\?[\w.%~$-]+=.*", re.DOTALL)
_WEB_QUERY = re.compile(r"[?#].*", re.DOTALL)
_URL_IN_TEXT = re.compile(r"""[A-Za-z][\w+.-]+:/+[^\s'"<>]+""")


def is_url(path: str) -> bool:
    """Tell whether a path is a URL such as `s3://bucket/rows.csv`."""
    return "://" in path


def without_secrets(path: str) -> str:
    """Return a URL without its user, password, query and fragment, which may give access; a local path as it is."""
    return "::".join(_without_secrets(part) for part in _CHAIN.split(path))


def _without_secrets(url: str) -> str:
    scheme = _SCHEME.match(url)
    if scheme is None:
        return url
    query = _WEB_QUERY if scheme[1].lower().endswith(("http", "https")) else _QUERY
    return scheme[0] + query.sub("", _USER.sub("", url[scheme.end() :]))


def details_of(error: Exception, url: str) -> str:
    """Return an error's type and first line, or its type alone when that line has a secret of the URL."""
    first = (str(error).strip().splitlines() or [""])[0]
    said = _URL_IN_TEXT.sub(lambda found: without_secrets(found[0]), first)
    hidden = _words(url) - _words(without_secrets(url))
    name = type(error).__name__
    return name if not said or hidden & _words(said) else f"{name}: {said}"


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", f"{text} {unquote(text)}".casefold()))


def path_parts(path: str) -> tuple[str, ...]:
    """Return the names of the folders and of the file in a local path or URL, without the secrets of a URL."""
    if not is_url(path):
        return Path(path).parts
    inner = _CHAIN.split(without_secrets(path))[0]
    rest = inner.partition("://")[2] or inner
    return PurePosixPath(unquote(rest) if inner.startswith(("http://", "https://")) else rest).parts


def suffixes(path: str) -> tuple[str, str]:
    """Return the suffix of a path and its compression, lower case and without dots; each may be empty."""
    name = PurePosixPath((path_parts(path) or ("",))[-1])
    compression = name.suffix.removeprefix(".").lower()
    if compression in COMPRESSIONS:
        return PurePosixPath(name.stem).suffix.removeprefix(".").lower(), compression
    return compression, ""
