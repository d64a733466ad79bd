"""What an engine is asked and what it answers: of ``qdrant_client.models``, what the library uses, by the same names.

Importing qdrant_client takes most of a second, which a search in a folder does not need: nothing in these is validated,
sent or generated. Values are ours or were checked before. What a client is to send becomes its own by
`pplx_vectorstore.qdrant.conversion`, and so do conditions that a caller wrote in the client's words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Self, dataclass_transform


@dataclass_transform(kw_only_default=True)
class Model:
    """Base of all: a class's annotations are its fields, and class attributes their defaults.

    As a dataclass has it, without the half millisecond that it takes to make each of those.
    """

    fields: ClassVar[tuple[str, ...]]
    """Their names."""
    _required: ClassVar[frozenset[str]]

    def __init_subclass__(cls) -> None:
        cls.fields = tuple(cls.__annotations__)
        cls._required = frozenset(name for name in cls.fields if not hasattr(cls, name))

    def __init__(self, **values: Any) -> None:
        unknown, missing = values.keys() - set(self.fields), self._required - values.keys()
        if unknown or missing:
            what = f"no field {min(unknown)!r}" if unknown else f"no value for {min(missing)!r}"
            raise TypeError(f"{type(self).__name__} got {what}")
        self.__dict__.update(values)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment] # they can be changed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name."""
        return {name: getattr(self, name) for name in self.fields}

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """Return a copy with other values of some fields."""
        return type(self)(**{**self.__dict__, **update})

    def model_dump(self, *, exclude_none: bool = False) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return {
            name: _dump(value, exclude_none)
            for name, value in self.to_dict().items()
            if not exclude_none or value is not None
        }


def _dump(value: Any, exclude_none: bool) -> Any:
    if hasattr(value, "model_dump"):  # ours, or the client's own
        return value.model_dump(exclude_none=exclude_none)
    if isinstance(value, list):
        return [_dump(one, exclude_none) for one in value]
    return str(value) if isinstance(value, StrEnum) else value


# --- filters ---------------------------------------------------------------------------------------------


class Filter(Model):
    """Matches where all of `must`, one of `should`, at least so many of `min_should` and none of `must_not` match."""

    must: Any = None
    should: Any = None
    min_should: MinShould | None = None
    must_not: Any = None


class MinShould(Model):
    """At least so many of the conditions."""

    conditions: Any
    min_count: int


class FieldCondition(Model):
    """On a payload field; of the geographic ones, the values are the client's own."""

    key: str
    match: Any = None
    range: Range | DatetimeRange | None = None
    geo_bounding_box: Any = None
    geo_radius: Any = None
    geo_polygon: Any = None
    values_count: Any = None
    is_empty: bool | None = None
    is_null: bool | None = None


class MatchValue(Model):
    """Equal to a str, int or bool."""

    value: Any


class MatchAny(Model):
    """Equal to any of several."""

    any: Sequence[Any]


class MatchExcept(Model):
    """Equal to none of several."""

    except_: Sequence[Any]


class MatchText(Model):
    """Holds all words; without an index of words, the text itself."""

    text: str


class MatchTextAny(Model):
    """Holds any of the words."""

    text_any: str


class MatchPhrase(Model):
    """Holds the words in this order."""

    phrase: str


class MatchPrefix(Model):
    """Begins so."""

    prefix: str


class MatchSubstring(Model):
    """Holds the text."""

    substring: str


class Range(Model):
    """Of numbers."""

    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


class DatetimeRange(Model):
    """Of dates and times."""

    gt: Any = None
    gte: Any = None
    lt: Any = None
    lte: Any = None


class PayloadField(Model):
    """A field by its path."""

    key: str


class IsEmptyCondition(Model):
    """Missing, null or an empty list."""

    is_empty: PayloadField


class IsNullCondition(Model):
    """Null."""

    is_null: PayloadField


class HasIdCondition(Model):
    """One of these points."""

    has_id: Sequence[Any]


class HasVectorCondition(Model):
    """Has a vector of that name."""

    has_vector: str


