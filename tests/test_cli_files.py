"""The command line's reading of files: what is taken, what is said of the rest, and what an index remembers."""

import json
import re
from dataclasses import replace

import pytest
from file_samples import BILLION_LAUGHS, PICTURE, docx, epub, ipynb, paragraph, pdf, pptx, shape, shown, styles, xlsx
from pdf_encryption import Encryption
from typer.testing import CliRunner

from pplx_vectorstore import VectorStore
from pplx_vectorstore.cli import app
from pplx_vectorstore.cli import index as index_command
from pplx_vectorstore.cli.stores import connect
from pplx_vectorstore.engines.calls import BlockingCalls
from pplx_vectorstore.file_settings import read_settings, record_settings
from pplx_vectorstore.file_updates import FileUpdate

MODEL = ["--model", "all-minilm-l6-v2"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done

    return run


@pytest.fixture
def corpus(run, tmp_path):
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "cats.md").write_text("# Cats\n\nCats purr when they are happy.\n")
    (docs / "sub" / "stars.txt").write_text("The sun is a star.\n")
    return run


def ids(run, *arguments):
    return [one["id"] for one in json.loads(run("documents", "--json", *arguments).stdout)]


def test_what_is_taken(corpus, tmp_path):
    docs = tmp_path / "docs"
    for name in ("logo.svg", ".hidden.md", "out.log", "sub/draft.md"):
        (docs / name).write_text(f"Text of {name}.")
    (docs / ".gitignore").write_text("*.log\n")
    (docs / "large.txt").write_text("Large. " * 1000)
    plain = corpus("index", "docs", *MODEL, "--max-file-size", "5000")
    assert plain.stderr == (
        "left out: 2 hidden, 1 picture, 1 ignored (--verbose names them)\n"
        "skipped docs/large.txt: is larger than 5,000 bytes; name it, or give --max-file-size\n"
    )
    assert ids(corpus) == ["docs/cats.md", "docs/sub/draft.md", "docs/sub/stars.txt"]
    options = ["--no-ignore", "--hidden", "--exclude", "draft*", "--max-file-size", "5000"]
    more = corpus("index", "docs", *options, "--verbose", "--store", "other", *MODEL)
    assert "left out docs/sub/draft.md: excluded" in more.stderr
    assert ids(corpus, "--store", "other") == [
        "docs/.gitignore", "docs/.hidden.md", "docs/cats.md", "docs/out.log", "docs/sub/stars.txt",
    ]  # fmt: skip
    corpus("index", "docs", "--include", "*.svg", "--store", "third", *MODEL)
    assert ids(corpus, "--store", "third") == ["docs/logo.svg"]
    corpus(
        "index", "docs/logo.svg", "docs/large.txt", "docs/out.log", "--max-file-size", "1", "--store", "fourth", *MODEL
    )
    assert len(ids(corpus, "--store", "fourth")) == 3
    nothing = corpus("index", "docs", "--include", "*.none", *MODEL, code=1)
    assert "there is no file to read" in nothing.stderr
    assert "not included" in nothing.stderr


def test_what_could_not_be_read_is_said_and_fails_where_that_is_asked_for(corpus, tmp_path):
    docs = tmp_path / "docs"
    for number in range(12):
        (docs / f"broken{number}.docx").write_bytes(b"nothing")
    (docs / "scan.pdf").write_bytes(pdf(shown("A page."), PICTURE))
    (docs / "latin.txt").write_bytes("Die Höhle der Bären.".encode("latin-1"))
    done = corpus("index", "docs", *MODEL)
    assert re.search(r"skipped docs/broken0.docx and 11 more: is a Word document that cannot be read", done.stderr)
    assert "read in part docs/scan.pdf: page 2 holds no text (scans?)" in done.stderr
    assert "note docs/latin.txt: is not UTF-8, and was read as cp1252" in done.stderr
    assert corpus("index", "docs", "--verbose").stderr.count("skipped docs/broken") == 12
    strict = corpus("index", "docs", "--strict", code=1)
    assert strict.stderr.splitlines()[-1] == "error: some files, or parts of them, could not be read (--strict)"
    hits = json.loads(corpus("search", "a page", "--json").stdout)
    (page,) = (hit["metadata"] for hit in hits if hit["document_id"] == "docs/scan.pdf")
    assert (page["page"], page["page_end"]) == (1, 1)
    assert "docs/scan.pdf (page 1): A page." in corpus("search", "a page").stdout
    (cats,) = (hit for hit in hits if hit["document_id"] == "docs/cats.md")
    assert cats["metadata"]["heading"] == ["Cats"]
    filtered = json.loads(corpus("search", "x", "--filter", '{"page": {"$lte": 1}}', "--json").stdout)
    assert [hit["document_id"] for hit in filtered] == ["docs/scan.pdf"]


