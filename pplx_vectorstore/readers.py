"""Files → Documents."""

from __future__ import annotations

import codecs
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from pplx_vectorstore.documents import Document, is_blank
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


def read_document(path: Path) -> Document:
    """Read a file.

    Args:
        path: Markdown, reStructuredText, text or source code (UTF-8, or UTF-16 with a byte order mark),
            HTML (extra ``html``; turned into Markdown) or PDF (extra ``pdf``; its text layer).

    Returns:
        A document whose id, also under ``metadata["source"]``, is the path relative to the current
        folder, or absolute where the file is not below it; with forward slashes. An HTML page's title
        is under ``metadata["title"]``.

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
    document_id = name_file(path)
    metadata = {"source": document_id} if title is None else {"source": document_id, "title": title}
    return Document(id=document_id, text=text, metadata=metadata, format=style)


def name_file(path: Path) -> str:
    """Return the document id of a file: its path relative to the current folder, or absolute."""
    resolved = path.resolve()
    here = Path.cwd()
    named = resolved.relative_to(here) if resolved.is_relative_to(here) else resolved
    # A file name may hold bytes that are no UTF-8; an id may not.
    return os.fsencode(named.as_posix()).decode("utf-8", "backslashreplace")


def locate_lines(document_id: str, start: int | None, end: int | None, text: str) -> tuple[int, int] | None:
    """Find the lines of a chunk in its file, if the file still holds it there.

    Returns:
        First and last line, counted from 1, or None where the file is gone, changed, or is not text.
    """
    if start is None or end is None:
        return None
    try:
        whole = _decode(Path(document_id).read_bytes())
    except (OSError, ValueError, UnreadableFileError):
        return None
    if whole[start:end] != text:
        return None
    first = whole.count("\n", 0, start) + 1
    return first, first + text.count("\n")


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
