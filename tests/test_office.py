"""Word, PowerPoint, Excel and EPUB: archives of XML."""

import datetime
import io
import re
import sys
import time
import zipfile

import pytest
from file_samples import (
    BILLION_LAUGHS,
    W,
    archive,
    docx,
    epub,
    paragraph,
    pptx,
    relations,
    shape,
    styles,
    word_table,
    xlsx,
)

from pplx_vectorstore import Chunk
from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers import ReaderOptions, archives, label_chunks, read_content, sheets, word


def read(name, data, **options):
    return read_content(name, data, ReaderOptions(**options))


def refuse(name, data, **options):
    with pytest.raises(UnreadableFileError) as caught:
        read(name, data, **options)
    return str(caught.value)


def replace_part(data, part, content):
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return archive({name: opened.read(name) for name in opened.namelist()} | {part: content})


def test_a_word_document():
    body = (
        paragraph("The title", "T") + paragraph("Chapter", "H") + paragraph("Some text.")
        + word_table([paragraph("a"), paragraph("b|c")], [paragraph("1"), paragraph("2")])
        + '<w:p><w:r><w:t>with a note</w:t></w:r><w:r><w:footnoteReference w:id="2"/></w:r></w:p>'
    )  # fmt: skip
    footnotes = (
        '<w:footnotes xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:footnote w:id="2">'
        f"{paragraph('The note.')}</w:footnote></w:footnotes>"
    )
    content = read("a.docx", docx(body, styles=styles(T="Title", H="heading 1"), footnotes=footnotes))
    assert content.format == "markdown"
    assert content.text.startswith(
        "# The title\n\n# Chapter\n\nSome text.\n\n| a | b\\|c |\n| --- | --- |\n| 1 | 2 |\n\nwith a note"
    )
    assert "The note." in content.text


def test_changes_that_are_tracked_are_as_if_accepted():
    body = (
        "<w:p><w:r><w:t>Kept </w:t></w:r><w:ins><w:r><w:t>new</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>"
    )
    assert read("a.docx", docx(body)).text == "Kept new"


def test_text_boxes_and_merged_and_nested_cells():
    box = (
        '<w:p><w:r><mc:AlternateContent><mc:Choice Requires="wps"><w:drawing/></mc:Choice><mc:Fallback>'
        f"<w:pict><v:shape><v:textbox>"
        f"<w:txbxContent>{paragraph('In a box')}</w:txbxContent></v:textbox></v:shape></w:pict>"
        "</mc:Fallback></mc:AlternateContent></w:r></w:p>"
    )
    assert "In a box" in read("a.docx", docx(box)).text
    merged = (
        '<w:tbl><w:tr><w:tc><w:tcPr><w:gridSpan w:val="2"/></w:tcPr>' + paragraph("wide") + "</w:tc></w:tr><w:tr><w:tc>"
        + paragraph("x") + "</w:tc><w:tc>" + paragraph("y") + "</w:tc></w:tr></w:tbl>"
    )  # fmt: skip
    assert read("a.docx", docx(merged)).text == "| wide |  |\n| --- | --- |\n| x | y |"
    nested = word_table([paragraph("a"), word_table([paragraph("in"), paragraph("side")]) + paragraph("")])
    text = read("a.docx", docx(nested)).text
    assert all(word in text for word in ("a", "in", "side"))


def test_a_word_document_that_is_nested_without_end():
    deep = word_table([paragraph("x")])
    for _ in range(200):
        deep = f"<w:tbl><w:tr><w:tc>{deep}</w:tc></w:tr></w:tbl>"
    assert "nested more than" in refuse("a.docx", docx(deep))
    shallow = word_table([paragraph("swordfish")])
    for _ in range(30):
        shallow = f"<w:tbl><w:tr><w:tc>{shallow}</w:tc></w:tr></w:tbl>"
    assert "swordfish" in read("a.docx", docx(shallow)).text


def test_slides_come_in_the_order_in_which_they_are_shown_with_their_notes():
    table = (
        '<p:graphicFrame><a:graphic><a:graphicData><a:tbl><a:tr><a:tc gridSpan="2"><a:txBody><a:p><a:r><a:t>wide</a:t>'
        '</a:r></a:p></a:txBody></a:tc><a:tc hMerge="1"/></a:tr><a:tr><a:tc><a:txBody><a:p><a:r><a:t>x</a:t></a:r>'
        "</a:p></a:txBody></a:tc><a:tc><a:txBody><a:p><a:r><a:t>y</a:t></a:r></a:p></a:txBody></a:tc></a:tr></a:tbl>"
        "</a:graphicData></a:graphic></p:graphicFrame>"
    )
    data = pptx(
        [
            shape("Point one\nPoint two") + shape("Cats", "title") + shape("3", "sldNum"),
            shape("First", "ctrTitle") + table,
        ],
        order=[2, 1],
        notes={1: "Say it slowly."},
    )
    content = read("a.pptx", data)
    assert content.text == (
        "# First\n\n| wide |  |\n| --- | --- |\n| x | y |\n\n"
        "# Cats\n\nPoint one\n\nPoint two\n\nNotes:\n\nSay it slowly."
    )
    second = content.text.index("# Cats")
    assert content.anchors == [(0, {"slide": 1, "heading": ["First"]}), (second, {"slide": 2, "heading": ["Cats"]})]
    assert content.cuts == [second]
    lost = replace_part(data, "ppt/_rels/presentation.xml.rels", relations("slides/gone.xml", "slides/slide2.xml"))
    assert read("a.pptx", lost).losses == ["slide 2 is missing"]


