"""Rows → documents, without a cluster."""

import pyarrow as pa
import pytest
from ray.data import Schema
from ray_pplx_vectorstore.rows import document_columns, read_documents, require_query_column

from pplx_vectorstore import Document
from pplx_vectorstore.errors import DuplicateDocumentError, InvalidDocumentError, InvalidInputError

STRUCT = pa.struct([("lang", pa.string())])


def columns_of(**types):
    return document_columns(Schema(pa.schema(list(types.items()))))


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_columns_of_documents_are_taken_and_no_others(text):
    assert columns_of(id=text, text=text) == ["id", "text"]
    assert columns_of(size=pa.int64(), chunks=pa.list_(text), id=text) == ["id", "chunks"]
    everything = {"id": text, "text": text, "chunks": pa.large_list(text), "metadata": text, "format": text}
    assert columns_of(**everything) == list(everything)
    assert columns_of(id=text, text=text, metadata=pa.null()) == ["id", "text", "metadata"]  # no row has any


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"text": pa.string()}, r"no column 'id' \(string: .*\); it has 'text'"),
        ({"id": pa.string(), "txet": pa.string()}, r"column text \(string\) or chunks .* has 'id', 'txet'"),
        ({"id": pa.int64(), "text": pa.string()}, r"column 'id' must be of type string, not int64: .*str\(\)"),
        ({"id": pa.string(), "text": pa.binary()}, r"column 'text' must be of type string, not binary"),
        ({"id": pa.string(), "chunks": pa.string()}, r"'chunks' must be of type list<string>, not string"),
        ({"id": pa.string(), "chunks": pa.list_(pa.int8())}, r"'chunks' must be of type list<string>, not list"),
        (
            {"id": pa.string(), "text": pa.string(), "metadata": STRUCT},
            r"'metadata' .* not struct<.*json\.dumps.*nulls",
        ),
        (
            {"id": object, "text": pa.string()},
            r"column 'id' must be of type string, not of Python .*Table\.from_pandas",
        ),
    ],
)
def test_a_column_that_does_not_fit_is_named(types, message):
    class OfAnyType:
        names, types = [], []

    OfAnyType.names, OfAnyType.types = list(types), list(types.values())
    with pytest.raises(InvalidInputError, match=message):
        document_columns(OfAnyType)


def test_a_dataset_without_rows_has_no_columns():
    assert document_columns(None) is None
    assert document_columns(Schema(pa.schema([]))) is None


def test_questions_are_text():
    require_query_column(Schema(pa.schema([("q", pa.string())])), "q", "hits")
    require_query_column(None, "q", "hits")
    with pytest.raises(InvalidInputError, match=r"no column 'query' \(string: a question\); it has 'q'"):
        require_query_column(Schema(pa.schema([("q", pa.string())])), "query", "hits")
    with pytest.raises(InvalidInputError, match="has a column 'hits', which would be that of the result; rename it"):
        require_query_column(Schema(pa.schema([("q", pa.string()), ("hits", pa.int64())])), "q", "hits")


def test_rows_become_documents():
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "text": ["# One", None, None],
            "chunks": [None, ["x", "y"], []],
            "metadata": ['{"n": 1, "deep": {"list": [1, "two", null]}}', None, "{}"],
            "format": ["markdown", None, "text"],
        }
    )
    assert list(read_documents(table)) == [
        (
            "a",
            Document(id="a", text="# One", metadata={"n": 1, "deep": {"list": [1, "two", None]}}, format="markdown"),
        ),
        ("b", Document(id="b", chunks=["x", "y"])),
        ("c", Document(id="c", chunks=[])),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": None}, "a row's id is null"),
        ({"id": ""}, "must not be the empty string"),
        ({"text": "both"}, "needs either text or chunks; both came"),
        ({"chunks": None}, "needs either text or chunks; neither came"),
        ({"chunks": ["x", None]}, "chunk 1 of document 'd' is null"),
        ({"metadata": "{"}, "metadata of document 'd' is no JSON: "),
        ({"metadata": "[1]"}, "metadata of document 'd' must be a JSON object, not list"),
        ({"metadata": '{"n": NaN}'}, r"metadata\['n'\] is nan"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_and_the_others_are_read(row, message):
    rows = [{"id": "d", "text": None, "chunks": ["x"], "metadata": None} | row, {"id": "e", "text": "fine"}]
    schema = pa.schema(
        [(name, pa.string()) for name in ("id", "text", "metadata")] + [("chunks", pa.list_(pa.string()))]
    )
    (document_id, error), fine = read_documents(pa.Table.from_pylist(rows, schema))
    assert document_id == rows[0]["id"]
    assert isinstance(error, InvalidDocumentError)
    with pytest.raises(InvalidDocumentError, match=message):
        raise error
    assert fine == ("e", Document(id="e", text="fine"))


def test_of_rows_with_one_id_the_first_that_is_a_document_is_taken():
    rows = [{"id": "d", "text": None}, {"id": "d", "text": "one"}, {"id": "d", "text": "two"}, {"id": "e", "text": "x"}]
    read = [one for _, one in read_documents(pa.Table.from_pylist(rows))]
    assert [type(one) for one in read] == [InvalidDocumentError, Document, DuplicateDocumentError, Document]
    assert read[1].text == "one"
    assert "document id 'd' comes twice in one batch" in str(read[2])
