"""Requests → codes: tokenizer threads, the queue, model threads. Knows no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from pplx_vectorstore.errors import ModelError
from pplx_vectorstore.serving.metrics import Metrics
from pplx_vectorstore.serving.scheduler import LANES, Job, Lane, QueueFullError, Scheduler
from pplx_vectorstore.serving.token_counting import SLICE_CHARACTERS, tokenize
from pplx_vectorstore.serving.wire import (
    DEFAULT_LIMITS,
    EmbeddingRequest,
    Limits,
    RefusalError,
    ServedModel,
    accepted_names,
    check_tokens,
)

if TYPE_CHECKING:
    from pplx_vectorstore.encoders.late_chunking import LateChunkingEncoder
    from pplx_vectorstore.encoders.rows import RowPlan, Vectors
    from pplx_vectorstore.quantization import Codes
    from pplx_vectorstore.windows import TokenIds

State = Literal["loading", "ready", "draining", "failed"]
T = TypeVar("T")

logger = logging.getLogger("pplx_vectorstore.serving")

# Texts of so many characters have a tokenizer thread of their own: they are queries, or little more.
_QUICK_CHARACTERS = 4_096
_CHARACTERS_PER_TOKEN = 4
# Requests and answers that may be held, as bytes; one alone may be larger.
MOST_HELD_BYTES = 512_000_000
# What a request takes beside its body.
_LEAST_BYTES = 16_384
_LOADING_RETRY_SECONDS = 5
_DRAINING_RETRY_SECONDS = 10
_WARM_UP_ROUNDS = 2
# Of the threads that embed documents where queries share the cores: about a tenth of a query's claim.
_NICENESS = 10


class ModelFailureError(Exception):
    """The model failed at a request.

    Args:
        is_final: Whether it would fail again.
    """

    def __init__(self, *, is_final: bool) -> None:
        super().__init__("the model failed")
        self.is_final = is_final


@dataclass(slots=True)
class _Work:
    """What a job in the queue is about."""

    plan: RowPlan
    pieces: Vectors
    queries: bool
    done: Future[None]
    queued: float
    begun: float | None = None


class EmbeddingService:
    """Answers requests with one model, several at once.

    Args:
        load: Loads the model; called in a thread by `start`.
        names: Names that the model answers to beside its own.
        limits: What a request may ask for.
        turn_tokens: Tokens of a batch; None for a quarter of what fills the device.
        most_held_bytes: Of requests and answers, all together.

    Attributes:
        metrics: What it counts.
        limits: As given.
    """

    def __init__(
        self,
        load: Callable[[], LateChunkingEncoder],
        *,
        names: Sequence[str] = (),
        limits: Limits = DEFAULT_LIMITS,
        turn_tokens: int | None = None,
        most_held_bytes: int = MOST_HELD_BYTES,
    ) -> None:
        self.limits = limits
        self.metrics = Metrics(queue_size=lambda: self._n_waiting, held_bytes=lambda: self._held_bytes)
        self.failure: BaseException | None = None
        self._load, self._names, self._turn_tokens = load, names, turn_tokens
        self._state: State = "loading"
        self._held_bytes = 0
        self._most_held_bytes = most_held_bytes
        # One thread each: the tokenizer has threads of its own, and more would take turns with the event loop.
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="texts-short")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="texts-long")
        self._loader = threading.Thread(target=self._load_and_serve, name="model-loader", daemon=True)
        self._threads: list[threading.Thread] = []

    @property
    def state(self) -> State:
        """Whether requests are answered."""
        return self._state

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way: no request being received, worked on or answered."""
        return not self._held_bytes

    @property
    def model(self) -> ServedModel:
        """What is served.

        Raises:
            RefusalError: 503 while there is none, or no more requests are taken.
        """
        self._require_ready()
        return self._model

    def start(self) -> None:
        """Load the model, in a thread; requests are refused until then."""
        self._loader.start()

    def drain(self) -> None:
        """Refuse requests from now on; those that were taken on are still answered."""
        self._state = "draining"

    def close(self) -> None:
        """End the threads; to be called when nothing is under way. A model that is being loaded is waited for."""
        self._loader.join()
        if self._threads:
            self._scheduler.close()
            for thread in self._threads:
                thread.join()
        self._quick.shutdown()
        self._slow.shutdown()

    def hold(self) -> Held:
        """Make room for a request, which grows as its body comes, and by `take_on`; for as long as the result is open.

        Raises:
            RefusalError: 429, so much is held already.
        """
        return Held(self)

    def take_on(self, request: EmbeddingRequest, held: Held, patience: float | None = None) -> None:
        """Make room at once for all that a request's work and answer take, or for none of it.

        What is not refused here is not refused for want of room later, and what is refused has to leave its room before
        anything else runs. Otherwise several that come at once could all be refused, each for what the others hold. The
        queue is asked here by the number of characters, and in `embed` by that of tokens: those that are refused then
        have held their room until these were counted.

        Args:
            request: Within the limits, but for its tokens.
            held: The request's room.
            patience: Seconds that whoever asks will wait; None for as long as it takes.

        Raises:
            RefusalError: 429, for too much work, or because so much is held already.
        """
        with _refusing():
            self._scheduler.check(request.characters // _CHARACTERS_PER_TOKEN, patience)
        held.grow(request.answer_bytes + self._piece_bytes(request))

    async def embed(
        self, request: EmbeddingRequest, held: Held, patience: float | None = None
    ) -> tuple[list[Codes], int]:
        """Embed a request's documents; cancelled, what is left of it is dropped.

        Args:
            request: That was taken on.
            held: The request's room.
            patience: Seconds that whoever asks will wait; None for as long as it takes.

        Returns:
            For each document int8, shape (n_chunks, dimensions); and the tokens of all.

        Raises:
            RefusalError: 400 for too many tokens, 429 for too much work.
            ModelFailureError: The model failed.
        """
        pool = self._quick if request.characters <= _QUICK_CHARACTERS else self._slow
        work, tokens = await self._prepare(request, pool)
        held.add(work.pieces.nbytes - self._piece_bytes(request))  # a few, of chunks that windows divide
        if work.plan.rows:
            with _refusing():
                await self._run_model(work, patience)
        finish = partial(self._encoder.finish_rows, work.plan, work.pieces, dimensions=request.dimensions)
        try:
            return await _run(pool, finish), tokens
        except ModelError as error:
            log_failure("the model failed", error)
            raise ModelFailureError(is_final=True) from None

    async def run_apart(self, n_bytes: int, function: Callable[[], T]) -> T:
        """Run what reads or writes so many bytes: beside the event loop, where that takes longer than going there."""
        if n_bytes <= SLICE_CHARACTERS:
            return function()
        return await _run(self._slow, function)

    def _piece_bytes(self, request: EmbeddingRequest) -> int:
        """Return what the vectors of a request take until they are quantized, as long as no window divides a chunk."""
        n_pieces = self._encoder.least_pieces([len(document) for document in request.documents])
        return n_pieces * self._model.dimension * np.dtype(np.float32).itemsize

    @property
    def _n_waiting(self) -> int:
        return self._scheduler.n_waiting if self._threads else 0

    def _require_ready(self) -> None:
        if self._state == "ready":
            return
        seconds = _DRAINING_RETRY_SECONDS if self._state == "draining" else _LOADING_RETRY_SECONDS
        why = {
            "loading": "the model is being loaded",
            "draining": "the server is about to end",
            "failed": "the model could not be loaded",
        }[self._state]
        raise RefusalError(503, f"{why}; try again in {seconds} s", headers={"Retry-After": str(seconds)})

    def _load_and_serve(self) -> None:
        try:
            encoder = self._load()
            if self._state == "loading":  # and not draining already
                self._serve(encoder)
        except BaseException as error:  # noqa: BLE001 - whoever runs the server reports it
            self.failure = error
            self._state = "failed"

    def _serve(self, encoder: LateChunkingEncoder) -> None:
        turn_tokens = self._turn_tokens or max(1, encoder.batch_tokens // 4)
        apart = encoder.runs_on_cpu
        self._encoder = encoder
        self._model = describe(encoder, self._names)
        self._scheduler = Scheduler(
            turn_tokens, pads=encoder.pads, apart=apart, tokens_per_second=_measure_rate(encoder, turn_tokens)
        )
        # On a GPU a batch of queries waits for one of documents at most; on a CPU that takes too long, and the cores
        # can be shared.
        for lanes in [(lane,) for lane in LANES] if apart else [LANES]:
            thread = threading.Thread(target=self._work, args=(lanes,), name=f"model-{'-'.join(lanes)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        if self._state == "loading":
            self._state = "ready"

    async def _prepare(self, request: EmbeddingRequest, pool: ThreadPoolExecutor) -> tuple[_Work, int]:
        """Tokenize a request, check its tokens and plan its rows; return also the tokens."""
        started = time.monotonic()

        async def encode(texts: list[str]) -> list[TokenIds]:
            return await _run(pool, partial(self._encoder.tokenizer.encode, texts))

        texts = [chunk for document in request.documents for chunk in document]
        chunk_ids = await tokenize(texts, encode, self.limits)
        counts = [len(document) for document in request.documents]
        tokens = _count_tokens(counts, chunk_ids)
        check_tokens(tokens, self.limits)
        # Where documents have a route of their own, what comes by the other are questions.
        queries = not request.nested and self._model.contextual
        plan = await _run(pool, partial(self._encoder.plan_rows, counts, chunk_ids, queries=queries))
        self.metrics.tokenization_duration.observe(time.monotonic() - started)
        self.metrics.input_length.observe(sum(tokens))
        return _Work(plan, self._encoder.new_pieces(plan), queries, Future(), time.monotonic()), sum(tokens)

    async def _run_model(self, work: _Work, patience: float | None) -> None:
        model = "queries" if work.queries and self._encoder.has_query_model else "documents"
        job = Job(work.plan.lengths, model=model, payload=work)
        self._scheduler.add(job, patience)
        try:
            await asyncio.wrap_future(work.done)
        finally:
            self._scheduler.cancel(job)  # which is nothing where it is done

    def _work(self, lanes: Sequence[Lane]) -> None:
        """Run batches until the scheduler is closed: what a model thread does."""
        if "short" not in lanes:
            _give_way()
        while (batch := self._scheduler.take(lanes)) is not None:
            now = time.monotonic()
            self.metrics.batch_size.observe(batch.size)
            self.metrics.batch_tokens.observe(batch.tokens)
            for job in batch.parts:
                if job.payload.begun is None:
                    job.payload.begun = now
                    self.metrics.queue_duration.observe(now - job.payload.queued)
            self._run_batch(batch.parts)
            for job in self._scheduler.finish(batch):
                self.metrics.inference_duration.observe(time.monotonic() - job.payload.begun)
                _resolve(job.payload.done, None)

    def _run_batch(self, parts: dict[Job, list[int]]) -> None:
        """Run rows of one or several jobs; what fails of several is run again one by one, so that one fails alone."""
        works = [(job.payload, rows) for job, rows in parts.items()]
        try:
            pooled = self._encoder.run_rows(
                [work.plan.rows[row] for work, rows in works for row in rows],
                [work.plan.spans[row] for work, rows in works for row in rows],
                queries=works[0][0].queries,
            )
            sizes = [sum(len(work.plan.spans[row]) for row in rows) for work, rows in works]
            for (work, rows), of_work in zip(works, np.split(pooled, np.cumsum(sizes)[:-1]), strict=True):
                work.plan.place(work.pieces, rows, of_work)
        except Exception as error:  # noqa: BLE001 - the requests fail, the server does not
            if len(parts) > 1:
                for job, rows in parts.items():
                    self._run_batch({job: rows})
                return
            log_failure("the model failed", error)
            (job,) = parts
            self._scheduler.cancel(job)
            _resolve(job.payload.done, ModelFailureError(is_final=isinstance(error, ModelError)))


class Held:
    """Room for some bytes, until it is left; see `EmbeddingService.hold`."""

    def __init__(self, service: EmbeddingService) -> None:
        self._service = service
        self._n_bytes = 0
        self.grow(_LEAST_BYTES)

    def require(self, n_bytes: int) -> None:
        """Refuse what there is no room for now, without holding it.

        Raises:
            RefusalError: 429, so much is held already.
        """
        service = self._service
        others = service._held_bytes - self._n_bytes
        if others and service._held_bytes + n_bytes > service._most_held_bytes:
            raise RefusalError(
                429,
                "the server holds as many bytes of requests and answers as it may; try again in about 1 s",
                headers={"Retry-After": "1"},
            )

    def grow(self, n_bytes: int) -> None:
        """Make room for more.

        Raises:
            RefusalError: 429, so much is held already.
        """
        self.require(n_bytes)
        self.add(n_bytes)

    def add(self, n_bytes: int) -> None:
        """Hold more, whether there is room or not."""
        self._service._held_bytes += n_bytes
        self._n_bytes += n_bytes

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self._service._held_bytes -= self._n_bytes
        self._n_bytes = 0


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Refuse a request that the queue does not take."""
    try:
        yield
    except QueueFullError as full:
        raise RefusalError(
            429,
            f"the server has more work than it can do in time; try again in about {full.retry_after} s",
            headers={"Retry-After": str(full.retry_after)},
        ) from None


def _give_way() -> None:
    """Let others have the cores before this thread and those that it starts; only Linux tells threads apart."""
    if sys.platform.startswith("linux"):
        here = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, min(here + _NICENESS, 19))


def describe(encoder: LateChunkingEncoder, names: Sequence[str] = ()) -> ServedModel:
    """Return what clients are told of a model.

    Args:
        encoder: That runs it.
        names: Names that it answers to beside its own.
    """
    fingerprint = encoder.fingerprint.identity() | {"squared_norm": encoder.fingerprint.squared_norm}
    return ServedModel(
        name=encoder.spec.name,
        names=accepted_names([encoder.spec.name, *names]),
        contextual=encoder.spec.context_weight > 0,
        dimension=encoder.spec.dimension,
        min_dimension=min(encoder.spec.min_dimension, encoder.spec.dimension),
        fingerprint=fingerprint,
        digest=hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16],
        created=int(time.time()),
    )


def _measure_rate(encoder: LateChunkingEncoder, turn_tokens: int) -> float:
    """Run a batch twice, which also makes the next ones faster; return tokens a second."""
    (ids,) = encoder.tokenizer.encode(["A river, a road and a railway cross the valley. " * (1 + turn_tokens // 10)])
    plan = encoder.plan_rows([1], [ids[:turn_tokens]])
    rows = plan.lengths
    seconds = 1.0
    for _ in range(_WARM_UP_ROUNDS):
        started = time.perf_counter()
        encoder.run_rows(plan.rows, plan.spans)
        seconds = time.perf_counter() - started
    return sum(rows) / max(seconds, 1e-6)


def _count_tokens(counts: Sequence[int], chunk_ids: Sequence[TokenIds]) -> list[int]:
    """Return the tokens of each document, what the model puts between and around its chunks not counted."""
    sizes = iter(map(len, chunk_ids))
    return [sum(next(sizes) for _ in range(count)) for count in counts]


async def _run(pool: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, function)


def _resolve(future: Future[None], error: Exception | None) -> None:
    """Set a future's result, unless whoever waited for it has gone."""
    if future.set_running_or_notify_cancel():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def log_failure(what: str, error: BaseException) -> None:
    """Log where something failed, but not what the error says, which may quote a text."""
    where = " < ".join(
        f"{frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})"
        for frame in reversed(traceback.extract_tb(error.__traceback__))
    )
    logger.error("%s: %s at %s", what, type(error).__name__, where)
