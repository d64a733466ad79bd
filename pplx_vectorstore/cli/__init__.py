"""The command line: ``pplx-vectorstore index | search | info | documents | delete | export | …``.

One module a command. What a command needs is imported when it runs, not here: the help is there at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pplx_vectorstore._version import __version__
from pplx_vectorstore.cli import copy, delete, documents, export, export_onnx, import_, index, info, search
from pplx_vectorstore.terminal import run_app, say

app = typer.Typer(
    help="Index files in the context of their documents, and search them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(index.index)
app.command()(search.search)
app.command()(info.info)
app.command()(documents.documents)
app.command()(delete.delete)
app.command()(export.export)
app.command("import")(import_.import_)
app.command()(copy.copy)
app.command("export-onnx")(export_onnx.export_onnx)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        say(f"pplx-vectorstore {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    run_app(app)
