"""Fills the tables of the docs from the results: python benchmarks/fill_tables.py.

A page says where: between ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from harness import RESULTS, read_machine
from harness import read_results as read
from search import AIM_RECALL, LATENCY, choice, disk_bytes, ratios, resident_bytes
from stages import BY_CODES

DOCS = Path(__file__).parent.parent / "docs"
PLACE = re.compile(r"(<!-- table: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

METRICS = ("nDCG@10", "recall@5", "MRR@10")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def ratio(value: float) -> str:
    """Write a ratio of ours over another's down, and whether the other is the better one."""
    shown = f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
    return f"{shown} (worse)" if round(value, 2) > 1 else shown


def mark_best(cells: Sequence[str], values: Sequence[float], best: Callable[[Sequence[float]], float]) -> list[str]:
    """Set the best value's cell in bold, and those that are written alike."""
    found = cells[values.index(best(values))]
    return [f"**{cell}**" if cell == found else cell for cell in cells]


# --- search ------------------------------------------------------------------------------------------


def search_ratios(workload: str) -> str:
    """Tabulate ours over every other contender."""
    contenders = read("search")["workloads"][workload]
    mine = contenders[choice(workload)]
    rows = []
    for name, theirs in contenders.items():
        if name == choice(workload):
            continue
        found = ratios(mine, theirs)
        both = {"ours": mine, "the other": theirs}
        latencies = []
        for kind, what in LATENCY.items():
            if what in found:
                latencies.append(ratio(found[what]))
                continue
            most = {who: max(row[f"recall_{kind}"] for row in one["searches"]) for who, one in both.items()}
            short = [f"{who} reaches {recall:.3f}" for who, recall in most.items() if recall < AIM_RECALL]
            latencies.append(", ".join(short))
        sizes = [ratio(found[what]) for what in ("disk", "memory for vectors", "resident", "build")]
        rows.append([name, *latencies, *sizes])
    columns = [
        f"{choice(workload)}, over",
        f"latency at {AIM_RECALL}, float",
        "int8",
        "disk",
        "read by the walk",
        "resident",
        "build",
    ]
    return table(columns, rows)


def search_points(workload: str) -> str:
    """Tabulate every contender's fastest setting that reaches the recall, or else its best; the fastest in bold."""
    rows: list[list[str]] = []
    times = []
    for name, result in read("search")["workloads"][workload].items():
        searches = sorted(result["searches"], key=lambda row: row["p50_ms"])
        reached = [row for row in searches if row["recall_float"] >= AIM_RECALL]
        row = reached[0] if reached else max(searches, key=lambda row: row["recall_float"])
        rows.append([name, *search_row(row)])
        times.append(row["p50_ms"] if reached else math.inf)
    fastest = rows[times.index(min(times))]
    place = 1 + SEARCH_COLUMNS.index("p50 ms (of rounds)")
    fastest[place] = f"**{fastest[place]}**"
    return table(["contender", *SEARCH_COLUMNS], rows)


SEARCH_COLUMNS = ("setting", "recall@10, float", "int8", "p50 ms (of rounds)", "p95 ms", "queries/s (of rounds)")


def search_row(row: Mapping[str, Any]) -> list[str]:
    """Write one setting's figures down."""
    low, high = row["p50_of_rounds_ms"]
    slowest, fastest = row["queries_per_second_of_rounds"]
    return [
        setting(row["setting"]),
        f"{row['recall_float']:.4f}",
        f"{row['recall_int8']:.4f}",
        f"{row['p50_ms']:.2f} ({low:.2f}–{high:.2f})",
        f"{row['p95_ms']:.2f}",
        f"{row['queries_per_second']:,.0f} ({slowest:,.0f}–{fastest:,.0f})",
    ]


def setting(given: int | list[float]) -> str:
    """Write a setting down: one number, or hnsw_ef and oversampling."""
    return f"{given[0]}, × {given[1]:g}" if isinstance(given, list) else str(given)


