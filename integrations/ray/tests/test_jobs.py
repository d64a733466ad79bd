"""Jobs on a cluster: workers and servers go away, documents are wrong, jobs end half-way and are run again.

All tests that need a cluster are here, so that one is enough for them, also where files are given to several processes.
"""

import contextlib
import io
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_pplx_vectorstore import embed_documents, search_dataset, sync, sync_documents

from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.errors import EncodingError, InvalidInputError, ServerUnavailableError, StoreNotFoundError

pytestmark = [
    pytest.mark.slow,
    # Of a job with fewer batches than workers, as most of these are at one time or another.
    pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors"),
]

# A worker is a process that imports for seconds. Two, where it matters that there are several.
POOL = {"workers": 1, "num_cpus": 0.5, "progress": False}
OUTAGE = 20.0


def corpus(n, version=1):
    """Every third document of the second version has another text, every fifth other metadata."""
    return [
        Document(
            id=f"d{i}",
            chunks=[f"text {j} of {i} v{version if i % 3 == 0 else 1}" for j in range(i % 4)],
            metadata={"number": i, "version": version if i % 5 == 0 else 1},
        )
        for i in range(n)
    ]


def rows_of(documents):
    return [
        {
            "id": document.id,
            "chunks": [chunk.text for chunk in document.chunks],
            "metadata": json.dumps(document.metadata),
            "not_read": 5,
        }
        for document in documents
    ]


@pytest.fixture
def read(cluster, tmp_path):
    """``read(rows)`` → a dataset of a Parquet file of them."""

    def write(rows):
        path = tmp_path / "documents.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
        return cluster.data.read_parquet(str(path))

    return write


@pytest.fixture
def run(read, server, chaos, tmp_path):
    """``run(rows, **options)`` syncs them to a collection, by an encoder that goes wrong at times."""

    def sync_rows(rows, **options):
        return sync_documents(read(rows), server.url, **{"model": chaos.make_chaos(tmp_path), **POOL, **options})

    return sync_rows


@pytest.fixture
def state(server, hash_encoder, read_points):
    """``state(collection)`` → everything of it that a reader could see: payloads and vectors by point id."""

    def read(collection="documents"):
        with VectorStore.connect(server.url, collection=collection, encoder=hash_encoder(64), create=False) as store:
            points = read_points(store, with_vectors=True)
        return {str(point.id): (point.payload, np.asarray(point.vector.get("codes", [])).tolist()) for point in points}

    return read


@pytest.fixture
def plain_state(server, hash_encoder, state):
    """``plain_state(documents)`` → the state after one process has added them, undisturbed."""

    def make(documents):
        with VectorStore.connect(server.url, collection="plain", encoder=hash_encoder(64)) as store:
            store.sync(documents, delete_missing=True)
        return state("plain")

    return make


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def be_away(server, qdrant_server_module, after, seconds, away):
    """Once a server has had so many writes, have it refuse everything and hang up for a while."""
    while sum(path.endswith(("/points", "/points/batch")) for _, path in list(server.requests)) < after:
        time.sleep(0.02)
    kinds = ("503", "reset_before")
    server.faults = qdrant_server_module.Faults(seed=3, rate=1.0, kinds=kinds, everything=True)
    time.sleep(seconds)
    away.append(server.faults.total)
    server.faults = None


