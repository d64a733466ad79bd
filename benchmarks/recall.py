"""How much of an exact search the store's search finds, on real text with all-minilm-l6-v2.

Indexes the corpora of the public brandonstarxel/chunking_evaluation repository in chunks of two sizes and
searches for its 472 questions. recall@10 counts the hits whose int8 cosine is at least that of the tenth
best chunk of all, found by brute force; so chunks of equal cosine stand for each other.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import print_aim, read_corpora, take_turns, write_results

from pplx_vectorstore import Chunker, Document, VectorStore, cosine_similarity, load_encoder
from pplx_vectorstore.quantization import Codes

K = 10
CHUNK_TOKENS = (100, 256)
DEFAULT = "default (100)"
CANDIDATES = {"40": 40, DEFAULT: None, "200": 200, "400": 400}
AIM = 0.97


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with corpora/*.md and questions.csv")
    arguments = parser.parse_args()
    encoder = load_encoder("all-minilm-l6-v2")
    queries = encoder.encode_queries(read_questions(arguments.data))
    corpora = read_corpora(arguments.data)
    results: dict[str, dict[str, Any]] = {}
    print(f"recall@{K} of {len(queries)} questions against brute force over the int8 codes")
    for chunk_tokens in CHUNK_TOKENS:
        chunker = Chunker(encoder.tokenizer.tokenizer, chunk_tokens)
        chunks = {name: chunker.split(text, "markdown") for name, text in corpora.items()}
        codes = encoder.encode_documents([[chunk.text for chunk in some] for some in chunks.values()])
        cosines = exact_cosines(queries, codes, list(chunks))
        with tempfile.TemporaryDirectory() as folder, VectorStore.open(folder, encoder=encoder) as store:
            store.add(
                Document(id=name, chunks=some, vectors=vectors)
                for (name, some), vectors in zip(chunks.items(), codes, strict=True)
            )
            print(f"\n{store.count()} chunks of at most {chunk_tokens} tokens")
            print(f"{'candidates':24}{'recall':>8}{'ms':>8}")
            new = measure(store, queries, cosines, {"default, just written": None})
            store.optimize()
            indexed = measure(store, queries, cosines, CANDIDATES)
            results[str(chunk_tokens)] = {"chunks": store.count(), "searches": new | indexed}
    write_results("recall", results)
    worst = min(found["searches"][DEFAULT]["recall"] for found in results.values())
    print_aim("default candidates, indexed", f"{worst:.4f}", f"≥ {AIM}", worst >= AIM)


def read_questions(data: Path) -> list[str]:
    with (data / "questions.csv").open(encoding="utf-8", newline="") as file:
        return [row["question"] for row in csv.DictReader(file)]


Cosines = tuple[npt.NDArray[np.float64], dict[str, int]]
"""Cosine of every question with every chunk, and the column of each document's first chunk."""


def exact_cosines(queries: Codes, codes: list[Codes], names: list[str]) -> Cosines:
    firsts = np.cumsum([0, *map(len, codes)])[:-1].tolist()
    return cosine_similarity(queries, np.concatenate(codes)), dict(zip(names, firsts, strict=True))


def measure(
    store: VectorStore, queries: Codes, cosines: Cosines, candidates: Mapping[str, int | None]
) -> dict[str, dict[str, float]]:
    """Print and return recall and the median milliseconds of a search for each number of candidates."""
    exact, firsts = cosines
    tenth = np.partition(exact, -K, axis=1)[:, -K]
    found = dict.fromkeys(candidates, 0)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for index, name in take_turns(list(candidates), len(queries)):
        start = perf_counter()
        hits = store.search(queries[index], k=K, candidates=candidates[name])
        seconds[name].append(perf_counter() - start)
        columns = [firsts[hit.document_id] + hit.chunk_index for hit in hits]
        found[name] += int(np.count_nonzero(exact[index, columns] >= tenth[index] - 1e-9))
    results = {
        name: {"recall": found[name] / (K * len(queries)), "ms": 1000 * float(np.median(seconds[name]))}
        for name in candidates
    }
    for name, result in results.items():
        print(f"{name:24}{result['recall']:8.4f}{result['ms']:8.2f}", flush=True)
    return results


if __name__ == "__main__":
    main()
