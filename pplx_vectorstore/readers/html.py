"""HTML and XHTML → Markdown."""

from __future__ import annotations

import codecs
import re

from pplx_vectorstore.errors import MissingExtraError, UnreadableFileError
from pplx_vectorstore.readers.content import Content, ReaderOptions
from pplx_vectorstore.readers.markdown_writer import MarkdownWriter
from pplx_vectorstore.readers.plain import EXTRA, decode, text_encoding

_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_:.-]+)""", re.IGNORECASE)
_SEARCHED_BYTES = 4096
# Browsers read these as Windows-1252, and so do those who write them.
_WESTERN = {"iso8859-1", "ascii"}


def read_html(data: bytes, options: ReaderOptions) -> Content:
    """Read a page; its title is metadata.

    Raises:
        UnreadableFileError: It is not in the encoding that it declares, or the extra is missing.
    """
    text, note = _decode(data, options)
    writer = MarkdownWriter()
    written = write_markdown(text, writer)
    return Content(
        text=written,
        format="markdown",
        metadata={"title": writer.title} if writer.title else {},
        notes=[] if note is None else [note],
    )


def write_markdown(page: str, writer: MarkdownWriter) -> str:
    """Return a page as Markdown.

    Raises:
        UnreadableFileError: The extra is missing.
    """
    try:
        from lxml.etree import HTMLParser
    except ImportError as error:
        raise UnreadableFileError(str(MissingExtraError("reading HTML", EXTRA))) from error
    if not page.strip():
        return ""  # which the parser takes for an error
    # As UTF-8, and said so: what the page declares is of the bytes that it came in.
    parser = HTMLParser(target=writer, encoding="utf-8", huge_tree=True)
    parser.feed(page.replace("\0", "").encode("utf-8", "replace"))
    return str(parser.close())


def _decode(data: bytes, options: ReaderOptions) -> tuple[str, str | None]:
    if data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return decode(data, options)
    declared = _DECLARED.search(data[:_SEARCHED_BYTES])
    if declared:
        encoding = text_encoding(declared[1].decode("ascii")) or "utf-8"
        if encoding in _WESTERN:
            encoding = "cp1252"
        # UTF-16 that can be searched for a declaration in ASCII is none.
        return data.decode("utf-8" if encoding.startswith(("utf-16", "utf-32")) else encoding, "replace"), None
    if options.encoding:
        return decode(data, options)
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace"), "declares no encoding and is not UTF-8; it was read as Windows-1252"
