"""Where an agent may have files indexed."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from agent_client import ask, lazy_index, refused, talking
from typer.testing import CliRunner

from pplx_vectorstore import VectorStore, file_reading
from pplx_vectorstore.agents.folders import require_within
from pplx_vectorstore.agents.index import LazyIndex, Place
from pplx_vectorstore.agents.places import FilePlaces
from pplx_vectorstore.cli import app
from pplx_vectorstore.documents import StoredChunk
from pplx_vectorstore.engines.server import make_client
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.file_records import FileRecords
from pplx_vectorstore.readers import ReaderOptions


@pytest.fixture
def project(folder):
    root = (folder / "project").resolve()
    (root / "docs" / "sub").mkdir(parents=True)
    (root / "docs" / "cats.md").write_text("Cats purr.")
    (root / "docs" / "sub" / "stars.txt").write_text("The sun is a star.")
    (folder / "outside.txt").write_text("Outside.")
    return root


@pytest.mark.parametrize(
    "path", ["..", "../outside.txt", "/etc/passwd", "docs/../../outside.txt", "~/x", "docs\0", "../project-of-others"]
)
def test_nothing_outside(project, path):
    with pytest.raises(InvalidInputError, match=r"nothing else may be indexed|there is no file or folder"):
        require_within(project, path)


@pytest.mark.parametrize("path", [".", "", "docs", "docs/../docs/sub", "docs/cats.md"])
def test_what_is_inside(project, path):
    target = Path(os.path.normpath(project / path))
    assert require_within(project, path) == require_within(project, str(target)) == target


async def test_links_are_not_followed(project, folder, hash_encoder):
    (project / "out.txt").symlink_to(folder / "outside.txt")
    (project / "up").symlink_to(folder)
    (project / "in.md").symlink_to(project / "docs" / "cats.md")
    (project / "folder").symlink_to(project / "docs")
    index = lazy_index(project / ".pplx-vectorstore", hash_encoder())
    async with talking(index, allow_write=True, root=project) as client:
        for path in ("out.txt", "up", "up/outside.txt", "in.md", "folder", "folder/sub", "folder/cats.md"):
            assert "is a link, and links are not followed" in await refused(client, "index_folder", path=path)
        done = await ask(client, "index_folder")
        assert (done["new"], done["left_out"]["link"]) == (2, 4)
        listed = (await ask(client, "list_documents"))["documents"]
        assert [one["id"] for one in listed] == ["docs/cats.md", "docs/sub/stars.txt"]


async def test_a_root_that_is_a_link_is_where_it_leads(project, folder, hash_encoder):
    (folder / "link").symlink_to(project)
    index = lazy_index(project / ".pplx-vectorstore", hash_encoder())
    async with talking(index, allow_write=True, root=folder / "link") as client:
        assert (await ask(client, "index_folder", path="docs"))["new"] == 2
        assert (await ask(client, "index_folder", path=str(project / "docs")))["unchanged"] == 2


async def test_what_is_hidden_or_ignored_stays_out_also_where_it_is_named(project, hash_encoder):
    (project / ".secrets").mkdir()
    (project / ".secrets" / "token.txt").write_text("hidden")
    (project / "build").mkdir()
    (project / "build" / "made.txt").write_text("ignored")
    (project / ".gitignore").write_text("build/\n")
    (project / "docs" / "empty").mkdir()
    index = lazy_index(project / ".pplx-vectorstore", hash_encoder())
    async with talking(index, allow_write=True, root=project) as client:
        for path, why in ((".secrets", "1 hidden"), (".secrets/token.txt", "1 hidden"), ("build", "1 ignored")):
            told = await refused(client, "index_folder", path=path)
            assert told == f"there is no document to index in {project / path}; left out: {why}"
        assert await refused(client, "index_folder", path="docs/empty") == (
            f"there is no document to index in {project / 'docs' / 'empty'}"
        )
        assert "if it was deleted" in await refused(client, "index_folder", path="gone.md")
        assert not index.place.folder.exists()
        (project / "docs" / "broken.docx").write_bytes(b"nothing")
        with (project / "docs" / "large.txt").open("wb") as large:
            large.truncate(10_000_001)
        assert "bytes; a person can have it indexed, by naming it to" in await refused(
            client, "index_folder", path="docs/large.txt"
        )
        done = await ask(client, "index_folder")
        assert (done["new"], done["left_out"]) == (2, {"hidden": 2, "ignored": 1})
        assert [problem["file"] for problem in done["problems"]] == [
            str(project / "docs" / name) for name in ("large.txt", "broken.docx")
        ]


async def test_names_that_are_no_unicode(project, hash_encoder):
    nameless = os.fsencode(project) + b"/docs/caf\xe9"
    Path(os.fsdecode(nameless + b".md")).write_text("Coffee.")
    Path(os.fsdecode(nameless + b".docx")).write_bytes(b"nothing")
    index = lazy_index(project / ".pplx-vectorstore", hash_encoder())
    async with talking(index, mode="legacy", allow_write=True, root=project) as client:
        done = await ask(client, "index_folder", path="docs")
        assert [problem["file"] for problem in done["problems"]] == [f"{project}/docs/caf\\xe9.docx"]
        (hit, *_) = (await ask(client, "search", query="Coffee."))["hits"]
        assert (hit["file"], hit["change"]) == (f"{project}/docs/caf\\xe9.md", None)
        assert "there is no file or folder" in await refused(client, "index_folder", path="docs/caf\\xe9")
        Path(os.fsdecode(nameless + b".md")).unlink()
        hits = (await ask(client, "search", query="Coffee."))["hits"]
        assert "not there any more" in next(hit["change"] for hit in hits if "caf" in hit["file"])


async def test_files_have_the_ids_that_the_command_line_gives_them(project, hash_encoder, minilm, monkeypatch):
    monkeypatch.chdir(project)
    model = ["--model", "all-minilm-l6-v2", "--dtype", "float32", "--chunk-tokens", "64"]
    done = CliRunner().invoke(app, ["index", "docs", "--root", "docs", *model])
    assert done.exit_code == 0, done.output
    (project / "docs" / "new.txt").write_text("New.")
    index = lazy_index(project / ".pplx-vectorstore", minilm)
    async with talking(index, allow_write=True, root=project) as client:
        done = await ask(client, "index_folder", path="docs")
        assert (done["new"], done["unchanged"]) == (1, 2)
        listed = (await ask(client, "list_documents"))["documents"]
        assert [one["id"] for one in listed] == ["cats.md", "new.txt", "sub/stars.txt"]
        (hit, *_) = (await ask(client, "search", query="What do cats do?"))["hits"]
        assert hit["file"] == str(project / "docs" / "cats.md")
    again = CliRunner().invoke(app, ["index", "docs"])
    assert again.stdout.startswith("nothing to embed; 3 unchanged")
    facts = json.loads(CliRunner().invoke(app, ["info", "--json"]).stdout)
    assert (facts["chunk_tokens"], facts["root"]) == (64, "docs")


async def test_an_index_elsewhere_has_absolute_ids(project, folder, hash_encoder):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    index = lazy_index(elsewhere / "index", hash_encoder())
    async with talking(index, allow_write=True, root=project) as client:
        await ask(client, "index_folder")
        listed = (await ask(client, "list_documents"))["documents"]
        assert [one["id"] for one in listed] == [str(project / "docs" / name) for name in ("cats.md", "sub/stars.txt")]


async def test_nothing_writes_unless_that_is_allowed(project, hash_encoder):
    index = lazy_index(project / ".pplx-vectorstore", hash_encoder())
    async with talking(index, root=project) as client:
        assert "there is no tool 'index_folder'" in await refused(client, "index_folder")
    with pytest.raises(InvalidInputError, match="--allow-write needs --root FOLDER"):
        async with talking(index, allow_write=True):
            pass
    with pytest.raises(InvalidInputError, match="--root must be a folder that exists"):
        async with talking(index, root=project / "none"):
            pass


def chunk(text, *, root, source, start=0, **metadata):
    return StoredChunk(
        id="x", text=text, document_id=source, chunk_index=0, chunk_count=1, start=start, end=start + len(text),
        metadata={"source": source, "root": str(root), **metadata},
    )  # fmt: skip


def test_lines_are_those_of_the_file_now(project):
    file = project / "docs" / "cats.md"
    places = lambda: FilePlaces([project], ReaderOptions())  # noqa: E731 - what was read is remembered
    two = chunk("two\nthree", root=project, source="docs/cats.md", start=4, line=2)
    file.write_text("one\ntwo\nthree\nfour\n")
    found = places().find(two)
    assert (str(found), found.lines, found.change) == (f"{file}:2-3", (2, 3), None)
    file.write_text("zero\n\none\ntwo\nthree\nfour\n")
    found = places().find(two)
    assert (found.lines, found.change) == ((4, 5), "the file has changed since it was indexed: these lines are of now")
    file.write_text("two\nthree\n" + "x\n" * 3 + "two\nthree\n")  # the nearest of two
    assert places().find(two).lines == (1, 2)
    file.write_text("---\ntitle: x\n---\none\ntwo\nthree\n")  # front matter is no text
    assert places().find(chunk("two\nthree", root=project, source="docs/cats.md", start=4, line=5)).change is None
    file.write_bytes(b"\0\0")
    assert "does not say this any more" in places().find(two).change
    file.unlink()
    assert places().find(two).change == "the file is not there any more"
    os.mkfifo(file)  # would never end
    assert "does not say this any more" in places().find(two).change


def test_files_elsewhere_are_not_opened(project, folder):
    outside = chunk("Inside.", root=folder, source="outside.txt", line=1)
    (project / "link.txt").symlink_to(folder / "outside.txt")
    through = chunk("Inside.", root=project, source="link.txt", line=1)
    up = chunk("Inside.", root=project / "docs", source="../../outside.txt", line=1)
    for one in (outside, through, up):
        assert FilePlaces([project], ReaderOptions()).find(one).change is None
    assert FilePlaces([folder.resolve()], ReaderOptions()).find(outside).change is not None


def test_large_files_are_compared_up_to_a_bound(project, monkeypatch):
    monkeypatch.setattr("pplx_vectorstore.agents.places._MOST_BYTES", 25)
    for name in ("a", "b"):
        (project / f"{name}.txt").write_text("What it says is new.")
    places = FilePlaces([project], ReaderOptions())
    a, b = (chunk("What it said.", root=project, source=f"{name}.txt", line=1) for name in ("a", "b"))
    assert "does not say this any more" in places.find(a).change
    assert places.find(b).change is None
    assert "does not say this any more" in places.find(a).change


def test_pages_are_said(project):
    page = chunk("Text", root=project, source="docs/paper.pdf", page=3, page_end=4)
    found = FilePlaces([project], ReaderOptions()).find(page)
    assert (str(found), found.change) == (
        f"{project}/docs/paper.pdf, pages 3-4",
        "the file is not there any more",
    )
    own = StoredChunk(
        id="x", text="y", document_id="note", chunk_index=1, chunk_count=3, start=None, end=None, metadata={}
    )
    assert str(FilePlaces([project], ReaderOptions()).find(own)) == "chunk 2 of 3"


async def test_a_server_is_indexed_into_by_absolute_paths(project, server, hash_encoder):
    def connect():
        return contextlib.closing(
            make_client(server.url, api_key=None, prefer_grpc=False, timeout=10, asynchronous=False)
        )

    encoder = hash_encoder()
    place = Place(name=server.url, collection="docs", tenant=None, folder=None, way_out="make one")
    async with talking(LazyIndex(place, connect, lambda _: encoder), allow_write=True, root=project) as client:
        assert "there is no index 'docs'" in await refused(client, "search", query="x")
        assert (await ask(client, "index_folder"))["new"] == 2
        (hit, *_) = (await ask(client, "search", query="Cats purr."))["hits"]
        assert (hit["document_id"], hit["lines"]) == (str(project / "docs" / "cats.md"), [1, 1])
    with VectorStore.connect(server.url, collection="docs", encoder=encoder) as store:
        assert store.count() == 2


async def test_what_an_emptied_file_said_is_forgotten(project, hash_encoder):
    cats, stars = project / "docs" / "cats.md", project / "docs" / "sub" / "stars.txt"
    index = lazy_index(project / ".pplx-vectorstore", hash_encoder())
    async with talking(index, allow_write=True, root=project) as client:
        (project / "none").mkdir()
        (project / "none" / "empty.txt").touch()
        assert "left out: 1 empty" in await refused(client, "index_folder", path="none")
        assert not index.place.folder.exists()
        await ask(client, "index_folder")
        cats.write_text("")
        done = await ask(client, "index_folder", path="docs/cats.md")  # alone, and without prune
        assert (done["emptied"], done["deleted"], done["chunks"]) == (["docs/cats.md"], 1, 1)
        stars.write_text(" \n")  # which is found when it is read
        result = await client.call_tool("index_folder", {})
        assert result.structured_content["emptied"] == ["docs/sub/stars.txt"]
        assert "1 deleted, whose files are empty now" in result.content[0].text
        assert (await ask(client, "search", query="Cats purr."))["hits"] == []
        cats.write_text("Cats sleep.")
        assert (await ask(client, "index_folder"))["new"] == 1


async def test_what_is_remembered_is_shared_with_the_command_line(project, hash_encoder, monkeypatch):
    index = lazy_index(project / ".pplx-vectorstore", hash_encoder())
    async with talking(index, allow_write=True, root=project) as client:
        await ask(client, "index_folder")
        read = []
        read_content = file_reading.read_content
        monkeypatch.setattr(file_reading, "read_content", lambda *given: read.append(given[0]) or read_content(*given))
        (project / "docs" / "cats.md").write_text("Cats sleep.")
        assert (await ask(client, "index_folder"))["unchanged"] == 1
        assert read == ["cats.md"]
    records = FileRecords(index.place.folder, "documents", None)
    assert len(records) == 2
    (project / "docs" / "cats.md").write_text("Cats dream.")
    assert records.find_changes().changed == ["docs/cats.md"]
