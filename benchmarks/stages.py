"""Where a two-stage search spends its time, and what the width of its beam does.

The same index and questions as ours in search.py. *Stages*: the request is built up from its parts, each sent alone to
the engine: the walk through the graph with ten hits; as many hits as there are candidates; these rescored by the
codes; the same as a first stage, handed on to a second one that does nothing; and the whole, whose second stage
computes the cosine. *Beams*: median latency at two recalls (exact int8 cosine, between numbers of candidates
linearly) for beams of one to three times the candidates; this library's is two.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import qdrant_edge as edge
from harness import take_turns, write_results
from qdrant_client import models
from search import CONTENDERS, REAL, K, Request, Workload, build, latency_at, timed, true_cosines, workloads

from pplx_vectorstore.engines.translation import edge_query
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.query import build_query

CANDIDATES = 100  # the default
BEAMS = (1.0, 1.5, 2.0, 3.0)
BEAM_CANDIDATES = (20, 40, 60, 80, 100, 130, 160, 200)
RECALLS = (0.98, 0.99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with corpora/*.md and questions.csv")
    parser.add_argument("--points", type=int, nargs="*", default=[60_000, 500_000], help="of 1024 dimensions")
    parser.add_argument("--real", type=int, default=REAL, help="of 384 dimensions, real ones; 0 for none")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = {}
    for workload in workloads(arguments.data, arguments.real, arguments.points):
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder) / "ours", CONTENDERS["ours"], workload)
            shard = edge.EdgeShard.load(str(Path(folder) / "ours"))
            try:
                results[workload.name] = measure(shard, workload, arguments.rounds)
            finally:
                shard.close()
        print_table(workload.name, results[workload.name])
        write_results("stages", {"k": K, "candidates": CANDIDATES, "rounds": arguments.rounds, "workloads": results})


def measure(shard: edge.EdgeShard, workload: Workload, rounds: int) -> dict[str, Any]:
    """Return the median milliseconds of the request's parts, and of recalls by beam."""
    truth = true_cosines(workload.query_codes.astype(np.float32), workload.codes)
    stages = stage_requests(workload.query_codes)
    beams = {
        f"{beam:g} {candidates}": [whole(row, candidates, beam) for row in workload.query_codes]
        for beam in BEAMS
        for candidates in BEAM_CANDIDATES
    }
    recalls = {}
    for label, requests in beams.items():  # this also warms up
        recalls[label] = truth.recall([[int(point.id) for point in shard.query(request)] for request in requests])
    times = medians(shard, {**stages, **beams}, rounds)
    found: dict[str, dict[str, float | None]] = {}
    for beam in BEAMS:
        labels = [label for label in beams if label.startswith(f"{beam:g} ")]
        searches = [{"recall_int8": recalls[label], "p50_ms": times[label]} for label in labels]
        found[f"{beam:g}"] = {str(recall): latency_at(searches, recall, "int8") for recall in RECALLS}
    return {"stages_ms": {label: times[label] for label in stages}, "ms_at_recall_by_beam": found}


def stage_requests(query_codes: Codes) -> dict[str, list[Request]]:
    """Build the parts, each of which contains the one before it, for all questions."""
    requests = [build_query(row, k=K, candidates=CANDIDATES, with_payload=False) for row in query_codes]
    return {
        "walk": [first_stage(request, limit=K, rescore=False) for request in requests],
        "hand on": [first_stage(request, limit=CANDIDATES, rescore=False) for request in requests],
        "rescore": [first_stage(request, limit=CANDIDATES, rescore=True) for request in requests],
        "second stage": [edge_query(with_formula(request, "$score")) for request in requests],
        "cosine": [edge_query(request) for request in requests],
    }


def first_stage(request: models.QueryRequest, *, limit: int, rescore: bool) -> Request:
    """Take the first stage out of a search."""
    stage = only_prefetch(request)
    quantization = stage.params.quantization.model_copy(update={"rescore": rescore})
    params = stage.params.model_copy(update={"quantization": quantization})
    alone = stage.model_copy(update={"params": params, "limit": limit})
    return edge_query(models.QueryRequest.model_construct(**dict(alone), with_payload=False))


def only_prefetch(request: models.QueryRequest) -> Any:
    (stage,) = cast("list[models.Prefetch]", request.prefetch)
    return stage


def with_formula(request: models.QueryRequest, formula: str) -> models.QueryRequest:
    return request.model_copy(update={"query": models.FormulaQuery.model_construct(formula=formula)})


def whole(codes: Codes, candidates: int, beam: float) -> Request:
    """Build a search with a beam of so many times the candidates."""
    request = build_query(codes, k=K, candidates=candidates, with_payload=False)
    stage = only_prefetch(request)
    params = stage.params.model_copy(update={"hnsw_ef": round(beam * candidates)})
    return edge_query(request.model_copy(update={"prefetch": [stage.model_copy(update={"params": params})]}))


def medians(shard: edge.EdgeShard, requests: Mapping[str, Sequence[Request]], rounds: int) -> dict[str, float]:
    """Send all in turns; return the median milliseconds by label."""
    seconds: dict[str, list[float]] = {label: [] for label in requests}
    for _, label in take_turns(list(requests), rounds):
        seconds[label] += [timed(shard, request) for request in requests[label]]
    return {label: 1000 * float(np.median(some)) for label, some in seconds.items()}


def print_table(name: str, result: Mapping[str, Any]) -> None:
    print(f"\n{name}, {CANDIDATES} candidates\n\n| up to | ms | more |\n|---|---|---|")
    before = 0.0
    for label, ms in result["stages_ms"].items():
        print(f"| {label} | {ms:.3f} | {ms - before:.3f} |")
        before = ms
    print("\n| beam | " + " | ".join(f"ms at recall {recall}" for recall in RECALLS) + " |\n|" + "---|" * 3)
    for beam, found in result["ms_at_recall_by_beam"].items():
        cells = ["–" if ms is None else f"{ms:.3f}" for ms in found.values()]
        print(f"| {beam} times | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
