"""Late chunking over any model that gives token vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np

from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.encoders.batching import group_by_characters, plan_batches
from pplx_vectorstore.encoders.meter import Meter, Progress
from pplx_vectorstore.encoders.query_cache import QueryCache
from pplx_vectorstore.encoders.rows import RowPlan, RowPlanner, Vectors
from pplx_vectorstore.encoders.unfinished import Unfinished
from pplx_vectorstore.equal_norms import crest_factor_for, quantize, squared_norm_of
from pplx_vectorstore.errors import AlignmentError, EncodingError, InvalidInputError
from pplx_vectorstore.models import ModelSpec
from pplx_vectorstore.pooling import Span
from pplx_vectorstore.quantization import Codes, truncate
from pplx_vectorstore.tokenization import ChunkTokenizer
from pplx_vectorstore.windows import TokenIds

# What is tokenized at once, while what came before goes through the model: about eight batches, so that
# rows of similar length meet, and what is held stays small however many documents one call brings.
_CHARACTERS_PER_BATCH_TOKEN = 32
# Beyond as many batches, twice those of a usual group, it is worth to keep what an interrupt would lose.
_MANY_BATCHES = 16
# Any texts would do to see how far a model's components stand out; they do so always at the same places.
_SAMPLE = (
    "A river, a road and a railway cross the valley.",
    "The committee met on 14 March 1998 to discuss the budget of 2.5 million.",
    "def area(width, height):\n    return width * height",
    "water",
    "Wie viele Einwohner hat die Stadt, und seit wann?",
    "天気がいいので、散歩に行きましょう。",
)


class TokenModel(Protocol):
    """A model that turns token ids into pooled vectors: the one seam between this module and a runtime."""

    @property
    def dimension(self) -> int:
        """Components of a token vector."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch that suit the device."""
        ...

    @property
    def pads(self) -> bool:
        """Whether every row of a batch costs as much as its longest."""
        ...

    def pool(self, rows: Sequence[TokenIds], spans: Sequence[Sequence[Span]]) -> Vectors:
        """Run the rows as one batch and mean-pool spans of each.

        Args:
            rows: int64 ids, one array per row; padding is the model's business.
            spans: For each row its half-open, non-empty token ranges.

        Returns:
            float32, shape (total number of spans, dimension), rows in order.
        """
        ...


