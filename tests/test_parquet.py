"""Files of stored documents: what of a file is wrong is named with its place, and nothing of it is used."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pplx_vectorstore import Chunk, Document, VectorStore, parquet
from pplx_vectorstore.errors import InvalidInputError

DIMENSION = 64


@pytest.fixture
def exported(folder, hash_encoder):
    """A file of 20 documents, of three chunks each, rows of a document together; and the store that it is of."""
    with VectorStore.open(folder / "from", encoder=hash_encoder(DIMENSION)) as store:
        store.add(
            Document(
                id=f"d{i:02}",
                chunks=[Chunk(text=f"{i} {j}", id=f"own {i}" if j == 1 else None, start=j) for j in range(3)],
                metadata={"i": i},
            )
            for i in range(20)
        )
        store.export_parquet(folder / "exported.parquet")
        yield store


@pytest.fixture
def target(folder, hash_encoder):
    """A store that holds other versions already."""
    with VectorStore.open(folder / "to", encoder=hash_encoder(DIMENSION)) as store:
        store.add([Document(id="d03", chunks=["old", "older", "oldest", "more"]), Document(id="theirs", chunks=["x"])])
        yield store


@pytest.fixture
def altered(exported, folder):
    """``altered(change)`` → the path of a file with another table: ``change(table)`` returns it."""

    def alter(change, **options):
        table = pq.read_table(folder / "exported.parquet")
        changed = change(table)
        pq.write_table(changed.replace_schema_metadata(table.schema.metadata), folder / "altered.parquet", **options)
        return folder / "altered.parquet"

    return alter


def with_column(name, make, kind=None):
    """A change that replaces a column by ``make(its values as a list)``."""

    def change(table):
        values = make(table[name].to_pylist())
        column = pa.array(values, kind or table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), pa.field(name, column.type), column)

    return change


def at(row, value):
    """Replace one value."""

    def make(values):
        values[row] = value
        return values

    return make


def state(store):
    chunks = store.chunks(with_codes=True)
    return sorted(
        (one.document_id, one.chunk_index, one.chunk_count, one.text, one.id, str(one.metadata), one.codes.tobytes())
        for one in chunks
    )


LISTS = pa.list_(pa.int8())
WRONG = {
    "null among the codes": (with_column("codes", lambda rows: at(7, [*rows[7][:9], None, *rows[7][10:]])(rows)), 7),
    "null for codes": (with_column("codes", at(7, None)), 7),
    "ragged": (with_column("codes", lambda rows: at(7, rows[7][:-1])(rows), LISTS), 7),
    "too long": (with_column("codes", lambda rows: at(7, [*rows[7], 0])(rows), LISTS), 7),
    "null among ragged ones": (with_column("codes", lambda rows: at(7, [None] * 64)(rows), LISTS), 7),
    "no text": (with_column("text", at(7, None)), 7),
    "no document": (with_column("document_id", at(7, None)), 7),
    "an empty document id": (with_column("document_id", at(7, "")), 7),
    "an empty id": (with_column("id", at(7, "")), 7),
    "no place": (with_column("chunk_index", at(7, None)), 7),
    "a place below 0": (with_column("chunk_index", at(7, -1)), 7),
    "no chunks": (with_column("chunk_count", at(7, 0)), 7),
    "a start below 0": (with_column("start", at(7, -1)), 7),
    "no JSON": (with_column("metadata", at(7, "{")), 7),
    "no object": (with_column("metadata", at(7, "[1]")), 7),
    "a number that is too large": (with_column("metadata", at(7, '{"a": 1e999}')), 7),
    "an id twice": (
        with_column("id", lambda ids: at(7, next(filter(None, ids[9:])))(ids)),
        r"rows 7 and \d+ \(from 0\)",
    ),
    "a place twice": (lambda table: pa.concat_tables([table, table.slice(0, 1)]), r"rows 0 and 60 \(from 0\)"),
}


def one_hot(rows):
    return at(7, [100] + [0] * 63)(rows)


WRONG["a vector of one component"] = (with_column("codes", one_hot), 7)
WRONG["a place beyond 64 bits"] = (with_column("chunk_index", at(7, 2**63 + 5), pa.uint64()), 7)
MISFITS = {
    "int16": with_column("codes", list, pa.list_(pa.int16(), DIMENSION)),
    "floats": with_column("codes", lambda rows: at(7, [float("nan")] * DIMENSION)(rows), pa.list_(pa.float32())),
    "text": with_column("chunk_index", lambda values: [str(value) for value in values], pa.string()),
    "bytes": with_column("text", lambda values: [value.encode() for value in values], pa.binary()),
    "fractions": with_column("start", list, pa.float64()),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_value_that_is_wrong_is_named_and_nothing_is_written(altered, target, wrong):
    change, rows = WRONG[wrong]
    before = state(target)
    path = altered(change)
    with pytest.raises(InvalidInputError) as caught:
        target.import_parquet(path)
    told = str(caught.value)
    assert str(path) in told
    if isinstance(rows, str):
        assert re.search(rows, told)
    else:
        assert f"in row {rows} (from 0)" in told
        assert "nothing was written" in told
    assert state(target) == before


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_column_of_another_type_is_named_and_nothing_is_written(altered, target, misfit):
    before = state(target)
    with pytest.raises(InvalidInputError, match=r"column '.*' is of type .*, not .*; nothing was written"):
        target.import_parquet(altered(MISFITS[misfit]))
    assert state(target) == before


def test_a_wrong_value_at_the_end_of_a_large_file_is_found_before_anything_is_written(altered, target, monkeypatch):
    monkeypatch.setattr(parquet, "_ROWS", 7)
    before = state(target)
    with pytest.raises(InvalidInputError, match=r"'text' holds null, in row 59 \(from 0\)"):
        target.import_parquet(altered(with_column("text", at(59, None)), row_group_size=11))
    assert state(target) == before


def test_a_file_that_is_damaged_inside_is_named(exported, target, folder):
    damaged = bytearray((folder / "exported.parquet").read_bytes())
    damaged[200:2000] = bytes(1800)
    (folder / "damaged.parquet").write_bytes(damaged)
    before = state(target)
    for path in (folder / "damaged.parquet", folder):
        with pytest.raises(InvalidInputError, match=str(path)):
            target.import_parquet(path)
    assert state(target) == before


def shuffled(table):
    return table.take(pa.array(np.random.default_rng(1).permutation(len(table))))


SAME = {
    "as it is": lambda table: table,
    "other orders": shuffled,
    "by place": lambda table: table.sort_by([("chunk_index", "descending"), ("document_id", "ascending")]),
    "other spellings of the types": lambda table: with_column("codes", list, pa.large_list(pa.int8()))(
        with_column("text", list, pa.large_string())(with_column("chunk_index", list, pa.int32())(table))
    ),
    "more columns, in another order": lambda table: table.select(table.column_names[::-1]).append_column(
        "mine", pa.array(range(len(table)))
    ),
}


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("same", SAME)
def test_what_others_may_make_of_a_file_is_the_same_to_us(altered, exported, target, same, small, monkeypatch):
    if small:
        monkeypatch.setattr(parquet, "_ROWS", 7)
        monkeypatch.setattr(parquet, "_SORTED_BYTES", 4096)
    path = altered(SAME[same], row_group_size=11)
    assert target.import_parquet(path) == 60
    assert {chunk.text for chunk in target.chunks() if chunk.document_id == "theirs"} == {"x"}
    target.delete(document_ids=["theirs"])
    assert state(target) == state(exported)
    assert target.import_parquet(path) == 60
    assert state(target) == state(exported)
    assert list(path.parent.glob(".*")) == []


def test_an_export_is_in_the_documents_order(exported, folder):
    rows = pq.read_table(folder / "exported.parquet", columns=["document_id", "chunk_index"]).to_pylist()
    starts = [i for i, row in enumerate(rows) if row["chunk_index"] == 0]
    assert starts == list(range(0, 60, 3))
    assert all(len({row["document_id"] for row in rows[start : start + 3]}) == 1 for start in starts)
