"""What `VectorStore.search` costs over the bare request to the embedded engine.

Both send the same request for the same int8 codes to the same shard and read ids, scores and payloads; no
model is involved. The bare request is built beforehand.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import qdrant_edge as edge
from harness import (
    CHUNKS_PER_DOCUMENT,
    DIMENSION,
    make_codes,
    make_documents,
    middle_half,
    print_aim,
    take_turns,
    write_results,
)

from pplx_vectorstore import VectorStore, load_encoder
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.engines.translation import edge_query
from pplx_vectorstore.equal_norms import squared_norm_of
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.query import QueryVector, Ranking, build_query, choose_candidates

K = 10
BATCH = 32
AIM_MS = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=2_000, help="queries, each searched for in both ways")
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    queries = make_codes(arguments.rounds, rng)
    encoder = load_encoder("all-minilm-l6-v2")
    with tempfile.TemporaryDirectory() as folder, VectorStore.open(folder, encoder=encoder) as store:
        store.add(make_documents(arguments.points // CHUNKS_PER_DOCUMENT, rng))
        store.optimize()
        print(f"{store.count()} points, k = {K}; medians, milliseconds per query\n")
        print(f"{'':14}{'raw':>8}{'store':>8}{'ratio':>8}{'more':>8}   middle half of more")
        more = compare_single(store, queries)
        in_batches = compare_batches(store, queries)
    write_results("search_overhead", {"search": more, f"batch of {BATCH}": in_batches})
    more_ms = more["more_ms"]
    print_aim("store.search over the raw request", f"{more_ms:.3f} ms", f"≤ {AIM_MS} ms", more_ms <= AIM_MS)


def compare_single(store: VectorStore, queries: Codes) -> dict[str, float]:
    shard = raw_shard(store)
    requests = [raw_request(row) for row in queries]
    return compare(
        "search",
        lambda i: [read_point(point) for point in shard.query(requests[i])],
        lambda i: store.search(queries[i], k=K),
        len(queries),
    )


def compare_batches(store: VectorStore, queries: Codes) -> dict[str, float]:
    shard = raw_shard(store)
    batches = [list(queries[i : i + BATCH]) for i in range(0, len(queries) - BATCH + 1, BATCH)]
    requests = [edge.QueryBatchRequest([raw_request(row) for row in batch]) for batch in batches]
    return compare(
        f"batch of {BATCH}",
        lambda i: [[read_point(point) for point in points] for points in shard.query_batch(requests[i])],
        lambda i: store.search_batch(batches[i], k=K),
        len(batches),
        queries=BATCH,
    )


def compare(
    name: str, raw: Callable[[int], object], ours: Callable[[int], object], rounds: int, queries: int = 1
) -> dict[str, float]:
    """Print a row, and return the medians of both ways and of their differences, in milliseconds per query."""
    ways = {"raw": raw, "store": ours}
    times: dict[str, npt.NDArray[np.float64]] = {way: np.zeros(rounds) for way in ways}
    for index, way in take_turns(list(ways), rounds):
        start = perf_counter()
        ways[way](index)
        times[way][index] = 1000 * (perf_counter() - start) / queries
    more = times["store"] - times["raw"]
    raw_median, our_median = np.median(times["raw"]), np.median(times["store"])
    print(
        f"{name:14}{raw_median:8.3f}{our_median:8.3f}{our_median / raw_median:8.2f}{np.median(more):8.3f}"
        f"   {middle_half(more)}"
    )
    return {"raw_ms": float(raw_median), "store_ms": float(our_median), "more_ms": float(np.median(more))}


def raw_shard(store: VectorStore) -> Any:
    """Return the engine's own object."""
    return store._client._shard(DEFAULT_COLLECTION)._engine


def raw_request(codes: Codes) -> edge.QueryRequest:
    """Return the request that the store sends for these codes."""
    ranking = Ranking(candidates=choose_candidates(K, None), by_bits=False)
    return edge_query(build_query(QueryVector.of(codes, squared_norm_of(DIMENSION)), ranking, k=K))


def read_point(point: edge.ScoredPoint) -> tuple[object, float, object]:
    return point.id, point.score, point.payload


if __name__ == "__main__":
    main()
