"""From documents to searchable points: this library's three ways of writing, and the frameworks' own for Qdrant.

All write the same chunks of the corpora of DATA (see harness.py), each with text and metadata, and the same vectors of
all-MiniLM-L6-v2, embedded beforehand; they take turns, each into a new collection, and each is asked one question at
the end. ":memory:" is qdrant-client's emulation in Python, the one engine that all can write to; in a "folder" the
frameworks' integrations use that emulation with SQLite (`QdrantClient(path=...)`), and this library Qdrant's embedded
engine. "index" is `optimize()`, which the emulation has no counterpart of: there, every search is a scan.

Bytes are what the folder takes on disk at the end, or of ":memory:", what Python's allocators gave out and did not get
back, in a run of its own that is not timed.

Embedding is timed apart: every chunk by itself, as the frameworks do it, and in its document with the model's own
share of context, for which all-MiniLM-L6-v2 goes over the text twice.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from harness import print_aim, read_corpora, take_turns, write_results
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_pplx_vectorstore import PplxVectorStore as LangChainStore
from langchain_qdrant import QdrantVectorStore as LangChainPeer
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.vector_stores.pplx_vectorstore import PplxVectorStore as LlamaIndexStore
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexPeer
from pydantic import PrivateAttr
from qdrant_client import QdrantClient, models

from pplx_vectorstore import Chunk, Chunker, Document, PrecomputedEncoder, VectorStore, load_encoder
from pplx_vectorstore.equal_norms import quantize_to_norm

MODEL = "all-minilm-l6-v2"
COLLECTION = "documents"
MEMORY, FOLDER = ":memory:", "folder"
EMBEDDING_ROUNDS = 2


class Corpus(NamedTuple):
    """Chunks by document, and one vector for each chunk, shape (chunks, dimension), float32."""

    chunks: Mapping[str, Sequence[Chunk]]
    vectors: npt.NDArray[np.float32]

    def rows(self) -> list[tuple[str, Chunk, npt.NDArray[np.float32]]]:
        """Return every chunk with its document's name and its vector."""
        pairs = [(name, chunk) for name, chunks in self.chunks.items() for chunk in chunks]
        return [(name, chunk, vector) for (name, chunk), vector in zip(pairs, self.vectors, strict=True)]


class Ingestion(NamedTuple):
    """Seconds of one run: of writing, and of indexing."""

    writing: float
    indexing: float


Written = tuple[Ingestion, Callable[[], None]]


class Way(NamedTuple):
    """One way of writing.

    Attributes:
        prepare: Makes of a corpus what the way takes: documents or nodes, not timed.
        write: Given the corpus, these, and a folder, or None for memory, writes them; returns what it took, and what
            lets go of it.
    """

    prepare: Callable[[Corpus], Any]
    write: Callable[[Corpus, Any, Path | None], Written]


class ReadyEmbeddings(Embeddings):
    """Vectors that were made beforehand, for LangChain."""

    def __init__(self, vectors: Mapping[str, list[float]]) -> None:
        self.model_name = MODEL
        self._vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Look the texts up."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return some vector for a text that is no chunk, such as a probe for the dimension."""
        return self._vectors.get(text) or next(iter(self._vectors.values()))


class ReadyEmbedding(BaseEmbedding):
    """The same for LlamaIndex, which asks for the dimension only: nodes bring their vectors."""

    _vector: list[float] = PrivateAttr()

    def __init__(self, vector: list[float]) -> None:
        super().__init__(model_name=MODEL)
        self._vector = vector

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector


def for_core(corpus: Corpus) -> list[Document]:
    ends = np.cumsum([len(chunks) for chunks in corpus.chunks.values()])[:-1]
    parts = np.split(corpus.vectors, ends)
    return [
        Document(id=name, chunks=chunks, vectors=vectors, metadata={"source": name})
        for (name, chunks), vectors in zip(corpus.chunks.items(), parts, strict=True)
    ]


def for_langchain(corpus: Corpus) -> tuple[list[LangChainDocument], ReadyEmbeddings]:
    rows = corpus.rows()
    documents = [
        LangChainDocument(page_content=chunk.text, metadata={"source": name, "start_index": chunk.start})
        for name, chunk, _ in rows
    ]
    return documents, ReadyEmbeddings({chunk.text: vector.tolist() for _, chunk, vector in rows})


def for_llama_index(corpus: Corpus) -> list[TextNode]:
    return [
        TextNode(
            text=chunk.text,
            embedding=vector.tolist(),
            metadata={"source": name},
            start_char_idx=chunk.start,
            end_char_idx=chunk.end,
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)},
        )
        for name, chunk, vector in corpus.rows()
    ]


