"""Text, tables, notebooks and messages; what is no document; and where chunks are."""

import contextlib
import csv
import io
import json
import sys
import time

import pytest
from file_samples import archive, ipynb
from hypothesis import given
from hypothesis import strategies as st

from pplx_vectorstore import Chunk
from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers import (
    FORMATS,
    Content,
    ReaderOptions,
    kind_by_content,
    kind_by_name,
    label_chunks,
    read_content,
)
from pplx_vectorstore.readers.front_matter import split_front_matter


def read(name, data, **options):
    return read_content(name, data if isinstance(data, bytes) else data.encode(), ReaderOptions(**options))


def refuse(name, data, **options):
    with pytest.raises(UnreadableFileError) as caught:
        read(name, data, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "format_"), [*FORMATS.items(), (".rst", "text"), (".tex", "text"), (".txt", "text"), ("", "text")]
)
def test_the_suffix_decides_how_text_is_cut(suffix, format_):
    content = read(f"file{suffix}", "größe\r\nzwei\n")
    assert (content.format, content.first_line) == (format_, 1)
    assert content.text == "größe\r\nzwei\n"  # line ends stay, so that offsets are those of the file


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_understood(encoding):
    content = read("a.txt", "grün".encode(encoding))
    assert (content.text, content.notes) == ("grün", [])
    assert read("a.txt", "grün".encode(encoding), encoding="latin-1").text == "grün"


@pytest.mark.parametrize(
    ("text", "encoding", "guessed"),
    [
        ("Ein Café in der Größe eines Bären.", "latin-1", "cp1252"),
        ("“Quoted” — with dashes", "cp1252", "cp1252"),
        ("Привет, мир! Это текст на русском языке.", "cp1251", "cp1251"),
        ("これは日本語のテキストです。長い文章です。", "shift_jis", "cp932"),
    ],
)
def test_an_encoding_that_is_not_declared_is_guessed_and_said(text, encoding, guessed):
    content = read("a.txt", text.encode(encoding))
    assert content.text == text
    assert content.notes == [f"is not UTF-8, and was read as {guessed}; if it is not, give --encoding"]
    asked = read("a.txt", text.encode(encoding), encoding=encoding)
    assert (asked.text, asked.notes) == (text, [])


def test_damaged_utf8_stays_utf8():
    content = read("a.txt", "größer ".encode() * 100 + b"\xff tail")
    assert content.text == "größer " * 100 + "\ufffd tail"
    assert content.notes == ["1 of its characters are damaged UTF-8, and became \ufffd"]


