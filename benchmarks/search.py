"""This library's two ways of searching against the ways of keeping vectors in Qdrant that people use instead.

Every contender holds the same vectors in the same engine (embedded, in this process), built by the same number of
threads, without payload; all are open at once and take turns with the same questions, k = 10. "ours, by bits" and
"ours, by codes" search the same index; "ours" in the ratios is the one that the library chooses. "bits and formula"
is what the library did before all its vectors had one norm: each point carries the norm of its codes, and a formula
turns the distances of the candidates into cosines. Requests are made beforehand and sent to the engine directly: what
`VectorStore.search` adds is in search_overhead.py. Vectors and questions: see vectors.py.

recall@10 is the share of hits that are at least as near as the tenth best of all, by brute force: once by the cosine of
the float vectors, once by the cosine of their int8 codes. p50 and p95 are of all rounds together, the spread is that of
the medians of the rounds. Every step of the graph walk reads a vector, so those that it reads have to be in memory: the
column "walk" is their size, all vectors or all their short forms. "resident" is what a fresh process that opened the
index and sent every question held of it: of the mapped files what was read, and its own pages. Vectors on disk that are
read only to score candidates again are part of that, though the system takes their pages back when it needs them. The
write-ahead log, which all contenders have, is left out of disk and memory.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import qdrant_edge as edge
from harness import print_aim, take_turns, write_results
from vectors import Floats, Vectors, expand, real_vectors

from pplx_vectorstore.collection import CollectionConfig, vector_params
from pplx_vectorstore.engines.translation import edge_query, edge_vector_params
from pplx_vectorstore.equal_norms import quantize_to_norm, squared_norm_of
from pplx_vectorstore.operations.access import MANY_BITS
from pplx_vectorstore.quantization import Codes, norms, quantize_absmax
from pplx_vectorstore.query import QueryVector, Ranking, build_query

K = 10
AIM_RECALL = 0.98
LATENCY = {kind: f"latency at {AIM_RECALL} {kind}" for kind in ("float", "int8")}
# Of ratios of ours over float32.
AIMS = {**dict.fromkeys(LATENCY.values(), 1.0), "disk": 0.25, "memory for vectors": 0.125, "build": 1.0}
BATCH = 500
REAL = 60_000
VECTOR = "codes"

_TOLERANCE = np.finfo(np.float32).eps * 8  # cosines nearer to each other than this are equal

# Where the parts of an index lie in its folder, the first that fits.
PARTS = {
    "log": re.compile(r"/wal/"),
    "quantized": re.compile(r"/vector_storage-[^/]*/quantized"),
    "vectors": re.compile(r"/vector_storage-"),
    "graph": re.compile(r"/vector_index-"),
    "other": re.compile(r""),
}

Points = Callable[[int, int], list[edge.Point]]
Request = edge.QueryRequest


class Contender(NamedTuple):
    """One way of keeping vectors.

    Attributes:
        params: How the engine keeps them, given the dimension.
        way: How they are stored and searched: "codes" and "bits" are this library's, "formula" was, "floats" is cosine.
        settings: What searches are tried with: candidates for ours, hnsw_ef or (hnsw_ef, oversampling) for others.
        graph_reads: Which part the graph walk reads: "vectors" or "quantized".
        shares: Whose index is searched, if not its own.
    """

    params: Callable[[int], edge.EdgeVectorParams]
    way: Literal["codes", "bits", "formula", "floats"]
    settings: Sequence[Any]
    graph_reads: str
    shares: str | None = None


def ours(config: CollectionConfig | None = None) -> Callable[[int], edge.EdgeVectorParams]:
    return lambda dimension: edge_vector_params(next(iter(vector_params(dimension, config).values())))


def peer(
    quantization: Any = None,
    datatype: edge.VectorStorageDatatype | None = None,
    hnsw: edge.HnswIndexConfig | None = None,
) -> Callable[[int], edge.EdgeVectorParams]:
    """Keep floats under cosine; with a quantization, they are on disk and their short form is in memory."""
    return lambda dimension: edge.EdgeVectorParams(
        size=dimension,
        distance=edge.Distance.Cosine,
        datatype=datatype,
        memory=edge.Memory.Cold if quantization else None,
        quantization_config=quantization,
        hnsw_config=hnsw,
    )


EFS = (16, 32, 64, 128, 256, 512, 1024)
BEAMS = (16, 32, 48, 64, 100, 200, 400)
CANDIDATES = (40, 60, 100, 200, 400, 800)
PINNED = edge.Memory.Pinned

CONTENDERS = {
    "ours, by bits": Contender(ours(), "bits", CANDIDATES, "quantized"),
    "ours, by codes": Contender(ours(), "codes", BEAMS, "vectors", shares="ours, by bits"),
    "ours, by plain bits": Contender(ours(CollectionConfig(query_encoding="binary")), "bits", CANDIDATES, "quantized"),
    "bits and formula": Contender(ours(), "formula", CANDIDATES, "quantized"),
    "float32": Contender(peer(), "floats", EFS, "vectors"),
    # Built with the beam of ours: the engine's default is half of that.
    "float32, ef_construct 200": Contender(peer(hnsw=edge.HnswIndexConfig(16, 200, 10_000)), "floats", EFS, "vectors"),
    "float32 + scalar int8": Contender(
        peer(edge.ScalarQuantizationConfig(edge.ScalarType.Int8, memory=PINNED)),
        "floats",
        [(ef, 2.0) for ef in EFS],
        "quantized",
    ),
    "float32 + binary": Contender(
        peer(edge.BinaryQuantizationConfig(memory=PINNED)),
        "floats",
        [(64, 2.0), (64, 4.0), (128, 8.0), (256, 16.0), (512, 32.0)],
        "quantized",
    ),
    # The first stage of ours, over floats: bits weighed by the query, and the same beam while building.
    "float32 + binary, weighed": Contender(
        peer(
            edge.BinaryQuantizationConfig(
                memory=PINNED, query_encoding=edge.BinaryQuantizationQueryEncoding.Scalar8Bits
            ),
            hnsw=edge.HnswIndexConfig(16, 200, 10_000),
        ),
        "floats",
        [(64, 2.0), (64, 4.0), (64, 6.0), (128, 8.0), (256, 16.0), (512, 32.0)],
        "quantized",
    ),
    "float16": Contender(peer(datatype=edge.VectorStorageDatatype.Float16), "floats", EFS, "vectors"),
    "turbo8": Contender(peer(datatype=edge.VectorStorageDatatype.Turbo8), "floats", EFS, "vectors"),
}


class Workload(NamedTuple):
    """Vectors, their codes, and the questions, in both forms."""

    name: str
    vectors: Vectors
    codes: Codes
    query_codes: Codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with corpora/*.md and questions.csv")
    parser.add_argument("--points", type=int, nargs="*", default=[60_000, 500_000], help="of 1024 dimensions")
    parser.add_argument("--real", type=int, default=REAL, help="of 384 dimensions, real ones; 0 for none")
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="search", help="of the file of results")
    parser.add_argument("--memory-run", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_run:
        (name,) = arguments.contenders
        print(json.dumps(memory_of(CONTENDERS[name], *arguments.memory_run)))
        return
    results = {}
    for workload in workloads(arguments.data, arguments.real, arguments.points):
        results[workload.name] = compare(workload, arguments.contenders, arguments.rounds)
        write_results(arguments.name, {"k": K, "rounds": arguments.rounds, "workloads": results})
    for name, result in results.items():
        print_ratios(name, result)


def workloads(data: Path, real: int, points: Sequence[int]) -> Iterator[Workload]:
    base = real_vectors(data, real or REAL)
    if real:
        yield workload(f"{real:,} × {base.points.shape[1]}", base)
    for n in points:
        yield workload(f"{n:,} × 1024", expand(base, n, 1024))


def workload(name: str, vectors: Vectors) -> Workload:
    codes = np.concatenate([quantize_to_norm(rows) for rows in np.array_split(vectors.points, 64)])
    return Workload(name, vectors, codes, quantize_to_norm(vectors.queries))


def compare(workload: Workload, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Build every contender, search with all in turns, and return what was measured by name."""
    print(f"\n## {workload.name}, {len(workload.query_codes)} questions\n", flush=True)
    exact = {
        "float": true_cosines(workload.vectors.queries, workload.vectors.points),
        "int8": true_cosines(workload.query_codes.astype(np.float32), workload.codes),
    }
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            other = CONTENDERS[name].shares
            if other is None:
                results[name] = build(Path(folder) / name, CONTENDERS[name], workload)
                print(f"{name:24}built in {results[name]['build_seconds']:.0f} s", flush=True)
            else:
                results[name] = dict(results[other])
        paths = {name: Path(folder) / (CONTENDERS[name].shares or name) for name in names}
        for name, path in paths.items():
            results[name]["memory_bytes"] = run_memory(path, name, workload)
        opened = {path: edge.EdgeShard.load(str(path)) for path in set(paths.values())}
        shards = {name: opened[path] for name, path in paths.items()}
        try:
            settings = [(name, setting) for name in names for setting in CONTENDERS[name].settings]
            curves = measure(shards, settings, workload, exact, rounds)
        finally:
            for shard in opened.values():
                shard.close()
    for name in names:
        results[name]["searches"] = curves[name]
        results[name]["walk_bytes"] = results[name]["disk_bytes"][CONTENDERS[name].graph_reads]
    print_table(results)
    return results


