"""Prints the conversation that docs/agents.md shows: an agent's calls, and what it reads.

It is real: the command serves a folder of two files to the SDK's client, over standard input and output.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

COMMAND = str(Path(sys.executable).with_name("pplx-vectorstore"))
SHOWN_AS = "/srv/handbook"
TRAVEL = """\
# Travel

## Trains

Take the train where it takes less than six hours. First class is paid for
journeys of more than four.

## Hotels

Book what is near to where you work. Up to 140 euros a night need no approval;
beyond, ask before you book.
"""
EXPENSES = """\
# Expenses

Hand receipts in within thirty days. What is late is paid with the next but
one salary.
"""


async def converse(folder: Path) -> str:
    """Hold the conversation in a folder; return it."""
    (folder / "travel.md").write_text(TRAVEL)
    (folder / "expenses.md").write_text(EXPENSES)
    index = [COMMAND, "index", ".", "--model", "all-minilm-l6-v2", "--chunk-tokens", "40"]
    subprocess.run(index, cwd=folder, check=True, capture_output=True)
    server = StdioServerParameters(
        command=COMMAND, args=["mcp", "--allow-write", "--root", "."], env=dict(os.environ), cwd=folder
    )
    told = []
    async with Client(stdio_client(server)) as client:

        async def call(tool: str, **arguments: object) -> list[dict]:
            result = await client.call_tool(tool, arguments)
            texts = [content.text for content in result.content]
            told.append("\n".join([f"> {tool} {json.dumps(arguments)}", *texts]))
            return (result.structured_content or {}).get("hits", [])

        (hit,) = await call("search", query="What may a night in a hotel cost?", k=1)
        await call("get_context", id=hit["id"], before=1, after=0)
        edited = TRAVEL.replace("140 euros", "160 euros")
        (folder / "travel.md").write_text(edited)
        await call("search", query="What may a night in a hotel cost?", k=1)
        await call("index_folder")
        await call("search", query="What may a night in a hotel cost?", k=1)
    return "\n\n".join(told).replace(str(folder), SHOWN_AS)


def main() -> str:
    """Hold the conversation in a folder of its own; return it."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(converse(Path(folder).resolve()))


if __name__ == "__main__":
    print(main())
