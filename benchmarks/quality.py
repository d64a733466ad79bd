"""Retrieval quality: independent, late and blended chunk vectors; floats, int8, bits, and the search of the store.

DATA is the folder of the public brandonstarxel/chunking_evaluation repository's evaluation data (corpora/*.md and
questions.csv): five documents, 472 questions. A chunk's relevance to a question is the share that it holds of the
question's excerpts, of the one it holds most of. XQUAD is xquad.en.json of the public google-deepmind/xquad
repository: 48 articles, each one document, 1,190 questions; a chunk is relevant if it holds the answer.

nDCG@10 counts the shares; recall@5 and MRR@10 count chunks that hold at least half of an excerpt. Questions without
such a chunk (their excerpt was cut apart) are left out. Chunks of equal score are ranked in the order of documents,
whatever found them: chunking_evaluation repeats some texts. The metrics are computed by ir-measures.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ir_measures
import numpy as np
import numpy.typing as npt
from harness import read_corpora, write_results
from ir_measures import RR, R, nDCG

from pplx_vectorstore import Chunk, Chunker, Document, VectorStore, cosine_similarity, hamming_distance, load_encoder
from pplx_vectorstore.encoders.late_chunking import LateChunkingEncoder
from pplx_vectorstore.equal_norms import quantize
from pplx_vectorstore.pooling import blend
from pplx_vectorstore.quantization import Codes, pack_bits
from pplx_vectorstore.query import choose_candidates

MODEL = "all-minilm-l6-v2"
TOP = 10
HALF = 50  # percent of an excerpt
MEASURES = {"nDCG@10": nDCG @ 10, "recall@5": R(rel=HALF) @ 5, "MRR@10": RR(rel=HALF) @ 10}

Span = tuple[int, int]
Ranking = npt.NDArray[np.int64]


class Question(NamedTuple):
    """A question, the document that answers it, and the excerpts of it that do."""

    text: str
    document: str
    excerpts: Sequence[Span]


class Dataset(NamedTuple):
    """Documents by name, and questions."""

    documents: dict[str, str]
    questions: Sequence[Question]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("xquad", type=Path)
    parser.add_argument("--model", default=MODEL, help="one that runs here, by name or folder")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--window-tokens", type=int)
    parser.add_argument("--chunk-tokens", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0])
    parser.add_argument("--corpora", nargs="*", help="names of some documents of DATA; by default all")
    parser.add_argument("--articles", type=int, help="how many of XQUAD; by default all")
    parser.add_argument("--name", help="of the file of results; by default quality, and -MODEL for other models")
    arguments = parser.parse_args()
    name = arguments.name or ("quality" if arguments.model == MODEL else f"quality-{Path(arguments.model).name}")
    options = {"dtype": arguments.dtype, "window_tokens": arguments.window_tokens}
    encoder = load_encoder(arguments.model, **options)
    if not isinstance(encoder, LateChunkingEncoder):
        raise SystemExit(f"{arguments.model} gives no float vectors; a model that runs here does")
    independent = load_encoder(arguments.model, context_weight=0.0, **options)
    late = load_encoder(arguments.model, context_weight=1.0, **options)
    datasets = {
        "chunking_evaluation": read_chunking_evaluation(arguments.data, arguments.corpora),
        "XQuAD": read_xquad(arguments.xquad, arguments.articles),
    }
    results: dict[str, Any] = {"model": arguments.model, "own_weight": encoder.spec.context_weight, "runs": []}
    for of, dataset in datasets.items():
        for chunk_tokens in arguments.chunk_tokens:
            chunker = Chunker(encoder.tokenizer.tokenizer, chunk_tokens)
            run = Run(of, dataset, chunker, chunk_tokens)
            print(
                f"\n## {of}, chunks of at most {chunk_tokens} tokens: {len(run.places):,}, "
                f"{len(run.asked)} of {len(dataset.questions)} questions\n",
                flush=True,
            )
            results["runs"].append(judge(run, encoder, late, independent, arguments.weights))
            write_results(name, results)


def read_chunking_evaluation(data: Path, names: Sequence[str] | None) -> Dataset:
    texts = {name: text for name, text in read_corpora(data).items() if not names or name in names}
    with (data / "questions.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["corpus_id"] in texts]
    questions = [
        Question(
            row["question"],
            row["corpus_id"],
            [(part["start_index"], part["end_index"]) for part in json.loads(row["references"])],
        )
        for row in rows
    ]
    return Dataset(texts, questions)


def read_xquad(path: Path, articles: int | None) -> Dataset:
    """Read articles; their paragraphs, in order, make one text."""
    texts: dict[str, str] = {}
    questions: list[Question] = []
    for number, article in enumerate(json.loads(path.read_text("utf-8"))["data"][:articles]):
        name = f"{number} {article['title']}"
        texts[name] = "\n\n".join(paragraph["context"] for paragraph in article["paragraphs"])
        start = 0
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answer = asked["answers"][0]
                first = start + answer["answer_start"]
                questions.append(Question(asked["question"], name, [(first, first + len(answer["text"]))]))
            start += len(paragraph["context"]) + 2
    return Dataset(texts, questions)


class Run:
    """A dataset cut into chunks of one size, and which of them are relevant to which question."""

    def __init__(self, name: str, dataset: Dataset, chunker: Chunker, chunk_tokens: int) -> None:
        self.name = name
        self.chunk_tokens = chunk_tokens
        self.chunks = {document: chunker.split(text, "markdown") for document, text in dataset.documents.items()}
        self.places = [(document, chunk) for document, chunks in self.chunks.items() for chunk in chunks]
        sizes = [len(chunks) for chunks in self.chunks.values()]
        self.first = dict(zip(self.chunks, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        judged = [(question, self._relevance(question)) for question in dataset.questions]
        kept = [(question, shares) for question, shares in judged if max(shares.values(), default=0) >= HALF]
        self.asked = [question for question, _ in kept]
        self.relevance = {str(i): {str(n): share for n, share in shares.items()} for i, (_, shares) in enumerate(kept)}

    def _relevance(self, question: Question) -> dict[int, int]:
        """Return the percentage of an excerpt that each chunk holds, by its number."""
        found = {}
        for number, (document, chunk) in enumerate(self.places):
            if document == question.document:
                share = max(held(chunk, excerpt) for excerpt in question.excerpts)
                if share:
                    found[number] = share
        return found

    def metrics(self, ranking: Ranking) -> dict[str, float]:
        """Judge rankings: the numbers of chunks, best first, shape (questions, TOP)."""
        scores = {
            str(i): {str(n): float(TOP - rank) for rank, n in enumerate(row) if n >= 0} for i, row in enumerate(ranking)
        }
        found = ir_measures.calc_aggregate(list(MEASURES.values()), self.relevance, scores)
        return {name: float(found[measure]) for name, measure in MEASURES.items()}


def held(chunk: Chunk, excerpt: Span) -> int:
    """Return how many percent of an excerpt a chunk holds."""
    first, last = excerpt
    inside = min(chunk.end or 0, last) - max(chunk.start or 0, first)
    return round(100 * max(inside, 0) / (last - first))


def judge(
    run: Run,
    encoder: LateChunkingEncoder,
    late: LateChunkingEncoder,
    independent: LateChunkingEncoder,
    weights: Sequence[float],
) -> dict[str, Any]:
    """Judge every weight of the context, and with the model's own, every form of the vectors."""
    texts = [[chunk.text for chunk in chunks] for chunks in run.chunks.values()]
    contextual = np.concatenate(late.chunk_vectors(texts))
    alone = np.concatenate(independent.chunk_vectors(texts))
    questions = [question.text for question in run.asked]
    queries = np.concatenate(encoder.chunk_vectors([[text] for text in questions]))
    query_codes = encoder.encode_queries(questions)
    by_weight = {}
    own = encoder.spec.context_weight
    print_head("share of context")
    for weight in sorted({*weights, own}):
        codes = quantize(blend(contextual, alone, weight), encoder.spec.quantizer, encoder.spec.squared_norm)
        by_weight[str(weight)] = run.metrics(rank(-cosine_similarity(query_codes, codes)))
        print_row(f"{weight}{' (the model’s own)' if weight == own else ''}", by_weight[str(weight)])
    vectors = blend(contextual, alone, own)
    codes = quantize(vectors, encoder.spec.quantizer, encoder.spec.squared_norm)
    forms = {
        "float": rank(-cosines(queries, vectors)),
        "int8": rank(-cosine_similarity(query_codes, codes)),
        "bits alone": rank(hamming_distance(pack_bits(query_codes), pack_bits(codes))),
        "search": search(run, encoder, codes, query_codes),
    }
    print()
    print_head("form, at that share")
    by_form = {}
    for name, ranking in forms.items():
        by_form[name] = run.metrics(ranking)
        print_row(name, by_form[name])
    return {
        "dataset": run.name,
        "chunk_tokens": run.chunk_tokens,
        "chunks": len(run.places),
        "questions": len(run.asked),
        "weights": by_weight,
        "forms": by_form,
    }


