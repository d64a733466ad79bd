"""What a Qdrant server of a version makes of requests that newer ones know more of.

Fields, conditions and queries with the first version that has them, as in the OpenAPI documents and the protocol
buffers of the releases 1.15.0 to 1.19.0; what is in none of these, and in the client of 1.20, is of 1.20. A server
reads JSON with serde: a field that it does not know is ignored, and where none of the forms that a condition or a query
may have fits, the whole request is refused. Over gRPC, unknown fields are ignored, too, and with them the unknown form
of a condition: there, the condition itself is left out, as if nobody had asked for it.
"""

import re

from pydantic import BaseModel, TypeAdapter, ValidationError
from qdrant_client.http import models

NEWEST = (1, 20, 0)

_OF_INDEX = {"enable_hnsw": (1, 17, 0), "memory": (1, 19, 0), "nested": (1, 20, 0)}
_MEMORY = {"memory": (1, 19, 0)}
FIELDS = {
    "KeywordIndexParams": {**_OF_INDEX, "prefix": (1, 19, 0)},
    "IntegerIndexParams": _OF_INDEX,
    "FloatIndexParams": _OF_INDEX,
    "BoolIndexParams": _OF_INDEX,
    "DatetimeIndexParams": _OF_INDEX,
    "UuidIndexParams": _OF_INDEX,
    "GeoIndexParams": _OF_INDEX,
    "TextIndexParams": {**_OF_INDEX, "ascii_folding": (1, 16, 0), "scoring": (1, 20, 0)},
    "VectorParams": _MEMORY,
    "HnswConfigDiff": {**_MEMORY, "inline_storage": (1, 16, 0)},
    "BinaryQuantizationConfig": _MEMORY,
    "ScalarQuantizationConfig": _MEMORY,
    "SparseIndexParams": _MEMORY,
    "CreateCollection": {"metadata": (1, 15, 4), "payload": (1, 19, 0), "id_tracker": (1, 20, 0)},
    "OptimizersConfigDiff": {"prevent_unoptimized": (1, 17, 0)},
    "SearchParams": {"acorn": (1, 16, 0), "idf": (1, 19, 0)},
    "Rrf": {"weights": (1, 17, 0)},
    "PointsList": {"update_filter": (1, 15, 4), "update_mode": (1, 17, 0)},
    "PointsBatch": {"update_filter": (1, 15, 4), "update_mode": (1, 17, 0)},
}
MATCHES = {"MatchTextAny": (1, 15, 4), "MatchPrefix": (1, 19, 0), "MatchSubstring": (1, 20, 0)}
CONDITIONS = {"SliceCondition": (1, 19, 0)}
QUERIES = {"RrfQuery": (1, 15, 4), "RelevanceFeedbackQuery": (1, 17, 0), "TextQuery": (1, 20, 0)}
QUANTIZATIONS = {"TurboQuantization": (1, 18, 0)}
STEMMERS = {"DisabledStemmerParams": (1, 19, 0)}
TOKENIZERS = {"code": (1, 20, 0)}
ANSWERS = {
    ("strict_mode_config", "search_max_batchsize"): (1, 17, 1),
    ("optimizer_config", "prevent_unoptimized"): (1, 17, 0),
    (None, "update_queue"): (1, 17, 0),
}

_CONDITION = (
    'Expected some form of condition, which can be a field condition (like {"key": ..., "match": ... }), or some other '
    "mentioned in the documentation: https://qdrant.tech/documentation/concepts/filtering/#filtering-conditions"
)
_QUERY = "Expected some form of vector, id, or a type of query"
_NO_VARIANT = "data did not match any variant of untagged enum {}"
_BODIES = {
    ("PUT", ""): models.CreateCollection,
    ("PUT", "/index"): models.CreateFieldIndex,
    ("POST", "/points/delete"): models.PointsSelector,
    ("POST", "/points/payload"): models.SetPayload,
    ("POST", "/points/batch"): models.UpdateOperations,
    ("POST", "/points/scroll"): models.ScrollRequest,
    ("POST", "/points/count"): models.CountRequest,
    ("POST", "/points/query/batch"): models.QueryRequestBatch,
    ("POST", "/facet"): models.FacetRequest,
}
_BODIES = {route: TypeAdapter(body) for route, body in _BODIES.items()}
_DROPPED = object()


class NotUnderstoodError(Exception):
    """What the server says of a request that it cannot read."""


