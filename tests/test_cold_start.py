"""What a process imports that opens an index folder, and what it can do with that."""

import json
import subprocess
import sys

import pytest

from pplx_vectorstore import VectorStore

DOCUMENTS = """
from pplx_vectorstore import Document

DOCUMENTS = [
    Document(id="berlin", text="Berlin is the capital of Germany. It has 3.9 million inhabitants.", metadata={"n": 1}),
    Document(id="paris", text="Paris is the capital of France. It has 2.1 million inhabitants.", metadata={"n": 2}),
]
"""
HEAVY = ("torch", "transformers", "qdrant_client", "pydantic", "grpc", "httpx", "onnxruntime", "safetensors")
PROGRAM = """
import json, sys

import numpy as np

from pplx_vectorstore import VectorStore, load_query_encoder

{documents}
with VectorStore.open(sys.argv[1], encoder=load_query_encoder("all-minilm-l6-v2"), create=False) as store:
    answer = {what}
heavy = [name for name in {heavy} if name in sys.modules]
print(json.dumps([answer, heavy]))
"""
QUESTION = "the capital of France"


@pytest.fixture(scope="module")
def index(tmp_path_factory, minilm):
    folder = tmp_path_factory.mktemp("cold") / "index"
    names = {}
    exec(DOCUMENTS, names)
    with VectorStore.open(folder, encoder=minilm) as store:
        store.add(names["DOCUMENTS"])
    return folder


def ask(index, what):
    """Evaluate an expression in a process of its own; return its value and the heavy packages that were imported."""
    program = PROGRAM.format(documents=DOCUMENTS, what=what, heavy=HEAVY)
    ran = subprocess.run([sys.executable, "-c", program, index], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (f"[hit.document_id for hit in store.search({QUESTION!r}, k=1)]", ["paris"]),
        (
            f"[hit.document_id for hit in store.search({QUESTION!r}, hybrid=True, lexical_weight=0.3, context=1, "
            "group_by_document=True, diversity=0.1, filter={'n': {'$gte': 2}})]",
            ["paris"],
        ),
        (f"store.explain({QUESTION!r}, k=1).recall", 1.0),
        ("sorted(document.id for document in store.documents())", ["berlin", "paris"]),
        ("[store.count(), store.count({'n': 1}), len(list(store.chunks({'n': [1, 3]})))]", [2, 1, 1]),
        ("store.sync(DOCUMENTS).unchanged_documents", 2),
        ("store.delete(document_ids=['rome'])", 0),
    ],
    ids=["search", "search with all options", "explain", "documents", "count", "nothing to sync", "delete"],
)
def test_a_folder_is_read_without_heavy_packages(index, what, expected):
    assert ask(index, what) == [expected, []]


def test_what_the_caller_says_in_the_clients_words_is_understood(index, minilm):
    """Then the client has been imported already."""
    from qdrant_client import models

    condition = models.FieldCondition(key="metadata.n", match=models.MatchValue(value=1))
    with VectorStore.open(index, encoder=minilm) as store:
        assert [hit.document_id for hit in store.search(QUESTION, filter=models.Filter(must=condition))] == ["berlin"]
        assert store.count(models.Filter(must_not=[models.Filter(should=[condition])])) == 1


def test_vectors_are_written_without_them_too(index):
    document = "Document(id='vectors', chunks=['a'], vectors=np.ones((1, 384), np.float32))"
    assert ask(index, f"[store.add([{document}]).chunks, store.delete(document_ids=['vectors'])]") == [[1, 1], []]