class Nested(Model):
    """Objects in a list, and what one of them must match."""

    key: str
    filter: Filter


class NestedCondition(Model):
    """One object of a list matches a filter."""

    nested: Nested


class SliceCondition(Model):
    """In one of several equal parts of a collection, told as the client tells it."""

    slice: Any


# --- searches --------------------------------------------------------------------------------------------


class Fusion(StrEnum):
    """How rankings become one."""

    RRF = "rrf"


class NearestQuery(Model):
    """Rank by the distance from a vector, or from that which a server makes of a `Document`."""

    nearest: Any


class TextQuery(Model):
    """Rank by BM25 on the words of an indexed field."""

    text: str


class FusionQuery(Model):
    """Fuse what prefetches found."""

    fusion: Fusion


class Rrf(Model):
    """Fuse by reciprocal ranks, some rankings weighing more."""

    k: int | None = None
    weights: Sequence[float] | None = None


class RrfQuery(Model):
    """Fuse what prefetches found so."""

    rrf: Rrf


class Document(Model):
    """A text of which a server makes a vector."""

    text: str
    model: str
    options: Mapping[str, Any] | None = None


class QuantizationSearchParams(Model):
    """How quantized vectors are used."""

    ignore: bool | None = None
    rescore: bool | None = None
    oversampling: float | None = None


class AcornSearchParams(Model):
    """Whether to walk past points that do not match a filter."""

    enable: bool | None = None
    max_selectivity: float | None = None


class IdfCorpusParams(Model):
    """The points among which a word's rarity is counted."""

    corpus: Filter


class SearchParams(Model):
    """How a ranking is found."""

    hnsw_ef: int | None = None
    exact: bool | None = None
    quantization: QuantizationSearchParams | None = None
    acorn: AcornSearchParams | None = None
    idf: IdfCorpusParams | None = None


class Prefetch(Model):
    """A stage of a search, from whose points the next chooses."""

    prefetch: Any = None
    query: Any = None
    using: str | None = None
    filter: Filter | None = None
    params: SearchParams | None = None
    score_threshold: float | None = None
    limit: int | None = None


class QueryRequest(Model):
    """One search of a batch."""

    prefetch: Any = None
    query: Any = None
    using: str | None = None
    filter: Filter | None = None
    params: SearchParams | None = None
    score_threshold: float | None = None
    limit: int | None = None
    with_payload: Any = None
    with_vector: Any = None


# --- writes ----------------------------------------------------------------------------------------------


class PointStruct(Model):
    """A point to write."""

    id: Any
    vector: Any
    payload: dict[str, Any] | None = None


class PointsList(Model):
    """Points to write."""

    points: Sequence[Any]


class FilterSelector(Model):
    """The points that match."""

    filter: Filter


class PointIdsList(Model):
    """The points of these ids."""

    points: Sequence[Any]


class SetPayload(Model):
    """Payload fields to set, and of which points."""

    payload: dict[str, Any]
    points: Sequence[Any] | None = None
    filter: Filter | None = None


class UpsertOperation(Model):
    """Of a batch of updates."""

    upsert: PointsList


class DeleteOperation(Model):
    """Of a batch of updates."""

    delete: FilterSelector | PointIdsList


class SetPayloadOperation(Model):
    """Of a batch of updates."""

    set_payload: SetPayload


# --- collections -----------------------------------------------------------------------------------------


class Distance(StrEnum):
    """How vectors are compared."""

    COSINE = "Cosine"
    EUCLID = "Euclid"
    DOT = "Dot"
    MANHATTAN = "Manhattan"


