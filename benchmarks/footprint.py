"""What a million chunks take in memory and on disk: computed from the layout, and measured on the embedded engine.

The computed figures follow the structures of Qdrant's segments, which the embedded engine and the server
share. The measured ones come from indexes of 100,000 chunks: real text, cut at random places of the corpora of
the public brandonstarxel/chunking_evaluation repository (so passages overlap, and there are fewer different
words than in as much text of one's own), and made-up codes that lie around centres, which is cheap and takes the
same room. A small index is subtracted, so that what does not grow with the chunks is left out.

Memory is what a fresh process grows by when it opens an index and searches it: its own pages, and the graph, whose
file is mapped and read at once. Other files are mapped too; the system takes their pages back when it needs them.

The computed graph has the links of the vectors alone. Were the library's own payload indexes not kept out of it,
Qdrant would add links for every indexed value that many chunks share, each common word of the text index among them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped] # ships no types
from harness import CHUNKS_PER_DOCUMENT, read_corpora, write_results

from pplx_vectorstore import CollectionConfig, Document, PrecomputedEncoder, VectorStore
from pplx_vectorstore.equal_norms import quantize_to_norm
from pplx_vectorstore.quantization import Codes

SHOWN_DIMENSIONS = (256, 384, 1024, 2560)
SMALL = 2_000
SEARCHES = 200
MILLION = 1_000_000

HNSW_M = 16  # the engine's default
HASH_LENGTH = 48
DOCUMENT_ID = "handbook/chapter-{:03}/page-{:06}.md"
ID_LENGTH = len(DOCUMENT_ID.format(0, 0))

# Where the parts of a collection lie in its folder, the first that fits.
PARTS = {
    "codes": re.compile(r"/vector_storage-[^/]*/(?!quantized)"),
    "bits": re.compile(r"/vector_storage-[^/]*/quantized"),
    "graph": re.compile(r"/vector_index-"),
    "point ids": re.compile(r"/id_tracker"),
    "payload": re.compile(r"/payload_storage/"),
    "text index": re.compile(r"/payload_index/[^/]*-text-"),
    "other indexes": re.compile(r"/payload_index/"),
    "log": re.compile(r"/wal/"),
    "rest": re.compile(r""),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with corpora/*.md")
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[384, 1024])
    parser.add_argument("--characters", type=int, default=1_000, help="of a chunk, on average")
    parser.add_argument("--memory-run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    (*_, dimension) = arguments.dimensions
    if arguments.memory_run:
        print(measure_memory(arguments.memory_run, dimension))
        return
    text = "\n\n".join(read_corpora(arguments.data).values())
    payload, words = sample_chunks(text, arguments.characters)
    print(f"chunks of {arguments.characters:,} characters, {words:.0f} different words and {payload:.0f} bytes as JSON")
    results = {}
    for dimension in arguments.dimensions:
        results[str(dimension)] = compare(dimension, arguments, text, payload, words)
        write_results("footprint", {"points": arguments.points, "bytes_per_chunk": results})
    show_computed(payload, words)


def compute_disk(dimension: int, n: int, payload: float, words: float) -> dict[str, float]:
    """Return bytes per chunk on disk, by part.

    Args:
        dimension: Components of a vector.
        n: Points of a segment.
        payload: Bytes of a chunk's payload as JSON.
        words: Different words of a chunk.
    """
    number = 16 + 24  # (value, point) sorted by value; the value by point
    of_integer = 24 + 4  # an integer is also looked up by value
    return {
        "codes": dimension,
        "bits": dimension / 8,
        "graph": graph_bytes(n),
        "point ids": 21 + 8,  # the mapping to a UUID; the version
        "payload": payload + 128 / 2 + 16,  # uncompressed, in blocks of 128 bytes; the pointer to it
        "text index": text_index_bytes(words),
        "other indexes": number + of_integer + sum(20 + of + per_document(16 + of) + 4 for of in keyword_lengths()),
    }


def compute_memory(dimension: int, n: int, words: float) -> dict[str, float]:
    """Return bytes per chunk in memory, by part; arguments as for `compute_disk`."""
    number = 16 + 16
    of_integer = 16 + 4
    keywords = 0.0
    for length in keyword_lengths():
        heap = length + 32 if length > 15 else 0  # shorter ones are kept in place
        keywords += 8 + 16 + heap + 4 + per_document(32 + heap)
    return {
        "bits": dimension / 8,
        "graph": graph_bytes(n),
        "point ids": 16 + 32 + 4,  # UUID by point; point by UUID; the version
        "text index": text_index_bytes(words),
        "other indexes": number + of_integer + keywords,
    }


def graph_bytes(n: int) -> float:
    """Return the most that a point's links take: 2m at the lowest level, m above, each as many bits as n has."""
    links = 2 * HNSW_M + HNSW_M / (HNSW_M - 1)
    return links * math.ceil(math.log2(n)) / 8