@pytest.mark.parametrize(
    ("name", "data", "options", "reason"),
    [
        ("a.bin", b"\x00\x01\x02", {}, "is binary"),
        ("a.txt", b"", {}, "holds no text"),
        ("a.txt", b" \n\t ", {}, "holds no text"),
        ("a.html", b"<html><script>x()</script></html>", {}, "holds no text"),
        ("a.txt", b"caf\xe9", {"encoding": "utf-8"}, "is not UTF-8 text (byte 3 is 0xe9)"),
        ("a.txt", b"a\0\0\0b", {}, "is binary"),
        ("a.txt", b"caf\xe9", {"encoding": "rot13"}, "'rot13' is no encoding of text"),
        ("a.txt", b"caf\xe9", {"encoding": "undefined"}, "'undefined' is no encoding of text"),
        ("a.csv", b"\x00", {}, "is binary"),
        ("a.jsonl", b"no\njson", {}, "holds no JSON: line 1 is none"),
        ("a.ipynb", b"{", {}, "is a notebook whose JSON is broken"),
        ("a.ipynb", b"[" * 100_000, {}, "is a notebook whose JSON is broken"),
        ("a.ipynb", b"{}", {}, "is no notebook"),
        ("a.eml", b"just text", {}, "is no e-mail message"),
        ("a.rtf", b"{\\rtf1 x}", {}, "is RTF; save it as .docx"),
        (
            "a.odt",
            archive({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": "<a/>"}),
            {},
            "is an OpenDocument file",
        ),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", {}, "save it as .docx"),
    ],
)
def test_unreadable_files_say_why(name, data, options, reason):
    assert reason in refuse(name, data, **options)


def test_without_the_extra_an_encoding_is_not_guessed(monkeypatch):
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)
    message = refuse("a.txt", "Größe".encode("latin-1"))
    assert "give its --encoding" in message
    assert "pip install 'pplx-vectorstore[documents]'" in message


def test_pictures_within_text_are_left_out():
    assert read("a.md", "A ![cat](data:image/png;base64,iVBORw0KGgo=) here").text == "A ![cat]() here"


@pytest.mark.parametrize(
    ("written", "metadata"),
    [
        ('---\ntitle: "A: b"\ntags: [x, \'y z\', 3]\nyear: 2020\ndraft: true\nshare: 0.5\nnone:\n---\n',
         {"title": "A: b", "tags": ["x", "y z", 3], "year": 2020, "draft": True, "share": 0.5, "none": None}),
        ("---\r\nlist:\r\n  - a\r\n- b # remark\r\n# remark\r\n...\r\n", {"list": ["a", "b"]}),
        ("---\nauthor:\n  name: Ada\n  born: 1815\nx: 1\n---\n", {"author": {"name": "Ada", "born": 1815}, "x": 1}),
        ("---\na:\n    b:\n      c: [1]\n      d:\n      - x\n    e: {f: 1, g: 'h, i'}\n---\n",
         {"a": {"b": {"c": [1], "d": ["x"]}, "e": {"f": 1, "g": "h, i"}}}),
        ("---\na:\n   b: 1\n  c: 2\nd: {e}\nf: {g: {h: 1}}\ni: {}\n---\n",
         {"a": "   b: 1\n  c: 2", "d": "{e}", "f": "{g: {h: 1}}", "i": "{}"}),
        ("---\ntext: |\n  one\n  two\n---\n", {"text": "|\n  one\n  two"}),
        ('+++\ntitle = "T"\ndate = 2020-01-01\nn = 99999999999999999999\n[a]\nb = 1\n+++\n',
         {"title": "T", "date": "2020-01-01", "n": "99999999999999999999", "a": {"b": 1}}),
        ("+++\na = [{b = 2020-01-01, c = nan}]\n+++\n", {"a": [{"b": "2020-01-01", "c": "nan"}]}),
    ],
)  # fmt: skip
def test_front_matter_is_metadata(written, metadata):
    content = read("a.md", written + "# Heading\n")
    assert content.metadata == metadata
    assert content.text == "# Heading\n"
    assert content.first_line == written.count("\n") + 1


@pytest.mark.parametrize(
    "text", ["---\nNo front matter, but a line.\n---\n", "---\nopen: 1\n", "+++\nbad\n+++\n", "a\n---\nb: 1\n---\n"]
)
def test_what_only_looks_like_front_matter_is_text(text):
    assert split_front_matter(text) == (text, 1, {})
    assert read("a.txt", "---\na: 1\n---\n").text == "---\na: 1\n---\n"


@given(st.text(alphabet="ab:-[]'\",# \n\t0.{}|&*\\", max_size=60) | st.text(alphabet="a: \n{,}'", max_size=60))
def test_any_front_matter_is_stored_or_stays(inside):
    text = f"---\n{inside}\n---\nrest"
    rest, first_line, metadata = split_front_matter(text)
    assert text.endswith(rest)
    assert text.split("\n")[first_line - 1 :] == rest.split("\n")
    json.dumps(metadata, allow_nan=False)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_table_is_records_with_their_header(separator):
    rows = [["name", "said", "n"], ["Ada", '"It, is; a | b\t"', "1"], ["", "", ""], ["Alan", '"two\nlines"', "2"]]
    content = read("a.csv", "\r\n".join(separator.join(row) for row in rows))
    assert content.text == "name: Ada\nsaid: It, is; a | b\nn: 1\n\nname: Alan\nsaid: two lines\nn: 2"
    assert content.anchors == [(0, {"row": 2}), (content.text.index("name: Alan"), {"row": 4})]


def test_tables_without_header_and_of_uneven_rows():
    assert read("a.tsv", "1\t2\n3\t4\t5").text == "A: 1\nB: 2\n\nA: 3\nB: 4\nC: 5"
    assert read("a.csv", "name,born\n").text == "name, born"
    assert read("a.csv", "one\ntwo words\n").text == "one: two words"
    assert "Größe: 1" in read("a.csv", "Größe;x\n1;2".encode("cp1252")).text
    assert read("a.csv", 'a,b\n1,"open').text == "a: 1\nb: open"


def test_the_text_of_a_table_may_be_in_a_column():
    data = 'id,body\n1,"First.\n\nSecond."\n2,Third.\n'
    content = read("a.csv", data, text_columns=("body",))
    assert content.text == "First.\nSecond.\n\nThird."
    assert [values["row"] for _, values in content.anchors] == [2, 3]
    assert "has no column text to take the text from; it has: id, body" in refuse("a.csv", data, text_columns=("text",))
    lines = '{"id": 1, "body": {"text": "One."}}\n{"id": 2}'
    assert read("a.jsonl", lines, text_columns=("body.text",)).text == "One."


def test_json_lines():
    content = read(
        "a.jsonl", '{"a": {"b": 1}, "t": "x\\ny", "l": [1, "z"]}\n\nbad\n[{"c": null}, {"c": true}]\n"text"\n'
    )
    assert content.text == "a.b: 1\nt: x y\nl: 1, z\n\nc: true\n\nvalue: text"
    assert [values["row"] for _, values in content.anchors] == [1, 4, 5]
    assert content.losses == ["line 3 is no JSON"]


def test_notebooks_of_both_formats():
    picture = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo", "text/html": "<b>"}}
    table = {"output_type": "execute_result", "data": {"text/html": "<table>", "text/plain": ["a  b\n", "1  2"]}}
    error = {"output_type": "error", "ename": "ValueError", "evalue": "bad", "traceback": ["\x1b[31m"]}
    printed = {"output_type": "stream", "text": "\x1b[1mhello\x1b[0m\n"}
    new = ipynb(
        {"cell_type": "markdown", "source": ["# Title\n", "text ![p](data:image/png;base64,AA==)"]},
        {"cell_type": "code", "source": "print(1)", "outputs": [printed, picture, table, error]},
        {"cell_type": "code", "source": "", "outputs": []},
        {"cell_type": "raw", "source": "raw"},
    )
    content = read("a.ipynb", new)
    assert content.text == (
        "# Title\ntext ![p]()\n\n```python\nprint(1)\n```\n\n```\nhello\na  b\n1  2\nValueError: bad\n```\n\nraw"
    )
    assert [values["cell"] for _, values in content.anchors] == [1, 2, 4]
    old = ipynb(
        {"cell_type": "heading", "level": 2, "source": "Part"},
        {"cell_type": "code", "input": "1 + 1", "outputs": [{"output_type": "pyout", "text": ["2"]}]},
        version=3,
    )
    assert read("a.ipynb", old).text == "## Part\n\n```python\n1 + 1\n```\n\n```\n2\n```"
    long = ipynb({"cell_type": "code", "source": "x", "outputs": [{"output_type": "stream", "text": "y" * 5000}]})
    assert read("a.ipynb", long).notes == ["has long outputs, which were shortened: of cells 1"]


def test_messages():
    data = (
        "From: Ada <ada@example.org>\nTo: Alan\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nDate: Fri, 1 Jan 2021 00:00 +0000"
        '\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="B"\n\n--B\nContent-Type: multipart/alternative; '
        'boundary="C"\n\n--C\nContent-Type: text/plain; charset=latin-1\nContent-Transfer-Encoding: quoted-printable\n'
        "\nSch=F6n.\n--C\nContent-Type: text/html\n\n<p>Pretty.\n--C--\n--B\nContent-Type: application/pdf\n"
        'Content-Disposition: attachment; filename="a.pdf"\n\nx\n--B--\n'
    )
    content = read("a.eml", data)
    assert content.text.startswith("Grüße\n\nFrom: Ada <ada@example.org>\nTo: Alan\nDate: Fri, 1 Jan 2021")
    assert content.text.endswith("\n\nSchön.")
    assert (content.format, content.anchors) == ("text", [(0, {"heading": ["Grüße"]})])
    assert content.metadata == {"title": "Grüße"}
    assert content.notes == ["has attachments, which are not read: a.pdf"]
    page = "From: x\nContent-Type: text/html; charset=utf-8\n\n<p>Only <b>HTML</b>"
    assert read("a.eml", page).text == "From: x\n\nOnly **HTML**"


def test_plain_messages_have_no_headings_but_their_subject():
    content = read("a.eml", "From: x\nSubject: Cats\n\nHello,\nthey sleep.\n-- \nAda\n\n# no heading")
    assert (content.format, content.text) == (
        "text",
        "Cats\n\nFrom: x\n\nHello,\nthey sleep.\n-- \nAda\n\n# no heading",
    )
    assert labels(content, "Cats", "Ada") == [{"heading": ["Cats"]}] * 2


@pytest.mark.parametrize(
    "header",
    ['From: "', "From: a@[", "From: " + "(" * 2000, "From: a\nTo: " + '"A B" <a@b.cc>, ' * 8000,
     *(f"From: a\nSubject: =?{name}?q?x=FC?=\nContent-Type: text/plain; charset={name}"
       for name in ("idna", "undefined", "punycode", "rot13", "zlib", "a\0b", "unknown"))],
    ids=range(11),
)  # fmt: skip
def test_messages_with_odd_headers_are_read(header):
    started = time.process_time()
    assert read("a.eml", f"{header}\n\nswordfish").text.endswith("\n\nswordfish")
    assert time.process_time() - started < 2


def test_messages_nested_without_end_are_refused():
    parts = "".join(f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(2000))
    assert "parts within parts" in refuse("a.eml", f"From: a\n{parts}")
    assert "parts within parts" in refuse("a.eml", "From: a\n" + "Content-Type: message/rfc822\n\n" * 2000)


def test_headers_may_be_utf8_as_it_is():
    assert read("a.eml", "From: Jörg\nSubject: grün\n\nx").text == "grün\n\nFrom: Jörg\n\nx"


@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_message_is_read_or_refused(junk, at):
    data = (
        b'From: Ada <a@b.cc>\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nContent-Type: multipart/mixed; boundary="B"\n\n'
        b"--B\nContent-Type: text/plain; charset=latin-1\nContent-Transfer-Encoding: base64\n\nU2No9m4=\n--B\n"
        b'Content-Type: application/pdf\nContent-Disposition: attachment; filename="a.pdf"\n\nx\n--B--\n'
    )
    with contextlib.suppress(UnreadableFileError):
        read("a.eml", data[:at] + junk + data[at:])


@pytest.mark.parametrize(
    ("written", "text", "metadata"),
    [
        ("Warning: never mix bleach and ammonia\n", "Warning: never mix bleach and ammonia\n\n",
         {"Warning": "never mix bleach and ammonia"}),
        ("title: Cats\nNota bene: hot\n", "Nota bene: hot\n\n", {"title": "Cats", "Nota bene": "hot"}),
        ("tags: [a, b]\n# It must not be mixed with others\n", "It must not be mixed with others\n\n",
         {"tags": ["a", "b"]}),
        ("Warning: 漂白剤とアンモニアを混ぜないでください\n", "Warning: 漂白剤とアンモニアを混ぜないでください\n\n",
         {"Warning": "漂白剤とアンモニアを混ぜないでください"}),
        (f"x: {'y' * 600}\nz: 1\n", f"x: {'y' * 600}\n\n", {"z": 1}),
    ],
)  # fmt: skip
def test_a_front_matter_that_may_be_text_stays_in_the_text(written, text, metadata):
    content = read("a.md", f"---\n{written}---\n# Heading\n")
    assert content.text == f"{text}# Heading\n"
    assert content.metadata == metadata
    at = content.text.index("# Heading")
    assert labels(content, "# Heading")[0] == {"heading": ["Heading"], "line": 3 + written.count("\n")}, at
    assert read("a.md", "---\nA: x\nA: y\n---\n").text == "---\nA: x\nA: y\n---\n"


def test_front_matter_is_nested_within_bounds():
    deep = "".join(f"{' ' * level}k:\n" for level in range(300)) + " " * 300 + "k: 1\n"
    value, levels = read("a.md", f"---\n{deep}---\ntext").metadata, 0
    while isinstance(value, dict) and value:
        value, levels = value["k"], levels + 1
    assert levels <= 8
    assert read("a.md", f"+++\n{'a.' * 20}a = 1\n+++\ntext").metadata["a"]["a"]
    dotted = f"+++\n{'a.' * 20_000}a = 1\n+++\ntext"
    assert read("a.md", dotted).text == dotted
    said = "warning:\n  never: mix these two with one another\n"
    assert "never: mix these two with one another" in read("a.md", f"---\n{said}---\ntext").text


def test_front_matter_is_bounded():
    content = read("a.md", "---\n" + "".join(f"k{n}: {'v' * 100}\n" for n in range(300)) + "---\ntext")
    assert sum(len(key) + len(value) for key, value in content.metadata.items()) <= 4000
    assert all((f"k{n}: v" in content.text) != (f"k{n}" in content.metadata) for n in range(300))


def test_what_stands_above_a_table_is_no_header():
    rows = "Sales report: 2024\n\nname,city,n\nAda,London,1\nAlan,,2\n"
    content = read("a.csv", rows)
    assert content.text == "Sales report: 2024\n\nname: Ada\ncity: London\nn: 1\n\nname: Alan\nn: 2"
    assert [values["row"] for _, values in content.anchors] == [1, 4, 5]
    assert read("a.csv", rows.replace("2024", "2024,,")).text == content.text
    assert read("a.csv", rows, text_columns=("city",)).text == "London"


def test_a_header_need_not_name_all_columns():
    assert read("a.csv", ",x,y\nAda,1,2\nAlan,3,4").text == "A: Ada\nx: 1\ny: 2\n\nA: Alan\nx: 3\ny: 4"
    assert read("a.csv", "x,y\na,b,c,d\ne,f,g,h").text == "x: a\ny: b\nC: c\nD: d\n\nx: e\ny: f\nC: g\nD: h"


def test_a_quote_in_a_table_with_tabs_may_be_an_inch():
    assert read("a.tsv", 'n\tsize\n1\t"half inch\n2\t3" pipe\n3\t"half').text == (
        'n: 1\nsize: "half inch\n\nn: 2\nsize: 3" pipe\n\nn: 3\nsize: "half'
    )


def test_a_table_may_have_line_ends_of_old_computers():
    assert read("a.csv", "x;y\r1;2\r3;4").text == "x: 1\ny: 2\n\nx: 3\ny: 4"


def test_names_of_columns_are_not_repeated_without_end():
    assert "repeats the same without end" in refuse("a.csv", f"{'y' * 300},b\n" + "1,2\n" * 100_000)
    assert read("a.csv", f"{'y' * 400}\nx").text == f"A: {'y' * 400}\n\nA: x"  # a paragraph names no column
    nested = '{"' + "y" * 100_000 + '": [' + ", ".join(['{"x": 1}'] * 1000) + "]}"
    assert len(read("a.jsonl", nested).text) < 1_000_000


def test_the_name_of_a_language_is_no_text():
    notebook = json.loads(ipynb(*[{"cell_type": "code", "source": "x"}] * 3))
    notebook["metadata"] = {"language_info": {"name": "y" * 1000}}
    assert "y" not in read("a.ipynb", json.dumps(notebook)).text.replace("python", "")


def test_what_is_open_in_a_cell_of_a_notebook_ends_with_it():
    content = read("a.ipynb", ipynb(*({"cell_type": "markdown", "source": s} for s in ("# A\n<!-- open", "# B", "c"))))
    assert [labels["heading"] for labels in labels(content, "# A", "# B", "c")] == [["A"], ["B"], ["B"]]


def test_headings_in_lists_and_quotes_hold_there():
    content = read("a.html", "<h1>A</h1><ul><li><h3>One</h3><p>x1</li><li><h2>Two</h2><p>x2</li></ul><p>after")
    assert [one["heading"] for one in labels(content, "x1", "x2", "after")] == [["A", "One"], ["A", "Two"], ["A"]]


def test_lines_may_end_as_they_do_on_old_computers():
    assert [one["line"] for one in labels(read("a.txt", "one\rtwo\r\nthree\nfour"), "two", "three", "four")] == [
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("logo.SVG", "picture"), ("app.min.js", "minified"), ("app.js.map", "minified"), ("yarn.lock", "lock file"),
        ("package-lock.json", "lock file"), ("poetry.lock", "lock file"), ("id_rsa", "key or certificate"),
        ("server.pem", "key or certificate"), ("a.sqlite", "data"), ("m.safetensors", "data"), ("a.tar.gz", "archive"),
        ("x.pyc", "program"), ("f.woff2", "font"), ("film.mp4", "sound or film"),
        ("notes.md", None), ("lock", None), ("Makefile", None), ("a.pdf", None), ("min.js", None), ("data", None),
        ("www.example.com", None), ("example.com", None), ("www.example.ai", None),
    ],
)  # fmt: skip
def test_what_is_no_document_by_its_name(name, kind):
    assert kind_by_name(name) == kind


