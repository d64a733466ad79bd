"""What Qdrant 1.16 to 1.20 brought that this library could use, each with and without it, in turns.

- *acorn*: recall@10 and p50 of filtered searches by the codes (expanded vectors of vectors.py), by filters on one
  indexed field and on two, of fields that are spread at random and of such as follow the content (parts of about one
  size along the first two principal axes of the vectors); with the collection's settings, by which Qdrant compares
  everything that a strict filter leaves, and with so low a full_scan_threshold that it walks the graph even then, as
  it does in large collections;
- *inline*: size, indexing and cold searches of a graph that holds codes and bits; starts the server of --binary itself,
  and restarts it with an empty page cache before each row of searches, which takes root;
- *unoptimized*: small writes, and what is read at once after them, with prevent_unoptimized;
- *insert*: points of a first load, by update_mode;
- *ids*: memory and searches by placement of the table of ids, of the embedded engine, which has it, too;
- *strict*: what opening, writing and searching say where strict mode forbids it.

The server is the one of --url or QDRANT_URL, on this machine. ::

    QDRANT_URL=http://localhost:6333 python benchmarks/server_features.py DATA --only acorn strict
    python benchmarks/server_features.py DATA --only inline --binary /usr/bin/qdrant
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil  # type: ignore[import-untyped] # ships no types
import qdrant_edge as edge
from harness import CHUNKS_PER_DOCUMENT, RESULTS, read_results, take_turns, write_results
from qdrant_client import QdrantClient, models
from vectors import expand, real_vectors

from pplx_vectorstore import (
    Chunk,
    CollectionConfig,
    Document,
    PrecomputedEncoder,
    VectorStore,
    quantize_to_norm,
)
from pplx_vectorstore.collection import VECTOR_NAME
from pplx_vectorstore.equal_norms import squared_norm_of
from pplx_vectorstore.errors import PplxVectorStoreError
from pplx_vectorstore.points import SHIFT, derive_point_id
from pplx_vectorstore.qdrant.conversion import as_clients, as_ours
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.query import QueryVector, Ranking, build_query

K = 10
CANDIDATES = 100
BLOCK = 20_000
ACORN = {
    "off": (CANDIDATES, None),
    "twice the beam": (2 * CANDIDATES, None),
    "on": (CANDIDATES, models.AcornSearchParams(enable=True)),
    "on for all": (CANDIDATES, models.AcornSearchParams(enable=True, max_selectivity=1.0)),
}
WALKED_KB = 10  # of codes in a segment: Qdrant's least
LOADED = 60_000  # more than a segment holds before Qdrant indexes it
SMALL_DOCUMENTS = 50
IDS_DIMENSION = 16
FIRST = 20
PLACEMENTS = ("Pinned", "Cached", "Cold")
NAME = "server_features"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with corpora/*.md and questions.csv")
    parser.add_argument("--url", default=os.environ.get("QDRANT_URL"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--chunks", type=int, default=100_000, help="of acorn and inline")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--ids", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--binary", help="the server's program, for inline")
    parser.add_argument("--port", type=int, default=16743, help="for inline; gRPC is on the next")
    parser.add_argument("--ids-run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ids_run:
        print(json.dumps(measure_ids(arguments.ids_run, arguments.ids)))
        return
    for part in arguments.only:
        print(f"\n{part}\n", flush=True)
        found = PARTS[part](arguments)
        kept = read_results(NAME) if (RESULTS / f"{NAME}.json").exists() else {}
        write_results(NAME, {**kept, part: found})


@contextlib.contextmanager
def new_store(url: str, dimension: int, **options: Any) -> Iterator[VectorStore]:
    """Yield a store of a new collection, which is deleted afterwards."""
    collection = f"features-{uuid.uuid4().hex}"
    encoder = PrecomputedEncoder("real", dimension)
    with VectorStore.connect(url, collection=collection, encoder=encoder, **options) as store:
        try:
            yield store
        finally:
            store._client.delete_collection(collection)


def change(store: VectorStore, **options: Any) -> None:
    """Change the settings of a store's collection."""
    store._client.update_collection(collection_name(store), **options)


