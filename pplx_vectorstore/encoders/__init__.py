"""Text → int8 codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.encoders.checkpoints import locate_checkpoint
from pplx_vectorstore.encoders.late_chunking import LateChunkingEncoder, Progress, with_options
from pplx_vectorstore.encoders.precomputed import PrecomputedEncoder
from pplx_vectorstore.errors import InvalidInputError, ModelFileError
from pplx_vectorstore.models import ModelSpec
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.tokenization import ChunkTokenizer

__all__ = ["Encoder", "LateChunkingEncoder", "PrecomputedEncoder", "load_encoder"]


class Encoder(Protocol):
    """What a store needs of an encoder; write your own to use any other model."""

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


def load_encoder(
    model: str,
    *,
    backend: Literal["torch"] = "torch",
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    dimensions: int | None = None,
    window_tokens: int | None = None,
    min_context: int | None = None,
    context_weight: float | None = None,
    batch_tokens: int | None = None,
) -> LateChunkingEncoder:
    """Load a model.

    Args:
        model: A known name in any letter case (``pplx-embed-context-v1-0.6b``, ``all-minilm-l6-v2``),
            a hub id, or the path of a checkpoint folder.
        backend: The runtime.
        device: "auto" (cuda, then mps, then cpu) or a torch device such as "cuda:1".
        dtype: "auto" (bfloat16 where the hardware multiplies it natively, else float32), "bfloat16",
            "float32", or "float16" where the model stands it.
        revision: Branch, tag or commit on the hub.
        dimensions: Cut vectors to so many components (Matryoshka); None for all.
        window_tokens: Tokens that go through the model at once; None for the model's default.
        min_context: Tokens of context on each side of a chunk; None for an eighth of the window.
        context_weight: Share of the contextual vector, 0 to 1; None for the model's default.
        batch_tokens: Tokens of a batch, padding included; None for the device's default.

    Returns:
        An encoder; see :class:`LateChunkingEncoder`.

    Raises:
        InvalidInputError: An option is out of range.
        UnknownModelError: No such model, or no network to fetch it.
        ModelFileError: The checkpoint is broken, altered or of an unsupported layout.
        MissingExtraError: An extra must be installed first.
    """
    if backend != "torch":
        raise InvalidInputError(f"backend must be 'torch', not {backend!r}")
    counts = {
        "dimensions": dimensions,
        "window_tokens": window_tokens,
        "min_context": min_context,
        "batch_tokens": batch_tokens,
    }
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
            raise InvalidInputError(f"{name} must be a whole number or None, not {count!r}")
    if context_weight is not None and not isinstance(context_weight, (int, float)):
        raise InvalidInputError(f"context_weight must be a number or None, not {context_weight!r}")
    checkpoint = locate_checkpoint(model, revision)
    spec = with_options(
        checkpoint.spec, dimensions=dimensions, window_tokens=window_tokens, context_weight=context_weight
    )
    from pplx_vectorstore.encoders.torch_model import load_torch_model

    tokenizer = ChunkTokenizer.from_folder(checkpoint.folder)
    token_model = load_torch_model(checkpoint, device=device, dtype=dtype)
    encoder = LateChunkingEncoder(
        token_model,
        tokenizer,
        spec,
        revision=checkpoint.revision,
        source=checkpoint.source,
        min_context=min_context,
        batch_tokens=batch_tokens,
    )
    if tokenizer.largest_id >= token_model.vocabulary_size:
        raise ModelFileError(
            f"tokenizer.json in {checkpoint.folder} has ids up to {tokenizer.largest_id}, but the weights only have "
            f"{token_model.vocabulary_size} token embeddings; they are of different models"
        )
    return encoder
