"""What the embedded engine owes the store: the same points as ``QdrantClient(":memory:")``, whatever is asked.

The latter is numpy and plain Python, and the oracle here. Payloads, filters, searches and the order of
writes are generated. Where the engines differ by themselves, the generator leaves that out and says so.
What only the embedded engine does is in test_edge.py.
"""

import functools
import itertools
import json
import os
import tempfile
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from qdrant_client import QdrantClient, models

from pplx_vectorstore.collection import (
    LOSS_FIELD,
    PAYLOAD_INDEXES,
    TEXT_FIELD,
    VECTOR_NAME,
    text_index_params,
    vector_params,
)
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.equal_norms import squared_norm_of
from pplx_vectorstore.errors import StoreError
from pplx_vectorstore.points import SHIFT
from pplx_vectorstore.qdrant.conversion import as_clients
from pplx_vectorstore.query import QueryVector, Ranking, build_query

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

DIMENSION = 7
EVERYTHING = 1000  # more points than any test writes
# In no order of their own, so that the order of pages is the engine's work.
IDS = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(i))) for i in range(400)]
FEW = 14  # most tests write these alone, so that points are overwritten, edited and deleted
MISSING = IDS[-3:]

INDEXES = PAYLOAD_INDEXES | {
    TEXT_FIELD: text_index_params(),
    "metadata.tag": "keyword",
    "metadata.year": "integer",
    "metadata.flag": "bool",
    "metadata.size": "float",
    "metadata.day": "datetime",
    "metadata.key": "uuid",
    "metadata.note": models.TextIndexParams(type="text", phrase_matching=True),
}

FACETS = ["document_id", "metadata.tag", "metadata.year", "metadata.flag", "metadata.key"]

# Distances have 24 bits, and their squares are whole numbers: those of 680 or less are 7e-4 apart at least.
DISTANCE_TOLERANCE = 1e-4


