"""What a collection is made of, and how it knows what was written into it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from pplx_vectorstore._version import __version__
from pplx_vectorstore.documents import has_lone_surrogate
from pplx_vectorstore.equal_norms import LARGEST
from pplx_vectorstore.errors import InvalidInputError, SchemaMismatchError, UnsupportedFilterError
from pplx_vectorstore.qdrant import models

SCHEMA_VERSION = 2
"""Changes when stored points mean something else; a collection of another version is refused."""

DEFAULT_COLLECTION = "documents"
VECTOR_NAME = "codes"
WEIGHTS_PREFIX = "sha256:"
"""Marks a revision that is computed from the weights themselves."""

METADATA_KEY = "pplx_vectorstore"
TEXT_FIELD = "text"
WORDS_FIELD = "words"
"""Words of the text that the index of the text itself does not see: `pplx_vectorstore.lexical`."""
TENANT_FIELD = "tenant"
LOSS_FIELD = "loss"
BM25_VECTOR = "bm25"
"""On servers without BM25 over text, a sparse vector of the text's words, which the server itself makes."""
GENERATION_FIELD = "generation"
"""On servers, when a point was written: `pplx_vectorstore.operations.server_indexing`."""

# Every field that a filter of ours reads: strict mode refuses fields without an index.
PAYLOAD_INDEXES = {
    LOSS_FIELD: "float",
    "document_id": "keyword",
    "document_hash": "keyword",
    "chunk_index": "integer",
}
INDEX_TYPES = ("keyword", "integer", "float", "bool", "datetime", "uuid", "text", "geo")

MemoryPlacement = Literal["cold", "cached", "pinned"]
IndexFields = Mapping[str, Any]
"""Metadata fields to index: ``{"lang": "keyword", "author": {"born": "integer"}}``."""

# Links found by bits are less sure than by codes; a beam twice as wide as Qdrant's default while building makes up
# for it, and is still built sooner than a graph of float32 vectors (benchmarks/search.py).
_EF_CONSTRUCT = 200

