"""How much of an exact search the defaults find, by dimension: on vectors made of real ones, and on made-up ones.

*Real*: vectors of vectors.py (60,000 passages, all-MiniLM-L6-v2), rotated into as many dimensions, or projected onto
fewer random directions; longer ones get noise, so that no dimension follows from others. The queries are 200 of that
module's questions. *Made*: fifty around each of many centres, with queries of the same kind. As many vectors of each
dimension as leave a graph to be walked (below 10 MB of codes, Qdrant compares all). recall@10 is judged by the exact
cosine of the float vectors and of the stored codes, for both ways: which of them the store chooses depends on the
dimension.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from harness import print_aim, write_results
from search import CONTENDERS, K, Request, Workload, build, true_cosines, workload
from vectors import Floats, Vectors, expand, real_vectors

from pplx_vectorstore.engines.translation import edge_query
from pplx_vectorstore.equal_norms import squared_norm_of
from pplx_vectorstore.operations.access import MANY_BITS
from pplx_vectorstore.query import QueryVector, Ranking, build_query, choose_candidates

SIZES = {128: 100_000, 256: 60_000, 384: 60_000, 1024: 20_000, 2560: 10_000}
QUERIES = 200
AROUND_A_CENTRE = 50
AIM = 0.97


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with corpora/*.md and questions.csv")
    arguments = parser.parse_args()
    real = real_vectors(arguments.data, 60_000)
    results: dict[str, dict[str, Any]] = {}
    print("| vectors | dimension | number | way | recall@10, float | codes |\n|" + "---|" * 6)
    for dimension, n in SIZES.items():
        for kind, vectors in {"real": resize(real, n, dimension), "made": made(n, dimension)}.items():
            some = Vectors(vectors.points, vectors.queries[:QUERIES])
            found = measure(workload(f"{kind} {dimension}", some))
            results.setdefault(kind, {})[str(dimension)] = {"points": n, **found}
            for way, recalls in found.items():
                cells = f"{recalls['float']:.4f} | {recalls['int8']:.4f}"
                print(f"| {kind} | {dimension} | {n:,} | {way} | {cells} |", flush=True)
    write_results("dimensions", results)
    worst = min(
        found["bits" if int(dimension) >= MANY_BITS else "codes"]["int8"]
        for of_kind in results.values()
        for dimension, found in of_kind.items()
    )
    print_aim("the store's choice, the worst of all, by the codes' cosine", f"{worst:.4f}", f"≥ {AIM}", worst >= AIM)


def resize(real: Vectors, n: int, dimension: int) -> Vectors:
    """Return n real vectors in so many dimensions."""
    width = real.points.shape[1]
    if dimension >= width:
        return expand(real, n, dimension) if dimension > width else Vectors(real.points[:n], real.queries)
    made = expand(real, n, width)  # more than there are, where so many are wanted
    directions = np.linalg.qr(np.random.default_rng(3).normal(size=(width, dimension)))[0].astype(np.float32)
    return Vectors(made.points @ directions, made.queries @ directions)


def made(n: int, dimension: int) -> Vectors:
    """Make vectors around centres, and queries around them too."""
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(n // AROUND_A_CENTRE, dimension)).astype(np.float32)

    def around(size: int) -> Floats:
        noise: Floats = rng.normal(size=(size, dimension)).astype(np.float32)
        return centres[rng.integers(len(centres), size=size)] + noise

    return Vectors(around(n), around(QUERIES))


def measure(work: Workload) -> dict[str, dict[str, float]]:
    """Index the vectors and return the recall of the default search by way and by truth."""
    truths = {
        "float": true_cosines(work.vectors.queries, work.vectors.points),
        "int8": true_cosines(work.query_codes.astype(np.float32), work.codes),
    }
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "ours", CONTENDERS["ours, by bits"], work)
        shard = edge.EdgeShard.load(str(Path(folder) / "ours"))
        try:
            found = {way: [hits(shard, request) for request in requests(work, way)] for way in ("codes", "bits")}
        finally:
            shard.close()
    return {way: {kind: truth.recall(ids) for kind, truth in truths.items()} for way, ids in found.items()}


def requests(work: Workload, way: str) -> list[Request]:
    ranking = Ranking(candidates=choose_candidates(K, None), by_bits=way == "bits")
    squared_norm = squared_norm_of(work.codes.shape[1])
    vectors = [QueryVector.of(row, squared_norm) for row in work.query_codes]
    return [edge_query(build_query(vector, ranking, k=K, with_payload=False)) for vector in vectors]


def hits(shard: edge.EdgeShard, request: Request) -> list[int]:
    return [int(point.id) for point in shard.query(request)]


if __name__ == "__main__":
    main()