def test_sheets_are_records_with_their_header():
    data = xlsx(
        {
            "People": {"A1": "name", "B1": "born", "A2": "Ada\nLovelace", "B2": datetime.datetime(1815, 12, 10),
                       "A4": "Alan", "B4": 1912.0},
            "No header": {"A1": 1, "B2": 2.5},
            "Secret": {"A1": "word", "B1": "n", "A2": "swordfish"},
        },
        hidden=["Secret"],
    )  # fmt: skip
    content = read("a.xlsx", data)
    assert content.text == (
        "# People\n\nname: Ada Lovelace\nborn: 1815-12-10\n\nname: Alan\nborn: 1912\n\n"
        "# No header\n\nA: 1\n\nB: 2.5\n\n# Secret\n\nword: swordfish"
    )
    assert content.notes == ["has hidden sheets, which are read too: Secret"]
    rows = [(values["sheet"], values["row"]) for _, values in content.anchors]
    assert list(dict.fromkeys(rows)) == [
        ("People", 2), ("People", 4), ("No header", 1), ("No header", 2), ("Secret", 2),
    ]  # fmt: skip
    assert read("a.xlsx", data, text_columns=("name",)).text == "# People\n\nAda\nLovelace\n\nAlan"
    assert "has no column nome to take the text from; it has: name, born" in refuse(
        "a.xlsx", data, text_columns=("nome",)
    )
    assert read("a.xlsx", xlsx({"One": {"A1": "only", "B1": "names"}})).text == "# One\n\nonly, names"


def test_a_cell_far_away_takes_no_time():
    started = time.process_time()
    data = xlsx({"Far": {"A1": "near", "XFD1048576": "far"}})
    content = read("a.xlsx", data)
    assert content.text == "# Far\n\nA: near\n\nXFD: far"
    assert content.anchors[-1][1] == {"sheet": "Far", "row": 1048576}
    assert time.process_time() - started < 20


def test_a_workbook_with_too_many_cells_is_refused():
    row = '<row r="{0}"><c r="XFD{0}"><v>1</v></c></row>'
    rows = "".join(row.format(number) for number in range(1, 3000))
    data = replace_part(
        xlsx({"Wide": {"A1": 1}}),
        "xl/worksheets/sheet1.xml",
        '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
        f"{rows}</sheetData></worksheet>",
    )
    assert "more than 20,000,000 cells" in refuse("a.xlsx", data)


def test_a_book_is_read_in_its_order():
    pages = {
        "two": "<html><body><h1>Two</h1><p>Later.</p></body></html>",
        "one": "<?xml version='1.0' encoding='utf-8'?><html><body><h1>One</h1><p>Grün.</p></body></html>",
    }
    content = read("a.epub", epub(pages, order=["one", "two"]))
    assert content.text == "# One\n\nGrün.\n\n# Two\n\nLater."
    assert content.metadata == {"title": "A Book", "author": "Ada"}
    data = epub({"one": "<p>x</p>"})
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        without = archive({name: opened.read(name) for name in opened.namelist() if "one" not in name})
    assert refuse("a.epub", without) == "holds no text; the part text/one.xhtml is missing"


GOOD = {
    "a.docx": (lambda: docx(paragraph("x")), "word/document.xml"),
    "a.pptx": (lambda: pptx([shape("x")]), "ppt/slides/slide1.xml"),
    "a.xlsx": (lambda: xlsx({"S": {"A1": "x"}}), "xl/worksheets/sheet1.xml"),
    "a.epub": (lambda: epub({"one": "<p>x"}), "META-INF/container.xml"),
}


