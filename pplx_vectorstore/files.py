"""Files as documents of a store: which id each has, and which are gone.

A document's metadata says which file it was read from: ``root / source``. A file has one id in a store, however it
is spelled, from whichever folder it is indexed, alone or within a folder: the one that it has already, or else its
path relative to the root that is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pplx_vectorstore.coroutines import run_now
from pplx_vectorstore.documents import Chunk, Document
from pplx_vectorstore.file_ids import (
    SOURCE_KEY,
    as_text,
    locate_file,
    name_file,
    possible_files,
    possible_names,
    root_of,
)
from pplx_vectorstore.file_records import Changes, hash_content, way_of_file
from pplx_vectorstore.operations.documents import find_whole
from pplx_vectorstore.points import derive_point_id

if TYPE_CHECKING:
    from pplx_vectorstore.documents import StoredChunk
    from pplx_vectorstore.file_records import FileRecord, FileRecords
    from pplx_vectorstore.store import VectorStore
    from pplx_vectorstore.walking import FoundFile

_FILES_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Names:
    """What files are called in a store.

    Attributes:
        roots: File → the folder that its id is relative to.
        without_root: Ids of documents of which the store does not know the folder, and which may be some of the
            new files among these.
        replaced: Files that are still there, and lose their ids to files among these.
    """

    roots: Mapping[Path, Path | None]
    without_root: Sequence[str] = ()
    replaced: Sequence[Path] = ()


def find_names(opened: VectorStore, files: Sequence[Path], root: Path | None) -> Names:
    """Find the ids that files have in a store, or choose them.

    An id that is relative to the root belongs to the file that is there: what had it before was moved, or copied
    together with the index, or is another machine's.

    Args:
        opened: The store.
        files: The files.
        root: What the ids of new files are to be relative to; None for absolute ids.
    """
    roots: dict[Path, Path | None] = {}
    holders: dict[str, Path] = {}
    without_root: set[str] = set()
    for first in range(0, len(files), _FILES_AT_ONCE):
        some = files[first : first + _FILES_AT_ONCE]
        candidates = {file: possible_names(file) for file in some}
        ids = dict.fromkeys(name for names in candidates.values() for name in names)
        stored = {chunk.document_id: chunk for chunk in _first_chunks(opened, list(ids))}
        for file, names in candidates.items():
            unlocated = []
            for chunk in (stored[name] for name in names if name in stored):
                located = locate_file(chunk.document_id, chunk.metadata)
                if located is None:
                    if chunk.metadata.get(SOURCE_KEY) == chunk.document_id:
                        unlocated.append(chunk.document_id)
                elif located.as_posix() == names[0]:
                    roots[file] = _root_within(file, chunk.document_id)
                    break
                elif chunk.document_id == name_file(file, root):
                    holders[chunk.document_id] = located
            else:
                without_root.update(id_ for id_ in unlocated if id_ != name_file(file, root))
    kept = {name_file(file, own) for file, own in roots.items()}
    replaced = []
    for file in files:
        if file in roots:
            continue
        name = name_file(file, root)
        roots[file] = None if name in kept else root
        if name in holders and name not in kept and not _is_gone(holders[name]):
            replaced.append(holders[name])
    return Names(roots, sorted(without_root), replaced)


def find_gone(opened: VectorStore, paths: Sequence[Path], found: Sequence[Path], root: Path | None) -> list[str]:
    """Find the documents of files that were indexed from below these paths, and are there no longer.

    Args:
        opened: The store.
        paths: Files and folders.
        found: The files that are there; they need not be looked for.
        root: What ids are relative to now, as for `find_names`: a file is gone if it is neither there nor where it was.
    """
    there = {as_text(file.resolve()) for file in found}
    below = _is_below(paths)
    gone = []
    for document_id, file in _recorded_files(opened):
        places = {file} if root is None else {file, Path(as_text(root.resolve()), document_id)}
        if any(below(place) for place in places) and all(
            place.as_posix() not in there and _is_gone(place) for place in places
        ):
            gone.append(document_id)
    return gone


def find_emptied(opened: VectorStore, files: Sequence[Path], root: Path | None) -> list[str]:
    """Find the documents of files that hold nothing any more.

    Args:
        opened: The store.
        files: Those that hold nothing.
        root: As for `find_names`.
    """
    names = find_names(opened, files, root)
    return [
        chunk.document_id for chunk in _first_chunks(opened, [name_file(file, names.roots[file]) for file in files])
    ]


def find_below(opened: VectorStore, path: Path) -> list[str]:
    """Find the documents that were read from a file, or from the files below a folder, there or not."""
    is_below = _is_below([path])
    return [document_id for document_id, file in _recorded_files(opened) if is_below(file)]


def find_changed(opened: VectorStore, documents: Iterable[Document]) -> Iterator[Document]:
    """Yield the documents, made of files, that a store lacks or has with other text."""
    for document in documents:
        chunks = [chunk for chunk in document.chunks or () if isinstance(chunk, Chunk)]
        point_ids = [derive_point_id(document.id, index, opened.tenant) for index in range(len(chunks))]
        stored = {chunk.chunk_index: chunk for chunk in opened.get(point_ids)}
        same = sum(
            (one.text, one.start, one.end, one.chunk_count) == (chunk.text, chunk.start, chunk.end, len(chunks))
            for index, chunk in enumerate(chunks)
            if (one := stored.get(index)) is not None
        )
        if same != len(chunks):
            yield document


def find_unchanged(
    opened: VectorStore, files: Sequence[FoundFile], names: Names, records: FileRecords, way: str
) -> dict[Path, tuple[str, FileRecord]]:
    """Find the files that hold what was read before, where the store has what that gave; their bytes alone are read.

    Args:
        opened: The store, for which it is enough to be able to read.
        files: The files.
        names: What they are called.
        records: What is remembered of them.
        way: How they would be read now, as `way_of_reading` says.

    Returns:
        Of each, the id of its document, and what is to be remembered.
    """
    same: dict[Path, tuple[str, FileRecord]] = {}
    for file in files:
        root = names.roots[file.path]
        document_id = name_file(file.path, root)
        record = records.get(document_id)
        if record is None or record.way != way_of_file(way, file) or record.root != as_text(root_of(file.path, root)):
            continue
        try:
            mtime_ns = file.path.stat().st_mtime_ns
            data = file.path.read_bytes()
        except OSError:  # whoever reads it says what is wrong
            continue
        if hash_content(data) == record.content:
            same[file.path] = document_id, record._replace(mtime_ns=mtime_ns)
    versions = {document_id: (record.document_hash, record.chunks) for document_id, record in same.values()}
    whole = _find_whole(opened, versions)
    return {path: known for path, known in same.items() if known[0] in whole}


def find_changes(opened: VectorStore, records: FileRecords, first: Sequence[str] = ()) -> Changes:
    """Find documents of the store whose files are not as they were when they were indexed; no file is opened.

    Args:
        opened: The store.
        records: What is remembered of the files.
        first: Ids of documents whose files are looked at before the others.
    """
    changes = records.find_changes(first)
    # Programs may have deleted or replaced what was indexed from files.
    suspected = [*changes.changed, *changes.gone]
    found = {id_: record for id_ in suspected if (record := records.get(id_)) is not None}
    whole = _find_whole(opened, {id_: (record.document_hash, record.chunks) for id_, record in found.items()})
    return Changes([id_ for id_ in changes.changed if id_ in whole], [id_ for id_ in changes.gone if id_ in whole])


def _find_whole(opened: VectorStore, versions: Mapping[str, tuple[str, int]]) -> set[str]:
    return run_now(find_whole(opened._open_session(), versions))


def find_recorded(opened: VectorStore) -> list[str]:
    """Find the documents that were read from files."""
    return [document_id for document_id, _ in _recorded_files(opened)]


def _is_below(paths: Sequence[Path]) -> Callable[[Path], bool]:
    """Return what tells whether a file is one of these, or below one."""
    above = [Path(as_text(path.resolve())) for path in paths]
    return lambda file: ".." not in file.parts and any(file.is_relative_to(path) for path in above)


def _recorded_files(opened: VectorStore) -> Iterator[tuple[str, Path]]:
    """Yield the id and the recorded path of every document that was read from a file."""
    ids = [document.id for document in opened.documents()]
    for chunk in _first_chunks(opened, ids):
        file = locate_file(chunk.document_id, chunk.metadata)
        if file is not None:
            yield chunk.document_id, file


def _root_within(file: Path, document_id: str) -> Path | None:
    """Return the folder of a file that its id is relative to; not as it was recorded, which may be no path."""
    named = Path(document_id)
    return None if named.is_absolute() else file.resolve().parents[len(named.parts) - 1]


def _first_chunks(opened: VectorStore, document_ids: Sequence[str]) -> Iterator[StoredChunk]:
    for first in range(0, len(document_ids), _FILES_AT_ONCE):
        some = document_ids[first : first + _FILES_AT_ONCE]
        yield from opened.get([derive_point_id(document_id, 0, opened.tenant) for document_id in some])


def _is_gone(file: Path) -> bool:
    """Tell whether there is surely no such file; one that cannot be looked for is not gone."""
    for possible in possible_files(file):
        try:
            os.lstat(possible)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):  # no right to look, or no path at all
            return False
        return False
    return True
