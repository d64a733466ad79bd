"""The hosted pplx-embed models, through Perplexity's SDK."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

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
from pplx_vectorstore.encoders.late_chunking import Progress, check_documents, check_texts, with_options
from pplx_vectorstore.encoders.query_cache import QueryCache
from pplx_vectorstore.errors import ApiError, EncodingError, InvalidInputError, MissingExtraError
from pplx_vectorstore.models import KNOWN_MODELS, ModelSpec, find_spec
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.reports import Usage
from pplx_vectorstore.tokenization import ChunkTokenizer

if TYPE_CHECKING:
    from perplexity import AsyncPerplexity

KEY_VARIABLES = ("PERPLEXITY_API_KEY", "PPLX_API_KEY")

# The SDK tries again what the network or the service failed at, but takes any body for an answer.
_TRIES_FOR_A_SOUND_ANSWER = 3
_CONNECT_SECONDS = 10.0
# What is planned and asked for together: several requests for each that may be under way.
_REQUESTS_PLANNED = 4
_CHARACTERS_PER_TOKEN = 3
_TOO_LARGE = re.compile(r"\b(tokens?|too (large|long|many)|exceed\w*|maximum|at most)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiOptions:
    """How the hosted service is asked.

    Attributes:
        concurrency: Requests that may be under way at once.
        timeout: Seconds to wait for an answer before asking again.
        max_retries: How often a request that failed is tried again, waiting half a second to eight, or as
            long as the service says.
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
        """:meth:`encode_documents` without blocking the event loop."""
        return await self._encode(documents, self._awaiting(), progress)

    async def aencode_queries(self, queries: Sequence[str]) -> Codes:
        """:meth:`encode_queries` without blocking the event loop."""
        return await self._encode_queries(queries, self._awaiting())

    def close(self) -> None:
        """Close the connections of the blocking calls."""
        self._blocking.client.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop; to be awaited before it ends."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the key, connections and locks."""
        left_out = ("_blocking", "_clients", "_lock", "_query_cache", "_usage")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._query_cache = QueryCache(0, self.spec.dimension)
        self._usage = Usage()
        self._lock = threading.Lock()
        self._connect(None)

    def _connect(self, api_key: str | None) -> None:
        self._blocking = _Blocking(self._make_client(_find_key(api_key), asynchronous=False), self._options)
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncPerplexity] = WeakKeyDictionary()

    def _make_client(self, key: str, *, asynchronous: bool) -> Any:
        try:
            import httpx
            import perplexity
        except ImportError as error:
            raise MissingExtraError("backend='api'", "api") from error
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
            if loop not in self._clients:
                self._clients[loop] = self._make_client(self._blocking.client.api_key, asynchronous=True)
            return _Awaiting(self._clients[loop], self._options)

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
        for group in group_by_characters(documents, self.group_characters):
            items: list[Item] = []
            firsts = [0]
            for document in group:
                items += self._planner.plan(document, firsts[-1])
                firsts.append(firsts[-1] + len(document))
            meter = _Meter(progress, sum(item.tokens for item in items))

            async def ask(request: list[Item], meter: _Meter = meter) -> list[Piece]:
                pieces = await self._ask(request, transport)
                meter.advance(sum(item.tokens for item in request))
                return pieces

            answers = await transport.gather(ask, pack_requests(items))
            pieces = [piece for answer in answers for piece in answer]
            codes = merge_codes(pieces, firsts[-1], self.spec.dimension, self._options.encoding)
            encoded += [codes[start:stop] for start, stop in pairwise(firsts)]
        return encoded

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
        if tokens is None:
            tokens = sum(item.tokens for item in items)
        cost = getattr(getattr(told, "cost", None), "total_cost", None)
        if cost is None:
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
    folder = fetch_tokenizer(spec.name, revision) if options.tokenizer is None else Path(options.tokenizer)
    tokenizer = ChunkTokenizer.from_folder(folder)
    return ApiEncoder(
        spec, tokenizer, api_key=api_key, options=options, min_context=min_context, query_cache=query_cache
    )


class _TooLargeError(ApiError):
    """The service finds a request too large."""