class LateChunkingEncoder:
    """Embeds the chunks of a document in the context of the document.

    Args:
        token_model: The runtime.
        tokenizer: The model's tokenizer.
        spec: How the model is used; `dimension` below the model's own cuts its vectors.
        revision: What tells this checkpoint from others of its name.
        source: What ``load_encoder`` finds the model by; None for the spec's name.
        backend: Name of the runtime.
        dtype: In what it multiplies, such as "bfloat16"; None where it does not tell.
        query_model: Runs queries, where the model has an encoder of their own; None for `token_model`.
        min_context: Tokens of context on each side of a chunk; None for an eighth of the window.
        batch_tokens: Tokens of a batch, padding included; bounds memory. None for the runtime's choice.
        query_cache: Queries whose codes are remembered.
        reload: Makes the same encoder again, where it is unpickled; None if it is not to be pickled.

    Attributes:
        unfinished: Where to keep what is computed of large documents until they are stored; None for nowhere.

    Raises:
        InvalidInputError: A setting is out of range.
    """

    def __init__(
        self,
        token_model: TokenModel,
        tokenizer: ChunkTokenizer,
        spec: ModelSpec,
        *,
        revision: str | None = None,
        source: str | None = None,
        backend: str = "torch",
        dtype: str | None = None,
        query_model: TokenModel | None = None,
        min_context: int | None = None,
        batch_tokens: int | None = None,
        query_cache: int = 0,
        reload: Callable[[], LateChunkingEncoder] | None = None,
    ) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self._model = token_model
        self._query_model = query_model or token_model
        if self._query_model.dimension != token_model.dimension:
            raise InvalidInputError(
                f"the encoder of queries gives {self._query_model.dimension} dimensions, that of documents "
                f"{token_model.dimension}; they cannot be compared"
            )
        self._reload = reload
        self._backend = backend
        self._dtype = dtype
        self._revision = revision
        self._source = source or spec.name
        self._document_prefix = np.concatenate([tokenizer.prefix_ids, *tokenizer.encode([spec.document_prefix])])
        self._query_prefix = np.concatenate([tokenizer.prefix_ids, *tokenizer.encode([spec.query_prefix])])
        capacity = self._window_capacity()
        self._min_context = capacity // 8 if min_context is None else min_context
        self._planner = RowPlanner(
            None if spec.separator is None else tokenizer.token_id(spec.separator),
            tokenizer.suffix_ids,
            capacity=capacity,
            min_context=self._min_context,
            context_weight=spec.context_weight,
        )
        if batch_tokens is not None and batch_tokens < 1:
            raise InvalidInputError(f"batch_tokens must be at least 1, not {batch_tokens}")
        self._batch_tokens = batch_tokens or token_model.batch_tokens
        self._query_cache = QueryCache(query_cache, spec.dimension)
        self.unfinished: Unfinished | None = None
        if spec.crest_factor is None:
            sample = np.concatenate(self.chunk_vectors([[text] for text in _SAMPLE]))
            self.spec = replace(spec, crest_factor=crest_factor_for(sample))

    def __reduce__(self) -> tuple[Callable[[], LateChunkingEncoder], tuple[()]]:
        """Pickle how it was loaded, not the weights: another process loads them itself."""
        if self._reload is None:
            raise TypeError("an encoder that load_encoder did not make cannot be pickled; pickle what it is made of")
        return self._reload, ()

    @property
    def group_characters(self) -> int:
        """Characters of documents that are worth embedding together: two groups, one of them tokenized ahead."""
        return 2 * _CHARACTERS_PER_BATCH_TOKEN * self._batch_tokens

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that the vectors depend on, for the collection they are written to."""
        return Fingerprint(
            model=self.spec.name,
            revision=self._revision,
            dimension=self.spec.dimension,
            quantizer=self.spec.quantizer,
            window_tokens=self.spec.window_tokens,
            min_context=self._min_context,
            context_weight=self.spec.context_weight,
            source=self._source,
            squared_norm=self.spec.squared_norm,
            backend=self._backend,
            dtype=self._dtype,
        )

    def encode_documents(self, documents: Sequence[Sequence[str]], *, progress: Progress | None = None) -> list[Codes]:
        """Embed documents given as chunks in order.

        Args:
            documents: For each document its chunks. Blank chunks get the zero vector.
            progress: Called after every batch.

        Returns:
            One int8 array per document, shape (n_chunks, dimension), in the given order.

        Raises:
            InvalidInputError: A document is not a list of str.
            EncodingError: The model gave NaN or infinity.
            AlignmentError: The model gave another number of vectors than there are chunks.
        """
        check_documents(documents)
        encoded = self._encode(documents, self._model, self._document_prefix, progress)
        return [self._quantize(vectors) for vectors in encoded]

    def encode_queries(self, queries: Sequence[str]) -> Codes:
        """Embed search queries, each a document of one chunk.

        Args:
            queries: Texts; a blank one gets the zero vector.

        Returns:
            int8, shape (n_queries, dimension).

        Raises:
            InvalidInputError: `queries` is not a list of str.
            EncodingError: The model gave NaN or infinity.
        """
        check_texts(queries, "queries")
        found, missing = self._query_cache.lookup(queries)
        vectors = self._encode([[query] for query in missing], self._query_model, self._query_prefix, None)
        codes = self._quantize(np.concatenate([self._no_vectors(), *vectors]))
        return self._query_cache.join(queries, found, missing, codes)

    async def aencode_documents(
        self, documents: Sequence[Sequence[str]], *, progress: Progress | None = None
    ) -> list[Codes]:
        """`encode_documents` in a worker thread, so that the event loop stays free."""
        return await asyncio.to_thread(self.encode_documents, documents, progress=progress)

    async def aencode_queries(self, queries: Sequence[str]) -> Codes:
        """`encode_queries` in a worker thread, so that the event loop stays free."""
        return await asyncio.to_thread(self.encode_queries, queries)

    def chunk_vectors(self, documents: Sequence[Sequence[str]], *, progress: Progress | None = None) -> list[Vectors]:
        """Embed documents without quantizing: what `encode_documents` rounds.

        Returns:
            One float32 array per document, shape (n_chunks, dimension), unnormalised.
        """
        check_documents(documents)
        return list(self._encode(documents, self._model, self._document_prefix, progress))

    # --- the same in steps, for a server, whose batches hold rows of several callers ---

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, padding included."""
        return self._batch_tokens

    @property
    def pads(self) -> bool:
        """Whether every row of a batch costs as much as its longest."""
        return self._model.pads

    @property
    def runs_on_cpu(self) -> bool:
        """Whether the model shares the processor's cores with the rest; a runtime that does not say is taken to."""
        return bool(getattr(self._model, "runs_on_cpu", True))

    @property
    def has_query_model(self) -> bool:
        """Whether queries are run by an encoder of their own."""
        return self._query_model is not self._model

    def plan_rows(self, counts: Sequence[int], chunk_ids: Sequence[TokenIds], *, queries: bool = False) -> RowPlan:
        """Plan the rows of documents that are tokenized already.

        Args:
            counts: Chunks of each document.
            chunk_ids: What ``tokenizer.encode`` gave for all chunks, documents in order.
            queries: Whether they are queries, each of one chunk.
        """
        return self._planner.plan(counts, chunk_ids, self._query_prefix if queries else self._document_prefix)

    def least_pieces(self, counts: Sequence[int]) -> int:
        """Return how many vectors will be pooled for documents of so many chunks, if no window divides a chunk."""
        return self._planner.least_pieces(counts)

    def new_pieces(self, plan: RowPlan) -> Vectors:
        """Return room for what `run_rows` pools of a plan, to be filled by ``plan.place``."""
        return plan.new_pieces(self._model.dimension)

    def run_rows(self, rows: Sequence[TokenIds], spans: Sequence[Sequence[Span]], *, queries: bool = False) -> Vectors:
        """Run rows of one plan or of several as one batch; see ``TokenModel.pool``.

        Raises:
            EncodingError: What came is not of the model's shape.
            AlignmentError: It is not one vector per span.
        """
        return _pool(self._query_model if queries else self._model, rows, spans)

    def finish_rows(self, plan: RowPlan, pieces: Vectors, *, dimensions: int | None = None) -> list[Codes]:
        """Merge and quantize what was pooled of all rows of a plan.

        Args:
            plan: From `plan_rows`.
            pieces: From `new_pieces`, every piece in its place.
            dimensions: Cut vectors to so many components; None for the encoder's own number.

        Returns:
            One int8 array per document, shape (n_chunks, dimensions).

        Raises:
            EncodingError: The model gave NaN or infinity.
            InvalidInputError: The model cannot be cut to so few dimensions, or has not so many.
        """
        spec = with_options(self.spec, dimensions=dimensions)
        vectors = [truncate(of, spec.dimension) for of in plan.merge(pieces, spec.context_weight)]
        return [quantize(of, spec.quantizer, spec.squared_norm) for of in vectors]

    def _encode(
        self, documents: Sequence[Sequence[str]], model: TokenModel, prefix: TokenIds, progress: Progress | None
    ) -> Iterator[Vectors]:
        """Embed documents group by group; the next group is tokenized while one goes through the model."""
        groups = group_by_characters(documents, _CHARACTERS_PER_BATCH_TOKEN * self._batch_tokens)
        meter = Meter(progress, documents)
        if len(groups) == 1:  # a query is not worth a thread
            yield from self._encode_group(documents, self.tokenizer.encode(_join(documents)), model, prefix, meter)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as ahead:
            waiting = [ahead.submit(self.tokenizer.encode, _join(group)) for group in groups[:1]]
            for i, group in enumerate(groups):
                chunk_ids = waiting.pop().result()
                waiting += [ahead.submit(self.tokenizer.encode, _join(group)) for group in groups[i + 1 : i + 2]]
                yield from self._encode_group(group, chunk_ids, model, prefix, meter)

    def _encode_group(
        self,
        documents: Sequence[Sequence[str]],
        chunk_ids: Sequence[TokenIds],
        model: TokenModel,
        prefix: TokenIds,
        meter: Meter,
    ) -> list[Vectors]:
        """Run all rows, longest first, and merge what is pooled of them."""
        plan = self._planner.plan([len(document) for document in documents], chunk_ids, prefix)
        pieces = plan.new_pieces(model.dimension)
        lengths = plan.lengths
        meter.plan(documents, sum(lengths))
        batches = plan_batches(lengths, self._batch_tokens, pads=model.pads)
        if self.unfinished is not None and len(batches) >= _MANY_BATCHES:
            model = self.unfinished.around(model, str(self.fingerprint))
        for batch in batches:
            plan.place(pieces, batch, _pool(model, [plan.rows[i] for i in batch], [plan.spans[i] for i in batch]))
            meter.advance(sum(lengths[i] for i in batch))
        return [truncate(vectors, self.spec.dimension) for vectors in plan.merge(pieces, self.spec.context_weight)]

    def _window_capacity(self) -> int:
        spec = self.spec
        if not 1 <= spec.window_tokens <= spec.max_window_tokens:
            raise InvalidInputError(
                f"window_tokens of {spec.name} must be from 1 to {spec.max_window_tokens}, not {spec.window_tokens}"
            )
        frame = max(len(self._document_prefix), len(self._query_prefix)) + len(self.tokenizer.suffix_ids)
        if spec.window_tokens <= frame:
            raise InvalidInputError(
                f"window_tokens of {spec.name} must be more than {frame}, its start and end tokens alone; "
                f"{spec.window_tokens} came"
            )
        return spec.window_tokens - frame

    def _quantize(self, vectors: Vectors) -> Codes:
        return quantize(vectors, self.spec.quantizer, self.spec.squared_norm)

    def _no_vectors(self) -> Vectors:
        return np.zeros((0, self.spec.dimension), dtype=np.float32)


