"""Models behind the embeddings API, hosted or served by oneself, through Perplexity's SDK."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.coroutines import run_now
from pplx_vectorstore.encoders.api_requests import (
    ENCODING_FORMATS,
    MOST_DOCUMENT_TOKENS,
    MOST_REQUEST_TOKENS,
    Encoding,
    Item,
    ItemPlanner,
    Piece,
    merge_codes,
    pack_requests,
    read_answer,
)
from pplx_vectorstore.encoders.batching import group_by_characters
from pplx_vectorstore.encoders.checkpoints import fetch_tokenizer, find_tokenizer
from pplx_vectorstore.encoders.late_chunking import check_documents, check_texts, with_options
from pplx_vectorstore.encoders.meter import Meter, Progress
from pplx_vectorstore.encoders.query_cache import QueryCache
from pplx_vectorstore.encoders.served import DIGEST_HEADER, ServedModel
from pplx_vectorstore.encoders.unfinished import Unfinished, key_of
from pplx_vectorstore.errors import ApiError, EncodingError, InvalidInputError, MissingExtraError
from pplx_vectorstore.forked import leave_to_the_other, renew_when_forked
from pplx_vectorstore.guarded_http.access import KEY_VARIABLE as SERVED_KEY_VARIABLE
from pplx_vectorstore.models import KNOWN_MODELS, ModelSpec, find_spec
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.redaction import redact, without_password
from pplx_vectorstore.reports import Usage
from pplx_vectorstore.tokenization import ChunkTokenizer

T = TypeVar("T")

KEY_VARIABLES = ("PERPLEXITY_API_KEY", "PPLX_API_KEY")
_BASE_URL_VARIABLE = "PERPLEXITY_BASE_URL"
# The SDK must have one, and a server without a key does not look at it.
_NO_KEY = "none"
# A server of one's own may run on a CPU, where the hosted service's largest request takes minutes.
_SERVED_REQUEST_TOKENS = 16_384
_SERVED_TIMEOUT = 600.0
_A_CONTEXTUAL_MODEL, _ANOTHER_MODEL = "pplx-embed-context-v1-0.6b", "pplx-embed-v1-0.6b"

# The SDK tries again what the network or the service failed at, but takes any body for an answer.
_TRIES_FOR_A_SOUND_ANSWER = 3
_CONNECT_SECONDS = 10.0
# What is planned and asked for together: several requests for each that may be under way.
_REQUESTS_PLANNED = 4
_CHARACTERS_PER_TOKEN = 3
# Of sizes, not of quotas: "exceeds the maximum of 120000 tokens", "too many chunks", "input is too long".
_TOO_LARGE = re.compile(
    r"too (large|long|big)"
    r"|(too many|exceed\w*|maximum|at most|limit)\b.*\b(tokens?|chunks?|documents?|texts?|inputs?|length)"
    r"|\b(tokens?|chunks?|documents?|texts?|inputs?|length)\b.*\b(exceed\w*|maximum|at most)",
    re.IGNORECASE | re.DOTALL,
)
_NOT_OF_SIZE = re.compile(r"quota|rate|credit|balance|dimension", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiOptions:
    """How the hosted service is asked.

    Attributes:
        concurrency: Requests that an encoder may have under way at once, and as many more in each event loop.
        timeout: Seconds to wait for an answer before asking again.
        max_retries: How often a request that failed is tried again, waiting half a second to eight, or as
            long as the service says, if that is a minute at most.
        encoding: "int8", or "binary" for answers an eighth of the size: codes are then +1 and -1.
        base_url: Where the service is; None for PERPLEXITY_BASE_URL or its own address.
        tokenizer: Folder with the model's tokenizer.json; None to fetch it from the hub, once.
    """

    concurrency: int = 4
    timeout: float = 120.0
    max_retries: int = 6
    encoding: Encoding = "int8"
    base_url: str | None = None
    tokenizer: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("max_retries", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidInputError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, (int, float)) or not self.timeout > 0:
            raise InvalidInputError(f"timeout must be a number of seconds above 0, not {self.timeout!r}")
        if self.encoding not in ENCODING_FORMATS:
            raise InvalidInputError(f"encoding must be 'int8' or 'binary', not {self.encoding!r}")
        if self.base_url is not None:
            _require_plain("base_url", self.base_url)


@dataclass(frozen=True, slots=True)
class _Route:
    """Where texts go, and how they are cut for that."""

    contextual: bool
    planner: ItemPlanner
    request_tokens: int | None = None


class ApiEncoder:
    """Embeds by the hosted service, or by a server of one's own. Threads and event loops may share one.

    Documents are cut into the windows that a local model would see, so that the vectors are those of the same
    model run locally, but for the rounding of its arithmetic; where a chunk is longer than a window, its
    parts are separate texts to the service. A server of one's own (``pplx-vectorstore serve``) cuts them itself, and
    gets them whole, up to 32,000 tokens. Blank chunks are never sent. The key is kept by the SDK's client
    alone: it is not pickled, and an unpickled encoder takes its key from the environment.

    Args:
        spec: A hosted model.
        tokenizer: The model's own; requests are sized by it.
        api_key: None for the environment's.
        options: How the service is asked.
        min_context: Tokens of context on each side of a chunk; None for an eighth of the window.
        query_cache: Queries whose codes are remembered.
        served: The model as a server of one's own describes it; None for the hosted service.

    Attributes:
        unfinished: Where to keep what the service answered until it is stored; None for nowhere.

    Raises:
        InvalidInputError: There is no key, or a setting is out of range.
        MissingExtraError: The SDK is not installed.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: ChunkTokenizer,
        *,
        api_key: str | None = None,
        options: ApiOptions | None = None,
        min_context: int | None = None,
        query_cache: int = 0,
        served: ServedModel | None = None,
    ) -> None:
        self._options = options or ApiOptions()
        self._served = served
        self.spec = replace(spec, quantizer="sign") if self._options.encoding == "binary" else spec
        self.tokenizer = tokenizer
        if spec.query_prefix or spec.document_prefix or spec.query_model:
            raise InvalidInputError(
                f"{spec.name} has prefixes or an encoder of queries, which the service does not take"
            )
        if not 1 <= spec.window_tokens <= MOST_DOCUMENT_TOKENS and served is None:
            raise InvalidInputError(
                f"window_tokens of the hosted {spec.name} must be from 1 to {MOST_DOCUMENT_TOKENS}, "
                f"not {spec.window_tokens}"
            )
        self._min_context = spec.window_tokens // 8 if min_context is None else min_context
        planner = ItemPlanner(
            tokenizer,
            None if spec.separator is None else tokenizer.token_id(spec.separator),
            capacity=spec.window_tokens if served is None else MOST_DOCUMENT_TOKENS,
            min_context=self._min_context,
            contextual=spec.context_weight > 0,
        )
        self._documents = self._queries = _Route(spec.context_weight > 0, planner)
        if served is not None:  # whose texts without a document are queries
            alone = ItemPlanner(tokenizer, None, capacity=MOST_DOCUMENT_TOKENS, min_context=0, contextual=False)
            self._documents = replace(self._documents, request_tokens=_SERVED_REQUEST_TOKENS)
            self._queries = _Route(False, alone, _SERVED_REQUEST_TOKENS)
        self._query_cache = QueryCache(query_cache, spec.dimension)
        self._usage = Usage()
        self._lock = threading.Lock()
        self.unfinished: Unfinished | None = None
        self._connect(api_key)

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that the vectors depend on; the hosted service does not tell its weights' revision."""
        if self._served is not None:
            spec = self.spec
            told = replace(self._served.fingerprint, dimension=spec.dimension, quantizer=spec.quantizer)
            return replace(told, squared_norm=spec.squared_norm)
        return Fingerprint(
            model=self.spec.name,
            revision=None,
            dimension=self.spec.dimension,
            quantizer=self.spec.quantizer,
            window_tokens=self.spec.window_tokens,
            min_context=self._min_context,
            context_weight=self.spec.context_weight,
            source=self.spec.name,
            squared_norm=self.spec.squared_norm,
            backend="api",
        )

    @property
    def usage(self) -> Usage:
        """What this encoder has been billed for so far."""
        return self._usage

    @property
    def group_characters(self) -> int:
        """Characters of documents that are worth embedding together, so that requests are full."""
        return _CHARACTERS_PER_TOKEN * MOST_REQUEST_TOKENS * _REQUESTS_PLANNED * self._options.concurrency

    def encode_documents(self, documents: Sequence[Sequence[str]], *, progress: Progress | None = None) -> list[Codes]:
        """Embed documents given as chunks in order.

        Args:
            documents: For each document its chunks. Blank chunks get the zero vector.
            progress: Called after every request, in the thread that made it.

        Returns:
            One int8 array per document, shape (n_chunks, dimension), in the given order.

        Raises:
            InvalidInputError: A document is not a list of str.
            ApiError: The service refused, or could not be reached.
            EncodingError: It answered something that must not be stored.
        """
        return run_now(self._encode(documents, self._documents, self._blocking, progress))

    def encode_queries(self, queries: Sequence[str]) -> Codes:
        """Embed search queries, each a document of one chunk.

        Args:
            queries: Texts; a blank one gets the zero vector.

        Returns:
            int8, shape (n_queries, dimension).

        Raises:
            InvalidInputError: `queries` is not a list of str.
            ApiError: The service refused, or could not be reached.
            EncodingError: It answered something that must not be stored.
        """
        return run_now(self._encode_queries(queries, self._blocking))

    async def aencode_documents(
        self, documents: Sequence[Sequence[str]], *, progress: Progress | None = None
    ) -> list[Codes]:
        """`encode_documents` without blocking the event loop."""
        return await self._encode(documents, self._documents, self._awaiting(), progress)

    async def aencode_queries(self, queries: Sequence[str]) -> Codes:
        """`encode_queries` without blocking the event loop."""
        return await self._encode_queries(queries, self._awaiting())

    def close(self) -> None:
        """Close the connections of the blocking calls.

        A request that a failed call has left under way goes on to its end, retries included; then its connection is
        closed, too.
        """
        self._blocking.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop; to be awaited before it ends."""
        with self._lock:
            transport = self._of_loops.pop(asyncio.get_running_loop(), None)
        if transport is not None:
            await transport.client.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the key, connections and locks."""
        left_out = ("_transport", "_is_of_the_other", "_of_loops", "_lock", "_usage")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._usage = Usage()
        self._lock = threading.Lock()
        self._connect(None)

    def _connect(self, api_key: str | None) -> None:
        key = _find_key(api_key) if self._served is None else _find_served_key(api_key)
        self._transport = _Blocking(_make_client(key, self._options, asynchronous=False), self._options)
        self._is_of_the_other = False
        self._of_loops: dict[asyncio.AbstractEventLoop, _Awaiting] = {}
        renew_when_forked(self, ApiEncoder._disconnect)

    def _disconnect(self) -> None:
        """In a forked process, connect anew before the next call.

        Over connections that two processes use, each would get answers of the other.
        """
        leave_to_the_other((self._transport, self._of_loops))
        self._lock = threading.Lock()
        self._of_loops = {}
        self._is_of_the_other = True

    @property
    def _blocking(self) -> _Blocking:
        """The transport of the blocking calls."""
        with self._lock:
            if self._is_of_the_other:
                self._transport = self._transport.anew()
                self._is_of_the_other = False
            return self._transport

    def _awaiting(self) -> _Awaiting:
        """Return the transport of the running event loop: connections cannot pass from one to another."""
        loop, key = asyncio.get_running_loop(), self._blocking.client.api_key
        with self._lock:
            # A loop's connections refer to the loop, so that weak references alone would never let go of them.
            for other in [other for other in self._of_loops if other.is_closed()]:
                del self._of_loops[other]
            if loop not in self._of_loops:
                client = _make_client(key, self._options, asynchronous=True)
                self._of_loops[loop] = _Awaiting(client, self._options)
            return self._of_loops[loop]

    async def _encode_queries(self, queries: Sequence[str], transport: _Transport) -> Codes:
        check_texts(queries, "queries")
        found, missing = self._query_cache.lookup(queries)
        codes = await self._encode([[query] for query in missing], self._queries, transport, None)
        empty = np.zeros((0, self.spec.dimension), dtype=np.int8)
        return self._query_cache.join(queries, found, missing, np.concatenate([empty, *codes]))

    async def _encode(
        self, documents: Sequence[Sequence[str]], route: _Route, transport: _Transport, progress: Progress | None
    ) -> list[Codes]:
        check_documents(documents)
        encoded: list[Codes] = []
        meter = Meter(progress, documents)
        for group in group_by_characters(documents, self.group_characters):
            requests = await transport.run(self._plan, group, route, meter)
            if self.unfinished is not None:
                self.unfinished.begin()

            async def ask(request: list[Item]) -> list[Piece]:
                pieces = await self._ask_once(request, route, transport)
                meter.advance(sum(item.tokens for item in request))
                return pieces

            answers = await transport.gather(ask, requests)
            encoded += await transport.run(self._merge, group, answers)
        return encoded

    def _plan(self, documents: Sequence[Sequence[str]], route: _Route, meter: Meter) -> list[list[Item]]:
        items: list[Item] = []
        slot = 0
        for document in documents:
            items += route.planner.plan(document, slot)
            slot += len(document)
        meter.plan(documents, sum(item.tokens for item in items))
        return pack_requests(items, route.request_tokens)

    def _merge(self, documents: Sequence[Sequence[str]], answers: Sequence[list[Piece]]) -> list[Codes]:
        stops = np.cumsum([0, *map(len, documents)]).tolist()
        pieces = [piece for answer in answers for piece in answer]
        codes = merge_codes(pieces, stops[-1], self.spec.dimension, self._options.encoding)
        return [codes[start:stop] for start, stop in pairwise(stops)]

    async def _ask_once(self, items: list[Item], route: _Route, transport: _Transport) -> list[Piece]:
        """Ask for one request's vectors, unless an interrupted run has paid for them already."""
        if self.unfinished is None:
            return await self._ask(items, route, transport)
        slots = [-1 if slot is None else slot for item in items for slot in item.slots]
        key = key_of(str(self.fingerprint), json.dumps(self._arguments(items, route)), np.array(slots, np.int64))
        kept = self.unfinished.find(key)
        if kept is None:
            pieces = await self._ask(items, route, transport)
            kept = [
                np.array([(piece.slot, piece.tokens) for piece in pieces], np.int64),
                np.stack([piece.codes for piece in pieces]),
            ]
        self.unfinished.keep(key, *kept)  # found ones, too: the file that they are in will go
        return [Piece(int(slot), int(tokens), codes) for (slot, tokens), codes in zip(*kept, strict=True)]

    async def _ask(self, items: list[Item], route: _Route, transport: _Transport) -> list[Piece]:
        """Ask for one request's vectors; in parts, if the service finds it too large."""
        for tries_left in reversed(range(_TRIES_FOR_A_SOUND_ANSWER)):
            try:
                answer = await transport.post(route.contextual, self._arguments(items, route))
                self._count(answer, items)
                return read_answer(
                    getattr(answer, "data", None),
                    items,
                    contextual=route.contextual,
                    dimension=self.spec.dimension,
                    encoding=self._options.encoding,
                )
            except _TooLargeError as refusal:
                halves = route.planner.halve(items)
                if not halves:
                    raise ApiError(str(refusal)) from refusal
                return [piece for half in halves for piece in await self._ask(half, route, transport)]
            except EncodingError as error:
                if not tries_left:
                    error.add_note(f"Asked {_TRIES_FOR_A_SOUND_ANSWER} times; nothing of this answer was stored.")
                    raise
        raise AssertionError("unreachable")

    def _arguments(self, items: list[Item], route: _Route) -> dict[str, Any]:
        if route.contextual:
            texts: list[Any] = [list(item.texts) for item in items]
        else:
            texts = [text for item in items for text in item.texts]
        arguments: dict[str, Any] = {
            "model": _hosted_name(self.spec),
            "input": texts,
            "encoding_format": ENCODING_FORMATS[self._options.encoding],
        }
        if self._served is not None:
            # The SDK lets no other names through than the hosted models'; what is beside the arguments, it passes on.
            arguments["model"] = _A_CONTEXTUAL_MODEL if route.contextual else _ANOTHER_MODEL
            arguments["extra_body"] = {"model": self._served.name}
            arguments["extra_headers"] = {DIGEST_HEADER: self._served.digest}
        told = KNOWN_MODELS[self.spec.name] if self._served is None else self._served.fingerprint
        if self.spec.dimension != told.dimension:
            arguments["dimensions"] = self.spec.dimension
        return arguments

    def _count(self, answer: Any, items: list[Item]) -> None:
        """Add up what was billed; where the service does not tell, by its price list."""
        told = getattr(answer, "usage", None)
        tokens = getattr(told, "total_tokens", None)
        if not isinstance(tokens, int):
            tokens = sum(item.tokens for item in items)
        cost = getattr(getattr(told, "cost", None), "total_cost", None)
        if not isinstance(cost, (int, float)):
            cost = tokens * (self.spec.price or 0.0) / 1e6
        with self._lock:
            self._usage += Usage(requests=1, tokens=tokens, cost=cost)


