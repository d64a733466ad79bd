"""What `pplx-vectorstore serve` does under load: how long a query takes, how much is embedded, what memory it takes.

A server of its own is started. Measured are the encoder alone in this process, queries on an idle server, then clients
that send documents as fast as they are answered beside others that ask queries at a steady rate, and at last many more
writers than the queue has room for.

    python benchmarks/serve_load.py [--minutes 10] [--clients 64] [--model all-minilm-l6-v2]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil  # type: ignore[import-untyped] # ships no types
from harness import print_aim, write_results

from pplx_vectorstore import load_encoder

_CHUNK_CHARACTERS = 400
_CHUNKS_EACH = 12
_QUERIES_A_SECOND = 20.0
_IDLE_QUERIES = 200
_WRITERS_SHARE = 8  # one client of so many writes
_TIMES_CAPACITY = 10
_DOCS = Path(__file__).parent.parent / "docs"


@dataclass
class Seen:
    """What clients have seen; tokens are counted up to an end."""

    end: float = float("inf")
    statuses: Counter[str] = field(default_factory=Counter)
    query_seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    resident_bytes: list[int] = field(default_factory=list)
    retry_after: list[int] = field(default_factory=list)


def read_chunks() -> list[str]:
    """Cut this project's documentation."""
    text = "".join(path.read_text("utf-8") for path in sorted(_DOCS.glob("*.md")))
    chunks = [text[start : start + _CHUNK_CHARACTERS] for start in range(0, len(text), _CHUNK_CHARACTERS)]
    return [chunk for chunk in chunks if chunk.strip()]


def make_document(chunks: list[str], rng: random.Random) -> list[str]:
    """Take some chunks that follow each other."""
    start = rng.randrange(len(chunks) - _CHUNKS_EACH)
    return chunks[start : start + _CHUNKS_EACH]


def make_query(chunks: list[str], rng: random.Random) -> str:
    """Take the first words of a chunk."""
    return " ".join(rng.choice(chunks).split()[:12]) or "why"


def measure_encoder(model: str, chunks: list[str], seconds: float) -> tuple[float, float]:
    """Return the tokens a second that the encoder does here, several documents at a time, and seconds of a query."""
    encoder = load_encoder(model)
    rng = random.Random(0)
    encoder.encode_documents([make_document(chunks, rng)])
    tokens, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        documents = [make_document(chunks, rng) for _ in range(_CHUNKS_EACH)]
        tokens += sum(len(ids) for document in documents for ids in encoder.tokenizer.encode(document))
        encoder.encode_documents(documents)
    rate = tokens / (time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(_IDLE_QUERIES):
        encoder.encode_queries([make_query(chunks, rng)])
    return rate, (time.perf_counter() - started) / _IDLE_QUERIES


@asynccontextmanager
async def serving(model: str, port: int) -> AsyncIterator[tuple[str, psutil.Process]]:
    """Run the command, and wait until it is ready."""
    command = [sys.executable, "-c", "from pplx_vectorstore.cli import main; main()", "serve", "--model", model]
    process = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    if (await client.get(f"{url}/health")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                if process.poll() is not None:
                    raise SystemExit(f"the server ended with {process.returncode}")
                await asyncio.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any], seen: Seen, timeout: float) -> float | None:
    """Ask once; return the seconds that it took, or None where it was not answered."""
    started = time.perf_counter()
    headers = {"x-stainless-read-timeout": str(timeout)}
    try:
        answer = await client.post(path, json=body, headers=headers, timeout=timeout)
    except httpx.TransportError as error:
        seen.statuses[type(error).__name__] += 1
        return None
    seen.statuses[str(answer.status_code)] += 1
    if answer.status_code == 429:
        seen.retry_after.append(int(answer.headers["retry-after"]))
        return None
    if answer.status_code != 200:
        return None
    if time.monotonic() < seen.end:
        seen.tokens += answer.json()["usage"]["total_tokens"]
    return time.perf_counter() - started


async def run_for(seconds: float, workers: list[Callable[[], Awaitable[None]]]) -> None:
    """Repeat what each worker does for so long; what is begun then is not waited for."""
    end = time.monotonic() + seconds

    async def repeat(work: Callable[[], Awaitable[None]]) -> None:
        while time.monotonic() < end:
            await work()

    tasks = [asyncio.create_task(repeat(work)) for work in workers]
    done, _ = await asyncio.wait(tasks, timeout=seconds + 60)
    for task in tasks:
        task.cancel()
    for task in done:
        task.result()


def watch(process: psutil.Process, seen: Seen) -> Callable[[], Awaitable[None]]:
    """Make a worker that looks at the server's memory each second."""

    async def look() -> None:
        seen.resident_bytes.append(process.memory_info().rss)
        await asyncio.sleep(1)

    return look


