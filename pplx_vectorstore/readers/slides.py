"""PowerPoint presentations → Markdown, slide after slide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pplx_vectorstore.readers.archives import open_archive, parse_xml, read_relations
from pplx_vectorstore.readers.content import Blocks, Content, ReaderOptions
from pplx_vectorstore.readers.markdown_tables import Cell, Table

if TYPE_CHECKING:
    import zipfile
    from xml.etree.ElementTree import Element

_KIND = "a PowerPoint presentation"
_PRESENTATION = "ppt/presentation.xml"
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_TITLES = {"title", "ctrTitle"}
# What the program fills in on every slide.
_FURNITURE = {"sldNum", "dt", "ftr", "sldImg"}


def read_slides(data: bytes, options: ReaderOptions) -> Content:
    """Read a .pptx file in the order in which its slides are shown, each with its notes; chunks know their slide.

    Raises:
        UnreadableFileError: It is broken or hostile.
    """
    blocks = Blocks()
    losses = []
    with open_archive(data, _KIND) as archive:
        relations = read_relations(archive, _PRESENTATION, _KIND)
        slides = parse_xml(archive, _PRESENTATION, _KIND).iter(f"{_P}sldId")
        for number, slide in enumerate(slides, 1):
            _, part = relations.get(slide.get(f"{_R}id", ""), ("", ""))
            if part not in archive.namelist():
                losses.append(f"slide {number} is missing")
                continue
            blocks.add("\n\n".join(_read_slide(archive, part)), {"slide": number})
    return Content(text=blocks.text, format="markdown", anchors=blocks.anchors, losses=losses)


def _read_slide(archive: zipfile.ZipFile, part: str) -> Iterator[str]:
    shapes = list(_shapes(parse_xml(archive, part, _KIND)))
    # The title first, wherever it stands: it is the heading of all of them.
    yield from (f"# {' '.join(text.split())}" for is_title, text in shapes if is_title and text.strip())
    yield from (text for is_title, text in shapes if not is_title)
    for kind, notes in read_relations(archive, part, _KIND).values():
        if kind == "notesSlide" and notes in archive.namelist():
            said = [text for _, text in _shapes(parse_xml(archive, notes, _KIND)) if text.strip()]
            if said:
                yield "\n\n".join(["Notes:", *said])


def _shapes(slide: Element) -> Iterator[tuple[bool, str]]:
    """Yield the text of each shape, and whether it is the slide's title."""
    for shape in slide.iter():
        if shape.tag == f"{_P}sp":
            holder = shape.find(f"{_P}nvSpPr/{_P}nvPr/{_P}ph")
            kind = "" if holder is None else holder.get("type", "")
            body = shape.find(f"{_P}txBody")
            if body is not None and kind not in _FURNITURE:
                yield kind in _TITLES, "\n\n".join(_paragraphs(body))
        elif shape.tag == f"{_A}tbl":
            yield False, "\n\n".join(_table(shape))


def _table(element: Element) -> Iterator[str]:
    table = Table()
    for row in element.iter(f"{_A}tr"):
        table.begin_row()
        for cell in row.iter(f"{_A}tc"):
            if cell.get("hMerge") or cell.get("vMerge"):  # the one that it is merged with spans it
                continue
            table.begin_cell(Cell.of({"colspan": cell.get("gridSpan", ""), "rowspan": cell.get("rowSpan", "")}))
            table.end_cell([" ".join(_paragraphs(cell))])
    return table.write()


def _paragraphs(body: Element) -> Iterator[str]:
    for paragraph in body.iter(f"{_A}p"):
        text = "".join(
            "\n" if run.tag == f"{_A}br" else run.text or ""
            for run in paragraph.iter()
            if run.tag in (f"{_A}t", f"{_A}br")
        )
        if text.strip():
            yield text.strip()