def number_of(version):
    """Return a version as numbers; what was built from a branch is taken for the newest."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return NEWEST if match is None else (int(match[1]), int(match[2]), int(match[3] or 0))


def understood(version, method, route, body, *, unknown, text_indexes=(), grpc=False):
    """Return what a server of this version reads of a request's JSON.

    Args:
        version: What the server says it is.
        method: Of HTTP.
        route: The path below the collection.
        body: The parsed JSON; it is changed.
        unknown: What the server does not know of it is added to this list.
        text_indexes: Paths of fields whose words are indexed. Of others, servers before 1.20 look for the text of
            ``MatchText`` and ``MatchPhrase`` as it stands.
        grpc: Whether the request came over gRPC, and is only now put into JSON.

    Raises:
        NotUnderstoodError: It is refused.
    """
    number = number_of(version)
    if number >= NEWEST or body is None:
        return body
    reading = _Reading(number, unknown, text_indexes, grpc)
    if (method, route) == ("PUT", "/points"):  # without the vectors, of which there are many
        reading.drop("PointsList", body)
        return body
    kind = _BODIES.get((method, route))
    if kind is not None:
        try:
            parsed = kind.validate_python(body)
        except ValidationError:  # which the server itself will tell
            return body
        reading.read(parsed, body, "")
    return body


def told(version, info):
    """Return what a server of this version tells of a collection; `info` is the result, which is changed."""
    number = number_of(version)
    for (part, name), since in ANSWERS.items():
        holder = info if part is None else info["config"].get(part)
        if number < since and holder and name in holder:
            rest = {key: value for key, value in holder.items() if key != name}
            if part is None:
                info = rest
            else:
                info = {**info, "config": {**info["config"], part: rest}}
    return info


class _Reading:
    def __init__(self, number, unknown, text_indexes, grpc):
        self.number, self.unknown, self.text_indexes, self.grpc = number, unknown, text_indexes, grpc
        self.depth = 0  # of filters within filters

    def lacks(self, table, name):
        lacking = self.number < table.get(name, (0,))
        if lacking:
            self.unknown.append(name)
        return lacking

    def drop(self, kind, raw):
        for name, since in FIELDS.get(kind, {}).items():
            if self.number < since and raw.pop(name, None) is not None:
                self.unknown.append(f"{kind}.{name}")

    def read(self, parsed, raw, within):
        """Read a value, which was parsed of `raw`; `within` is the path of the objects that a filter is about."""
        if isinstance(parsed, list):
            kept = [one for part, one in zip(parsed, raw, strict=True) if self.read(part, one, within) is not _DROPPED]
            raw[:] = kept
        elif isinstance(parsed, dict):
            for key, part in parsed.items():
                self.read(part, raw[key], within)
        elif isinstance(parsed, BaseModel):
            return self._read_model(parsed, raw, within)
        return None

    def _read_model(self, parsed, raw, within):
        kind = type(parsed).__name__
        if self.lacks(MATCHES, kind):
            # From 1.17 on, what has a key is read as a condition on a field, but not in a filter within the filter.
            words = _NO_VARIANT.format("MatchInterface") if self.depth == 1 and self.number >= (1, 17) else _CONDITION
            raise NotUnderstoodError("Malformed Match condition" if self.grpc else words)
        if self.grpc and (self.lacks(CONDITIONS, kind) or self.lacks(STEMMERS, kind)):
            return _DROPPED
        if self.lacks(CONDITIONS, kind):
            raise NotUnderstoodError(_CONDITION)
        if self.lacks(QUERIES, kind):
            raise NotUnderstoodError("Query variant is missing" if self.grpc else _QUERY)
        if self.lacks(QUANTIZATIONS, kind):
            raise NotUnderstoodError(_NO_VARIANT.format("QuantizationConfig"))
        if self.lacks(STEMMERS, kind) or self.lacks(TOKENIZERS, getattr(parsed, "tokenizer", None)):
            raise NotUnderstoodError(
                "unknown tokenizer type" if self.grpc else _NO_VARIANT.format("PayloadFieldSchema")
            )
        self.drop(kind, raw)
        if isinstance(parsed, models.FieldCondition) and not self.grpc:
            self._read_text(parsed, raw, within)
        if isinstance(parsed, models.Nested):
            within = f"{within}{parsed.key}[]."
        self.depth += isinstance(parsed, models.Filter)
        for name, field in type(parsed).model_fields.items():
            key = field.alias or name
            if raw.get(key) is not None and self.read(getattr(parsed, name), raw[key], within) is _DROPPED:
                del raw[key]
        self.depth -= isinstance(parsed, models.Filter)
        return None

    def _read_text(self, parsed, raw, within):
        if f"{within}{parsed.key}" in self.text_indexes:
            return
        for kind, name in ((models.MatchText, "text"), (models.MatchPhrase, "phrase")):
            if isinstance(parsed.match, kind):
                raw["match"] = {"substring": raw["match"][name]}
