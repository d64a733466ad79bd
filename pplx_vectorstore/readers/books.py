"""E-books (EPUB) → Markdown, in reading order."""

from __future__ import annotations

import posixpath
import urllib.parse
from typing import TYPE_CHECKING

from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers.archives import open_archive, parse_xml
from pplx_vectorstore.readers.content import Blocks, Content, ReaderOptions
from pplx_vectorstore.readers.html import read_html

if TYPE_CHECKING:
    import zipfile
    from xml.etree.ElementTree import Element

_KIND = "an e-book (EPUB)"
_CONTAINER = "META-INF/container.xml"
_PAGES = {"application/xhtml+xml", "text/html", "application/xml"}
_DC = "{http://purl.org/dc/elements/1.1/}"
_OF_THE_BOOK = {"title": "title", "creator": "author", "language": "language"}


def read_book(data: bytes, options: ReaderOptions) -> Content:
    """Read an .epub file; its title, author and language are metadata.

    Raises:
        UnreadableFileError: It is broken, hostile or copy-protected, or the extra is missing.
    """
    blocks = Blocks()
    losses = []
    with open_archive(data, _KIND) as archive:
        package = _find_package(archive)
        opened = parse_xml(archive, package, _KIND)
        pages = _spine(opened, posixpath.dirname(package))
        locked = "META-INF/encryption.xml" in archive.namelist()
        for page in pages:
            try:
                content = read_html(archive.read(page), ReaderOptions())
            except KeyError:
                losses.append(f"the part {page} is missing")
                continue
            blocks.add(content.text)
    if locked and not blocks.text:
        raise UnreadableFileError(f"is {_KIND} that is encrypted; get one without copy protection")
    return Content(text=blocks.text, format="markdown", metadata=_metadata(opened), losses=losses)


def _find_package(archive: zipfile.ZipFile) -> str:
    for element in parse_xml(archive, _CONTAINER, _KIND).iter():
        if _local(element) == "rootfile" and element.get("full-path") in archive.namelist():
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
            read[key] = text
    return read


def _local(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]
