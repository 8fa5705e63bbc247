"""The encoding of a text file whose encoding nobody named."""

from __future__ import annotations

import codecs
import re

from finetune.data.sources.files import BUFFER, SourceFile
from finetune.errors import FinetuneError

AUTO = "auto"
# What `surrogateescape` makes of bytes that are not UTF-8
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
# UTF-32 before UTF-16, whose little-endian mark is the beginning of its own
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 1 << 14
# What files of rows are really written in; for short texts the guess would else be a code page of DOS or of a mainframe
_CANDIDATES = [
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874"),
    *("iso8859_2", "iso8859_5", "iso8859_7", "iso8859_8", "iso8859_9", "iso8859_13", "iso8859_15", "koi8_r", "koi8_u"),
    *("cp932", "euc_jp", "iso2022_jp", "gb18030", "big5", "cp949"),
]


def find_encoding(file: SourceFile, wanted: str) -> tuple[str, str]:
    """Return the name of the encoding and how to treat bytes that do not fit, as `open` takes them.

    With `auto`, a byte-order mark decides; then UTF-8 if the file is UTF-8, or mostly so; then the best guess of
    charset-normalizer. Bytes that are not UTF-8 in a file that is come as lone surrogates, so that only their rows are
    lost. Raise FinetuneError when no encoding fits.
    """
    if wanted != AUTO:
        is_utf8 = codecs.lookup(wanted).name in {"utf-8", "utf-8-sig"}
        return ("utf-8-sig", "surrogateescape") if is_utf8 else (wanted, "strict")
    with file.open() as stream:
        start = stream.read(4)
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), "")
    if marked and marked != "utf-8-sig":
        return marked, "strict"
    if _is_utf8(file):
        return "utf-8-sig", "strict"
    return ("utf-8-sig", "surrogateescape") if marked else _guess(file)


def is_encoding(name: str) -> bool:
    """Tell whether Python has a text encoding of that name."""
    try:
        "".encode(name)
    except (LookupError, ValueError):
        return False
    return True


def _is_utf8(file: SourceFile) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with file.open() as stream:
            while block := stream.read(BUFFER):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _guess(file: SourceFile) -> tuple[str, str]:
    """Guess from the lines that are not ASCII: when most of them are UTF-8, the others are damaged UTF-8."""
    good, bad = 0, 0
    sample = bytearray()
    with file.open() as stream:
        for line in stream:
            if line.isascii():
                continue
            if _decodes(line):
                good += 1
            else:
                bad += 1
            sample += line[: _SAMPLE - len(sample)]
    if good > bad:
        return "utf-8-sig", "surrogateescape"
    return _best_guess(bytes(sample)), "strict"


def _decodes(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _best_guess(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    if not any(character.isalpha() for character in sample.decode("cp1252", "replace") if character > "\x7f"):
        return "cp1252"  # quotes, dashes and signs of currencies among plain letters
    found = from_bytes(sample, cp_isolation=_CANDIDATES)
    best = found.best()
    if best is None:
        raise FinetuneError("expected text, found bytes that fit no encoding; is it a text file? If so, set `encoding`")
    equal = [match for match in found if (match.chaos, match.coherence) == (best.chaos, best.coherence)]
    # Short texts fit many encodings equally well: Windows-1252, of which Latin-1 is a part, is the most frequent by far
    if any("cp1252" in {match.encoding, *match.could_be_from_charset} for match in equal):
        return "cp1252"
    return best.encoding
