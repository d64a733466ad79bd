"""Where the text of a hit is in its file now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.file_ids import find_file, locate_file
from pplx_vectorstore.hit_places import describe_part, describe_place, line_range
from pplx_vectorstore.readers import FORMATS
from pplx_vectorstore.readers.plain import read_text
from pplx_vectorstore.walking import DEFAULT_MAX_FILE_SIZE

if TYPE_CHECKING:
    from pplx_vectorstore.documents import StoredChunk
    from pplx_vectorstore.readers import Content, ReaderOptions

GONE = "the file is not there any more"
CHANGED = "the file has changed since it was indexed, and does not say this any more: these lines are of then"
MOVED = "the file has changed since it was indexed: these lines are of now"

# Of the files that hits of one answer are compared with; those beyond are not looked at.
_MOST_BYTES = 5 * DEFAULT_MAX_FILE_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlace:
    """Where a chunk is.

    Attributes:
        file: Path of the file, as it was recorded; None where the document was not read from one.
        lines: First and last line, from 1; None where the file is not read by lines.
        place: In words: lines, page, slide, row or cell, characters, or the chunk's number.
        change: What has changed since the file was indexed; None where nothing has, or nobody has looked.
    """

    file: str | None
    lines: tuple[int, int] | None
    place: str
    change: str | None

    def __str__(self) -> str:
        if self.file is None:
            return self.place
        if self.lines is not None:
            first, last = self.lines
            return f"{self.file}:{first}" if first == last else f"{self.file}:{first}-{last}"
        return f"{self.file}, {self.place}"


class FilePlaces:
    """Finds where chunks are, and compares them with their files.

    A store says of its documents which files they come from, and anybody may have written it. So files are opened only
    below certain folders, and what is told of them is whether they still hold a text that the store holds.

    Args:
        folders: Those folders, resolved.
        options: How the files were read.
    """

    def __init__(self, folders: Sequence[Path], options: ReaderOptions) -> None:
        self._folders = folders
        self._options = options
        self._read: dict[Path, Content | str | None] = {}
        self._bytes_left = _MOST_BYTES

    def find(self, chunk: StoredChunk) -> FilePlace:
        """Find where a chunk is."""
        file = locate_file(chunk.document_id, chunk.metadata)
        if file is None:
            return FilePlace(file=None, lines=None, place=describe_place(chunk), change=None)
        lines = line_range(chunk)
        content = self._content(file, has_lines=lines is not None)
        change = content if isinstance(content, str) else None
        if lines is not None and content is not None and not isinstance(content, str):
            now = _lines_now(chunk, content)
            if now is None:
                change = CHANGED
            elif now != lines:
                lines, change = now, MOVED
        place = f"lines {lines[0]}-{lines[1]}" if lines is not None else describe_part(chunk) or describe_place(chunk)
        return FilePlace(file=file.as_posix(), lines=lines, place=place, change=change)

    def _content(self, file: Path, *, has_lines: bool) -> Content | str | None:
        """Return what a file says, or what became of it; None where it must not, or need not be looked at."""
        if file not in self._read:
            self._read[file] = self._look(file, has_lines=has_lines)
        return self._read[file]

    def _look(self, file: Path, *, has_lines: bool) -> Content | str | None:
        try:
            real = find_file(file).resolve()
            if not any(real.is_relative_to(folder) for folder in self._folders):
                return None
            if not real.exists():
                return GONE
            if not has_lines:
                return None
            if not real.is_file():
                return CHANGED
            size = real.stat().st_size
            if size > min(DEFAULT_MAX_FILE_SIZE, self._bytes_left):
                return None
            self._bytes_left -= size
            read = partial(read_text, format=FORMATS.get(real.suffix.lower(), "text"))
            return read(real.read_bytes(), self._options)
        except UnreadableFileError:
            return CHANGED
        except (OSError, ValueError, RuntimeError):  # no right to look, no path at all, or links that go round
            return None


def _lines_now(chunk: StoredChunk, content: Content) -> tuple[int, int] | None:
    """Return the lines that a chunk's text has now, where it was or as near to that as can be; None if nowhere."""
    text = content.text
    at = chunk.start if chunk.start is not None else 0
    if not text.startswith(chunk.text, at):
        after, before = text.find(chunk.text, at), text.rfind(chunk.text, 0, at + len(chunk.text))
        found = [place for place in (before, after) if place >= 0]
        if not found:
            return None
        at = min(found, key=lambda place: abs(place - (chunk.start or 0)))
    first = (content.first_line or 1) + text.count("\n", 0, at)
    return first, first + chunk.text.count("\n")
