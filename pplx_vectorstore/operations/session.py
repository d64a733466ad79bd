"""What the operations of one open store share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from pplx_vectorstore.chunking import Chunker
from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.documents import Chunk, Document
from pplx_vectorstore.encoders import Encoder
from pplx_vectorstore.encoders.meter import Progress
from pplx_vectorstore.engines.calls import Calls
from pplx_vectorstore.errors import AlignmentError
from pplx_vectorstore.operations.access import PointAccess
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.reports import Usage

DEFAULT_PARALLEL = 4
T = TypeVar("T")

# Of so many points, anything is computed in a few milliseconds: no more than an event loop should be kept from others.
_FEW_POINTS = 1000

_GROUP_CHARACTERS = 2**18


@dataclass(slots=True)
class Session:
    """An open store.

    Attributes:
        calls: The client.
        points: The collection's points, as the store's tenant sees them.
        encoder: Embeds documents and queries.
        fingerprint: How the collection's vectors are made.
        chunker: Cuts documents given as text; None until one does, for chunks of the default size.
        parallel: Upserts that may be under way at once.
    """

    calls: Calls
    points: PointAccess
    encoder: Encoder
    fingerprint: Fingerprint
    chunker: Chunker | None
    parallel: int

    def chunks_of(self, document: Document) -> tuple[Chunk, ...]:
        """Return a document's chunks, cutting its text if it has none."""
        if document.chunks is not None:
            return cast("tuple[Chunk, ...]", document.chunks)  # made Chunk objects by Document itself
        if self.chunker is None:  # made late: searching needs no tokenizer
            self.chunker = Chunker(self.encoder.tokenizer.tokenizer)
        return tuple(self.chunker.split(document.text or "", document.format))

    async def compute(self, n: int, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function over n points, in a thread where an event loop would wait for it."""
        if self.calls.awaits and n > _FEW_POINTS:
            return await self.calls.run(function, *arguments)
        return function(*arguments)

    async def encode_documents(self, texts: Sequence[Sequence[str]], progress: Progress | None) -> list[Codes]:
        """Embed documents, awaiting the encoder if it can be awaited."""
        if self.calls.awaits and hasattr(self.encoder, "aencode_documents"):
            codes: list[Codes] = await self.encoder.aencode_documents(texts, progress=progress)
            return codes
        return await self.calls.run(self.encoder.encode_documents, texts, progress=progress)

    async def encode_queries(self, texts: Sequence[str]) -> Codes:
        """Embed queries, awaiting the encoder if it can be awaited."""
        if self.calls.awaits and hasattr(self.encoder, "aencode_queries"):
            codes: Codes = await self.encoder.aencode_queries(texts)
            return codes
        return await self.calls.run(self.encoder.encode_queries, texts)

    @property
    def usage(self) -> Usage:
        """What the encoder has been billed for so far; nothing for one that runs here."""
        usage: Usage = getattr(self.encoder, "usage", Usage())
        return usage

    @property
    def group_characters(self) -> int:
        """Characters of documents that are embedded and acknowledged together.

        Enough text to fill length-sorted batches, little enough to keep memory flat however large the
        corpus is. Two groups are held at most: one being embedded, one being written.
        """
        return int(getattr(self.encoder, "group_characters", _GROUP_CHARACTERS))

    def require_codes(self, codes: Codes, n: int) -> None:
        """Refuse what an encoder gave if it is not int8 of the collection's dimension.

        Raises:
            AlignmentError: Names both shapes.
        """
        expected = (n, self.fingerprint.dimension)
        if codes.shape != expected or codes.dtype != np.int8:
            raise AlignmentError(f"the encoder gave {codes.dtype} of shape {codes.shape}; int8 of {expected} is needed")
