"""An encoder for queries alone, ready in a fraction of the time that PyTorch takes to be imported."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.encoders.api import ApiEncoder, ApiOptions
from pplx_vectorstore.encoders.checkpoints import (
    Checkpoint,
    join_revisions,
    locate_both,
    locate_checkpoint,
)
from pplx_vectorstore.encoders.late_chunking import LateChunkingEncoder, check_options, with_options
from pplx_vectorstore.encoders.numpy_bert import NumpyBertModel
from pplx_vectorstore.encoders.numpy_layers import UnsupportedByNumpyError
from pplx_vectorstore.encoders.numpy_qwen3 import NumpyQwen3Model
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.models import ModelSpec
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.tokenization import ChunkTokenizer

_log = logging.getLogger("pplx_vectorstore")


class QueryEncoder:
    """Embeds queries as the encoder does whose fingerprint it has; documents it refuses.

    A store of an index that was written with that encoder opens and searches with this one.

    Args:
        encoder: Of the same model and settings, over a model in numpy.
    """

    def __init__(self, encoder: LateChunkingEncoder, reload: Callable[[], QueryEncoder]) -> None:
        self._encoder = encoder
        self._reload = reload

    def __reduce__(self) -> tuple[Callable[[], QueryEncoder], tuple[()]]:
        """Pickle how it was loaded, not the weights."""
        return self._reload, ()

    @property
    def spec(self) -> ModelSpec:
        """Name, dimension and quantizer of the model."""
        return self._encoder.spec

    @property
    def tokenizer(self) -> ChunkTokenizer:
        """The model's tokenizer."""
        return self._encoder.tokenizer

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the encoder of documents."""
        return self._encoder.fingerprint

    def encode_documents(self, documents: Sequence[Sequence[str]], *, progress: object = None) -> NoReturn:
        """Documents are embedded by what `load_encoder` loads."""
        raise InvalidInputError(
            "this encoder was loaded by load_query_encoder and embeds queries alone; open the store with load_encoder "
            "to write documents"
        )

    def encode_queries(self, queries: Sequence[str]) -> Codes:
        """Embed search queries; see ``LateChunkingEncoder.encode_queries``.

        Returns:
            int8, shape (n_queries, dimension).
        """
        return self._encoder.encode_queries(queries)

    async def aencode_queries(self, queries: Sequence[str]) -> Codes:
        """`encode_queries` in a worker thread, so that the event loop stays free."""
        return await asyncio.to_thread(self.encode_queries, queries)


def load_query_encoder(
    model: str,
    *,
    backend: Literal["torch", "onnx", "api"] = "torch",
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    dimensions: int | None = None,
    window_tokens: int | None = None,
    min_context: int | None = None,
    context_weight: float | None = None,
    crest_factor: float | None = None,
    query_cache: int = 0,
    onnx_file: str | None = None,
    api_key: str | None = None,
    base_url: str | None = None,
    api: ApiOptions | None = None,
) -> QueryEncoder | LateChunkingEncoder | ApiEncoder:
    """Load what embeds queries, for one search in a process of its own.

    Queries of models that `load_encoder` would run by PyTorch go through numpy, in float32, on the CPU: PyTorch and
    transformers take seconds to be imported, a short query milliseconds to be embedded. Many queries, or documents, are
    better embedded by what `load_encoder` loads. That is also what comes where numpy has no part: another `backend`, a
    `device` other than the CPU, a `dtype` other than float32, or an architecture with something that is not written in
    numpy, which is logged by name.

    Args:
        model: As for `load_encoder`, with all other options.
        backend: "torch", whose place numpy takes, "onnx" or "api".
        device: "auto" or "cpu" for numpy.
        dtype: "auto" or "float32" for numpy.
        revision: Branch, tag or commit on the hub.
        dimensions: Cut vectors to so many components.
        window_tokens: Tokens that go through the model at once.
        min_context: Tokens of context on each side of a chunk.
        context_weight: Share of the contextual vector.
        crest_factor: Largest component over the root mean square that vectors have.
        query_cache: Queries whose codes are remembered.
        onnx_file: Name of an ONNX file.
        api_key: Of the hosted service, or of the server at `base_url`.
        base_url: Of a ``pplx-vectorstore serve`` that runs the model.
        api: How the service is asked.

    Returns:
        A `QueryEncoder`, or what `load_encoder` returns.

    Raises:
        PplxVectorStoreError: As `load_encoder`.
    """
    options: dict[str, Any] = {name: value for name, value in locals().items() if name != "model"}
    of_numpy = {"dimensions", "window_tokens", "min_context", "context_weight", "crest_factor", "query_cache"}
    is_for_numpy = backend == "torch" and device in ("auto", "cpu") and dtype in ("auto", "float32")
    if is_for_numpy and all(options[name] is None for name in ("onnx_file", "api_key", "base_url", "api")):
        try:
            return _load(model, revision, **{name: options[name] for name in of_numpy})
        except UnsupportedByNumpyError as error:
            _log.info("queries of %s are embedded by PyTorch: numpy lacks %s", model, error)
    from pplx_vectorstore.encoders import load_encoder

    encoder: LateChunkingEncoder | ApiEncoder = load_encoder(model, **options)
    return encoder


def _load(
    model: str,
    revision: str | None,
    *,
    dimensions: int | None,
    window_tokens: int | None,
    min_context: int | None,
    context_weight: float | None,
    crest_factor: float | None,
    query_cache: int,
) -> QueryEncoder:
    """Load a model into numpy; options as of `load_query_encoder`.

    Raises:
        UnsupportedByNumpyError: It has something that only PyTorch runs here.
    """
    options = {name: value for name, value in locals().items() if name not in ("model", "revision")}
    check_options(
        context_weight=context_weight, dimensions=dimensions, window_tokens=window_tokens, min_context=min_context
    )
    checkpoint, of_queries = locate_both(model, revision, locate_checkpoint)
    spec = with_options(
        checkpoint.spec,
        dimensions=dimensions,
        window_tokens=window_tokens,
        context_weight=context_weight,
        crest_factor=crest_factor,
    )
    encoder = LateChunkingEncoder(
        _load_token_model(of_queries or checkpoint),
        ChunkTokenizer.from_folder(checkpoint.folder),
        spec,
        revision=join_revisions(checkpoint, of_queries),
        source=checkpoint.source,
        dtype="float32",
        min_context=min_context,
        query_cache=query_cache,
    )
    return QueryEncoder(encoder, functools.partial(_load, model, revision, **options))


def _load_token_model(checkpoint: Checkpoint) -> NumpyBertModel | NumpyQwen3Model:
    return NumpyQwen3Model(checkpoint) if checkpoint.spec.layout == "pplx" else NumpyBertModel(checkpoint)