def test_a_password_from_the_environment(corpus, tmp_path, monkeypatch):
    (tmp_path / "docs" / "locked.pdf").write_bytes(pdf(shown("Inside"), encryption=Encryption("aes", user=b"s3cret")))
    assert "give it with --password" in corpus("index", "docs", *MODEL).stderr
    monkeypatch.setenv("PPLX_VECTORSTORE_PASSWORD", "s3cret")
    done = corpus("index", "docs")
    assert "1 document" in done.stdout
    assert "s3cret" not in done.output + corpus("info").stdout


def test_the_index_is_found_upwards_and_ids_are_the_same_from_everywhere(corpus, tmp_path, monkeypatch):
    corpus("index", ".", *MODEL)
    monkeypatch.chdir(tmp_path / "docs" / "sub")
    assert corpus("index", ".", "--prune").stdout == (
        "nothing to embed; 1 unchanged\n../../.pplx-vectorstore now holds 2 chunks\n"
    )
    (tmp_path / "docs" / "sub" / "new.txt").write_text("New.")
    corpus("index", "..")
    assert ids(corpus) == ["docs/cats.md", "docs/sub/new.txt", "docs/sub/stars.txt"]
    assert not (tmp_path / "docs" / "sub" / ".pplx-vectorstore").exists()
    (tmp_path / "docs" / "sub" / "new.txt").unlink()
    (tmp_path / "docs" / "cats.md").unlink()
    assert "1 deleted" in corpus("index", ".", "--prune").stdout  # below this folder, and nothing else
    assert ids(corpus) == ["docs/cats.md", "docs/sub/stars.txt"]
    assert "stars.txt" in corpus("search", "sun", "-k", "1").stdout


def test_a_root_is_remembered(corpus, tmp_path):
    corpus("index", "docs", "--root", "docs", *MODEL)
    (tmp_path / "docs" / "new.txt").write_text("New.")
    corpus("index", "docs")
    assert ids(corpus) == ["cats.md", "new.txt", "sub/stars.txt"]
    assert json.loads(corpus("info", "--json").stdout)["root"] == "docs"


@pytest.mark.parametrize("where", ["folder", "server"])
def test_options_are_remembered_and_others_ask_for_a_rebuild(corpus, tmp_path, server, where):
    on = ["--store", server.url] if where == "server" else []
    (tmp_path / "docs" / "table.csv").write_text("id,text\n1,Cats sleep.\n")
    options = ["--chunk-tokens", "32", "--text-column", "text", "--encoding", "latin-1"]
    corpus("index", "docs", *MODEL, *options, *on)
    facts = json.loads(corpus("info", "--json", *on).stdout)
    assert (facts["chunk_tokens"], facts["text_columns"], facts["encoding"]) == (32, ["text"], "iso8859-1")
    assert re.search(r"text columns +text\n", corpus("info", *on).stdout)
    for again in ([], options):
        assert corpus("index", "docs", *again, *on).stdout.startswith("nothing to embed; 3 unchanged")
    refused = corpus("index", "docs", "--chunk-tokens", "64", *on, code=1)
    assert (
        "the index was made with --chunk-tokens 32, and 64 is given. Leave that out, or give --rebuild"
        in refused.stderr
    )
    partly = corpus("index", "docs/sub", "--chunk-tokens", "64", "--rebuild", *on, code=1)
    assert "it also holds 2 documents of others, such as" in partly.stderr
    assert json.loads(corpus("info", "--json", *on).stdout)["chunk_tokens"] == 32
    (tmp_path / "docs" / "cats.md").unlink()
    rebuilt = corpus("index", "docs", "--text-column", "id", "--rebuild", "--prune", *on)
    assert rebuilt.stdout.startswith("indexed 1 document")
    assert "1 deleted" in rebuilt.stdout
    assert json.loads(corpus("info", "--json", *on).stdout)["text_columns"] == ["id"]


