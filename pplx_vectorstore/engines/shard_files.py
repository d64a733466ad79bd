"""The files of a collection on the embedded engine: which of its folders is the current one, copies, and space."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import portalocker

from pplx_vectorstore.errors import StoreError, StoreFullError
from pplx_vectorstore.locked_files import is_in_place, path_of

FIRST = "shard"
"""The engine's folder until another one takes its place."""

SETTINGS = "collection.json"
"""What a collection is, beside the engine's folders."""

_CURRENT = "current"
_PREFIX = "shard-"
_SIGN = "at-work-on-"
_MOST_TRIES = 20
_PRIVATE = "pplx-vectorstore-copy-"
_CONFIG = "edge_config.json"
_WAL = "wal"
_SLICE = 2**20
_READ_AHEAD = 2**28
_LARGE = re.compile("vector_storage|vector_index|payload_storage")

# The engine reads and applies anew, at each opening, the last two segments of its log, whatever was flushed. With its
# segments of 32 MiB that was most of the time to open 100,000 chunks, and 100 MB of disk.
_WAL_SEGMENT = 2**20
# What opening and flushing may need, and what is left to others.
RESERVE = 8 * 2**20


def current_folder(collection: Path) -> Path:
    """Return the folder of a collection that the engine works in."""
    with contextlib.suppress(FileNotFoundError):
        return collection / (collection / _CURRENT).read_text("ascii").strip()
    return collection / FIRST


def identity_of(settings: Path) -> str | None:
    """Return what tells a collection from others of its name, by a file of settings; None of early versions.

    Raises:
        FileNotFoundError: There is none.
    """
    try:
        read = json.loads(settings.read_bytes())
    except ValueError:  # whoever needs more of it says what is wrong
        return None
    return identity_in(read)


def identity_in(settings: Any) -> str | None:
    """Return the same of what a file of settings holds."""
    identity = settings.get("id") if isinstance(settings, dict) else None
    return identity if isinstance(identity, str) else None


def make_current(collection: Path, folder: Path) -> None:
    """Have a folder take the place of the current one, wholly or, when killed, not at all."""
    write_safely(collection / _CURRENT, folder.name)


