"""Attempts, deaths and sums, without a cluster."""

import pickle

from ray_pplx_vectorstore import FailedDocument, IngestionReport
from ray_pplx_vectorstore.ledger import Attempt, Ledger
from ray_pplx_vectorstore.reports import go_on_from

from pplx_vectorstore import SyncReport, Usage


def test_each_batch_is_counted_once():
    ledger = Ledger()
    one = IngestionReport(
        documents=3,
        unchanged_documents=1,
        empty_documents=("e",),
        failed=(FailedDocument(id="f", reason="r"),),
        tokens=7,
    )
    two = IngestionReport(relabelled_documents=2, usage=Usage(tokens=5), model_seconds=0.5)
    for batch, report in (("a", one), ("b", two), ("a", IngestionReport(unchanged_documents=4))):
        assert ledger.begin(batch) == Attempt(1, {})
        ledger.end(batch, report)
    report = ledger.report()
    assert report == IngestionReport(
        documents=3,
        unchanged_documents=1,
        relabelled_documents=2,
        empty_documents=("e",),
        usage=Usage(tokens=5),
        failed=(FailedDocument(id="f", reason="r"),),
        tokens=7,
        model_seconds=0.5,
    )
    assert report.rows == 7


def test_deaths_are_laid_to_the_document_that_was_alone():
    ledger = Ledger()
    assert [ledger.begin("a").number for _ in range(3)] == [1, 2, 3]
    ledger.begin_alone("a", "x")
    ledger.begin_alone("a", "y")
    assert ledger.begin("b") == Attempt(1, {})
    assert ledger.begin("a") == Attempt(4, {"y": 1})
    assert ledger.begin("a") == Attempt(5, {"y": 1})  # before any was alone
    ledger.begin_alone("a", "y")
    assert ledger.begin("a") == Attempt(6, {"y": 2})
    ledger.end("a", IngestionReport())
    assert ledger.begin("a") == Attempt(1, {})


def test_of_the_same_rows_in_two_batches_one_may_end_first():
    ledger = Ledger()
    for _ in range(2):
        ledger.begin("a")
    ledger.end("a", IngestionReport(documents=1))
    ledger.begin_alone("a", "x")
    ledger.end("a", IngestionReport(unchanged_documents=1))
    assert ledger.begin("a") == Attempt(1, {})


def test_the_first_error_is_kept():
    ledger = Ledger()
    assert ledger.error() is None
    ledger.fail(pickle.dumps(ValueError("first")))
    ledger.fail(b"second")
    assert str(pickle.loads(ledger.error())) == "first"


def test_what_was_written_before_an_outage_is_counted_as_written():
    before = SyncReport()
    for told in (
        SyncReport(documents=5, new_documents=4, relabelled_documents=1, unchanged_documents=2, chunks=9),
        SyncReport(),  # it got nowhere
        SyncReport(documents=1, new_documents=1, unchanged_documents=8, chunks=2, empty_documents=("e",)),
        SyncReport(documents=2, unchanged_documents=10, chunks=3, empty_documents=("e",)),
    ):
        before = go_on_from(before, told)
    assert before == SyncReport(
        documents=8, new_documents=5, relabelled_documents=1, unchanged_documents=3, chunks=14, empty_documents=("e",)
    )
