"""Files → Documents."""

from __future__ import annotations

import codecs
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pplx_vectorstore.documents import Chunk, Document, is_blank
from pplx_vectorstore.errors import InvalidInputError, MissingExtraError, UnreadableFileError

FORMATS = {
    ".c": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".cxx": "cpp",
    ".go": "go",
    ".h": "c",
    ".hpp": "cpp",
    ".java": "java",
    ".js": "javascript",
    ".jsx": "javascript",
    ".markdown": "markdown",
    ".md": "markdown",
    ".mdx": "markdown",
    ".mjs": "javascript",
    ".py": "python",
    ".pyi": "python",
    ".rs": "rust",
    ".ts": "typescript",
    ".tsx": "tsx",
}
"""How a file of each suffix is cut; others that hold text are cut as text."""

# What is recorded of a file: the document's id again, the folder that it is relative to, and a chunk's first line.
SOURCE_KEY = "source"
ROOT_KEY = "root"
LINE_KEY = "line"

_HTML_SUFFIXES = {".htm", ".html", ".xhtml"}
_PDF_SUFFIX = ".pdf"
_SKIPPED_FOLDERS = {"__pycache__", "node_modules"}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def find_files(paths: Iterable[str | os.PathLike[str]], *, skip: Path | None = None) -> Iterator[Path]:
    """List files, walking into folders.

    Args:
        paths: Files, taken as they are, and folders, of which hidden entries, ``node_modules``,
            ``__pycache__``, virtual environments and indexes are left out.
        skip: A folder to leave out, such as the index itself.

    Yields:
        Each file once, in sorted order within a folder; also links to folders, and folders that may not
        be entered, so that whoever reads them can report them.

    Raises:
        InvalidInputError: A path does not exist.
    """
    seen: set[Path] = set()
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise InvalidInputError(f"there is no file or folder {str(path)!r}")
        for file in _walk(path, skip.resolve() if skip else None) if path.is_dir() else [path]:
            resolved = file.resolve()
            if resolved not in seen:
                seen.add(resolved)
                yield file