def write_safely(path: Path, text: str) -> None:
    """Write a small file of ASCII, wholly or not at all, even if the power fails.

    Only one thread of one process may write it at a time.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    _sync(path.parent)


class Workplace:
    """A folder in which one that may become the current one is made; other processes leave it alone meanwhile.

    Args:
        collection: Whose; it must be this process's turn to have it.

    Attributes:
        folder: Empty at first.
    """

    def __init__(self, collection: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=collection))
        self.folder.chmod(stat.S_IMODE(collection.stat().st_mode))
        self._sign = _sign_of(self.folder).open("ab", buffering=0)
        portalocker.lock(self._sign, portalocker.LockFlags.EXCLUSIVE)

    def leave(self, *, keep: bool) -> None:
        """Say that the work has ended; remove the folder unless it is to be kept."""
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._sign.close()
        _sign_of(self.folder).unlink(missing_ok=True)

    def forget(self) -> None:
        """Leave it to the process that this one was forked from."""
        self._sign.close()


class PrivateCopy:
    """A folder in the temporary folder, gone with the process that made it, or when the next one is made.

    Args:
        collection: Of whose current folder and `names` a copy is made; nothing may write to it meanwhile.
        names: Files beside the current folder.
        go_on: Called before each file; raises what ends the copying.

    Attributes:
        folder: The copy.
    """

    def __init__(self, collection: Path, names: Sequence[str], go_on: Callable[[], object]) -> None:
        temporary = Path(tempfile.gettempdir())
        for left in temporary.glob(f"{_PRIVATE}*"):
            _remove_unless_locked(left)
        source = current_folder(collection)
        needed = used_bytes(source) + opening_bytes(source, temporary)
        require_space(temporary, needed, f"reading a copy of the index {collection}")
        self._root, self._sign = _make_private(temporary)
        self.folder = self._root / FIRST
        try:
            self.folder.mkdir()
            copy_folder(source, self.folder, go_on)
            keep_log_short(self.folder)
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy(collection / name, self._root)
        except BaseException:
            self.remove()
            raise

    def path_of(self, name: str) -> Path:
        """Return where the copy of a file is."""
        return self._root / name

    def remove(self) -> None:
        """Remove it."""
        shutil.rmtree(self._root, ignore_errors=True)
        self._sign.close()

    def forget(self) -> None:
        """Leave it to the process that this one was forked from."""
        self._sign.close()


def _make_private(temporary: Path) -> tuple[Path, IO[bytes]]:
    """Make a folder with a sign that is locked: until it is, others take the folder for one that was left."""
    for _ in range(_MOST_TRIES):
        with contextlib.ExitStack() as opened, contextlib.suppress(FileNotFoundError):
            root = Path(tempfile.mkdtemp(prefix=_PRIVATE, dir=temporary))
            opened.callback(shutil.rmtree, root, ignore_errors=True)
            sign = opened.enter_context((root / _SIGN).open("ab", buffering=0))
            portalocker.lock(sign, portalocker.LockFlags.EXCLUSIVE)
            if is_in_place(sign, root / _SIGN):
                opened.pop_all()
                return root, sign
    raise StoreError(f"files in {temporary} cannot be locked; have TMPDIR name a folder on another file system")


def _remove_unless_locked(private: Path) -> None:
    with contextlib.suppress(OSError, portalocker.LockException), (private / _SIGN).open("r+b") as sign:
        portalocker.lock(sign, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
        shutil.rmtree(private, ignore_errors=True)


def _sign_of(folder: Path) -> Path:
    return folder.with_name(f"{_SIGN}{folder.name}")


def remove_leftovers(collection: Path) -> None:
    """Remove the folders that a killed process left behind."""
    current = current_folder(collection)
    for folder in [collection / FIRST, *collection.glob(f"{_PREFIX}*")]:
        if folder == current or not folder.is_dir():
            continue
        try:
            with _sign_of(folder).open("ab") as sign:
                portalocker.lock(sign, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
                shutil.rmtree(folder, ignore_errors=True)
        except portalocker.LockException:
            continue  # its maker is at work
        _sign_of(folder).unlink(missing_ok=True)
    _sign_of(current).unlink(missing_ok=True)


def keep_log_short(folder: Path) -> None:
    """Have the engine cut its log into short segments from now on, as its settings file says."""
    path = folder / _CONFIG
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return  # the engine will say what is wrong
    if settings.get("wal_options") is None:
        settings["wal_options"] = {"segment_capacity": _WAL_SEGMENT, "segment_queue_len": 0, "retain_closed": 1}
        new = path.with_suffix(".new")
        new.write_text(json.dumps(settings), "utf-8")
        new.replace(path)


def remove_log(folder: Path) -> None:
    """Remove the log of a shard into which nothing was written, so that it begins with short segments."""
    shutil.rmtree(folder / _WAL)


def copy_folder(source: Path, target: Path, go_on: Callable[[], object] = lambda: None) -> None:
    """Copy a folder, holes and all, into one that is empty; nothing of it may be written meanwhile.

    Args:
        source: What is copied.
        target: An empty folder.
        go_on: Called before each file; raises what ends the copying.
    """
    for path in sorted(source.rglob("*")):
        go_on()
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(path, copy)


def _copy_file(source: Path, target: Path) -> None:
    # Without buffers: these do not see that the descriptor was moved to find the holes.
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        new.truncate(os.fstat(old.fileno()).st_size)
        for start, end in _data(old.fileno()):
            old.seek(start)
            new.seek(start)
            while start < end:
                piece = memoryview(old.read(min(_SLICE, end - start)))
                start += len(piece)
                while piece:
                    piece = piece[new.write(piece) :]


def _data(file: int) -> Iterator[tuple[int, int]]:
    """Yield where a file holds data; all of it where the system does not tell."""
    size, end = os.fstat(file).st_size, 0
    while end < size:
        start, end_of_data = end, size
        if hasattr(os, "SEEK_DATA"):
            try:
                start = os.lseek(file, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # a hole to the end
                raise
            end_of_data = os.lseek(file, start, os.SEEK_HOLE)
        end = end_of_data
        yield start, end


def remove(path: Path) -> None:
    """Remove a file if there is one, so that it does not come back after a loss of power."""
    if path.exists():
        path.unlink()
        _sync(path.parent)


def sync_folder(folder: Path, go_on: Callable[[], object] = lambda: None) -> None:
    """Write a folder's files to disk, without holding up other threads as the engine's own flush does.

    Args:
        folder: Whose files.
        go_on: Called before each; raises what ends it.
    """
    for path in (*_within(folder), folder):
        go_on()
        with contextlib.suppress(FileNotFoundError):  # removed by the engine meanwhile
            _sync(path)


def _sync(path: Path) -> None:
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:
        return
    # Some file systems sync no folders.
    with contextlib.suppress(*((OSError,) if is_folder else ())):
        file = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def read_ahead(folder: Path) -> None:
    """Have the system read what the engine reads to load a shard: other threads wait for a third of the time then.

    Vectors, graphs and payloads are not read at loading, and may be large.
    """
    left = _READ_AHEAD
    for path in _within(folder):
        if left > 0 and path.is_file() and not _LARGE.search(str(path.relative_to(folder))):
            with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                while left > 0 and (read := len(file.read(_SLICE))):
                    left -= read


def used_bytes(folder: Path) -> int:
    """Return the bytes that a folder's files take, holes left out."""
    return sum(used for _, used in _sizes(folder))


