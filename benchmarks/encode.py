"""Tokens per second and memory of encoding, beside the machine's own matrix products.

Contenders, on the same weights and documents, each in a process of its own:

- card: the model card's way, written plainly: documents in arrival order, batches of 8 padded to the
  longest, float32, pooled chunk by chunk;
- ours, float32 and bfloat16;
- ONNX Runtime, float32 and int8 weights.

The checkpoint has random weights, the width of pplx-embed-context-v1-0.6b, and a few of its 28 layers. Documents
are made up: from one line to 4,000 tokens, lengths spread evenly on a logarithmic scale. ::

    python benchmarks/encode.py [--documents 32] [--layers 4] [--rounds 2]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import multiplies_bfloat16, print_aim, take_turns, write_results

WIDTH, HEADS, KEY_HEADS, HEAD, INNER = 1024, 16, 8, 128, 3072
# Weights of one layer, as (inputs, outputs) of its matrix products.
PRODUCTS = (
    (WIDTH, (HEADS + 2 * KEY_HEADS) * HEAD),
    (HEADS * HEAD, WIDTH),
    (WIDTH, INNER),
    (WIDTH, INNER),
    (INNER, WIDTH),
)
SHORTEST, LONGEST, LONG_DOCUMENT, CHUNK = 8, 4000, 32_000, 200
SEPARATOR = "<|endoftext|>"
CONTENDERS = ("card", "ours float32", "ours bfloat16", "onnx float32", "onnx int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", choices=("mixed", "ten times", "long"), default="mixed", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(run_contender(arguments)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        results = compare_speed(arguments.documents, arguments.layers, arguments.rounds, Path(scratch))
        name = "encode" if multiplies_bfloat16() else "encode_without_bfloat16"
        write_results(name, results | {"memory": compare_memory(arguments.documents, Path(scratch))})


def compare_speed(documents: int, layers: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """Let all contenders encode in turns; print and return their rates, peaks and how near their codes are."""
    from pplx_vectorstore import export_onnx

    folder = scratch / "checkpoint"
    make_checkpoint(folder, layers)
    for quantize in (False, True):
        export_onnx(str(folder), folder, quantize_weights=quantize)
    lengths = document_lengths(documents)
    work = float_operations(lengths, layers)
    print(
        f"{len(lengths)} documents of {min(lengths)} to {max(lengths)} tokens, {sum(lengths):,} in all; "
        f"{layers} layers, {work / 1e12:.2f} TFLOP\n"
    )
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    peaks: dict[str, int] = {}
    limits: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _, name in take_turns(CONTENDERS, rounds):
        result = start_contender(name, folder, documents)
        seconds[name].append(result["seconds"])
        peaks[name] = max(peaks.get(name, 0), result["peak"])
        for dtype, measured in limits.items():
            measured.append(matrix_rate(dtype, lengths))
    base = np.median(seconds["card"])
    print("| way | tokens/s | times the card's | GFLOP/s | of the limit | peak memory |\n|---|---|---|---|---|---|")
    ways: dict[str, dict[str, Any]] = {}
    for name, runs in seconds.items():
        median = float(np.median(runs))
        rate = work / median / 1e9
        dtype = "bfloat16" if "bfloat16" in name else "float32"
        of_limit = None if "int8" in name else float(rate / np.median(limits[dtype]))
        ways[name] = {
            "tokens_per_second": sum(lengths) / median,
            "tokens_per_second_of_rounds": [sum(lengths) / max(runs), sum(lengths) / min(runs)],
            "times_card": float(base / median),
            "of_limit": of_limit,
            "peak_bytes": peaks[name],
        }
        share = "" if of_limit is None else f"{of_limit:.2f}"
        print(
            f"| {name} | {sum(lengths) / median:,.0f} | {base / median:.2f} | {rate:.0f} | {share} "
            f"| {peaks[name] / 2**20:,.0f} MiB |"
        )
    for dtype, measured in limits.items():
        low, median, high = np.percentile(measured, [0, 50, 100])
        print(f"\nmatrix products alone, {dtype}: median {median:.0f} GFLOP/s ({low:.0f} to {high:.0f})")
    speed = {name: way["times_card"] for name, way in ways.items()}
    share32 = ways["ours float32"]["of_limit"]
    print_aim("ours float32 over the card's way", f"{speed['ours float32']:.2f}", "1.5", speed["ours float32"] >= 1.5)
    print_aim("ours float32 of the limit", f"{share32:.2f}", "0.85", share32 >= 0.85)
    print_aim("ours bfloat16 over the card's way", f"{speed['ours bfloat16']:.2f}", "3", speed["ours bfloat16"] >= 3)
    return {
        "documents": documents,
        "tokens": sum(lengths),
        "layers": layers,
        "rounds": rounds,
        "ways": ways,
        "limit_gflops": {dtype: float(np.median(measured)) for dtype, measured in limits.items()},
        "codes": compare_codes(folder),
    }


def compare_codes(folder: Path) -> dict[str, Any]:
    codes = {name: np.load(folder / f"{name}.npy").astype(np.int64) for name in CONTENDERS}
    expected = codes["card"]
    norms = np.linalg.norm(expected, axis=1)
    results = {}
    print("\ncodes against the card's way, which sees every document whole:")
    for name in CONTENDERS[1:]:
        cosines = (codes[name] * expected).sum(axis=1) / norms / np.linalg.norm(codes[name], axis=1)
        apart = np.abs(codes[name] - expected)
        results[name] = {
            "most_apart": int(apart.max()),
            "mean_cosine": float(cosines.mean()),
            "least_cosine": float(cosines.min()),
        }
        print(
            f"  {name}: at most {apart.max()} apart, {np.mean(apart > 0):.2%} differ; cosine {cosines.mean():.6f}, "
            f"least {cosines.min():.6f}"
        )
    exact = max(results[name]["most_apart"] for name in ("ours float32", "onnx float32"))
    print_aim("float32 codes apart", str(exact), "at most 1", exact <= 1)
    return results


def compare_memory(documents: int, scratch: Path) -> dict[str, Any]:
    """Peak memory of ours, by what is encoded; one layer, for layers follow each other in the same memory."""
    folder = scratch / "one layer"
    make_checkpoint(folder, 1)
    print("\nresident memory of ours, one layer: after loading, and at its peak while encoding")
    results: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        peaks = {}
        results[dtype] = {}
        for corpus in ("mixed", "ten times", "long"):
            result = start_contender(f"ours {dtype}", folder, documents, corpus)
            peaks[corpus] = result["peak"]
            results[dtype][corpus] = {name: result[name] for name in ("loaded", "peak", "tokens")}
            print(
                f"  {dtype}, {corpus}: {result['loaded'] / 2**20:,.0f} MiB, {result['peak'] / 2**20:,.0f} MiB "
                f"({result['tokens']:,} tokens)",
                flush=True,
            )
        most = max(peaks.values()) / peaks["mixed"]
        print_aim(
            f"peak for ten times the corpus, or 32,000 tokens in one document, {dtype}",
            f"{most:.2f} times",
            "1.05",
            most <= 1.05,
        )
    return results


def start_contender(name: str, folder: Path, documents: int, corpus: str = "mixed") -> dict[str, Any]:
    command = [sys.executable, __file__, "--contender", name, "--folder", str(folder), "--documents", str(documents)]
    ran = subprocess.run([*command, "--corpus", corpus], stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(ran.stdout)
    print(f"  {name}, {corpus}: {result['seconds']:.1f} s", file=sys.stderr, flush=True)
    return result


def run_contender(arguments: argparse.Namespace) -> dict[str, Any]:
    name, folder = arguments.contender, arguments.folder
    count = arguments.documents * (10 if arguments.corpus == "ten times" else 1)
    documents = make_documents(document_lengths(count))
    if arguments.corpus == "long":
        documents.append(make_documents([LONG_DOCUMENT])[0])
    encode = (load_card if name == "card" else load_ours)(name, folder)
    encode(make_documents([300, 10]))
    loaded = reset_peak()
    started = time.perf_counter()
    codes = encode(documents)
    seconds = time.perf_counter() - started
    if arguments.corpus == "mixed":
        np.save(folder / f"{name}.npy", np.concatenate(codes))
    tokens = sum(len(chunk.split()) for document in documents for chunk in document)
    return {"seconds": seconds, "loaded": loaded, "peak": resident("VmHWM"), "tokens": tokens}


def load_ours(name: str, folder: Path) -> Callable[[list[list[str]]], list[Any]]:
    from pplx_vectorstore import load_encoder

    way, dtype = name.split()
    if way == "ours":
        return load_encoder(str(folder), dtype=dtype).encode_documents
    file = "model" if dtype == "float32" else "model_quantized"
    return load_encoder(str(folder), backend="onnx", onnx_file=file).encode_documents


def load_card(name: str, folder: Path) -> Callable[[list[list[str]]], list[Any]]:
    """Write the published ``encode`` out plainly, over stock transformers."""
    import torch
    from tokenizers import Tokenizer

    from pplx_vectorstore.encoders.checkpoints import locate_checkpoint
    from pplx_vectorstore.encoders.torch_model import load_stock_model

    model = load_stock_model(locate_checkpoint(str(folder)), torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    separator = tokenizer.token_to_id(SEPARATOR)

    def encode(documents: list[list[str]]) -> list[Any]:
        codes = []
        for start in range(0, len(documents), 8):
            texts = [SEPARATOR.join(chunks) for chunks in documents[start : start + 8]]
            rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [separator] * (longest - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
            with torch.inference_mode():
                seen = {"full_attention": mask[:, None, None, :].bool()}
                hidden = model(input_ids=ids, attention_mask=seen).last_hidden_state
            for row, vectors in zip(rows, hidden, strict=True):
                pooled, first = [], 0
                for position in [*(i for i, token in enumerate(row) if token == separator), len(row)]:
                    pooled.append(vectors[first:position].mean(dim=0))
                    first = position + 1
                tanh = torch.tanh(torch.stack(pooled))
                codes.append(torch.clamp(torch.round(tanh * 127), -128, 127).to(torch.int8).numpy())
        return codes

    return encode


def matrix_rate(dtype: str, lengths: Sequence[int]) -> float:
    """GFLOP/s of the model's matrix products alone, at its shapes, each in the faster of PyTorch's libraries.

    The products with weights take 512 rows or 4,096, whichever is faster; those of attention are queries by
    keys and probabilities by values of one head, weighted as the documents' lengths make them weigh.
    """
    import torch

    kind = getattr(torch, dtype)
    seconds = work = 0.0
    with torch.inference_mode():
        for inputs, outputs in PRODUCTS:
            weight = torch.randn(outputs, inputs).to(kind)
            rates = [product_rate(torch.randn(rows, inputs).to(kind), weight) for rows in (512, 4096)]
            operations = 2.0 * inputs * outputs * sum(lengths)
            seconds, work = seconds + operations / max(rates), work + operations
        for least, most in ((1, 256), (256, 1024), (1024, LONGEST + 1)):
            some = [n for n in lengths if least <= n < most]
            if some:
                tokens = int(np.sqrt(np.mean(np.square(some))))
                operations = 2.0 * HEADS * HEAD * sum(n * n for n in some)
                scores = product_rate(torch.randn(512, HEAD).to(kind), torch.randn(tokens, HEAD).to(kind))
                mixed = product_rate(torch.randn(512, tokens).to(kind), torch.randn(HEAD, tokens).to(kind))
                seconds, work = seconds + operations / scores + operations / mixed, work + 2 * operations
    return work / seconds / 1e9


def product_rate(x: Any, weight: Any) -> float:
    """Operations per second of ``x @ weight.T``: PyTorch's own product, or oneDNN's with packed weights."""
    import torch

    from pplx_vectorstore.encoders.packed_linear import pack_linear

    ways = (functools.partial(torch.nn.functional.linear, weight=weight), pack_linear(weight))
    fastest = min(timed(way, x) for _ in range(5) for way in ways)
    return float(2 * len(x) * weight.numel() / fastest)


def timed(function: Callable[[Any], Any], x: Any) -> float:
    started = time.perf_counter()
    function(x)
    return time.perf_counter() - started


def float_operations(lengths: Sequence[int], layers: int) -> float:
    """Multiplications and additions of the products, attention's included, for every document in one window."""
    linear = sum(2 * inputs * outputs for inputs, outputs in PRODUCTS)
    return float(sum(layers * (linear * n + 4 * n * n * HEADS * HEAD) for n in lengths))


