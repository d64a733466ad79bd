"""What context does to the vectors of single words: how near "She" is to who she is, alone and in the document.

The word vectors are all-MiniLM-L6-v2's own, each the mean of its tokens: words are given to the encoder as chunks,
which it pools one by one. "Alone", a sentence is all the model sees; "in the document", it sees what comes before as
well. Each word is compared with two names, embedded alone as a query would be: the one that the document is about,
and another.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from harness import write_results

from pplx_vectorstore import load_encoder
from pplx_vectorstore.encoders.late_chunking import LateChunkingEncoder
from pplx_vectorstore.encoders.rows import Vectors

MODEL = "all-minilm-l6-v2"
FIRST = "Ada Lovelace was born in London in 1815 and studied mathematics."
SECOND = "She wrote the first program for a machine that was never built."
NAMES = ("Ada Lovelace", "Marie Curie")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    encoder = load_encoder(MODEL, context_weight=1.0, dtype="float32")
    assert isinstance(encoder, LateChunkingEncoder)
    words = SECOND.split()
    names = encoder.chunk_vectors([[name] for name in NAMES])
    ways = {
        "alone": encoder.chunk_vectors([words])[0],
        "in the document": encoder.chunk_vectors([[*FIRST.split(), *words]])[0][-len(words) :],
    }
    sentence = {
        "alone": encoder.chunk_vectors([[SECOND]])[0],
        "in the document": encoder.chunk_vectors([[FIRST, SECOND]])[0][-1:],
    }
    results: dict[str, Any] = {"model": MODEL, "first": FIRST, "second": SECOND, "words": words, "names": {}}
    for name, vector in zip(NAMES, names, strict=True):
        results["names"][name] = {
            way: {"words": cosines(vectors, vector), "sentence": cosines(sentence[way], vector)[0]}
            for way, vectors in ways.items()
        }
    print_tables(words, results["names"])
    write_results("context", results)


def cosines(vectors: Vectors, other: Vectors) -> list[float]:
    """Return the cosine of every row with the one row of another array."""
    products = vectors @ other[0]
    return [float(x) for x in products / np.linalg.norm(vectors, axis=1) / np.linalg.norm(other)]


def print_tables(words: Sequence[str], names: dict[str, Any]) -> None:
    for name, ways in names.items():
        print(f"\ncosine with {name!r}\n\n| | " + " | ".join(ways) + " |\n|---|" + "---|" * len(ways))
        for i, word in enumerate(words):
            print(f"| {word} | " + " | ".join(f"{found['words'][i]:.2f}" for found in ways.values()) + " |")
        print("| (the sentence) | " + " | ".join(f"{found['sentence']:.2f}" for found in ways.values()) + " |")


if __name__ == "__main__":
    main()