class Both:
    """The same collection on both engines."""

    def __init__(self):
        in_memory = "/dev/shm"  # the engine syncs files to disk all the time
        self._folder = tempfile.TemporaryDirectory(dir=in_memory if os.access(in_memory, os.W_OK) else None)
        self.embedded = EdgeClient(Path(self._folder.name) / "index")
        self.memory = QdrantClient(":memory:")
        self.embedded.create_collection("c", vectors_config=vector_params(DIMENSION), metadata={})
        self.memory.create_collection("c", vectors_config=as_clients(vector_params(DIMENSION)))
        for field, schema in INDEXES.items():
            self.do("create_payload_index", field, schema)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.embedded.close()
        self.memory.close()
        self._folder.cleanup()

    def do(self, verb, *args, **options):
        """Call both; return both results. What is ours, the embedded engine takes as it is."""
        of_memory = {name: as_clients(value) for name, value in options.items()}
        return [
            getattr(self.embedded, verb)("c", *args, **options),
            getattr(self.memory, verb)("c", *map(as_clients, args), **of_memory),
        ]

    def reopen(self):
        self.embedded.close()
        self.embedded = EdgeClient(self.embedded.folder)

    def pages(self, page=EVERYTHING, **options):
        """Both engines' pages of a scroll to its end: ids in order, and the id that each page ends before."""
        for client in (self.embedded, self.memory):
            seen, offset = [], None
            while True:
                points, after = client.scroll("c", limit=page, offset=offset, **options)
                seen.append(([point.id for point in points], after))
                assert after is None or offset is None or after > offset
                offset = after
                if offset is None:
                    break
            yield seen

    def assert_same_contents(self):
        (found, _), (expected, _) = self.do("scroll", limit=EVERYTHING, with_payload=True, with_vectors=True)
        assert as_dict(found) == as_dict(expected)

    def assert_same_matches(self, given_filter, page=EVERYTHING):
        found, expected = self.pages(page, scroll_filter=given_filter, with_payload=False)
        assert found == expected
        n_found, n_expected = self.do("count", count_filter=given_filter, exact=True)
        assert n_found.count == n_expected.count == sum(len(ids) for ids, _ in expected)

    def assert_same_facets(self, given_filter, limit=EVERYTHING):
        for key in FACETS:
            self.assert_same_facet(key, limit, given_filter)

    def assert_same_facet(self, key, limit, given_filter):
        found, expected = self.do("facet", key, facet_filter=given_filter, limit=limit, exact=True)
        assert [(hit.value, hit.count) for hit in found.hits] == [(hit.value, hit.count) for hit in expected.hits]

    def assert_same_hits(
        self, codes, *, k, score_threshold, spare_candidates, exact, by_bits, with_payload, with_codes, **options
    ):
        """Both find the nearest of what matches; among equal distances at the end any choice is right.

        The vectors are of any norm: what the engines owe is the distance.
        """
        query = QueryVector.of(codes, squared_norm_of(DIMENSION))
        fields = {"with_payload": with_payload, "with_codes": with_codes}
        everything = build_query(
            query, Ranking(candidates=EVERYTHING, by_bits=False), k=EVERYTHING, **fields, **options
        )
        (answer,) = self.memory.query_batch_points("c", requests=[as_clients(without_settings(everything))])
        distances = {hit.id: hit.score for hit in answer.points}
        contents = as_dict(answer.points)
        # At least as many candidates as points, so that all are compared by their codes, and both searches are exact.
        candidates = max(k, self.memory.count("c").count) + spare_candidates
        ranking = Ranking(candidates=candidates, by_bits=by_bits, exact=exact)
        request = build_query(query, ranking, k=k, score_threshold=score_threshold, **fields, **options)
        most = np.inf if score_threshold is None else query.largest_distance(score_threshold)
        for client, sent in ((self.embedded, request), (self.memory, as_clients(without_settings(request)))):
            (answer,) = client.query_batch_points("c", requests=[sent])
            hits = answer.points
            assert len({hit.id for hit in hits}) == len(hits) <= k
            assert [hit.score for hit in hits] == sorted(hit.score for hit in hits)
            assert as_dict(hits) == {hit.id: contents[hit.id] for hit in hits}
            for hit in hits:
                assert hit.score == pytest.approx(distances[hit.id], rel=0, abs=DISTANCE_TOLERANCE)
            assert all(hit.score <= most + DISTANCE_TOLERANCE for hit in hits)
            farthest = hits[-1].score if len(hits) == k else most
            nearer = {point_id for point_id, distance in distances.items() if distance < farthest - DISTANCE_TOLERANCE}
            assert nearer <= {hit.id for hit in hits}


def without_settings(request):
    """The emulation always scans, and warns of settings."""
    return request.model_copy(update={"params": None})


def as_dict(records):
    """Payloads and vectors by id; JSON tells 1, 1.0 and True apart.

    The embedded engine's payload is {} where none was asked for, and so can always be read.
    """
    return {record.id: (json.dumps(record.payload or {}, sort_keys=True), record.vector) for record in records}


def make_point(point_id, codes, payload):
    """As the store does it, where zeros have no vector; but the numbers have few digits, see NUMBERS."""
    wide = np.asarray(codes, dtype=np.int64)
    norm = round(float(np.sqrt(wide @ wide)), 8)
    vector = {VECTOR_NAME: (wide + SHIFT).tolist()} if norm else {}
    own = {"norm": norm} | ({LOSS_FIELD: round(norm / 128, 6)} if wide[0] > 0 else {})
    return models.PointStruct(id=point_id, vector=vector, payload={**payload, **own})


# --- payloads ------------------------------------------------------------------------------------------

