"""Where a job's store is and how it is opened, in a form that goes to workers."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pplx_vectorstore import Chunker, Encoder, ModelSpec, VectorStore, load_encoder
from pplx_vectorstore.chunking import check_chunk_tokens
from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.encoders.meter import Progress
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.redaction import without_password
from pplx_vectorstore.tokenization import ChunkTokenizer

Model = str | Callable[[], Encoder]
"""What ``load_encoder`` takes, or a function that makes an encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """A model, to be loaded by each worker.

    Attributes:
        model: A name or folder that ``load_encoder`` takes, or a function that makes the encoder.
        options: Of ``load_encoder``.
        chunk_tokens: Most tokens of a chunk where documents are given as text.
    """

    model: Model
    options: Mapping[str, Any] = field(default_factory=dict)
    chunk_tokens: int

    def __post_init__(self) -> None:
        if not (isinstance(self.model, str) or callable(self.model)):
            raise InvalidInputError(
                f"model must be a name, or a function that makes an encoder in each worker, not "
                f"{type(self.model).__name__}"
            )
        if not isinstance(self.model, str) and self.options:
            raise InvalidInputError("model_options are of load_encoder; a function that makes an encoder has its own")
        known = inspect.signature(load_encoder).parameters.keys() - {"model", "api_key"}
        if "api_key" in self.options:
            raise InvalidInputError(
                "api_key would go to the workers in a pickle; set PERPLEXITY_API_KEY or PPLX_API_KEY in their "
                "environment"
            )
        if unknown := self.options.keys() - known:
            raise InvalidInputError(
                f"load_encoder has no option {', '.join(sorted(unknown))}; model_options takes "
                f"{', '.join(sorted(known))}"
            )
        check_chunk_tokens(self.chunk_tokens)

    def load(self) -> MeteredEncoder:
        """Load it."""
        made = load_encoder(self.model, **self.options) if isinstance(self.model, str) else self.model()
        return MeteredEncoder(made)

    def chunker_of(self, encoder: Encoder) -> Chunker:
        """Make what cuts documents given as text."""
        return Chunker(encoder.tokenizer.tokenizer, self.chunk_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A collection on a server, with the model that its vectors are of. The key is read from the environment.

    Attributes:
        url: Of the server.
        model: As for `ModelChoice`.
        options: Of ``VectorStore.connect``: `collection`, `tenant`, `prefer_grpc`, and others.
    """

    url: str
    model: ModelChoice
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.url, str) or not self.url.startswith(("http://", "https://")):
            raise InvalidInputError(
                f"url must be of a server, such as http://qdrant:6333, not {_shown(self.url)}: workers on several "
                "machines have no folder in common"
            )
        if "@" in urlsplit(self.url).netloc:
            raise InvalidInputError(
                "the url holds a user or a password, which would go to the workers in a pickle; set QDRANT_API_KEY in "
                "their environment"
            )

    def open(self, encoder: Encoder, *, create: bool = False, **options: Any) -> VectorStore:
        """Open the store with its model, loaded."""
        chunker = self.model.chunker_of(encoder)
        return VectorStore.connect(self.url, encoder=encoder, chunker=chunker, create=create, **self.options, **options)

    def open_without_model(self, **options: Any) -> VectorStore:
        """Open a store that exists, to look after it rather than to embed anything."""
        return VectorStore.connect(self.url, create=False, **self.options, **options)


def _shown(url: object) -> str:
    return repr(without_password(url)) if isinstance(url, str) else type(url).__name__


class MeteredEncoder:
    """An encoder that counts what goes through it.

    Args:
        encoder: Any.

    Attributes:
        tokens: What went through the model so far.
        seconds: Time spent on documents so far.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.tokens = 0
        self.seconds = 0.0

    @property
    def spec(self) -> ModelSpec:
        """Of the encoder."""
        return self._encoder.spec

    @property
    def tokenizer(self) -> ChunkTokenizer:
        """Of the encoder."""
        return self._encoder.tokenizer

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the encoder."""
        return self._encoder.fingerprint

    def __getattr__(self, name: str) -> Any:
        """Of the encoder: what it need not have, such as ``usage`` and ``group_characters``."""
        return getattr(self._encoder, name)

    def encode_documents(self, documents: Sequence[Sequence[str]], *, progress: Progress | None = None) -> list[Codes]:
        """Embed documents, and count."""
        done = 0

        def count(tokens: int, all_of_them: int) -> None:
            nonlocal done
            done = max(done, tokens)
            if progress is not None:
                progress(tokens, all_of_them)

        started = time.perf_counter()
        try:
            return self._encoder.encode_documents(documents, progress=count)
        finally:
            self.seconds += time.perf_counter() - started
            self.tokens += done

    def encode_queries(self, queries: Sequence[str]) -> Codes:
        """Embed queries."""
        return self._encoder.encode_queries(queries)
