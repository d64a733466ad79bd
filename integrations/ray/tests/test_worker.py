"""A worker and the ledger, without a cluster."""

import functools
import itertools
import json
import pickle
import types

import pyarrow as pa
import pytest
from ray_pplx_vectorstore import patience, worker
from ray_pplx_vectorstore.ledger import Attempt, Ledger
from ray_pplx_vectorstore.place import ModelChoice, Place
from ray_pplx_vectorstore.sink import RESULT, read_reports
from ray_pplx_vectorstore.worker import SyncWorker

from pplx_vectorstore import VectorStore
from pplx_vectorstore.errors import (
    DuplicateDocumentError,
    EncodingError,
    InvalidDocumentError,
    SchemaMismatchError,
    ServerUnavailableError,
)

SCHEMA = pa.schema([("id", pa.string()), ("chunks", pa.list_(pa.string())), ("metadata", pa.string())])


def batch_of(n, **changed):
    """Rows d0, d1, …; ``d1={"metadata": "{"}`` changes one."""
    rows = [{"id": f"d{i}", "chunks": [f"text of {i}"]} for i in range(n)]
    return pa.Table.from_pylist([row | changed.get(row["id"], {}) for row in rows], SCHEMA)


class Handle:
    """An object as the handle of an actor would offer it, where ``ray.get`` has nothing to wait for."""

    def __init__(self, value):
        self._value = value

    def __getattr__(self, name):
        return types.SimpleNamespace(remote=getattr(self._value, name))


@pytest.fixture
def ledger():
    return Ledger()


@pytest.fixture
def ask(ledger):
    """``ask("begin", "a")`` → what the ledger answers."""
    return lambda verb, *arguments: getattr(ledger, verb)(*arguments)


@pytest.fixture
def make_worker(server, ledger, chaos, tmp_path, hash_encoder, monkeypatch):
    """A factory of workers on a collection that exists: ``make_worker(on_error="report", patience=0)``."""
    monkeypatch.setattr(worker.ray, "get", lambda answer: answer)
    with VectorStore.connect(server.url, encoder=hash_encoder(64)):
        pass

    def make(on_error="report", patience=0.0, model=None):
        choice = ModelChoice(model=model or chaos.make_chaos(tmp_path), chunk_tokens=256)
        options = {"collection": "documents", "retries": 0}
        place = Place(url=server.url, model=choice, options=options)
        return SyncWorker(place, Handle(ledger), on_error, patience)

    return make


def ids_of(result):
    return [id_ for id_, report in zip(*result.to_pydict().values(), strict=True) if report is None]


def report_of(result):
    assert result.schema == RESULT
    (report,) = read_reports(result)
    return report


def test_ids_of_what_is_stored_and_a_report_come_out(make_worker, ask):
    one = make_worker()
    result = one(batch_of(5))
    assert ids_of(result) == [f"d{i}" for i in range(5)]
    report = report_of(result)
    assert (report.new_documents, report.chunks, report.tokens, report.rows) == (5, 5, 15, 5)
    assert ask("report") == report
    again = report_of(one(batch_of(5)))
    assert (again.unchanged_documents, again.tokens, again.rows) == (5, 0, 5)
    assert one(pa.table({})).equals(RESULT.empty_table())
    assert read_reports(pa.table({})) == []


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"metadata": "[]"}, InvalidDocumentError, "metadata of document 'd3' must be a JSON object"),
        ({"id": "d2"}, DuplicateDocumentError, "document id 'd2' comes twice in one batch"),
        ({"chunks": ["NaN"]}, EncodingError, "the model gave NaN"),
    ],
)
def test_what_is_wrong_ends_the_job_or_is_reported(make_worker, ask, wrong, error, message):
    with pytest.raises(error, match=message):
        make_worker("raise")(batch_of(5, d3=wrong))
    told = pickle.loads(ask("error"))
    assert type(told) is error
    assert message in str(told)
    result = make_worker("report")(batch_of(5, d3=wrong))
    assert ids_of(result) == ["d0", "d1", "d2", "d4"]
    report = report_of(result)
    assert [one.id for one in report.failed] == [wrong.get("id", "d3")]
    assert message in report.failed[0].reason
    assert (report.rows, report.chunks) == (5, 4)


