"""The hosted pplx-embed models, through Perplexity's SDK."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Callable, Coroutine, Sequence
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
from pplx_vectorstore.encoders.checkpoints import fetch_tokenizer
from pplx_vectorstore.encoders.late_chunking import check_documents, check_texts, with_options
from pplx_vectorstore.encoders.meter import Meter, Progress
from pplx_vectorstore.encoders.query_cache import QueryCache
from pplx_vectorstore.encoders.unfinished import Unfinished, key_of
from pplx_vectorstore.errors import ApiError, EncodingError, InvalidInputError, MissingExtraError
from pplx_vectorstore.models import KNOWN_MODELS, ModelSpec, find_spec
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.redaction import redact, without_password
from pplx_vectorstore.reports import Usage
from pplx_vectorstore.tokenization import ChunkTokenizer

T = TypeVar("T")

KEY_VARIABLES = ("PERPLEXITY_API_KEY", "PPLX_API_KEY")
_BASE_URL_VARIABLE = "PERPLEXITY_BASE_URL"

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


class ApiEncoder:
    """Embeds by the hosted service. Threads and event loops may share one.

    Documents are cut into the windows that a local model would see, so that the vectors are those of the same
    model run locally, but for the rounding of its arithmetic; where a chunk is longer than a window, its
    parts are separate texts to the service. Blank chunks are never sent. The key is kept by the SDK's client
    alone: it is not pickled, and an unpickled encoder takes its key from the environment.

    Args:
        spec: A hosted model.
        tokenizer: The model's own; requests are sized by it.
        api_key: None for the environment's.
        options: How the service is asked.
        min_context: Tokens of context on each side of a chunk; None for an eighth of the window.
        query_cache: Queries whose codes are remembered.

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
    ) -> None:
        self._options = options or ApiOptions()
        self.spec = replace(spec, quantizer="sign") if self._options.encoding == "binary" else spec
        self.tokenizer = tokenizer
        if spec.query_prefix or spec.document_prefix or spec.query_model:
            raise InvalidInputError(
                f"{spec.name} has prefixes or an encoder of queries, which the service does not take"
            )
        if not 1 <= spec.window_tokens <= MOST_DOCUMENT_TOKENS:
            raise InvalidInputError(
                f"window_tokens of the hosted {spec.name} must be from 1 to {MOST_DOCUMENT_TOKENS}, "
                f"not {spec.window_tokens}"
            )
        self._contextual = spec.context_weight > 0
        self._min_context = spec.window_tokens // 8 if min_context is None else min_context
        self._planner = ItemPlanner(
            tokenizer,
            None if spec.separator is None else tokenizer.token_id(spec.separator),
            capacity=spec.window_tokens,
            min_context=self._min_context,
            contextual=self._contextual,
        )
        self._query_cache = QueryCache(query_cache, spec.dimension)
        self._usage = Usage()
        self._lock = threading.Lock()
        self.unfinished: Unfinished | None = None
        self._connect(api_key)

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that the vectors depend on; the service does not tell its weights' revision."""
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
        return run_now(self._encode(documents, self._blocking, progress))

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
        return await self._encode(documents, self._awaiting(), progress)

    async def aencode_queries(self, queries: Sequence[str]) -> Codes:
        """`encode_queries` without blocking the event loop."""
        return await self._encode_queries(queries, self._awaiting())

    def close(self) -> None:
        """Close the connections of the blocking calls."""
        self._blocking.client.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop; to be awaited before it ends."""
        with self._lock:
            transport = self._of_loops.pop(asyncio.get_running_loop(), None)
        if transport is not None:
            await transport.client.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the key, connections and locks."""
        left_out = ("_blocking", "_of_loops", "_lock", "_usage")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._usage = Usage()
        self._lock = threading.Lock()
        self._connect(None)

    def _connect(self, api_key: str | None) -> None:
        self._blocking = _Blocking(self._make_client(_find_key(api_key), asynchronous=False), self._options)
        self._of_loops: dict[asyncio.AbstractEventLoop, _Awaiting] = {}

    def _make_client(self, key: str, *, asynchronous: bool) -> Any:
        try:
            import httpx
            import perplexity
        except ImportError as error:
            raise MissingExtraError("backend='api'", "api") from error
        if self._options.base_url is None and _BASE_URL_VARIABLE in os.environ:
            _require_plain(_BASE_URL_VARIABLE, os.environ[_BASE_URL_VARIABLE])
        kind = perplexity.AsyncPerplexity if asynchronous else perplexity.Perplexity
        return kind(
            api_key=key,
            base_url=self._options.base_url,
            timeout=httpx.Timeout(self._options.timeout, connect=_CONNECT_SECONDS),
            max_retries=self._options.max_retries,
        )

    def _awaiting(self) -> _Awaiting:
        """Return the transport of the running event loop: connections cannot pass from one to another."""
        loop = asyncio.get_running_loop()
        with self._lock:
            # A loop's connections refer to the loop, so that weak references alone would never let go of them.
            for other in [other for other in self._of_loops if other.is_closed()]:
                del self._of_loops[other]
            if loop not in self._of_loops:
                client = self._make_client(self._blocking.client.api_key, asynchronous=True)
                self._of_loops[loop] = _Awaiting(client, self._options)
            return self._of_loops[loop]

    async def _encode_queries(self, queries: Sequence[str], transport: _Transport) -> Codes:
        check_texts(queries, "queries")
        found, missing = self._query_cache.lookup(queries)
        codes = await self._encode([[query] for query in missing], transport, None)
        empty = np.zeros((0, self.spec.dimension), dtype=np.int8)
        return self._query_cache.join(queries, found, missing, np.concatenate([empty, *codes]))

    async def _encode(
        self, documents: Sequence[Sequence[str]], transport: _Transport, progress: Progress | None
    ) -> list[Codes]:
        check_documents(documents)
        encoded: list[Codes] = []
        meter = Meter(progress, documents)
        for group in group_by_characters(documents, self.group_characters):
            requests = await transport.run(self._plan, group, meter)
            if self.unfinished is not None:
                self.unfinished.begin()

            async def ask(request: list[Item]) -> list[Piece]:
                pieces = await self._ask_once(request, transport)
                meter.advance(sum(item.tokens for item in request))
                return pieces

            answers = await transport.gather(ask, requests)
            encoded += await transport.run(self._merge, group, answers)
        return encoded

    def _plan(self, documents: Sequence[Sequence[str]], meter: Meter) -> list[list[Item]]:
        items: list[Item] = []
        slot = 0
        for document in documents:
            items += self._planner.plan(document, slot)
            slot += len(document)
        meter.plan(documents, sum(item.tokens for item in items))
        return pack_requests(items)

    def _merge(self, documents: Sequence[Sequence[str]], answers: Sequence[list[Piece]]) -> list[Codes]:
        stops = np.cumsum([0, *map(len, documents)]).tolist()
        pieces = [piece for answer in answers for piece in answer]
        codes = merge_codes(pieces, stops[-1], self.spec.dimension, self._options.encoding)
        return [codes[start:stop] for start, stop in pairwise(stops)]

    async def _ask_once(self, items: list[Item], transport: _Transport) -> list[Piece]:
        """Ask for one request's vectors, unless an interrupted run has paid for them already."""
        if self.unfinished is None:
            return await self._ask(items, transport)
        slots = [-1 if slot is None else slot for item in items for slot in item.slots]
        key = key_of(str(self.fingerprint), json.dumps(self._arguments(items)), np.array(slots, np.int64))
        kept = self.unfinished.find(key)
        if kept is None:
            pieces = await self._ask(items, transport)
            kept = [
                np.array([(piece.slot, piece.tokens) for piece in pieces], np.int64),
                np.stack([piece.codes for piece in pieces]),
            ]
        self.unfinished.keep(key, *kept)  # found ones, too: the file that they are in will go
        return [Piece(int(slot), int(tokens), codes) for (slot, tokens), codes in zip(*kept, strict=True)]

    async def _ask(self, items: list[Item], transport: _Transport) -> list[Piece]:
        """Ask for one request's vectors; in parts, if the service finds it too large."""
        for tries_left in reversed(range(_TRIES_FOR_A_SOUND_ANSWER)):
            try:
                answer = await transport.post(self._contextual, self._arguments(items))
                self._count(answer, items)
                return read_answer(
                    getattr(answer, "data", None),
                    items,
                    contextual=self._contextual,
                    dimension=self.spec.dimension,
                    encoding=self._options.encoding,
                )
            except _TooLargeError as refusal:
                halves = self._planner.halve(items)
                if not halves:
                    raise ApiError(str(refusal)) from refusal
                return [piece for half in halves for piece in await self._ask(half, transport)]
            except EncodingError as error:
                if not tries_left:
                    error.add_note(f"Asked {_TRIES_FOR_A_SOUND_ANSWER} times; nothing of this answer was stored.")
                    raise
        raise AssertionError("unreachable")

    def _arguments(self, items: list[Item]) -> dict[str, Any]:
        if self._contextual:
            texts: list[Any] = [list(item.texts) for item in items]
        else:
            texts = [text for item in items for text in item.texts]
        arguments: dict[str, Any] = {
            "model": _hosted_name(self.spec),
            "input": texts,
            "encoding_format": ENCODING_FORMATS[self._options.encoding],
        }
        if self.spec.dimension != KNOWN_MODELS[self.spec.name].dimension:
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

    async def post(self, contextual: bool, arguments: dict[str, Any]) -> Any:
        route = self.client.contextualized_embeddings if contextual else self.client.embeddings
        try:
            with self._places:
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
            f"{where} refused the key ({status}: {message}); give api_key=, or set {KEY_VARIABLES[0]}, to a valid one"
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
    key = found.strip()
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
