"""What `index` remembers of the files that it has read, beside the index: what is unchanged need not be read again.

A record says what reading certain bytes in a certain way gave: the hash of a document. Whether the file still holds
those bytes, and the store that document, is looked up each time. So records may be old, lost or copied with the index;
they are never believed about either. A file's size and time serve a notice alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import portalocker

from pplx_vectorstore._version import __version__
from pplx_vectorstore.errors import StoreError
from pplx_vectorstore.file_ids import ROOT_KEY, as_text, find_file, locate_file
from pplx_vectorstore.locked_files import is_in_place

if TYPE_CHECKING:
    from pplx_vectorstore.file_settings import FileSettings
    from pplx_vectorstore.walking import FoundFile

FILE = "files.json"
"""In the folder of the collection."""

READ_BY = (
    *("charset-normalizer", "lxml", "mammoth", "markdown-it-py", "openpyxl", "pypdfium2", "semantic-text-splitter"),
    *("tokenizers", "tree-sitter-c", "tree-sitter-cpp", "tree-sitter-go", "tree-sitter-java"),
    *("tree-sitter-javascript", "tree-sitter-python", "tree-sitter-rust", "tree-sitter-typescript"),
)
"""Distributions by which files are read and cut: another version of one may give other chunks."""

_VERSION = 1
# Seconds that a notice may take: where files are far away, it is of those that were looked at.
_PATIENCE = 0.2
# Seconds to wait for others to write their records, and to wait before looking again.
_LOCK_TIMEOUT, _GLANCE = 30.0, 0.005
_MOST_TRIES = 100


class FileRecord(NamedTuple):
    """What is remembered of a file.

    Attributes:
        root: The folder that the document's id is relative to, as its metadata has it.
        size: Bytes.
        mtime_ns: When it was last modified, before it was read; nanoseconds since 1970.
        content: SHA-256 of its bytes, hexadecimal.
        way: How it was read, as `way_of_reading` says.
        document_hash: Of the document that this gave, as the store keeps it with each of its points.
        chunks: Of that document.
    """

    root: str
    size: int
    mtime_ns: int
    content: str
    way: str
    document_hash: str
    chunks: int


class Changes(NamedTuple):
    """Documents whose files are not as they were.

    Attributes:
        changed: Ids of those whose files have another size or time.
        gone: Ids of those whose files are not there.
    """

    changed: list[str]
    gone: list[str]


class FileRecords:
    """The records of one collection, of one tenant.

    Args:
        store: The folder of the index.
        collection: The collection.
        tenant: The tenant, if it has any.
    """

    def __init__(self, store: Path, collection: str, tenant: str | None) -> None:
        self._path = store / collection / FILE
        self._home = store.resolve().parent
        self._tenant = tenant or ""
        read, inode = _read(self._path)
        self._records = _records_of(read, self._tenant)
        self._read = dict(self._records)
        self._recorded_home = Path(read.get("home", self._home))
        # Of a copy, the times of the files tell when they were copied.
        self._is_copy = read.get("inode") != inode

    def __len__(self) -> int:
        return len(self._records)

    def get(self, document_id: str) -> FileRecord | None:
        """Return what is remembered of a document's file."""
        return self._records.get(document_id)

    def locate(self, document_id: str, metadata: Mapping[str, Any]) -> Path | None:
        """Return where the file of a document is, of an index that may have moved with it; None without one."""
        if locate_file(document_id, metadata) is None:
            return None
        return self._find(Path(metadata[ROOT_KEY]), document_id)

    def save(self, records: Mapping[str, FileRecord], gone: Iterable[str] = (), *, anew: bool = False) -> None:
        """Remember files by their documents' ids, and forget some, or, anew, all others.

        Nothing is written where that changes nothing; what others have written since these records were read stays.

        Raises:
            StoreError: The file cannot be written.
        """
        forgotten = set(gone)
        self._records = _changed({} if anew else self._records, records, forgotten)
        is_known = self._records == self._read and self._recorded_home == self._home
        if is_known and not self._is_copy and not anew:
            return
        try:
            with self._locked():
                written, _ = _read(self._path)
                if not anew:
                    self._records = _changed(_records_of(written, self._tenant), records, forgotten)
                self._write({**written.get("tenants", {}), self._tenant: self._records})
        except portalocker.AlreadyLocked as error:
            raise StoreError(
                f"{self._path} cannot be written: others have been at it for {_LOCK_TIMEOUT:.0f} s"
            ) from error
        except (OSError, portalocker.LockException) as error:
            raise StoreError(f"{self._path} cannot be written: {error}") from error
        self._read = dict(self._records)

    def find_changes(self, first: Collection[str] = ()) -> Changes:
        """Find files that are not as they were when they were indexed, without opening one.

        Of an index that was copied, sizes alone are compared; of one that is elsewhere now, files are looked for where
        they lie from there and where they were, and none is said to be gone. Where looking takes long, some are left
        out.

        Args:
            first: Documents whose files are looked at before the others.
        """
        changes = Changes([], [])
        until = time.monotonic() + _PATIENCE
        for document_id in dict.fromkeys([*first, *self._records]):
            record = self._records.get(document_id)
            if record is None:
                continue
            try:
                status = self._status(document_id, record)
            except (FileNotFoundError, NotADirectoryError):
                if self._recorded_home == self._home:
                    changes.gone.append(document_id)
            except (OSError, ValueError):
                pass  # what cannot be looked at may be as it was
            else:
                if status.st_size != record.size or (status.st_mtime_ns != record.mtime_ns and not self._is_copy):
                    changes.changed.append(document_id)
            if time.monotonic() > until:
                break
        return changes

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Have no other thread or process write the file within the block."""
        path = self._path.with_suffix(".lock")
        for _ in range(_MOST_TRIES):
            with portalocker.Lock(path, "ab", timeout=_LOCK_TIMEOUT, check_interval=_GLANCE) as lock:
                if is_in_place(lock, path):
                    yield
                    return
        raise OSError(f"{path} is another file each time that it is locked")

    def _write(self, tenants: Mapping[str, Any]) -> None:
        """Write the file aside and put it in its place: whoever reads it meanwhile has the old one whole."""
        new = self._path.with_suffix(".new")
        try:
            with new.open("w", encoding="utf-8") as file:
                inode = os.fstat(file.fileno()).st_ino
                json.dump({"version": _VERSION, "inode": inode, "home": str(self._home), "tenants": tenants}, file)
            new.replace(self._path)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def _status(self, document_id: str, record: FileRecord) -> os.stat_result:
        return self._find(Path(record.root), document_id).stat()

    def _find(self, root: Path, document_id: str) -> Path:
        """Return where a document's file is: from where the index is now, if there is one, else where it was."""
        home = Path(as_text(self._recorded_home))  # as roots are written
        if self._recorded_home != self._home and root.is_relative_to(home):
            moved = find_file(self._home / root.relative_to(home) / document_id)
            if os.path.lexists(moved):
                return moved
        return find_file(root / document_id)


