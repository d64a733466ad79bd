"""The command line: ``pplx-vectorstore index | search | info | documents | delete | export | …``.

One module a command. What a command needs is imported when it runs, not here: the help is there at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pplx_vectorstore._version import __version__
from pplx_vectorstore.cli import copy, delete, documents, export, export_onnx, import_, index, info, mcp, search, serve
from pplx_vectorstore.cli.config import read_defaults
from pplx_vectorstore.terminal import reported_errors, run_app, say

if TYPE_CHECKING:
    from typer.core import TyperGroup

app = typer.Typer(
    help="Index files in the context of their documents, and search them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
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
app.command()(serve.serve)
app.command()(mcp.mcp)
app.command("export-onnx")(export_onnx.export_onnx)


@app.callback(invoke_without_command=True)
def _prepare(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    no_config: Annotated[
        bool, typer.Option("--no-config", help="Heed no [tool.pplx-vectorstore] in pyproject.toml, nor a config.toml.")
    ] = False,
) -> None:
    if version:
        say(f"pplx-vectorstore {__version__}")
        raise typer.Exit
    if not no_config:
        with reported_errors(code=2):
            context.default_map = dict(read_defaults(cast("TyperGroup", context.command), Path.cwd()))


def main() -> None:
    """Run the command line."""
    run_app(app)