def test_a_job_in_which_everything_goes_wrong_leaves_what_a_plain_one_leaves(
    run, server, state, plain_state, qdrant_server_module
):
    """Three workers are killed, the server is away for 20 seconds, and one document ends every worker."""
    documents = corpus(2000)
    rows = rows_of(documents)
    for n, place in enumerate((150, 800, 1500)):
        documents[place] = Document(id=f"d{place}", chunks=[f"kill once {n}", "and more"])
    rows = rows_of(documents)
    rows[1100]["chunks"] = ["before", "kill always"]
    away = []
    outage = threading.Thread(target=be_away, args=(server, qdrant_server_module, 4, OUTAGE, away))
    outage.start()
    report = run(rows, workers=2, batch_size=100, on_error="report", retries=1)
    outage.join()
    assert away[0] > 3
    assert [one.id for one in report.failed] == ["d1100"]
    assert "ended the process that embedded it, 2 times" in report.failed[0].reason
    assert report.rows == 2000
    # What killed workers had written is found again, as unchanged.
    assert report.documents + report.unchanged_documents == 1999
    assert state() == plain_state([one for one in documents if one.id != "d1100"])

    edited = corpus(2000, version=2)
    rows = rows_of(edited)
    rows[3]["metadata"] = "{"
    rows[4]["id"] = None
    rows[6]["chunks"] = ["NaN"]
    rows[8]["id"] = "d7"
    report = run(rows, workers=2, batch_size=100, on_error="report")
    assert {(one.id, one.reason.split(":")[0]) for one in report.failed} == {
        ("d3", "metadata of document 'd3' is no JSON"),
        (None, "a row's id is null; every document needs one"),
        ("d6", "the model gave NaN for 'NaN'"),
        ("d7", "document id 'd7' comes twice in one batch, of which the first is taken; ids are unique"),
    }
    assert report.rows == 2000
    as_they_were = {f"d{i}": one for i, one in enumerate(documents) if i in (3, 4, 6, 8)}
    assert state() == plain_state([as_they_were.get(one.id, one) for one in edited])


def test_a_job_that_ends_half_way_goes_on_from_its_checkpoint(run, cluster, state, plain_state, tmp_path, server):
    documents = corpus(1000)
    documents[999] = Document(id="\0", chunks=["what an id may be, nobody else is called"])
    rows = rows_of(documents)
    rows[834]["chunks"] = ["NaN"]
    options = {"batch_size": 50, "num_cpus": 0}  # reading takes one CPU, and the filter another
    context = cluster.data.DataContext.get_current()
    context.checkpoint_config = cluster.data.checkpoint.CheckpointConfig(
        id_column="id", checkpoint_path=str(tmp_path / "checkpoint"), delete_checkpoint_on_success=False
    )
    try:
        with pytest.raises(InvalidInputError, match=r"take 0\.5 of the cluster's 2 CPUs, but reading needs 2"):
            run(rows, batch_size=50)
        with pytest.raises(EncodingError, match="the model gave NaN") as caught:
            run(rows, **options)
        noted = pq.read_table(tmp_path / "checkpoint").column("id").to_pylist()
        kept = [id_ for id_ in noted if id_ in {document.id for document in documents}]
        assert 0 < len(kept) == len(set(kept)) < 1000
        assert len(kept) <= caught.value.report.rows < 1000
        assert "Done before this: documents written: " in caught.value.__notes__[0]

        rows = rows_of(documents)
        again = run(rows, **options)
        assert again.rows == 1000 - len(kept)
        assert state() == plain_state(documents)

        n_requests = len(server.requests)
        third = run(rows, **options)
        assert (third.rows, third.tokens) == (0, 0)
        assert not [path for _, path in server.requests[n_requests:] if path.endswith("/facet")]
    finally:
        context.checkpoint_config = None


def test_an_error_that_is_none_of_ours_is_rays_with_a_note(run, cluster):
    with pytest.raises(Exception, match="ZeroDivisionError: of a model") as caught:
        run([{"id": "d", "chunks": ["bug"]}])
    assert "Done before this: documents written: 0, " in caught.value.__notes__[0]
    # Whoever keeps the error keeps no worker.
    assert wait_until(lambda: cluster.available_resources()["CPU"] == 2.0)


