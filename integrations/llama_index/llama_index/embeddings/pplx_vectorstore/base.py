"""The pplx-embed models, and any other model of ``load_encoder``, as a LlamaIndex embedding."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self, cast

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.utils import get_tqdm_iterable
from llama_index.embeddings.pplx_vectorstore.grouping import group_nodes
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from pplx_vectorstore import ApiOptions, Encoder, load_encoder
from pplx_vectorstore.errors import InvalidInputError

dispatcher = get_dispatcher(__name__)

# Loading takes seconds, and threads that share an object shall not load its model twice.
_LOADING = threading.Lock()


class PplxEmbedding(BaseEmbedding):
    """An embedding whose components are int8 codes, and which keeps the context of nodes' documents.

    As a transformation (in an ``IngestionPipeline``, or in an index's ``transformations``) it embeds the nodes of a
    document together. Its other methods take texts without saying which belong together, and embed each by itself.
    The model is loaded when it is first needed. Neither weights nor key are pickled or serialised.

    Attributes:
        model_name: A known name (``pplx-embed-context-v1-0.6b``, ``all-minilm-l6-v2``), a hub id, or a folder.
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
        embed_batch_size: Nodes of whole documents that are embedded at once, at least.
    """

    model_config = ConfigDict(extra="forbid")  # a misspelt setting would be lost

    model_name: str
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
    api_key: SecretStr | None = Field(default=None, exclude=True)
    base_url: str | None = None
    api: ApiOptions | None = None
    embed_batch_size: int = Field(default=512, gt=0, le=2048)

    _encoder: Encoder | None = PrivateAttr(default=None)
    _loaded_with: dict[str, Any] | None = PrivateAttr(default=None)
    _is_given: bool = PrivateAttr(default=False)
    _has_warned: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _hide_key(cls, settings: Any) -> Any:
        # Pydantic's errors quote all settings, such as where the model is missing.
        if isinstance(settings, dict) and isinstance(settings.get("api_key"), str):
            return {**settings, "api_key": SecretStr(settings["api_key"])}
        return settings

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised settings have."""
        return "PplxEmbedding"

    @classmethod
    def from_encoder(cls, encoder: Encoder, **options: Any) -> PplxEmbedding:
        """Use an encoder that is loaded already, or one of your own; `options` are those of ``BaseEmbedding``."""
        made = encoder.fingerprint
        backend, _, onnx_file = made.backend.partition(":")
        embedding = cls(
            # What the vectors depend on, so that a pipeline's cache tells encoders apart.
            model_name=made.source,
            backend=cast("Any", backend if backend in ("onnx", "api") else "torch"),
            revision=made.revision,
            dimensions=made.dimension,
            window_tokens=made.window_tokens,
            min_context=made.min_context,
            context_weight=made.context_weight,
            crest_factor=made.crest_factor,
            onnx_file=onnx_file or None,
            **options,
        )
        return embedding._given(encoder)

    @property
    def encoder(self) -> Encoder:
        """The loaded model; loaded again where settings were changed since.

        Raises:
            InvalidInputError: Settings were changed that a given encoder has.
            PplxVectorStoreError: As ``load_encoder`` does: an unknown model, an option out of range, no key.
        """
        options = self._options()
        with _LOADING:
            if self._encoder is None or self._loaded_with != options:
                if self._is_given:
                    raise InvalidInputError(
                        "settings of an embedding made by from_encoder are those of the encoder; load another"
                    )
                self._encoder = cast("Encoder", load_encoder(**options))
                self._loaded_with = options
            return self._encoder

    # --- nodes, in the context of their document -----------------------------------------------------

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Embed nodes, those of one document together, and set their ``embedding``.

        Nodes are of one document when they have the same source (``ref_doc_id``); without one, they stand alone.
        They are embedded in the document's order, whatever the order in which they come, as their text with the
        metadata that LlamaIndex means to be embedded (``MetadataMode.EMBED``).

        Args:
            nodes: In any order.
            **kwargs: `show_progress`; others are those of a pipeline's other transformations.

        Returns:
            The same nodes.
        """
        nodes = list(nodes)  # a generator is read once
        for batch in self._batches(nodes, show_progress=bool(kwargs.get("show_progress"))):
            with self._reported(_texts(batch)) as report:
                if self.rate_limiter is not None:
                    self.rate_limiter.acquire()
                report(_set(batch, self.encoder.encode_documents([_texts([group]) for group in batch])))
        return nodes

    @dispatcher.span
    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Await what calling it does."""
        nodes = list(nodes)  # a generator is read once
        for batch in self._batches(nodes, show_progress=bool(kwargs.get("show_progress"))):
            with self._reported(_texts(batch)) as report:
                if self.rate_limiter is not None:
                    await self.rate_limiter.async_acquire()
                report(_set(batch, await self._await("encode_documents", [_texts([group]) for group in batch])))
        return nodes

    def _batches(self, nodes: Sequence[BaseNode], *, show_progress: bool) -> Iterator[list[list[BaseNode]]]:
        """Gather whole documents to batches of about ``embed_batch_size`` nodes."""
        batch: list[list[BaseNode]] = []
        size = 0
        for group in get_tqdm_iterable(group_nodes(nodes), show_progress, "Embedding documents"):
            batch.append(group)
            size += len(group)
            if size >= self.embed_batch_size:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    @contextlib.contextmanager
    def _reported(self, texts: list[str]) -> Iterator[Callable[[list[Embedding]], None]]:
        """Tell LlamaIndex's instrumentation and callbacks of the texts, and of the vectors that were made."""
        payload = self.to_payload()
        dispatcher.event(EmbeddingStartEvent(model_dict=payload))
        with self.callback_manager.event(CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: payload}) as event:

            def report(embeddings: list[Embedding]) -> None:
                event.on_end(payload={EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: embeddings})
                dispatcher.event(EmbeddingEndEvent(chunks=texts, embeddings=embeddings))

            yield report

    # --- texts, each by itself -----------------------------------------------------------------------

    def _get_query_embedding(self, query: str) -> Embedding:
        return _floats(self.encoder.encode_queries([_require_query(query)]))[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return _floats(await self._await("encode_queries", [_require_query(query)]))[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return [_floats(codes)[0] for codes in self.encoder.encode_documents([[text] for text in texts])]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return [_floats(codes)[0] for codes in await self._await("encode_documents", [[text] for text in texts])]

    def get_text_embedding_batch(self, texts: list[str], show_progress: bool = False, **kwargs: Any) -> list[Embedding]:
        """Embed texts, each as a document of its own: they do not tell which belong together."""
        self._warn_of_lost_context(texts)
        return super().get_text_embedding_batch(texts, show_progress=show_progress, **kwargs)

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Await what `get_text_embedding_batch` returns."""
        self._warn_of_lost_context(texts)
        return await super().aget_text_embedding_batch(texts, show_progress=show_progress, **kwargs)

    def _warn_of_lost_context(self, texts: Sequence[str]) -> None:
        """Say it once: an index that is given nodes without embeddings comes here, with their texts alone."""
        if len(texts) > 1 and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "these texts are embedded one by one, without the context of their documents. To keep it, call the "
                "embedding with the nodes before you give them to an index (nodes = embed_model(nodes)), and put it "
                "last into the transformations of an index or of an IngestionPipeline",
                stacklevel=3,
            )

    # --- loading and pickling ------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings, not the weights; the key comes from the environment again."""
        settings = {name: getattr(self, name) for name in self.model_fields_set - set(_KEPT_HERE)}
        return _rebuild, (type(self), settings, self._encoder if self._is_given else None)

    def _given(self, encoder: Encoder) -> Self:
        self._encoder, self._loaded_with, self._is_given = encoder, self._options(), True
        return self

    def _options(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in self.model_fields_set & _OF_MODEL}
        options["model"] = self.model_name
        if self.api_key is not None:
            options["api_key"] = self.api_key.get_secret_value()
        return options

    async def _await(self, verb: str, texts: Sequence[Any]) -> Any:
        encoder = await asyncio.to_thread(lambda: self.encoder)
        if hasattr(encoder, f"a{verb}"):
            return await getattr(encoder, f"a{verb}")(texts)
        return await asyncio.to_thread(getattr(encoder, verb), texts)


_OF_MODEL = set(inspect.signature(load_encoder).parameters) - {"model", "api_key"}
_KEPT_HERE = ("api_key", "callback_manager", "rate_limiter", "embeddings_cache")


def _rebuild(cls: type[PplxEmbedding], settings: dict[str, Any], encoder: Encoder | None) -> PplxEmbedding:
    embedding = cls(**settings)
    return embedding if encoder is None else embedding._given(encoder)


def _texts(groups: Sequence[Sequence[BaseNode]]) -> list[str]:
    return [node.get_content(metadata_mode=MetadataMode.EMBED) for group in groups for node in group]


def _set(groups: Sequence[Sequence[BaseNode]], codes: Sequence[Any]) -> list[Embedding]:
    """Set each node's embedding; return all of them."""
    embeddings: list[Embedding] = []
    for group, of_group in zip(groups, codes, strict=True):
        for node, embedding in zip(group, _floats(of_group), strict=True):
            node.embedding = embedding
            embeddings.append(embedding)
    return embeddings


def _floats(codes: Any) -> list[Embedding]:
    floats: list[Embedding] = codes.astype(float).tolist()
    return floats


def _require_query(query: object) -> str:
    if not isinstance(query, str) or not query.strip():
        raise InvalidInputError(f"a query must be a str that is not blank, not {query!r}")
    return query