# Few values, so that filters meet them. The embedded engine compares numbers of a range as floats, the
# emulation exactly: whole numbers are ones that a float can hold.
OFTEN = [1, "x", True, None, 0.5]
SCALARS = st.sampled_from([*OFTEN * 3, False, 0, 2, -1, 2**53, -(2**63), 1.0, 2.5, -0.0, "", "y", "1", "ß", "X y"])
OBJECTS = st.dictionaries(st.sampled_from(["p", "q"]), SCALARS | st.lists(SCALARS, max_size=2))
VALUES = st.one_of(SCALARS, SCALARS, st.lists(SCALARS | st.lists(SCALARS, max_size=2), max_size=3), OBJECTS)
# Fractions of 64: the embedded engine may change the last bit of a float of more than 15 digits.
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.integers(-(10**6), 10**6).map(lambda n: n / 64)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
DAYS = [
    "2024-01-01",
    "2024-01-01T00:00:00Z",
    "2024-06-01T12:00:00+02:00",
    "2024-06-01 10:00:00.5",
    "2024-12-31T23:59",
    "soon",
]
TAGS = st.sampled_from(["red", "green", "blue", "grün", ""])
KEYS = [str(uuid.UUID(int=i)) for i in (1, 2**127)]
WORDS = ["alpha", "Beta", "über", "42", "日本"]
TEXTS = st.builds(str.join, st.sampled_from([" ", ", ", "-", "_", "\n"]), st.lists(st.sampled_from(WORDS), max_size=4))


def some_of(values):
    return values | st.lists(values, max_size=3) | st.none()


OTHERS = {
    "b": VALUES,
    "c.d": VALUES,
    "größe": VALUES,
    "日本 語": VALUES,
    "objects": st.lists(OBJECTS, max_size=3) | SCALARS,
    # These have indexes, which know of no values of other types: an "except" would pass over them.
    "day": some_of(st.sampled_from(DAYS)),
    "year": some_of(st.sampled_from([0, 1, 2, -1, 2**53])),
    "flag": some_of(st.booleans()),
    "size": some_of(st.sampled_from([0, 0.5, 1.0, 2, 2.5])),
    "key": some_of(st.sampled_from(KEYS)),
    "note": TEXTS,
    "anything": ANYTHING,
}
DOCUMENTS = st.sampled_from(["d1", "d2", "Ünicode", "d/3 "])
METADATA = st.fixed_dictionaries({"a": VALUES, "tag": some_of(TAGS)}, optional=OTHERS)
PAYLOADS = st.fixed_dictionaries({"text": TEXTS, "document_id": DOCUMENTS, "metadata": METADATA})
CODE = st.sampled_from([-128, -127, -1, 0, 1, 127]) | st.integers(-128, 127)
CODES = st.lists(CODE, min_size=DIMENSION, max_size=DIMENSION)
ZEROS = st.just([0] * DIMENSION)
ID = st.sampled_from(IDS[:FEW])
POINTS = st.lists(st.builds(make_point, ID, CODES | CODES | ZEROS, PAYLOADS), min_size=1, max_size=6)
QUERIES = CODES.filter(any).map(lambda codes: np.array(codes, dtype=np.int8))

# --- filters -------------------------------------------------------------------------------------------

FIELDS = [
    *["metadata.a"] * 8,
    *["metadata.tag"] * 3,
    "text",
    "metadata.b",
    'metadata."c.d"',
    "metadata.größe",
    'metadata."日本 語"',
    "metadata.a.p",
    "metadata.b[0]",
    "metadata.objects",
    "metadata.year",
    "metadata.flag",
    "metadata.size",
    "metadata.key",
    "metadata.absent",
    "metadata",
    "norm",
    LOSS_FIELD,
]
WILDCARDS = ["metadata.a[]", "metadata.b[].p", "metadata.objects[].p", "metadata.objects[].q[]"]
PHRASES = st.builds(str.join, st.sampled_from([" ", ","]), st.lists(st.sampled_from([*WORDS, "BETA", "x"]), max_size=2))


def condition(key, **kinds):
    return st.builds(models.FieldCondition, key=key, **kinds)


def matches_of(values):
    some = st.lists(values, max_size=2)
    return some.map(lambda any_: models.MatchAny(any=any_)) | some.map(
        lambda except_: models.MatchExcept(**{"except": except_})
    )


def between(kind, values):
    """Ranges of a kind, with one bound on each side at most.

    Of "gt" and "gte" together, an index of the embedded engine heeds the first alone, likewise below.
    """
    lower = st.dictionaries(st.sampled_from(["gte", "gt"]), values, max_size=1)
    upper = st.dictionaries(st.sampled_from(["lte", "lt"]), values, max_size=1)
    return st.builds(lambda above, below: kind(**above, **below), lower, upper)