def check_options(*, context_weight: float | None, **counts: int | None) -> None:
    """Refuse what is no number, before anything is loaded.

    Raises:
        InvalidInputError: Names it.
    """
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
            raise InvalidInputError(f"{name} must be a whole number or None, not {count!r}")
    if context_weight is not None and not isinstance(context_weight, (int, float)):
        raise InvalidInputError(f"context_weight must be a number or None, not {context_weight!r}")


def with_options(
    spec: ModelSpec,
    *,
    dimensions: int | None = None,
    window_tokens: int | None = None,
    context_weight: float | None = None,
    crest_factor: float | None = None,
) -> ModelSpec:
    """Change what a caller may change of a model's spec; None keeps its own value.

    Raises:
        InvalidInputError: A value is out of the model's range.
    """
    if dimensions is not None:
        if not spec.min_dimension <= dimensions <= spec.dimension:
            allowed = (
                f"{spec.dimension}"
                if spec.min_dimension == spec.dimension
                else f"from {spec.min_dimension} to {spec.dimension}"
            )
            raise InvalidInputError(f"dimensions of {spec.name} must be {allowed}, not {dimensions}")
        spec = replace(spec, dimension=dimensions)
    if window_tokens is not None:
        spec = replace(spec, window_tokens=window_tokens)
    if context_weight is not None:
        if not 0 <= context_weight <= 1:
            raise InvalidInputError(f"context_weight must be from 0 to 1, not {context_weight}")
        spec = replace(spec, context_weight=context_weight)
    if crest_factor is not None:
        squared_norm_of(spec.dimension, crest_factor)
        spec = replace(spec, crest_factor=crest_factor)
    return spec


