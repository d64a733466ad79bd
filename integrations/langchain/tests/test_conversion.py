import copy
import math
import random
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_pplx_vectorstore.conversion import as_langchain, group_documents
from langchain_text_splitters import RecursiveCharacterTextSplitter

from pplx_vectorstore import Hit
from pplx_vectorstore.errors import InvalidDocumentError, InvalidInputError

TEXT = " ".join(f"Sentence number {number} says something of its own." for number in range(60))


def chunk(text, source="a", **metadata):
    return Document(page_content=text, metadata={"source": source, **metadata})


def texts_of(grouped):
    return {document.id: [one.text for one in document.chunks] for document in grouped.documents}


def test_chunks_of_one_source_are_one_document_however_they_come():
    documents = [chunk("a0"), chunk("b0", "b"), chunk("a1"), chunk("b1", "b")]
    assert texts_of(group_documents(documents)) == {"a": ["a0", "a1"], "b": ["b0", "b1"]}


def test_texts_without_a_source_stand_alone():
    documents = [Document(page_content="one"), chunk("two", None), chunk("three", ""), Document(page_content="one")]
    grouped = group_documents(documents)
    assert [[one.text for one in document.chunks] for document in grouped.documents] == [
        ["one"],
        ["two"],
        ["three"],
        ["one"],
    ]
    assert len({document.id for document in grouped.documents} | set(grouped.ids)) == 8


def test_a_text_that_stands_alone_is_not_put_into_the_document_of_its_id():
    lone = Document(id="a", page_content="lone")
    grouped = group_documents([lone, chunk("grouped", "b")], ids=["b", None])
    assert [[one.text for one in document.chunks] for document in grouped.documents] == [["lone"], ["grouped"]]


def test_a_splitters_offsets_order_chunks_and_become_theirs():
    splitter = RecursiveCharacterTextSplitter(chunk_size=200, chunk_overlap=40, add_start_index=True)
    documents = splitter.create_documents([TEXT], metadatas=[{"source": "a"}])
    shuffled = random.Random(7).sample(documents, len(documents))
    (document,) = group_documents(shuffled).documents
    assert [one.text for one in document.chunks] == [one.page_content for one in documents]
    assert all(TEXT[one.start : one.end] == one.text for one in document.chunks)


def test_offsets_that_count_anew_on_every_page_do_not_mix_pages():
    pages = [chunk(f"page {page} at {at}", page=page, start_index=at) for page in range(3) for at in (0, 50, 120)]
    shuffled = random.Random(1).sample(pages, len(pages))
    (document,) = group_documents(shuffled).documents
    assert [one.text for one in document.chunks] == [one.page_content for one in pages]
    assert [one.start for one in document.chunks] == [0, 50, 120] * 3
    for page in pages:
        del page.metadata["page"]
    (document,) = group_documents(pages).documents
    assert [one.text for one in document.chunks] == [one.page_content for one in pages], "as they came"
    assert {one.start for one in document.chunks} == {None}


def test_offsets_that_are_missing_or_unknown_order_nothing():
    for broken in (-1, None, "0", True):
        documents = [chunk("a", start_index=50), chunk("b", start_index=broken), chunk("c", start_index=0)]
        (document,) = group_documents(documents).documents
        assert [one.text for one in document.chunks] == ["a", "b", "c"]
        assert {one.start for one in document.chunks} == {None}


def test_pages_alone_order_chunks_that_share_them_as_they_came():
    documents = [chunk("b0", page=2), chunk("a0", page=1), chunk("b1", page=2), chunk("a1", page=1)]
    assert texts_of(group_documents(documents)) == {"a": ["a0", "a1", "b0", "b1"]}


def test_other_keys_order_chunks():
    documents = [chunk("b", row=2), chunk("a", row=1)]
    assert texts_of(group_documents(documents, order_by=["row"])) == {"a": ["a", "b"]}


def test_a_chunk_that_comes_twice_does_not_disturb_the_order():
    documents = [chunk("b", start_index=5), chunk("a", start_index=0), chunk("a", start_index=0)]
    assert texts_of(group_documents(documents)) == {"a": ["a", "a", "b"]}
    sections = [chunk("Note.", start_index=0, section=1), chunk("x", start_index=9), chunk("Note.", start_index=0)]
    assert texts_of(group_documents(sections)) == {"a": ["Note.", "x", "Note."]}, "offsets within sections"