NUMBER_RANGES = between(models.Range, st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 2.5, 2.0**53]))
DAY_RANGES = between(
    models.DatetimeRange,
    st.sampled_from(
        [
            date(2024, 1, 1),
            datetime(2024, 1, 1),  # without a zone it is UTC
            datetime(2024, 6, 1, 10, tzinfo=UTC),
            datetime(2024, 6, 1, 15, 30, 0, 500_000, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        ]
    ),
)


def conditions_on(fields, wildcards=(), ranges=NUMBER_RANGES):
    """Conditions on the values of fields; paths with wildcards may stand for many values."""
    paths = st.sampled_from([*fields, *wildcards])
    equals = SCALARS.filter(lambda value: isinstance(value, (str, int))).map(
        lambda value: models.MatchValue(value=value)
    )
    named = paths.map(lambda key: models.PayloadField(key=key))
    return st.one_of(
        condition(paths, match=equals),
        condition(paths, match=equals),
        condition(paths, match=matches_of(st.sampled_from(["x", "y", "1", ""])) | matches_of(st.integers(0, 2))),
        condition(paths, range=ranges),
        condition(paths, values_count=between(models.ValuesCount, st.integers(0, 3))),
        named.map(lambda field: models.IsEmptyCondition(is_empty=field))
        | named.map(lambda field: models.IsNullCondition(is_null=field)),
        # Of a path with many values, the embedded engine asks whether any is empty or no null, the
        # emulation whether all are. With IsEmptyCondition and IsNullCondition they agree.
        condition(st.sampled_from(fields), is_empty=st.booleans())
        | condition(st.sampled_from(fields), is_null=st.booleans()),
    )


def filters_over(conditions, least_should=0):
    """Filters of one or two clauses; with more, hardly any point would be left to compare."""
    some = st.lists(conditions, min_size=1, max_size=3)
    # The embedded engine mistakes a min_count above the number of conditions where another clause has ids.
    at_least = some.flatmap(
        lambda chosen: st.builds(models.MinShould, conditions=st.just(chosen), min_count=st.integers(1, len(chosen)))
    )
    clauses = {
        "must": st.lists(conditions, max_size=2),
        "should": st.lists(conditions, min_size=least_should, max_size=3),
        "must_not": some,
        "min_should": at_least,
    }
    names = ["must", "should", "should", "must_not", "must_not", "min_should"]
    some_names = st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)
    return some_names.flatmap(lambda chosen: st.builds(models.Filter, **{name: clauses[name] for name in chosen}))


