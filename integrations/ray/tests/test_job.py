"""What the driver does beside a job, without a cluster."""

import threading
import types

import pytest
import ray
from ray_pplx_vectorstore import IngestionReport, search_dataset, sync, sync_documents

from pplx_vectorstore.errors import InvalidInputError, ServerError

NOBODY = types.SimpleNamespace(
    report=types.SimpleNamespace(remote=lambda: None), error=types.SimpleNamespace(remote=lambda: None)
)


@pytest.fixture
def dead_ledger(monkeypatch):
    """A ledger of which Ray tells that it is dead."""

    def tell(_):
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(ray, "get", tell)
    return NOBODY


def test_a_bulk_load_goes_on_whatever_else_goes_wrong(dead_ledger, monkeypatch, capfd):
    """Others would take it for abandoned after some minutes, and have everything indexed."""
    monkeypatch.setattr(sync, "SECONDS_BETWEEN_LINES", 0.01)
    told = threading.Semaphore(0)

    def still_loading():
        told.release()
        raise ServerError("not now")

    job = sync._Job(None, (), still_loading, 0.0, told=True)
    with job._watch(dead_ledger):
        for _ in range(3):
            assert told.acquire(timeout=30)
    assert capfd.readouterr().err == ""


def test_a_dead_ledger_does_not_hide_why_a_job_ended(dead_ledger):
    assert sync._ask(dead_ledger) == (None, IngestionReport())


def test_rows_are_not_left_out_in_silence():
    ds = types.SimpleNamespace(context=types.SimpleNamespace(max_errored_blocks=-1))
    with pytest.raises(InvalidInputError, match="max_errored_blocks is -1: it would leave out documents"):
        sync_documents(ds, "http://127.0.0.1:9", model="all-minilm-l6-v2")


@pytest.mark.parametrize("patience", [-1, True, None, float("inf"), float("nan"), "1"])
def test_patience_is_seconds(patience):
    for job in (sync_documents, search_dataset):
        with pytest.raises(InvalidInputError, match="patience must be seconds of at least 0, not "):
            job(None, "http://127.0.0.1:9", model="all-minilm-l6-v2", patience=patience)
