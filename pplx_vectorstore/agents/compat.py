"""The tools and environment variables of mcp-server-qdrant, for agents and settings that know those."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from pplx_vectorstore.agents.answers import MOST_CHARACTERS, Answer, cut_texts, shorten_metadata
from pplx_vectorstore.agents.index import LazyIndex
from pplx_vectorstore.agents.reading import MOST_CHARACTERS_OF_A_QUERY, MOST_HITS
from pplx_vectorstore.agents.tools import Arguments, JsonObject, Progress, Tool
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.redaction import without_password

if TYPE_CHECKING:
    from qdrant_client import models

    from pplx_vectorstore.documents import Hit

FIND = "qdrant-find"
STORE = "qdrant-store"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class QdrantSettings:
    """What the environment variables of mcp-server-qdrant say.

    Attributes:
        store: QDRANT_URL or QDRANT_LOCAL_PATH; None where neither is set.
        collection: COLLECTION_NAME; None where it is not set.
        model: EMBEDDING_MODEL; None where it is not set.
        search_limit: QDRANT_SEARCH_LIMIT: hits of a search.
        read_only: QDRANT_READ_ONLY: whether nothing can be stored.
        arbitrary_filter: QDRANT_ALLOW_ARBITRARY_FILTER: whether searches may bring a filter of Qdrant's.
        find_description: TOOL_FIND_DESCRIPTION.
        store_description: TOOL_STORE_DESCRIPTION.
    """

    store: str | None = None
    collection: str | None = None
    model: str | None = None
    search_limit: int = 10
    read_only: bool = False
    arbitrary_filter: bool = False
    find_description: str = (
        "Look up what was remembered: returns the stored texts nearest in meaning to the query, with their metadata."
    )
    store_description: str = "Remember a text for later, with metadata that comes back with it."

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> QdrantSettings:
        """Read them; a variable that is empty counts as not set.

        Raises:
            InvalidInputError: One cannot be understood, or both places are given.
        """
        given = {name: value for name, value in environment.items() if value}
        url, folder = given.get("QDRANT_URL"), given.get("QDRANT_LOCAL_PATH")
        if url and not url.startswith(("http://", "https://")):
            raise InvalidInputError(
                f"QDRANT_URL must begin with http:// or https://, not {without_password(url)!r}; a folder is given as "
                "QDRANT_LOCAL_PATH"
            )
        if url and folder:
            raise InvalidInputError("QDRANT_URL and QDRANT_LOCAL_PATH are both set; set one of them")
        settings: dict[str, Any] = {
            "store": url or folder,
            "collection": given.get("COLLECTION_NAME"),
            "model": given.get("EMBEDDING_MODEL"),
            "read_only": _truth(given, "QDRANT_READ_ONLY"),
            "arbitrary_filter": _truth(given, "QDRANT_ALLOW_ARBITRARY_FILTER"),
        }
        if limit := given.get("QDRANT_SEARCH_LIMIT"):
            if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MOST_HITS:
                raise InvalidInputError(f"QDRANT_SEARCH_LIMIT must be a number from 1 to {MOST_HITS}, not {limit!r}")
            settings["search_limit"] = int(limit)
        for name in ("find", "store"):
            if text := given.get(f"TOOL_{name.upper()}_DESCRIPTION"):
                settings[f"{name}_description"] = text
        return cls(**settings)


class FindArguments(Arguments):
    """Of `qdrant-find`."""

    query: str = Field(min_length=1, max_length=MOST_CHARACTERS_OF_A_QUERY, description="What to search for.")
    collection_name: str = Field("", description="The collection that this server serves; may be left out.")


class FilteredFindArguments(FindArguments):
    """Of `qdrant-find`, where filters are allowed."""

    query_filter: JsonObject = Field(
        default_factory=dict, description='A filter of Qdrant\'s, whose keys begin with "metadata."; empty for none.'
    )


class StoreArguments(Arguments):
    """Of `qdrant-store`."""

    information: str = Field(min_length=1, max_length=MOST_CHARACTERS, description="The text to remember.")
    metadata: JsonObject | None = Field(None, description="Any JSON to keep with it.")
    collection_name: str = Field("", description="The collection that this server serves; may be left out.")


@dataclass(frozen=True, slots=True, kw_only=True)
class QdrantTools:
    """The aliases.

    Attributes:
        index: What they read and write.
        settings: What the environment says.
        may_write: Whether `qdrant-store` is offered, too.
    """

    index: LazyIndex
    settings: QdrantSettings
    may_write: bool

    def tools(self) -> list[Tool]:
        """Return them."""
        find = Tool(
            name=FIND,
            description=self.settings.find_description,
            arguments=FilteredFindArguments if self.settings.arbitrary_filter else FindArguments,
            run=self.find,
        )
        if not self.may_write:
            return [find]
        store = Tool(
            name=STORE,
            description=self.settings.store_description,
            arguments=StoreArguments,
            run=self.store,
            writes=True,
        )
        return [find, store]

    def find(self, arguments: FindArguments, _: Progress) -> Answer:
        """Find what was stored."""
        self._require_own(arguments.collection_name)
        condition = _as_filter(getattr(arguments, "query_filter", {}))
        with self.index.searching() as index:
            hits = index.store.search(arguments.query, k=self.settings.search_limit, filter=condition)
        if not hits:
            return Answer(texts=(f"No information found for the query '{arguments.query}'",))
        entries = map(_entry, hits, cut_texts([hit.text for hit in hits]))
        return Answer(texts=(f"Results for the query '{arguments.query}'", *entries))

    def store(self, arguments: StoreArguments, _: Progress) -> Answer:
        """Store a text; one that is there already, with the same metadata, changes nothing."""
        from pplx_vectorstore.documents import Document, is_blank

        self._require_own(arguments.collection_name)
        if is_blank(arguments.information):
            raise InvalidInputError("information must not be blank: it would never be found")
        metadata = arguments.metadata or {}
        said = json.dumps([arguments.information, metadata], sort_keys=True)
        id_ = f"memory-{hashlib.sha256(said.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
        with self.index.writing() as index:
            index.store.sync([Document(id=id_, chunks=[arguments.information], metadata=metadata)])
        return Answer(texts=(f"Remembered: {arguments.information}",))

    def _require_own(self, collection: str) -> None:
        own = self.index.place.collection
        if collection not in ("", own):
            raise InvalidInputError(
                f"this server serves the collection {own!r} alone, not {collection!r}; leave collection_name out, or "
                "start another server with COLLECTION_NAME"
            )


def _entry(hit: Hit, text: str) -> str:
    own, left_out = shorten_metadata(hit.metadata)
    if left_out:
        own["metadata_left_out"] = left_out
    metadata = json.dumps(own, ensure_ascii=False) if own else ""
    return f"<entry><content>{text}</content><metadata>{metadata}</metadata></entry>"


def _as_filter(given: Mapping[str, Any]) -> models.Filter | None:
    from qdrant_client import models

    if not given:
        return None
    try:
        return models.Filter(**given)
    except (ValidationError, TypeError) as error:
        raise InvalidInputError(
            'query_filter must be a filter of Qdrant\'s, such as {"must": [{"key": "metadata.lang", "match": '
            f'{{"value": "en"}}}}]}}: {str(error).splitlines()[0]}'
        ) from None


def _truth(given: Mapping[str, str], name: str) -> bool:
    value = given.get(name, "").lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise InvalidInputError(f"{name} must be true or false, not {given[name]!r}")