_SIMPLE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_UNQUOTABLE = re.compile(r'["\\]')  # a quoted key of a JSON path has no escapes


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionConfig:
    """How a collection is laid out when it is created; an existing one keeps its layout.

    Attributes:
        shard_number: Shards of the collection; None for one per node.
        replication_factor: Copies of each shard; None for 1.
        write_consistency_factor: Copies that must have a write before it is acknowledged; None for 1.
        codes_memory: Where the int8 codes are: "cold" (on disk, read as needed), "cached" (read into the
            page cache at start) or "pinned" (in RAM).
        bits_memory: Where their packed bits are.
        query_encoding: "scalar8bits" weighs each bit by the query's component, kept at 8 bits, and finds more with
            as few candidates; "binary" compares bits with bits, the plain Hamming distance.
        text_index: Whether to index the text for hybrid search. True, given for a collection that lacks
            an index for it, adds it.
    """

    shard_number: int | None = None
    replication_factor: int | None = None
    write_consistency_factor: int | None = None
    codes_memory: MemoryPlacement = "cold"
    bits_memory: MemoryPlacement = "pinned"
    query_encoding: Literal["scalar8bits", "binary"] = "scalar8bits"
    text_index: bool = True

    def __post_init__(self) -> None:
        for name in ("shard_number", "replication_factor", "write_consistency_factor"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InvalidInputError(f"{name} must be a whole number of at least 1 or None, not {value!r}")
        for name in ("codes_memory", "bits_memory"):
            if getattr(self, name) not in get_args(MemoryPlacement):
                raise InvalidInputError(f"{name} must be 'cold', 'cached' or 'pinned', not {getattr(self, name)!r}")
        if self.query_encoding not in ("binary", "scalar8bits"):
            raise InvalidInputError(f"query_encoding must be 'binary' or 'scalar8bits', not {self.query_encoding!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Everything that the vectors of a collection depend on.

    Attributes:
        model: Canonical name.
        revision: What tells its weights from others of that name, or None.
        dimension: Components of a vector.
        quantizer: "tanh", "norm" or "sign".
        window_tokens: Tokens that went through the model at once.
        min_context: Tokens of context on each side of a chunk.
        context_weight: Share of the contextual vector.
        source: What ``load_encoder`` takes to load the model again: its name, or a folder's path. Not
            part of the identity: a checkpoint may move.
        squared_norm: C², the squared norm that the collection's stored vectors have. Not part of the identity:
            vectors of any norm are brought to it.
        backend: What ran it: "torch", "onnx:" and the file's name, or "api". Not part of the identity: the vectors
            differ by the precision of the arithmetic alone, as with another dtype.
        dtype: In what it multiplied: "float32", "bfloat16" or "float16"; None where that is not known, or an ONNX
            file's own matter. Not part of the identity.
    """

    model: str
    revision: str | None
    dimension: int
    quantizer: str
    window_tokens: int
    min_context: int
    context_weight: float
    source: str
    squared_norm: int
    backend: str = "torch"
    dtype: str | None = None

    @property
    def crest_factor(self) -> float:
        """Largest component over the root mean square that fits the squared norm."""
        return LARGEST * math.sqrt(self.dimension / self.squared_norm)

    def identity(self) -> dict[str, Any]:
        """Return the fields in which two encoders must agree for their vectors to be the same."""
        identity = asdict(self)
        del identity["source"], identity["squared_norm"], identity["backend"], identity["dtype"]
        return identity

    def to_metadata(
        self, *, tenants: bool = False, text_index: bool = True, bm25_vector: bool = False
    ) -> dict[str, Any]:
        """Return what the collection's metadata records, with schema and library version.

        Args:
            tenants: Whether the collection's points belong to tenants.
            text_index: Whether the text is to be indexed.
            bm25_vector: Whether points have sparse vectors of their words instead.
        """
        layout: dict[str, Any] = {"tenants": tenants, "text_index": text_index, "words_index": text_index}
        if bm25_vector:
            layout["bm25_vector"] = True
        return {METADATA_KEY: {"schema": SCHEMA_VERSION, "library": __version__, **layout, **asdict(self)}}

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any] | None, collection: str) -> Fingerprint:
        """Read what `to_metadata` recorded.

        Raises:
            SchemaMismatchError: The collection is not ours or of another schema version.
        """
        found = (metadata or {}).get(METADATA_KEY)
        if not isinstance(found, dict):
            raise SchemaMismatchError(
                f"collection {collection!r} was not written by pplx-vectorstore; use another collection name"
            )
        recorded: dict[str, Any] = {"dtype": None, **found}  # which came later
        if recorded.get("schema") != SCHEMA_VERSION:
            raise SchemaMismatchError(
                f"collection {collection!r} has schema version {recorded.get('schema')} (written by "
                f"pplx-vectorstore {recorded.get('library')}); version {__version__} reads schema "
                f"{SCHEMA_VERSION}. Index the documents again, into a new collection or folder"
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
        if self.revision is None or given.revision is None:
            del recorded["revision"], wanted["revision"]  # the hosted API does not tell
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


def has_tenants(metadata: dict[str, Any] | None) -> bool:
    """Tell whether a collection's points belong to tenants."""
    return bool((metadata or {}).get(METADATA_KEY, {}).get("tenants", False))


def has_bm25_vector(metadata: dict[str, Any] | None) -> bool:
    """Tell whether a collection's points have sparse vectors of their words."""
    return bool((metadata or {}).get(METADATA_KEY, {}).get("bm25_vector", False))


def lexical_fields(metadata: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the fields whose words are to be indexed: none, the text, or also the words that its index misses."""
    recorded = (metadata or {}).get(METADATA_KEY, {})
    keys = {TEXT_FIELD: "text_index", WORDS_FIELD: "words_index"}  # the second came later
    return tuple(field for field, key in keys.items() if recorded.get(key, False))


def vector_params(
    dimension: int, config: CollectionConfig | None = None, *, memory_placement: bool = True
) -> dict[str, models.VectorParams]:
    """Return the one named vector: codes + 128 as uint8 on disk, their signs in RAM.

    Euclid does not change when both sides are shifted by 128, so it is that of the int8 codes, and ranks by their
    cosine, since they have one norm; the cosine of shifted values would be wrong. Binary quantization of uint8 vectors
    takes the bit ``value - 127 > 0``, which is ``code >= 0``.

    Args:
        dimension: Components of a vector.
        config: Where codes and bits are kept.
        memory_placement: Whether the engine knows the three placements; older ones have two flags.
    """
    config = config or CollectionConfig()
    encoding = models.BinaryQuantizationQueryEncoding(config.query_encoding)
    if memory_placement:
        of_bits = models.BinaryQuantizationConfig(memory=models.Memory(config.bits_memory), query_encoding=encoding)
        of_codes: dict[str, Any] = {"memory": models.Memory(config.codes_memory)}
    else:
        in_ram = config.bits_memory == "pinned"
        of_bits = models.BinaryQuantizationConfig(always_ram=in_ram, query_encoding=encoding)
        of_codes = {"on_disk": config.codes_memory != "pinned"}
    return {
        VECTOR_NAME: models.VectorParams(
            size=dimension,
            distance=models.Distance.EUCLID,
            datatype=models.Datatype.UINT8,
            hnsw_config=models.HnswConfigDiff(ef_construct=_EF_CONSTRUCT),
            quantization_config=models.BinaryQuantization(binary=of_bits),
            **of_codes,
        )
    }


def codes_params(info: models.CollectionInfo) -> models.VectorParams:
    """Return how a collection of ours keeps its codes."""
    vectors: Any = info.config.params.vectors
    params: models.VectorParams = vectors[VECTOR_NAME]
    return params


def keeps_codes_in_memory(params: models.VectorParams) -> bool:
    """Tell whether a collection keeps its codes in memory, cached or pinned."""
    memory = getattr(params, "memory", None)
    return memory in (models.Memory.CACHED, models.Memory.PINNED) if memory else params.on_disk is False


def own_indexes(*, without_links: bool) -> dict[str, Any]:
    """Return the payload indexes of every collection: path → type or parameters.

    Args:
        without_links: Keep the fields out of the HNSW graph. For each common value of an indexed field,
            Qdrant links the points that have it; no vector search of ours filters by these fields alone.
    """
    if not without_links:
        return dict(PAYLOAD_INDEXES)
    params: dict[str, Any] = {
        "float": models.FloatIndexParams(enable_hnsw=False),
        "integer": models.IntegerIndexParams(enable_hnsw=False),
        "keyword": models.KeywordIndexParams(enable_hnsw=False),
    }
    return {field: params[kind] for field, kind in PAYLOAD_INDEXES.items()}


def generation_index_params(*, without_links: bool, memory_placement: bool) -> models.IntegerIndexParams:
    """Return the index of the generations in which points were written, which stays on disk: few are looked for."""
    place: dict[str, Any] = {"memory": models.Memory.COLD} if memory_placement else {"on_disk": True}
    links: dict[str, Any] = {"enable_hnsw": False} if without_links else {}
    return models.IntegerIndexParams(lookup=False, range=True, **place, **links)


def text_index_params() -> models.TextIndexParams:
    """Return the index that BM25 ranks by: runs of letters and digits in lower case, without stemming."""
    # With links for each common word, the graph was measured to take several times its space.
    return models.TextIndexParams(scoring=True, enable_hnsw=False)


def bm25_vector_params() -> dict[str, models.SparseVectorParams]:
    """Return the sparse vector that stands in for the text's index: BM25's weights, times the rarity of each word."""
    return {BM25_VECTOR: models.SparseVectorParams(modifier=models.Modifier.IDF)}


def bm25_document(words: str, *, average_words: float, unstemmed: bool) -> models.Document:
    """Return what a server makes a vector of BM25 of, by the same words as the text's index would have.

    Args:
        words: From `pplx_vectorstore.lexical.normalize_words`.
        average_words: How many a text has on average.
        unstemmed: Whether the server can be told not to stem; an older one does not, in a language that it does not
            know.
    """
    plain: dict[str, Any] = {"stemmer": {"type": "none"}, "stopwords": {"custom": []}}
    options = {"tokenizer": "word", "avg_len": average_words, **(plain if unstemmed else {"language": "none"})}
    return models.Document(text=words, model="qdrant/bm25", options=options)


def tenant_index_params() -> models.KeywordIndexParams:
    """Return the index by which the engine keeps each tenant's points together."""
    return models.KeywordIndexParams(is_tenant=True)


def metadata_path(*keys: object) -> str:
    """Return the engine's path of a metadata field; keys are taken literally, dots and all.

    Raises:
        UnsupportedFilterError: No path can name such a key.

    >>> metadata_path("lang"), metadata_path("author", "e.mail")
    ('metadata.lang', 'metadata.author."e.mail"')
    """
    path = "metadata"
    for key in keys:
        if not isinstance(key, str) or not key or _UNQUOTABLE.search(key) or has_lone_surrogate(key):
            raise UnsupportedFilterError(
                f"a metadata key must be a non-empty str without quotes, backslashes and lone surrogates, not {key!r}"
            )
        path += f".{key}" if _SIMPLE_KEY.fullmatch(key) else f'."{key}"'
    return path


def field_indexes(index_fields: IndexFields | None) -> dict[str, Any]:
    """Return the payload indexes that were asked for: path → type or parameters.

    Whole numbers are indexed as floats: Qdrant's index of integers leaves 2.5 out of what is above 2, and takes 2.0
    for 2, which without an index does not equal it.

    Raises:
        InvalidInputError: A field's type is not known.
    """
    if index_fields is not None and not isinstance(index_fields, Mapping):
        raise InvalidInputError(
            f"index_fields must be a dict such as {{'lang': 'keyword'}}, not {type(index_fields).__name__}"
        )
    found: dict[str, Any] = {}

    def collect(fields: Mapping[Any, Any], *above: object) -> None:
        for key, kind in fields.items():
            if isinstance(kind, Mapping):
                collect(kind, *above, key)
            elif (isinstance(kind, str) and kind in INDEX_TYPES) or type(kind).__name__.endswith("IndexParams"):
                found[metadata_path(*above, key)] = _of_any_number(kind)
            else:
                raise InvalidInputError(
                    f"the index of metadata field {key!r} must be one of {', '.join(INDEX_TYPES)}, not {kind!r}"
                )

    collect(index_fields or {})
    return found


def _of_any_number(kind: Any) -> Any:
    if kind == "integer":
        return "float"
    if type(kind).__name__ != "IntegerIndexParams":
        return kind
    from qdrant_client import models as of_client

    options = kind.model_dump(exclude={"type", "lookup", "range"}, exclude_none=True)
    return of_client.FloatIndexParams(type=of_client.FloatIndexType.FLOAT, **options)


def index_type(kind: Any) -> str:
    """Return the type of an index that is given as one or as parameters."""
    return str(_plain(kind if isinstance(kind, str) else kind.type))


def index_types(info: models.CollectionInfo) -> dict[str, str]:
    """Return of which type each payload index of a collection is, by its path."""
    return {path: str(_plain(index.data_type)) for path, index in (info.payload_schema or {}).items()}


def schema_differences(info: models.CollectionInfo, dimension: int) -> list[str]:
    """Name every way in which a collection's vectors are not laid out as ours are."""
    vectors = info.config.params.vectors
    params = vectors.get(VECTOR_NAME) if isinstance(vectors, dict) else None
    if params is None:
        names = ", ".join(map(repr, vectors)) if isinstance(vectors, dict) and vectors else "an unnamed one"
        return [f"its vectors are {names}, and {VECTOR_NAME!r} is needed"]
    wanted: dict[str, tuple[object, object]] = {
        "size": (params.size, dimension),
        "distance": (params.distance, models.Distance.EUCLID),
        "datatype": (params.datatype, models.Datatype.UINT8),
    }
    different = [
        f"{name} of vector {VECTOR_NAME!r} is {_plain(is_)}, and {_plain(needed)} is needed"
        for name, (is_, needed) in wanted.items()
        if is_ != needed
    ]
    if not hasattr(params.quantization_config or info.config.quantization_config, "binary"):
        different.append(f"vector {VECTOR_NAME!r} has no binary quantization")
    return different


def _plain(value: object) -> object:
    return getattr(value, "value", value)