def search_sizes(workload: str) -> str:
    """Tabulate memory, disk and build of every contender; the least of each in bold."""
    contenders = read("search")["workloads"][workload]
    columns = {
        "MB read by the walk": [result["walk_bytes"] / 1e6 for result in contenders.values()],
        "MB resident": [resident_bytes(result) / 1e6 for result in contenders.values()],
        "MB on disk": [disk_bytes(result) / 1e6 for result in contenders.values()],
        "seconds to build": [result["build_seconds"] for result in contenders.values()],
    }
    cells = [mark_best([f"{value:,.0f}" for value in values], values, min) for values in columns.values()]
    return table(["contender", *columns], zip(contenders, *cells, strict=True))


def search_all(workload: str) -> str:
    """Tabulate all settings."""
    contenders = read("search")["workloads"][workload]
    rows = [[name, *search_row(row)] for name, result in contenders.items() for row in result["searches"]]
    return table(["contender", *SEARCH_COLUMNS], rows)


# --- quality -----------------------------------------------------------------------------------------


def quality_weights() -> str:
    """Tabulate nDCG@10 by the share of context."""
    found = read("quality")
    weights = list(found["runs"][0]["weights"])
    rows = [
        [
            f"{run['dataset']}, ≤ {run['chunk_tokens']} tokens",
            f"{run['chunks']:,}",
            f"{run['questions']:,}",
            *(f"{run['weights'][weight]['nDCG@10']:.3f}" for weight in weights),
        ]
        for run in found["runs"]
    ]
    shares = [f"**{float(w):g}**" if float(w) == found["own_weight"] else f"{float(w):g}" for w in weights]
    return table(["chunks of", "chunks", "questions", *shares], rows)


def quality_forms() -> str:
    """Tabulate all metrics by the form of the vectors; the best of each set of chunks in bold."""
    return quality_table("form", lambda run: run["forms"])


def quality_ways() -> str:
    """Tabulate all metrics for independent, blended and late vectors; the best of each set of chunks in bold."""
    ways = {"independent": "0.0", "blend": str(read("quality")["own_weight"]), "late": "1.0"}
    return quality_table("vectors", lambda run: {way: run["weights"][weight] for way, weight in ways.items()})


def quality_table(column: str, metrics_of: Callable[[Any], Mapping[str, Mapping[str, float]]]) -> str:
    """Tabulate what is compared within each run."""
    rows: list[tuple[str, ...]] = []
    for run in read("quality")["runs"]:
        compared = metrics_of(run)
        cells = []
        for metric in METRICS:
            values = [metrics[metric] for metrics in compared.values()]
            cells.append(mark_best([f"{value:.3f}" for value in values], values, max))
        chunks = f"{run['dataset']}, ≤ {run['chunk_tokens']}"
        rows += [(chunks, *row) for row in zip(compared, *cells, strict=True)]
    return table(["chunks of", column, *METRICS], rows)


# --- the others --------------------------------------------------------------------------------------


def ingest(place: str) -> str:
    """Tabulate the ways of writing into one place."""
    found = read("ingest")
    rows = []
    for way, row in found["places"][place].items():
        low, high = row["seconds_of_rounds"]
        rows.append(
            [
                way,
                f"{row['seconds']:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{row['index_seconds']:.2f}",
                f"{found['chunks'] / row['seconds']:,.0f}",
                f"{row['bytes'] / 1e6:.1f}",
            ]
        )
    return table([place, "seconds", "of rounds", "of them index", "chunks/s", "MB"], rows)


def ingest_ratios() -> str:
    """Tabulate this library's adapters over their peers."""
    rows = [
        [
            f"{row['ours']} over {row['peer']}, {row['place']}",
            *(ratio(row[what]) for what in ("seconds", "bytes")),
        ]
        for row in read("ingest")["ratios"]
    ]
    return table(["", "seconds", "bytes"], rows)


def ingest_embedding() -> str:
    """Tabulate the seconds of embedding."""
    found = read("ingest")
    rows = [
        [way, f"{median(seconds):.1f}", f"{min(seconds):.1f} to {max(seconds):.1f}"]
        for way, seconds in found["embedding_seconds"].items()
    ]
    return table([f"{found['chunks']:,} chunks, embedded", "seconds", "of rounds"], rows)


