import pytest
from file_samples import PICTURE, docx, epub, ipynb, paragraph, pdf, pptx, shape, shown, xlsx

from pplx_vectorstore import Chunker
from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.file_reading import Reading, make_document, read_file
from pplx_vectorstore.readers import Content, ReaderOptions, kinds
from pplx_vectorstore.walking import walk


@pytest.fixture(scope="module")
def chunker(minilm):
    return Chunker(minilm.tokenizer.tokenizer, 24)


def reading_of(folder, chunker, **options):
    found = walk([folder])
    roots = dict.fromkeys((file.path for file in found.files), folder)
    reading = Reading(found, roots, chunker, ReaderOptions(**options))
    return {document.id: document for document in reading}, found, reading


def test_a_folder_with_one_of_each_format_good_broken_and_hostile(tmp_path, chunker):
    heading = "# Cats\n\n## Sleep\n\n"
    files = {
        "a.md": f"---\nlang: en\n---\n{heading}Cats sleep.".encode(),
        "a.html": b"<title>T</title><h1>Cats</h1><h2>Sleep</h2><p>Cats sleep.",
        "a.pdf": pdf(shown("Cats purr."), PICTURE, shown("Cats sleep.")),
        "a.docx": docx(paragraph("Cats sleep.")),
        "a.pptx": pptx([shape("Cats", "title"), shape("Cats sleep.") + shape("Sleep", "title")]),
        "a.xlsx": xlsx({"Facts": {"A1": "animal", "B1": "does", "A2": "Cats", "B2": "sleep."}}),
        "a.epub": epub({"one": "<h1>Cats</h1><h2>Sleep</h2><p>Cats sleep."}),
        "a.ipynb": ipynb(
            {"cell_type": "markdown", "source": "# Cats"}, {"cell_type": "markdown", "source": "Cats sleep."}
        ),
        "a.csv": b"animal;does\nDogs;bark\nCats;sleep.\n",
        "a.jsonl": b'{"x": 1}\n{"says": "Cats sleep."}\n',
        "a.eml": b"From: Ada\nSubject: Cats\n\nCats sleep.\n",
        "a.py": b"# Cats sleep.\nx = 1\n",
        "broken.docx": b"PK\x03\x04 nothing",
        "broken.pdf": b"%PDF-1.4 nothing",
        "broken.xlsx": b"nothing",
        "latin.txt": "Die Katze schläft in der Höhle.".encode("latin-1"),
        "scan.pdf": pdf(PICTURE),
        "empty.md": b"",
        "binary.txt": b"\0\1\2",
        "app.min.js": b"x",
        "app.js": b"var a=function(b){return b};" * 500,
        "secret.txt": b"-----BEGIN PRIVATE KEY-----\nx",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    documents, found, reading = reading_of(tmp_path, chunker)
    assert set(documents) == {*(name for name in files if name.startswith("a.")), "latin.txt"}
    assert {path.name: reason.split(" (")[0].split(":")[0] for path, reason in found.skipped} == {
        "binary.txt": "is binary",
        "broken.docx": "is a Word document that cannot be read",
        "broken.pdf": "is a PDF that cannot be read",
        "broken.xlsx": "is an Excel workbook that cannot be read",
        "scan.pdf": "holds no text",
    }
    assert {reason: [path.name for path in paths] for reason, paths in found.left_out.items()} == {
        "minified": ["app.min.js", "app.js"],
        "empty": ["empty.md"],
        "key or certificate": ["secret.txt"],
    }
    assert [(path.name, note) for path, note in reading.notes] == [
        ("latin.txt", "is not UTF-8, and was read as cp1252; if it is not, give --encoding")
    ]
    assert [(path.name, loss) for path, loss in reading.losses] == [("a.pdf", "page 2 holds no text (scans?)")]
    assert reading.n_read == len(documents)
    assert reading.bytes_read == reading.bytes == sum(len(data) for name, data in files.items() if name != "app.min.js")

    def place(name):
        (chunk,) = (chunk for chunk in documents[name].chunks if "sleep." in chunk.text)
        return dict(chunk.metadata)

    assert place("a.md") == {"heading": ["Cats"], "line": 4}  # those above its beginning
    assert place("a.pdf")["page_end"] == 3
    assert place("a.pptx")["slide_end"] == 2
    assert place("a.xlsx") == {"sheet": "Facts", "row": 2, "row_end": 2, "heading": ["Facts"]}
    assert place("a.ipynb")["cell_end"] == 2
    assert place("a.csv")["row_end"] == 3
    assert place("a.jsonl")["row_end"] == 2
    assert place("a.py") == {"line": 1}
    assert dict(documents["a.md"].metadata) == {"lang": "en", "source": "a.md", "root": tmp_path.resolve().as_posix()}
    assert documents["a.html"].metadata["title"] == "T"
    for document in documents.values():
        assert all(chunk.start is not None and chunk.end is not None for chunk in document.chunks)


def test_every_chunk_is_where_it_says(tmp_path, chunker):
    words = [f"Page {number} is about the number {number} and says it in some more words." for number in range(1, 9)]
    (tmp_path / "a.pdf").write_bytes(pdf(*(shown(line, "", line) for line in words)))
    parts = [
        f"# Part {part}\n\n" + "".join(f"## Section {part}.{n}\n\nIt is {part}.{n} here.\n\n" for n in range(3))
        for part in range(3)
    ]
    text = "".join(parts)
    (tmp_path / "a.md").write_text(text)
    rows = "".join(f"{number},The value of row {number + 1} is {number}\n" for number in range(1, 60))
    (tmp_path / "a.csv").write_text("id,text\n" + rows)
    documents, _, _ = reading_of(tmp_path, chunker)
    for chunk in documents["a.pdf"].chunks:
        pages = [number for number in range(1, 9) if f"number {number}" in chunk.text]
        assert (chunk.metadata["page"], chunk.metadata["page_end"]) == (pages[0], pages[-1])
    assert len(documents["a.md"].chunks) > 3
    for chunk in documents["a.md"].chunks:
        first = chunk.text.splitlines()[0].lstrip("# ")
        assert chunk.metadata["heading"][-1] in (first, f"Section {first.split()[2]}" if "It is" in first else first)
        assert text.splitlines()[chunk.metadata["line"] - 1] == chunk.text.splitlines()[0]
    assert len(documents["a.csv"].chunks) > 10
    for chunk in documents["a.csv"].chunks:
        rows_in = [int(part.split(" is ")[0]) for part in chunk.text.split("The value of row ")[1:]]
        assert (chunk.metadata["row"], chunk.metadata["row_end"]) == (rows_in[0], rows_in[-1])
        assert "text: " in chunk.text


def test_metadata_that_no_store_could_hold_does_not_end_the_run(tmp_path, chunker):
    (tmp_path / "a.md").write_text('---\ntitle: "\\ud800x"\nsource: forged\nroot: /\n---\ntext')
    documents, _, _ = reading_of(tmp_path, chunker)
    metadata = documents["a.md"].metadata
    assert (metadata["title"], metadata["source"], metadata["root"]) == (
        "\ufffdx",
        "a.md",
        tmp_path.resolve().as_posix(),
    )
    assert make_document(tmp_path / "a.md", None, Content(text="x"), chunker).metadata["root"] == "/"


def test_a_file_that_was_chosen_is_read_whatever_it_holds(tmp_path):
    key = tmp_path / "key.txt"
    key.write_text("-----BEGIN PRIVATE KEY-----\nx")
    assert read_file(key, is_chosen=False) == "key or certificate"
    assert read_file(key).text.startswith("-----BEGIN")
    with pytest.raises(UnreadableFileError, match="No such file"):
        read_file(tmp_path / "gone.txt")


def test_whatever_a_file_does_to_its_reader_the_others_are_read(tmp_path, chunker, monkeypatch, caplog):
    def fail(data, options):
        raise error

    monkeypatch.setitem(kinds.READERS, ".odd", fail)
    (tmp_path / "a.odd").write_text("x")
    (tmp_path / "b.txt").write_text("Cats sleep.")
    error = IndexError("list\nindex out of range")
    with caplog.at_level("DEBUG"):
        documents, found, _ = reading_of(tmp_path, chunker)
    assert list(documents) == ["b.txt"]
    assert found.skipped == [(tmp_path / "a.odd", "could not be read (unexpected IndexError: list index out of range)")]
    assert "Traceback" in caplog.text
    for error in (KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(error)):
            reading_of(tmp_path, chunker)


def test_chunks_of_sheets_and_slides_are_of_one(tmp_path, chunker):
    people = {"A1": "name", "B1": "n"} | {f"A{n}": f"p{n}" for n in range(2, 4)}
    prices = {"A1": "item", "B1": "n"} | {f"A{n}": f"i{n}" for n in range(2, 4)}
    (tmp_path / "a.xlsx").write_bytes(xlsx({"People": people, "Prices": prices}))
    (tmp_path / "a.pptx").write_bytes(pptx([shape("Cats", "title") + shape("One."), shape("Two.")]))
    documents, _, _ = reading_of(tmp_path, chunker)
    for chunk in documents["a.xlsx"].chunks:
        assert chunk.metadata["sheet"] == chunk.metadata["heading"][0] == ("People" if "p" in chunk.text else "Prices")
    assert [(dict(chunk.metadata), chunk.text) for chunk in documents["a.pptx"].chunks] == [
        ({"slide": 1, "slide_end": 1, "heading": ["Cats"]}, "# Cats\n\nOne."),
        ({"slide": 2, "slide_end": 2}, "Two."),
    ]


def test_a_front_matter_does_not_say_where_a_chunk_is(tmp_path, chunker):
    (tmp_path / "a.md").write_text("---\npage: 3\nsource: web\nlang: en\n---\nCats sleep.")
    documents, _, _ = reading_of(tmp_path, chunker)
    assert dict(documents["a.md"].metadata) == {
        "front_matter_page": 3,
        "front_matter_source": "web",
        "lang": "en",
        "source": "a.md",
        "root": tmp_path.resolve().as_posix(),
    }
