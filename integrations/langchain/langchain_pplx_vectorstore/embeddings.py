"""The pplx-embed models, and any other model of ``load_encoder``, as LangChain embeddings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, cast

from langchain_core.embeddings import Embeddings
from langchain_core.utils import secret_from_env
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PrivateAttr, SecretStr, model_validator

from pplx_vectorstore import ApiOptions, Encoder, load_encoder
from pplx_vectorstore.documents import is_blank
from pplx_vectorstore.errors import InvalidInputError

T = TypeVar("T")

# Loading takes seconds, and threads that share an object shall not load its model twice.
_LOADING = threading.Lock()


class PplxEmbeddings(BaseModel, Embeddings):
    """Embeddings whose components are int8 codes, to be compared by cosine.

    The model is loaded when it is first needed. Threads and event loops may share an object; a pickle of it holds
    neither weights nor key. With ``PplxVectorStore``, chunks are embedded in the context of their document. With
    any other vector store every text stands alone, because that is all the interface lets through.

    Attributes:
        model: A known name (``pplx-embed-context-v1-0.6b``, ``all-minilm-l6-v2``), a hub id, or a folder.
        backend: "torch", "onnx" or "api" (the hosted service).
        device: "auto" or a device, such as "cuda:1".
        dtype: "auto", "bfloat16", "float32" or "float16"; for torch.
        revision: Branch, tag or commit on the hub.
        dimensions: Cut vectors to so many components; None for all.
        window_tokens: Tokens that go through the model at once; None for the model's default.
        min_context: Tokens of context on each side of a chunk; None for an eighth of the window.
        context_weight: Share of the contextual vector, 0 to 1; None for the model's default.
        crest_factor: Largest component over the root mean square; None for the model's own or a measured one.
        batch_tokens: Tokens of a batch; None for the device's default.
        query_cache: Queries whose codes are remembered.
        onnx_file: Which file of the checkpoint's onnx folder; None to choose.
        api_key: Of the hosted service; by default of the environment, PERPLEXITY_API_KEY or PPLX_API_KEY. With
            `base_url`, of that server; by default PPLX_VECTORSTORE_API_KEY, or none.
        base_url: Of a ``pplx-vectorstore serve`` of one's own, for ``backend="api"``; None for the hosted service.
        api: How the hosted service is asked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str
    backend: Literal["torch", "onnx", "api"] = "torch"
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    dimensions: int | None = None
    window_tokens: int | None = None
    min_context: int | None = None
    context_weight: float | None = None
    crest_factor: float | None = None
    batch_tokens: int | None = None
    query_cache: int = 0
    onnx_file: str | None = None
    api_key: SecretStr | None = Field(
        default_factory=secret_from_env(["PERPLEXITY_API_KEY", "PPLX_API_KEY"], default=None)
    )
    base_url: str | None = None
    api: InstanceOf[ApiOptions] | None = None

    _encoder: Encoder | None = PrivateAttr(default=None)
    _is_given: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _hide_key(cls, settings: Any) -> Any:
        # Pydantic's errors quote all settings, such as where the model is missing.
        if isinstance(settings, dict) and isinstance(settings.get("api_key"), str):
            return {**settings, "api_key": SecretStr(settings["api_key"])}
        return settings

    @classmethod
    def from_encoder(cls, encoder: Encoder) -> PplxEmbeddings:
        """Use an encoder that is loaded already, or one of your own."""
        embeddings = cls(model=encoder.spec.name, dimensions=encoder.spec.dimension)
        embeddings._encoder, embeddings._is_given = encoder, True
        return embeddings

    @property
    def encoder(self) -> Encoder:
        """The loaded model.

        Raises:
            PplxVectorStoreError: As ``load_encoder`` does: an unknown model, an option out of range, no key.
        """
        if self._encoder is None:
            with _LOADING:
                if self._encoder is None:
                    self._encoder = cast("Encoder", load_encoder(self.model, **self._options()))
        return self._encoder

    def embed_query(self, text: str) -> list[float]:
        """Embed a question.

        Args:
            text: Not blank; no instruction is put before it.

        Returns:
            The int8 codes as floats, -128.0 to 127.0, one per dimension.
        """
        _require_text(text)
        return _floats(self.encoder.encode_queries([text]))[0]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts, each as a document of its own: the interface does not tell which belong together.

        Chunks of one document get their context from `embed_document_chunks`, or from
        ``PplxVectorStore``, which groups what it is given by document.

        Returns:
            The int8 codes as floats, one list per text; zeros for a blank one.
        """
        return [vectors[0] for vectors in self.embed_document_chunks(_alone(texts))]

    def embed_document_chunks(self, documents: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """Embed the chunks of documents, each in the context of its document.

        Args:
            documents: For each document its chunks, in order.

        Returns:
            For each document, for each chunk, the int8 codes as floats; zeros for a blank chunk.
        """
        return [_floats(codes) for codes in self.encoder.encode_documents(documents)]

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query`, without blocking the event loop."""
        _require_text(text)
        return (await self._await("encode_queries", [text], _floats))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents`, without blocking the event loop."""
        return [vectors[0] for vectors in await self.aembed_document_chunks(_alone(texts))]

    async def aembed_document_chunks(self, documents: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """`embed_document_chunks`, without blocking the event loop."""
        return await self._await("encode_documents", documents, lambda found: [_floats(codes) for codes in found])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings, not the weights; the key comes from the environment again."""
        settings = {name: getattr(self, name) for name in self.model_fields_set - {"api_key"}}
        return _rebuild, (type(self), settings, self._given())

    def __eq__(self, other: object) -> bool:
        """Compare settings, whether or not a model is loaded already."""
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__ and self._given() is other._given()

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __copy__(self) -> Self:
        return self  # nothing of it can change

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return one with other settings, which loads its model anew."""
        if not update:
            return self
        if self._is_given:
            raise InvalidInputError(
                "settings of embeddings made by from_encoder are those of the encoder; load another"
            )
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | dict(update))

    def _given(self) -> Encoder | None:
        return self._encoder if self._is_given else None

    def _options(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in self.model_fields_set - {"model"}}
        if self.backend == "api" and self.base_url is None:  # the hosted service's key is for it alone
            options["api_key"] = self.api_key
        if options.get("api_key") is not None:
            options["api_key"] = options["api_key"].get_secret_value()
        return options

    async def _await(self, verb: str, texts: Sequence[Any], convert: Callable[[Any], T]) -> T:
        encoder = self._encoder or await asyncio.to_thread(lambda: self.encoder)
        if hasattr(encoder, f"a{verb}"):
            codes = await getattr(encoder, f"a{verb}")(texts)
        else:
            codes = await asyncio.to_thread(getattr(encoder, verb), texts)
        return await asyncio.to_thread(convert, codes)


def _rebuild(cls: type[PplxEmbeddings], settings: dict[str, Any], encoder: Encoder | None) -> PplxEmbeddings:
    return cls(**settings) if encoder is None else cls.from_encoder(encoder)


def _alone(texts: object) -> list[list[str]]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InvalidInputError(f"texts must be a list of str, not {type(texts).__name__}")
    return [[text] for text in texts]


def _require_text(text: object) -> None:
    if not isinstance(text, str) or is_blank(text):
        raise InvalidInputError(f"a query must be a str that is not blank, not {text!r}")


def _floats(codes: Any) -> list[list[float]]:
    floats: list[list[float]] = codes.astype(float).tolist()
    return floats