ENCODER_NAMES = {
    "card": "the model card's way, written plainly",
    "ours float32": "ours, float32",
    "ours bfloat16": "ours, bfloat16",
    "onnx float32": "ONNX Runtime, float32",
    "onnx int8": "ONNX Runtime, int8 weights",
}


def encode(results: str) -> str:
    """Tabulate the ways to encode, on one kind of machine."""
    rows = [
        [
            ENCODER_NAMES[name],
            tokens_per_second(way),
            f"{way['times_card']:.1f}",
            "–" if way["of_limit"] is None else f"{way['of_limit']:.2f}",
            f"{way['peak_bytes'] / 2**20:,.0f} MiB",
        ]
        for name, way in read(results)["ways"].items()
    ]
    return table(["way", "tokens/s (of rounds)", "times the card's", "of the limit", "peak memory"], rows)


def tokens_per_second(way: Mapping[str, Any]) -> str:
    """Write a rate down, with its spread if the results have it: they have only since some were made."""
    spread = way.get("tokens_per_second_of_rounds")
    return f"{way['tokens_per_second']:,.0f}" + (f" ({spread[0]:,.0f}–{spread[1]:,.0f})" if spread else "")


def encode_codes() -> str:
    """Tabulate how near the codes are to the card's."""
    rows = [
        [ENCODER_NAMES[name], codes["most_apart"], f"{codes['mean_cosine']:.5f}", f"{codes['least_cosine']:.5f}"]
        for name, codes in read("encode")["codes"].items()
    ]
    return table(["way", "codes apart, at most", "mean cosine", "least"], rows)


def encode_memory() -> str:
    """Tabulate the memory of encoding by what is encoded."""
    found = read("encode")["memory"]
    tokens = found["float32"]["mixed"]["tokens"]
    rows = []
    for dtype, corpora in found.items():
        mixed, ten, long = (corpora[name]["peak"] for name in ("mixed", "ten times", "long"))
        rows.append(
            [
                dtype,
                f"{corpora['mixed']['loaded'] / 2**20:,.0f} MiB",
                f"{mixed / 2**20:,.0f} MiB",
                f"{ten / 2**20:,.0f} MiB ({ten / mixed:.2f} times)",
                f"{long / 2**20:,.0f} MiB ({long / mixed:.2f} times)",
            ]
        )
    return table(["", "after loading", f"{tokens:,} tokens", "ten times that", "and a document of 32,000"], rows)


def context() -> str:
    """Tabulate the cosines of a sentence with two names."""
    found = read("context")
    rows = [
        [f"“{found['second']}” and “{name}”", *(f"{way['sentence']:.2f}" for way in ways.values())]
        for name, ways in found["names"].items()
    ]
    return table(["cosine of", *next(iter(found["names"].values()))], rows)


def recall() -> str:
    """Tabulate recall and latency of the store's own search on real text."""
    found = read("recall")
    columns = ["candidates"]
    for size, run in found.items():
        columns += [f"{run['chunks']:,} chunks of ≤ {size} tokens", "ms"]
    names = list(next(iter(found.values()))["searches"])
    rows = []
    for name in names:
        cells = [run["searches"][name] for run in found.values()]
        rows.append([name, *(text for cell in cells for text in (f"{cell['recall']:.4f}", f"{cell['ms']:.2f}"))])
    return table(columns, rows)


def dimensions() -> str:
    """Tabulate the recall of both ways with the default candidates, by dimension."""
    found = read("dimensions")
    columns = ["dimensions"]
    for kind in found:
        columns += [f"{kind}: by codes", "by bits"]
    rows = []
    for dimension, first in next(iter(found.values())).items():
        cells = [of[dimension] for of in found.values()]
        recalls = [f"{cell[way]['int8']:.3f}" for cell in cells for way in ("codes", "bits")]
        rows.append([f"{int(dimension):,} ({first['points']:,} vectors)", *recalls])
    return table(columns, rows)


