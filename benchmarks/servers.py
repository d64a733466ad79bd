"""The server that a benchmark asks: a given one on this machine, or a stand-in in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped] # ships no types
from qdrant_client import QdrantClient

TESTS = Path(__file__).parent.parent / "tests"

_SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from qdrant_server import QdrantServer
with QdrantServer(sys.argv[2]) as server:
    server.delay = float(sys.argv[3])
    print(server.url, flush=True)
    sys.stdin.read()
"""


class Server(NamedTuple):
    """A running server.

    Attributes:
        url: Where it listens.
        process: What runs it.
        name: Such as "Qdrant 1.18.3".
    """

    url: str
    process: psutil.Process
    name: str

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used so far."""
        used = self.process.cpu_times()
        return float(used.user + used.system)


@contextlib.contextmanager
def serve(url: str | None = None, *, delay: float = 0.0) -> Iterator[Server]:
    """Yield a server.

    Args:
        url: Of one on this machine; None for a stand-in: the embedded engine behind Qdrant's REST interface, of whose
            processor time much is Python's.
        delay: Seconds by which the stand-in's answers to writes are late.
    """
    if url:
        port = urlsplit(url).port or 6333
        found = [one.pid for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port]
        if not found or found[0] is None:
            raise SystemExit(f"no process of this machine that may be looked at listens on port {port}")
        with contextlib.closing(QdrantClient(url=url, check_compatibility=False)) as client:
            yield Server(url, psutil.Process(found[0]), f"Qdrant {client.info().version}")
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _SERVE, str(TESTS), folder, str(delay)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield Server(process.stdout.readline().strip(), psutil.Process(process.pid), "stand-in")
            process.communicate("")