def load_api_encoder(
    model: str,
    *,
    api_key: str | None,
    options: ApiOptions,
    revision: str | None,
    dimensions: int | None,
    window_tokens: int | None,
    min_context: int | None,
    query_cache: int,
) -> ApiEncoder:
    """Make an encoder of a hosted model; see ``load_encoder``."""
    spec = find_spec(model)
    if spec is None or spec.price is None:
        hosted = ", ".join(_hosted_name(one) for one in KNOWN_MODELS.values() if one.price is not None)
        raise InvalidInputError(f"{model!r} is not hosted; hosted are {hosted}")
    spec = with_options(spec, dimensions=dimensions, window_tokens=window_tokens)
    _find_key(api_key)  # before anything is fetched for nothing
    if not isinstance(options, ApiOptions):
        raise InvalidInputError(f"api must be ApiOptions, not {type(options).__name__}")
    if options.tokenizer is None:
        folder = fetch_tokenizer(spec.name, revision)
    else:
        folder = Path(options.tokenizer).expanduser()
    tokenizer = ChunkTokenizer.from_folder(folder)
    return ApiEncoder(
        spec, tokenizer, api_key=api_key, options=options, min_context=min_context, query_cache=query_cache
    )


def load_served_encoder(
    model: str,
    *,
    base_url: str,
    api_key: str | None,
    options: ApiOptions | None,
    revision: str | None,
    dimensions: int | None,
    window_tokens: int | None,
    min_context: int | None,
    query_cache: int,
) -> ApiEncoder:
    """Make an encoder of a model that ``pplx-vectorstore serve`` serves; see ``load_encoder``."""
    options = ApiOptions(timeout=_SERVED_TIMEOUT) if options is None else options
    if not isinstance(options, ApiOptions):
        raise InvalidInputError(f"api must be ApiOptions, not {type(options).__name__}")
    if options.base_url is not None:
        raise InvalidInputError(
            "base_url= is of `pplx-vectorstore serve`, ApiOptions(base_url=...) of another service; give one of them"
        )
    _require_plain("base_url", base_url)
    options = replace(options, base_url=base_url.rstrip("/").removesuffix("/v1"))
    key = _find_served_key(api_key)
    client = _make_client(key, options, asynchronous=False)
    try:
        listed = _list_models(client, options)
    finally:
        client.close()
    served = ServedModel.read(listed, model, base_url)
    checkpoint = Path(model).expanduser()
    if checkpoint.is_dir():  # where the tokenizer is found again, whatever the server calls the model
        served = replace(served, fingerprint=replace(served.fingerprint, source=str(checkpoint.resolve())))
    served.require(base_url, revision=revision, window_tokens=window_tokens, min_context=min_context)
    given = options.tokenizer
    folder = find_tokenizer(model, served.fingerprint.revision) if given is None else Path(given).expanduser()
    return ApiEncoder(
        with_options(served.spec, dimensions=dimensions),
        ChunkTokenizer.from_folder(folder),
        api_key=key,
        options=options,
        min_context=served.fingerprint.min_context,
        query_cache=query_cache,
        served=served,
    )


