"""A program that builds the index of a copy of a shard: ``python indexing_program.py SHARD SITE_PACKAGES``.

A process of its own, because the engine lets no other thread of its process run meanwhile. It imports nothing but the
engine, and ends when its standard input does: with the process that started it.
"""

from __future__ import annotations

import os
import select
import sys

_LOW_PRIORITY = 10


def main(folder: str, site_packages: str) -> None:
    """Optimize the shard in `folder`; `site_packages` is where the engine is installed."""
    sys.path.append(site_packages)
    import qdrant_edge

    if hasattr(os, "nice"):
        os.nice(_LOW_PRIORITY)  # searches go on beside
    _end_with_standard_input()
    shard = qdrant_edge.EdgeShard.load(folder)
    shard.optimize()
    shard.flush()
    shard.close()


def _end_with_standard_input() -> None:
    """Have the system end this process at once; a thread that waits could not, while the engine works.

    Where the system has no such signal, an orphan ends with its work, in a folder that nobody looks into.
    """
    if not sys.platform.startswith("linux"):
        return
    import fcntl

    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO, which ends a process
    if select.select([0], [], [], 0)[0]:  # it had ended before
        sys.exit("nobody waits for the index")


if __name__ == "__main__":
    main(*sys.argv[1:])