def cosines(queries: npt.NDArray[Any], vectors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    left, right = (some.astype(np.float64) for some in (queries, vectors))
    norms = np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
    return left @ right.T / np.maximum(norms, np.finfo(float).tiny)


def rank(distances: npt.NDArray[Any]) -> Ranking:
    return np.argsort(distances, axis=1, kind="stable")[:, :TOP]


def search(run: Run, encoder: LateChunkingEncoder, codes: Codes, query_codes: Codes) -> Ranking:
    """Rank by the store's own search, on the embedded engine, with its default candidates."""
    lengths = [len(chunks) for chunks in run.chunks.values()]
    parts = np.split(codes, np.cumsum(lengths)[:-1])
    ranking = np.full((len(query_codes), TOP), -1)
    with tempfile.TemporaryDirectory() as folder, VectorStore.open(folder, encoder=encoder) as store:
        store.add(
            Document(id=document, chunks=chunks, vectors=vectors)
            for (document, chunks), vectors in zip(run.chunks.items(), parts, strict=True)
            if chunks
        )
        store.optimize()
        for i, hits in enumerate(
            store.search_batch(list(query_codes), k=2 * TOP, candidates=choose_candidates(TOP, None))
        ):
            # Chunks of equal text have equal scores; they come in the order of documents, as by brute force.
            places = [(-round(hit.score, 6), run.first[hit.document_id] + hit.chunk_index) for hit in hits]
            best = [number for _, number in sorted(places)[:TOP]]
            ranking[i, : len(best)] = best
    return ranking


def print_head(first: str) -> None:
    print(f"| {first} | " + " | ".join(MEASURES) + " |\n|" + "---|" * (1 + len(MEASURES)))


def print_row(name: str, metrics: dict[str, float]) -> None:
    print(f"| {name} | " + " | ".join(f"{metrics[measure]:.3f}" for measure in MEASURES) + " |", flush=True)


if __name__ == "__main__":
    main()