def text_index_bytes(words: float) -> float:
    """Return what BM25 needs of a chunk: its id and a frequency in the list of each word, and its length."""
    return 2 * words + 8


def keyword_lengths() -> Sequence[int]:
    """Return the bytes of the keywords that are indexed: document_id and document_hash."""
    return ID_LENGTH, HASH_LENGTH


def per_document(size: float) -> float:
    return size / CHUNKS_PER_DOCUMENT


def compare(dimension: int, arguments: argparse.Namespace, text: str, payload: float, words: float) -> dict[str, Any]:
    """Build indexes with and without text index; print and return what they take beside what was computed."""
    n = arguments.points
    measured = {}
    for text_index in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            sizes: list[tuple[Counter[str], int]] = []
            for points in (SMALL, n):
                path = Path(folder) / str(points)
                seconds = build(path, points, dimension, text, arguments.characters, text_index=text_index)
                disk = disk_by_part(path)  # before anything opens it again
                sizes.append((disk, run_memory(path, dimension, arguments.data)))
            (small_disk, small_memory), (disk, memory) = sizes
            grown = {name: (disk[name] - small_disk[name]) / (n - SMALL) for name in disk}
            measured[text_index] = grown, (memory - small_memory) / (n - SMALL)
        what = "with" if text_index else "without"
        print(f"\n{n:,} chunks of {dimension} dimensions {what} text index, built in {seconds:.0f} s", flush=True)
        print(f"fixed: {sum(small_disk.values()) / 1e6:.0f} MB on disk for {SMALL:,} chunks", flush=True)
    (disk_without, own_without), (disk_with, own_with) = measured[False], measured[True]
    print(f"\n{'bytes per chunk':32}{'computed':>10}{'measured':>10}{'ratio':>8}")
    computed = compute_disk(dimension, n, payload, words)
    in_memory = compute_memory(dimension, n, words)
    others = sum(in_memory[name] for name in ("bits", "point ids", "other indexes"))
    rows = {
        "graph, without text index": (computed["graph"], disk_without["graph"]),
        "graph, with text index": (computed["graph"], disk_with["graph"]),
        **{f"disk, {name}": (size, disk_with[name]) for name, size in computed.items() if name != "graph"},
        "disk": (sum(computed.values()), sum(disk_with[name] for name in computed)),
        "memory, bits, ids, other indexes": (others, own_without),
        "memory, text index": (in_memory["text index"], own_with - own_without),
        "memory": (sum(in_memory.values()), own_with + disk_with["graph"]),
    }
    for name, (expected, found) in rows.items():
        print(f"{name:32}{expected:10.0f}{found:10.0f}{found / expected:8.2f}", flush=True)
    return {name: {"computed": expected, "measured": found} for name, (expected, found) in rows.items()}


def show_computed(payload: float, words: float) -> None:
    """Print what a million chunks take, for the usual dimensions."""
    print(f"\n{'MB per million chunks':32}" + "".join(f"{dimension:>10}" for dimension in SHOWN_DIMENSIONS))
    memory = {dimension: compute_memory(dimension, MILLION, words) for dimension in SHOWN_DIMENSIONS}
    disk = {dimension: compute_disk(dimension, MILLION, payload, words) for dimension in SHOWN_DIMENSIONS}
    for what, by_dimension in (("memory", memory), ("disk", disk)):
        for name in next(iter(by_dimension.values())):
            print(f"{what + ', ' + name:32}" + "".join(f"{parts[name]:10.0f}" for parts in by_dimension.values()))
        print(f"{what:32}" + "".join(f"{sum(parts.values()):10.0f}" for parts in by_dimension.values()))


