import os
import sys
from pathlib import Path

import pytest

from pplx_vectorstore import Chunk
from pplx_vectorstore.errors import InvalidInputError, UnreadableFileError
from pplx_vectorstore.readers import (
    FORMATS,
    find_files,
    locate_file,
    name_file,
    number_lines,
    possible_names,
    read_document,
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_are_walked_without_what_nobody_wants(here):
    for name in (
        "b.md",
        "a.txt",
        "sub/c.py",
        ".hidden/x.md",
        ".env",
        "node_modules/m.js",
        "__pycache__/c.pyc",
        "venv/pyvenv.cfg",
        "venv/lib.py",
        "index/documents/collection.json",
    ):
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    found = [path.as_posix() for path in find_files(["."], skip=Path("index"))]
    assert found == ["a.txt", "b.md", "sub/c.py"]


def test_a_file_given_twice_or_hidden_is_read_once(here):
    (here / ".notes").write_text("text")
    (here / "link").symlink_to(".notes")
    assert [str(path) for path in find_files([".notes", "link", ".notes"])] == [".notes"]


def test_a_missing_path_is_refused(here):
    with pytest.raises(InvalidInputError, match="no file or folder 'gone'"):
        list(find_files(["gone"]))


@pytest.mark.parametrize(("suffix", "format_"), [*FORMATS.items(), (".rst", "text"), (".txt", "text"), ("", "text")])
def test_the_suffix_decides_how_a_file_is_cut(here, suffix, format_):
    path = here / f"file{suffix}"
    path.write_bytes("größe\r\nzwei\n".encode())
    document = read_document(path, here)
    assert document.format == format_
    assert document.text == "größe\r\nzwei\n"  # line ends stay, so that offsets are those of the file
    assert document.id == f"file{suffix}"
    assert document.metadata == {"source": f"file{suffix}", "root": here.resolve().as_posix()}


def test_an_id_is_relative_to_a_root_that_holds_the_file_whatever_the_current_folder(here, monkeypatch):
    file = here / "project" / "docs" / "a.txt"
    file.parent.mkdir(parents=True)
    file.write_text("x")
    (here / "link").symlink_to(file.parent)
    absolute = file.resolve().as_posix()
    for folder in (here, file.parent):
        monkeypatch.chdir(folder)
        for spelled in (
            file,
            Path(os.path.relpath(file)),
            here / "link" / "a.txt",
            here / "link" / ".." / "docs/a.txt",
        ):
            assert name_file(spelled, here / "project") == "docs/a.txt"
            assert name_file(spelled, here / "link") == "a.txt"
            assert name_file(spelled) == name_file(spelled, Path("/")) == absolute
            assert name_file(spelled, here / "elsewhere") == absolute
    assert read_document(file, here / "elsewhere").metadata == {"source": absolute, "root": "/"}
    names = possible_names(here / "link" / "a.txt")
    assert names[0] == absolute
    assert {"docs/a.txt", "a.txt", "project/docs/a.txt"} < set(names)


def test_where_a_document_was_read_from_is_what_it_says_and_nothing_else():
    assert locate_file("docs/a.txt", {"source": "docs/a.txt", "root": "/p"}) == Path("/p/docs/a.txt")
    assert locate_file("/q/a.txt", {"source": "/q/a.txt", "root": "/"}) == Path("/q/a.txt")
    for metadata in ({}, {"root": "/p"}, {"source": "docs/a.txt"}, {"source": "b", "root": "/p"}, {"source": 1}):
        assert locate_file("docs/a.txt", metadata) is None
    assert locate_file("docs/a.txt", {"source": "docs/a.txt", "root": 7}) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such file name")
def test_a_file_name_that_is_no_utf8_gets_a_usable_id(here):
    path = here / os.fsdecode(b"caf\xe9.txt")
    path.write_text("text")
    assert read_document(path, here).id == "caf\\xe9.txt"


def test_byte_order_marks_are_understood(here):
    for encoding in ("utf-8-sig", "utf-16"):
        path = here / f"{encoding}.txt"
        path.write_bytes("grün".encode(encoding))
        assert read_document(path).text == "grün"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.bin", b"\x00\x01\x02", "is binary"),
        ("a.txt", "café".encode("latin-1"), "is not UTF-8 text"),
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\t ", "holds no text"),
        ("a.html", b"<html><script>x()</script></html>", "holds no text"),
        ("a.pdf", b"no pdf at all", "is a PDF that cannot be read"),
        ("a.pdf", b"%PDF-1.4\n%%EOF", "is a PDF that cannot be read"),
    ],
)
def test_unreadable_files_say_why(here, name, data, reason):
    (here / name).write_bytes(data)
    with pytest.raises(UnreadableFileError, match=reason):
        read_document(here / name)