@pytest.mark.parametrize("name", GOOD)
class TestEveryArchive:
    def test_is_known_by_what_is_in_it(self, name):
        data = GOOD[name][0]()
        assert "x" in read("renamed.bin", data).text
        assert "x" in read("renamed.docx", data).text

    def test_that_is_broken_says_so(self, name):
        data = GOOD[name][0]()
        for broken in (data[: len(data) // 2], b"PK\x03\x04", b"", b"\x00\x01 nothing", archive({"other": "x"})):
            assert "cannot be read" in refuse(name, broken)
        assert "whose XML is broken" in refuse(name, replace_part(data, GOOD[name][1], "<a><b></a>"))

    def test_that_laughs_a_billion_times_is_refused(self, name):
        make, part = GOOD[name]
        started = time.process_time()
        assert "declares entities" in refuse(name, replace_part(make(), part, BILLION_LAUGHS))
        assert time.process_time() - started < 5

    def test_that_unpacks_to_too_much_is_refused(self, name, monkeypatch):
        monkeypatch.setattr(archives, "MOST_BYTES", 1_000_000)
        monkeypatch.setattr(sheets, "_MOST_BYTES", 1_000_000)
        make, part = GOOD[name]
        assert "that unpacks to 2,0" in refuse(name, replace_part(make(), part, b" " * 2_000_000))

    def test_with_a_password_says_so(self, name):
        assert "protected by a password" in refuse(name, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))

    @pytest.mark.parametrize("encoding", ["foo", "rot13", "shift_jis", "big5", "utf-32", "idna"])
    def test_in_an_encoding_that_no_program_writes_says_so(self, name, encoding):
        make, part = GOOD[name]
        assert "cannot be read" in refuse(
            name, replace_part(make(), part, f'<?xml version="1.0" encoding="{encoding}"?><a/>')
        )

    def test_is_read_for_what_is_in_it_whatever_lies_beside(self, name):
        unused = {"customXml/item1.xml": "<a><b></a>", "customXml/item2.xml": "", "customXml/item3.xml": "<a>" * 130,
                  "docProps/app.xml": BILLION_LAUGHS}  # fmt: skip
        data = GOOD[name][0]()
        for part, content in unused.items():
            data = replace_part(data, part, content)
        assert "x" in read(name, data).text


def test_a_part_that_is_damaged_says_so():
    parts = {"ppt/presentation.xml": "<a/>" * 1000}
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_LZMA) as opened:
        for name, content in parts.items():
            opened.writestr(name, content)
    data = bytearray(written.getvalue())
    start = data.index(b"presentation.xml") + 16
    data[start + 9 : start + 25] = b"\xff" * 16
    assert "cannot be read" in refuse("a.pptx", bytes(data))


def test_entities_are_found_in_parts_of_any_name():
    main = f'<!DOCTYPE a [<!ENTITY a "{"x" * 100_000}">]><w:document xmlns:w="{W}"><w:body><w:p><w:r><w:t>'
    main += "&a;" * 60 + "</w:t></w:r></w:p></w:body></w:document>"
    data = replace_part(docx(paragraph("x")), "_rels/.rels", relations("word/doc.bin", kind="officeDocument"))
    assert "declares entities" in refuse("a.docx", replace_part(data, "word/doc.bin", main))


def test_a_part_is_read_once_however_often_it_is_named():
    assert read("a.pptx", pptx([shape("swordfish")], order=[1] * 500, notes={1: "said"})).text.count("swordfish") == 1
    note = paragraph("The note. " * 100)
    footnotes = f'<w:footnotes xmlns:w="{W}"><w:footnote w:id="2">{note}</w:footnote></w:footnotes>'
    body = paragraph("text") + '<w:p><w:r><w:footnoteReference w:id="2"/></w:r></w:p>' * 500
    assert read("a.docx", docx(body, footnotes=footnotes)).text.count("The note.") == 100
    data = xlsx({"One": {"A1": "swordfish", "B1": 1}})
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        workbook = opened.read("xl/workbook.xml").decode()
    sheet = re.search("<sheet [^>]*/>", workbook)[0]
    more = "".join(sheet.replace('"One"', f'"S{number}"') for number in range(100))
    assert read("a.xlsx", replace_part(data, "xl/workbook.xml", workbook.replace(sheet, sheet + more))).text == (
        "# One\n\nA: swordfish\nB: 1"
    )


def test_shapes_within_shapes_are_read_once():
    inner = shape("swordfish")
    for _ in range(15):
        inner = f"<p:sp><p:txBody><a:p><a:r><a:t>x</a:t></a:r>{inner}</a:p></p:txBody></p:sp>"
    assert read("a.pptx", pptx([inner])).text.count("swordfish") == 1


def with_shared_strings(sheet, *strings):
    data = xlsx({"S": {"A1": 1}})
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        types = opened.read("[Content_Types].xml").decode()
    override = (
        '<Override PartName="/xl/sharedStrings.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        'spreadsheetml.sharedStrings+xml"/></Types>'
    )
    items = "".join(f"<si><t>{string}</t></si>" for string in strings)
    data = replace_part(data, "[Content_Types].xml", types.replace("</Types>", override))
    data = replace_part(data, "xl/sharedStrings.xml", f'<sst xmlns="{space}">{items}</sst>')
    rows = f'<worksheet xmlns="{space}"><sheetData>{sheet}</sheetData></worksheet>'
    return replace_part(data, "xl/worksheets/sheet1.xml", rows)


