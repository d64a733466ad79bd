"""What lower precision does to the vectors of the offline model, and to what a search finds.

Every way of running it encodes the same chunks and questions; its codes are compared with those of PyTorch in
float32: their cosine, and the share of the questions' ten best chunks that are others.

DATA is the folder of the public brandonstarxel/chunking_evaluation repository's evaluation data
(corpora/*.md and questions.csv).
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import read_corpora, write_results

from pplx_vectorstore import Chunker, cosine_similarity, export_onnx, load_encoder
from pplx_vectorstore.quantization import Codes

TOP = 10
MODEL = "all-minilm-l6-v2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--chunk-tokens", type=int, default=100)
    parser.add_argument("--corpora", nargs="*", help="names of some of them; by default all")
    arguments = parser.parse_args()
    texts = read_corpora(arguments.data)
    if arguments.corpora:
        texts = {name: texts[name] for name in arguments.corpora}
    with (arguments.data / "questions.csv").open(encoding="utf-8", newline="") as file:
        questions = [row["question"] for row in csv.DictReader(file) if row["corpus_id"] in texts]
    with tempfile.TemporaryDirectory() as folder:
        for quantize in (False, True):
            export_onnx(MODEL, folder, quantize_weights=quantize)
        ways: dict[str, tuple[str, dict[str, Any]]] = {
            "torch float32": (MODEL, {"dtype": "float32"}),
            "torch bfloat16": (MODEL, {"dtype": "bfloat16"}),
            "onnx float32": (folder, {"backend": "onnx", "onnx_file": "model"}),
            "onnx int8": (folder, {"backend": "onnx", "onnx_file": "model_quantized"}),
        }
        exact: tuple[Codes, Codes] | None = None
        results: dict[str, Any] = {"questions": len(questions), "ways": {}}
        for name, (model, options) in ways.items():
            encoder = load_encoder(model, **options)
            chunker = Chunker(encoder.tokenizer.tokenizer, arguments.chunk_tokens)
            documents = [[chunk.text for chunk in chunker.split(text, "markdown")] for text in texts.values()]
            started = time.perf_counter()
            chunks = np.concatenate(encoder.encode_documents(documents))
            seconds = time.perf_counter() - started
            queries = encoder.encode_queries(questions)
            if exact is None:
                exact = chunks, queries
                print(
                    f"{len(chunks):,} chunks of at most {arguments.chunk_tokens} tokens, {len(questions)} questions\n"
                )
                print("| way | mean cosine | least | changed of the ten best | of the best | seconds |")
                print("|---|---|---|---|---|---|")
            norms = np.linalg.norm(chunks.astype(float), axis=1) * np.linalg.norm(exact[0].astype(float), axis=1)
            cosines = (chunks.astype(float) * exact[0]).sum(axis=1) / norms
            expected, found = best(exact[1], exact[0]), best(queries, chunks)
            pairs = list(zip(expected, found, strict=True))
            changed = np.mean([len(set(a) - set(b)) / TOP for a, b in pairs])
            first = np.mean([a[0] != b[0] for a, b in pairs])
            results["chunks"] = len(chunks)
            results["ways"][name] = {
                "mean_cosine": float(cosines.mean()),
                "least_cosine": float(cosines.min()),
                "changed_of_ten": float(changed),
                "changed_of_best": float(first),
                "seconds": seconds,
            }
            print(
                f"| {name} | {cosines.mean():.5f} | {cosines.min():.5f} | {changed:.2%} | {first:.2%} "
                f"| {seconds:.0f} |",
                flush=True,
            )
    write_results("precision", results)


def best(queries: Codes, chunks: Codes) -> list[list[int]]:
    """Rank by exact cosine."""
    return np.argsort(-cosine_similarity(queries, chunks), axis=1, kind="stable")[:, :TOP].tolist()  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