def precision() -> str:
    """Tabulate what lower precision changes."""
    names = {
        "torch bfloat16": "PyTorch, bfloat16",
        "onnx float32": "ONNX Runtime, float32",
        "onnx int8": "ONNX Runtime, int8 weights",
    }
    ways = read("precision")["ways"]
    rows = [
        [
            shown,
            f"{ways[name]['mean_cosine']:.5f}",
            f"{ways[name]['least_cosine']:.5f}",
            f"{ways[name]['changed_of_ten']:.2%}",
            f"{ways[name]['changed_of_best']:.2%}",
        ]
        for name, shown in names.items()
    ]
    return table(["way", "mean cosine", "least", "changed of the ten best", "of the best"], rows)


def overheads() -> str:
    """Tabulate what the library adds to the engine and to the model."""
    search, write, slow, index = (
        read(name) for name in ("search_overhead", "write_rate", "slow_server", "index_overhead")
    )
    one, batch = search["search"], search["batch of 32"]
    time, memory = index["time"], index["memory"]
    texts = [run["characters"] for run in memory]
    growth = " and ".join(f"{run['anonymous'] / memory[0]['anonymous']:.2f}" for run in memory[1:])
    most = max(size for _, size in slow["memory_mb"][1:])
    rows = [
        [
            "`store.search` over the bare engine request, 10,000 points of 384 dimensions",
            f"{one['more_ms']:.2f} ms more ({one['raw_ms']:.2f} → {one['store_ms']:.2f} ms)",
            "≤ 0.3 ms",
            "`search_overhead.py`",
        ],
        [
            "`store.search_batch` of 32, per query",
            f"{batch['more_ms']:.2f} ms more ({batch['raw_ms']:.2f} → {batch['store_ms']:.2f} ms)",
            "–",
            "`search_overhead.py`",
        ],
        [
            "`store.add` of ready vectors against the bare engine's upserts",
            f"{write['ratio']:.0%} of its rate ({write['store_points_per_second']:,.0f} against "
            f"{write['raw_points_per_second']:,.0f} points/s)",
            "≥ 80%",
            "`write_rate.py`",
        ],
        *(_grpc_row(name) for name in ("write_rate_server", "write_rate_grpc")),
        _hybrid_row("write_rate_server"),
        [
            f"time outside the model's forward, indexing {time['characters'] / 1e6:.2f} MB of Markdown",
            f"{time['outside_forward']:.1%}; with imports and loading {time['outside_forward_with_imports']:.1%}",
            "≤ 5%",
            "`index_overhead.py`",
        ],
        [
            f"anonymous memory for {texts[1] // texts[0]} and {texts[2] // texts[0]} times the text",
            f"{growth} times",
            "≤ 1.1",
            "`index_overhead.py`",
        ],
        [
            f"memory of `store.add` of {slow['chunks']:,} chunks while each write's answer is 0.2 s late",
            f"{slow['memory_mb'][1][1]:.0f} MiB after a tenth, {most:.0f} MiB at most ({slow['growth']:.2f} times)",
            "–",
            "`slow_server.py`",
        ],
    ]
    return table(["what", "result", "aim", "script"], rows)


def _grpc_row(name: str) -> list[str]:
    """Return the row of what was written over gRPC."""
    found = read(name)
    rates = found["points_per_second"]
    return [
        f"`store.add` of ready vectors over gRPC against the client's own upload to {found['server']}",
        f"{found['ratios']['upload']:.0%} of its rate ({rates['store']:,.0f} against {rates['upload']:,.0f} points/s)",
        "≥ 80%",
        f"`write_rate.py --grpc{' URL' if name == 'write_rate_server' else ''}`",
    ]


def _hybrid_row(name: str) -> list[str]:
    """Return the row of what words for hybrid search take on top."""
    found = read(name)
    rates = found["points_per_second"]
    return [
        f"the same with hybrid search, whose vectors of words {found['server']} makes",
        f"{rates['store, hybrid']:,.0f} points/s",
        "–",
        "`write_rate.py --grpc URL`",
    ]


FOOTPRINT_LABELS = {
    "graph, with text index": "graph",
    "memory, bits, ids, other indexes": "bits, ids, indexes of the payload in memory",
    "memory, text index": "text index in memory",
    "memory": "**memory**",
    "disk, codes": "codes",
    "disk, payload": "text and metadata on disk",
    "disk": "**disk**",
}