def build(path: Path, contender: Contender, workload: Workload) -> dict[str, Any]:
    """Write and index all points; return seconds, bytes on disk by part, and the number of segments."""
    n, dimension = workload.codes.shape
    config = edge.EdgeConfig(
        vectors={VECTOR: contender.params(dimension)},
        # Smaller parts are indexed too, as by this library; the engine's default would leave them out.
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),
    )
    path.mkdir()
    shard = edge.EdgeShard.create(str(path), config)
    if contender.way == "formula":
        schema = edge.FloatIndexParams(enable_hnsw=False)
        shard.update(edge.UpdateOperation.create_field_index("norm", schema))
    start = perf_counter()
    for first in range(0, n, BATCH):
        shard.update(edge.UpdateOperation.upsert_points(points_of(contender, workload, first)))
    written = perf_counter()
    shard.optimize()
    shard.flush()
    indexed = perf_counter()
    segments = shard.info().segments_count
    shard.close()
    disk: Counter[str] = Counter()
    for file in path.rglob("*"):
        if file.is_file():
            disk[part_of(str(file))] += 512 * file.stat().st_blocks
    return {
        "write_seconds": written - start,
        "build_seconds": indexed - start,
        "index_seconds": indexed - written,
        "disk_bytes": dict(disk),
        "segments": segments,
    }