CONDITIONS = st.one_of(
    conditions_on(FIELDS, WILDCARDS),
    condition(st.sampled_from(["metadata.a", "metadata.year", "metadata.size"]), range=NUMBER_RANGES),
    # Not the other ranges: an index of dates takes numbers for microseconds.
    condition(st.just("metadata.day"), range=DAY_RANGES),
    condition(st.just("metadata.day"), range=DAY_RANGES),
    condition(st.just("metadata.day"), is_empty=st.booleans()),
    condition(
        st.sampled_from(["text", "metadata.note", "metadata.a"]),
        match=PHRASES.map(lambda text: models.MatchText(text=text))
        | PHRASES.map(lambda text: models.MatchTextAny(text_any=text)),
    ),
    condition(
        st.sampled_from(["text", "metadata.note", "metadata.a", "metadata.tag"]),
        match=PHRASES.map(lambda text: models.MatchSubstring(substring=text))
        | PHRASES.map(lambda text: models.MatchPrefix(prefix=text)),
    ),
    # An index without phrases, such as the text's, finds none.
    condition(
        st.sampled_from(["metadata.note", "metadata.a"]),
        match=PHRASES.map(lambda text: models.MatchPhrase(phrase=text)),
    ),
    condition(st.just("metadata.tag"), match=matches_of(TAGS)),
    condition(st.just("document_id"), match=matches_of(DOCUMENTS)),
    condition(st.just("metadata.key"), match=st.sampled_from(KEYS).map(lambda value: models.MatchValue(value=value))),
    st.lists(ID | st.sampled_from(MISSING), max_size=FEW).map(lambda ids: models.HasIdCondition(has_id=ids)),
    st.sampled_from([VECTOR_NAME, "other"]).map(lambda name: models.HasVectorCondition(has_vector=name)),
    st.builds(
        models.Nested,
        key=st.sampled_from(["metadata.objects", "metadata.objects[]", "metadata.a"]),
        # An empty "should" says nothing; only here the embedded engine takes it for one that nothing meets.
        filter=filters_over(conditions_on(["p", "q"], ["p[]", "q[]"]), least_should=1),
    ).map(lambda nested: models.NestedCondition(nested=nested)),
)
ALONE = CONDITIONS.map(lambda condition: models.Filter(must=condition))
FILTERS = st.recursive(filters_over(CONDITIONS), lambda inner: filters_over(CONDITIONS | inner), max_leaves=4)
SELECTORS = st.booleans() | st.lists(st.sampled_from(FIELDS + WILDCARDS), max_size=3)
SEARCHES = st.fixed_dictionaries(
    {
        "k": st.sampled_from([1, 5, 20, EVERYTHING]),
        "filter": st.none() | ALONE | FILTERS,
        "score_threshold": st.sampled_from([None, None, -1, -0.5, 0, 0.3]),
        "exact": st.booleans(),
        "by_bits": st.booleans(),
        "spare_candidates": st.sampled_from([0, EVERYTHING]),
        "with_payload": SELECTORS,
        "with_codes": st.booleans(),
    }
)

# --- what is asked of points at rest -------------------------------------------------------------------


@settings(max_examples=60)
@given(
    points=POINTS,
    more=POINTS,
    filters=st.lists(ALONE | ALONE | FILTERS, min_size=10, max_size=25),
    page=st.integers(1, 7),
)
def test_any_filter_of_any_payloads_keeps_the_same_points(points, more, filters, page):
    with Both() as both:
        both.do("upsert", points=points + more)
        both.assert_same_contents()
        for given_filter in filters:
            both.assert_same_matches(given_filter, page)


@pytest.fixture(scope="module")
def indexed():
    """Both engines with hundreds of points: most of them indexed, then some overwritten, some deleted, some new."""
    rng = np.random.default_rng(9)
    values = {
        "a": [0, 1, 2, "x", None, [1, "x"]],
        "tag": ["red", "green", ["red", "blue"], [], None],
        "year": [0, 1, [1, 2]],
        "flag": [True, False],
        "key": KEYS,
    }

    def write(rows):
        points = []
        for i in rows:
            metadata = {name: some[rng.integers(len(some))] for name, some in values.items() if rng.random() < 0.9}
            payload = {"text": " ".join(rng.choice(WORDS, 3)), "document_id": f"d{i % 3}", "metadata": metadata}
            points.append(make_point(IDS[i], rng.integers(-128, 128, DIMENSION) * (i % 20 > 0), payload))
        both.do("upsert", points=points)

    with Both() as both:
        write(range(300))
        both.embedded.optimize("c")
        assert both.embedded.get_collection("c").indexed_vectors_count > 200
        write(range(0, 300, 9))
        both.do("delete", points_selector=models.PointIdsList(points=IDS[5:300:7]))
        both.do("set_payload", payload={"metadata": {"a": 1}}, points=IDS[0:300:7])
        write(range(300, 330))
        yield both


@settings(max_examples=50)
@given(codes=QUERIES, search=SEARCHES, given_filter=ALONE | FILTERS, page=st.integers(20, 200))
def test_indexed_points_are_the_same(indexed, codes, search, given_filter, page):
    indexed.assert_same_hits(codes, **search)
    indexed.assert_same_matches(given_filter, page)
    indexed.assert_same_facets(given_filter)


