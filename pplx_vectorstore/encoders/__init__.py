"""Text → int8 codes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, Protocol, overload

from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.encoders.api import ApiEncoder, ApiOptions, load_api_encoder, load_served_encoder
from pplx_vectorstore.encoders.checkpoints import (
    Checkpoint,
    join_revisions,
    locate_both,
    locate_checkpoint,
    locate_onnx,
)
from pplx_vectorstore.encoders.cpu_qwen3 import CpuQwen3TokenModel
from pplx_vectorstore.encoders.late_chunking import LateChunkingEncoder, check_options, with_options
from pplx_vectorstore.encoders.meter import Progress
from pplx_vectorstore.encoders.onnx_model import OnnxTokenModel, load_onnx_model
from pplx_vectorstore.encoders.precomputed import PrecomputedEncoder
from pplx_vectorstore.encoders.query_encoder import QueryEncoder, load_query_encoder
from pplx_vectorstore.encoders.torch_model import TorchTokenModel, load_torch_model
from pplx_vectorstore.errors import InvalidInputError, ModelFileError
from pplx_vectorstore.models import ModelSpec
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.tokenization import ChunkTokenizer

__all__ = [
    "ApiEncoder",
    "ApiOptions",
    "Encoder",
    "LateChunkingEncoder",
    "PrecomputedEncoder",
    "QueryEncoder",
    "load_encoder",
    "load_query_encoder",
]


class Encoder(Protocol):
    """What a store needs of an encoder; write your own to use any other model.

    Used where there are any: ``aencode_documents`` and ``aencode_queries``, coroutines of the same arguments, which an
    `AsyncVectorStore` awaits; ``usage``, a `Usage`; and
    ``group_characters``, how much text is worth embedding at once.
    """

    @property
    def spec(self) -> ModelSpec:
        """Name, dimension and quantizer of the model."""
        ...

    @property
    def tokenizer(self) -> ChunkTokenizer:
        """Sizes the chunks that a store cuts."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """What the vectors depend on."""
        ...

    def encode_documents(self, documents: Sequence[Sequence[str]], *, progress: Progress | None = None) -> list[Codes]:
        """Return int8 codes of shape (n_chunks, dimension) for each document, given as its chunks."""
        ...

    def encode_queries(self, queries: Sequence[str]) -> Codes:
        """Return int8 codes of shape (n_queries, dimension)."""
        ...


@overload
def load_encoder(
    model: str,
    *,
    backend: Literal["torch", "onnx"] = "torch",
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    dimensions: int | None = None,
    window_tokens: int | None = None,
    min_context: int | None = None,
    context_weight: float | None = None,
    crest_factor: float | None = None,
    batch_tokens: int | None = None,
    query_cache: int = 0,
    onnx_file: str | None = None,
) -> LateChunkingEncoder: ...


@overload
def load_encoder(
    model: str,
    *,
    backend: Literal["api"],
    revision: str | None = None,
    dimensions: int | None = None,
    window_tokens: int | None = None,
    min_context: int | None = None,
    query_cache: int = 0,
    api_key: str | None = None,
    base_url: str | None = None,
    api: ApiOptions | None = None,
) -> ApiEncoder: ...


def load_encoder(
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
    batch_tokens: int | None = None,
    query_cache: int = 0,
    onnx_file: str | None = None,
    api_key: str | None = None,
    base_url: str | None = None,
    api: ApiOptions | None = None,
) -> LateChunkingEncoder | ApiEncoder:
    """Load a model.

    Args:
        model: A known name in any letter case (``pplx-embed-context-v1-0.6b``, ``all-minilm-l6-v2``),
            a hub id, or the path of a checkpoint folder.
        backend: "torch", "onnx" (ONNX Runtime) or "api" (the hosted service, or a server of your own).
        device: "auto" (cuda, then mps, then cpu) or a torch device such as "cuda:1"; for ONNX Runtime
            "auto", "cpu", "cuda" or "cuda:1".
        dtype: "auto" (bfloat16 where the hardware multiplies it natively, else float32), "bfloat16",
            "float32", or "float16" where the model stands it. For torch; an ONNX file has its own.
        revision: Branch, tag or commit on the hub; "documents+queries" where queries have their own encoder.
        dimensions: Cut vectors to so many components (Matryoshka); None for all.
        window_tokens: Tokens that go through the model at once; None for the model's default.
        min_context: Tokens of context on each side of a chunk; None for an eighth of the window.
        context_weight: Share of the contextual vector, 0 to 1; None for the model's default.
        crest_factor: Largest component over the root mean square that vectors have; a collection is laid out for it
            when it is created. None for the model's, which is measured where it is not known.
        batch_tokens: Tokens of a batch, padding included; None for the device's default.
        query_cache: Queries whose codes are remembered; 0 for none.
        onnx_file: "model", "model_quantized", "model_q4" or another name in the checkpoint's onnx folder;
            None for the first of these that there is.
        api_key: Of the hosted service; None for the environment's PERPLEXITY_API_KEY or PPLX_API_KEY. With `base_url`,
            of that server; None for PPLX_VECTORSTORE_API_KEY, or for no key.
        base_url: Of a ``pplx-vectorstore serve`` that runs the model, as ``http://127.0.0.1:8090``; the settings are
            its own, and others are refused. None for the hosted service.
        api: How the service is asked.

    Returns:
        An encoder; see `LateChunkingEncoder`, and `ApiEncoder` for backend="api".

    Raises:
        InvalidInputError: An option is out of range, or of another backend.
        UnknownModelError: No such model, or no network to fetch it.
        ModelFileError: The checkpoint is broken, altered or of an unsupported layout.
        MissingExtraError: An extra must be installed first.
    """
    options: dict[str, Any] = {name: value for name, value in locals().items() if name != "model"}
    if backend not in ("torch", "onnx", "api"):
        raise InvalidInputError(f"backend must be 'torch', 'onnx' or 'api', not {backend!r}")
    check_options(
        context_weight=context_weight,
        dimensions=dimensions,
        window_tokens=window_tokens,
        min_context=min_context,
        batch_tokens=batch_tokens,
    )
    not_its_own: dict[str, dict[str, object]] = {
        "torch": {"onnx_file": onnx_file, "api_key": api_key, "base_url": base_url, "api": api},
        "onnx": {
            "dtype": None if dtype == "auto" else dtype,
            "api_key": api_key,
            "base_url": base_url,
            "api": api,
        },
        "api": {
            "device": None if device == "auto" else device,
            "dtype": None if dtype == "auto" else dtype,
            "context_weight": context_weight,
            "crest_factor": crest_factor,
            "batch_tokens": batch_tokens,
            "onnx_file": onnx_file,
        },
    }
    for name, value in not_its_own[backend].items():
        if value is not None:
            raise InvalidInputError(f"{name} is not an option of backend={backend!r}; leave it out")
    if base_url is not None:
        return load_served_encoder(
            model,
            base_url=base_url,
            api_key=api_key,
            options=api,
            revision=revision,
            dimensions=dimensions,
            window_tokens=window_tokens,
            min_context=min_context,
            query_cache=query_cache,
        )
    if backend == "api":
        return load_api_encoder(
            model,
            api_key=api_key,
            options=api or ApiOptions(),
            revision=revision,
            dimensions=dimensions,
            window_tokens=window_tokens,
            min_context=min_context,
            query_cache=query_cache,
        )
    locate = functools.partial(locate_onnx, file=onnx_file) if backend == "onnx" else locate_checkpoint
    checkpoint, of_queries = locate_both(model, revision, locate)
    spec = with_options(
        checkpoint.spec,
        dimensions=dimensions,
        window_tokens=window_tokens,
        context_weight=context_weight,
        crest_factor=crest_factor,
    )
    tokenizer = ChunkTokenizer.from_folder(checkpoint.folder)
    token_model = _load_token_model(checkpoint, tokenizer, device, dtype)
    query_model = None if of_queries is None else _load_token_model(of_queries, tokenizer, device, dtype)
    return LateChunkingEncoder(
        token_model,
        tokenizer,
        spec,
        revision=join_revisions(checkpoint, of_queries),
        source=checkpoint.source,
        backend=backend if checkpoint.onnx is None else f"{backend}:{checkpoint.onnx.stem}",
        dtype=None if isinstance(token_model, OnnxTokenModel) else str(token_model.dtype).removeprefix("torch."),
        query_model=query_model,
        min_context=min_context,
        batch_tokens=batch_tokens,
        query_cache=query_cache,
        reload=functools.partial(load_encoder, model, **options),
    )


def _load_token_model(
    checkpoint: Checkpoint, tokenizer: ChunkTokenizer, device: str, dtype: str
) -> TorchTokenModel | CpuQwen3TokenModel | OnnxTokenModel:
    model: TorchTokenModel | CpuQwen3TokenModel | OnnxTokenModel
    if checkpoint.onnx is not None:
        model = load_onnx_model(checkpoint, checkpoint.onnx, device=device)
    else:
        model = load_torch_model(checkpoint, device=device, dtype=dtype)
    if tokenizer.largest_id >= model.vocabulary_size:
        raise ModelFileError(
            f"tokenizer.json in {checkpoint.folder} has ids up to {tokenizer.largest_id}, but the weights only have "
            f"{model.vocabulary_size} token embeddings; they are of different models"
        )
    return model
