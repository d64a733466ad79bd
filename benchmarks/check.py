"""Guards the published ratios: runs a small version of each benchmark and compares with what was recorded.

Every figure is a ratio of this run, the smaller the better: ours over another way, or what is best over ours. It may
be worse than its record by the margin that stands beside it in recorded.json: ratios of sizes and of quality are nearly
the same everywhere, those of times are not, so these have wide margins. Times are compared nowhere. With --record,
what is found becomes the record; margins stay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness import multiplies_bfloat16

RECORD = Path(__file__).parent / "recorded.json"
# Margins of new figures.
OF_TIME, OF_SIZE = 0.6, 0.1

BFLOAT16 = "encode: seconds, ours bfloat16 over the card's way"


class Recorded(NamedTuple):
    """A ratio, and by which share of it another run may be worse."""

    ratio: float
    margin: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with corpora/*.md and questions.csv")
    parser.add_argument("xquad", type=Path, help="xquad.en.json")
    parser.add_argument("--record", action="store_true", help="write recorded.json anew")
    arguments = parser.parse_args()
    found = {
        **search_ratios(arguments.data),
        **ingest_ratios(arguments.data),
        **quality_ratios(arguments.data, arguments.xquad),
        **encode_ratios(),
    }
    recorded = read_record()
    print_table(found, recorded)
    if not multiplies_bfloat16():
        found |= {what: ratio for what, (ratio, _) in recorded.items() if what == BFLOAT16}
        print(f"\nnot compared, for lack of bfloat16 instructions: {BFLOAT16}")
    if arguments.record:
        write_record(found, recorded)
    elif failures := list(worse(found, recorded)):
        raise SystemExit("\n" + "\n".join(failures))


def search_ratios(data: Path) -> dict[str, float]:
    """20,000 expanded vectors of 1024 dimensions, ours and float32."""
    import search
    from vectors import expand, real_vectors

    made = search.workload("20,000 × 1024", expand(real_vectors(data, 2_000), 20_000, 1024))
    mine = search.choice(made.name)
    result = search.compare(made, [mine, "float32"], rounds=3)
    recalls = {name: {str(row["setting"]): row["recall_float"] for row in result[name]["searches"]} for name in result}
    ratios = search.ratios(result[mine], result["float32"])
    # What is resident of so small an index depends on what the allocator kept.
    found = {f"search: {what}, ours over float32": ratio for what, ratio in ratios.items() if what != "resident"}
    found["search: recall@10, float32 with ef 128 over ours with 100 candidates"] = (
        recalls["float32"]["128"] / recalls[mine]["100"]
    )
    return found


def ingest_ratios(data: Path) -> dict[str, float]:
    """All corpora, with made-up vectors: what they hold does not matter to how long they take."""
    import ingest
    import numpy as np

    chunks = ingest.cut_corpora(data, 128)
    size = sum(map(len, chunks.values()))
    vectors = np.random.default_rng(1).normal(size=(size, 384)).astype(np.float32)
    results = ingest.compare(ingest.Corpus(chunks, vectors), rounds=3)
    return {
        f"ingest, {row['place']}: {row['ours']} over {row['peer']}, {what}": row[what]
        for row in results["ratios"]
        for what in ingest.RATIOS
    }


def quality_ratios(data: Path, xquad: Path) -> dict[str, float]:
    """Two corpora and ten articles, chunks of at most 128 tokens, all-MiniLM-L6-v2."""
    import quality

    from pplx_vectorstore import Chunker, load_encoder
    from pplx_vectorstore.encoders.late_chunking import LateChunkingEncoder

    model = "all-minilm-l6-v2"
    encoder, late, independent = (
        load_encoder(model, context_weight=weight, dtype="float32") for weight in (None, 1.0, 0.0)
    )
    assert isinstance(encoder, LateChunkingEncoder)
    assert isinstance(late, LateChunkingEncoder)
    assert isinstance(independent, LateChunkingEncoder)
    found = {}
    for name, dataset in {
        "chunking_evaluation": quality.read_chunking_evaluation(data, ["state_of_the_union", "wikitexts"]),
        "XQuAD": quality.read_xquad(xquad, 10),
    }.items():
        run = quality.Run(name, dataset, Chunker(encoder.tokenizer.tokenizer, 128), 128)
        judged = quality.judge(run, encoder, late, independent, [0.0])
        gain = {form: metrics["nDCG@10"] for form, metrics in judged["forms"].items()}
        alone = judged["weights"]["0.0"]["nDCG@10"]
        found[f"quality, {name}: nDCG@10, float over search"] = gain["float"] / gain["search"]
        found[f"quality, {name}: nDCG@10, float over int8"] = gain["float"] / gain["int8"]
        found[f"quality, {name}: nDCG@10, independent over the blend"] = alone / gain["int8"]
    return found


def encode_ratios() -> dict[str, float]:
    """Eight documents, two layers."""
    import encode

    with tempfile.TemporaryDirectory() as scratch:
        ways = encode.compare_speed(8, 2, 3, Path(scratch))["ways"]
    found = {"encode: seconds, ours float32 over the card's way": 1 / ways["ours float32"]["times_card"]}
    if multiplies_bfloat16():
        found[BFLOAT16] = 1 / ways["ours bfloat16"]["times_card"]
    return found


def read_record() -> dict[str, Recorded]:
    return {what: Recorded(**entry) for what, entry in json.loads(RECORD.read_text("utf-8")).items()}


def write_record(found: Mapping[str, float], recorded: Mapping[str, Recorded]) -> None:
    entries: dict[str, Any] = {
        what: {"ratio": round(ratio, 4), "margin": recorded[what].margin if what in recorded else default_margin(what)}
        for what, ratio in found.items()
    }
    RECORD.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", "utf-8")


def default_margin(what: str) -> float:
    """Return a wide margin for ratios of times."""
    return OF_TIME if any(word in what for word in ("seconds", "latency", "build")) else OF_SIZE


def print_table(found: Mapping[str, float], recorded: Mapping[str, Recorded]) -> None:
    print("\n| ratio | found | recorded | margin |\n|---|---|---|---|")
    for what, ratio in found.items():
        record = recorded.get(what)
        print(f"| {what} | {ratio:.3f} | " + (f"{record.ratio:.3f} | {record.margin:.0%} |" if record else "– | – |"))


def worse(found: Mapping[str, float], recorded: Mapping[str, Recorded]) -> Iterator[str]:
    """Yield a line for every ratio that is worse than its record allows, has none, or was not found."""
    for what in sorted(found.keys() - recorded.keys()):
        yield f"{what}: not recorded; record it with --record"
    for what, (ratio, margin) in recorded.items():
        if what not in found:
            yield f"{what}: recorded as {ratio:.3f}, but this run did not come to it"
        elif found[what] > ratio * (1 + margin):
            yield f"{what}: {found[what]:.3f}, recorded {ratio:.3f}, more than {margin:.0%} worse"


if __name__ == "__main__":
    main()
