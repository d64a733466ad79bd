"""Parquet and copies: what leaves a store comes back as it was."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pplx_vectorstore import Chunk, Document, VectorStore, parquet
from pplx_vectorstore.errors import DuplicateDocumentError, InvalidInputError, MissingExtraError, SchemaMismatchError
from pplx_vectorstore.operations import access

UMASK = os.umask(0)
os.umask(UMASK)


def corpus(n=40, version=1):
    documents = [
        Document(
            id=f"d{i}",
            chunks=[f"{version} naïve text {j}" for j in range(i % 5)],
            metadata={"i": i, "nested": {"ü": [1, None, 0.5, True, "x"]}},
        )
        for i in range(n)
    ]
    chunks = [
        Chunk(text="own id", id="mine", start=0, end=6, metadata={"page": 1}),
        Chunk(text="  "),
        Chunk(text="\x00 and 😀", start=9, end=12),
    ]
    return [*documents, Document(id="own", chunks=chunks)]


@pytest.fixture
def state(read_points):
    def read(store):
        points = read_points(store, with_vectors=True)
        return {
            str(point.id): (
                json.dumps({**point.payload, "generation": None}, sort_keys=True),  # that is each server's own
                np.asarray(point.vector.get("codes", [])).tolist(),
            )
            for point in points
        }

    return read


def test_a_store_goes_through_parquet_unchanged(new_store, state, tmp_path, monkeypatch):
    monkeypatch.setattr(access, "_PAGE", 7)
    monkeypatch.setattr(parquet, "_ROWS", 7)
    store = new_store(collection="from")
    store.add(corpus())
    file = tmp_path / "all.parquet"
    assert store.export_parquet(file) == store.count() == 83
    other = new_store(collection="to")
    assert other.import_parquet(file) == 83
    assert state(other) == state(store)
    assert other.sync(corpus()).unchanged_documents == len(corpus())
    assert other.import_parquet(file) == 83
    assert state(other) == state(store)


def test_an_import_replaces_other_versions_whole_and_leaves_other_documents(new_store, state, tmp_path):
    store = new_store(collection="from")
    store.add(corpus(10))
    store.export_parquet(tmp_path / "ten.parquet")
    other = new_store(collection="to")
    longer = [Document(id="d3", chunks=["older"] * 9), Document(id="theirs", chunks=["stays"])]
    other.add(longer)
    other.import_parquet(tmp_path / "ten.parquet")
    assert {document.id for document in other.documents()} == {d.id for d in store.documents()} | {"theirs"}
    other.delete(document_ids=["theirs"])
    assert state(other) == state(store)


def test_the_file_is_what_other_tools_read(new_store, tmp_path):
    store = new_store()
    store.add(corpus(3))
    store.export_parquet(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.field("codes").type == pa.list_(pa.int8(), 64)
    rows = {(row["document_id"], row["chunk_index"]): row for row in table.to_pylist()}
    own = rows["own", 0]
    assert (own["id"], own["text"], own["start"], own["end"], own["chunk_count"]) == ("mine", "own id", 0, 6, 3)
    assert json.loads(own["metadata"]) == {"page": 1}
    assert rows["d2", 1]["id"] is None
    (chunk,) = store.get(["mine"], with_codes=True)
    assert own["codes"] == chunk.codes.tolist()
    assert set(rows["own", 1]["codes"]) == {0}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.parquet"]


def test_a_copy_is_the_same_and_can_be_repeated(new_store, state):
    store = new_store(collection="from", index_fields={"i": "integer"})
    store.add(corpus())
    target = new_store(collection="to")
    assert store.copy_to(target) == 83
    assert state(target) == state(store)
    assert store.copy_to(target) == 83
    assert state(target) == state(store)
    assert target.count({"i": 4}) == store.count({"i": 4}) == 4


def test_a_copy_from_the_embedded_engine_to_any_other(new_store, state, folder, hash_encoder):
    with VectorStore.open(folder / "origin", encoder=hash_encoder(64), index_fields={"i": "integer"}) as origin:
        origin.add(corpus())
        target = new_store(collection="to")
        if not isinstance(target, VectorStore):
            pytest.skip("an AsyncVectorStore copies to another one")
        origin.copy_to(target)
        assert state(target) == state(origin)
        copied = target._client.get_collection(target._session.points.collection)
        if "metadata.i" in (copied.payload_schema or {"metadata.i": None}):
            assert target.count({"i": 4}) == 4


def test_a_chunk_id_of_another_document_is_refused(new_store, tmp_path):
    source, target = new_store(collection="from"), new_store(collection="to")
    source.add([Document(id="theirs", chunks=[Chunk(text="a", id="intro")])])
    target.add([Document(id="mine", chunks=[Chunk(text="b", id="intro"), "c"])])
    source.export_parquet(tmp_path / "a.parquet")
    for call in (lambda: source.copy_to(target), lambda: target.import_parquet(tmp_path / "a.parquet")):
        with pytest.raises(DuplicateDocumentError, match="belongs to document 'mine' already"):
            call()
    assert [(one.id, one.chunks) for one in target.documents()] == [("mine", 2)]


def test_an_export_goes_where_it_can_be_read_or_says_why_not(new_store, tmp_path):
    store = new_store()
    store.export_parquet(tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_mode & 0o777 == 0o666 & ~UMASK
    with pytest.raises(InvalidInputError, match="there is no folder"):
        store.export_parquet(tmp_path / "gone" / "a.parquet")
    with pytest.raises(InvalidInputError, match="is a folder"):
        store.export_parquet(tmp_path)


def test_another_models_file_or_store_is_refused_and_nothing_is_written(new_store, hash_encoder, tmp_path):
    store = new_store(collection="from")
    store.add(corpus(3))
    store.export_parquet(tmp_path / "a.parquet")
    other = new_store(encoder=hash_encoder(64, name="other-model"), collection="to")
    for call in (lambda: other.import_parquet(tmp_path / "a.parquet"), lambda: store.copy_to(other)):
        with pytest.raises(SchemaMismatchError, match=r"model '.*' in the collection, '.*' given"):
            call()
    assert other.count() == 0


def test_files_that_are_not_exports_are_refused(new_store, tmp_path):
    store = new_store()
    (tmp_path / "text.parquet").write_text("not parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    store.add(corpus(2))
    store.export_parquet(tmp_path / "own.parquet")
    table = pq.read_table(tmp_path / "own.parquet")
    pq.write_table(table.drop_columns(["text"]), tmp_path / "cut.parquet")
    for name, message in (
        ("text.parquet", "is not a Parquet file"),
        ("foreign.parquet", r"was not exported by pplx-vectorstore; .* Document\(vectors"),
        ("cut.parquet", "lacks the columns text"),
        ("gone.parquet", "there is no file"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            store.import_parquet(tmp_path / name)


def test_an_export_that_fails_leaves_the_old_file(new_store, tmp_path, monkeypatch):
    store = new_store()
    store.add(corpus(2))
    file = tmp_path / "a.parquet"
    store.export_parquet(file)
    before = file.read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            store.export_parquet(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_an_empty_store_gives_an_empty_file(new_store, tmp_path):
    store = new_store(collection="from")
    assert store.export_parquet(tmp_path / "a.parquet") == 0
    assert new_store(collection="to").import_parquet(tmp_path / "a.parquet") == 0


def test_without_pyarrow_the_extra_is_named(new_store, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pplx-vectorstore\[parquet\]'"):
        new_store().export_parquet(tmp_path / "a.parquet")
