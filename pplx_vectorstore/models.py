"""What the library knows of each model: data, not code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pplx_vectorstore.equal_norms import CREST_FACTOR, squared_norm_of
from pplx_vectorstore.quantization import Quantizer

OFFLINE_MODEL = "all-minilm-l6-v2"
DEFAULT_MODEL = "perplexity-ai/pplx-embed-context-v1-0.6b"

Layout = Literal["pplx", "mean-pooled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """How a model turns text into vectors.

    Attributes:
        name: Hub id, or the folder's name for a checkpoint of your own.
        dimension: Components of a vector.
        min_dimension: Smallest dimension that it can be cut to (Matryoshka training); equal to
            `dimension` where it cannot.
        quantizer: "tanh" for models trained for it, "norm" for others; "sign" where only bits are fetched.
        window_tokens: Tokens that go through the model at once by default, its own start and end
            tokens included.
        max_window_tokens: The most it takes.
        context_weight: Share of the contextual vector in the result, from 0 (each chunk alone) to 1
            (late chunking alone).
        layout: "pplx" for Qwen3 weights with bidirectional attention, "mean-pooled" for the BERT family.
        separator: Token between neighbouring chunks, or None.
        query_model: Hub id of the encoder of queries, where they have their own; it shares the tokenizer.
        query_prefix: Text put before a query, or "".
        document_prefix: Text put before each window of a document, or "".
        float16: Whether the model's activations fit float16.
        sha256: Checksum of model.safetensors, where the library ships or names that very file.
        price: USD per million tokens of the hosted model, or None where it is not hosted.
        crest_factor: Largest component over the root mean square that its vectors have, None to measure it when the
            model is loaded. A collection is laid out for it: the larger, the coarser the codes.
    """

    name: str
    dimension: int
    min_dimension: int
    quantizer: Quantizer
    window_tokens: int
    max_window_tokens: int
    context_weight: float
    layout: Layout
    separator: str | None = None
    query_model: str | None = None
    query_prefix: str = ""
    document_prefix: str = ""
    float16: bool = True
    sha256: str | None = None
    price: float | None = None
    crest_factor: float | None = CREST_FACTOR

    @property
    def squared_norm(self) -> int:
        """The squared norm that the vectors of a collection of this model have."""
        return squared_norm_of(self.dimension, CREST_FACTOR if self.crest_factor is None else self.crest_factor)


def _pplx(name: str, dimension: int, context_weight: float, price: float) -> ModelSpec:
    return ModelSpec(
        name=f"perplexity-ai/{name}",
        dimension=dimension,
        min_dimension=128,
        quantizer="tanh",
        # Retrieval quality falls past 8K tokens; contextual training used about 4K.
        window_tokens=4096,
        max_window_tokens=32768,
        context_weight=context_weight,
        layout="pplx",
        separator="<|endoftext|>",
        float16=False,  # its activations overflow: float16 gives NaN
        price=price,
    )


_SPECS = (
    _pplx("pplx-embed-context-v1-0.6b", 1024, 1.0, 0.008),
    _pplx("pplx-embed-context-v1-4b", 2560, 1.0, 0.05),
    _pplx("pplx-embed-v1-0.6b", 1024, 0.0, 0.004),
    _pplx("pplx-embed-v1-4b", 2560, 0.0, 0.03),
    ModelSpec(
        name=OFFLINE_MODEL,
        dimension=384,
        min_dimension=384,
        quantizer="norm",
        window_tokens=512,
        max_window_tokens=512,
        # Not trained for late chunking: alone it loses, as 0.3 of a blend it gains.
        context_weight=0.3,
        layout="mean-pooled",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
)

KNOWN_MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}
"""Every model known by name, by its canonical name."""


def find_spec(name: str) -> ModelSpec | None:
    """Look a model up by name, in any letter case, with or without the organisation.

    >>> find_spec("PPLX-Embed-Context-v1-4B").dimension
    2560
    >>> find_spec("sentence-transformers/all-MiniLM-L6-v2").name
    'all-minilm-l6-v2'
    >>> find_spec("somebody/pplx-embed-v1-4b") is None
    True
    """
    organisation, _, bare = name.lower().rpartition("/")
    for spec in _SPECS:
        home, _, own = spec.name.lower().rpartition("/")
        if bare == own and organisation in ("", home or "sentence-transformers"):
            return spec
    return None
