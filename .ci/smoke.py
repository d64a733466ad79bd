"""Tried against the built wheels in an environment with base dependencies only."""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import langchain_pplx_vectorstore
import numpy as np
import ray_pplx_vectorstore
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core import MockEmbedding
from llama_index.core.schema import TextNode
from llama_index.embeddings import pplx_vectorstore as llama_index_embedding
from llama_index.vector_stores import pplx_vectorstore as llama_index_store

import pplx_vectorstore
from pplx_vectorstore.errors import MissingExtraError

for package in (
    pplx_vectorstore,
    langchain_pplx_vectorstore,
    llama_index_embedding,
    llama_index_store,
    ray_pplx_vectorstore,
):
    assert "build" in Path(package.__file__).parts, package.__file__
    assert (Path(package.__file__).parent / "py.typed").is_file()

codes = pplx_vectorstore.quantize_absmax(np.random.default_rng(0).normal(size=(3, 64)))
assert pplx_vectorstore.pack_bits(codes).shape == (3, 8)

command = [str(Path(sys.executable).with_name("pplx-vectorstore"))]
for arguments in (["--version"], ["--help"], ["index", "--help"]):
    subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)

with contextlib.suppress(MissingExtraError):
    pplx_vectorstore.load_encoder("all-minilm-l6-v2")
    raise AssertionError("the offline model loaded without its extra")

with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "a.txt").write_text("text")
    ran = subprocess.run([*command, "index", folder], capture_output=True, text=True, check=False, cwd=folder)
    assert ran.returncode == 1, ran
    assert "pip install 'pplx-vectorstore" in ran.stderr, ran.stderr
    assert "Traceback" not in ran.stderr, ran.stderr

with tempfile.TemporaryDirectory() as folder:
    embeddings = DeterministicFakeEmbedding(size=8)
    with langchain_pplx_vectorstore.PplxVectorStore.from_texts(["a", "b"], embeddings, folder=folder) as store:
        assert [document.page_content for document in store.similarity_search("b", k=1)] == ["b"]

with (
    tempfile.TemporaryDirectory() as folder,
    llama_index_store.PplxVectorStore(MockEmbedding(embed_dim=8), folder=folder) as store,
):
    store.add([TextNode(id_="a", text="text", embedding=[1.0] * 8)])
    assert [node.text for node in store.get_nodes(["a"])] == ["text"]
with contextlib.suppress(MissingExtraError):
    _ = llama_index_embedding.PplxEmbedding(model_name="all-minilm-l6-v2").encoder
    raise AssertionError("the offline model loaded without its extra")
assert ray_pplx_vectorstore.IngestionReport(documents=2, unchanged_documents=1).rows == 3
print("the wheels work")