def points_of(contender: Contender, workload: Workload, first: int) -> list[edge.Point]:
    """Make the points of a batch as a contender stores them."""
    floats = workload.vectors.points[first : first + BATCH]
    if contender.way == "floats":
        return [edge.Point(first + i, {VECTOR: row.tolist()}) for i, row in enumerate(floats)]
    payloads: list[dict[str, float] | None] = [None] * len(floats)
    codes = workload.codes[first : first + BATCH]
    if contender.way == "formula":
        codes = quantize_absmax(floats)
        payloads = [{"norm": norm} for norm in norms(codes).tolist()]
    rows = (codes.astype(np.int16) + 128).tolist()
    return [
        edge.Point(first + i, {VECTOR: row}, payload)
        for i, (row, payload) in enumerate(zip(rows, payloads, strict=True))
    ]


def part_of(path: str) -> str:
    return next(name for name, pattern in PARTS.items() if pattern.search(path))


def requests_of(contender: Contender, setting: Any, queries: Floats, query_codes: Codes) -> list[Request]:
    if contender.way == "formula":
        return [formula_request(row, setting) for row in quantize_absmax(queries)]
    if contender.way != "floats":
        ranking = Ranking(candidates=setting, by_bits=contender.way == "bits")
        vectors = [QueryVector.of(row, squared_norm_of(len(row))) for row in query_codes]
        return [edge_query(build_query(vector, ranking, k=K, with_payload=False)) for vector in vectors]
    hnsw_ef, oversampling = setting if isinstance(setting, tuple) else (setting, None)
    quantization = oversampling and edge.QuantizationSearchParams(rescore=True, oversampling=oversampling)
    params = edge.SearchParams(hnsw_ef=hnsw_ef, quantization=quantization)
    return [Request(limit=K, query=edge.Query.Nearest(row.tolist(), VECTOR), params=params) for row in queries]


def formula_request(codes: Codes, candidates: int) -> Request:
    """Search by the bits, rescore by Euclid, and turn the distance d of vectors of any norm into the cosine.

    From ``d² = |q|² + |x|² - 2 q·x`` follows ``q·x / (|q| |x|) = (|q|² + |x|² - d²) / (2 |q| |x|)``.
    """
    e = edge.Expression
    norm = float(norms(codes))
    rescored = edge.Prefetch(
        prefetches=[],
        limit=candidates,
        query=edge.Query.Nearest((codes.astype(np.int16) + 128).tolist(), VECTOR),
        params=edge.SearchParams(
            hnsw_ef=2 * candidates, quantization=edge.QuantizationSearchParams(rescore=True, oversampling=1.0)
        ),
    )
    distance, length = e.Variable("$score"), e.Variable("norm")
    squares = e.Sum([e.Constant(norm**2), e.Mult([length, length]), e.Neg(e.Mult([distance, distance]))])
    cosine = edge.Formula(e.Div(squares, e.Mult([e.Constant(2 * norm), length]), 0.0), {})
    return Request(limit=K, query=cosine, prefetches=[rescored])