@pytest.mark.parametrize("where", ["folder", "server"])
@pytest.mark.parametrize("when", ["it loads its model", "it writes"])
def test_a_run_that_one_with_other_settings_overtakes_while(corpus, tmp_path, server, monkeypatch, where, when):
    on = ["--store", server.url] if where == "server" else []
    corpus("index", "docs", *MODEL, "--chunk-tokens", "32", *on)
    (tmp_path / "docs" / "long.md").write_text("\n\n".join(f"The {n}th day is as the day before." for n in range(30)))

    def overtaken(owner, name):
        function = getattr(owner, name)

        def run_and_record(*given, **options):
            done = function(*given, **options)
            with connect(server.url if on else ".pplx-vectorstore") as client:
                calls = BlockingCalls.of(client)
                read = read_settings(calls, "documents")
                record_settings(calls, "documents", replace(read, chunk_tokens=64), read=read)
            return done

        return owner, name, run_and_record

    with monkeypatch.context() as at_once:
        at_once.setattr(*overtaken(*((index_command, "load_model") if "loads" in when else (FileUpdate, "write"))))
        told = " ".join(corpus("index", "docs", *on, code=1).stderr.split())
    assert (
        "another run has changed the settings of index 'documents' meanwhile: --chunk-tokens 64 instead of 32. Index "
        "these files again" in told
    )
    # What was cut in the other way is cut again, so that all is as the settings say.
    corpus("index", "docs", *on)
    corpus("index", "docs", "--store", "other", *MODEL, "--chunk-tokens", "64")
    listed, fresh = (json.loads(corpus("documents", "--json", *of).stdout) for of in (on, ["--store", "other"]))
    assert [one["chunks"] for one in listed] == [one["chunks"] for one in fresh]
    assert listed[1]["chunks"] > 1
    assert corpus("index", "docs", *on).stdout.startswith("nothing to embed; 3 unchanged")


def test_a_dry_run_tells_and_writes_nothing(corpus, tmp_path):
    told = corpus("index", "docs", *MODEL, "--dry-run", "--verbose")
    assert re.match(
        r"would embed 2 documents, 2 chunks, \d+ tokens\nthat takes about \d+ s on this machine\n", told.stdout
    )
    assert re.search(
        r"by the hosted service: \$0\.\d{4} with pplx-embed-context-v1-0\.6b, \$0\.\d{4} with", told.stdout
    )
    assert told.stdout.endswith("would embed docs/cats.md\nwould embed docs/sub/stars.txt\n")
    assert not (tmp_path / ".pplx-vectorstore" / "documents").exists()
    corpus("index", "docs", *MODEL)
    (tmp_path / "docs" / "cats.md").write_text("# Cats\n\nCats purr.\n")
    (tmp_path / "docs" / "new.txt").write_text("New.")
    (tmp_path / "docs" / "sub" / "stars.txt").touch()
    before = (tmp_path / ".pplx-vectorstore" / "documents" / "collection.json").read_bytes()
    changed = corpus("index", "docs", "--dry-run", "--verbose").stdout
    assert changed.startswith("would embed 2 documents, 2 chunks")
    assert changed.endswith("would embed docs/cats.md\nwould embed docs/new.txt\n")
    assert (tmp_path / ".pplx-vectorstore" / "documents" / "collection.json").read_bytes() == before
    assert ids(corpus) == ["docs/cats.md", "docs/sub/stars.txt"]
    corpus("index", "docs")
    assert corpus("index", "docs", "--dry-run").stdout == "would embed 0 documents, 0 chunks, 0 tokens\n"


