"""How large requests and answers are, estimated, so that none is too large to be sent at once.

A server takes requests of 32 MiB over REST unless its ``max_request_size_mb`` says otherwise; over gRPC, where vectors
take half of the bytes, neither it nor its client sets a bound. Answers have none either way, but must fit into memory
and into the time for one request.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pplx_vectorstore.collection import TEXT_FIELD, WORDS_FIELD
from pplx_vectorstore.qdrant import models

# Estimates may be wrong by a factor of two.
_MOST_REQUEST = 16 * 2**20
_MOST_ANSWER = 32 * 2**20
# What an event loop writes or reads at once takes it about 20 ms, in which it does nothing else. Nor does any other
# thread while the embedded engine answers.
_MOST_AWAITED = 2**20
# As JSON: "255.0, " for a component; names, settings and an id; a field that is no text; a chunk's text and metadata.
_COMPONENT = 7
_FRAME = 500
_FIELD = 200
_PAYLOAD = 4096
_CHARACTER = 2


class AnswerSizes:
    """Expects answers of the size of those that came.

    Args:
        dimension: Components of a vector.
        small: Whether requests and answers are to take a few milliseconds each.
    """

    def __init__(self, dimension: int, *, small: bool = False) -> None:
        self._small = small
        self._vector = _COMPONENT * dimension
        self._payload = _PAYLOAD

    def of_point(self, with_payload: object, with_codes: object) -> int:
        """Return the bytes of one point.

        Args:
            with_payload: As in a request: all of it, none, or fields.
            with_codes: Whether the vector comes too.
        """
        size = _FRAME + (self._vector if with_codes else 0)
        if isinstance(with_payload, (list, tuple)) and TEXT_FIELD not in with_payload:
            return size + _FIELD * len(with_payload)
        return size + (self._payload if with_payload else 0)

    def at_once(self, with_payload: object, with_codes: object) -> int:
        """Return how many points fit into one answer, at least 1."""
        return max(1, self._most_answer() // self.of_point(with_payload, with_codes))

    def _most_answer(self) -> int:
        return min(_MOST_ANSWER, _MOST_AWAITED) if self._small else _MOST_ANSWER

    def heed(self, payloads: Sequence[Mapping[str, Any] | None]) -> None:
        """Learn how long texts are, of an answer's payloads."""
        read = [payload for payload in payloads if payload and TEXT_FIELD in payload]
        lengths = [len(payload[TEXT_FIELD]) + len(payload.get(WORDS_FIELD, "")) for payload in read]
        if lengths:
            self._payload = max(_PAYLOAD, _CHARACTER * sum(lengths) // len(lengths))

    def batches(self, requests: Sequence[models.QueryRequest], most: int | None) -> Iterator[list[models.QueryRequest]]:
        """Cut searches into lists that can be sent together.

        Args:
            requests: In order; one that is too large by itself goes alone.
            most: Searches of a list, or None.
        """
        most_sent = min(_MOST_REQUEST, _MOST_AWAITED) if self._small else _MOST_REQUEST
        most_answered = self._most_answer()
        of_filters: dict[int, int] = {}
        batch: list[models.QueryRequest] = []
        sent = answered = 0
        for request in requests:
            size = _query_bytes(request, of_filters)
            answer = (request.limit or 0) * self.of_point(request.with_payload, request.with_vector)
            full = sent + size > most_sent or answered + answer > most_answered or len(batch) == most
            if batch and full:
                yield batch
                batch, sent, answered = [], 0, 0
            batch.append(request)
            sent, answered = sent + size, answered + answer
        if batch:
            yield batch


def _json_bytes(condition: models.Filter) -> int:
    values = condition.model_dump(exclude_none=True)
    return len(json.dumps(values, ensure_ascii=False, default=str).encode())


def _query_bytes(stage: Any, of_filters: dict[int, int]) -> int:
    """Return the bytes of a search or a stage of one; filters that many share are measured once."""
    size = _FRAME
    if isinstance(stage.query, models.NearestQuery) and isinstance(stage.query.nearest, models.Document):
        size += len(stage.query.nearest.text.encode())
    elif isinstance(stage.query, models.NearestQuery):
        size += _COMPONENT * len(stage.query.nearest)
    elif isinstance(stage.query, models.TextQuery):
        size += len(str(stage.query.text).encode())
    if stage.filter is not None:
        if id(stage.filter) not in of_filters:
            of_filters[id(stage.filter)] = _json_bytes(stage.filter)
        size += of_filters[id(stage.filter)]
    prefetch = stage.prefetch or []
    return size + sum(
        _query_bytes(inner, of_filters) for inner in (prefetch if isinstance(prefetch, list) else [prefetch])
    )
