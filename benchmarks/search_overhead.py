"""What `VectorStore.search` costs over the bare request to the embedded engine.

Both send the same request for the same int8 codes to the same shard and read ids, scores and payloads;
no model is involved. The bare request is built beforehand.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np
import qdrant_edge as edge
from harness import made_up_codes, made_up_documents, print_aim, spread, time_interleaved

from pplx_vectorstore import VectorStore, load_encoder
from pplx_vectorstore.engines.translation import edge_query
from pplx_vectorstore.query import build_query, choose_candidates
from pplx_vectorstore.quantization import Codes

K = 10
BATCH = 32
AIM_MS = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1000, help="searches of each kind")
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    queries = made_up_codes(arguments.rounds, rng)
    with tempfile.TemporaryDirectory() as folder:
        with VectorStore.open(folder, encoder=load_encoder("all-minilm-l6-v2")) as store:
            store.add(made_up_documents(arguments.points, rng))
            store.optimize()
            print(f"{arguments.points} points, k = {K}, {arguments.rounds} pairs, milliseconds per query\n")
            print(f"{'':14}{'raw':>8}{'store':>8}{'ratio':>7}{'more':>8}   middle half of more")
            more = compare_single(store, queries)
            compare_batches(store, queries)
            print_aim("store.search over the raw request", f"{more:.3f} ms more", f"≤ {AIM_MS} ms", more <= AIM_MS)


def compare_single(store: VectorStore, queries: Codes) -> float:
    """Print and return how many milliseconds more a search takes."""
    shard = raw_shard(store)
    requests = [raw_request(row) for row in queries]
    seconds = time_interleaved(
        {
            "raw": lambda i: [read_point(point) for point in shard.query(requests[i])],
            "store": lambda i: store.search(queries[i], k=K),
        },
        len(queries),
    )
    return print_row("search", seconds, 1)


def compare_batches(store: VectorStore, queries: Codes) -> None:
    shard = raw_shard(store)
    batches = [list(queries[i : i + BATCH]) for i in range(0, len(queries) - BATCH + 1, BATCH)]
    requests = [edge.QueryBatchRequest([raw_request(row) for row in batch]) for batch in batches]
    seconds = time_interleaved(
        {
            "raw": lambda i: [
                [read_point(point) for point in found] for found in shard.query_batch(requests[i % len(batches)])
            ],
            "store": lambda i: store.search_batch(batches[i % len(batches)], k=K),
        },
        4 * len(batches),
    )
    print_row(f"batch of {BATCH}", seconds, BATCH)


def raw_shard(store: VectorStore) -> Any:
    """Return the engine's own object."""
    return store._client._shard(store._collection)._shard


def raw_request(codes: Codes) -> edge.QueryRequest:
    """Return the request that the store sends for these codes."""
    request = build_query(codes, k=K, candidates=choose_candidates(K, None))
    return edge_query(request, ignore_quantization=False)


def read_point(point: edge.ScoredPoint) -> tuple[object, float, object]:
    return point.id, point.score, point.payload


def print_row(name: str, seconds: dict[str, Any], queries: int) -> float:
    raw, ours = (1000 * seconds[variant] / queries for variant in ("raw", "store"))
    more = float(np.median(ours - raw))
    ratio = np.median(ours) / np.median(raw)
    medians = f"{np.median(raw):8.3f}{np.median(ours):8.3f}"
    print(f"{name:14}{medians}{ratio:7.2f}{more:8.3f}   {spread(ours - raw)}")
    return more


if __name__ == "__main__":
    main()