def test_an_index_of_an_older_version_relabels_and_embeds_nothing(corpus, tmp_path, minilm):
    from pplx_vectorstore import Document

    root = tmp_path.resolve().as_posix()
    old = Document(
        id="docs/cats.md",
        text=(tmp_path / "docs" / "cats.md").read_text(),
        format="markdown",
        metadata={"source": "docs/cats.md", "root": root},
    )
    with VectorStore.open(".pplx-vectorstore", encoder=minilm) as store:
        store.add([old])
    assert corpus("index", "docs/cats.md").stdout.startswith("nothing to embed; 1 with new metadata\n")
    (hit,) = json.loads(corpus("search", "cats", "--json").stdout)
    assert hit["metadata"] == {"source": "docs/cats.md", "root": root, "heading": ["Cats"], "line": 1}


@pytest.mark.slow
def test_every_hit_of_a_mixed_folder_says_where_it_is_also_after_edits(run, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    filler = [f"Line {number} is about nothing in particular, and goes on for a while." for number in range(30)]

    def written(lead=0):
        """Files that each say one thing, after `lead` more pages, slides, rows, cells or lines of other things."""
        other = [f"Other matter {number} of no interest." for number in range(2 + lead)]
        return {
            "badger.pdf": pdf(*(shown(*filler[:12]) for _ in other), shown("Badgers dig tunnels at night.")),
            "beaver.docx": docx(
                "".join(map(paragraph, other)) + paragraph("Rivers", "H1") + paragraph("Beavers build dams of wood."),
                styles=styles(H1="heading 1"),
            ),
            "bee.pptx": pptx([*(shape(" ".join(filler[:9])) for _ in other), shape("Bees dance to tell of flowers.")]),
            "ant.xlsx": xlsx({"Facts": {"A1": "says", **{f"A{2 + n}": line for n, line in enumerate(other)},
                                        f"A{2 + len(other)}": "Ants carry leaves home."}}),
            "whale.epub": epub({"one": f"<h1>Land</h1><p>{filler[0]}", "two": "<h1>Sea</h1><p>Whales sing under sea."}),
            "owl.ipynb": ipynb(
                *({"cell_type": "markdown", "source": " ".join(filler[:9])} for _ in other),
                {"cell_type": "markdown", "source": "Owls turn their heads."},
            ),
            "eel.csv": ("says\n" + "".join(f"{' '.join(filler[:9])} {n}\n" for n in range(len(other))) +
                        "Eels swim to the Sargasso.\n").encode(),
            "frog.jsonl": b"".join(
                json.dumps({"says": text}).encode() + b"\n" for text in [*(" ".join(filler[:9]) for _ in other),
                                                                        "Frogs croak in ponds."]
            ),
            "goat.eml": b"From: Ada\nSubject: Mountains\n\nGoats climb steep rocks.\n",
            "hare.html": f"<title>Fields</title><h1>Fields</h1><p>{' '.join(filler)}<h2>Runs</h2><p>Hares box."
            .encode(),
            "lynx.md": ("# Woods\n\n" + "\n".join(filler) + "\n" * lead + "\n\n## Hunters\n\nLynxes hunt in silence.\n")
            .encode(),
            "mole.py": ("def other():\n    return 1\n" + "\n" * lead + "\n\ndef moles():\n    '''Moles eat worms.'''\n")
            .encode(),
        }  # fmt: skip

    def check(lead):
        last = 3 + lead
        for question, name, place in [
            ("who digs tunnels?", "badger.pdf", {"page_end": last}),
            ("who builds dams?", "beaver.docx", {}),
            ("who dances to tell of flowers?", "bee.pptx", {"slide_end": last}),
            ("who carries leaves?", "ant.xlsx", {"sheet": "Facts", "row_end": last + 1}),
            ("who sings under the sea?", "whale.epub", {}),
            ("who turns their heads?", "owl.ipynb", {"cell_end": last}),
            ("who swims to the Sargasso?", "eel.csv", {"row_end": last + 1}),
            ("who croaks in ponds?", "frog.jsonl", {"row_end": last}),
            ("who climbs rocks?", "goat.eml", {}),
            ("who boxes?", "hare.html", {"title": "Fields"}),
            ("who hunts in silence?", "lynx.md", {}),
            ("which code is of moles that eat worms?", "mole.py", {"line": 1}),
        ]:
            hits = json.loads(run("search", question, "-k", "1", "--hybrid", "--json").stdout)
            (hit,) = hits
            assert hit["document_id"] == f"docs/{name}", (question, hit)
            assert {key: hit["metadata"].get(key) for key in place} == place, (question, hit)
            if name.endswith((".md", ".py")):  # whose lines are the file's
                line = (docs / name).read_text().splitlines()[hit["metadata"]["line"] - 1]
                assert line == hit["text"].splitlines()[0]
            if name == "lynx.md":
                above = (docs / name).read_text().splitlines()[: hit["metadata"]["line"]]
                assert hit["metadata"]["heading"] == [row.lstrip("# ") for row in above if row.startswith("#")]

    for name, data in written().items():
        (docs / name).write_bytes(data)
    for name, data in {
        "broken.pdf": b"%PDF-1.4 nothing",
        "broken.docx": b"PK\x03\x04 nothing",
        "laughs.epub": epub({"one": BILLION_LAUGHS}),
        "loop.pdf": pdf(shown("x"), kids=b"2 0 R", count=10**9),
        "scan.pdf": pdf(PICTURE),
        "deep.html": b"<div>" * 50_000 + b"Deep waters.",
        "logo.svg": b"<svg/>",
    }.items():
        (docs / name).write_bytes(data)
    first = run("index", "docs", *MODEL, "--chunk-tokens", "64")
    told = first.stderr.splitlines()
    assert "left out: 1 picture (--verbose names them)" in told
    for name in ("broken.docx", "broken.pdf", "scan.pdf"):
        assert any(line.startswith(f"skipped docs/{name}: ") for line in told), name
    check(0)
    for name, data in written(lead=2).items():
        (docs / name).write_bytes(data)
    run("index", "docs")
    check(2)
    (docs / "goat.eml").write_bytes(b"")
    (docs / "frog.jsonl").write_bytes(b" \n")
    assert "2 deleted" in run("index", "docs").stdout  # what a file has said goes with it
    assert not {"docs/goat.eml", "docs/frog.jsonl"} & set(ids(run))
    (docs / "eel.csv").unlink()
    (docs / "broken.pdf").write_bytes(pdf(shown("Now it is whole.")))
    run("index", "docs", "--prune")
    listed = ids(run)
    assert "docs/eel.csv" not in listed
    assert "docs/broken.pdf" in listed
    assert "nothing to embed" in run("index", "docs").stdout


def test_what_an_emptied_file_said_is_forgotten_also_where_it_is_alone(corpus, tmp_path):
    corpus("index", "docs", *MODEL)
    (tmp_path / "docs" / "cats.md").write_text("")
    assert "there is no file to read" in corpus("index", "docs/cats.md", "--prune", code=1).stderr
    assert "there is no file to read" in corpus("index", "docs/cats.md", "--dry-run", code=1).stderr
    assert len(ids(corpus)) == 2
    assert "1 deleted" in corpus("index", "docs/cats.md").stdout
    assert ids(corpus) == ["docs/sub/stars.txt"]
    assert "empty ones" in corpus("index", "docs/cats.md", code=1).stderr
    assert "there is no index" in corpus("info", "--store", "other", code=1).stderr
    assert "empty ones" in corpus("index", "docs/cats.md", "--store", "other", *MODEL, code=1).stderr
    assert not (tmp_path / "other" / "documents").exists()