def writer(client: httpx.AsyncClient, model: str, chunks: list[str], seen: Seen, seed: int, *, heeds: bool) -> Any:
    """Make a worker that sends documents; `heeds` tells whether it waits as long as a refusal says."""
    rng = random.Random(seed)

    async def write() -> None:
        body = {"model": model, "input": [make_document(chunks, rng)]}
        refused = len(seen.retry_after)
        taken = await ask(client, "/v1/contextualizedembeddings", body, seen, 60)
        if taken is None:
            await asyncio.sleep(seen.retry_after[-1] if heeds and len(seen.retry_after) > refused else 0.5)

    return write


def asker(client: httpx.AsyncClient, model: str, chunks: list[str], seen: Seen, seed: int, pause: float) -> Any:
    """Make a worker that asks queries, on average one each `pause` seconds."""
    rng = random.Random(seed)

    async def query() -> None:
        await asyncio.sleep(rng.expovariate(1 / pause) if pause else 0)
        taken = await ask(client, "/v1/embeddings", {"model": model, "input": make_query(chunks, rng)}, seen, 60)
        if taken is not None:
            seen.query_seconds.append(taken)

    return query


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile in milliseconds."""
    return float(np.percentile(seconds, 50) * 1000), float(np.percentile(seconds, 99) * 1000)


async def measure(given: argparse.Namespace, chunks: list[str], alone: tuple[float, float]) -> dict[str, Any]:
    rate, query_seconds = alone
    # What is left for documents where the encoder alone has the same queries to do.
    possible = rate * (1 - _QUERIES_A_SECOND * query_seconds)
    results: dict[str, Any] = {
        "encoder": {
            "tokens_per_second": round(rate),
            "query_ms": round(query_seconds * 1000, 1),
            "tokens_per_second_beside_queries": round(possible),
        }
    }
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        serving(given.model, given.port) as (url, process),
        httpx.AsyncClient(base_url=url, limits=limits) as client,
    ):
        idle = Seen()
        query = asker(client, given.model, chunks, idle, 0, 0)
        for _ in range(_IDLE_QUERIES):
            await query()
        p50, p99 = percentiles(idle.query_seconds)
        results["idle"] = {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1)}
        print(f"idle: a query takes {p50:.1f} ms, p99 {p99:.1f}", flush=True)

        seconds = 60 * given.minutes
        loaded = Seen(end=time.monotonic() + seconds)
        n_writers = max(1, given.clients // _WRITERS_SHARE)
        n_askers = given.clients - n_writers
        workers = [writer(client, given.model, chunks, loaded, i, heeds=True) for i in range(n_writers)]
        workers += [
            asker(client, given.model, chunks, loaded, 1000 + i, n_askers / _QUERIES_A_SECOND) for i in range(n_askers)
        ]
        await run_for(seconds, [*workers, watch(process, loaded)])
        p50, p99 = percentiles(loaded.query_seconds)
        tenth = max(1, len(loaded.resident_bytes) // 10)
        first, last = (
            float(np.mean(part)) / 1e6
            for part in (loaded.resident_bytes[tenth : 2 * tenth], loaded.resident_bytes[-tenth:])
        )
        results["load"] = {
            "clients": given.clients,
            "minutes": given.minutes,
            "statuses": dict(loaded.statuses),
            "p50_ms": round(p50, 1),
            "p99_ms": round(p99, 1),
            "tokens_per_second": round(loaded.tokens / seconds),
            "resident_mb": [round(first), round(last)],
        }
        print(f"load: {results['load']}", flush=True)
        ratio = p99 / results["idle"]["p99_ms"]
        share = loaded.tokens / seconds / possible
        others = sum(n for status, n in loaded.statuses.items() if status not in ("200", "429"))
        print_aim("errors but 429", str(others), "0", others == 0)
        print_aim("p99 of a query, against idle", f"{ratio:.1f}", "at most 3", ratio <= 3)
        print_aim(
            "throughput, against the encoder alone with the same queries", f"{share:.0%}", "at least 90 %", share >= 0.9
        )
        print_aim("memory, last tenth against second", f"{last / first:.2f}", "at most 1.05", last / first <= 1.05)

        flood = Seen()
        # Each sends the next as soon as it was refused, or half a second later.
        writers = [
            writer(client, given.model, chunks, flood, 5000 + i, heeds=False)
            for i in range(given.clients * _TIMES_CAPACITY)
        ]
        await run_for(given.flood_seconds, [*writers, watch(process, flood)])
        results["flood"] = {
            "writers": len(writers),
            "statuses": dict(flood.statuses),
            "retry_after_s": [min(flood.retry_after, default=0), max(flood.retry_after, default=0)],
            "largest_resident_mb": round(max(flood.resident_bytes) / 1e6),
        }
        print(f"flood: {results['flood']}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--flood-seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--port", type=int, default=18090)
    given = parser.parse_args()
    chunks = read_chunks()
    alone = measure_encoder(given.model, chunks, 20)
    cores = os.cpu_count()
    print(
        f"the encoder alone: {alone[0]:,.0f} tokens a second, {alone[1] * 1000:.1f} ms a query, {cores} cores",
        flush=True,
    )
    write_results("serve_load", asyncio.run(measure(given, chunks, alone)))


if __name__ == "__main__":
    main()
