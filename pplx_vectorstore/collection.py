"""What a collection is made of, and how it knows what was written into it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from pplx_vectorstore._version import __version__
from pplx_vectorstore.errors import SchemaMismatchError

if TYPE_CHECKING:
    from qdrant_client import models

SCHEMA_VERSION = 1
"""Changes when stored points mean something else; a collection of another version is refused."""

DEFAULT_COLLECTION = "documents"
VECTOR_NAME = "codes"
WEIGHTS_PREFIX = "sha256:"
"""Marks a revision that is computed from the weights themselves."""

METADATA_KEY = "pplx_vectorstore"

PAYLOAD_INDEXES = {
    # The score formula reads the norm of every candidate; from an index that is two to three times faster.
    "norm": "float",
    "document_id": "keyword",
    "document_hash": "keyword",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Everything that the vectors of a collection depend on.

    Attributes:
        model: Canonical name.
        revision: What tells its weights from others of that name, or None.
        dimension: Components of a vector.
        quantizer: "tanh" or "absmax".
        window_tokens: Tokens that went through the model at once.
        min_context: Tokens of context on each side of a chunk.
        context_weight: Share of the contextual vector.
        source: What ``load_encoder`` takes to load the model again: its name, or a folder's path. Not
            part of the identity: a checkpoint may move.
    """

    model: str
    revision: str | None
    dimension: int
    quantizer: str
    window_tokens: int
    min_context: int
    context_weight: float
    source: str

    def identity(self) -> dict[str, Any]:
        """Return the fields in which two encoders must agree for their vectors to be the same."""
        identity = asdict(self)
        del identity["source"]
        return identity

    def to_metadata(self) -> dict[str, Any]:
        """Return what the collection's metadata records, with schema and library version."""
        return {METADATA_KEY: {"schema": SCHEMA_VERSION, "library": __version__, **asdict(self)}}

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any] | None, collection: str) -> Fingerprint:
        """Read what :meth:`to_metadata` recorded.

        Raises:
            SchemaMismatchError: The collection is not ours or of another schema version.
        """
        recorded = (metadata or {}).get(METADATA_KEY)
        if not isinstance(recorded, dict):
            raise SchemaMismatchError(
                f"collection {collection!r} was not written by pplx-vectorstore; use another collection name"
            )
        if recorded.get("schema") != SCHEMA_VERSION:
            raise SchemaMismatchError(
                f"collection {collection!r} has schema version {recorded.get('schema')} (written by "
                f"pplx-vectorstore {recorded.get('library')}); version {__version__} reads schema "
                f"{SCHEMA_VERSION}. Open it with that release, or index the documents into a new collection"
            )
        try:
            return cls(**{field.name: recorded[field.name] for field in fields(cls)})
        except KeyError as error:
            raise SchemaMismatchError(
                f"collection {collection!r} does not record its {error.args[0]}; its metadata was altered"
            ) from error

    def require_same(self, given: Fingerprint, collection: str) -> None:
        """Refuse an encoder whose vectors do not belong into this collection.

        Raises:
            SchemaMismatchError: Names every difference, and both values.
        """
        recorded, wanted = self.identity(), given.identity()
        if self.revision == given.revision and str(self.revision).startswith(WEIGHTS_PREFIX):
            del recorded["model"], wanted["model"]  # the same weights, in a folder of another name
        different = [
            f"{name} {recorded[name]!r} in the collection, {wanted[name]!r} given"
            for name in recorded
            if recorded[name] != wanted[name]
        ]
        if different:
            raise SchemaMismatchError(
                f"collection {collection!r} was written with other settings: {'; '.join(different)}. "
                "Load the encoder with the collection's settings, or index into another collection"
            )


def read_fingerprint(client: Any, collection: str) -> Fingerprint:
    """Read how a collection was written.

    Args:
        client: A ``QdrantClient``, or the embedded engine's client.
        collection: Name of an existing collection.

    Raises:
        SchemaMismatchError: The collection is not ours or of another schema version.
        StoreNotFoundError: It does not exist (embedded engine).
    """
    return Fingerprint.from_metadata(client.get_collection(collection).config.metadata, collection)


def vector_params(dimension: int) -> dict[str, models.VectorParams]:
    """Return the one named vector: codes + 128 as uint8 on disk, their signs in RAM.

    Euclid does not change when both sides are shifted by 128, so its score is that of the int8 codes;
    the cosine of shifted values would be wrong. Binary quantization of uint8 vectors takes the bit
    ``value - 127 > 0``, which is ``code >= 0``.
    """
    from qdrant_client import models

    return {
        VECTOR_NAME: models.VectorParams(
            size=dimension,
            distance=models.Distance.EUCLID,
            datatype=models.Datatype.UINT8,
            memory=models.Memory.COLD,
            quantization_config=models.BinaryQuantization(
                binary=models.BinaryQuantizationConfig(memory=models.Memory.PINNED)
            ),
        )
    }
