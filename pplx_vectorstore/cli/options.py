"""Options that several commands take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

STORE_NAME = ".pplx-vectorstore"
"""The folder of an index that no other name was given."""
NEAREST = ""  # the option's default; no folder has that name


EMPTY = "an empty text is no path; was a variable not set? The current folder is written ."


def read_path(given: str | Path) -> Path:
    """Return a path that is given. An empty text, which a variable that is not set gives, is not the current folder.

    Raises:
        BadParameter: It is empty.
    """
    if given == "":
        raise typer.BadParameter(EMPTY)
    return Path(given)


def find_store(context: typer.Context, parameter: typer.CallbackParam, given: str) -> str:
    """Return the store that is meant: without one, the nearest from the current folder upwards, or a new one here."""
    if given != NEAREST:
        return given
    source = context.get_parameter_source(parameter.name or "")
    if source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter(EMPTY)
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return STORE_NAME  # whoever opens it finds that the current folder is gone
    nearest = next((folder for folder in (here, *here.parents) if (folder / STORE_NAME).is_dir()), here)
    return os.path.relpath(nearest / STORE_NAME)


StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        help="Folder of the index, or URL of a Qdrant server.",
        metavar="FOLDER|URL",
        callback=find_store,
        envvar="PPLX_VECTORSTORE_STORE",
        show_default=f"{STORE_NAME} here or above",
    ),
]
GrpcPortOption = Annotated[
    int | None,
    typer.Option("--grpc-port", help="Port of the server's gRPC: send points and searches over that.", metavar="PORT"),
]
CollectionOption = Annotated[str, typer.Option("--collection", help="Collection in the index.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Whose documents, in a collection with tenants.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto.")]
DtypeOption = Annotated[str, typer.Option(help="bfloat16, float32, or auto.")]
BackendOption = Annotated[
    str | None,
    typer.Option(
        help="torch, onnx, or api (hosted; key from PERPLEXITY_API_KEY); by default the index's own, or torch."
    ),
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        help="Have the model run by the `pplx-vectorstore serve` at this address (backend api); by default that in "
        "PPLX_VECTORSTORE_BASE_URL.",
        metavar="URL",
    ),
]
OnnxFileOption = Annotated[
    str | None, typer.Option(help="model, model_quantized or model_q4; by default the first there is.")
]

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors alone.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Tell details.")]
BulkOption = Annotated[
    bool,
    typer.Option(
        "--bulk", help="Index nothing while writing, and all of it afterwards: for hundreds of thousands of chunks."
    ),
]


def is_url(store: str) -> bool:
    """Tell whether a store is on a server, not in a folder."""
    return store.startswith(("http://", "https://"))
