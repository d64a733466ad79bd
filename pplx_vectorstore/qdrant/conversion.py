"""Between our words for Qdrant's requests, and those of its client."""

from __future__ import annotations

from typing import Any

from pplx_vectorstore.qdrant import models

_CLIENT = "qdrant_client."
# Validating these takes longer than the search: of a vector, every component against every form that a query may have.
_NOT_VALIDATED = frozenset(
    {
        *("QueryRequest", "Prefetch", "NearestQuery", "SearchParams", "QuantizationSearchParams", "Document"),
        *("PointStruct", "PointsList", "UpsertOperation"),
    }
)


def as_ours(value: Any) -> Any:
    """Return the client's models as ours, with all that is in them; what we have no word for, and all else, as it is.

    The client need not be imported: who has its models has done that.
    """
    if isinstance(value, list):
        return [as_ours(one) for one in value]
    if not type(value).__module__.startswith(_CLIENT):
        return value
    ours = getattr(models, type(value).__name__, None)
    if not isinstance(ours, type) or not issubclass(ours, models.Model):
        return value
    return ours(**{name: as_ours(getattr(value, name)) for name in ours.fields})


def as_clients(value: Any) -> Any:
    """Return our models as the client's, with all that is in them; all else as it is."""
    if isinstance(value, list):
        # Of numbers there are thousands.
        return [as_clients(one) for one in value] if value and isinstance(value[0], models.Model) else value
    if isinstance(value, dict):
        return {name: as_clients(one) for name, one in value.items()} if any(map(_is_ours, value.values())) else value
    if not _is_ours(value):
        return value
    from qdrant_client import models as of_client

    theirs = getattr(of_client, type(value).__name__)
    given = {name: as_clients(one) for name, one in value.to_dict().items() if one is not None}
    if type(value).__name__ in _NOT_VALIDATED:
        return theirs.model_construct(**given)
    return theirs(**{theirs.model_fields[name].alias or name: one for name, one in given.items()})


def _is_ours(value: object) -> bool:
    return isinstance(value, models.Model)