def test_a_bulk_load_is_held_by_the_driver(run, server, state, plain_state, monkeypatch, capfd):
    from pplx_vectorstore.operations import server_indexing

    monkeypatch.setattr(server_indexing, "GRACE", 0.0)
    monkeypatch.setattr(server_indexing, "_RENEWAL", 0.0)
    monkeypatch.setattr(sync, "SECONDS_BETWEEN_LINES", 0.2)
    thresholds, holds = set(), set()
    change = server.updates.change

    def watch(name, threshold, metadata, segment_size):
        change(name, threshold, metadata, segment_size)
        thresholds.add(server.updates.threshold_of(name))
        holds.update(hold["until"] for hold in (metadata or {}).values() if "until" in hold)

    monkeypatch.setattr(server.updates, "change", watch)
    documents = corpus(300)
    report = run(rows_of(documents), batch_size=50, bulk_load=True, progress=True, index_fields={"number": "integer"})
    assert report.new_documents == 300 - 75
    assert report.tokens == sum(len(chunk.text.split()) for one in documents for chunk in one.chunks)
    assert 0 < report.model_seconds < report.seconds
    assert 0 in thresholds
    assert server.updates.threshold_of("documents") != 0
    assert len(holds) > 2
    assert server.client.get_collection("documents").payload_schema["metadata.number"].data_type == "float"
    assert state().keys() == plain_state(documents).keys()
    told = capfd.readouterr().err
    assert "sync_documents: documents written: " in told


def test_what_cannot_work_is_refused_before_anything_is_read(cluster, server, chaos, tmp_path):
    ds = cluster.data.from_items([{"id": "a", "text": "x", "metadata": {"n": 1}}])
    model = chaos.make_chaos(tmp_path)
    with pytest.raises(InvalidInputError, match=r"column 'metadata' must be of type string, not struct"):
        sync_documents(ds, server.url, model=model, **POOL)
    ds = ds.select_columns(["id", "text"])
    with pytest.raises(InvalidInputError, match="2 workers take 2 of the cluster's 2 CPUs, but reading needs 1"):
        sync_documents(ds, server.url, model=model, workers=2)
    for option in ({"on_error": "skip"}, {"patience": -1}, {"workers": 0}, {"batch_size": 2.5}, {"num_gpus": -1}):
        with pytest.raises(InvalidInputError, match=f"{next(iter(option))} must be"):
            sync_documents(ds, server.url, model=model, **POOL | option)
    with pytest.raises(ServerUnavailableError, match="gave no answer"):
        sync_documents(ds, "http://127.0.0.1:9", model=model, retries=0, **POOL)
    assert server.requests == []
    empty = sync_documents(cluster.data.from_items([]), server.url, model=model, **POOL)
    assert empty.rows == 0


def test_a_dataset_becomes_one_of_codes(cluster, server, chaos, tmp_path, hash_encoder):
    model = chaos.make_chaos(tmp_path)
    pool = {"num_cpus": 0.5, "batch_size": 2}
    chunks = {"a": ["one", "two"], "b": [], "c": ["three"]}
    ds = cluster.data.from_items([{"id": id_, "chunks": texts} for id_, texts in chunks.items()])
    found = {row["id"]: row for row in embed_documents(ds, model=model, **pool).take_all()}
    for (id_, texts), codes in zip(chunks.items(), hash_encoder(64).encode_documents(chunks.values()), strict=True):
        assert list(found[id_]["chunks"]) == texts
        np.testing.assert_array_equal(np.array([list(one) for one in found[id_]["codes"]]).reshape(-1, 64), codes)

    questions = cluster.data.from_items([{"query": "one", "n": 1}])
    with pytest.raises(StoreNotFoundError):
        search_dataset(questions, server.url, model=model, **pool)
    with pytest.raises(InvalidInputError, match="no column 'question'"):
        search_dataset(questions, server.url, model=model, column="question", **pool)
    with pytest.raises(InvalidInputError, match="no rows, and so no columns"):
        embed_documents(cluster.data.from_items([]), model=model, **pool)


def test_the_readmes_example_runs_and_prints_what_it_shows(cluster, server):
    """With a server on this machine in the place of the one that it names."""
    page = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    (code,), (expected,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "text"))
    assert code.count("http://localhost:6333") == 1
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code.replace("http://localhost:6333", server.url), "example", "exec"), {})
    score = re.compile(r"\d\.\d\d")
    assert score.sub("#", printed.getvalue()) == score.sub("#", expected)
    scores, shown = (list(map(float, score.findall(text))) for text in (printed.getvalue(), expected))
    # Hardware with and without bfloat16 differs in the second decimal.
    assert scores == pytest.approx(shown, abs=0.0201)