def opening_bytes(folder: Path, at: Path) -> int:
    """Return the bytes that opening a shard may take of the disk that `at` is on, were its files there.

    In memory, a hole that is read takes space, and the engine reads all of some files at loading.
    """
    return RESERVE + (sum(max(0, size - used) for size, used in _sizes(folder)) if _is_in_memory(at) else 0)


def _sizes(folder: Path) -> Iterator[tuple[int, int]]:
    for path in _within(folder):
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            yield found.st_size, getattr(found, "st_blocks", -(-found.st_size // 512)) * 512


def _within(folder: Path) -> Iterator[Path]:
    """Yield what is within a folder; of what disappears meanwhile, some may be left out."""
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(at, name)


def _is_in_memory(folder: Path) -> bool:
    """Tell whether a folder is on a file system in memory, as far as the system says."""
    try:
        mounts = Path("/proc/self/mounts").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return False
    kinds = {fields[1]: fields[2] for fields in map(str.split, mounts)}
    within = next((str(one) for one in (folder, *folder.parents) if str(one) in kinds), "/")
    return kinds.get(within) in ("tmpfs", "ramfs")


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write to a folder's disk."""
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what a disk has no room for: the engine maps files that have no blocks yet, and would be killed.

    Args:
        folder: On the disk.
        needed: Bytes; a reserve is added.
        what: That needs them.

    Raises:
        StoreFullError: Says how many bytes are needed and free.
    """
    free = free_bytes(folder)
    if free < needed + RESERVE:
        raise StoreFullError(
            f"{what} needs {_megabytes(needed + RESERVE)} of free space on the disk of {folder}, which has "
            f"{_megabytes(free)} left. Nothing was written by it, and what was before can be searched; make room, or "
            "copy the index to another disk",
            needed=needed + RESERVE,
            free=free,
        )


def _megabytes(n: int) -> str:
    return f"{n / 2**20:.1f} MiB"


def close_inherited(folders: Collection[Path]) -> None:
    """In a forked process, close the files that the other has open: with them, this one has their locks.

    Args:
        folders: Within which, without links. Private copies are closed wherever they are.
    """
    if not os.path.isdir("/dev/fd"):
        return
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the listing's own, closed by now
            path = path_of(int(name))
            is_private = any(part.startswith(_PRIVATE) for part in path.parts)
            if is_private or any(path.is_relative_to(folder) for folder in folders):
                os.close(int(name))
