"""What a Qdrant server can do: since which version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from pplx_vectorstore.errors import UnsupportedServerError

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


class Feature(Enum):
    """The table: each thing that not every supported server has, the first version with it, and what it is called.

    A server ignores a field that it does not know, without a word, and refuses whole requests with a condition or a
    query that it does not know. So what it lacks is not sent.

    Attributes:
        since: The first version.
        words: What it is, in messages.
        in_process: Whether the engines in this process have it, too.
    """

    # 1.15 got it with its last two releases; 1.16 is the first of which every release has it.
    COLLECTION_METADATA = (1, 16, 0), "metadata of collections, which record their model", True
    ACORN = (1, 16, 0), "ACORN, which walks the graph under a filter (acorn)", True
    UNLINKED_INDEXES = (1, 17, 0), "payload indexes kept out of the vectors' graph (enable_hnsw)", True
    RRF_WEIGHTS = (1, 17, 0), "weights of the rankings that are fused", True
    SEARCH_BATCH_LIMIT = (1, 17, 1), "a limit of searches in one request (search_max_batchsize)", False
    MEMORY_PLACEMENT = (1, 19, 0), "placement in memory (memory)", True
    PREFIX_MATCH = (1, 19, 0), "beginnings of texts (MatchPrefix, and prefix of a keyword index)", True
    SLICES = (1, 19, 0), "slices of a collection (SliceCondition)", False
    UNSTEMMED_INDEXES = (1, 19, 0), "text indexes that are told not to stem (stemmer none)", False
    IDF_SCOPE = (1, 19, 0), "a choice of what rarity is counted in (idf)", True
    TEXT_SCORING = (1, 20, 0), "ranking of texts by BM25", True
    SUBSTRING_MATCH = (1, 20, 0), "parts of texts (MatchSubstring)", True
    NESTED_INDEXES = (1, 20, 0), "payload indexes of nested objects (nested)", False
    CODE_TOKENIZER = (1, 20, 0), "text indexes of source code (tokenizer code)", True

    def __init__(self, since: tuple[int, int, int], words: str, in_process: bool) -> None:
        self.since = since
        self.words = words
        self.in_process = in_process

    @property
    def version(self) -> str:
        """The first version, as it is written.

        >>> Feature.TEXT_SCORING.version, Feature.SEARCH_BATCH_LIMIT.version
        ('1.20', '1.17.1')
        """
        major, minor, patch = self.since
        return f"{major}.{minor}.{patch}" if patch else f"{major}.{minor}"


MINIMUM = Feature.COLLECTION_METADATA
"""Without it, nobody could tell which model a collection's vectors are of: the oldest supported server has it."""

# Parameters of payload indexes: those that decide how fast an index is or what else it answers, and those that decide
# what a filter matches (of a tokenizer and a stemmer, one value is new).
_OF_INDEXES = {
    "enable_hnsw": Feature.UNLINKED_INDEXES,
    "memory": Feature.MEMORY_PLACEMENT,
    "prefix": Feature.PREFIX_MATCH,
    "scoring": Feature.TEXT_SCORING,
}
_OF_MATCHES = {
    "nested": Feature.NESTED_INDEXES,
    "tokenizer": Feature.CODE_TOKENIZER,
    "stemmer": Feature.UNSTEMMED_INDEXES,
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do.

    Attributes:
        kind: "embedded", "server", or "emulation" for ``QdrantClient(":memory:")``.
        version: Of a server, as it says.
    """

    kind: Literal["embedded", "server", "emulation"]
    version: str = ""

    def has(self, feature: Feature) -> bool:
        """Tell whether it has a feature.

        >>> old = Capabilities("server", "1.18.3")
        >>> old.has(Feature.RRF_WEIGHTS), old.has(Feature.TEXT_SCORING)
        (True, False)
        """
        if self.kind != "server":
            return feature.in_process
        number = _number(self.version)
        return number is None or number >= feature.since

    def require(self, feature: Feature, wanted: str, *, way_out: str = "") -> None:
        """Refuse what the engine lacks.

        Args:
            feature: What it takes.
            wanted: What the user asked for, as a message begins with it.
            way_out: What else to do, beside upgrading the server.

        Raises:
            UnsupportedServerError: It lacks it.
        """
        if self.has(feature):
            return
        if self.kind != "server":
            raise UnsupportedServerError(
                f"{wanted} needs {feature.words}, which a Qdrant server has, and the engine in this process has not"
            )
        raise UnsupportedServerError(
            f"{wanted} needs Qdrant {feature.version} or newer, for {feature.words}; this server is {self.version}. "
            f"Upgrade it{f', or {way_out}' if way_out else ''}"
        )

    def require_index(self, field: str, schema: Any) -> None:
        """Refuse parameters of a payload index that a server would ignore, or not understand.

        Args:
            field: Its path.
            schema: A type's name, or Qdrant's index parameters.

        Raises:
            UnsupportedServerError: The server is too old for one of them.
        """
        for name in sorted(self._unknown(schema)):
            self.require(
                {**_OF_INDEXES, **_OF_MATCHES}[name],
                f"the index of field {field!r}",
                way_out=f"leave {name} out of its parameters",
            )

    def fit_index(self, field: str, schema: Any) -> Any:
        """Return the parameters of a payload index of another server without what this one would ignore.

        Raises:
            UnsupportedServerError: The server is too old for one that decides what a filter matches.
        """
        unknown = self._unknown(schema)
        if not unknown:
            return schema
        fitting = schema.model_copy(update=dict.fromkeys(unknown - _OF_MATCHES.keys()))
        self.require_index(field, fitting)
        return fitting

    def _unknown(self, schema: Any) -> set[str]:
        if self.kind != "server" or isinstance(schema, str):
            return set()
        unknown = {name for name in (*_OF_INDEXES, "nested") if getattr(schema, name, None) is not None}
        if getattr(schema, "tokenizer", None) == "code":
            unknown.add("tokenizer")
        if getattr(getattr(schema, "stemmer", None), "type", None) == "none":
            unknown.add("stemmer")
        return {name for name in unknown if not self.has({**_OF_INDEXES, **_OF_MATCHES}[name])}


def read_capabilities(version: str, where: str) -> Capabilities:
    """Turn a server's version into what it can do; what was built from a branch is taken for the newest.

    Raises:
        UnsupportedServerError: It is older than the oldest that can hold our collections.
    """
    number = _number(version)
    if number is not None and number < MINIMUM.since:
        raise UnsupportedServerError(
            f"{where} runs Qdrant {version}; version {MINIMUM.version} or newer is needed, for {MINIMUM.words}. "
            "Upgrade the server, or use the embedded engine"
        )
    return Capabilities("server", version)


def _number(version: str) -> tuple[int, int, int] | None:
    match = _VERSION.match(version)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3] or 0))