def core(corpus: Corpus, documents: list[Document], folder: Path | None) -> Written:
    encoder = PrecomputedEncoder(MODEL, corpus.vectors.shape[1])
    start = perf_counter()
    store = VectorStore.open(folder, encoder=encoder) if folder else VectorStore(memory_client(), encoder=encoder)
    store.add(documents)
    return finish(start, corpus, store, store.close)


def langchain(corpus: Corpus, given: tuple[list[LangChainDocument], ReadyEmbeddings], folder: Path | None) -> Written:
    documents, embeddings = given
    start = perf_counter()
    place: dict[str, Any] = {"folder": folder} if folder else {"client": memory_client()}
    store = LangChainStore(embeddings, **place)
    store.add_documents(documents)
    return finish(start, corpus, store.store, store.close)


def llama_index(corpus: Corpus, nodes: list[TextNode], folder: Path | None) -> Written:
    start = perf_counter()
    place: dict[str, Any] = {"folder": folder} if folder else {"client": memory_client()}
    store = LlamaIndexStore(ReadyEmbedding(corpus.vectors[0].tolist()), **place)
    store.add(nodes)
    return finish(start, corpus, store.client, store.close)


def finish(start: float, corpus: Corpus, store: VectorStore, close: Callable[[], None]) -> Written:
    written = perf_counter()
    store.optimize()
    indexed = perf_counter()
    codes = quantize_to_norm(corpus.vectors[-1:])[0]
    _, last, _ = corpus.rows()[-1]
    require_found(last.text, [hit.text for hit in store.search(codes, k=1)])
    require_count(corpus, store.count())
    return Ingestion(written - start, indexed - written), close


def langchain_qdrant(
    corpus: Corpus, given: tuple[list[LangChainDocument], ReadyEmbeddings], folder: Path | None
) -> Written:
    documents, embeddings = given
    start = perf_counter()
    client = QdrantClient(path=str(folder)) if folder else memory_client()
    client.create_collection(
        COLLECTION, models.VectorParams(size=corpus.vectors.shape[1], distance=models.Distance.COSINE)
    )
    store = LangChainPeer(client=client, collection_name=COLLECTION, embedding=embeddings)
    store.add_documents(documents)
    seconds = perf_counter() - start
    found = store.similarity_search_by_vector(corpus.vectors[-1].tolist(), k=1)
    require_found(documents[-1].page_content, [document.page_content for document in found])
    require_count(corpus, client.count(COLLECTION).count)
    return Ingestion(seconds, 0.0), client.close


def llama_index_qdrant(corpus: Corpus, nodes: list[TextNode], folder: Path | None) -> Written:
    start = perf_counter()
    client = QdrantClient(path=str(folder)) if folder else memory_client()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that the emulation has no payload indexes
        store = LlamaIndexPeer(COLLECTION, client=client)
        store.add(list[BaseNode](nodes))
    seconds = perf_counter() - start
    found = store.query(VectorStoreQuery(query_embedding=corpus.vectors[-1].tolist(), similarity_top_k=1))
    require_found(nodes[-1].get_content(), [node.get_content() for node in found.nodes or ()])
    require_count(corpus, client.count(COLLECTION).count)
    return Ingestion(seconds, 0.0), client.close