class Truth(NamedTuple):
    """What is needed to judge hits: unit vectors, and the cosine of the k-th best, by question."""

    queries: Floats
    points: npt.NDArray[Any]
    norms: Floats
    least: npt.NDArray[np.float64]

    def recall(self, found: Sequence[Sequence[int]]) -> float:
        """Return the share of hits that are among the k best; equal cosines count."""
        hits = 0
        for query, least, ids in zip(self.queries, self.least, found, strict=True):
            cosines = self.points[ids].astype(np.float32) @ query / self.norms[ids]
            hits += int(np.count_nonzero(cosines >= least - _TOLERANCE))
        return hits / (K * len(found))


def true_cosines(queries: Floats, points: npt.NDArray[Any]) -> Truth:
    """Find by brute force the cosine of each question's k-th best."""
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    best = np.full((len(queries), K), -np.inf)
    norms = np.empty(len(points), np.float32)
    for first in range(0, len(points), 20_000):
        rows = points[first : first + 20_000].astype(np.float32)
        norms[first : first + len(rows)] = np.linalg.norm(rows, axis=1)
        cosines = queries @ rows.T / norms[first : first + len(rows)]
        best = np.partition(np.concatenate([best, cosines], axis=1), -K, axis=1)[:, -K:]
    return Truth(queries, points, norms, best.min(axis=1))


def measure(
    shards: dict[str, edge.EdgeShard],
    settings: Sequence[tuple[str, Any]],
    workload: Workload,
    exact: dict[str, Truth],
    rounds: int,
) -> dict[str, list[dict[str, Any]]]:
    """Search with every contender's every setting in turns; return its figures."""
    requests = {
        f"{name} {setting}": requests_of(CONTENDERS[name], setting, workload.vectors.queries, workload.query_codes)
        for name, setting in settings
    }
    shard_of = {f"{name} {setting}": shards[name] for name, setting in settings}
    recalls = {}
    for label, some in requests.items():  # this also warms up
        found = [[int(point.id) for point in shard_of[label].query(request)] for request in some]
        recalls[label] = {f"recall_{kind}": truth.recall(found) for kind, truth in exact.items()}
    seconds: dict[str, list[list[float]]] = {label: [] for label in requests}
    rates: dict[str, list[float]] = {label: [] for label in requests}
    for _, label in take_turns(list(requests), rounds):
        shard, some = shard_of[label], requests[label]
        seconds[label].append([timed(shard, request) for request in some])
        with ThreadPoolExecutor(2) as pool:
            start = perf_counter()
            list(pool.map(partial(search_all, shard), [some[::2], some[1::2]]))
            rates[label].append(len(some) / (perf_counter() - start))
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in shards}
    for name, setting in settings:
        label = f"{name} {setting}"
        times = 1000 * np.array(seconds[label])
        medians = np.median(times, axis=1)
        curves[name].append(
            {
                "setting": setting,
                **recalls[label],
                "p50_ms": float(np.median(times)),
                "p50_of_rounds_ms": [float(medians.min()), float(medians.max())],
                "p95_ms": float(np.percentile(times, 95)),
                "queries_per_second": float(np.median(rates[label])),
                "queries_per_second_of_rounds": [min(rates[label]), max(rates[label])],
            }
        )
    return curves


def search_all(shard: edge.EdgeShard, requests: Sequence[Request]) -> None:
    for request in requests:
        shard.query(request)


def timed(shard: edge.EdgeShard, request: Request) -> float:
    start = perf_counter()
    shard.query(request)
    return perf_counter() - start


