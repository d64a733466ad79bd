"""Serves an index of a folder to agents, as ``pplx-vectorstore mcp`` does, with an encoder that needs no model.

Run as a program: ``agent_program.py INDEX ROOT [--http]``; what it says is JSON lines on standard error.
"""

import json
import sys
from pathlib import Path

from agent_client import lazy_index
from hash_encoder import make_encoder

from pplx_vectorstore.agents.command import ServeOptions, serve_index


def load(recorded):
    print("what a library prints")  # on standard output, where only the protocol belongs
    return make_encoder()


if __name__ == "__main__":
    folder, root, *http = sys.argv[1:]
    options = ServeOptions(root=Path(root), allow_write=True, descriptions={}, http=bool(http), port=0)
    serve_index(
        lazy_index(Path(folder), load),
        options,
        lambda where: print(json.dumps({"url": where.removeprefix("at ")}), file=sys.stderr, flush=True),
    )
