"""An index that is made anew with another model, beside the old one: whatever comes before, between and after."""

import json

import pytest
from typer.testing import CliRunner

from pplx_vectorstore import Document, VectorStore, load_encoder
from pplx_vectorstore.cli import app
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.errors import StoreClosedError, StoreNotFoundError
from pplx_vectorstore.operations import write

STORE, COLLECTION, NEW = ".pplx-vectorstore", "documents", "documents.rebuilding"
OTHER = ["--window-tokens", "64"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for name, text in (("cats.md", "# Cats\n\nCats purr."), ("stars.md", "# Stars\n\nThe sun is a star.")):
        (tmp_path / "docs" / name).write_text(text)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done

    run("index", "docs", "--model", "all-minilm-l6-v2")
    return run


@pytest.fixture(scope="module")
def other_encoder():
    return load_encoder("all-minilm-l6-v2", window_tokens=64)


def facts(run):
    told = json.loads(run("info", "--json").stdout)
    return told["window_tokens"], told["documents"]


def found(run, question="what purrs?"):
    return [hit["document_id"] for hit in json.loads(run("search", question, "-k", "1", "--json").stdout)]


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / STORE).iterdir())


def test_a_life_with_two_models(run, tmp_path, other_encoder):
    refused = run("index", "docs", *OTHER, code=1)
    assert "window_tokens 512 in the collection, 64 given" in " ".join(refused.stderr.split())
    assert "--rebuild" in refused.stderr
    assert facts(run) == (512, 2)
    run("index", "docs/cats.md", *OTHER, "--rebuild", code=1)
    assert facts(run) == (512, 2)

    (tmp_path / "docs" / "new.md").write_text("Ships sail.")
    assert run("index", "docs", *OTHER, "--rebuild").stdout.startswith("indexed 3 documents")
    assert facts(run) == (64, 3)
    assert folders(tmp_path) == [COLLECTION]
    assert found(run) == ["docs/cats.md"]
    assert run("index", "docs").stdout.startswith("nothing to embed; 3 unchanged")
    with VectorStore.open(STORE, encoder=other_encoder) as store:
        before = {(one.document_id, one.chunk_index): one.text for one in store.chunks()}
        store.optimize()

    (tmp_path / "docs" / "cats.md").write_text("Lions roar.")
    (tmp_path / "docs" / "new.md").unlink()
    assert run("index", "docs", "--prune").stdout.startswith("indexed 1 document")
    run("index", "docs", "--window-tokens", "512", "--chunk-tokens", "32", "--rebuild")
    assert facts(run) == (512, 2)
    assert json.loads(run("info", "--json").stdout)["chunk_tokens"] == 32
    assert found(run, "what roars?") == ["docs/cats.md"]
    assert ("docs/new.md", 0) in before


def test_documents_whose_files_are_gone_go_with_prune(run, tmp_path):
    (tmp_path / "docs" / "stars.md").unlink()
    refused = run("index", "docs", *OTHER, "--rebuild", code=1)
    assert "it also holds 1 document of others, such as docs/stars.md" in refused.stderr
    done = run("index", "docs", *OTHER, "--rebuild", "--prune")
    assert "1 deleted" in done.stdout
    assert facts(run) == (64, 1)


def test_a_dry_run_tells_of_all_and_changes_nothing(run, tmp_path):
    told = run("index", "docs", *OTHER, "--rebuild", "--dry-run")
    assert told.stdout.startswith("would embed 2 documents")
    assert facts(run) == (512, 2)
    assert folders(tmp_path) == [COLLECTION]


def test_an_interrupted_rebuild_harms_nothing_and_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "_GROUP_DOCUMENTS", 1)
    written = write._write_group
    calls = []

    async def stop_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return await written(*arguments)

    monkeypatch.setattr(write, "_write_group", stop_at_the_second)
    run("index", "docs", *OTHER, "--rebuild", code=130)
    assert facts(run) == (512, 2)
    assert found(run) == ["docs/cats.md"]
    assert folders(tmp_path) == [COLLECTION, NEW]
    assert f"an interrupted --rebuild left {NEW!r}" in run("index", "docs").stderr
    assert run("info", "--collection", "other", code=1).stderr.endswith("; it holds documents\n")
    run("index", "docs", "--window-tokens", "32", "--rebuild", "--dry-run")
    (tmp_path / "docs" / "stars.md").write_text("# Stars\n\nThe moon is none.")
    assert "1 unchanged" in run("index", "docs", *OTHER, "--rebuild").stdout
    assert facts(run) == (64, 2)
    assert folders(tmp_path) == [COLLECTION]
    assert "interrupted" not in run("index", "docs").stderr
    assert "none" in json.loads(run("search", "the moon", "-k", "1", "--json").stdout)[0]["text"]
    # What was begun with one model is of no use to another.
    calls.clear()
    run("index", "docs", "--window-tokens", "32", "--rebuild", code=130)
    assert folders(tmp_path) == [COLLECTION, NEW]
    assert run("index", "docs", "--window-tokens", "128", "--rebuild").stdout.startswith("indexed 2 documents")
    assert facts(run) == (128, 2)


