"""Word documents → HTML → Markdown."""

from __future__ import annotations

import io

from pplx_vectorstore.errors import MissingExtraError, UnreadableFileError
from pplx_vectorstore.readers.archives import open_archive, require_plain_xml
from pplx_vectorstore.readers.content import Content, ReaderOptions
from pplx_vectorstore.readers.html import write_markdown
from pplx_vectorstore.readers.markdown_writer import MarkdownWriter
from pplx_vectorstore.readers.plain import EXTRA

_KIND = "a Word document"
# Beside the library's own, which know headings from 1 to 6.
_STYLES = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => p:fresh"


def read_word(data: bytes, options: ReaderOptions) -> Content:
    """Read a .docx file: text, lists, tables, notes and text boxes; no pictures, and what is deleted is not there.

    Raises:
        UnreadableFileError: It is broken, hostile, or the extra is missing.
    """
    try:
        import mammoth
    except ImportError as error:
        raise UnreadableFileError(str(MissingExtraError("reading Word documents", EXTRA))) from error
    with open_archive(data, _KIND) as archive:
        require_plain_xml(archive, _KIND)
    try:
        page = mammoth.convert_to_html(io.BytesIO(data), style_map=_STYLES, convert_image=lambda _: []).value
    except Exception as error:
        raise UnreadableFileError(f"is {_KIND} that cannot be read ({type(error).__name__}: {error})") from error
    return Content(text=write_markdown(page, MarkdownWriter()), format="markdown")
