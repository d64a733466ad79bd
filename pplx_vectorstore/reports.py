"""What the store's methods tell of their work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pplx_vectorstore.documents import Hit


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a hosted model was used for.

    Attributes:
        requests: Requests that were answered.
        tokens: Tokens billed.
        cost: USD; by the model's published price where the service did not tell.
    """

    requests: int = 0
    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        """Add up."""
        return Usage(
            requests=self.requests + other.requests, tokens=self.tokens + other.tokens, cost=self.cost + other.cost
        )

    def __sub__(self, earlier: Usage) -> Usage:
        """Return what came since."""
        return Usage(
            requests=self.requests - earlier.requests,
            tokens=self.tokens - earlier.tokens,
            cost=self.cost - earlier.cost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AddReport:
    """What an ``add`` wrote.

    Attributes:
        documents: Documents embedded and written, those without chunks included.
        chunks: Chunks written.
        blank_chunks: Those among them that hold white space alone: kept, but never found.
        bent_chunks: Those whose stored codes lost more than 0.001 of cosine: because a component was too far above the
            others and was clipped, which a larger ``crest_factor`` of the encoder avoids, or because that is so large
            that all others became coarse.
        empty_documents: Ids of documents without any chunk: nothing of them can be found.
        usage: What the encoder was billed for meanwhile, if it is of a hosted model.
    """

    documents: int = 0
    chunks: int = 0
    blank_chunks: int = 0
    bent_chunks: int = 0
    empty_documents: tuple[str, ...] = ()
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport(AddReport):
    """What a ``sync`` did; `documents` and `chunks` count what it embedded and wrote.

    Attributes:
        new_documents: Those among `documents` that the store did not hold.
        unchanged_documents: Documents that were skipped.
        relabelled_documents: Documents of which only the metadata changed: written, but not embedded.
        deleted_documents: Documents deleted because they were missing.
    """

    new_documents: int = 0
    unchanged_documents: int = 0
    relabelled_documents: int = 0
    deleted_documents: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """A document as the store holds it.

    Attributes:
        id: The document's id.
        chunks: Chunks stored of it.
        chunk_count: Chunks it has. Where this differs from `chunks`, a write was interrupted, some were deleted, or
            it came in pieces: ``sync`` of the whole document, or the same ``add`` again, makes it whole.
    """

    id: str
    chunks: int
    chunk_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedHit:
    """How one hit fared in each stage; ranks count from 1.

    Attributes:
        hit: The hit.
        hamming_rank: Its rank by the packed bits: by Hamming distance, weighted as the collection's ``query_encoding``
            says. None beyond the candidates, where the engine keeps
            no bits (``QdrantClient(":memory:")``), and while its index does not cover the newest points.
        exact_rank: Its rank in an exact scan of the codes, or None beyond the candidates.
    """

    hit: Hit
    hamming_rank: int | None
    exact_rank: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """How a search came to its hits, and what its way cost.

    Attributes:
        hits: The search's hits, best first, with their ranks in each stage.
        missed: Hits of an exact scan that the search did not return, best first.
        way: "bits" if the bits chose the candidates, "codes" if the graph was walked by the codes.
        candidates: Points that were compared by their codes, or the width of the beam where those were walked by.
        recall: Share of the exact scan's hits that the search returned, 0 to 1.
    """

    hits: tuple[ExplainedHit, ...]
    missed: tuple[Hit, ...]
    way: Literal["bits", "codes"]
    candidates: int
    recall: float