def make_documents(n: int, dimension: int, text: str, characters: int) -> Iterator[Document]:
    """Make documents of ten chunks until there are n chunks."""
    rng = np.random.default_rng(1)
    for number in range(n // CHUNKS_PER_DOCUMENT):
        yield Document(
            id=DOCUMENT_ID.format(number // 1_000, number),
            chunks=cut(text, characters, CHUNKS_PER_DOCUMENT, rng),
            vectors=make_codes(CHUNKS_PER_DOCUMENT, dimension, rng),
            metadata={"lang": "en", "number": number},
        )


def cut(text: str, characters: int, n: int, rng: np.random.Generator) -> list[str]:
    """Cut n passages of half to one and a half times so many characters."""
    lengths = rng.integers(characters // 2, characters + characters // 2, size=n)
    starts = rng.integers(0, len(text) - 2 * characters, size=n)
    return [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def make_codes(n: int, dimension: int, rng: np.random.Generator, clusters: int = 100) -> Codes:
    centres = np.random.default_rng(0).normal(size=(clusters, dimension))
    return quantize_to_norm(centres[rng.integers(clusters, size=n)] + rng.normal(size=(n, dimension)))


def sample_chunks(text: str, characters: int) -> tuple[float, float]:
    """Return bytes of payload as JSON and different words of a chunk, on average."""
    chunks = cut(text, characters, 1_000, np.random.default_rng(2))
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder), 8, text_index=False) as store:
        store.add([Document(id=DOCUMENT_ID.format(0, 0), chunks=chunks, vectors=np.ones((len(chunks), 8)))])
        records, _ = store._client.scroll(store._session.points.collection, limit=len(chunks))
    payloads = [len(json.dumps(record.payload, ensure_ascii=False).encode()) for record in records]
    words = [len(set(re.findall(r"\w+", chunk.lower()))) for chunk in chunks]
    return float(np.mean(payloads)), float(np.mean(words))


def open_store(path: Path, dimension: int, *, text_index: bool) -> VectorStore:
    encoder = PrecomputedEncoder("made-up", dimension)
    return VectorStore.open(path, encoder=encoder, config=CollectionConfig(text_index=text_index))


def build(path: Path, n: int, dimension: int, text: str, characters: int, *, text_index: bool) -> float:
    """Write an index; return the seconds it took."""
    start = perf_counter()
    with open_store(path, dimension, text_index=text_index) as store:
        store.add(make_documents(n, dimension, text, characters))
        store.optimize()
    return perf_counter() - start


def disk_by_part(path: Path) -> Counter[str]:
    """Return what a folder's files take on disk, by part; what is allotted but not written does not count."""
    sizes = Counter(dict.fromkeys(PARTS, 0))
    for file in path.rglob("*"):
        if file.is_file():
            name = next(name for name, pattern in PARTS.items() if pattern.search(str(file)))
            sizes[name] += 512 * file.stat().st_blocks
    return sizes


def run_memory(path: Path, dimension: int, data: Path) -> int:
    """Open and search an index in a fresh process; return by how many bytes that grew."""
    command = [sys.executable, __file__, str(data), f"--memory-run={path}", f"--dimensions={dimension}"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(output.splitlines()[-1])


def measure_memory(path: Path, dimension: int) -> int:
    """Return by how many bytes this process grows when it opens and searches an index, mapped files left out."""
    queries = make_codes(SEARCHES, dimension, np.random.default_rng(3))
    encoder = PrecomputedEncoder("made-up", dimension)
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder), dimension, text_index=False) as store:
        store.add([Document(id="warm-up", chunks=["all code is loaded"], vectors=queries[:1])])
        store.search(queries[0])
    before = own_memory()
    with VectorStore.open(path, encoder=encoder) as store:
        for codes in queries:
            store.search(codes)
        return own_memory() - before


def own_memory() -> int:
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


if __name__ == "__main__":
    main()