def test_html_nested_too_deep_is_one_unreadable_file(here):
    (here / "a.html").write_text("<div>" * 5000 + "text")
    with pytest.raises(UnreadableFileError, match="is HTML that cannot be read"):
        read_document(here / "a.html")


def test_a_page_that_looks_like_an_address_gives_no_warning(here):
    (here / "a.html").write_text("https://example.org/page")
    assert read_document(here / "a.html").text == "https://example.org/page"


def test_what_cannot_be_entered_or_followed_is_reported(here):
    (here / "loop").mkdir()
    (here / "loop" / "again").symlink_to(here)
    (here / "loop" / "broken").symlink_to("gone")
    os.mkfifo(here / "loop" / "pipe")
    reasons = {}
    for path in find_files(["."]):
        with pytest.raises(UnreadableFileError) as caught:
            read_document(path)
        reasons[path.as_posix()] = str(caught.value)
    assert reasons == {
        "loop/again": "is a folder that is linked to or may not be entered",
        "loop/broken": "No such file or directory",
        "loop/pipe": "is no regular file",
    }


def test_html_becomes_markdown_with_its_title_apart(here):
    (here / "page.html").write_text(
        "<html><head><title>The page</title><style>p {}</style></head>"
        "<body><h2>Cats</h2><p>They <b>purr</b>.</p><script>evil()</script></body></html>"
    )
    document = read_document(here / "page.html")
    assert document.text == "## Cats\n\nThey **purr**."
    assert document.metadata == {"source": document.id, "root": "/", "title": "The page"}
    assert document.format == "markdown"


def test_the_text_layer_of_a_pdf_is_read(here):
    (here / "doc.pdf").write_bytes(make_pdf("Hello from a page"))
    assert read_document(here / "doc.pdf").text == "Hello from a page"


def test_a_pdf_without_text_says_so(here):
    (here / "scan.pdf").write_bytes(make_pdf(""))
    with pytest.raises(UnreadableFileError, match="holds no text \\(a scan\\?\\)"):
        read_document(here / "scan.pdf")


def test_a_missing_extra_is_named(here, monkeypatch):
    (here / "page.html").write_text("<p>x</p>")
    monkeypatch.setitem(sys.modules, "bs4", None)
    with pytest.raises(UnreadableFileError, match=r"pip install 'pplx-vectorstore\[html\]'"):
        read_document(here / "page.html")


def test_chunks_know_their_first_line(here):
    text = "one\r\ntwo\n\nthree\nfour"
    pieces = ["one", "two\n\nthree", "four"]
    chunks = [Chunk(text=piece, start=text.index(piece), end=text.index(piece) + len(piece)) for piece in pieces]
    numbered = number_lines(Path("f.txt"), text, chunks)
    assert [chunk.metadata for chunk in numbered] == [{"line": 1}, {"line": 2}, {"line": 5}]
    assert [(chunk.text, chunk.start) for chunk in numbered] == [(chunk.text, chunk.start) for chunk in chunks]
    for name in ("page.HTML", "paper.pdf"):  # the lines are not those of the file
        assert number_lines(Path(name), text, chunks) == chunks


def make_pdf(text):
    """Write a one-page PDF with a text layer, by hand."""
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
    ]
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    xref = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return out + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, xref)