def _list_models(client: Any, options: ApiOptions) -> Any:
    """Ask a server what it serves."""
    try:
        return client.get("/v1/models", cast_to=object)
    except Exception as error:
        ours = _translate(error, client, options)
        if ours is None:
            raise
    raise ours  # out here, as in the transports


def _make_client(key: str, options: ApiOptions, *, asynchronous: bool) -> Any:
    try:
        import httpx
        import perplexity
    except ImportError as error:
        raise MissingExtraError("backend='api'", "api") from error
    if options.base_url is None and _BASE_URL_VARIABLE in os.environ:
        _require_plain(_BASE_URL_VARIABLE, os.environ[_BASE_URL_VARIABLE])
    kind = perplexity.AsyncPerplexity if asynchronous else perplexity.Perplexity
    return kind(
        api_key=key,
        base_url=options.base_url,
        timeout=httpx.Timeout(options.timeout, connect=_CONNECT_SECONDS),
        max_retries=options.max_retries,
    )


class _TooLargeError(ApiError):
    """The service finds a request too large."""


_Ask = Callable[[list[Item]], Coroutine[Any, Any, list[Piece]]]


class _Transport(Protocol):
    """How requests are made: by blocking threads, or by awaiting."""

    async def post(self, contextual: bool, arguments: dict[str, Any]) -> Any:
        """Ask once, with the SDK's own retries, when there is a place among those under way."""
        ...

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what computes for a while."""
        ...

    async def gather(self, ask: _Ask, requests: list[list[Item]]) -> list[list[Piece]]:
        """Ask for all requests, some at once; the first error ends the others."""
        ...


class _Blocking:
    def __init__(self, client: Any, options: ApiOptions) -> None:
        self.client = client
        self._options = options
        self._places = threading.BoundedSemaphore(options.concurrency)
        self._lock = threading.Lock()
        self._n_under_way = 0
        self._is_closed = False

    def anew(self) -> _Blocking:
        """Return one with connections of its own, closed if this one is."""
        new = _Blocking(_make_client(self.client.api_key, self._options, asynchronous=False), self._options)
        if self._is_closed:
            new.close()
        return new

    def close(self) -> None:
        """Close the connections, or have the last request under way do so: one that it makes later would stay open."""
        with self._under_way():
            self._is_closed = True

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        with self._lock:
            self._n_under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_under_way -= 1
                is_last = self._is_closed and not self._n_under_way
            if is_last:
                self.client.close()

    async def post(self, contextual: bool, arguments: dict[str, Any]) -> Any:
        route = self.client.contextualized_embeddings if contextual else self.client.embeddings
        try:
            with self._places, self._under_way():
                return route.create(**arguments)
        except Exception as error:
            ours = _translate(error, self.client, self._options)
            if ours is None:
                raise
        raise ours  # out here, where the SDK's error, which holds the request and so the key, is no context of it

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    async def gather(self, ask: _Ask, requests: list[list[Item]]) -> list[list[Piece]]:
        if len(requests) < 2:
            return [await ask(request) for request in requests]
        pool = ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="pplx-api")
        try:
            # Each worker drives a coroutine of its own, which over this transport never waits for a loop.
            futures = [pool.submit(lambda one: run_now(ask(one)), request) for request in requests]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            return [future.result() for future in futures]
        finally:
            # What is under way ends by itself; who interrupts does not wait for it, and no more is begun.
            pool.shutdown(wait=False, cancel_futures=True)


class _Awaiting:
    def __init__(self, client: Any, options: ApiOptions) -> None:
        self.client = client
        self._options = options
        self._places = asyncio.Semaphore(options.concurrency)

    async def post(self, contextual: bool, arguments: dict[str, Any]) -> Any:
        route = self.client.contextualized_embeddings if contextual else self.client.embeddings
        try:
            async with self._places:
                return await route.create(**arguments)
        except Exception as error:
            ours = _translate(error, self.client, self._options)
            if ours is None:
                raise
        raise ours  # as in the blocking one

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.to_thread(function, *arguments)

    async def gather(self, ask: _Ask, requests: list[list[Item]]) -> list[list[Piece]]:
        tasks = [asyncio.ensure_future(ask(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise


def _translate(error: Exception, client: Any, options: ApiOptions) -> Exception | None:
    """Return our error for one of the SDK's, or None for any other."""
    import perplexity

    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return EncodingError(f"the service's answer is no JSON ({type(error).__name__})")
    if not isinstance(error, perplexity.APIError):
        return None
    where = str(client.base_url)
    if not isinstance(error, perplexity.APIStatusError):
        reason = " ".join(str(error.__cause__ or error).split()) or type(error.__cause__ or error).__name__
        reason = redact(reason, [client.api_key])
        return ApiError(f"{where} gave no answer in {options.max_retries + 1} tries: {reason}")
    body = error.body if isinstance(error.body, dict) else {}
    told = body.get("error", body)
    message = str(told.get("message", told) if isinstance(told, dict) else told or error.message)
    message = redact(message, [client.api_key])
    status = error.status_code
    if status in (401, 403):
        return ApiError(
            f"{where} refused the key ({status}: {message}); give a valid one as api_key= or in the environment"
        )
    if status == 413 or (status in (400, 422) and is_of_size(message)):
        return _TooLargeError(f"{where} finds a request too large that cannot be made smaller ({status}: {message})")
    tried = f" in {options.max_retries + 1} tries" if status in (408, 409, 429) or status >= 500 else ""
    return ApiError(f"{where} answered {status}{tried}: {message}")