def test_what_the_server_refuses_is_reported_and_the_rest_is_stored(make_worker):
    too_large = {"metadata": json.dumps({"large": "y" * 33 * 2**20})}
    result = make_worker()(batch_of(4, d1=too_large))
    assert ids_of(result) == ["d0", "d2", "d3"]
    report = report_of(result)
    assert [one.id for one in report.failed] == ["d1"]
    assert "larger than allowed" in report.failed[0].reason
    assert report.rows == 4


def test_a_server_that_is_away_is_waited_for(make_worker, be_away):
    impatient, patient = make_worker(), make_worker(patience=60.0)
    patient(batch_of(1))
    with be_away():
        with pytest.raises(ServerUnavailableError):
            impatient(batch_of(5))
        report = report_of(patient(batch_of(5)))
    assert (report.new_documents, report.unchanged_documents, report.rows) == (4, 1, 5)


def test_what_was_written_before_an_outage_counts_also_where_a_document_is_wrong_after_it(make_worker, monkeypatch):
    """The server goes away when two of three documents are written; the third is what the model cannot embed."""
    monkeypatch.setattr(patience, "_LONGEST_WAIT", 0.01)
    sync, times = VectorStore.sync, itertools.count()

    def sync_or_go_away(store, documents):
        if next(times):
            return sync(store, documents)
        error = ServerUnavailableError("away")
        error.report = sync(store, documents[:2])
        raise error

    monkeypatch.setattr(VectorStore, "sync", sync_or_go_away)
    report = report_of(make_worker(patience=60.0)(batch_of(3, d2={"chunks": ["NaN"]})))
    assert (report.new_documents, report.unchanged_documents, len(report.failed)) == (2, 0, 1)


def test_a_batch_has_one_name_and_another_of_the_same_ids_another(make_worker, ledger, monkeypatch):
    """Else the second of them would look like the first, begun again since its worker has died."""
    begun = []
    begin = ledger.begin
    monkeypatch.setattr(ledger, "begin", lambda name: begun.append(name) or begin(name))
    one = make_worker()
    for batch in (batch_of(2), batch_of(2), batch_of(2, d1={"chunks": ["another"]})):
        one(batch)
    assert begun[0] == begun[1] != begun[2]


def test_a_collection_of_another_model_ends_the_job(make_worker, ask, hash_encoder):
    make_worker()(batch_of(1))
    another = make_worker(model=functools.partial(hash_encoder, 64, name="another"))
    with pytest.raises(SchemaMismatchError, match="another"):
        another(batch_of(1))
    assert isinstance(pickle.loads(ask("error")), SchemaMismatchError)


def test_an_error_of_a_model_is_left_to_ray(make_worker, ask):
    with pytest.raises(ZeroDivisionError):
        make_worker()(batch_of(2, d1={"chunks": ["bug"]}))
    assert ask("error") is None


def test_a_document_at_which_workers_died_is_not_tried_again(make_worker, ask, monkeypatch):
    """By itself, as the first worker of a batch that has killed three others."""
    monkeypatch.setattr(worker, "_name_of", lambda batch: "name")
    for _ in range(worker.WHOLE_ATTEMPTS):
        ask("begin", "name")
    for number in range(worker.MOST_DEATHS):
        assert ask("begin", "name").number == worker.WHOLE_ATTEMPTS + number + 1
        ask("begin_alone", "name", "d2")
    with pytest.raises(EncodingError, match="document 'd2' ended the process that embedded it, 2 times"):
        make_worker("raise")(batch_of(4, d2={"chunks": ["kill always"]}))
    result = make_worker("report")(batch_of(4, d2={"chunks": ["kill always"]}))
    assert ids_of(result) == ["d0", "d1", "d3"]
    report = report_of(result)
    assert [one.id for one in report.failed] == ["d2"]
    assert report.rows == 4
    assert ask("begin", "name") == Attempt(1, {})
