"""What was computed of documents that are not stored yet, kept in a folder until they are.

A document goes into a store as a whole, and a large one takes minutes or hours to embed. What an interrupted run had
done of it is found by the next one, by what went into the model: token ids of a window, or texts of a request.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import logging
import os
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pplx_vectorstore.encoders.late_chunking import TokenModel
    from pplx_vectorstore.pooling import Span
    from pplx_vectorstore.windows import TokenIds

_log = logging.getLogger(__name__)

# One is being written, one is of what is being stored, and one of what may not have been stored before that.
_MOST_FILES = 3
_MOST_TRIES, _GLANCE = 100, 0.005
_SUFFIX = ".unfinished"
_KEY_BYTES = 16
_HEAD = struct.Struct(f"<{_KEY_BYTES}sQI")  # key, bytes that follow, and their checksum


class Unfinished:
    """Arrays by key, in a folder, of the latest few documents.

    Args:
        folder: Made when something is kept. Others may not read what is in it, where the system has such rights.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._places: dict[bytes, tuple[Path, int, int, int]] = {}  # file, offset, bytes, checksum
        self._writing: Path | None = None
        self._known = set(self._files())  # others of another process may come
        self._has_failed = False
        for path in self._files():
            self._read_places(path)

    def begin(self) -> None:
        """Begin another document; what was kept of the earlier ones is forgotten by and by."""
        if self._writing is None or self._writing.exists():
            self._writing = self.folder / f"{time.time_ns():020}-{os.getpid()}{_SUFFIX}"
        for path in self._files()[: -(_MOST_FILES - 1)]:
            self._remove(path)

    def find(self, key: bytes) -> list[npt.NDArray[Any]] | None:
        """Return what was kept under a key, or None."""
        path, offset, size, checksum = self._places.get(key, (None, 0, 0, 0))
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError:  # another process forgot it
            return None
        if len(data) != size or zlib.crc32(data) != checksum:
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return [arrays[name] for name in arrays.files]

    def keep(self, key: bytes, *arrays: npt.NDArray[Any]) -> None:
        """Keep arrays under a key; where that fails, they are computed again after an interrupt, and no more."""
        if self._has_failed or (key in self._places and self._places[key][0] == self._writing):
            return
        assert self._writing is not None
        buffer = io.BytesIO()
        np.savez(buffer, *arrays)
        data = buffer.getvalue()
        checksum = zlib.crc32(data)
        record = _HEAD.pack(key, len(data), checksum) + data
        try:
            # In one write at the end: another process may do the same.
            file = self._open(self._writing)
            self._known.add(self._writing)
            try:
                written = os.write(file, record)
                end = os.lseek(file, 0, os.SEEK_CUR)
            finally:
                os.close(file)
        except OSError as error:
            self._fail(str(error))
            return
        if written != len(record):
            self._fail("the disk is full")
            return
        self._places[key] = (self._writing, end - len(data), len(data), checksum)

    def clear(self) -> None:
        """Forget all but what others have begun since this was made: it is stored."""
        self._places.clear()
        for path in self._known:
            self._remove(path)
        self._known = set()
        with contextlib.suppress(OSError):  # it is not there, or not empty
            self.folder.rmdir()

    def around(self, model: TokenModel, identity: str) -> TokenModel:
        """Return a model that computes only what is not found, and keeps what it computes.

        Args:
            model: The runtime.
            identity: What else its vectors depend on.
        """
        self.begin()
        return _RememberingModel(model, identity, self)

    def _open(self, path: Path) -> int:
        """Open a file to append to it; another process may remove the folder, once it is empty, at any moment."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        for _ in range(_MOST_TRIES):
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                return os.open(path, flags, 0o600)
            time.sleep(_GLANCE)
        return os.open(path, flags, 0o600)

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == _SUFFIX)
        except OSError:  # where there is something else, `keep` says what
            return []

    def _read_places(self, path: Path) -> None:
        """Learn what a file holds, up to where a killed process left it."""
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                while len(head := file.read(_HEAD.size)) == _HEAD.size:
                    key, n_bytes, checksum = _HEAD.unpack(head)
                    offset = file.tell()
                    if offset + n_bytes > size:
                        return
                    self._places[key] = (path, offset, n_bytes, checksum)
                    file.seek(n_bytes, os.SEEK_CUR)
        except FileNotFoundError:
            return  # another process, for which all is stored
        except OSError as error:
            _log.warning("%s cannot be read (%s); what was computed before is computed again", path, error)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s cannot be deleted (%s); it is not needed any more", path, error)

    def _fail(self, reason: str) -> None:
        self._has_failed = True
        _log.warning("what is computed of large documents cannot be kept in %s (%s)", self.folder, reason)


def key_of(*parts: str | bytes | npt.NDArray[np.int64]) -> bytes:
    """Return the key of what goes into a model; parts are told apart by their lengths."""
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part if isinstance(part, bytes) else part.tobytes()
        digest.update(struct.pack("<Q", len(data)))
        digest.update(data)
    return digest.digest()


class _RememberingModel:
    """A `TokenModel` that looks each row up first."""

    def __init__(self, model: TokenModel, identity: str, unfinished: Unfinished) -> None:
        self._model = model
        self._identity = identity
        self._unfinished = unfinished

    @property
    def dimension(self) -> int:
        return self._model.dimension

    @property
    def batch_tokens(self) -> int:
        return self._model.batch_tokens

    @property
    def pads(self) -> bool:
        return self._model.pads

    def pool(self, rows: Sequence[TokenIds], spans: Sequence[Sequence[Span]]) -> npt.NDArray[np.float32]:
        keys = [
            key_of(self._identity, row, np.array(list(itertools.chain(*some)), np.int64))
            for row, some in zip(rows, spans, strict=True)
        ]
        found = [self._unfinished.find(key) for key in keys]
        missing = [i for i, arrays in enumerate(found) if arrays is None]
        if missing:
            pooled = self._model.pool([rows[i] for i in missing], [spans[i] for i in missing])
            counts = [len(spans[i]) for i in missing]
            if len(pooled) != sum(counts) or not np.isfinite(pooled).all():
                return pooled  # whoever asked refuses it
            for i, vectors in zip(missing, np.split(pooled, np.cumsum(counts)[:-1]), strict=True):
                found[i] = [vectors]
        vectors_of_rows = [arrays[0] for arrays in found if arrays is not None]
        for key, vectors in zip(keys, vectors_of_rows, strict=True):
            self._unfinished.keep(key, vectors)  # found ones, too: the file that they are in will go
        return np.concatenate(vectors_of_rows)