def document_lengths(n: int) -> list[int]:
    rng = np.random.default_rng(0)
    lengths = np.geomspace(SHORTEST, LONGEST, num=min(n, 32)).astype(int)
    return [int(length) for length in rng.permutation(np.resize(lengths, n))]


def make_documents(lengths: Sequence[int]) -> list[list[str]]:
    """Make documents of so many tokens in chunks of 200: every word of the made-up language is one token."""
    rng = np.random.default_rng(len(lengths))
    documents = []
    for length in lengths:
        chunks = [CHUNK] * (length // CHUNK) + ([length % CHUNK] if length % CHUNK else [])
        documents.append([" ".join(f"w{word}" for word in rng.integers(0, 8000, size=size)) for size in chunks])
    return documents


def make_checkpoint(folder: Path, layers: int) -> None:
    """Write a random checkpoint in the published layout whose tokenizer has a token for every word."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Qwen3Config, Qwen3Model

    folder.mkdir()
    words = {f"w{number}": number for number in range(8000)} | {SEPARATOR: 8000, "[UNK]": 8001}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([SEPARATOR])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": HEAD,
        "intermediate_size": INNER,
        "vocab_size": len(words),
        "max_position_embeddings": 32768,
        "pad_token_id": 8000,
        "initializer_range": 0.04,
    }
    torch.manual_seed(0)
    weights = Qwen3Model(Qwen3Config(**settings)).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    settings |= {"model_type": "bidirectional_pplx_qwen3", "auto_map": {"AutoModel": "m.PPLXQwen3ContextualModel"}}
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")


def reset_peak() -> int:
    """Begin the count of peak memory anew; return what is resident now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
