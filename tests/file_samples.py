"""Files of every format, made by hand, for the tests of readers: good, broken and hostile."""

import io
import json
import zipfile

from pdf_encryption import ID

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
A = "http://schemas.openxmlformats.org/drawingml/2006/main"
P = "http://schemas.openxmlformats.org/presentationml/2006/main"
R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {after} "{f"&{before};" * 10}">' for before, after in zip("abcdefgh", "bcdefghi", strict=True))
    + "]><lolz>&i;</lolz>"
)


def archive(parts):
    """A ZIP archive of named parts."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in parts.items():
            opened.writestr(name, content)
    return written.getvalue()


def relations(*targets, kind="part"):
    """The part that tells where another points to; ids are rId1, rId2, …"""
    rows = "".join(
        f'<Relationship Id="rId{number}" Type="{R}/{kind}" Target="{target}"/>'
        for number, target in enumerate(targets, 1)
    )
    return f'<Relationships xmlns="{RELATIONS}">{rows}</Relationships>'


def docx(body, **parts):
    """A Word document with a body of WordprocessingML, and other parts (``styles``, ``footnotes``)."""
    types = "".join(
        f'<Override PartName="/word/{name}.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        f'wordprocessingml.{"document.main" if name == "document" else name}+xml"/>'
        for name in ("document", *parts)
    )
    document = (
        f'<w:document xmlns:w="{W}" xmlns:r="{R}" xmlns:wps="http://schemas.microsoft.com/office/word/2010/'
        'wordprocessingShape" xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" '
        f'xmlns:v="urn:schemas-microsoft-com:vml"><w:body>{body}</w:body></w:document>'
    )
    rows = "".join(
        f'<Relationship Id="rId{number}" Type="{R}/{name}" Target="{name}.xml"/>'
        for number, name in enumerate(parts, 1)
    )
    return archive(
        {
            "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Default Extension="xml" ContentType="application/xml"/>{types}</Types>',
            "_rels/.rels": relations("word/document.xml", kind="officeDocument"),
            "word/document.xml": document,
            "word/_rels/document.xml.rels": f'<Relationships xmlns="{RELATIONS}">{rows}</Relationships>',
            **{f"word/{name}.xml": content for name, content in parts.items()},
        }
    )


def paragraph(text, style=None):
    """A paragraph of a Word document."""
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def styles(**names):
    """The part with a Word document's styles: id → name."""
    rows = "".join(
        f'<w:style w:type="paragraph" w:styleId="{id_}"><w:name w:val="{name}"/></w:style>'
        for id_, name in names.items()
    )
    return f'<w:styles xmlns:w="{W}">{rows}</w:styles>'


def word_table(*rows):
    """A table of a Word document, of cells' contents."""
    written = "".join("<w:tr>" + "".join(f"<w:tc>{cell}</w:tc>" for cell in row) + "</w:tr>" for row in rows)
    return f"<w:tbl>{written}</w:tbl>"


def shape(text, kind=None):
    """A shape with text on a slide."""
    holder = f'<p:ph type="{kind}"/>' if kind else ""
    lines = "".join(f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>" for line in text.split("\n"))
    return f"<p:sp><p:nvSpPr><p:nvPr>{holder}</p:nvPr></p:nvSpPr><p:txBody>{lines}</p:txBody></p:sp>"


def pptx(slides, order=None, notes=None):
    """A presentation of slides' shapes; `order` is that in which they are shown, `notes` a slide's number → text."""
    order = order or range(1, len(slides) + 1)
    notes = notes or {}
    listed = "".join(f'<p:sldId id="{255 + number}" r:id="rId{number}"/>' for number in order)
    parts = {
        "ppt/presentation.xml": f'<p:presentation xmlns:p="{P}" xmlns:r="{R}"><p:sldIdLst>{listed}</p:sldIdLst>'
        "</p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(
            *(f"slides/slide{number}.xml" for number in range(1, len(slides) + 1)), kind="slide"
        ),
    }
    for number, shapes in enumerate(slides, 1):
        parts[f"ppt/slides/slide{number}.xml"] = (
            f'<p:sld xmlns:p="{P}" xmlns:a="{A}"><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:sld>'
        )
        if number in notes:
            parts[f"ppt/slides/_rels/slide{number}.xml.rels"] = relations(
                f"../notesSlides/notesSlide{number}.xml", kind="notesSlide"
            )
            parts[f"ppt/notesSlides/notesSlide{number}.xml"] = (
                f'<p:notes xmlns:p="{P}" xmlns:a="{A}"><p:cSld><p:spTree>{shape("7", "sldNum")}{shape(notes[number])}'
                "</p:spTree></p:cSld></p:notes>"
            )
    return archive(parts)


def xlsx(sheets, hidden=()):
    """A workbook: sheet's name → {cell's name: value}."""
    import openpyxl

    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    for name, cells in sheets.items():
        sheet = workbook.create_sheet(name)
        for cell, value in cells.items():
            sheet[cell] = value
        if name in hidden:
            sheet.sheet_state = "hidden"
    written = io.BytesIO()
    workbook.save(written)
    return written.getvalue()


def epub(pages, title="A Book", order=None):
    """An e-book of pages: name → HTML; `order` is the spine's."""
    order = order or list(pages)
    items = "".join(f'<item id="{name}" href="{name}.xhtml" media-type="application/xhtml+xml"/>' for name in pages)
    spine = "".join(f'<itemref idref="{name}"/>' for name in order)
    return archive(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="text/book.opf"/></rootfiles></container>',
            "text/book.opf": '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
            f"<metadata><dc:title>{title}</dc:title><dc:creator>Ada</dc:creator></metadata>"
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
            **{f"text/{name}.xhtml": page for name, page in pages.items()},
        }
    )


def ipynb(*cells, version=4):
    """A notebook of cells, each a dict."""
    inside = {"cells": list(cells)} if version == 4 else {"worksheets": [{"cells": list(cells)}]}
    return json.dumps({"nbformat": version, "metadata": {}, **inside}).encode()


def shown(*lines):
    """Operators of a PDF's page that show lines of text."""
    return (
        b"BT /F1 12 Tf 72 720 Td " + b" 0 -14 Td ".join(b"(%s) Tj" % line.encode("latin-1") for line in lines) + b" ET"
    )


PICTURE = b"0 0 100 100 re f"


def pdf(*pages, count=None, kids=b"", encryption=None):
    """A PDF of pages, given as operators, or as a ready object's body (a dict and perhaps a stream).

    `count` is how many pages it says that it has, `kids` more of them.
    """
    bodies = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    numbers = []
    for page in pages:
        numbers.append(len(bodies) + 1)
        if encryption is not None:
            page = encryption.encrypt(len(bodies) + 2, page)
        content = page if page.startswith(b"<<") else b"<< /Length %d >>\nstream\n%s\nendstream" % (len(page), page)
        bodies += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R /Resources "
            b"<< /Font << /F1 3 0 R >> >> >>" % (len(bodies) + 2),
            content,
        ]
    bodies[1] = b"<< /Type /Pages /Kids [%s %s] /Count %d >>" % (
        b" ".join(b"%d 0 R" % number for number in numbers),
        kids,
        len(numbers) if count is None else count,
    )
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    secured = b""
    if encryption is not None:
        secured = b"/Encrypt %s /ID [<%s> <%s>]" % (encryption.dictionary, ID.hex().encode(), ID.hex().encode())
    return out + b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF" % (len(bodies) + 1, secured, table)
