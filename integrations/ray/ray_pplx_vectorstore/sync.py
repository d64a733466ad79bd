"""A dataset of documents → a store: what the driver does."""

from __future__ import annotations

import contextlib
import gc
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

import ray
from ray.data import Dataset
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pplx_vectorstore import CollectionConfig, PplxVectorStoreError, VectorStore
from pplx_vectorstore.chunking import DEFAULT_CHUNK_TOKENS
from pplx_vectorstore.collection import DEFAULT_COLLECTION, IndexFields
from pplx_vectorstore.engines.retrying import DEFAULT_RETRIES
from pplx_vectorstore.engines.server import DEFAULT_TIMEOUT
from pplx_vectorstore.errors import InvalidInputError, StoreError, StoreNotFoundError
from pplx_vectorstore.operations.session import DEFAULT_PARALLEL
from ray_pplx_vectorstore.ledger import Ledger
from ray_pplx_vectorstore.patience import DEFAULT_PATIENCE, check_patience
from ray_pplx_vectorstore.place import Model, ModelChoice, Place
from ray_pplx_vectorstore.pool import DEFAULT_BATCH_SIZE, Pool
from ray_pplx_vectorstore.reports import IngestionReport
from ray_pplx_vectorstore.rows import document_columns
from ray_pplx_vectorstore.sink import CountingDatasink
from ray_pplx_vectorstore.worker import OnError, SyncWorker

SECONDS_BETWEEN_LINES = 60.0


def sync_documents(
    ds: Dataset,
    url: str,
    *,
    model: Model,
    collection: str = DEFAULT_COLLECTION,
    model_options: Mapping[str, Any] | None = None,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    workers: int = 1,
    num_gpus: float = 0,
    num_cpus: float | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_error: OnError = "raise",
    bulk_load: bool = False,
    patience: float = DEFAULT_PATIENCE,
    tenant: str | None = None,
    config: CollectionConfig | None = None,
    index_fields: IndexFields | None = None,
    prefer_grpc: bool = False,
    grpc_port: int | None = None,
    timeout: float | None = DEFAULT_TIMEOUT,
    retries: int = DEFAULT_RETRIES,
    parallel: int = DEFAULT_PARALLEL,
    progress: bool = True,
) -> IngestionReport:
    """Embed and write what is new or changed of a dataset, by several workers.

    A row is a document, with the columns `id` (string), `text` (string) or `chunks` (list<string>), and, where there
    are any, `metadata` (a JSON object as a string) and `format` (string); see ``Document``. Other columns are not read.
    No document is deleted. Whatever happens on the way, the same call again completes the rest, and embeds nothing that
    is there already. The workers read keys from their environment: QDRANT_API_KEY, and PERPLEXITY_API_KEY for
    ``model_options={"backend": "api"}``.

    Args:
        ds: The documents. Each id once: of two rows with one id, either may win.
        url: The server, as all workers reach it.
        model: What ``load_encoder`` takes, or a function that makes an encoder; each worker loads it once.
        collection: Created if it does not exist.
        model_options: Of ``load_encoder``, such as ``{"dtype": "bfloat16"}``.
        chunk_tokens: Most tokens of a chunk, where documents are given as text.
        workers: Processes with a model each, wherever the cluster has room for them.
        num_gpus: GPUs of a worker.
        num_cpus: CPUs that Ray counts as taken by a worker; None for 1. Reading needs some that are not. On CPUs, a
            model computes in as many threads, one at least, unless OMP_NUM_THREADS is set.
        batch_size: Documents that a worker syncs at once.
        on_error: "raise" to end the job with the error of the first document that cannot be stored; "report" to name
            those in the report, and store all others.
        bulk_load: Have nothing indexed meanwhile, and everything at the end; see ``VectorStore.bulk_load``.
        patience: Seconds for which a server that is away is waited for.
        tenant: Whose documents they are, in a collection with tenants.
        config: How to lay the collection out when it is created.
        index_fields: Metadata fields to index.
        prefer_grpc: Send points over gRPC.
        grpc_port: Where gRPC is, if not on the port after the URL's.
        timeout: Seconds for one request.
        retries: How often a worker tries a request again before it is patient.
        parallel: Upserts under way at once from each worker.
        progress: Tell on standard error once a minute how far the job is, where that is no terminal. There, Ray Data
            shows bars of its own.

    Returns:
        What was done; each row that came is counted once.

    Raises:
        InvalidInputError: An argument or the dataset's columns are not usable.
        PplxVectorStoreError: As for ``VectorStore.sync``. Its ``report`` tells what was done before, as far as the
            workers have told.
    """
    if on_error not in get_args(OnError):
        raise InvalidInputError(f"on_error must be 'raise' or 'report', not {on_error!r}")
    patience = check_patience(patience)
    if ds.context.max_errored_blocks:
        raise InvalidInputError(
            f"Ray Data's max_errored_blocks is {ds.context.max_errored_blocks}: it would leave out documents that "
            "cannot be stored, and not tell; set it to 0, and have on_error='report' name them"
        )
    place = Place(
        url=url,
        model=ModelChoice(model=model, options=dict(model_options or {}), chunk_tokens=chunk_tokens),
        options={
            "collection": collection,
            "tenant": tenant,
            "prefer_grpc": prefer_grpc,
            "grpc_port": grpc_port,
            "timeout": timeout,
            "retries": retries,
            "parallel": parallel,
        },
    )
    pool = Pool(workers=workers, num_gpus=num_gpus, num_cpus=num_cpus, batch_size=batch_size)
    pool.require_room_for_reading(ds)
    columns = document_columns(ds.schema())
    started = time.monotonic()
    with contextlib.closing(_open_store(place, pool, config, index_fields)) as store:
        if columns is None:
            return IngestionReport()
        with store.bulk_load() if bulk_load else contextlib.nullcontext(None) as still_loading:
            job = _Job(pool, (place, on_error, patience), still_loading, started, told=progress)
            report, error = job.run(ds.select_columns(columns))
            if error is not None:
                gc.collect()  # Ray's frames and errors hold one another, and so the workers
                raise error
    return report


