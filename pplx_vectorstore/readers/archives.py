"""Files that are ZIP archives of XML: Office documents and e-books, opened within bounds."""

from __future__ import annotations

import contextlib
import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from pplx_vectorstore.errors import UnreadableFileError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MOST_GROWTH = 1 << 28
"""Bytes by which an archive may grow when it is unpacked; the text of a long book is a hundredth of that."""

_MOST_PARTS = 20_000
_MOST_LEVELS = 120
_XML = (".xml", ".rels", ".opf", ".ncx")


@contextlib.contextmanager
def open_archive(data: bytes, kind: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive within the block, in which what is wrong with it is an error of ours.

    Args:
        data: The file.
        kind: What it should be, for errors.

    Raises:
        UnreadableFileError: It is broken, protected by a password, or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _require_bounds(archive, kind)
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError, OSError) as error:
        raise UnreadableFileError(f"is {kind} that cannot be read ({type(error).__name__}: {error})") from error
    except ElementTree.ParseError as error:
        raise UnreadableFileError(f"is {kind} whose XML is broken ({error})") from error


def require_plain_xml(archive: zipfile.ZipFile, kind: str) -> None:
    """Refuse an archive whose XML declares entities, or is nested deeper than any program writes it.

    For libraries that read it on their own.
    """
    for name in archive.namelist():
        if name.endswith(_XML):
            ElementTree.parse(archive.open(name), _parser(kind))


def parse_xml(archive: zipfile.ZipFile, name: str, kind: str) -> Element:
    """Parse a part of an archive."""
    return ElementTree.fromstring(archive.read(name), _parser(kind, ElementTree.TreeBuilder()))


def read_relations(archive: zipfile.ZipFile, part: str, kind: str) -> dict[str, tuple[str, str]]:
    """Read where a part of an Office document points to: id → (kind of relation, name of the part)."""
    folder, name = posixpath.split(part)
    path = posixpath.join(folder, "_rels", f"{name}.rels")
    if path not in archive.namelist():
        return {}
    return {
        relation.get("Id", ""): (
            relation.get("Type", "").rsplit("/", 1)[-1],
            posixpath.normpath(posixpath.join("/", folder, relation.get("Target", ""))).lstrip("/"),
        )
        for relation in parse_xml(archive, path, kind)
        if relation.get("TargetMode") != "External"
    }


def _require_bounds(archive: zipfile.ZipFile, kind: str) -> None:
    parts = archive.infolist()
    growth = sum(max(0, part.file_size - part.compress_size) for part in parts)
    if growth > MOST_GROWTH or len(parts) > _MOST_PARTS:
        raise UnreadableFileError(
            f"is {kind} that unpacks to {sum(part.file_size for part in parts):,} bytes in {len(parts):,} parts; "
            f"at most {MOST_GROWTH:,} bytes more than it has, in {_MOST_PARTS:,} parts, are read"
        )
    if any(part.flag_bits & 1 for part in parts):
        raise UnreadableFileError(f"is {kind} that is protected by a password; save it without one")


class _Bounded:
    """Target of an XML parser that hands on to another one what is within bounds."""

    def __init__(self, kind: str, builder: ElementTree.TreeBuilder | None) -> None:
        self._kind = kind
        self._builder = builder
        self._levels = 0

    def doctype(self, name: str, public_id: str, system_id: str) -> None:
        raise UnreadableFileError(
            f"is {self._kind} whose XML declares a document type, which may define entities without end; "
            "open it in its program, and save it again"
        )

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._levels += 1
        if self._levels > _MOST_LEVELS:
            raise UnreadableFileError(f"is {self._kind} that is nested more than {_MOST_LEVELS} levels deep")
        if self._builder is not None:
            self._builder.start(tag, attributes)

    def end(self, tag: str) -> None:
        self._levels -= 1
        if self._builder is not None:
            self._builder.end(tag)

    def data(self, text: str) -> None:
        if self._builder is not None:
            self._builder.data(text)

    def close(self) -> Element | None:
        return None if self._builder is None else self._builder.close()


def _parser(kind: str, builder: ElementTree.TreeBuilder | None = None) -> ElementTree.XMLParser:
    return ElementTree.XMLParser(target=_Bounded(kind, builder))
