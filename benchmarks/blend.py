"""Retrieval quality of independent, late and blended chunk vectors, and of their int8 codes.

DATA is the folder of the public brandonstarxel/chunking_evaluation repository's evaluation data
(corpora/*.md and questions.csv). A chunk is relevant to a question if it holds more than half of one of
the question's reference excerpts; questions without such a chunk are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from harness import read_corpora

from pplx_vectorstore import Chunker, cosine_similarity, load_encoder
from pplx_vectorstore.pooling import blend
from pplx_vectorstore.quantization import quantize

TOP = 10
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--chunk-tokens", type=int, nargs="+", default=[100, 256])
    arguments = parser.parse_args()
    texts = read_corpora(arguments.data)
    with (arguments.data / "questions.csv").open(encoding="utf-8", newline="") as file:
        questions = list(csv.DictReader(file))
    late = load_encoder(arguments.model, dtype=arguments.dtype, context_weight=1.0)
    independent = load_encoder(arguments.model, dtype=arguments.dtype, context_weight=0.0)
    query_codes = independent.encode_queries([row["question"] for row in questions])
    for chunk_tokens in arguments.chunk_tokens:
        chunker = Chunker(late.tokenizer.tokenizer, chunk_tokens)
        documents = [chunker.split(text, "markdown") for text in texts.values()]
        places = [
            (name, chunk.start or 0, chunk.end or 0)
            for name, chunks in zip(texts, documents, strict=True)
            for chunk in chunks
        ]
        relevant = np.array([relevance(row, places) for row in questions])
        kept = relevant.any(axis=1)
        strings = [[chunk.text for chunk in chunks] for chunks in documents]
        contextual = np.concatenate(late.chunk_vectors(strings))
        alone = np.concatenate(independent.chunk_vectors(strings))
        print(f"\nchunks of {chunk_tokens} tokens: {len(places)}, questions: {kept.sum()}")
        print(f"{'context weight':16}{'hit@1':>8}{'MRR@10':>8}{'nDCG@10':>9}")
        for weight in WEIGHTS:
            codes = quantize(blend(contextual, alone, weight), late.spec.quantizer)
            hit, reciprocal, gain = judge(query_codes[kept], codes, relevant[kept])
            print(f"{weight:<16}{hit:>8.3f}{reciprocal:>8.3f}{gain:>9.3f}", flush=True)


def relevance(question: dict[str, str], places: Sequence[tuple[str, int, int]]) -> list[bool]:
    """Tell for each chunk whether it holds more than half of one of the question's excerpts."""
    excerpts = [(part["start_index"], part["end_index"]) for part in json.loads(question["references"])]
    return [
        name == question["corpus_id"]
        and any(2 * (min(end, stop) - max(start, first)) > stop - first for first, stop in excerpts)
        for name, start, end in places
    ]


def judge(
    queries: npt.NDArray[np.int8], codes: npt.NDArray[np.int8], relevant: npt.NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Return hit@1, MRR@10 and nDCG@10 of ranking by exact cosine."""
    ranked = np.argsort(-cosine_similarity(queries, codes), axis=1, kind="stable")[:, :TOP]
    hits = np.take_along_axis(relevant, ranked, axis=1)
    found = hits.any(axis=1)
    reciprocal = np.where(found, 1.0 / (1 + hits.argmax(axis=1)), 0.0)
    discount = 1.0 / np.log2(np.arange(2, TOP + 2))
    ideal = np.array([discount[: min(TOP, count)].sum() for count in relevant.sum(axis=1)])
    return float(hits[:, 0].mean()), float(reciprocal.mean()), float(((hits @ discount) / ideal).mean())


if __name__ == "__main__":
    main()