def way_of_reading(settings: FileSettings) -> str:
    """Return what changes whenever files might be read or cut in another way: versions and settings."""
    versions = {name: _version_of(name) for name in READ_BY}
    read = {name: value for name, value in asdict(settings).items() if name != "root"}
    return hash_content(json.dumps([__version__, versions, read], sort_keys=True).encode())[:16]


def way_of_file(way: str, file: FoundFile) -> str:
    """Return the same for one file, which is read by its name (that of a link, too) and by whether it was asked for."""
    return f"{way} {'chosen' if file.is_chosen else 'found'} {as_text(Path(file.path.name))}"


def hash_content(data: bytes) -> str:
    """Return the hash of a file's bytes, as records have it."""
    return hashlib.sha256(data).hexdigest()


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> tuple[dict[str, Any], int | None]:
    """Read a file of records, and its inode; what is none has none: files are read again then."""
    try:
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            read = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}, None
    is_one = isinstance(read, dict) and read.get("version") == _VERSION
    is_one = is_one and isinstance(read.get("home"), str) and isinstance(read.get("tenants"), dict)
    return (read if is_one else {}), inode


def _records_of(read: Mapping[str, Any], tenant: str) -> dict[str, FileRecord]:
    records = read.get("tenants", {}).get(tenant)
    if not isinstance(records, dict):
        return {}
    return {document_id: FileRecord(*record) for document_id, record in records.items() if _is_record(record)}


def _changed(
    known: Mapping[str, FileRecord], records: Mapping[str, FileRecord], forgotten: Collection[str]
) -> dict[str, FileRecord]:
    changed = {**known, **records}
    for document_id in forgotten:
        changed.pop(document_id, None)
    return changed


def _is_record(record: object) -> bool:
    return isinstance(record, list) and [type(value) for value in record] == [str, int, int, str, str, str, int]
