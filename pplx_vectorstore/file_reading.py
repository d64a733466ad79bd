"""Files → documents, one by one as they are indexed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pplx_vectorstore.documents import Chunk, Document, clean_text
from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.file_ids import ROOT_KEY, SOURCE_KEY, as_text, name_file, root_of
from pplx_vectorstore.file_records import FileRecord, hash_content, way_of_file
from pplx_vectorstore.points import hash_document
from pplx_vectorstore.readers import PLACE_KEYS, Content, ReaderOptions, kind_by_content, label_chunks, read_content
from pplx_vectorstore.walking import EMPTY

if TYPE_CHECKING:
    from pplx_vectorstore.chunking import Chunker
    from pplx_vectorstore.collection import Fingerprint
    from pplx_vectorstore.walking import FoundFile, Walk

_log = logging.getLogger(__name__)

_RESERVED_KEYS = PLACE_KEYS | {SOURCE_KEY, ROOT_KEY}
_PREFIX = "front_matter_"
_MOST_CHARACTERS_OF_A_REASON = 200


def read_file(path: Path, options: ReaderOptions | None = None, *, is_chosen: bool = True) -> Content | str:
    """Read a file.

    Args:
        path: Of any format that `READERS` knows, or text.
        options: What the file does not say itself.
        is_chosen: Whether it is to be read whatever it holds.

    Returns:
        What it says, or, of a file that was not chosen and is no document, what kind of a file it is.

    Raises:
        UnreadableFileError: It is binary, broken, holds no text, or needs an extra.
    """
    return _read_data(path, _read_bytes(path), options or ReaderOptions(), is_chosen=is_chosen)


def make_document(path: Path, root: Path | None, content: Content, chunker: Chunker) -> Document:
    """Make a document of what a file says.

    Args:
        path: Of the file.
        root: The folder that the document's id is relative to, as `name_file` says.
        content: What was read.
        chunker: Cuts it.

    Returns:
        A document whose id, also under ``metadata["source"]``, is from `name_file`. The root is under
        ``metadata["root"]``: of an absolute id, that of the file system. What the file says of itself, such as its
        title, stands beside them, and where it is in the file with each chunk, as `label_chunks` says. Of a front
        matter, keys that have another meaning here (``page``, ``source``) have "front_matter_" before them.
    """
    document_id = name_file(path, root)
    chunks = label_chunks(content, list(_split(content, chunker)))
    metadata = {
        f"{_PREFIX}{key}" if key in _RESERVED_KEYS else key: value for key, value in _clean(content.metadata).items()
    }
    return Document(
        id=document_id,
        chunks=chunks,
        metadata={**metadata, SOURCE_KEY: document_id, ROOT_KEY: as_text(root_of(path, root))},
    )


class Reading:
    """Reads files one by one as they are indexed; knows how many there are.

    Args:
        walk: The files. Receives those that are no documents, or cannot be read, each with the reason.
        roots: File → the folder that its id is relative to.
        chunker: Cuts them, so that chunks know where they are.
        options: Of the readers.

    Attributes:
        notes: Files, each with what the user may want to know of how it was read.
        losses: Files, each with the parts of it that could not be read.
        n_read: Files that became documents.
        bytes_read: Of the files that were handed out, read or not.
        bytes: Of all.
        records: Documents' ids → what to `remember` of the files that were read whole, with nothing to tell.
    """

    def __init__(
        self,
        walk: Walk,
        roots: Mapping[Path, Path | None],
        chunker: Chunker,
        options: ReaderOptions,
    ) -> None:
        self.notes: list[tuple[Path, str]] = []
        self.losses: list[tuple[Path, str]] = []
        self.n_read = 0
        self.bytes_read = 0
        self.bytes = sum(file.size for file in walk.files)
        self.records: dict[str, FileRecord] = {}
        self._walk = walk
        self._roots = roots
        self._chunker = chunker
        self._options = options
        self._fingerprint: Fingerprint | None = None
        self._way = ""

    def remember(self, fingerprint: Fingerprint, way: str) -> None:
        """Make records of the files that are read from here on.

        Args:
            fingerprint: Of the collection that the documents are for.
            way: How files are read, as `way_of_reading` says.
        """
        self._fingerprint, self._way = fingerprint, way

    def __len__(self) -> int:
        return len(self._walk.files)

    def __iter__(self) -> Iterator[Document]:
        for file in self._walk.files:
            self.bytes_read += file.size
            document = self._read(file)
            if document is not None:
                self.n_read += 1
                yield document

    def _read(self, file: FoundFile) -> Document | None:
        try:
            mtime_ns = _mtime_ns(file.path)  # before it is read: what is written meanwhile makes a newer file
            data = _read_bytes(file.path)
            if not data.strip():
                self._walk.leave_out(file.path, EMPTY)
                return None
            content = _read_data(file.path, data, self._options, is_chosen=file.is_chosen)
            if isinstance(content, str):
                self._walk.leave_out(file.path, content)
                return None
            document = make_document(file.path, self._roots[file.path], content, self._chunker)
        except UnreadableFileError as error:
            self._walk.skipped.append((file.path, str(error)))
            return None
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a file does to a reader, the others are read
            _log.debug("reading %s", file.path, exc_info=True)
            reason = " ".join(str(error).split())[:_MOST_CHARACTERS_OF_A_REASON]
            self._walk.skipped.append((file.path, f"could not be read (unexpected {type(error).__name__}: {reason})"))
            return None
        self.notes += [(file.path, note) for note in content.notes]
        self.losses += [(file.path, loss) for loss in content.losses]
        if self._fingerprint is not None and not content.notes and not content.losses:
            chunks = cast("tuple[Chunk, ...]", document.chunks)
            self.records[document.id] = FileRecord(
                root=document.metadata[ROOT_KEY],
                size=len(data),
                mtime_ns=mtime_ns,
                content=hash_content(data),
                way=way_of_file(self._way, file),
                document_hash=hash_document(document, chunks, self._fingerprint),
                chunks=len(chunks),
            )
        return document


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise UnreadableFileError(error.strerror or str(error)) from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(error.strerror or str(error)) from error


def _read_data(path: Path, data: bytes, options: ReaderOptions, *, is_chosen: bool) -> Content | str:
    kind = None if is_chosen else kind_by_content(path.name, data)
    return kind or read_content(path.name, data, options)


def _split(content: Content, chunker: Chunker) -> Iterator[Chunk]:
    """Cut a text so that no chunk goes over two of its parts."""
    for start, stop in itertools.pairwise([0, *content.cuts, len(content.text)]):
        for chunk in chunker.split(content.text[start:stop], content.format):
            yield replace(chunk, start=start + (chunk.start or 0), end=start + (chunk.end or 0))


def _clean(value: Any) -> Any:
    """Return metadata that can be stored whatever a file says: lone surrogates become U+FFFD."""
    if isinstance(value, str):
        return clean_text(value, "metadata")
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_clean(item) for item in value]
    return value