def read_document(path: Path, root: Path | None = None) -> Document:
    """Read a file.

    Args:
        path: Markdown, reStructuredText, text or source code (UTF-8, or UTF-16 with a byte order mark),
            HTML (extra ``html``; turned into Markdown) or PDF (extra ``pdf``; its text layer).
        root: The folder that the document's id is relative to, as `name_file` says.

    Returns:
        A document whose id, also under ``metadata["source"]``, is from `name_file`. The root is under
        ``metadata["root"]``: of an absolute id, that of the file system. An HTML page's title is under
        ``metadata["title"]``.

    Raises:
        UnreadableFileError: The file is binary, broken, holds no text, or needs an extra.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise UnreadableFileError("is a folder that is linked to or may not be entered")
    if path.exists() and not path.is_file():
        raise UnreadableFileError("is no regular file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(error.strerror or str(error)) from error
    title = None
    try:
        if suffix in _HTML_SUFFIXES:
            text, title = _read_html(data)
            style = "markdown"
        elif suffix == _PDF_SUFFIX:
            text, style = _read_pdf(path), "text"
        else:
            text, style = _decode(data), FORMATS.get(suffix, "text")
    except MissingExtraError as error:
        raise UnreadableFileError(str(error)) from error
    if is_blank(text):
        raise UnreadableFileError("holds no text (a scan?)" if suffix == _PDF_SUFFIX else "holds no text")
    document_id = name_file(path, root)
    metadata = {SOURCE_KEY: document_id, ROOT_KEY: as_text(root_of(path, root))}
    return Document(
        id=document_id, text=text, metadata=metadata if title is None else {**metadata, "title": title}, format=style
    )


def root_of(path: Path, root: Path | None) -> Path:
    """Return the folder that a file's id is relative to: `root` if it holds the file, else the file system's."""
    resolved = path.resolve()
    holder = None if root is None else root.resolve()
    return holder if holder is not None and resolved.is_relative_to(holder) else Path(resolved.anchor)


def name_file(path: Path, root: Path | None = None) -> str:
    """Return the document id of a file: its path relative to a root, or absolute where that does not hold it.

    However the path is spelled, and whatever the current folder is: links are resolved, and slashes are forward.
    """
    resolved, holder = path.resolve(), root_of(path, root)
    return as_text(resolved if holder == Path(resolved.anchor) else resolved.relative_to(holder))


def possible_names(path: Path) -> list[str]:
    """Return every id that `name_file` may have given a file, whichever the root was; the absolute one first."""
    resolved = path.resolve()
    parts = resolved.relative_to(resolved.anchor).parts
    return [as_text(resolved), *(as_text(Path(*parts[first:])) for first in range(1, len(parts)))]


def locate_file(document_id: str, metadata: Mapping[str, Any]) -> Path | None:
    """Return the path of the file that a document was read from, or None where it does not say that it was.

    It is as it was recorded, by whoever wrote the store: show it, but do not open it.
    """
    root = metadata.get(ROOT_KEY)
    if metadata.get(SOURCE_KEY) != document_id or not isinstance(root, str):
        return None
    return Path(root, document_id)


def as_text(path: Path) -> str:
    """Return a path with forward slashes, as valid Unicode: a file's name may hold bytes that are no UTF-8."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def number_lines(path: Path, text: str, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Note each chunk's first line in the file, counted from 1, as ``metadata["line"]``.

    Args:
        path: The file. What was made of HTML or PDF has no lines: its chunks stay as they are.
        text: Its whole text.
        chunks: Chunks of the text in order, with offsets.
    """
    if path.suffix.lower() in {*_HTML_SUFFIXES, _PDF_SUFFIX}:
        return list(chunks)
    numbered = []
    line = 1
    position = 0
    for chunk in chunks:
        start = chunk.start or 0
        line += text.count("\n", position, start)
        position = start
        numbered.append(replace(chunk, metadata={**chunk.metadata, LINE_KEY: line}))
    return numbered


def _walk(folder: Path, skip: Path | None) -> Iterator[Path]:
    refused: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=refused.append):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if not _is_left_out(here / name, skip))
        links = [name for name in folders if (here / name).is_symlink()]  # not followed: they may go in circles
        yield from (here / name for name in sorted([*files, *links]) if not name.startswith("."))
    yield from (Path(error.filename) for error in refused)


def _is_left_out(folder: Path, skip: Path | None) -> bool:
    return (
        folder.name.startswith(".")
        or folder.name in _SKIPPED_FOLDERS
        or (folder / "pyvenv.cfg").exists()
        or (skip is not None and folder.resolve() == skip)
        or any((settings.parent / "shard").is_dir() for settings in folder.glob("*/collection.json"))
    )


def _decode(data: bytes) -> str:
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    if encoding != "utf-16" and b"\0" in data:
        raise UnreadableFileError("is binary")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableFileError(f"is not {encoding.upper()} text; convert it first") from error


def _read_html(data: bytes) -> tuple[str, str | None]:
    """Return a page as Markdown, and its title."""
    try:
        from bs4 import BeautifulSoup
        from markdownify import MarkdownConverter
    except ImportError as error:
        raise MissingExtraError("reading HTML", "html") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bs4 warns of pages that look like something else
            soup = BeautifulSoup(data, "html.parser")
            title = soup.title.get_text(" ", strip=True) if soup.title else None
            for tag in soup(["head", "script", "style", "noscript", "template", "svg"]):
                tag.decompose()
            return str(MarkdownConverter(heading_style="ATX").convert_soup(soup)).strip(), title or None
    except Exception as error:  # such as RecursionError, where elements are nested a thousand deep
        raise UnreadableFileError(f"is HTML that cannot be read ({type(error).__name__})") from error


def _read_pdf(path: Path) -> str:
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise MissingExtraError("reading PDF", "pdf") from error
    # pypdf logs every oddity of a file; what matters is whether text comes out.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        return "\n\n".join(page.extract_text() for page in PdfReader(path).pages)
    except Exception as error:  # a broken PDF makes pypdf raise nearly anything
        raise UnreadableFileError(f"is a PDF that cannot be read ({type(error).__name__}: {error})") from error