def footprint() -> str:
    """Tabulate computed and measured bytes per chunk."""
    sizes = read("footprint")["bytes_per_chunk"]
    columns = ["bytes per chunk"]
    for dimension in sizes:
        columns += [f"{int(dimension):,}: computed", "measured"]
    rows = []
    for name, shown in FOOTPRINT_LABELS.items():
        cells = [size[name] for size in sizes.values()]
        rows.append(
            [shown, *(text for cell in cells for text in (f"{cell['computed']:,.0f}", f"{cell['measured']:,.0f}"))]
        )
    return table(columns, rows)


def stages() -> str:
    """Tabulate the time up to each part of a search, and what the part takes."""
    workloads = read("stages")["workloads"]
    columns = []
    for result in workloads.values():
        times = [result["stages_ms"][stage] for stage in STAGES]
        by_bits = [f"{ms:.3f} (+ {ms - before:.3f})" for before, ms in pairwise([0.0, *times])]
        columns.append([*by_bits, f"{result['stages_ms'][BY_CODES]:.3f}"])
    labels = [*STAGES.values(), "by the codes, with a beam as wide as the candidates"]
    return table(["ms, up to and with", *workloads], zip(labels, *columns, strict=True))


STAGES = {
    "walk": "the walk through the graph, ten hits",
    "hand on": "as many hits as candidates",
    "compare codes": "**the whole: these compared by their codes**",
}


def beams() -> str:
    """Tabulate the time that a recall takes, by the width of the beam."""
    workloads = read("stages")["workloads"]
    columns = ["beam, of the candidates"]
    rows: dict[str, list[str]] = {}
    for name, result in workloads.items():
        for beam, found in result["ms_at_recall_by_beam"].items():
            cells = ["–" if ms is None else f"{ms:.2f}" for ms in found.values()]
            rows.setdefault(beam, [f"{beam} times"]).extend(cells)
        columns += [f"{name}: {recall}" for recall in found]
    return table(columns, rows.values())


def server_recall(name: str = "server_recall") -> str:
    """Tabulate the recall on a server in each state of a collection."""
    states = ("loading", "new", "indexed", "trickle")
    rows = [
        [f"{one['dimension']:,}", f"{one['vectors']:,}", *(f"{one[state]:.3f}" for state in states), one["way"]]
        for one in read(name)["found"]
    ]
    return table(["dimension", "vectors", "while loading", "loaded", "indexed", "trickle", "in the end by"], rows)


def trickle() -> str:
    """Tabulate what a trickle of small writes costs."""
    rows = [
        [
            read(name)["server"],
            shown,
            f"{found['p50_ms']:.1f}",
            f"{found['recall']:.3f}",
            f"{found['cpu_seconds_a_minute']:.1f}",
        ]
        for name, note in (("trickle_stand-in", ""), ("trickle_qdrant", ""), ("trickle_qdrant_low", ", low threshold"))
        for shown, found in ((f"nobody writes{note}", read(name)["idle"]), (f"trickle{note}", read(name)["trickle"]))
    ]
    return table(["server", "", "search, ms", "recall@10", "server's processor, s/min"], rows)


def bulk_load() -> str:
    """Tabulate what a bulk load saves."""
    rows = [
        [way, f"{found['loaded']:.0f}", f"{found['indexed']:.0f}", f"{found['server_cpu']:.0f}"]
        for way, found in read("bulk_load")["ways"].items()
    ]
    return table(["", "loaded after s", "and indexed after s", "server's processor, s"], rows)


def serve_load() -> str:
    """Tabulate what a server does under load."""
    found = read("serve_load")
    load, flood = found["load"], found["flood"]

    def count(statuses: Mapping[str, int]) -> str:
        return ", ".join(f"{n:,} of {status}" for status, n in sorted(statuses.items()))

    encoder, (first, last) = found["encoder"], load["resident_mb"]
    rows = [
        [
            "a query, nobody else there: median, 99th percentile",
            f"{found['idle']['p50_ms']}, {found['idle']['p99_ms']} ms",
        ],
        [f"a query, {load['clients']} clients there", f"{load['p50_ms']}, {load['p99_ms']} ms"],
        ["documents, by the encoder alone", f"{encoder['tokens_per_second']:,} tokens/s"],
        [
            f"the same, with the queries to do ({encoder['query_ms']} ms each)",
            f"{encoder['tokens_per_second_beside_queries']:,} tokens/s",
        ],
        [f"documents, {load['clients']} clients there", f"{load['tokens_per_second']:,} tokens/s"],
        ["memory, in the second minute and in the last", f"{first:,}, {last:,} MB"],
        [f"answers in {load['minutes']:.0f} minutes", count(load["statuses"])],
        [f"answers to {flood['writers']} writers at once", count(flood["statuses"])],
        ["memory then, at most", f"{flood['largest_resident_mb']:,} MB"],
    ]
    return table(["", "all-MiniLM-L6-v2"], rows)


