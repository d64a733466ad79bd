"""Files that are ZIP archives of XML: Office documents and e-books, opened within bounds."""

from __future__ import annotations

import contextlib
import io
import lzma
import posixpath
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.parsers import expat

from pplx_vectorstore.errors import UnreadableFileError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MOST_BYTES = 1 << 26
"""That the parts that are read may unpack to; the text of a long book is a tenth of that."""

_MOST_PARTS = 20_000
_MOST_LEVELS = 120
_SLACK = 1 << 20  # of text beyond what is in a document
_CONTENT_TYPES = "[Content_Types].xml"
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    LookupError,  # also of an encoding that nobody knows
    OSError,
    ValueError,  # also of an encoding that the parser does not read
)


class Parts:
    """The parts of an archive, of which each that is read is checked, and all of them together are bounded.

    Attributes:
        kind: What the file should be, for errors.
        names: Of all parts.
        n_bytes: That were read, unpacked.
        n_elements: Of the XML that was read.
    """

    def __init__(self, archive: zipfile.ZipFile, kind: str, most_bytes: int) -> None:
        self.kind = kind
        self.names = frozenset(archive.namelist())
        self.n_bytes = 0
        self.n_elements = 0
        if len(self.names) > _MOST_PARTS:
            raise UnreadableFileError(f"is {kind} of {len(self.names):,} parts; at most {_MOST_PARTS:,} are read")
        self._archive = archive
        self._most_bytes = most_bytes

    def read(self, name: str) -> bytes:
        """Unpack a part.

        Raises:
            UnreadableFileError: With it, the archive unpacks to too much.
        """
        part = self._archive.getinfo(name)
        if part.flag_bits & 1:
            raise UnreadableFileError(f"is {self.kind} that is protected by a password; save it without one")
        self.n_bytes += part.file_size
        if self.n_bytes > self._most_bytes:
            raise UnreadableFileError(
                f"is {self.kind} that unpacks to {self.n_bytes:,} bytes or more; at most {self._most_bytes:,} are read"
            )
        return self._archive.read(part)

    def read_xml(self, name: str) -> bytes:
        """Unpack a part that is XML, and look at its bytes.

        Raises:
            UnreadableFileError: It declares entities, or is nested deeper than any program writes it.
        """
        data = self.read(name)
        self.n_elements += _check_xml(data, self.kind)
        return data

    def parse(self, name: str) -> Element:
        """Parse a part."""
        return ElementTree.fromstring(self.read_xml(name))

    def relations(self, part: str) -> dict[str, tuple[str, str]]:
        """Read where a part of an Office document points to: id → (kind of relation, name of the part).

        Args:
            part: Its name; empty for the document itself.
        """
        path = _relations_of(part)
        if path not in self.names:
            return {}
        folder = posixpath.dirname(part)
        return {
            relation.get("Id", ""): (
                relation.get("Type", "").rsplit("/", 1)[-1],
                posixpath.normpath(posixpath.join("/", folder, relation.get("Target", ""))).lstrip("/"),
            )
            for relation in self.parse(path)
            if relation.get("TargetMode") != "External"
        }

    def copy_of(self, kinds: Iterable[str], names: Iterable[str]) -> bytes:
        """Return an archive of checked parts alone, for a library that reads an Office document on its own.

        What the library does not need is left out, so that it may be broken.

        Args:
            kinds: Of the relations that the library follows.
            names: Of parts that it reads without a relation that leads to them.
        """
        waiting = ["", *names]
        written = io.BytesIO()
        followed = frozenset(kinds)
        done = set()
        with zipfile.ZipFile(written, "w") as copy:
            if _CONTENT_TYPES in self.names:
                copy.writestr(_CONTENT_TYPES, self.read_xml(_CONTENT_TYPES))
            while waiting:
                part = waiting.pop()
                if part in done or (part and part not in self.names):
                    continue
                done.add(part)
                if part:
                    copy.writestr(part, self.read_xml(part))
                path = _relations_of(part)
                if path in self.names:
                    waiting += (target for kind, target in self.relations(part).values() if kind in followed)
                    copy.writestr(path, self._archive.read(path))
        return written.getvalue()


@contextlib.contextmanager
def open_archive(data: bytes, kind: str, most_bytes: int | None = None) -> Iterator[Parts]:
    """Open an archive within the block, in which what is wrong with it is an error of ours.

    Args:
        data: The file.
        kind: What it should be, for errors.
        most_bytes: That the parts that are read may unpack to; None for `MOST_BYTES`.

    Raises:
        UnreadableFileError: It is broken, protected by a password, or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield Parts(archive, kind, MOST_BYTES if most_bytes is None else most_bytes)
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise UnreadableFileError(f"is {kind} whose XML is broken ({error})") from error
    except UnreadableFileError:
        raise
    except _BROKEN as error:
        raise UnreadableFileError(f"is {kind} that cannot be read ({type(error).__name__}: {error})") from error


def require_own_text(text: str, parts: Parts) -> None:
    """Refuse a document that says far more than is in it: the same part of it over and over.

    Raises:
        UnreadableFileError: Says so.
    """
    if len(text) > _SLACK + parts.n_bytes:
        raise UnreadableFileError(
            f"is {parts.kind} whose text, {len(text):,} characters, is longer than all that is in it: "
            "it repeats itself without end"
        )


def _relations_of(part: str) -> str:
    folder, name = posixpath.split(part)
    return posixpath.join(folder, "_rels", f"{name}.rels")


def _check_xml(data: bytes, kind: str) -> int:
    """Refuse XML that could not be parsed within bounds; return how many elements it has."""
    parser = expat.ParserCreate()
    levels = 0
    n_elements = 0

    def refuse_entity(*_: object) -> None:
        raise UnreadableFileError(
            f"is {kind} whose XML declares entities, which may grow without end; open it in its program, and save it "
            "again"
        )

    def start(*_: object) -> None:
        nonlocal levels, n_elements
        levels += 1
        n_elements += 1
        if levels > _MOST_LEVELS:
            raise UnreadableFileError(f"is {kind} that is nested more than {_MOST_LEVELS} levels deep")

    def end(*_: object) -> None:
        nonlocal levels
        levels -= 1

    parser.EntityDeclHandler = refuse_entity
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.Parse(data, True)
    return n_elements