class _Job:
    """A job, once all is checked and the store is open.

    Args:
        pool: Its workers.
        arguments: Of a `SyncWorker`, but for the ledger.
        still_loading: To be called now and then while a bulk load goes on; None where none does.
        started: Of ``time.monotonic()``.
        told: Whether a line is printed now and then.
    """

    def __init__(
        self,
        pool: Pool,
        arguments: tuple[Place, OnError, float],
        still_loading: Callable[[], None] | None,
        started: float,
        *,
        told: bool,
    ) -> None:
        self._pool = pool
        self._arguments = arguments
        self._still_loading = still_loading
        self._started = started
        self._told = told

    def run(self, documents: Dataset) -> tuple[IngestionReport, Exception | None]:
        """Sync documents; return what was done, and the error that has ended it.

        It is not raised here: as long as a traceback holds this frame, workers keep their CPUs and GPUs.
        """
        place, on_error, patience = self._arguments
        # Where the driver is, whose end is the job's anyway.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor: Any = ray.remote(num_cpus=0)(Ledger)
        ledger = actor.options(scheduling_strategy=here).remote()
        synced = self._pool.map(self._pool.repartition(documents), SyncWorker, (place, ledger, on_error, patience))
        sink = CountingDatasink()
        try:
            with self._watch(ledger), warnings.catch_warnings():
                # With a checkpoint, Ray warns that rows may be written twice. Those that are, are found unchanged.
                warnings.filterwarnings("ignore", "Checkpointing with non-file datasink")
                synced.write_datasink(sink)
        except Exception as error:  # noqa: BLE001 - returned, to be raised
            pickled, report = _ask(ledger)
            report = self._timed(report)
            return report, _with_report(error.with_traceback(None), pickled, report)
        finally:
            ray.kill(ledger)
        return self._timed(sink.report), None

    @contextlib.contextmanager
    def _watch(self, ledger: Any) -> Iterator[None]:
        """Within the block, tell now and then how far the job is, and others that its bulk load goes on."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(SECONDS_BETWEEN_LINES):
                # What goes wrong here is no reason to stop: others would take the load for abandoned, and end it.
                if self._still_loading is not None:
                    with contextlib.suppress(StoreError):  # the next time, then
                        self._still_loading()
                if self._told and not sys.stderr.isatty():
                    # The job itself tells of the one; of the other, nobody reads.
                    with contextlib.suppress(ray.exceptions.RayError, OSError):
                        report = self._timed(ray.get(ledger.report.remote()))
                        print(f"sync_documents: {_told(report)}", file=sys.stderr, flush=True)

        thread = threading.Thread(target=watch, name="pplx-vectorstore", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _timed(self, report: IngestionReport) -> IngestionReport:
        return replace(report, seconds=time.monotonic() - self._started)


def _open_store(
    place: Place, pool: Pool, config: CollectionConfig | None, index_fields: IndexFields | None
) -> VectorStore:
    """Open the store on the driver, without its model, which may be too large for it: a worker creates the collection.

    So all that is wrong with the address, the key or the collection is told before anything is read.
    """
    with contextlib.suppress(StoreNotFoundError):
        return place.open_without_model(index_fields=index_fields)
    create = pool.remote(_create_collection)
    try:
        ray.get(create.remote(place, config))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PplxVectorStoreError):
            raise error.cause from None
        raise
    return place.open_without_model(index_fields=index_fields)


def _create_collection(place: Place, config: CollectionConfig | None) -> None:
    place.open(place.model.load(), create=True, config=config).close()


def _ask(ledger: Any) -> tuple[bytes | None, IngestionReport]:
    """Ask the ledger for the error that has ended a job, pickled, and for what was done; nothing where it is gone."""
    try:
        pickled, report = ray.get([ledger.error.remote(), ledger.report.remote()])
    except ray.exceptions.RayActorError:  # which may be why the job ended, and what Ray says of that is to be read
        return None, IngestionReport()
    return pickled, report


def _with_report(error: Exception, pickled: bytes | None, report: IngestionReport) -> Exception:
    """Return the error of ours that has ended a job, or else Ray's; it tells what all workers have done."""
    note = f"Done before this: {_told(report)}. That is kept; the same call again completes the rest."
    if pickled is None:
        error.__context__ = None  # which holds frames, too
        error.add_note(note)
        return error
    ours: PplxVectorStoreError = pickle.loads(pickled)
    ours.report = report
    ours.__notes__ = [note]  # in the place of one that tells of a single worker
    return ours


def _told(report: IngestionReport) -> str:
    counts = {
        "documents written": report.documents,
        "chunks": report.chunks,
        "unchanged": report.unchanged_documents,
        "relabelled": report.relabelled_documents,
        "failed": len(report.failed),
    }
    told = ", ".join(f"{what}: {n:,}" for what, n in counts.items())
    return f"{told}; {report.rows / report.seconds:,.0f} documents/s"