def is_of_size(message: str) -> bool:
    """Tell whether a refusal says that a request is too large."""
    return bool(_TOO_LARGE.search(message)) and not _NOT_OF_SIZE.search(message)


def _find_key(given: str | None) -> str:
    if given is not None and (not isinstance(given, str) or not given.strip()):
        raise InvalidInputError("api_key must be a str that is not blank")
    found = given or next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name, "").strip()), None)
    if found is None:
        raise InvalidInputError(
            f"the hosted service needs a key: give api_key=, or set {' or '.join(KEY_VARIABLES)} in the environment"
        )
    return _check_key(found.strip())


def _find_served_key(given: str | None) -> str:
    """Return the key of a server of one's own: never that of the hosted service, which is nobody else's business."""
    if given is not None and (not isinstance(given, str) or not given.strip()):
        raise InvalidInputError("api_key must be a str that is not blank")
    return _check_key((given or os.environ.get(SERVED_KEY_VARIABLE, "")).strip() or _NO_KEY)


def _check_key(key: str) -> str:
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidInputError(
            "the key holds white space or characters that no key has; was more pasted than the key?"
        )
    return key


def _require_plain(name: str, url: object) -> None:
    """Refuse an address that carries a user, a password or a query: the SDK would log them, and not send the key."""
    if not isinstance(url, str) or without_password(url) != url:
        raise InvalidInputError(
            f"{name} must be an address such as https://api.perplexity.ai, without user, password and query; the key "
            "goes into api_key"
        )


def _hosted_name(spec: ModelSpec) -> str:
    return spec.name.rpartition("/")[2]