def test_a_facet_leaves_out_values_that_no_point_has_any_more():
    with Both() as both:
        tags = [["red"], ["green", "red"], ["blue"]]
        both.do(
            "upsert", points=[make_point(IDS[i], [1] * DIMENSION, {"metadata": {"tag": tags[i]}}) for i in range(3)]
        )
        both.do("delete", points_selector=models.PointIdsList(points=[IDS[2]]))
        both.do("set_payload", payload={"metadata": {"tag": "red"}}, points=[IDS[1]])
        for limit in (1, 10):
            both.assert_same_facet("metadata.tag", limit, None)


# --- orders of writes ----------------------------------------------------------------------------------


class Writes(RuleBasedStateMachine):
    """Anything may follow anything, and after each step both hold the same."""

    def __init__(self):
        super().__init__()
        self.both = Both()

    def teardown(self):
        self.both.__exit__()

    @initialize(
        payloads=st.lists(PAYLOADS, min_size=2, max_size=6), seed=st.integers(0, 99), n=st.sampled_from([FEW, 160])
    )
    def load(self, payloads, seed, n):
        """The larger number is worth an index; when such points are written again, they move to another segment."""
        codes = np.random.default_rng(seed).integers(-128, 128, (n, DIMENSION))
        codes[::5] = 0
        points = map(make_point, IDS[:n], codes, itertools.cycle(payloads))
        self.both.do("upsert", points=[*points])
        self.both.embedded.optimize("c")

    @rule(points=POINTS)
    def upsert(self, points):
        self.both.do("upsert", points=points)

    @rule(ids=st.lists(ID | st.sampled_from(MISSING), min_size=1, max_size=3))
    def delete_by_ids(self, ids):
        self.both.do("delete", points_selector=models.PointIdsList(points=ids))

    @rule(given_filter=ALONE | FILTERS, kept=st.lists(ID, max_size=FEW))
    def delete_by_filter(self, given_filter, kept):
        others = models.Filter(must=[given_filter], must_not=[models.HasIdCondition(has_id=kept)])
        self.both.do("delete", points_selector=models.FilterSelector(filter=others))

    @rule(
        payload=st.fixed_dictionaries({}, optional={"text": TEXTS, "metadata": METADATA, "new": ANYTHING}),
        ids=st.lists(ID, min_size=1, max_size=4, unique=True),
    )
    def set_payload(self, payload, ids):
        missing = len(self.both.memory.retrieve("c", ids)) < len(ids)
        for client, error in ((self.both.embedded, StoreError), (self.both.memory, KeyError)):
            update = functools.partial(client.set_payload, "c", payload=payload, points=ids)
            if missing:  # the others are updated nevertheless
                with pytest.raises(error):
                    update()
            else:
                update()

    @rule()
    def optimize(self):
        self.both.embedded.optimize("c")

    @rule()
    def reopen(self):
        self.both.reopen()

    @rule(given_filter=ALONE | FILTERS, page=st.integers(1, 7), limit=st.sampled_from([1, 2, 10]))
    def ask(self, given_filter, page, limit):
        self.both.assert_same_matches(given_filter, page)
        self.both.assert_same_facets(given_filter, limit)

    @rule(offset=ID | st.sampled_from(MISSING), limit=st.sampled_from([1, 2, 10]))
    def list_from_an_id(self, offset, limit):
        (found, after), (expected, expected_after) = self.both.do("scroll", limit=5, offset=offset)
        assert [point.id for point in found] == [point.id for point in expected]
        assert after == expected_after
        self.both.assert_same_facets(None, limit)

    @rule(codes=QUERIES, search=SEARCHES)
    def search(self, codes, search):
        self.both.assert_same_hits(codes, **search)

    @rule(ids=st.lists(ID | st.sampled_from(MISSING), max_size=5), with_payload=SELECTORS, with_vectors=st.booleans())
    def retrieve(self, ids, with_payload, with_vectors):
        found, expected = self.both.do("retrieve", ids, with_payload=with_payload, with_vectors=with_vectors)
        assert as_dict(found) == as_dict(expected)

    @invariant()
    def hold_the_same(self):
        self.both.assert_same_contents()


def test_any_order_of_writes_leaves_the_same_points():
    run_state_machine_as_test(Writes, settings=settings(max_examples=20, stateful_step_count=15, deadline=None))