def run_memory(path: Path, name: str, workload: Workload) -> dict[str, int]:
    """Open and search an index in a fresh process; return its resident bytes by part."""
    queries = path.parent / "queries.npz"
    np.savez(queries, queries=workload.vectors.queries, codes=workload.query_codes)
    command = [sys.executable, __file__, ".", "--contenders", name, "--memory-run", str(path), str(queries)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def memory_of(contender: Contender, path: Path, queries: Path) -> dict[str, int]:
    with np.load(queries) as arrays:
        # The setting in the middle: about where recalls are compared.
        setting = contender.settings[len(contender.settings) // 2]
        requests = requests_of(contender, setting, arrays["queries"], arrays["codes"])
        few = Vectors(arrays["queries"][:BATCH], arrays["queries"])
    with tempfile.TemporaryDirectory() as folder:  # loads all code, and makes the engine's threads and buffers
        build(Path(folder) / "few", contender, workload("few", few))
        query_all(Path(folder) / "few", requests)
    before = resident(path)
    shard = query_all(path, requests)
    after = resident(path)
    shard.close()
    return {part: after[part] - before[part] for part in sorted(after)}


def query_all(path: Path, requests: Sequence[Request]) -> edge.EdgeShard:
    shard = edge.EdgeShard.load(str(path))
    search_all(shard, requests)
    return shard


def resident(path: Path) -> Counter[str]:
    """Return this process's resident bytes: of the index's mapped files by part, and of its own pages."""
    sizes: Counter[str] = Counter()
    part = ""
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mapped = len(line.split()) > 5 and "[" not in line
            part = part_of(line) if str(path) in line else "" if mapped else "own"
        elif line.startswith("Rss:") and part not in {"", "log"}:
            sizes[part] += 1024 * int(line.split()[1])
    return sizes


def print_table(results: dict[str, Any]) -> None:
    columns = ("setting", "recall float", "int8", "p50 ms", "of rounds", "p95", "queries/s")
    print("\n| contender | " + " | ".join(columns) + " |\n|" + "---|" * (1 + len(columns)))
    for name, result in results.items():
        for row in result["searches"]:
            low, high = row["p50_of_rounds_ms"]
            print(
                f"| {name} | {row['setting']} | {row['recall_float']:.4f} | {row['recall_int8']:.4f} "
                f"| {row['p50_ms']:.2f} | {low:.2f} to {high:.2f} | {row['p95_ms']:.2f} "
                f"| {row['queries_per_second']:.0f} |"
            )
    print("\n| contender | MB: walk | resident | on disk | build s | segments |\n|" + "---|" * 6)
    for name, result in results.items():
        print(
            f"| {name} | {result['walk_bytes'] / 1e6:.0f} | {resident_bytes(result) / 1e6:.0f} "
            f"| {disk_bytes(result) / 1e6:.0f} | {result['build_seconds']:.0f} | {result['segments']} |",
            flush=True,
        )


def disk_bytes(result: Mapping[str, Any]) -> int:
    return sum(size for part, size in result["disk_bytes"].items() if part != "log")


def resident_bytes(result: Mapping[str, Any]) -> int:
    """Return the bytes that a fresh process held of the index."""
    return sum(result["memory_bytes"].values())


def latency_at(searches: Sequence[dict[str, Any]], recall: float, kind: str) -> float | None:
    """Return the least median milliseconds at which a contender reaches a recall, between its settings linearly."""
    rows = sorted((row[f"recall_{kind}"], row["p50_ms"]) for row in searches)
    reached = [row["p50_ms"] for row in searches if row[f"recall_{kind}"] >= recall]
    for (low, before), (high, after) in pairwise(rows):
        if low < recall <= high:
            reached.append(before + (after - before) * (recall - low) / (high - low))
    return min(reached, default=None)


def ratios(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """Return one contender over another: latency at equal recall, unless one falls short of it; disk, memory, build."""
    found = {}
    # Vectors of a user of floats are judged by floats; those of a user of int8 codes, by these.
    for kind, what in LATENCY.items():
        mine_ms, their_ms = (latency_at(one["searches"], AIM_RECALL, kind) for one in (mine, theirs))
        if mine_ms is not None and their_ms is not None:
            found[what] = mine_ms / their_ms
    return found | {
        "disk": disk_bytes(mine) / disk_bytes(theirs),
        "memory for vectors": mine["walk_bytes"] / theirs["walk_bytes"],
        "resident": resident_bytes(mine) / resident_bytes(theirs),
        "build": mine["build_seconds"] / theirs["build_seconds"],
    }


def choice(workload: str) -> str:
    """Return which of ours the library chooses for vectors in memory, given the workload's name."""
    dimension = int(workload.rpartition(" ")[2])
    return "ours, by bits" if dimension >= MANY_BITS else "ours, by codes"


def print_ratios(name: str, result: Mapping[str, Any]) -> None:
    """Print ours over every other contender, and what was aimed at against float32."""
    mine = choice(name)
    if mine not in result:
        return
    for other in result:
        if other != mine:
            over = ratios(result[mine], result[other])
            print(f"{name}, ours over {other}: " + ", ".join(f"{what} {ratio:.2f}" for what, ratio in over.items()))
    if "float32" in result:
        over = ratios(result[mine], result["float32"])
        for what, aim in AIMS.items():
            found = f"{over[what]:.3f}" if what in over else "one of them does not reach the recall"
            print_aim(f"{name}, ours over float32, {what}", found, f"≤ {aim}", over.get(what, np.inf) <= aim)


if __name__ == "__main__":
    main()
