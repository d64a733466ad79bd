"""What one command costs from the start of its process: a search in a folder, `info`, `index` with nothing to do.

Each is run in a process of its own, in turns with a process that only imports Python, numpy and the embedded engine,
which no program of this kind can be faster than. Programs that use the library's functions directly stand beside the
command line: `python -c`, opening the folder, embedding the question and searching. The index is of the corpora, by
all-minilm-l6-v2, and files are in the page cache. Every process answers the same question, and what they find is
compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from harness import print_aim, read_corpora, take_turns, write_results

QUESTION = "How did the economy change after the pandemic?"
MODEL = "all-minilm-l6-v2"
AIM_SECONDS = 1.0
FLOOR = "import numpy, qdrant_edge"

_SEARCH = """
import sys
from pplx_vectorstore import VectorStore, {loader}
with VectorStore.open(sys.argv[1], encoder={loader}("{model}"), create=False) as store:
    print(store.search(sys.argv[2], k=1)[0].id)
"""
_INFO = """
import sys
from pplx_vectorstore import VectorStore
with VectorStore.open(sys.argv[1], create=False) as store:
    print(sum(1 for _ in store.documents()), store.count(), store.fingerprint.model)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with corpora/*.md")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--name", default="cli", help="of the result file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts, index = Path(folder) / "texts", Path(folder) / ".pplx-vectorstore"
        texts.mkdir()
        for name, text in read_corpora(arguments.data).items():
            (texts / f"{name}.md").write_text(text, "utf-8")
        run(command_line("index", str(texts), "--model", MODEL, "--store", str(index)))
        commands = {
            FLOOR: python(FLOOR),
            "pplx-vectorstore search": command_line("search", QUESTION, "-k", "1", "--json", "--store", str(index)),
            "pplx-vectorstore info": command_line("info", "--store", str(index)),
            "pplx-vectorstore index": command_line("index", str(texts), "--store", str(index)),
            "search, load_query_encoder": python(_search("load_query_encoder"), str(index), QUESTION),
            "search, load_encoder": python(_search("load_encoder"), str(index), QUESTION),
            "info": python(_INFO, str(index)),
        }
        answers = {name: run(command) for name, command in commands.items()}  # also brings files into the page cache
        if answers["search, load_query_encoder"] != answers["search, load_encoder"]:
            raise SystemExit("the two encoders found something else")
        seconds = measure(commands, arguments.rounds)
    print_table(seconds)
    write_results(arguments.name, {"rounds": arguments.rounds, "seconds": seconds})
    found = seconds["search, load_query_encoder"]
    print_aim("a search from a cold process", f"{found:.2f} s", f"≤ {AIM_SECONDS} s", found <= AIM_SECONDS)


def measure(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each command, from the start of its process to its end."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _, name in take_turns(list(commands), rounds):
        start = time.perf_counter()
        run(commands[name])
        times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def run(command: Sequence[str]) -> str:
    """Run a command, and return what it wrote."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ran.stderr}")
    return ran.stdout


def command_line(*arguments: str) -> list[str]:
    """Return the command line in a process, as its script runs it."""
    return python("import sys; from pplx_vectorstore.cli import main; sys.exit(main())", *arguments)


def python(program: str, *arguments: str) -> list[str]:
    """Return a program with its arguments."""
    return [sys.executable, "-c", program, *arguments]


def _search(loader: str) -> str:
    return _SEARCH.format(loader=loader, model=MODEL)


def print_table(seconds: Mapping[str, float]) -> None:
    """Print seconds, and how many times those of the floor they are."""
    print(f"{'':32}{'seconds':>8}{'× floor':>9}")
    for name, value in seconds.items():
        print(f"{name:32}{value:8.2f}{value / seconds[FLOOR]:9.1f}")


if __name__ == "__main__":
    main()