def check_documents(documents: object) -> None:
    """Refuse what is not a list of lists of str.

    Raises:
        InvalidInputError: Names what came instead.
    """
    if isinstance(documents, str) or not isinstance(documents, Sequence):
        raise InvalidInputError(f"documents must be a list of lists of chunks, not {type(documents).__name__}")
    for document in documents:
        check_texts(document, "a document")


def check_texts(texts: object, what: str) -> None:
    """Refuse what is not a list of str.

    Raises:
        InvalidInputError: Names what came instead.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InvalidInputError(f"{what} must be a list of str, not {type(texts).__name__}")
    for text in texts:
        if not isinstance(text, str):
            raise InvalidInputError(f"{what} must be a list of str; it holds a {type(text).__name__}")


def _pool(model: TokenModel, rows: Sequence[TokenIds], spans: Sequence[Sequence[Span]]) -> Vectors:
    """Run rows as one batch; see ``TokenModel.pool``. What comes is checked."""
    pooled = model.pool(rows, spans)
    n_spans = sum(map(len, spans))
    if len(pooled) != n_spans:
        raise AlignmentError(f"the model gave {len(pooled)} vectors for {n_spans} spans")
    if pooled.shape[1:] != (model.dimension,):
        raise EncodingError(f"the model gave vectors of shape {pooled.shape[1:]}; {(model.dimension,)} is needed")
    return pooled


def _join(documents: Sequence[Sequence[str]]) -> list[str]:
    return [chunk for document in documents for chunk in document]
