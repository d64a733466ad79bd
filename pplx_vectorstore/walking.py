"""Paths → the files to read, and what was left out, each with the reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.ignore_files import IgnoreRules
from pplx_vectorstore.ignore_patterns import Patterns

DEFAULT_MAX_FILE_SIZE = 10_000_000
"""Bytes."""

EMPTY = "empty"
"""Why a file is left out that holds nothing, and what it held before is forgotten."""

NAME_IT = "name it, or give --max-file-size"
"""The way out for a file that is too large, on the command line."""

_PACKAGES = {"__pycache__", "node_modules", "site-packages", "bower_components"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkOptions:
    """Which files of a folder are taken. Files that are named are taken in any case.

    Attributes:
        ignore: Whether ignore files are heeded, and folders of packages and caches left out.
        hidden: Whether what begins with a dot is taken too.
        include: Patterns as in .gitignore, relative to the given folder; where there are any, only files that match
            one are taken, and these of any kind.
        exclude: Patterns of what is left out.
        max_file_size: Bytes of the largest file that is taken.
        links: Whether links to files are taken, where they stay within the folder.
    """

    ignore: bool = True
    hidden: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_file_size: int = DEFAULT_MAX_FILE_SIZE
    links: bool = True

    def __post_init__(self) -> None:
        if self.max_file_size < 1:
            raise InvalidInputError(f"--max-file-size must be at least 1 byte, not {self.max_file_size}")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to read.

    Attributes:
        path: As it was reached.
        size: Bytes.
        is_chosen: Whether it was named, or is of a pattern that asks for it: then it is taken whatever it holds.
    """

    path: Path
    size: int
    is_chosen: bool


@dataclass(slots=True)
class Walk:
    """What was found.

    Attributes:
        files: To be read, each once; sorted within a folder.
        left_out: Reason → files and folders that nobody wants to find, such as ignored ones.
        skipped: Files and folders that could not be taken, each with the reason.
    """

    files: list[FoundFile] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def leave_out_empty(self) -> None:
        """Leave out the files that hold nothing."""
        for file in self.files:
            if not file.size:
                self.leave_out(file.path, EMPTY)
        self.files = [file for file in self.files if file.size]

    def leave_out(self, path: Path, reason: str) -> None:
        """Note what is left out."""
        self.left_out.setdefault(reason, []).append(path)


def walk(
    paths: Iterable[str | os.PathLike[str]], options: WalkOptions | None = None, *, skip: Path | None = None
) -> Walk:
    """Find the files at and below paths.

    Args:
        paths: Files, taken as they are, and folders.
        options: What is taken of folders.
        skip: A folder to leave out, such as the index itself.

    Raises:
        InvalidInputError: A path does not exist.
    """
    walker = _Walker(options or WalkOptions(), skip.resolve() if skip else None)
    for given in paths:
        path = Path(given)
        if path.is_dir():
            walker.walk_folder(path)
        elif os.path.lexists(path):
            walker.take(path, is_chosen=True)
        else:
            raise InvalidInputError(f"there is no file or folder {str(path)!r}")
    return walker.found


class _Walker:
    def __init__(self, options: WalkOptions, skip: Path | None) -> None:
        self.found = Walk()
        self._options = options
        self._skip = skip
        self._seen: set[Path] = set()
        self._include = Patterns(options.include) if options.include else None
        self._exclude = Patterns(options.exclude)

    def walk_folder(self, given: Path) -> None:
        """Take what is wanted below a folder, which itself may be hidden or ignored: it was named."""
        top = given.resolve()
        rules = IgnoreRules.above(top) if self._options.ignore else IgnoreRules()
        # Without recursion: folders may be nested deeper than that goes.
        waiting: list[tuple[Path, Path, IgnoreRules]] = [(given, top, rules)]
        while waiting:
            shown, folder, rules = waiting.pop()
            below = []
            for entry in self._entries(shown, folder):
                path, real = shown / entry.name, folder / entry.name
                try:
                    is_folder = entry.is_dir(follow_symlinks=False)
                except OSError as error:
                    self.found.skipped.append((path, error.strerror or str(error)))
                    continue
                if self._is_unwanted(path, real, top, rules, is_folder=is_folder):
                    continue
                if is_folder:
                    below.append((path, real, rules.within(real) if self._options.ignore else rules))
                else:
                    self._take_found(path, real, top)
            waiting += reversed(below)

    def take(self, path: Path, *, is_chosen: bool) -> None:
        """Take a file, if there is one, once."""
        try:
            status = path.stat()
        except OSError as error:
            self.found.skipped.append((path, error.strerror or str(error)))
            return
        resolved = path.resolve()
        if not stat.S_ISREG(status.st_mode):
            self.found.skipped.append((path, "is no regular file"))
        elif resolved not in self._seen:
            self._seen.add(resolved)
            self.found.files.append(FoundFile(path, status.st_size, is_chosen))

    def _entries(self, shown: Path, folder: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                yield from sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.found.skipped.append((shown, f"is a folder that cannot be read ({error.strerror or error})"))

    def _is_unwanted(self, path: Path, real: Path, top: Path, rules: IgnoreRules, *, is_folder: bool) -> bool:
        name = real.name
        below = real.relative_to(top).as_posix()
        if name == ".git" or (name.startswith(".") and not self._options.hidden):
            reason = "hidden"
        elif is_folder and (real == self._skip or _is_index(real)):
            reason = "index"
        elif self._options.ignore and is_folder and (name in _PACKAGES or os.path.lexists(real / "pyvenv.cfg")):
            reason = "folder of packages"
        elif self._exclude.find(below, is_folder=is_folder):
            reason = "excluded"
        elif rules.ignores(real, is_folder=is_folder):
            reason = "ignored"
        elif self._include is not None and not is_folder and not self._include.match_within(below):
            reason = "not included"
        else:
            return False
        self.found.leave_out(path, reason)
        return True

    def _take_found(self, path: Path, real: Path, top: Path) -> None:
        # Readers take their time to be imported, and a command's help needs nothing of this module but a number.
        from pplx_vectorstore.readers import kind_by_name

        if not self._options.links and real.is_symlink():
            self.found.leave_out(path, "link")
            return
        try:
            status = real.stat()
        except OSError as error:
            self.found.skipped.append((path, error.strerror or str(error)))
            return
        if real.is_symlink():
            if not real.resolve().is_relative_to(top):
                self.found.skipped.append((path, "is a link that leads out of the folder; name it to have it"))
                return
            # What it leads to is taken where it is, or is unwanted there.
            self.found.leave_out(path, "link within the folder")
            return
        kind = None if self._include is not None else kind_by_name(real.name)
        if kind is not None:
            self.found.leave_out(path, kind)
        elif status.st_size > self._options.max_file_size:
            self.found.skipped.append((path, f"is larger than {self._options.max_file_size:,} bytes; {NAME_IT}"))
        else:
            self.take(path, is_chosen=self._include is not None)


def _is_index(folder: Path) -> bool:
    """Tell whether a folder holds collections of the embedded engine; one that cannot be read is told of later."""
    return any(os.path.isdir(settings.parent / "shard") for settings in folder.glob("*/collection.json"))
