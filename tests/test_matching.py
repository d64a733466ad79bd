"""Blank queries with a filter: the chunks that match, in the order of their documents."""

import numpy as np
import pytest
from qdrant_client import models

from pplx_vectorstore import Chunk, Document, EncodedQuery
from pplx_vectorstore.errors import InvalidInputError

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

EN = {"lang": "en"}
OPTIONS = [
    {},
    {"hybrid": True},
    {"hybrid": True, "lexical_weight": 1},
    {"diversity": 0.7},
    {"candidates": 50},
    {"score_threshold": 0.0},
    {"score_threshold": -1},
]


def documents(n=13):
    """Ids whose order is not that of writing, every second chunk of them English; of one, a blank one too."""
    return [
        Document(
            id=f"d{i * 7 % n}",
            chunks=[
                *(Chunk(text=f"{i} {j}", metadata={"lang": "en" if j % 2 else "de"}) for j in range(1 + i % 5)),
                Chunk(text=" ", metadata=EN),
            ],
        )
        for i in range(n)
    ]


@pytest.fixture
def filled(new_store):
    store = new_store()
    store.add(documents())
    return store


def in_order(store, condition=EN):
    """All that match and are not blank, by document and place."""
    found = sorted(store.chunks(condition), key=lambda chunk: (chunk.document_id, chunk.chunk_index))
    return [chunk for chunk in found if chunk.text.strip()]


def places(chunks):
    return [(chunk.document_id, chunk.chunk_index) for chunk in chunks]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_filter_answers_for_a_blank_query(filled, options):
    expected = in_order(filled)
    assert len(expected) > 10
    for query in ("", " \n"):
        for k in (1, 3, len(expected), 50):
            hits = filled.search(query, k=k, filter=EN, **options)
            assert places(hits) == places(expected)[:k]
            assert {hit.score for hit in hits} == {0.0}
            assert [hit.text for hit in hits] == [chunk.text for chunk in expected[:k]]


def test_a_blank_query_needs_a_filter_that_says_something(filled):
    for nothing in (None, {}, models.Filter(), models.Filter(must=[models.Filter(should=[])])):
        for query in ("", " "):
            with pytest.raises(InvalidInputError, match="must not be blank, unless a filter says which chunks"):
                filled.search(query, filter=nothing)
    with pytest.raises(InvalidInputError, match="must not be blank"):
        filled.explain("", filter=EN)
    with pytest.raises(InvalidInputError, match="queries must be a list"):
        filled.search_batch("a b", filter=EN)


@pytest.mark.parametrize("most", [1, 2])
def test_grouped_by_document(filled, most):
    groups = {}
    for place in places(in_order(filled)):
        groups.setdefault(place[0], []).append(place)
    expected = [place for group in list(groups.values())[:4] for place in group[:most]]
    assert places(filled.search("", k=4, filter=EN, group_by_document=most)) == expected


def test_a_threshold_above_0_leaves_none(filled):
    assert filled.search("", filter=EN, score_threshold=0.01) == []


def test_codes_and_neighbours_come_along(filled):
    (hit, *_) = filled.search("", filter=EN, context=1, with_codes=True)
    (stored,) = filled.get([hit.id], with_codes=True)
    assert np.array_equal(hit.codes, stored.codes)
    assert len(hit.context.split("\n\n")) >= 2


def test_blank_queries_stand_among_others(filled):
    blank = filled.search("", filter=EN, k=3)
    asked = filled.search("1 1", filter=EN, k=3)
    assert filled.search_batch(["", "1 1", " "], filter=EN, k=3) == [blank, asked, blank]
    # A query that is embedded already is none without words.
    codes = asked and filled.search("1 1", with_codes=True, k=1)[0].codes
    assert filled.search(EncodedQuery("", codes), filter=EN, k=1)[0].score > 0


def test_a_filter_that_nothing_meets_finds_nothing(filled):
    assert filled.search("", filter={"lang": "fr"}) == []


def test_a_tenant_finds_its_own(new_store):
    store = new_store(tenant="acme")
    store.add(documents())
    assert places(store.search("", k=5, filter=EN)) == places(in_order(store))[:5]


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_reading_is_bounded(new_store, server):
    """Of many documents that match, those are read that are returned."""
    store = new_store()
    store.add(Document(id=f"{i:04}", chunks=["text"] * 3, metadata=EN) for i in range(1200))
    server.requests.clear()
    assert places(store.search("", k=4, filter=EN)) == [("0000", 0), ("0000", 1), ("0000", 2), ("0001", 0)]
    paths = [path.rsplit("/", 1)[1] for _, path, *_ in server.requests]
    # More documents than were expected at first; then where the chunks of two of them stand, and four chunks.
    assert paths == ["facet", "facet", "scroll", "points"]


def test_the_first_chunks_of_a_long_document(new_store):
    """More than a page of them, in no order of the engine's."""
    store = new_store()
    store.add([Document(id="long", chunks=[f"{i}" for i in range(2300)], metadata=EN)])
    assert places(store.search("", k=7, filter=EN)) == [("long", i) for i in range(7)]
