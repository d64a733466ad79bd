"""Bytes → text, and files that are text already: Markdown, reStructuredText, TeX, source code."""

from __future__ import annotations

import codecs
import re
from functools import partial
from typing import TYPE_CHECKING

from pplx_vectorstore.errors import MissingExtraError, UnreadableFileError
from pplx_vectorstore.readers.content import Content, ReaderOptions
from pplx_vectorstore.readers.front_matter import split_front_matter

if TYPE_CHECKING:
    from pplx_vectorstore.readers.content import Reader

EXTRA = "documents"

# The mark of UTF-32 begins with that of UTF-16, so it comes first.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# A file with fewer damaged characters than that, among those that are not ASCII, is damaged UTF-8 and nothing else.
_DAMAGED_SHARE = 0.05
_SAMPLE_BYTES = 1 << 18
# Where nothing tells them apart, the encoding of most files that declare none.
_USUAL = "cp1252"
_GUESSED = (
    _USUAL, "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "cp932", "euc_jp", "gb18030", "big5",
    "cp949",
)  # fmt: skip
# An image within the text; of the pieces that it would be cut into, none means anything.
_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=.+-]+)*;base64,[A-Za-z0-9+/=_-]*", re.ASCII)


def text_encoding(name: str) -> str | None:
    """Return Python's name of an encoding of text, or None where there is none of that name.

    >>> text_encoding("Latin-1"), text_encoding("rot13"), text_encoding("idna")
    ('iso8859-1', None, None)
    """
    try:
        encoding = codecs.lookup(name).name
        b"\xff a".decode(encoding, "replace")  # which some that are found do not: they are not of text, or of names
    except (LookupError, ValueError):
        return None
    return encoding


def decode(data: bytes, options: ReaderOptions) -> tuple[str, str | None]:
    """Decode text, and say how where that is not certain.

    Returns:
        The text, with line ends as they are, and None or a note.

    Raises:
        UnreadableFileError: It is binary, or not in the encoding that was asked for.
    """
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), options.encoding)
    if encoding is not None:
        try:
            return data.decode(encoding), None
        except UnicodeDecodeError as error:
            raise UnreadableFileError(
                f"is not {encoding.removesuffix('-sig').upper()} text (byte {error.start} is "
                f"0x{error.object[error.start]:02x}); convert it, or give its --encoding"
            ) from error
        except (LookupError, ValueError) as error:
            raise UnreadableFileError(f"cannot be decoded: {encoding!r} is no encoding of text ({error})") from error
    if b"\0" in data:
        raise UnreadableFileError("is binary")
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError:
        return _decode_undeclared(data)


def read_text(data: bytes, options: ReaderOptions, *, format: str = "text") -> Content:  # noqa: A002 - as in Document
    """Read a file that is text as it is; in Markdown, a front matter becomes metadata.

    Raises:
        UnreadableFileError: It is no text.
    """
    text, note = decode(data, options)
    text, first_line, metadata = split_front_matter(text) if format == "markdown" else (text, 1, {})
    text = _DATA_URI.sub("", text)
    return Content(
        text=text, format=format, metadata=metadata, first_line=first_line, notes=[] if note is None else [note]
    )


def text_reader(format: str) -> Reader:  # noqa: A002 - as in Document
    """Return the reader of text that is cut in a certain way."""
    return partial(read_text, format=format)


def _decode_undeclared(data: bytes) -> tuple[str, str]:
    text = data.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    if damaged < _DAMAGED_SHARE * sum(not character.isascii() for character in text):
        return text, f"{damaged} of its characters are damaged UTF-8, and became \ufffd"
    try:
        from charset_normalizer import from_bytes
    except ImportError as error:
        missing = MissingExtraError("guessing the encoding of text that is not UTF-8", EXTRA)
        raise UnreadableFileError(f"is not UTF-8 text; give its --encoding ({missing})") from error
    matches = from_bytes(data[:_SAMPLE_BYTES], cp_isolation=list(_GUESSED))
    best = matches.best()
    if best is None:
        raise UnreadableFileError("is neither UTF-8 nor another encoding that can be guessed; give its --encoding")
    # Of encodings in which it reads the same, or as well.
    is_usual = _USUAL in best.could_be_from_charset or any(
        match.encoding == _USUAL and match.chaos <= best.chaos and match.coherence >= best.coherence
        for match in matches
    )
    encoding = _USUAL if is_usual else best.encoding
    # A sample may end within a character, and what follows may hold what it did not.
    return data.decode(encoding, "replace"), f"is not UTF-8, and was read as {encoding}; if it is not, give --encoding"