WAYS: dict[str, Way] = {
    "ours": Way(for_core, core),
    "ours in LangChain": Way(for_langchain, langchain),
    "langchain-qdrant": Way(for_langchain, langchain_qdrant),
    "ours in LlamaIndex": Way(for_llama_index, llama_index),
    "llama-index-vector-stores-qdrant": Way(for_llama_index, llama_index_qdrant),
}
PEERS = {
    "ours in LangChain": "langchain-qdrant",
    "ours in LlamaIndex": "llama-index-vector-stores-qdrant",
}
RATIOS = ("seconds", "bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with corpora/*.md")
    parser.add_argument("--chunk-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    corpus, embedding = embed(cut_corpora(arguments.data, arguments.chunk_tokens), EMBEDDING_ROUNDS)
    n, dimension = corpus.vectors.shape
    print(f"{n:,} chunks of at most {arguments.chunk_tokens} tokens, {dimension} dimensions\n", flush=True)
    for what, seconds in embedding.items():
        print(f"embedding, {what}: {np.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})", flush=True)
    results = {
        "chunks": n,
        "rounds": arguments.rounds,
        "embedding_seconds": embedding,
        **compare(corpus, arguments.rounds),
    }
    print_table(results)
    write_results("ingest", results)
    for row in results["ratios"]:
        for what in RATIOS:
            name = f"{row['place']}: {row['ours']} over {row['peer']}, {what}"
            print_aim(name, f"{row[what]:.2f}", "≤ 1", row[what] <= 1)


def cut_corpora(data: Path, chunk_tokens: int) -> dict[str, list[Chunk]]:
    """Cut the corpora into chunks, by name."""
    chunker = Chunker(load_encoder(MODEL).tokenizer.tokenizer, chunk_tokens)
    return {name: chunker.split(text, "markdown") for name, text in read_corpora(data).items()}


def embed(chunks: Mapping[str, Sequence[Chunk]], rounds: int) -> tuple[Corpus, dict[str, list[float]]]:
    """Embed chunks in both ways in turns; return each by itself, and the seconds of all rounds."""
    documents = [[chunk.text for chunk in some] for some in chunks.values()]
    encoders = {
        "every chunk by itself": load_encoder(MODEL, context_weight=0.0),
        "in its document": load_encoder(MODEL),
    }
    seconds: dict[str, list[float]] = {way: [] for way in encoders}
    found: dict[str, list[npt.NDArray[np.float32]]] = {}
    for _, way in take_turns(list(encoders), rounds):
        start = perf_counter()
        found[way] = encoders[way].chunk_vectors(documents)
        seconds[way].append(perf_counter() - start)
    return Corpus(chunks, np.concatenate(found["every chunk by itself"])), seconds


def compare(corpus: Corpus, rounds: int, places: Sequence[str] = (MEMORY, FOLDER)) -> dict[str, Any]:
    """Let all ways write the corpus in turns; return seconds and bytes by place and way."""
    labels = [f"{place} {way}" for place in places for way in WAYS]
    runs: dict[str, list[Ingestion]] = {label: [] for label in labels}
    sizes: dict[str, int] = {}
    for number, label in take_turns(labels, rounds):
        place, way = label.split(" ", 1)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "index" if place == FOLDER else None
            seconds, close = WAYS[way].write(corpus, WAYS[way].prepare(corpus), folder)
            close()
            runs[label].append(seconds)
            if folder:
                sizes[label] = disk_bytes(folder)
        if place == MEMORY and number == 0:
            sizes[label] = memory_bytes(WAYS[way], corpus)
    found: dict[str, Any] = {place: {} for place in places}
    for label, some in runs.items():
        place, way = label.split(" ", 1)
        totals = [run.writing + run.indexing for run in some]
        found[place][way] = {
            "write_seconds": float(np.median([run.writing for run in some])),
            "index_seconds": float(np.median([run.indexing for run in some])),
            "seconds": float(np.median(totals)),
            "seconds_of_rounds": [min(totals), max(totals)],
            "bytes": sizes[label],
        }
    return {"places": found, "ratios": ratios(found)}


def memory_client() -> QdrantClient:
    return QdrantClient(":memory:")


def require_found(expected: str, found: Sequence[str]) -> None:
    if list(found) != [expected]:
        raise SystemExit(f"not searchable: expected {expected!r}, found {list(found)!r}")


def require_count(corpus: Corpus, count: int) -> None:
    if count != len(corpus.vectors):
        raise SystemExit(f"{count} of {len(corpus.vectors)} points are there")


def memory_bytes(way: Way, corpus: Corpus) -> int:
    """Return what is allocated after writing and was not before."""
    given = way.prepare(corpus)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        _, close = way.write(corpus, given, None)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
        close()
    finally:
        tracemalloc.stop()
    return after - before


def disk_bytes(folder: Path) -> int:
    return sum(512 * file.stat().st_blocks for file in folder.rglob("*") if file.is_file())


def ratios(places: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return seconds and bytes of this library's adapters over those of their peers, by place."""
    return [
        {
            "place": place,
            "ours": mine,
            "peer": theirs,
            **{what: ways[mine][what] / ways[theirs][what] for what in RATIOS},
        }
        for place, ways in places.items()
        for mine, theirs in PEERS.items()
    ]


def print_table(results: Mapping[str, Any]) -> None:
    columns = ("seconds", "of rounds", "of them index", "points/s", "MB")
    for place, ways in results["places"].items():
        print(f"\n| {place} | " + " | ".join(columns) + " |\n|" + "---|" * (1 + len(columns)))
        for way, row in ways.items():
            low, high = row["seconds_of_rounds"]
            print(
                f"| {way} | {row['seconds']:.2f} | {low:.2f} to {high:.2f} | {row['index_seconds']:.2f} "
                f"| {results['chunks'] / row['seconds']:,.0f} | {row['bytes'] / 1e6:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
