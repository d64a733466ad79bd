"""PowerPoint presentations → Markdown, slide after slide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pplx_vectorstore.readers.anchors import HEADING_KEY
from pplx_vectorstore.readers.archives import Parts, open_archive, require_own_text
from pplx_vectorstore.readers.content import Blocks, Content, ReaderOptions, shorten
from pplx_vectorstore.readers.markdown_tables import Cell, Table
from pplx_vectorstore.readers.markdown_writer import escape_openings

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_KIND = "a PowerPoint presentation"
_PRESENTATION = "ppt/presentation.xml"
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_TITLES = {"title", "ctrTitle"}
# What the program fills in on every slide.
_FURNITURE = {"sldNum", "dt", "ftr", "sldImg"}
_TEXT = (f"{_A}t", f"{_A}br")
_SHAPES = (f"{_P}sp", f"{_A}tbl")


def read_slides(data: bytes, options: ReaderOptions) -> Content:
    """Read a .pptx file in the order in which its slides are shown, each with its notes; chunks know their slide.

    No chunk goes over two slides, and a slide without a title has no heading.

    Raises:
        UnreadableFileError: It is broken or hostile.
    """
    blocks = Blocks()
    losses = []
    read: set[str] = set()
    with open_archive(data, _KIND) as parts:
        relations = parts.relations(_PRESENTATION)
        slides = parts.parse(_PRESENTATION).iter(f"{_P}sldId")
        for number, slide in enumerate(slides, 1):
            _, part = relations.get(slide.get(f"{_R}id", ""), ("", ""))
            if part not in parts.names:
                losses.append(f"slide {number} is missing")
            elif part not in read:
                title, text = _read_slide(parts, part, read)
                heading = [shorten(title)] if title else []
                blocks.add(text, {"slide": number, HEADING_KEY: heading}, is_part=True)
    require_own_text(blocks.text, parts)
    return Content(text=blocks.text, format="markdown", anchors=blocks.anchors, cuts=blocks.cuts, losses=losses)


def _read_slide(parts: Parts, part: str, read: set[str]) -> tuple[str, str]:
    """Return a slide's title and its text; note which parts were read, so that none is read again."""
    read.add(part)
    shapes = [(is_title, text) for is_title, text in _shapes(parts.parse(part)) if text.strip()]
    # The title first, wherever it stands: it is the heading of all of them.
    titles = [" ".join(text.split()) for is_title, text in shapes if is_title]
    blocks = [f"# {title}" for title in titles]
    blocks += (text for is_title, text in shapes if not is_title)
    for kind, notes in parts.relations(part).values():
        if kind == "notesSlide" and notes in parts.names and notes not in read:
            read.add(notes)
            said = [text for _, text in _shapes(parts.parse(notes)) if text.strip()]
            if said:
                blocks += ["Notes:", *said]
    return (titles[-1] if titles else "", "\n\n".join(blocks))


def _shapes(slide: Element) -> Iterator[tuple[bool, str]]:
    """Yield the text of each shape, and whether it is the slide's title."""
    for shape in slide.iter():
        if shape.tag == f"{_P}sp":
            holder = shape.find(f"{_P}nvSpPr/{_P}nvPr/{_P}ph")
            kind = "" if holder is None else holder.get("type", "")
            body = shape.find(f"{_P}txBody")
            if body is not None and kind not in _FURNITURE:
                is_title = kind in _TITLES
                paragraphs = (text if is_title else escape_openings(text) for text in _paragraphs(body))
                yield is_title, "\n\n".join(paragraphs)
        elif shape.tag == f"{_A}tbl":
            yield False, "\n\n".join(_table(shape))


def _table(element: Element) -> Iterator[str]:
    table = Table()
    for row in element.iterfind(f"{_A}tr"):
        table.begin_row()
        for cell in row.iterfind(f"{_A}tc"):
            if cell.get("hMerge") or cell.get("vMerge"):  # the one that it is merged with spans it
                continue
            table.begin_cell(Cell.of({"colspan": cell.get("gridSpan", ""), "rowspan": cell.get("rowSpan", "")}))
            body = cell.find(f"{_A}txBody")
            table.end_cell([" ".join(_paragraphs(body))] if body is not None else [])
    return table.write()


def _paragraphs(body: Element) -> Iterator[str]:
    for paragraph in body.iterfind(f"{_A}p"):
        text = "".join("\n" if run.tag == f"{_A}br" else run.text or "" for run in _runs(paragraph))
        if text.strip():
            yield text.strip()


def _runs(element: Element) -> Iterator[Element]:
    """Yield text and line breaks within an element, but not those of shapes in it, which are asked for themselves."""
    for child in element:
        if child.tag in _TEXT:
            yield child
        elif child.tag not in _SHAPES:
            yield from _runs(child)
