"""Stands in for a model where every vector comes ready-made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, cast, get_args

from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.equal_norms import CREST_FACTOR
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.models import ModelSpec
from pplx_vectorstore.quantization import Quantizer
from pplx_vectorstore.tokenization import ChunkTokenizer


class PrecomputedEncoder:
    """An encoder without a model: documents bring ``vectors``, and queries are int8 codes.

    Args:
        model: Name of the model that the vectors are of; recorded by the collection.
        dimension: Components of a vector.
        quantizer: How float vectors become int8.
        crest_factor: Largest component over the root mean square that the vectors have, the more the coarser the
            stored codes; ``crest_factor_for`` tells it of a sample.
    """

    def __init__(
        self, model: str, dimension: int, *, quantizer: Quantizer = "norm", crest_factor: float = CREST_FACTOR
    ) -> None:
        if not isinstance(dimension, int) or isinstance(dimension, bool) or dimension < 1:
            raise InvalidInputError(f"dimension must be a whole number of at least 1, not {dimension!r}")
        if quantizer not in get_args(Quantizer):
            raise InvalidInputError(f"quantizer must be one of {', '.join(get_args(Quantizer))}, not {quantizer!r}")
        self.spec = ModelSpec(
            name=model,
            dimension=dimension,
            min_dimension=dimension,
            quantizer=quantizer,
            window_tokens=0,
            max_window_tokens=0,
            context_weight=0.0,
            layout="mean-pooled",
            crest_factor=crest_factor,
        )
        self.fingerprint = Fingerprint(
            model=model,
            revision=None,
            dimension=dimension,
            quantizer=quantizer,
            window_tokens=0,
            min_context=0,
            context_weight=0.0,
            source=model,
            squared_norm=self.spec.squared_norm,
        )

    @classmethod
    def of_collection(cls, fingerprint: Fingerprint) -> PrecomputedEncoder:
        """Return one that fits a collection written with any model, to read it without loading the model."""
        quantizer = cast("Quantizer", fingerprint.quantizer)
        encoder = cls(fingerprint.model, fingerprint.dimension, quantizer=quantizer)
        encoder.fingerprint = fingerprint
        return encoder

    @property
    def tokenizer(self) -> ChunkTokenizer:
        """There is none: text cannot be cut without a model."""
        return self._refuse("a document given as text")

    def encode_documents(self, documents: Sequence[Sequence[str]], *, progress: object = None) -> NoReturn:
        """There is no model: documents must bring their vectors."""
        self._refuse("a document without vectors")

    def encode_queries(self, queries: Sequence[str]) -> NoReturn:
        """There is no model: queries must be int8 codes."""
        self._refuse("a query given as text")

    def _refuse(self, what: str) -> NoReturn:
        raise InvalidInputError(
            f"{what} cannot be embedded: this store was opened without a model. Give chunks= with vectors=, and "
            "queries as int8 codes; or open it with load_encoder"
        )