def test_what_a_killed_process_had_not_renamed_yet_is(run, tmp_path):
    run("index", "docs", *OTHER, "--rebuild")
    (tmp_path / STORE / COLLECTION).rename(tmp_path / STORE / NEW)
    missing = run("search", "cats", code=2)
    assert "Run index again, which completes that" in missing.stderr
    assert run("index", "docs").stdout.startswith("nothing to embed; 2 unchanged")
    assert facts(run) == (64, 2)
    assert folders(tmp_path) == [COLLECTION]


def test_what_an_interrupted_rebuild_left_does_not_come_back(run, tmp_path):
    docs = tmp_path / "docs"
    (docs / "new.md").write_text("Ships sail.")
    run("index", "docs")
    (docs / "new.md").write_bytes(b"\0binary")
    refused = run("index", "docs", *OTHER, "--rebuild", code=1)
    assert "lacks 1 documents of the old one, such as docs/new.md" in refused.stderr
    assert facts(run) == (512, 3)
    (docs / "cats.md").unlink()
    run("index", "docs", "--prune")
    (docs / "new.md").write_text("Ships sail again.")
    run("index", "docs", *OTHER, "--rebuild")
    assert facts(run) == (64, 2)
    assert [one["id"] for one in json.loads(run("documents", "--json").stdout)] == ["docs/new.md", "docs/stars.md"]
    run("index", "docs", "--window-tokens", "128", "--rebuild")
    assert facts(run) == (128, 2)


def test_what_came_meanwhile_is_not_lost(run, tmp_path, minilm, monkeypatch):
    written = write._write_group

    async def add_meanwhile(*arguments):
        done = await written(*arguments)
        monkeypatch.setattr(write, "_write_group", written)
        with VectorStore.open(STORE, encoder=minilm) as store:
            store.add([Document(id="note", chunks=["A note."])])
        return done

    monkeypatch.setattr(write, "_write_group", add_meanwhile)
    refused = run("index", "docs", *OTHER, "--rebuild", code=1)
    assert "lacks 1 documents of the old one, such as note" in refused.stderr
    assert facts(run) == (512, 3)
    run("delete", "note")
    run("index", "docs", *OTHER, "--rebuild")
    assert facts(run) == (64, 2)


def test_who_has_the_old_index_open_is_told(run, minilm):
    with VectorStore.open(STORE, encoder=minilm) as store:
        assert store.search("cats", k=1)
        run("index", "docs", *OTHER, "--rebuild")
        with pytest.raises(StoreClosedError, match="open it again"):
            store.search("cats", k=1)
        with pytest.raises(StoreClosedError, match="open it again"):
            store.add([Document(id="late", chunks=["Late."])])
    assert facts(run) == (64, 2)


def test_field_indexes_are_made_again(run, minilm):
    with VectorStore.open(STORE, encoder=minilm, index_fields={"year": "integer"}):
        pass
    run("index", "docs", *OTHER, "--rebuild")
    client = EdgeClient(STORE)
    try:
        assert "metadata.year" in client.get_collection(COLLECTION).payload_schema
    finally:
        client.close()


@pytest.mark.parametrize("where", ["server", "tenants"])
def test_where_it_cannot_be_it_says_what_to_do(run, server, where):
    on = ["--store", server.url] if where == "server" else ["--tenant", "one", "--store", "shared"]
    run("index", "docs", "--model", "all-minilm-l6-v2", *on)
    refused = run("index", "docs", *OTHER, "--rebuild", *on, code=1)
    assert "into another one (--collection)" in " ".join(refused.stderr.split())
    assert run("index", "docs", *on).stdout.startswith("nothing to embed; 2 unchanged")


class TestCollectionsOfAFolder:
    @pytest.fixture
    def make(self, tmp_path, hash_encoder):
        def make(collection, *ids):
            with VectorStore.open(tmp_path, collection=collection, encoder=hash_encoder(64)) as store:
                store.add([Document(id=one, chunks=[one]) for one in ids])

        return make

    def ids(self, tmp_path, collection, hash_encoder):
        with VectorStore.open(tmp_path, collection=collection, encoder=hash_encoder(64), create=False) as store:
            return sorted(document.id for document in store.documents())

    def test_one_is_deleted_and_the_others_stay(self, make, tmp_path, hash_encoder):
        make("one", "a")
        make("two", "b")
        client = EdgeClient(tmp_path)
        assert client.count("one").count == 1
        assert client.delete_collection("one")
        assert not client.delete_collection("one")
        assert client.collection_names() == ["two"]
        with pytest.raises(StoreNotFoundError):
            client.count("one")
        make("one", "c", "d")
        assert client.count("one").count == 2
        client.close()
        assert self.ids(tmp_path, "one", hash_encoder) == ["c", "d"]
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    def test_one_takes_the_place_of_another(self, make, tmp_path, hash_encoder):
        make("old", "a")
        make("new", "b", "c")
        client = EdgeClient(tmp_path)
        assert (client.count("old").count, client.count("new").count) == (1, 2)
        client.replace_collection("old", by="new")
        assert (client.collection_names(), client.count("old").count) == (["old"], 2)
        with pytest.raises(StoreNotFoundError):
            client.replace_collection("old", by="new")
        assert client.count("old").count == 2
        client.close()
        make("old", "d")
        assert self.ids(tmp_path, "old", hash_encoder) == ["b", "c", "d"]