class _Meter:
    """Reports progress; requests end in any thread."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def advance(self, tokens: int) -> None:
        if self._progress is not None:
            with self._lock:
                self._done += tokens
                self._progress(self._done, self._total)


_Ask = Callable[[list[Item]], Coroutine[Any, Any, list[Piece]]]


class _Transport(Protocol):
    """How requests are made: by blocking threads, or by awaiting."""

    async def post(self, contextual: bool, arguments: dict[str, Any]) -> Any:
        """Ask once, with the SDK's own retries."""
        ...

    async def gather(self, ask: _Ask, requests: list[list[Item]]) -> list[list[Piece]]:
        """Ask for all requests, some at once; the first error ends the others."""
        ...


class _Blocking:
    def __init__(self, client: Any, options: ApiOptions) -> None:
        self.client = client
        self._options = options

    async def post(self, contextual: bool, arguments: dict[str, Any]) -> Any:
        route = self.client.contextualized_embeddings if contextual else self.client.embeddings
        try:
            return route.create(**arguments)
        except Exception as error:
            raise _translate(error, self.client, self._options) from error

    async def gather(self, ask: _Ask, requests: list[list[Item]]) -> list[list[Piece]]:
        if len(requests) < 2:
            return [await ask(request) for request in requests]
        with ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="pplx-api") as pool:
            # Each worker drives a coroutine of its own, which over this transport never waits for a loop.
            futures = [pool.submit(lambda one: run_now(ask(one)), request) for request in requests]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                raise


class _Awaiting:
    def __init__(self, client: Any, options: ApiOptions) -> None:
        self._client = client
        self._options = options

    async def post(self, contextual: bool, arguments: dict[str, Any]) -> Any:
        route = self._client.contextualized_embeddings if contextual else self._client.embeddings
        try:
            return await route.create(**arguments)
        except Exception as error:
            raise _translate(error, self._client, self._options) from error

    async def gather(self, ask: _Ask, requests: list[list[Item]]) -> list[list[Piece]]:
        slots = asyncio.Semaphore(self._options.concurrency)

        async def ask_in_turn(request: list[Item]) -> list[Piece]:
            async with slots:
                return await ask(request)

        tasks = [asyncio.ensure_future(ask_in_turn(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise


def _translate(error: Exception, client: Any, options: ApiOptions) -> Exception:
    """Turn the SDK's error into ours; the key never comes with it."""
    import perplexity

    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return EncodingError(f"the service's answer is no JSON: {error}")
    if not isinstance(error, perplexity.APIError):
        return error
    where = str(client.base_url)
    if not isinstance(error, perplexity.APIStatusError):
        reason = " ".join(str(error.__cause__ or error).split()) or type(error.__cause__ or error).__name__
        return ApiError(f"{where} gave no answer in {options.max_retries + 1} tries: {reason}")
    body = error.body if isinstance(error.body, dict) else {}
    told = body.get("error", body)
    message = str(told.get("message", told) if isinstance(told, dict) else told or error.message)
    message = message.replace(client.api_key, "***")
    status = error.status_code
    if status in (401, 403):
        return ApiError(
            f"{where} refused the key ({status}: {message}); give api_key=, or set {KEY_VARIABLES[0]}, to a valid one"
        )
    if status == 413 or (status in (400, 422) and _TOO_LARGE.search(message)):
        return _TooLargeError(f"{where} finds a request too large that cannot be made smaller ({status}: {message})")
    tried = f" in {options.max_retries + 1} tries" if status in (408, 409, 429) or status >= 500 else ""
    return ApiError(f"{where} answered {status}{tried}: {message}")


def _find_key(given: str | None) -> str:
    if given is not None and (not isinstance(given, str) or not given.strip()):
        raise InvalidInputError("api_key must be a str that is not blank")
    key = given or next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name, "").strip()), None)
    if key is None:
        raise InvalidInputError(
            f"the hosted service needs a key: give api_key=, or set {' or '.join(KEY_VARIABLES)} in the environment"
        )
    return key.strip()


def _hosted_name(spec: ModelSpec) -> str:
    return spec.name.rpartition("/")[2]