def test_a_function_or_another_key_names_documents():
    documents = [Document(page_content=text, metadata={"page": 3, "of": "7"}) for text in ("x", "y")]
    assert texts_of(group_documents(documents, group_by=lambda one: f"p{one.metadata['page']}")) == {"p3": ["x", "y"]}
    assert texts_of(group_documents(documents, group_by="of")) == {"7": ["x", "y"]}
    assert len(group_documents(documents, group_by=None).documents) == 2
    by_id = group_documents(documents, ids=["doc#0", "doc#1"], group_by=lambda one: one.id.split("#")[0])
    assert texts_of(by_id) == {"doc": ["x", "y"]}
    assert [document.id for document in documents] == [None, None]


@given(st.permutations([chunk(f"{source}{at}", source, start_index=at) for source in "ab" for at in (0, 3, 9, 27)]))
def test_the_order_of_arrival_does_not_matter_to_what_is_written(documents):
    grouped = group_documents(documents)
    expected = {source: [f"{source}{at}" for at in (0, 3, 9, 27)] for source in "ab"}
    assert texts_of(grouped) == expected
    ids = {one.text: one.id for document in grouped.documents for one in document.chunks}
    assert [ids[document.page_content] for document in documents] == grouped.ids


def test_ids_that_are_made_are_the_same_each_time_and_tell_chunks_apart():
    documents = [
        chunk("x"),
        chunk("x"),
        chunk("x", "b"),
        chunk("x", page=1),
        Document(page_content="x"),
        Document(page_content="x", metadata={"user": "ann"}),
    ]
    ids = group_documents(documents).ids
    assert len(set(ids)) == 6
    assert group_documents(copy.deepcopy(documents)).ids == ids
    assert group_documents([chunk("x")]).ids == ids[:1]


def test_given_ids_come_first():
    documents = [Document(id="own", page_content="a"), Document(page_content="b"), Document(id="7", page_content="c")]
    ids = group_documents(documents).ids
    assert (ids[0], ids[2]) == ("own", "7")
    assert group_documents(documents, ids=["1", "2", "3"]).ids == ["1", "2", "3"]
    assert group_documents(documents, ids=["1", None, "3"]).ids == ["1", ids[1], "3"]
    assert group_documents(documents, ids=[None, "2", None]).ids == ["own", "2", "7"]


def test_documents_are_left_as_they_are():
    documents = [chunk("b", start_index=5, inner={"list": [1]}), chunk("a", start_index=0)]
    before = copy.deepcopy(documents)
    grouped = group_documents(documents)
    grouped.documents[0].chunks[1].metadata["inner"]["list"].append(2)
    assert documents == before


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ("text", {}, "documents must be a list of Document, not str"),
        (Document(page_content="x"), {}, "documents must be a list of Document, not Document"),
        (["text"], {}, "must hold langchain_core Documents, not str; texts go to add_texts"),
        ([chunk("x")], {"ids": ["1", "2"]}, "2 ids came for 1 documents"),
        ([chunk("x")], {"ids": [1]}, "a chunk's id must be a str, not int 1"),
        ([chunk("x")], {"ids": "1"}, "ids must be a list of str, not the str '1'"),
        ([chunk("x", 7)], {}, "gave 7 as the name of a document"),
        ([chunk("x", ["a"])], {}, r"gave \['a'\] as the name of a document"),
        ([chunk("x")], {"group_by": lambda one: 1.5}, "gave 1.5 as the name of a document"),
        ([chunk("x", when=date(2024, 1, 1))], {}, r"metadata\['when'\] is of type date.*isoformat"),
        ([chunk("x", tags=("a",))], {}, "tuples as lists"),
        ([chunk("x", share=math.nan)], {}, "nan, which JSON cannot hold"),
    ],
)
def test_what_cannot_be_stored_is_refused(documents, options, message):
    with pytest.raises((InvalidDocumentError, InvalidInputError), match=message):
        group_documents(documents, **options)


def test_a_hit_with_context_becomes_its_passage():
    hit = Hit(
        id="i",
        text="chunk",
        document_id="d",
        chunk_index=1,
        chunk_count=3,
        start=None,
        end=None,
        metadata={"inner": [1]},
        score=0.5,
        context="before chunk after",
    )
    document = as_langchain(hit)
    assert document == Document(id="i", page_content="before chunk after", metadata={"inner": [1]})
    document.metadata["inner"].append(2)
    assert hit.metadata == {"inner": [1]}