def test_a_workbook_that_shows_one_long_text_in_all_cells_is_refused():
    row = '<row r="{0}"><c r="A{0}" t="s"><v>0</v></c></row>'
    assert read("a.xlsx", with_shared_strings(row.format(1), "swordfish")).text == "# S\n\nA: swordfish"
    rows = "".join(row.format(number) for number in range(1, 1001))
    assert "repeats the same without end" in refuse("a.xlsx", with_shared_strings(rows, "y" * 30_000))


def test_a_word_document_of_too_many_elements_is_refused(monkeypatch):
    monkeypatch.setattr(word, "_MOST_ELEMENTS", 1000)
    assert "is a Word document of 1,0" in refuse("a.docx", docx("<w:p/>" * 1000))
    assert read("a.docx", docx(paragraph("x") * 300)).text.count("x") == 300


def test_no_chunk_goes_over_two_sheets_slides_or_pages_of_a_book():
    content = read("a.xlsx", xlsx({"People": {"A1": "n", "B1": "m", "A2": 1}, "Prices": {"A4": "only", "B4": "names"}}))
    assert content.text == "# People\n\nn: 1\n\n# Prices\n\nonly, names"
    assert content.cuts == [content.text.index("# Prices")]
    assert content.anchors[-1][1] == {"sheet": "Prices", "row": 4}
    content = read("a.pptx", pptx([shape("Cats", "title"), shape("- no item\n# no heading\n---")]))
    assert content.text == "# Cats\n\n\\- no item\n\n\\# no heading\n\n\\---"
    start = content.cuts[0]
    (chunk,) = label_chunks(content, [Chunk(text=content.text[start:], start=start, end=len(content.text))])
    assert dict(chunk.metadata) == {"slide": 2, "slide_end": 2}
    content = read("a.epub", epub({"one": "<h1>One</h1><p>a", "two": "<h1>Two</h1><p>b"}))
    assert content.cuts == [content.text.index("# Two")]


def test_what_stands_above_a_table_is_no_header():
    cells = {"A1": "Quarterly report", "A3": "Name", "B3": "City", "C3": "Age", "A4": "Ada", "B4": "London", "C4": 36,
             "A5": "Alan", "C5": 41}  # fmt: skip
    content = read("a.xlsx", xlsx({"S": cells}))
    assert content.text == ("# S\n\nQuarterly report\n\nName: Ada\nCity: London\nAge: 36\n\nName: Alan\nAge: 41")
    assert [values["row"] for _, values in content.anchors] == [1, 1, 4, 5]
    assert read("a.xlsx", xlsx({"S": cells}), text_columns=("City",)).text == "# S\n\nLondon"


def test_titles_are_not_longer_than_titles():
    content = read("a.epub", epub({"one": "<p>x"}, title="y" * 100_000))
    assert content.metadata["title"] == "y" * 299 + "…"


def test_a_page_of_a_book_that_cannot_be_read_is_a_loss():
    pages = {"one": "<p>One.", "two": b"\xff\xfe\x00\xd8", "three": "<p>Three."}
    content = read("a.epub", epub(pages))
    assert content.text == "One.\n\nThree."
    assert content.losses == [
        "the part text/two.xhtml is not UTF-16 text (byte 2 is 0x00); convert it, or give its --encoding"
    ]
    data = epub({"one": "<p>x"})
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        package = opened.read("text/book.opf").decode()
    declared = '<!DOCTYPE package PUBLIC "+//ISBN 0-9673008-1-9//DTD OEB 1.2 Package//EN" "oebpkg12.dtd">' + package
    assert read("a.epub", replace_part(data, "text/book.opf", declared)).text == "x"


def test_a_bomb_of_400_megabytes_is_refused_at_once():
    written = io.BytesIO()
    with (
        zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened,
        opened.open("word/document.xml", "w") as part,
    ):
        for _ in range(400):
            part.write(bytes(1_000_000))
    started = time.process_time()
    assert "that unpacks to 400,000,000 bytes" in refuse("a.docx", written.getvalue())
    assert time.process_time() - started < 1


def test_an_archive_that_is_no_document_says_so():
    assert refuse("a.txt", archive({"a.txt": "x"})) == "is an archive; unpack it first"


@pytest.mark.parametrize(("name", "module"), [("a.docx", "mammoth"), ("a.xlsx", "openpyxl"), ("a.epub", "lxml.etree")])
def test_the_extra_is_named(monkeypatch, name, module):
    data = GOOD[name][0]()
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'pplx-vectorstore[documents]'" in refuse(name, data)