class Datatype(StrEnum):
    """What a component is stored as."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    UINT8 = "uint8"


class Memory(StrEnum):
    """Where data are: on disk, read into the page cache at start, or in RAM."""

    COLD = "cold"
    CACHED = "cached"
    PINNED = "pinned"


class BinaryQuantizationQueryEncoding(StrEnum):
    """As what a query is compared with bits."""

    DEFAULT = "default"
    BINARY = "binary"
    SCALAR4BITS = "scalar4bits"
    SCALAR8BITS = "scalar8bits"


class Modifier(StrEnum):
    """How the weights of a sparse vector are changed."""

    NONE = "none"
    IDF = "idf"


class CollectionStatus(StrEnum):
    """Whether all is indexed, is being, waits for it, or has failed."""

    GREEN = "green"
    YELLOW = "yellow"
    GREY = "grey"
    RED = "red"


class HnswConfigDiff(Model):
    """Settings of the graph; None for the engine's default."""

    m: int | None = None
    ef_construct: int | None = None
    full_scan_threshold: int | None = None
    max_indexing_threads: int | None = None
    on_disk: bool | None = None
    memory: str | None = None
    payload_m: int | None = None
    inline_storage: bool | None = None


class BinaryQuantizationConfig(Model):
    """Where bits are, and how they are compared."""

    always_ram: bool | None = None
    memory: str | None = None
    encoding: str | None = None
    query_encoding: str | None = None


class BinaryQuantization(Model):
    """One bit for each component."""

    binary: BinaryQuantizationConfig


class VectorParams(Model):
    """Settings of a vector."""

    size: int
    distance: str
    hnsw_config: HnswConfigDiff | None = None
    quantization_config: Any = None
    on_disk: bool | None = None
    memory: str | None = None
    datatype: str | None = None


class SparseVectorParams(Model):
    """Settings of a sparse vector."""

    modifier: Modifier | None = None


class OptimizersConfigDiff(Model):
    """When what is written is indexed, and how large segments grow."""

    indexing_threshold: int | None = None
    max_segment_size: int | None = None


class KeywordIndexParams(Model):
    """Index of texts that are compared whole."""

    type: str = "keyword"
    is_tenant: bool | None = None
    on_disk: bool | None = None
    memory: str | None = None
    enable_hnsw: bool | None = None


class IntegerIndexParams(Model):
    """Index of whole numbers."""

    type: str = "integer"
    lookup: bool | None = None
    range: bool | None = None
    on_disk: bool | None = None
    memory: str | None = None
    enable_hnsw: bool | None = None


class FloatIndexParams(Model):
    """Index of numbers."""

    type: str = "float"
    on_disk: bool | None = None
    memory: str | None = None
    enable_hnsw: bool | None = None


class TextIndexParams(Model):
    """Index of words."""

    type: str = "text"
    tokenizer: str | None = None
    min_token_len: int | None = None
    max_token_len: int | None = None
    lowercase: bool | None = None
    ascii_folding: bool | None = None
    phrase_matching: bool | None = None
    stopwords: Any = None
    on_disk: bool | None = None
    memory: str | None = None
    stemmer: Any = None
    enable_hnsw: bool | None = None
    scoring: bool | None = None


# --- answers of the embedded engine ----------------------------------------------------------------------


class PayloadIndexInfo(Model):
    """An index of a payload field."""

    data_type: str
    points: int
    params: Any = None


class CollectionParams(Model):
    """A collection's vectors."""

    vectors: Any = None
    sparse_vectors: Any = None


class CollectionConfig(Model):
    """A collection's settings."""

    params: CollectionParams
    optimizer_config: Any = None
    quantization_config: Any = None
    strict_mode_config: Any = None
    metadata: dict[str, Any] | None = None


class CollectionInfo(Model):
    """A collection's settings and state."""

    config: CollectionConfig
    payload_schema: dict[str, Any]
    points_count: int | None = None
    indexed_vectors_count: int | None = None
    segments_count: int | None = None
    status: str | None = None
    optimizer_status: Any = None
    update_queue: Any = None


class Record(Model):
    """A point that was read."""

    id: Any
    payload: dict[str, Any] | None = None
    vector: Any = None


class CountResult(Model):
    """How many points."""

    count: int


class FacetValueHit(Model):
    """How many points have a value."""

    value: Any
    count: int


class FacetResponse(Model):
    """Values, the most frequent first."""

    hits: list[FacetValueHit]