def test_what_is_no_document_by_its_content():
    assert kind_by_content("notes.txt", b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl") == "key or certificate"
    assert kind_by_content("tls.md", b"Write -----BEGIN PRIVATE KEY----- first") is None
    key = b"-----BEGIN PRIVATE KEY-----\n" + b"b3Bl" * 100 + b"\n-----END PRIVATE KEY-----\n"
    for before in (
        b"Bag Attributes\n    friendlyName: x\nKey Attributes: <No Attributes>\n",
        b"# mine\n",
        b"\xef\xbb\xbf",
    ):
        assert kind_by_content("notes.txt", before + key) == "key or certificate"
    assert kind_by_content("notes.txt", key.decode().encode("utf-16")) == "key or certificate"
    assert kind_by_content("site.txt", key.replace(b"PRIVATE KEY", b"CERTIFICATE")) == "key or certificate"
    assert kind_by_content("tls.md", b"Words about keys. " * 100 + b"\n" + key) is None
    svg = b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>'
    assert kind_by_content("logo.xml", svg) == "picture"
    assert kind_by_content("page.xml", b"<page><svg/></page>") is None
    assert kind_by_content("a.js", b"var a=function(b){return b};" * 500) == "minified"
    assert kind_by_content("a.js", b"var a = 1;\n" * 2000) is None
    assert kind_by_content("a.txt", b"Words of prose without an end of line. " * 500) is None


def chunks_of(text, *pieces):
    found = []
    for piece in pieces:
        start = text.index(piece, found[-1].end if found else 0)
        found.append(Chunk(text=piece, start=start, end=start + len(piece)))
    return found


def labels(content, *pieces):
    return [chunk.metadata for chunk in label_chunks(content, chunks_of(content.text, *pieces))]


def test_chunks_know_their_first_line():
    text = "one\r\ntwo\n\nthree\nfour"
    pieces = ("one", "two\n\nthree", "four")
    assert labels(Content(text=text, first_line=1), *pieces) == [{"line": 1}, {"line": 2}, {"line": 5}]
    assert labels(Content(text=text, first_line=4), *pieces)[0] == {"line": 4}
    assert labels(Content(text=text), *pieces) == [{}, {}, {}]


def test_chunks_know_where_they_begin_and_end():
    content = Content(text="aa\n\nbb\n\ncc", anchors=[(0, {"page": 1}), (4, {"page": 2}), (8, {"page": 4})])
    assert labels(content, "aa", "bb\n\ncc") == [{"page": 1, "page_end": 1}, {"page": 2, "page_end": 4}]
    sheets = Content(
        text="aa\n\nbb\n\ncc",
        anchors=[(0, {"sheet": "S", "row": 2}), (4, {"sheet": "S", "row": 3}), (8, {"sheet": "T", "row": 1})],
    )
    assert labels(sheets, "aa\n\nbb", "cc") == [
        {"sheet": "S", "row": 2, "row_end": 3},
        {"sheet": "T", "row": 1, "row_end": 1},
    ]
    assert labels(sheets, "bb\n\ncc") == [{"sheet": "S", "row": 3, "row_end": 3}]


def test_chunks_know_the_headings_above():
    text = (
        "before\n\n# A **b** `c`\n\ntext\n\n## B [l](x)\r\nmore\n\n> # quoted\n\nSet\u2028x\n===\n\n```\n# code\n```\n"
        "\n### C\n\x0b# D\nend"
    )
    content = Content(text=text, format="markdown")
    found = labels(content, "before", "# A **b**", "text", "more", "# quoted", "# code", "end")
    assert found == [
        {},
        {"heading": ["A b c"]},
        {"heading": ["A b c"]},
        {"heading": ["A b c", "B l"]},
        {"heading": ["A b c", "B l", "quoted"]},
        {"heading": ["Set x"]},
        {"heading": ["Set x", "C"]},
    ]
    assert labels(Content(text="# no Markdown"), "# no Markdown") == [{}]


CELLS = st.text(alphabet='ab,;|\t"\n é', max_size=8).map(lambda text: f"w{text}w")


@given(
    st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=8),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_every_cell_of_a_table_is_in_its_row(rows, separator, encoding):
    written = io.StringIO()
    writer = csv.writer(written, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerows([["first", "second", "third"], *rows])
    content = read("a.csv", written.getvalue().encode(encoding))
    starts = [at for at, _ in content.anchors]
    assert [values["row"] for _, values in content.anchors] == list(range(2, len(rows) + 2))
    for row, start, stop in zip(rows, starts, [*starts[1:], None], strict=True):
        record = [
            f"{name}: {' '.join(cell.split())}" for name, cell in zip(("first", "second", "third"), row, strict=True)
        ]
        assert content.text[start:stop].strip().splitlines() == record
