"""Word documents → HTML → Markdown."""

from __future__ import annotations

import io
from typing import Any

from pplx_vectorstore.errors import MissingExtraError, UnreadableFileError
from pplx_vectorstore.readers.archives import open_archive, require_own_text
from pplx_vectorstore.readers.content import Content, ReaderOptions
from pplx_vectorstore.readers.html import write_markdown
from pplx_vectorstore.readers.markdown_writer import MarkdownWriter
from pplx_vectorstore.readers.plain import EXTRA

_KIND = "a Word document"
# Beside the library's own, which know headings from 1 to 6.
_STYLES = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => p:fresh"
# Of XML; the library needs minutes and gigabytes for more of them, and some megabytes of text have half as many.
_MOST_ELEMENTS = 1_000_000
_PARTS = ("document", "styles", "numbering", "footnotes", "endnotes", "comments")


def read_word(data: bytes, options: ReaderOptions) -> Content:
    """Read a .docx file: text, lists, tables, notes and text boxes; no pictures, and what is deleted is not there.

    Raises:
        UnreadableFileError: It is broken, hostile, or the extra is missing.
    """
    try:
        import mammoth
    except ImportError as error:
        raise UnreadableFileError(str(MissingExtraError("reading Word documents", EXTRA))) from error
    with open_archive(data, _KIND) as parts:
        checked = parts.copy_of(("officeDocument", *_PARTS), [f"word/{name}.xml" for name in _PARTS])
    if parts.n_elements > _MOST_ELEMENTS:
        raise UnreadableFileError(
            f"is {_KIND} of {parts.n_elements:,} elements; at most {_MOST_ELEMENTS:,} are read: divide it"
        )
    try:
        page = mammoth.convert_to_html(
            io.BytesIO(checked),
            style_map=_STYLES,
            convert_image=lambda _: [],
            transform_document=_with_each_note_once,
        ).value
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableFileError(f"is {_KIND} that cannot be read ({type(error).__name__}: {error})") from error
    text = write_markdown(page, MarkdownWriter())
    require_own_text(text, parts)
    return Content(text=text, format="markdown")


def _with_each_note_once(document: Any) -> Any:
    """Drop references to a note after the first: the library writes the note for each of them."""
    from mammoth import documents, transforms

    seen = set()

    def keep(reference: Any) -> Any:
        note = (reference.note_type, reference.note_id)
        if note in seen:
            return documents.text("")
        seen.add(note)
        return reference

    return transforms.element_of_type(documents.NoteReference, keep)(document)
