"""E-books (EPUB) → Markdown, in reading order."""

from __future__ import annotations

import posixpath
import urllib.parse
from typing import TYPE_CHECKING

from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers.archives import Parts, open_archive, require_own_text
from pplx_vectorstore.readers.content import Blocks, Content, ReaderOptions, shorten
from pplx_vectorstore.readers.html import read_html

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_KIND = "an e-book (EPUB)"
_CONTAINER = "META-INF/container.xml"
_PAGES = {"application/xhtml+xml", "text/html", "application/xml"}
_DC = "{http://purl.org/dc/elements/1.1/}"
_OF_THE_BOOK = {"title": "title", "creator": "author", "language": "language"}


def read_book(data: bytes, options: ReaderOptions) -> Content:
    """Read an .epub file; its title, author and language are metadata. No chunk goes over two of its pages.

    Raises:
        UnreadableFileError: It is broken, hostile or copy-protected, or the extra is missing.
    """
    blocks = Blocks()
    losses = []
    with open_archive(data, _KIND) as parts:
        package = _find_package(parts)
        opened = parts.parse(package)
        locked = "META-INF/encryption.xml" in parts.names
        for page in _spine(opened, posixpath.dirname(package)):
            if page not in parts.names:
                losses.append(f"the part {page} is missing")
                continue
            written = parts.read(page)
            try:
                blocks.add(read_html(written, ReaderOptions()).text, is_part=True)
            except UnreadableFileError as error:
                losses.append(f"the part {page} {error}")
    if not blocks.text and locked:
        raise UnreadableFileError(f"is {_KIND} that is encrypted; get one without copy protection")
    if not blocks.text and losses:
        raise UnreadableFileError(f"holds no text; {losses[0]}")
    require_own_text(blocks.text, parts)
    return Content(text=blocks.text, format="markdown", cuts=blocks.cuts, metadata=_metadata(opened), losses=losses)


def _find_package(parts: Parts) -> str:
    for element in parts.parse(_CONTAINER).iter():
        if _local(element) == "rootfile" and element.get("full-path") in parts.names:
            return element.get("full-path", "")
    raise UnreadableFileError(f"is {_KIND} whose table of contents is missing")


def _spine(package: Element, folder: str) -> list[str]:
    """Return the names of the pages, in reading order, each once."""
    items = {item.get("id", ""): item for item in package.iter() if _local(item) == "item"}
    order = [element.get("idref", "") for element in package.iter() if _local(element) == "itemref"]
    found = (items[id_] for id_ in order if id_ in items and items[id_].get("media-type", "") in _PAGES)
    paths = (urllib.parse.unquote(item.get("href", "").partition("#")[0]) for item in found)
    return list(dict.fromkeys(posixpath.normpath(posixpath.join(folder, path)) for path in paths))


def _metadata(package: Element) -> dict[str, str]:
    read = {}
    for name, key in _OF_THE_BOOK.items():
        text = next((" ".join((element.text or "").split()) for element in package.iter(f"{_DC}{name}")), "")
        if text:
            read[key] = shorten(text)
    return read


def _local(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]