def ray_rates() -> str:
    """Tabulate how fast jobs of Ray Data are."""
    rows = [
        [
            f"{name}, {way}",
            f"{found['documents_per_second'][way]:.1f}",
            f"{found['fixed_seconds'][way]:.1f}",
            f"{found['busy_cores'][way]:.2f}",
            f"{found['worker_mb'][way]:.0f}" if found["worker_mb"][way] else "",
        ]
        for name, found in read("ray_rates").items()
        if isinstance(found, dict)
        for way in found["documents_per_second"]
    ]
    return table(["", "documents/s", "seconds whatever the size", "busy cores", "MB a worker"], rows)


def commands() -> str:
    """Tabulate what commands cost from a cold process."""
    seconds = read("cli")["seconds"]
    floor = next(iter(seconds.values()))
    names = {
        "import numpy, qdrant_edge": "a process that only imports Python, numpy and the engine",
        "pplx-vectorstore search": "`pplx-vectorstore search`",
        "pplx-vectorstore info": "`pplx-vectorstore info`",
        "pplx-vectorstore index": "`pplx-vectorstore index` with nothing to do",
        "search, load_query_encoder": "a program that searches, with `load_query_encoder`",
        "search, load_encoder": "the same with `load_encoder`",
    }
    rows = [[shown, f"{seconds[name]:.2f}", f"{seconds[name] / floor:.1f}"] for name, shown in names.items()]
    return table(["", "seconds", "times the first"], rows)


def machines() -> str:
    """Tabulate what was measured where."""
    found: dict[str, list[str]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        found.setdefault(read_machine(path.stem), []).append(f"`{path.stem}`")
    return table(["machine", "results"], [[machine, ", ".join(names)] for machine, names in found.items()])


TABLES: dict[str, Callable[..., str]] = {
    "search ratios": search_ratios,
    "search": search_points,
    "search sizes": search_sizes,
    "search, all settings": search_all,
    "quality by share": quality_weights,
    "quality by way": quality_ways,
    "quality by form": quality_forms,
    "ingest": ingest,
    "ingest ratios": ingest_ratios,
    "ingest embedding": ingest_embedding,
    "encode": encode,
    "encode codes": encode_codes,
    "encode memory": encode_memory,
    "context": context,
    "recall": recall,
    "dimensions": dimensions,
    "precision": precision,
    "overheads": overheads,
    "footprint": footprint,
    "stages": stages,
    "beams": beams,
    "server_recall": server_recall,
    "server_recall_bits": partial(server_recall, "server_recall_bits"),
    "trickle": trickle,
    "bulk_load": bulk_load,
    "serve_load": serve_load,
    "ray_rates": ray_rates,
    "commands": commands,
    "machines": machines,
}


def fill(page: str) -> str:
    """Return a page with its tables made anew; ``NAME: ARGUMENT`` gives a table an argument."""

    def make(match: re.Match[str]) -> str:
        name, _, argument = match[2].partition(": ")
        made = TABLES[name](argument) if argument else TABLES[name]()
        return f"{match[1]}{made}{match[4]}"

    return PLACE.sub(make, page)


def main() -> None:
    """Fill the tables of all pages."""
    for path in sorted(DOCS.glob("**/*.md")):
        page = path.read_text("utf-8")
        filled = fill(page)
        if filled != page:
            path.write_text(filled, "utf-8")
            print(path.relative_to(DOCS))


if __name__ == "__main__":
    main()
