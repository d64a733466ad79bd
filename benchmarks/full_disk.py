"""What becomes of each operation on an index whose disk is almost full: done or refused, never a signal or a loss.

An index lies on a small file system, in memory or ext4 in a file, which is filled until so much is free as a row says.
A process opens it, does one thing, searches and closes; then there is room again, and all that was acknowledged must be
there. Needs the right to mount.

    sudo python benchmarks/full_disk.py [--size 64] [--steps 12] [--keep-filling]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pplx_vectorstore import Document, PrecomputedEncoder, VectorStore
from pplx_vectorstore.engines.shard_files import copy_folder
from pplx_vectorstore.quantization import quantize_tanh

OPERATIONS = ("search", "info", "add", "relabel", "delete", "optimize", "create")
_DIMENSION = 384
_DOCUMENTS = 60

_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from full_disk import documents, open_store
from pplx_vectorstore import Document
from pplx_vectorstore.errors import StoreFullError

folder, operation = sys.argv[2:]
asked = documents(0, 1)[0].vectors[0]

def say(word):
    print(word, flush=True)

try:
    with open_store(folder + ("-new" if operation == "create" else "")) as store:
        try:
            if operation == "info":
                assert store.count() >= 0
            elif operation in ("add", "create"):
                for i in range(1000, 1400):
                    store.add(documents(i, i + 1))
                    say(f"acknowledged {i}")
            elif operation == "relabel":
                old = documents(0, 60)
                store.sync(
                    [Document(id=d.id, chunks=d.chunks, vectors=d.vectors, metadata={"new": 1}) for d in old]
                )
            elif operation == "delete":
                store.delete(document_ids=["d59"])
                say("deleted")
            elif operation == "optimize":
                store.optimize()
            say("done")
        except StoreFullError as error:
            say("refused")
        if operation != "create":
            assert store.search(asked, k=1)[0].document_id == "d0"
            say("searched")
    say("closed")
except StoreFullError as error:
    say("refused to open")
"""


def documents(start: int, end: int) -> list[Document]:
    """Make documents of 20 chunks."""
    import numpy as np

    made = []
    for i in range(start, end):
        vectors = quantize_tanh(0.15 * np.random.default_rng(i).normal(size=(20, _DIMENSION)))
        made.append(
            Document(id=f"d{i}", chunks=[f"chunk {j} of {i} " + "word " * 40 for j in range(20)], vectors=vectors)
        )
    return made


def open_store(folder: str) -> VectorStore:
    """Open the index."""
    return VectorStore.open(folder, encoder=PrecomputedEncoder("made", _DIMENSION))


@contextlib.contextmanager
def mounted(kind: str, megabytes: int) -> Iterator[Path]:
    """Mount a new file system of a size."""
    with tempfile.TemporaryDirectory() as work:
        at = Path(work) / "at"
        at.mkdir()
        if kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(at)]
        else:
            image = Path(work) / "image"
            with image.open("wb") as file:
                file.truncate(megabytes * 2**20)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
            command = ["mount", "-o", "loop", str(image), str(at)]
        subprocess.run(command, check=True)
        try:
            yield at
        finally:
            subprocess.run(["umount", str(at)], check=True)


def fill(at: Path, leave: int) -> Path:
    """Write a file that leaves so many bytes."""
    filler = at / "filler"
    with filler.open("wb", buffering=0) as file:
        left = shutil.disk_usage(at).free - leave
        with contextlib.suppress(OSError):
            while left > 0:
                left -= file.write(bytes(min(left, 2**16)))
            os.fsync(file.fileno())
    return filler


def try_once(at: Path, source: Path, operation: str, leave: int) -> str:
    """Do one thing with so many bytes left, and check what is there when there is room again."""
    index = at / "index"
    index.mkdir()
    copy_folder(source, index)  # with its holes
    filler = fill(at, leave)
    command = [sys.executable, "-c", _PROGRAM, str(Path(__file__).parent), str(index), operation]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    filler.unlink()
    said = ended.stdout.split("\n")
    shutil.rmtree(at / "index-new", ignore_errors=True)
    outcome = next((word for word in ("refused to open", "refused", "done") if word in said), "?")
    if ended.returncode < 0:
        outcome = f"SIGNAL {-ended.returncode}"
    elif ended.returncode:
        outcome = "ERROR " + (ended.stderr.strip().splitlines() or [""])[-1][:60]
    elif outcome != "refused to open" and "closed" not in said:
        outcome = "NOT CLOSED"
    expected = {f"d{i}" for i in range(_DOCUMENTS)}
    maybe = {f"d{i}" for i in range(1000, 1400)} if operation == "add" else set()
    expected |= {f"d{line.split()[1]}" for line in said if line.startswith("acknowledged") and operation == "add"}
    if operation == "delete":
        maybe.add("d59")
        expected.discard("d59")
    with open_store(str(index)) as store:
        found = {document.id for document in store.documents()}
        if not expected <= found <= expected | maybe:
            outcome += f" LOST {len(expected - found)}, EXTRA {len(found - expected - maybe)}"
        if "deleted" in said and "d59" in found:
            outcome += " DELETED BUT THERE"
    shutil.rmtree(index)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="of the file system, in MiB")
    parser.add_argument(
        "--free", type=float, nargs="*", default=[40, 30, 24, 20, 16, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5, 0]
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "index"
        with open_store(str(source)) as store:
            store.add(documents(0, _DOCUMENTS))
        for kind in ("tmpfs", "ext4"):
            with mounted(kind, given.size) as at:
                print(f"{kind} of {given.size} MiB, free MiB → outcome")
                print(f"{'free':>6}  " + "  ".join(f"{operation:<15}" for operation in OPERATIONS))
                for free in given.free:
                    outcomes = [try_once(at, source, operation, int(free * 2**20)) for operation in OPERATIONS]
                    print(f"{free:6.1f}  " + "  ".join(f"{outcome:<15}" for outcome in outcomes), flush=True)


if __name__ == "__main__":
    main()
