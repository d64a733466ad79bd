"""Codes and hits as columns, without a cluster."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_pplx_vectorstore.datasets import EmbeddingWorker, SearchWorker
from ray_pplx_vectorstore.place import ModelChoice, Place

from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.errors import InvalidDocumentError, ServerUnavailableError

ROWS = [
    {"id": "a", "text": None, "chunks": ["one two", " ", "three"]},
    {"id": "b", "text": "one two three four five", "chunks": None},
    {"id": "c", "text": None, "chunks": []},
]
CHUNKS = [["one two", " ", "three"], ["one two three", "four five"], []]
ROWS_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("chunks", pa.list_(pa.string()))])


@pytest.fixture
def choice(chaos, tmp_path):
    return ModelChoice(model=chaos.make_chaos(tmp_path), chunk_tokens=3)


def assert_codes(rows, encoder):
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert [list(row["chunks"]) for row in rows] == CHUNKS
    for row, expected in zip(rows, encoder.encode_documents(CHUNKS), strict=True):
        codes = np.array([list(one) for one in row["codes"]], np.int8).reshape(-1, 64)
        np.testing.assert_array_equal(codes, expected)


def test_codes_are_those_of_the_encoder(choice, hash_encoder, tmp_path):
    worker = EmbeddingWorker(choice)
    table = worker(pa.Table.from_pylist(ROWS, ROWS_SCHEMA))
    assert table.schema.field("codes").type == pa.list_(pa.list_(pa.int8(), 64))
    assert_codes(table.to_pylist(), hash_encoder(64))
    pq.write_table(table, tmp_path / "codes.parquet")
    assert pq.read_table(tmp_path / "codes.parquet").equals(table)
    assert worker(pa.Table.from_pylist([], ROWS_SCHEMA)).num_rows == 0
    with pytest.raises(InvalidDocumentError, match="a row's id is null"):
        worker(pa.Table.from_pylist([{"id": None, "text": "x"}]))


def test_codes_can_be_stored(choice):
    rows = EmbeddingWorker(choice)(pa.Table.from_pylist(ROWS, ROWS_SCHEMA)).to_pylist()
    for row, n_chunks in zip(rows, (3, 2, 0), strict=True):
        codes = np.array(list(row["codes"]), np.int8).reshape(-1, 64)
        assert Document(id=row["id"], chunks=row["chunks"], vectors=codes).vectors.shape == (n_chunks, 64)


def test_a_model_that_cannot_be_loaded_is_no_end_of_the_worker():
    """Of an error in a constructor, Ray tells that an actor died."""
    worker = EmbeddingWorker(ModelChoice(model=lambda: 1 / 0, chunk_tokens=3))
    with pytest.raises(ZeroDivisionError):
        worker(pa.Table.from_pylist(ROWS, ROWS_SCHEMA))


def test_hits_are_those_of_a_search(choice, server, hash_encoder):
    documents = [
        Document(id=f"d{i}", chunks=[f"chunk {j} of {i}" for j in range(3)], metadata={"é": i}) for i in range(9)
    ]
    place = Place(url=server.url, model=choice, options={"collection": "c"})
    questions = pa.table({"q": [f"chunk {i} of 3" for i in range(4)], "n": list(range(4))})
    options = {"k": 4, "filter": {"é": {"$lt": 8}}, "context": 1}
    with VectorStore.connect(server.url, collection="c", encoder=hash_encoder(64)) as store:
        store.add(documents)
        expected = store.search_batch(questions.column("q").to_pylist(), **options)
    worker = SearchWorker(place, "q", options, 0.0)
    found = worker(questions)
    assert found.column_names == ["q", "n", "hits"]
    for hits, row in zip(expected, found.column("hits").to_pylist(), strict=True):
        assert [json.loads(hit.pop("metadata")) for hit in row] == [hit.metadata for hit in hits]
        assert row == [{name: getattr(hit, name) for name in row[0]} for hit in hits]
    assert worker(questions.slice(0, 0)).schema == found.schema


def test_a_search_waits_for_a_server_that_is_away(choice, server, hash_encoder, be_away):
    with VectorStore.connect(server.url, encoder=hash_encoder(64)) as store:
        store.add([Document(id="d", chunks=["x"])])
    place = Place(url=server.url, model=choice, options={"collection": "documents", "retries": 0})
    questions = pa.table({"q": ["x"]})
    with be_away():
        with pytest.raises(ServerUnavailableError):
            SearchWorker(place, "q", {}, 0.0)(questions)
        found = SearchWorker(place, "q", {}, 60.0)(questions)
    ((hit,),) = found.column("hits").to_pylist()
    assert hit["document_id"] == "d"
