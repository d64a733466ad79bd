"""Draws the pictures of the docs from the results: python benchmarks/draw.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from harness import read_results as read
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from search import AIM_RECALL, CONTENDERS, choice

DOCS = Path(__file__).parent.parent / "docs"

OURS, OURS_TOO, CONTEXT, GREY = "#3f51b5", "#7986cb", "#e65100", "#9e9e9e"
STYLES = {
    "ours, by bits": (OURS, "o"),
    "ours, by codes": (OURS_TOO, "o"),
    "ours, by plain bits": ("#b39ddb", "o"),
    "bits and formula": ("#90a4ae", "d"),
    "float32": ("#212121", "s"),
    "float32, ef_construct 200": ("#6d4c41", "x"),
    "float32 + scalar int8": ("#00897b", "^"),
    "float32 + binary": ("#c0392b", "v"),
    "float32 + binary, weighed": ("#ec407a", "<"),
    "float16": ("#757575", "D"),
    "turbo8": ("#f9a825", "P"),
}
BIG = "500,000 × 1024"
# The parts of an index on disk and in memory: what they are called in the picture, and their colours.
PARTS_SHOWN = {
    "vectors": ("vectors", OURS),
    "quantized": ("their short forms", CONTEXT),
    "graph": ("graph", "#616161"),
    "other": ("payload, ids", "#bdbdbd"),
    "own": ("the process's own", "#00897b"),
}


def draw_context() -> Figure:
    """Draw how near the words of a sentence are to its subject, alone and in the document."""
    found = read("context")
    subject, other = found["names"]
    figure, axes = plt.subplots(figsize=(9, 4))
    places = [*range(len(found["words"])), len(found["words"]) + 0.6]  # the sentence stands apart
    labels = [*found["words"], "the whole\nsentence"]
    for way, colour, shift in (("alone", GREY, -0.2), ("in the document", CONTEXT, 0.2)):
        values = found["names"][subject][way]
        heights = [*values["words"], values["sentence"]]
        axes.bar([place + shift for place in places], heights, 0.4, color=colour, label=f"{subject}, {way}")
    for way, shift, colour in (("alone", -0.2, "#757575"), ("in the document", 0.2, "black")):
        values = found["names"][other][way]
        crosses = [place + shift for place in places]
        axes.plot(crosses, [*values["words"], values["sentence"]], "x", color=colour, ms=5, label=f"{other}, {way}")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(places, labels, fontsize=9)
    axes.set_ylabel("cosine with the name")
    axes.set_title(f"“{found['first']}\n{found['second']}”", fontsize=10)
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    axes.set_ylim(top=0.62)
    return figure


def draw_one_norm() -> Figure:
    """Draw a query and two vectors as they are, and brought to one norm: which is nearer changes."""
    figure, all_axes = plt.subplots(1, 2, figsize=(8, 3.9), sharey=True, layout="constrained")
    query = (78.0, 1.0)  # degrees, norm
    vectors = {"a": (55.0, 1.75, OURS), "b": (28.0, 0.75, CONTEXT)}
    for axes, one_norm in zip(all_axes, (False, True), strict=True):
        axes.plot(0, 0, "k.", ms=5)
        tip = place_of(*query)
        if one_norm:
            arc = [place_of(90 * step / 50, 1.0) for step in range(51)]
            axes.plot(*zip(*arc, strict=True), color=GREY, linewidth=0.8, linestyle=":")
        draw_arrow(axes, tip, "black", "query")
        for line, (name, (angle, norm, colour)) in enumerate(vectors.items()):
            end = place_of(angle, 1.0 if one_norm else norm)
            draw_arrow(axes, end, colour, name)
            axes.plot([tip[0], end[0]], [tip[1], end[1]], color=colour, linewidth=1, linestyle="--")
            distance = f"from the query to {name}: {math.dist(tip, end):.2f}"
            axes.text(0.72, 0.12 - 0.12 * line, distance, color=colour, fontsize=9)
        axes.set_aspect("equal")
        axes.set_xlim(-0.05, 1.55)
        axes.set_ylim(-0.1, 1.6)
        axes.axis("off")
    all_axes[0].set_title("norms as they come: b is nearer to the query,\nthough a's direction is", fontsize=10)
    all_axes[1].set_title("one norm: the nearer the direction,\nthe smaller the distance", fontsize=10)
    return figure


def place_of(angle: float, norm: float) -> tuple[float, float]:
    """Return the point at so many degrees and that distance from the origin."""
    return norm * math.cos(math.radians(angle)), norm * math.sin(math.radians(angle))


def draw_arrow(axes: Axes, tip: tuple[float, float], colour: str, label: str) -> None:
    """Draw a vector from the origin."""
    axes.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.6})
    beyond = 1 + 0.09 / math.hypot(*tip)
    axes.text(beyond * tip[0], beyond * tip[1], label, color=colour, fontsize=10, ha="center", va="center")


def draw_search() -> Figure:
    """Draw recall against latency of every contender."""
    workloads = read("search")["workloads"]
    figure = plt.figure(figsize=(8.5, 8.5), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.25))
    all_axes = [figure.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[1, :])]
    for axes, (title, contenders) in zip(all_axes, workloads.items(), strict=True):
        for name, result in contenders.items():
            colour, marker = STYLES[name]
            rows = result["searches"]
            axes.plot(
                [row["p50_ms"] for row in rows],
                [row["recall_float"] for row in rows],
                marker=marker,
                color=colour,
                label=name,
                linewidth=2.5 if name == choice(title) else 1.2,
                markersize=5,
            )
        axes.axhline(AIM_RECALL, color="black", linewidth=0.6, linestyle=":")
        axes.set_xscale("log")
        axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0.85, 1.002)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("median ms per search")
    for axes in (all_axes[0], all_axes[2]):
        axes.set_ylabel("recall@10, exact float cosine")
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def draw_memory() -> Figure:
    """Draw the vectors that the graph walk reads, what a process held in memory, and what is on disk, by contender."""
    contenders = read("search")["workloads"][BIG]
    names = list(contenders)[::-1]
    figure, (walk, memory, disk) = plt.subplots(1, 3, figsize=(9.5, 3.6), sharey=True, layout="constrained")
    walked = {name: {CONTENDERS[name].graph_reads: contenders[name]["walk_bytes"]} for name in names}
    draw_parts(walk, walked, "MB of vectors read by the walk")
    draw_parts(memory, {name: contenders[name]["memory_bytes"] for name in names}, "MB resident after 472 searches")
    draw_parts(disk, {name: contenders[name]["disk_bytes"] for name in names}, "MB on disk")
    figure.legend(*disk.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(BIG, fontsize=10)
    return figure


def draw_parts(axes: Axes, sizes: Mapping[str, Mapping[str, int]], title: str) -> None:
    """Draw the parts of an index as one bar for each contender."""
    before = [0.0] * len(sizes)
    for part, (label, colour) in PARTS_SHOWN.items():
        widths = [of.get(part, 0) / 1e6 for of in sizes.values()]
        axes.barh(list(sizes), widths, left=before, color=colour, label=label)
        before = [low + width for low, width in zip(before, widths, strict=True)]
    for place, value in enumerate(before):
        axes.text(value, place, f" {value:,.0f}", va="center", fontsize=8)
    axes.set_xlim(right=1.25 * max(before))
    axes.set_title(title, fontsize=9)


def draw_quality() -> Figure:
    """Draw nDCG@10 by the share of context, and by the form of the vectors."""
    runs = read("quality")["runs"]
    datasets = list(dict.fromkeys(run["dataset"] for run in runs))
    figure, all_axes = plt.subplots(1, len(datasets) + 1, figsize=(11, 3.6), layout="constrained")
    colours = {128: OURS, 256: CONTEXT, 512: "#00897b"}
    for axes, dataset in zip(all_axes, datasets, strict=False):
        for run in (run for run in runs if run["dataset"] == dataset):
            weights = {float(weight): metrics["nDCG@10"] for weight, metrics in run["weights"].items()}
            size = run["chunk_tokens"]
            axes.plot(weights.keys(), weights.values(), "o-", color=colours.get(size), label=f"≤ {size} tokens")
        axes.set_title(dataset, fontsize=10)
        axes.set_xlabel("share of context (0: independent, 1: late)")
        axes.legend(fontsize=8, frameon=False, loc="lower left")
    all_axes[0].set_ylabel("nDCG@10")
    forms = list(runs[0]["forms"])
    for place, run in enumerate(runs):
        for shift, form in enumerate(forms):
            value = run["forms"][form]["nDCG@10"]
            colour = (GREY, OURS_TOO, CONTEXT, OURS)[shift]
            all_axes[-1].bar(place + 0.2 * shift - 0.3, value, 0.2, color=colour, label=form if not place else None)
    short = {"chunking_evaluation": "ch. eval."}
    all_axes[-1].set_xticks(
        range(len(runs)), [f"{short.get(run['dataset'], run['dataset'])}\n{run['chunk_tokens']}" for run in runs]
    )
    all_axes[-1].tick_params(axis="x", labelsize=8)
    all_axes[-1].set_ylim(0.5, 1.1)
    all_axes[-1].legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    all_axes[-1].set_title("by the form of the vectors", fontsize=10)
    return figure


def draw_ingest() -> Figure:
    """Draw the seconds of writing and indexing by way, and the bytes, in a folder and in memory."""
    places = read("ingest")["places"]
    figure, all_axes = plt.subplots(2, 2, figsize=(8.5, 4.4), sharey=True, layout="constrained")
    for (seconds, sizes), (place, ways) in zip(all_axes, places.items(), strict=True):
        names = list(ways)[::-1]
        colours = [OURS if name.startswith("ours") else GREY for name in names]
        writing = [ways[name]["write_seconds"] for name in names]
        indexing = [ways[name]["index_seconds"] for name in names]
        seconds.barh(names, writing, color=colours)
        seconds.barh(names, indexing, left=writing, color=OURS_TOO)
        seconds.set_title(f"{place}, seconds (light: building the index)", fontsize=9)
        megabytes = [ways[name]["bytes"] / 1e6 for name in names]
        sizes.barh(names, megabytes, color=colours)
        sizes.set_title(f"{place}, MB", fontsize=9)
    return figure


def draw_encode() -> Figure:
    """Draw the tokens a second and the peak memory of the ways to encode."""
    ways = read("encode")["ways"]
    names = list(ways)[::-1]
    colours = [OURS if name.startswith("ours") else GREY for name in names]
    figure, (rates, peaks) = plt.subplots(1, 2, figsize=(8.5, 2.4), sharey=True, layout="constrained")
    rates.barh(names, [ways[name]["tokens_per_second"] for name in names], color=colours)
    rates.set_title("tokens/s", fontsize=9)
    peaks.barh(names, [ways[name]["peak_bytes"] / 2**20 for name in names], color=colours)
    peaks.set_title("peak memory, MiB", fontsize=9)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "late-chunking.svg": draw_context,
    "one-norm.svg": draw_one_norm,
    "search.svg": draw_search,
    "memory.svg": draw_memory,
    "quality.svg": draw_quality,
    "ingest.svg": draw_ingest,
    "encode.svg": draw_encode,
}


def draw(folder: Path) -> None:
    """Draw all pictures into a folder."""
    # Paths instead of text: the same picture with whatever fonts. A fixed salt: the same file for the same results.
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "pplx-vectorstore", "axes.spines.top": False, "axes.spines.right": False})
    for name, picture in PICTURES.items():
        figure = picture()
        figure.savefig(folder / name, metadata={"Date": None}, facecolor="white", bbox_inches="tight")
        plt.close(figure)


if __name__ == "__main__":
    draw(DOCS)
