"""``pplx-vectorstore mcp``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pplx_vectorstore.agents import DEFAULT_HOST, DEFAULT_PORT
from pplx_vectorstore.cli.options import (
    NEAREST,
    BackendOption,
    BaseUrlOption,
    CollectionOption,
    DeviceOption,
    DtypeOption,
    GrpcPortOption,
    OnnxFileOption,
    StoreOption,
    TenantOption,
    is_url,
    read_path,
)
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.file_ids import as_text
from pplx_vectorstore.guarded_http.access import KEY_VARIABLE
from pplx_vectorstore.redaction import without_password
from pplx_vectorstore.terminal import complain, reported_errors

if TYPE_CHECKING:
    from pplx_vectorstore.collection import Fingerprint
    from pplx_vectorstore.encoders import ApiEncoder, LateChunkingEncoder, QueryEncoder


def mcp(
    context: typer.Context,
    store: StoreOption = NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    root: Annotated[
        Path | None,
        typer.Option(
            parser=read_path,
            help="Folder whose files hits are compared with, and, with --allow-write, that may be indexed.",
            metavar="FOLDER",
        ),
    ] = None,
    allow_write: Annotated[
        bool, typer.Option("--allow-write", help="Also offer tools that write: index_folder, below --root.")
    ] = False,
    describe: Annotated[
        list[str] | None, typer.Option(help="What agents read of a tool, in the place of ours.", metavar="TOOL=TEXT")
    ] = None,
    compat: Annotated[
        bool,
        typer.Option("--compat", help="Also offer the tools of mcp-server-qdrant, and heed its environment variables."),
    ] = False,
    http: Annotated[bool, typer.Option("--http", help="Serve by streamable HTTP, not by standard input.")] = False,
    host: Annotated[str, typer.Option(help="With --http: where to listen.")] = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option(help="With --http: where to listen; 0 for any free port.", min=0, max=65535)
    ] = DEFAULT_PORT,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="With --http: key that requests must have; better in the environment.",
            envvar=KEY_VARIABLE,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the index's model is now, if it moved; or the model of a new index.")
    ] = None,
    backend: BackendOption = None,
    base_url: BaseUrlOption = None,
    onnx_file: OnnxFileOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Serve an index to agents, by the Model Context Protocol.

    Offers the tools search, get_context, list_documents and index_info, and
    nothing that writes unless --allow-write is given.
    """
    from pplx_vectorstore.agents.command import ServeOptions, parse_descriptions, serve_index
    from pplx_vectorstore.agents.compat import QdrantSettings
    from pplx_vectorstore.agents.index import LazyIndex, Place
    from pplx_vectorstore.cli.model import load_model, load_model_of_queries
    from pplx_vectorstore.cli.stores import connect

    def is_given(option: str) -> bool:
        source = context.get_parameter_source(option)
        return source is not None and source.name == "COMMANDLINE"

    with reported_errors() as messages:
        for option in ("host", "port", "api_key"):
            if is_given(option) and not http:
                name = f"--{option.replace('_', '-')}"
                raise InvalidInputError(f"{name} is of --http; give that too, or leave {name} out")
        settings = QdrantSettings.from_environment(os.environ) if compat else None
        if settings is not None:
            store = store if is_given("store") else settings.store or store
            collection = collection if is_given("collection") else settings.collection or collection
            model = model or settings.model
        options = ServeOptions(
            root=root,
            allow_write=allow_write,
            descriptions=parse_descriptions(describe or []),
            compat=settings,
            http=http,
            host=host,
            port=port,
            key=api_key,
        )
        # Absolute: an agent does not know the current folder.
        name = without_password(store) if is_url(store) else as_text(Path(store).resolve())
        ways = ["index_folder"] if options.may_write and root is not None else []
        ways += ["qdrant-store"] if options.may_write and compat else []
        place = Place(
            name=name,
            collection=collection,
            tenant=tenant,
            folder=None if is_url(store) else Path(store),
            way_out=f"make one with {' or '.join([*ways, 'the command'])}: pplx-vectorstore index PATH --store {name}"
            + ("" if collection == DEFAULT_COLLECTION else f" --collection {collection}"),
        )
        options_of_model = {
            "backend": backend,
            "base_url": base_url,
            "onnx_file": onnx_file,
            "device": device,
            "dtype": dtype,
        }

        def load(recorded: Fingerprint | None) -> ApiEncoder | LateChunkingEncoder | QueryEncoder:
            if options.may_write or recorded is None:
                return load_model(messages, model, recorded, options_of_model)
            return load_model_of_queries(messages, model, recorded, options_of_model)

        index = LazyIndex(place, lambda: connect(store, grpc_port), load)
        serve_index(index, options, lambda where: complain(messages, f"serving {name} {where}"))