def collection_name(store: VectorStore) -> str:
    return str(store._session.points.collection)


def wait_until_green(store: VectorStore) -> None:
    """Wait until the server has nothing left to do, a while after it may have begun."""
    time.sleep(2)
    while store._client.get_collection(collection_name(store)).status != models.CollectionStatus.GREEN:
        time.sleep(0.5)


def codes_and_queries(data: Path, n: int, dimension: int, queries: int) -> tuple[Codes, Codes]:
    made = expand(real_vectors(data, 60_000), n, dimension)
    codes = np.concatenate([quantize_to_norm(made.points[i : i + BLOCK]) for i in range(0, n, BLOCK)])
    return codes, quantize_to_norm(made.queries[:queries])


def documents_of(codes: Codes, metadata: Sequence[dict[str, str]] | None = None, first: int = 0) -> Iterator[Document]:
    for start in range(0, len(codes), CHUNKS_PER_DOCUMENT):
        stop = min(start + CHUNKS_PER_DOCUMENT, len(codes))
        chunks = [Chunk(text=f"chunk number {i}", metadata=metadata[i] if metadata else {}) for i in range(start, stop)]
        yield Document(id=str(first + start // CHUNKS_PER_DOCUMENT), chunks=chunks, vectors=codes[start:stop])


# --- ACORN -------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """Filters of one kind: pairs of a field and the share of its values that match."""

    kind: str
    share: str
    fields: dict[str, tuple[int, int]]  # of how many values there are, how many match


CASES = [
    Case(kind, share, {f"{kind}_{field}": counts for field, counts in fields.items()})
    for kind in ("random", "content")
    for share, fields in (
        ("all", {}),
        ("90 %", {"tenth": (10, 9)}),
        ("70 %", {"tenth": (10, 7)}),
        ("50 %", {"half": (2, 1)}),
        ("30 %", {"tenth": (10, 3)}),
        ("10 %", {"tenth": (10, 1)}),
        ("1 %", {"hundredth": (100, 1)}),
        ("49 % by two", {"tenth": (10, 7), "other": (10, 7)}),
        ("30 % by two", {"half": (2, 1), "other": (10, 6)}),
        ("9 % by two", {"tenth": (10, 3), "other": (10, 3)}),
        ("1 % by two", {"tenth": (10, 1), "other": (10, 1)}),
    )
]


def compare_acorn(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Search with filters, with and without ACORN."""
    codes, queries = codes_and_queries(arguments.data, arguments.chunks, 384, arguments.queries)
    fields = field_values(codes)
    metadata = [
        {field: str(value) for field, value in zip(fields, row, strict=True)}
        for row in np.stack(list(fields.values()), axis=1).tolist()
    ]
    units = codes / np.linalg.norm(codes.astype(np.float32), axis=1, keepdims=True)
    cosines = (queries / np.linalg.norm(queries.astype(np.float32), axis=1, keepdims=True)) @ units.T
    places = {derive_point_id(str(i // CHUNKS_PER_DOCUMENT), i % CHUNKS_PER_DOCUMENT): i for i in range(len(codes))}
    found = []
    with new_store(arguments.url, 384, index_fields=dict.fromkeys(fields, "keyword")) as store:
        store.add(documents_of(codes, metadata))
        store.optimize()
        print(f"| threshold, way | fields | share | {' | '.join(ACORN)} (recall, p50 in ms) |\n|" + "---|" * 7)
        for threshold in ("default", "walked"):
            if threshold == "walked":
                low = models.HnswConfigDiff(full_scan_threshold=WALKED_KB)
                change(store, vectors_config={VECTOR_NAME: models.VectorParamsDiff(hnsw_config=low)})
            wait_until_green(store)
            for by_bits, case in itertools.product((False, True), CASES):
                is_main = threshold == "default" and not by_bits
                if not is_main and (case.kind == "random" or "0 %" not in case.share):
                    continue
                one = search_filtered(store, case, fields, queries, cosines, places, by_bits=by_bits)
                way = "bits" if by_bits else "codes"
                found.append({"threshold": threshold, "way": way, "kind": case.kind, "share": case.share, "found": one})
                cells = " | ".join(f"{row['recall']:.4f} {row['ms']:.2f}" for row in one.values())
                print(f"| {threshold}, {way} | {case.kind} | {case.share} | {cells} |", flush=True)
    return found


def field_values(codes: Codes) -> dict[str, npt.NDArray[np.int64]]:
    """Return the values of each field: parts of one size, at random or along the principal axes."""
    rng = np.random.default_rng(5)
    floats = codes.astype(np.float32)
    floats -= floats.mean(axis=0)
    axes = np.linalg.eigh(floats.T @ floats)[1][:, -2:]
    fields = {}
    for kind, values in (("random", rng.normal(size=(len(codes), 2))), ("content", floats @ axes)):
        ranks = values.argsort(axis=0).argsort(axis=0)
        for field, column, parts in (("half", 0, 2), ("tenth", 0, 10), ("hundredth", 0, 100), ("other", 1, 10)):
            fields[f"{kind}_{field}"] = ranks[:, column] * parts // len(codes)
    return fields


def search_filtered(
    store: VectorStore,
    case: Case,
    fields: dict[str, npt.NDArray[np.int64]],
    queries: Codes,
    cosines: npt.NDArray[np.floating],
    places: dict[str, int],
    *,
    by_bits: bool,
) -> dict[str, dict[str, float]]:
    """Return the recall and the median milliseconds with and without ACORN."""
    rng = np.random.default_rng(6)
    times: dict[str, list[float]] = {name: [] for name in ACORN}
    right = dict.fromkeys(ACORN, 0)
    wanted = 0
    for query, row in enumerate(queries):
        conditions: list[Any] = []
        matches = np.ones(len(places), bool)
        for field, (values, n) in case.fields.items():
            some = [int(value) for value in (rng.integers(values) + np.arange(n)) % values]
            match = models.MatchValue(value=str(some[0])) if n == 1 else models.MatchAny(any=[str(one) for one in some])
            conditions.append(models.FieldCondition(key=f"metadata.{field}", match=match))
            matches &= np.isin(fields[field], some)
        if matches.sum() < K:
            continue
        wanted += K
        tenth = np.partition(cosines[query][matches], -K)[-K]
        vector = QueryVector.of(row, squared_norm_of(len(row)))
        condition = models.Filter(must=conditions) if conditions else None
        for name in np.random.default_rng(query).permutation(list(ACORN)):
            candidates, acorn = ACORN[name]
            ranking = Ranking(candidates=candidates, by_bits=by_bits)
            request = as_clients(build_query(vector, ranking, k=K, filter=as_ours(condition), with_payload=False))
            params = request.params.model_copy(update={"acorn": acorn})
            asked = [request.model_copy(update={"params": params})]
            start = time.perf_counter()
            points = store._client.query_batch_points(collection_name(store), asked)[0].points
            times[name].append(1000 * (time.perf_counter() - start))
            right[name] += sum(cosines[query, places[str(point.id)]] >= tenth - 1e-6 for point in points)
    return {name: {"recall": right[name] / wanted, "ms": float(np.median(times[name]))} for name in ACORN}


# --- inline storage ----------------------------------------------------------------------------------

LAYOUTS = {"apart": False, "inline": True}


class OwnServer:
    """A server that can be restarted.

    Args:
        binary: Its program.
        folder: For its data.
        port: Of HTTP; gRPC is on the next.
    """

    def __init__(self, binary: str, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self._binary = binary
        self._settings = {
            "SERVICE__HOST": "127.0.0.1",
            "SERVICE__HTTP_PORT": str(port),
            "SERVICE__GRPC_PORT": str(port + 1),
            "TELEMETRY_DISABLED": "true",
            "LOG_LEVEL": "WARN",
            "STORAGE__STORAGE_PATH": str(folder / "storage"),
            "STORAGE__SNAPSHOTS_PATH": str(folder / "snapshots"),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        variables = {f"QDRANT__{name}": value for name, value in self._settings.items()}
        self._process = subprocess.Popen(
            [self._binary], cwd=self.folder, env={**os.environ, **variables}, stdout=subprocess.DEVNULL
        )
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz") as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def memory(self) -> int:
        """Return the bytes that are the process's own, files left out."""
        assert self._process is not None
        info = psutil.Process(self._process.pid).memory_info()
        return int(info.rss - info.shared)


def compare_inline(arguments: argparse.Namespace) -> dict[str, Any]:
    """Index with codes and bits within the graph and without, and search from disk."""
    if not arguments.binary:
        print("left out: it takes --binary")
        return {}
    codes, queries = codes_and_queries(arguments.data, arguments.chunks, 1024, arguments.queries)
    truth = exact_tenth(codes, queries)
    found: dict[str, dict[str, Any]] = {name: {"bits": [], "codes": [], "right": {}} for name in LAYOUTS}
    encoder = PrecomputedEncoder("real", 1024)
    with tempfile.TemporaryDirectory() as folder:
        server = OwnServer(arguments.binary, Path(folder), arguments.port)
        server.start()
        try:
            for name, inline in LAYOUTS.items():
                config = CollectionConfig(text_index=False)
                with VectorStore.connect(
                    server.url, collection=name, encoder=encoder, config=config, prefer_grpc=True
                ) as store:
                    graph = models.HnswConfigDiff(inline_storage=inline)
                    change(store, vectors_config={VECTOR_NAME: models.VectorParamsDiff(hnsw_config=graph)})
                    start = time.perf_counter()
                    store.add(documents_of(codes))
                    store.optimize()
                    wait_until_green(store)
                    found[name]["seconds"] = time.perf_counter() - start
                found[name]["bytes"] = part_bytes(Path(folder) / "storage" / "collections" / name)
                print(f"{name}: {found[name]['seconds']:.0f} s, {found[name]['bytes']}", flush=True)
            ways = [f"{name}/{way}" for name in LAYOUTS for way in ("bits", "codes")]
            for index, one in take_turns(ways, arguments.rounds):
                name, way = one.split("/")
                server.stop()
                Path("/proc/sys/vm/drop_caches").write_text("3")
                server.start()
                found[name].setdefault("memory", []).append(server.memory())
                step = len(queries) // arguments.rounds
                some = range(index * step, (index + 1) * step)
                search_cold(server.url, name, way, some, queries, codes, truth, found[name])
        finally:
            server.stop()
    print("| layout | way | cold p50, ms | p90 | recall |\n|---|---|---|---|---|")
    for name, way in itertools.product(LAYOUTS, ("bits", "codes")):
        p50, p90 = np.percentile(found[name][way], [50, 90])
        recall = found[name]["right"][way] / (K * len(found[name][way]))
        print(f"| {name} | {way} | {p50:.1f} | {p90:.1f} | {recall:.4f} |", flush=True)
        found[name][way] = {"p50_ms": p50, "p90_ms": p90, "recall": recall}
    return found


def exact_tenth(codes: Codes, queries: Codes) -> npt.NDArray[np.floating]:
    """Return each query's cosine with its tenth nearest."""
    units = (queries / np.linalg.norm(queries.astype(np.float32), axis=1, keepdims=True)).astype(np.float32)
    best = np.empty((len(queries), 0), np.float32)
    for first in range(0, len(codes), BLOCK):
        some = codes[first : first + BLOCK].astype(np.float32)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
        best = np.partition(np.concatenate([best, units @ some.T], axis=1), -K)[:, -K:]
    tenth: npt.NDArray[np.floating] = best.min(axis=1)
    return tenth


def search_cold(
    url: str,
    name: str,
    way: str,
    some: Sequence[int],
    queries: Codes,
    codes: Codes,
    truth: npt.NDArray[np.floating],
    found: dict[str, Any],
) -> None:
    ranking = Ranking(candidates=CANDIDATES, by_bits=way == "bits")
    with contextlib.closing(QdrantClient(url=url, timeout=60)) as client:
        client.get_collection(name)
        for query in some:
            vector = QueryVector.of(queries[query], squared_norm_of(queries.shape[1]))
            request = as_clients(build_query(vector, ranking, k=K, with_payload=False))
            start = time.perf_counter()
            points = client.query_batch_points(name, [request])[0].points
            found[way].append(1000 * (time.perf_counter() - start))
            right = sum(vector.cosine(point.score) >= truth[query] - 1e-6 for point in points)
            found["right"][way] = found["right"].get(way, 0) + right


def part_bytes(path: Path) -> dict[str, int]:
    """Return what a collection takes on disk, by part."""
    sizes = {"graph": 0, "codes and bits": 0, "rest": 0}
    for file in path.rglob("*"):
        if file.is_file() and "/wal/" not in str(file):
            part = (
                "graph"
                if "/vector_index-" in str(file)
                else "codes and bits"
                if "/vector_storage-" in str(file)
                else "rest"
            )
            sizes[part] += 512 * file.stat().st_blocks
    return sizes


# --- writing -----------------------------------------------------------------------------------------


def compare_unoptimized(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write small documents, and read them at once."""
    codes, _ = codes_and_queries(arguments.data, LOADED + SMALL_DOCUMENTS * CHUNKS_PER_DOCUMENT, 384, 1)
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        stores = {}
        for name in ("off", "on"):
            store = stores[name] = stack.enter_context(new_store(arguments.url, 384, timeout=300))
            prevent = models.OptimizersConfigDiff(prevent_unoptimized=name == "on")
            change(store, optimizers_config=prevent)
            start = time.perf_counter()
            store.add(documents_of(codes[:LOADED]))
            loaded = time.perf_counter() - start
            seen = store.count()
            store.optimize()
            found[name] = {"load_seconds": loaded, "seen_after_load": seen, "write_ms": [], "search_ms": [], "seen": 0}
        for index, name in take_turns(list(stores), SMALL_DOCUMENTS):
            row = found[name]
            first = LOADED + index * CHUNKS_PER_DOCUMENT
            some = codes[first : first + CHUNKS_PER_DOCUMENT]
            (document,) = documents_of(some, first=first)
            start = time.perf_counter()
            stores[name].sync([document])
            row["write_ms"].append(1000 * (time.perf_counter() - start))
            start = time.perf_counter()
            hits = stores[name].search(some[0], k=1)
            row["search_ms"].append(1000 * (time.perf_counter() - start))
            ids = [derive_point_id(document.id, i) for i in range(len(some))]
            row["seen"] += hits[0].document_id == document.id and len(stores[name].get(ids)) == len(ids)
    print("| | load, s | seen after | write p50, ms | p90 | search p50, ms | seen at once |\n|" + "---|" * 7)
    for name, row in found.items():
        for what in ("write_ms", "search_ms"):
            row[what] = dict(zip(("p50", "p90"), np.percentile(row[what], [50, 90]).tolist(), strict=True))
        print(
            f"| {name} | {row['load_seconds']:.1f} | {row['seen_after_load']:,} | {row['write_ms']['p50']:.0f} "
            f"| {row['write_ms']['p90']:.0f} | {row['search_ms']['p50']:.1f} | {row['seen']} of {SMALL_DOCUMENTS} |"
        )
    return found


def compare_insert(arguments: argparse.Namespace) -> dict[str, float]:
    """Upsert points into new collections."""
    n = 10_000
    codes, _ = codes_and_queries(arguments.data, n, 384, 1)
    seconds: dict[str, list[float]] = {"upsert": [], "insert_only": []}
    for index, mode in take_turns(list(seconds), arguments.rounds):
        with new_store(arguments.url, 384) as store:
            points = [
                models.PointStruct.model_construct(
                    id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{index} {i}")),
                    vector={VECTOR_NAME: row},
                    payload={"text": str(i), "document_id": str(i // CHUNKS_PER_DOCUMENT), "chunk_index": i % 10},
                )
                for i, row in enumerate((codes.astype(np.int16) + SHIFT).tolist())
            ]
            start = time.perf_counter()
            for first in range(0, n, 256):
                some = points[first : first + 256]
                store._client.upsert(collection_name(store), some, update_mode=models.UpdateMode(mode))
            seconds[mode].append(time.perf_counter() - start)
    rates = {mode: n / float(np.median(taken)) for mode, taken in seconds.items()}
    print(", ".join(f"{mode}: {rate:,.0f} points a second" for mode, rate in rates.items()))
    print("all, s:", {mode: [round(one, 2) for one in taken] for mode, taken in seconds.items()})
    return rates


# --- ids ---------------------------------------------------------------------------------------------


def compare_ids(arguments: argparse.Namespace) -> dict[str, Any]:
    """Open a shard with each placement of its ids, in fresh processes."""
    found: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for placement in PLACEMENTS:
            build_ids(Path(folder) / placement, arguments.ids, placement)
        for _, placement in take_turns(PLACEMENTS, arguments.rounds):
            command = [sys.executable, __file__, str(arguments.data), "--ids", str(arguments.ids), "--ids-run"]
            output = subprocess.run(
                [*command, str(Path(folder) / placement)], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            found.setdefault(placement, []).append(json.loads(output.splitlines()[-1]))
    medians = {
        placement: {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
        for placement, runs in found.items()
    }
    shown = ("search_ms", "first_search_ms", "retrieve_ms", "first_retrieve_ms", "open_ms")
    print(
        "| ids | own MB a million | search p50, ms | the first | 100 by id, ms | the first | open, ms |\n|" + "---|" * 7
    )
    for placement, row in medians.items():
        per_million = row["bytes"] / arguments.ids
        cells = " | ".join(f"{row[key]:.3f}" for key in shown)
        print(f"| {placement} | {per_million:.0f} | {cells} |")
    return medians


def build_ids(path: Path, n: int, placement: str) -> None:
    """Write and index points that have ids and short vectors alone."""
    path.mkdir()
    shard = edge.EdgeShard.create(str(path), ids_config(placement))
    rng = np.random.default_rng(7)
    for first in range(0, n, 5_000):
        rows = rng.normal(size=(min(5_000, n - first), IDS_DIMENSION)).tolist()
        points = [edge.Point(point_id(first + i), {"": row}) for i, row in enumerate(rows)]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.optimize()
    shard.flush()
    shard.close()


def ids_config(placement: str) -> edge.EdgeConfig:
    graph = edge.HnswIndexConfig(m=8, ef_construct=32, full_scan_threshold=10)
    params = edge.EdgeVectorParams(size=IDS_DIMENSION, distance=edge.Distance.Euclid, hnsw_config=graph)
    return edge.EdgeConfig(
        vectors={"": params},
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),
        id_tracker_memory=getattr(edge.Memory, placement),
    )


def point_id(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def measure_ids(path: str, n: int) -> dict[str, float]:
    """Return what opening a shard takes, and how fast it is then."""
    rng = np.random.default_rng(8)
    for file in Path(path).rglob("id_tracker*"):  # out of the page cache
        with file.open("rb") as opened_file:
            os.fsync(opened_file.fileno())
            os.posix_fadvise(opened_file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    process = psutil.Process()
    before = process.memory_info()
    start = time.perf_counter()
    shard = edge.EdgeShard.load(path)
    opened = time.perf_counter()
    after = process.memory_info()
    searches, retrievals = [], []
    for _ in range(500):
        query = edge.Query.Nearest(rng.normal(size=IDS_DIMENSION).tolist(), "")
        began = time.perf_counter()
        shard.query(edge.QueryRequest(limit=K, query=query))
        searches.append(time.perf_counter() - began)
        ids: list[Any] = [point_id(int(i)) for i in rng.integers(n, size=100)]
        began = time.perf_counter()
        shard.retrieve(ids, False, False)
        retrievals.append(time.perf_counter() - began)
    shard.close()
    return {
        "bytes": (after.rss - after.shared) - (before.rss - before.shared),
        "search_ms": 1000 * float(np.median(searches)),
        "retrieve_ms": 1000 * float(np.median(retrievals)),
        "first_search_ms": 1000 * float(np.median(searches[:FIRST])),
        "first_retrieve_ms": 1000 * float(np.median(retrievals[:FIRST])),
        "open_ms": 1000 * (opened - start),
    }


# --- strict mode -------------------------------------------------------------------------------------

STRICT = {
    "max_resident_memory_percent": 1,
    "max_disk_usage_percent": 1,
    "max_points_count": 5,
    "max_collection_vector_size_bytes": 100,
    "max_collection_payload_size_bytes": 100,
    "max_payload_index_count": 3,
    "max_timeout": 1,
    "write_rate_limit": 1,
    "read_rate_limit": 1,
    "search_max_batchsize": 1,
    "sparse_config": {"bm25": {"max_length": 2}},
}


def try_strict(arguments: argparse.Namespace) -> dict[str, Any]:
    """Set one limit after the other, and say what becomes of the store's calls."""
    found: dict[str, dict[str, str]] = {}
    codes = quantize_to_norm(np.random.default_rng(9).normal(size=(40, 64)))
    for name, value in STRICT.items():
        with new_store(arguments.url, 64) as store:
            store.add(documents_of(codes[:20]))
            request = urllib.request.Request(
                f"{arguments.url}/collections/{collection_name(store)}",
                json.dumps({"strict_mode_config": {"enabled": True, name: value}}).encode(),
                {"Content-Type": "application/json"},
                method="PATCH",
            )
            with urllib.request.urlopen(request):
                found[name] = try_calls(arguments.url, collection_name(store), codes)
        print(f"{name}={value}")
        for what, words in found[name].items():
            print(f"  {what}: {words}", flush=True)
    return found


def try_calls(url: str, collection: str, codes: Codes) -> dict[str, str]:
    """Return what each call of a store says."""

    def connect(**options: Any) -> VectorStore:
        encoder = PrecomputedEncoder("real", codes.shape[1])
        return VectorStore.connect(url, collection=collection, encoder=encoder, retries=0, **options)

    with connect() as store:
        calls: dict[str, Callable[[], object]] = {
            "open with another index": lambda: connect(index_fields={"lang": "keyword"}).close(),
            "write": lambda: store.add(documents_of(codes[20:], first=2)),
            "search": lambda: store.search_batch(list(codes[:4]), k=2),
            "delete": lambda: store.delete(document_ids=["0"]),
        }
        said = dict.fromkeys(calls, "works")
        for what, call in calls.items():
            try:
                call()
            except PplxVectorStoreError as error:
                said[what] = f"{type(error).__name__}: {error}"
    return said


PARTS = {
    "acorn": compare_acorn,
    "inline": compare_inline,
    "unoptimized": compare_unoptimized,
    "insert": compare_insert,
    "ids": compare_ids,
    "strict": try_strict,
}


if __name__ == "__main__":
    main()
