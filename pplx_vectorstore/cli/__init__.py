"""The command line: ``pplx-vectorstore index | search | info | documents | delete | export | …``.

One module a command. What a command needs is imported when it runs, not here: the help is there at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand

from pplx_vectorstore._version import __version__
from pplx_vectorstore.cli import copy, delete, documents, export, export_onnx, import_, index, info, mcp, search, serve
from pplx_vectorstore.cli.config import Defaults, read_defaults
from pplx_vectorstore.terminal import note, reported_errors, run_app, say

if TYPE_CHECKING:
    from typer.core import TyperGroup

app = typer.Typer(
    help="Index files in the context of their documents, and search them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class _Command(TyperCommand):
    """A command that tells, before it does anything, what is wrong with the file of its defaults."""

    def invoke(self, ctx: Any) -> Any:
        defaults = ctx.obj
        if isinstance(defaults, Defaults):
            with reported_errors(code=2, quiet=bool(ctx.params.get("quiet"))) as messages:
                if defaults.error is not None:
                    raise defaults.error
                for line in defaults.notes:
                    note(messages, f"note: {line}", "yellow")
        return super().invoke(ctx)


app.command(cls=_Command)(index.index)
app.command(cls=_Command)(search.search)
app.command(cls=_Command)(info.info)
app.command(cls=_Command)(documents.documents)
app.command(cls=_Command)(delete.delete)
app.command(cls=_Command)(export.export)
app.command("import", cls=_Command)(import_.import_)
app.command(cls=_Command)(copy.copy)
app.command(cls=_Command)(serve.serve)
app.command(cls=_Command)(mcp.mcp)
app.command("export-onnx", cls=_Command)(export_onnx.export_onnx)


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
        context.obj = read_defaults(cast("TyperGroup", context.command))
        context.default_map = dict(context.obj.values)


def main() -> None:
    """Run the command line."""
    run_app(app)
