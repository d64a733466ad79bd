"""Where a search by the bits spends its time, what the width of its beam does, and what searching by the codes takes.

The same index and questions as ours in search.py. *Stages*: the request is built up from its parts, each sent alone to
the engine: the walk through the graph with ten hits; as many hits as there are candidates; the ten best of these by
their codes, which is the whole search. Beside it, the search by the codes with the same number of candidates. *Beams*:
median latency at two recalls (exact cosine of the codes, between numbers of candidates linearly) for beams of one to
three times the candidates; this library's is two.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from harness import take_turns, write_results
from search import CONTENDERS, REAL, K, Request, Workload, build, latency_at, timed, true_cosines, workloads

from pplx_vectorstore.engines.translation import edge_query
from pplx_vectorstore.equal_norms import squared_norm_of
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.query import QueryVector, Ranking, build_query

CANDIDATES = 100  # the default
BY_CODES = "by the codes"
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
            build(Path(folder) / "ours", CONTENDERS["ours, by bits"], workload)
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
    """Build the parts, each of which contains the one before it, and the search by the codes, for all questions."""
    by_bits = [request_of(row, CANDIDATES, by_bits=True) for row in query_codes]
    return {
        "walk": [edge_query(without_rescoring(request, limit=K)) for request in by_bits],
        "hand on": [edge_query(without_rescoring(request, limit=CANDIDATES)) for request in by_bits],
        "compare codes": [edge_query(request) for request in by_bits],
        BY_CODES: [edge_query(request_of(row, CANDIDATES, by_bits=False)) for row in query_codes],
    }


def request_of(codes: Codes, candidates: int, *, by_bits: bool) -> models.QueryRequest:
    vector = QueryVector.of(codes, squared_norm_of(len(codes)))
    return build_query(vector, Ranking(candidates=candidates, by_bits=by_bits), k=K, with_payload=False)


def without_rescoring(request: models.QueryRequest, *, limit: int) -> models.QueryRequest:
    quantization = models.QuantizationSearchParams(rescore=False, oversampling=1.0)
    return with_params(request, quantization=quantization).model_copy(update={"limit": limit})


def with_params(request: models.QueryRequest, **changes: Any) -> models.QueryRequest:
    assert request.params is not None
    return request.model_copy(update={"params": request.params.model_copy(update=changes)})


def whole(codes: Codes, candidates: int, beam: float) -> Request:
    """Build a search with a beam of so many times the candidates."""
    return edge_query(with_params(request_of(codes, candidates, by_bits=True), hnsw_ef=round(beam * candidates)))


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
        print(f"| {label} | {ms:.3f} | {'' if label == BY_CODES else f'{ms - before:.3f}'} |")
        before = ms
    print("\n| beam | " + " | ".join(f"ms at recall {recall}" for recall in RECALLS) + " |\n|" + "---|" * 3)
    for beam, found in result["ms_at_recall_by_beam"].items():
        cells = ["–" if ms is None else f"{ms:.3f}" for ms in found.values()]
        print(f"| {beam} times | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
