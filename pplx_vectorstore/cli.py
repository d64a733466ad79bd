"""The command line: ``pplx-vectorstore index | search | info | documents | delete | export | …``."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pplx_vectorstore._version import __version__
from pplx_vectorstore.chunking import DEFAULT_CHUNK_TOKENS, Chunker
from pplx_vectorstore.collection import DEFAULT_COLLECTION, WEIGHTS_PREFIX
from pplx_vectorstore.display import (
    bytes_on_disk,
    hit_as_json,
    number,
    print_estimate,
    print_hits,
    print_notes,
    print_report,
    print_skipped,
)
from pplx_vectorstore.documents import is_blank
from pplx_vectorstore.dry_run import estimate
from pplx_vectorstore.engines.server import DEFAULT_TIMEOUT, make_client
from pplx_vectorstore.errors import InvalidInputError, StoreNotFoundError, UnknownModelError
from pplx_vectorstore.file_ids import name_file
from pplx_vectorstore.file_reading import Reading
from pplx_vectorstore.file_settings import choose_settings, read_settings, record_settings, relative_root
from pplx_vectorstore.files import Names, find_below, find_changed, find_gone, find_names, find_recorded
from pplx_vectorstore.models import DEFAULT_MODEL, OFFLINE_MODEL, find_spec
from pplx_vectorstore.readers import ReaderOptions
from pplx_vectorstore.redaction import without_password
from pplx_vectorstore.terminal import busy, reported_errors, run_app, say, say_json
from pplx_vectorstore.walking import DEFAULT_MAX_FILE_SIZE, WalkOptions, walk

if TYPE_CHECKING:
    from rich.console import Console

    from pplx_vectorstore.collection import Fingerprint
    from pplx_vectorstore.encoders import ApiEncoder, LateChunkingEncoder
    from pplx_vectorstore.engines.calls import BlockingCalls
    from pplx_vectorstore.store import VectorStore

app = typer.Typer(
    help="Index files in the context of their documents, and search them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_STORE_NAME = ".pplx-vectorstore"
_NEAREST = ""  # the option's default; no folder has that name


def _find_store(given: str) -> str:
    """Return the store that is meant: without one, the nearest from the current folder upwards, or a new one here."""
    if given != _NEAREST:
        return given
    here = Path.cwd()
    nearest = next((folder for folder in (here, *here.parents) if (folder / _STORE_NAME).is_dir()), here)
    return os.path.relpath(nearest / _STORE_NAME)


StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        help="Folder of the index, or URL of a Qdrant server.",
        metavar="FOLDER|URL",
        callback=_find_store,
        show_default=f"{_STORE_NAME} here or above",
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
OnnxFileOption = Annotated[
    str | None, typer.Option(help="model, model_quantized or model_q4; by default the first there is.")
]

BulkOption = Annotated[
    bool,
    typer.Option(
        "--bulk", help="Index nothing while writing, and all of it afterwards: for hundreds of thousands of chunks."
    ),
]


def main() -> None:
    """Run the command line."""
    run_app(app)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        say(f"pplx-vectorstore {__version__}")
        raise typer.Exit


@app.command()
def index(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.", metavar="PATH")],
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Model name, hub id or folder; by default the index's own, or {DEFAULT_MODEL} for a new index. "
            f"{OFFLINE_MODEL} works without network."
        ),
    ] = None,
    store: StoreOption = _NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also delete from the index what is gone from these paths.")
    ] = False,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that ids are relative to; by default the one that holds the index's folder. On a server, ids "
            "are absolute paths.",
            metavar="FOLDER",
        ),
    ] = None,
    no_ignore: Annotated[
        bool, typer.Option("--no-ignore", help="Heed no ignore files, and enter folders of packages.")
    ] = False,
    hidden: Annotated[bool, typer.Option("--hidden", help="Also take what begins with a dot.")] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Take only files of these patterns (as in .gitignore), of any kind.", metavar="PATTERN"),
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave files or folders out.", metavar="PATTERN")] = None,
    max_file_size: Annotated[
        int, typer.Option(help="Leave out files of folders that are larger.", metavar="BYTES")
    ] = DEFAULT_MAX_FILE_SIZE,
    encoding: Annotated[
        str | None, typer.Option(help="Of text that does not say its own; by default UTF-8, or a guess.")
    ] = None,
    password: Annotated[str | None, typer.Option(help="Of PDF files.", envvar="PPLX_VECTORSTORE_PASSWORD")] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="Column of tables that holds the text; all by default.", metavar="NAME")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be embedded, how long it takes and what it costs.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Name every file that is left out or skipped.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if a file, or a part of one, could not be read.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Read, cut and embed all files again, with other options than before.")
    ] = False,
    chunk_tokens: Annotated[
        int | None, typer.Option(help=f"Most tokens of a chunk; by default the index's own, or {DEFAULT_CHUNK_TOKENS}.")
    ] = None,
    window_tokens: Annotated[int | None, typer.Option(help="Tokens that go through the model at once.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="Cut vectors to so many components.")] = None,
    bulk: BulkOption = False,
    backend: BackendOption = None,
    onnx_file: OnnxFileOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Index files and folders; what has not changed is skipped.

    Reads text, Markdown, source code, HTML, PDF, Word, PowerPoint, Excel,
    EPUB, notebooks, tables and e-mail. A file that has changed is embedded
    again whole; files that cannot be read are reported and skipped.
    """
    from pplx_vectorstore.store import VectorStore

    with reported_errors() as console:
        base = _choose_root(root, store, paths)
        walk_options = WalkOptions(
            ignore=not no_ignore,
            hidden=hidden,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            max_file_size=max_file_size,
        )
        found = walk(paths, walk_options, skip=None if _is_url(store) else Path(store))
        files = [file.path for file in found.files]
        if not files:
            would = "; --prune would delete all that was indexed from them" if prune else ""
            print_skipped(console, found, None, verbose=verbose)
            raise InvalidInputError(f"there is no file to read in these folders{would}")
        options = {
            "window_tokens": window_tokens,
            "dimensions": dimensions,
            "backend": backend,
            "onnx_file": onnx_file,
            "device": device,
            "dtype": dtype,
        }
        with _connect(store, grpc_port) as client:
            recorded = read_settings(_calls(client), collection)
            settings = choose_settings(
                recorded,
                chunk_tokens=chunk_tokens,
                encoding=encoding,
                text_columns=tuple(text_column or ()),
                rebuild=rebuild,
            )
            if not _is_url(store):
                if root is not None and base is not None:
                    settings = replace(settings, root=relative_root(base, Path(store)))
                elif settings.root is not None:
                    base = (Path(store).resolve().parent / settings.root).resolve()
            fingerprint = _recorded_fingerprint(client, collection)
            encoder = _load(console, model, fingerprint, options)
            chunker = Chunker(encoder.tokenizer.tokenizer, settings.chunk_tokens)
            reader_options = ReaderOptions(
                encoding=settings.encoding, password=password, text_columns=settings.text_columns
            )
            opened = None
            if fingerprint is not None or not dry_run:
                opened = VectorStore(client, collection, encoder=encoder, chunker=chunker, tenant=tenant)
            names = Names(dict.fromkeys(files, base)) if opened is None else find_names(opened, files, base)
            print_notes(console, names)
            reading = Reading(found, names.roots, chunker, reader_options)
            if dry_run:
                changed = reading if opened is None else find_changed(opened, reading)
                print_estimate(estimate(changed, encoder), verbose=verbose)
                print_skipped(console, found, reading, verbose=verbose)
                return
            assert opened is not None
            if rebuild:
                _require_all(opened, paths, files, names, base, prune=prune)
            record_settings(_calls(client), collection, settings)
            with _bulk_load(console, opened, bulk):
                report = opened.sync(reading, progress=True)
            gone = find_gone(opened, paths, files, base) if prune else []
            if gone:
                opened.delete(document_ids=gone)
                report = replace(report, deleted_documents=len(gone))
            chunks = opened.count()
            _index_what_is_not(console, client, collection)
        print_skipped(console, found, reading, verbose=verbose)
        print_report(report, chunks, without_password(store))
        if not reading.n_read:
            raise InvalidInputError("no file could be read; nothing was indexed")
        if strict and (found.skipped or reading.losses):
            raise InvalidInputError("some files, or parts of them, could not be read (--strict)")


def _require_all(
    opened: VectorStore, paths: list[Path], files: list[Path], names: Names, base: Path | None, *, prune: bool
) -> None:
    """Refuse to change the settings of an index for some of its files alone."""
    spared = {name_file(file, names.roots[file]) for file in files}
    if prune:
        spared.update(find_gone(opened, paths, files, base))
    others = [document_id for document_id in find_recorded(opened) if document_id not in spared]
    if others:
        raise InvalidInputError(
            f"--rebuild is of all files of an index, and it also holds {number(len(others), 'document')} of others, "
            f"such as {others[0]}. Give their paths too, or delete them (--prune deletes those whose files are gone)"
        )


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="A question.")],
    store: StoreOption = _NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    k: Annotated[int, typer.Option("-k", help="Most hits to show.")] = 5,
    candidates: Annotated[int | None, typer.Option(help="Points to be compared by their codes.")] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help='Conditions on the metadata, as JSON: \'{"lang": "en"}\'.')
    ] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Also rank by the words (BM25), and fuse.")] = False,
    by_document: Annotated[
        bool, typer.Option("--by-document", help="Show the best chunk of each document only.")
    ] = False,
    context: Annotated[int, typer.Option(help="Neighbouring chunks to show on each side.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Show whole chunks, not their beginnings.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the index's model is now, if it moved.")] = None,
    backend: BackendOption = None,
    onnx_file: OnnxFileOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Find the chunks that answer a question best."""
    from pplx_vectorstore.operations.finding import SearchOptions
    from pplx_vectorstore.store import VectorStore

    with reported_errors() as console:
        options: dict[str, Any] = {
            "k": k,
            "candidates": candidates,
            "filter": _parse_filter(filter_),
            "hybrid": hybrid,
            "group_by_document": by_document,
            "context": context,
        }
        SearchOptions(**options)  # checked before the model is loaded for nothing
        if is_blank(query):
            raise InvalidInputError("a query must not be blank")
        with _connect(store, grpc_port) as client:
            recorded = _require_fingerprint(client, store, collection)
            options_of_model = {"backend": backend, "onnx_file": onnx_file, "device": device, "dtype": dtype}
            encoder = _load(console, model, recorded, options_of_model)
            opened = VectorStore(client, collection, encoder=encoder, tenant=tenant, create=False)
            hits = opened.search(query, **options)
        if as_json:
            say_json([hit_as_json(hit) for hit in hits])
        elif hits:
            print_hits(hits, full=full)
        else:
            say("nothing found")


@app.command()
def info(
    store: StoreOption = _NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what an index holds and how it was made."""
    from pplx_vectorstore.operations.manage import BENT

    with reported_errors(), _connect(store, grpc_port) as client:
        recorded = _require_fingerprint(client, store, collection)
        facts: dict[str, Any] = {"store": without_password(store), "collection": collection}
        tenants = _tenants(client, collection)
        if tenants is not None and tenant is None:
            facts["tenants"] = len(tenants)
        else:
            opened = _reader(client, collection, recorded, tenant)
            facts |= {
                "documents": sum(1 for _ in opened.documents()),
                "chunks": opened.count(),
                "bent chunks": opened.count(BENT),
            }
        facts |= asdict(recorded)
        settings = read_settings(_calls(client), collection)
        if settings is not None:
            facts |= asdict(settings)
        if not _is_url(store):
            facts["bytes on disk"] = sum(bytes_on_disk(file) for file in Path(store).rglob("*"))
        if as_json:
            say_json({key.replace(" ", "_"): value for key, value in facts.items()})
        else:
            width = max(map(len, facts))
            for key, value in facts.items():
                shown = f"{value:,}" if isinstance(value, int) else ", ".join(value) if type(value) is tuple else value
                say(f"{key.replace('_', ' '):<{width}}  {'-' if shown in (None, '') else shown}")


@app.command()
def documents(
    store: StoreOption = _NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the documents of an index, each with its number of chunks."""
    with reported_errors(), _connect(store, grpc_port) as client:
        opened = _reader(client, collection, _require_fingerprint(client, store, collection), tenant)
        listed = sorted(opened.documents(), key=lambda document: document.id)
        if as_json:
            say_json([asdict(document) for document in listed])
        else:
            for document in listed:
                incomplete = "" if document.chunks == document.chunk_count else "  (incomplete: index it again)"
                say(f"{document.chunks:>7,}  {document.id}{incomplete}")


@app.command()
def delete(
    ids: Annotated[
        list[str], typer.Argument(help="Ids of documents, or paths of files or folders, there or not.", metavar="ID")
    ],
    store: StoreOption = _NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
) -> None:
    """Delete documents with all their chunks."""
    with reported_errors():
        missing = []
        with _connect(store, grpc_port) as client:
            opened = _reader(client, collection, _require_fingerprint(client, store, collection), tenant)
            for given in ids:
                if given and opened.delete(document_ids=[given]):
                    say(f"deleted {given}")
                    continue
                below = find_below(opened, Path(given)) if given else []
                if below:
                    opened.delete(document_ids=below)
                    say(f"deleted {given} ({number(len(below), 'document')})")
                else:
                    missing.append(given)
        if missing:
            raise InvalidInputError(f"not in the index: {', '.join(missing)}")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="The Parquet file to write.", metavar="FILE")],
    store: StoreOption = _NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
) -> None:
    """Write all chunks with their codes to a Parquet file."""
    with reported_errors() as console, _connect(store, grpc_port) as client:
        opened = _reader(client, collection, _require_fingerprint(client, store, collection), tenant)
        with busy(console, f"exporting to {file}"):
            chunks = opened.export_parquet(file)
        say(f"exported {number(chunks, 'chunk')} to {file}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A Parquet file that `export` wrote.", metavar="FILE")],
    store: StoreOption = _NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    bulk: BulkOption = False,
) -> None:
    """Write an exported file's chunks into an index."""
    from pplx_vectorstore.operations.transfer import read_exported_fingerprint

    with reported_errors() as console, _connect(store, grpc_port) as client:
        opened = _reader(client, collection, read_exported_fingerprint(file), tenant, create=True)
        with _bulk_load(console, opened, bulk), busy(console, f"importing {file}"):
            chunks = opened.import_parquet(file)
        _index_what_is_not(console, client, collection)
        say(f"imported {number(chunks, 'chunk')} into {without_password(store)}")


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="Folder or URL to copy from.", metavar="FROM")],
    target: Annotated[str, typer.Argument(help="Folder or URL to copy to.", metavar="TO")],
    collection: CollectionOption = DEFAULT_COLLECTION,
    to_collection: Annotated[
        str | None, typer.Option(help="Collection to copy into; by default of the same name.")
    ] = None,
    tenant: TenantOption = None,
    bulk: BulkOption = False,
) -> None:
    """Copy an index between folders and servers."""
    with reported_errors() as console, _connect(source) as origin, _connect(target) as goal:
        same_place = source == target if _is_url(source) else Path(source).resolve() == Path(target).resolve()
        if same_place and (to_collection or collection) == collection:
            raise InvalidInputError("FROM and TO are the same index; name another folder, URL or --to-collection")
        recorded = _require_fingerprint(origin, source, collection)
        tenants = _tenants(origin, collection)
        chunks = 0
        if tenant is not None and tenant not in (tenants or []):
            raise InvalidInputError(f"{without_password(source)} holds no tenant {tenant!r}")
        for one in [tenant] if tenants is None or tenant is not None else tenants:
            reader = _reader(origin, collection, recorded, one)
            writer = _reader(goal, to_collection or collection, recorded, one, create=True)
            with _bulk_load(console, writer, bulk), busy(console, f"copying to {without_password(target)}"):
                chunks += reader.copy_to(writer)
        _index_what_is_not(console, goal, to_collection or collection)
        say(f"copied {number(chunks, 'chunk')} to {without_password(target)}")


@app.command("export-onnx")
def export_onnx_(
    model: Annotated[str, typer.Argument(help="Model name, hub id or folder.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write.", metavar="FOLDER")],
    quantize: Annotated[
        bool, typer.Option("--quantize", help="Weights of matrix products as int8: smaller, nearly the same vectors.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Write a model as ONNX, for --backend onnx.

    The file is written only if ONNX Runtime gives the vectors that PyTorch
    gives.
    """
    from pplx_vectorstore.encoders.onnx_export import export_onnx

    with reported_errors() as console:
        with busy(console, f"exporting {model}"):
            report = export_onnx(model, folder, revision=revision, quantize_weights=quantize)
        say(
            f"exported to {report.file} ({report.bytes / 1e6:,.1f} MB); against PyTorch: least cosine "
            f"{report.least_cosine:.6f}, codes at most {report.largest_code_difference} apart"
        )


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="Model name, hub id or folder.")] = DEFAULT_MODEL,
    host: Annotated[
        str, typer.Option(help="Name or address to listen on; others than this machine's own need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any that is free.")] = 8090,
    api_key: Annotated[
        str | None,
        typer.Option(help="Key that requests must have; better in the environment.", envvar="PPLX_VECTORSTORE_API_KEY"),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Also answer to this name in the Host header; may be repeated.", metavar="NAME"),
    ] = None,
    served_name: Annotated[
        list[str] | None, typer.Option(help="Also answer to this model name; may be repeated.", metavar="NAME")
    ] = None,
    unset_encoding: Annotated[
        str, typer.Option(help="Format for requests that name none: base64_int8, base64_binary, base64 or float.")
    ] = "base64_int8",
    window_tokens: Annotated[int | None, typer.Option(help="Tokens that go through the model at once.")] = None,
    turn_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a batch; by default a quarter of what fills the device.")
    ] = None,
    backend: Annotated[str, typer.Option(help="torch or onnx.")] = "torch",
    onnx_file: OnnxFileOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Print a line for each request, without what it holds.")
    ] = False,
) -> None:
    """Serve a model by the protocol of Perplexity's embeddings API.

    Other programs then embed by this model: through Perplexity's SDK, OpenAI's,
    or load_encoder(backend="api", base_url=...).
    """
    with reported_errors() as console:
        from pplx_vectorstore.serving.command import ServeOptions, serve_model

        serve_model(
            console,
            ServeOptions(
                model=model,
                host=host,
                port=port,
                api_key=api_key,
                allowed_hosts=tuple(allowed_host or ()),
                served_names=tuple(served_name or ()),
                unset_encoding=unset_encoding,
                turn_tokens=turn_tokens,
                log_requests=log_requests,
                load_options={
                    "window_tokens": window_tokens,
                    "backend": backend,
                    "onnx_file": onnx_file,
                    "device": device,
                    "dtype": dtype,
                },
            ),
        )


def _choose_root(given: Path | None, store: str, paths: list[Path]) -> Path | None:
    """Return what ids are to be relative to: what moves together with the index, or None for absolute ids."""
    if given is None:
        return None if _is_url(store) else Path(store).resolve().parent
    if not given.is_dir():
        raise InvalidInputError(f"--root must be a folder that exists, not {str(given)!r}")
    for path in paths:
        if not path.resolve().is_relative_to(given.resolve()):
            raise InvalidInputError(f"{str(path)!r} is not below --root {str(given)!r}; give a folder that holds it")
    return given.resolve()


def _parse_filter(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f'--filter must be JSON, such as \'{{"lang": "en"}}\': {error}') from error
    if not isinstance(parsed, dict):
        raise InvalidInputError(f"--filter must be a JSON object, not {text}")
    return parsed


def _load(
    console: Console, model: str | None, recorded: Fingerprint | None, options: dict[str, Any]
) -> LateChunkingEncoder | ApiEncoder:
    """Load the model asked for, or the index's own with the settings that it was written with."""
    from pplx_vectorstore.encoders import ApiOptions, load_encoder

    name = model or (recorded.source if recorded else DEFAULT_MODEL)
    settings: dict[str, Any] = {}
    has_model = recorded is None or recorded.window_tokens > 0  # else its vectors came from elsewhere
    if not has_model and model is None:
        raise InvalidInputError(
            f"the index was written with vectors of {name!r}, which the command line cannot load; open it from "
            "Python, with the encoder or the embeddings that wrote it"
        )
    backend, _, file = (recorded.backend if recorded is not None and has_model else "torch").partition(":")
    if options.get("backend") not in (None, backend):
        backend, file = options["backend"], ""
    onnx_file: str | None = options.get("onnx_file") or file or None
    # Another model has settings of its own; they differ, and then the store names every difference.
    if recorded is not None and (model is None or _is_same(model, recorded, backend, onnx_file)):
        settings = {
            "dimensions": recorded.dimension,
            "window_tokens": recorded.window_tokens,
            "min_context": recorded.min_context,
            "context_weight": recorded.context_weight,
            "crest_factor": recorded.crest_factor,
        }
        if not str(recorded.revision).startswith(WEIGHTS_PREFIX):
            settings["revision"] = recorded.revision
    if model is None and Path(name).is_absolute() and not Path(name).exists():
        raise UnknownModelError(f"the index's model was in {name}, which is gone; name its new folder with --model")
    settings |= {option: value for option, value in options.items() if value is not None}
    settings |= {"backend": backend, "onnx_file": onnx_file}
    if backend == "api":
        for of_the_service in ("context_weight", "crest_factor"):
            settings.pop(of_the_service, None)
        if recorded is not None and recorded.quantizer == "sign":
            settings["api"] = ApiOptions(encoding="binary")
    with busy(console, "loading the model"):
        encoder: LateChunkingEncoder | ApiEncoder = load_encoder(name, **settings)
    return encoder


def _is_same(model: str, recorded: Fingerprint, backend: str, onnx_file: str | None) -> bool:
    from pplx_vectorstore.encoders.checkpoints import locate_checkpoint, locate_onnx

    if recorded.source in (model, str(Path(model).resolve())):
        return True
    known = find_spec(model)
    if known is not None:
        return known.name == recorded.model
    if not Path(model).is_dir():
        return False
    if backend == "onnx":
        return locate_onnx(model, file=onnx_file).revision == recorded.revision
    return locate_checkpoint(model).revision == recorded.revision


def _is_url(store: str) -> bool:
    return store.startswith(("http://", "https://"))


@contextlib.contextmanager
def _connect(store: str, grpc_port: int | None = None) -> Iterator[Any]:
    """Open the engine behind --store: a folder's, or a server's client."""
    from pplx_vectorstore.engines.edge import EdgeClient

    looks_like_one = "://" in store or re.match(r"([^/\\@:]*:[^@]*@)?[\w.-]+:\d+(/|$)", store)
    if looks_like_one and not _is_url(store):
        raise InvalidInputError(
            f"{without_password(store)!r} looks like a server's address; URLs begin with http:// or https://"
        )
    if _is_url(store):
        client: Any = make_client(
            store, api_key=None, prefer_grpc=False, grpc_port=grpc_port, timeout=DEFAULT_TIMEOUT, asynchronous=False
        )
    elif grpc_port is not None:
        raise InvalidInputError(f"--grpc-port is of a server, and --store is the folder {store!r}; give a URL")
    else:
        client = EdgeClient(store)
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def _bulk_load(console: Console, store: VectorStore, wanted: bool) -> Iterator[None]:
    """Hold indexing back within the block, where that is wanted."""
    with contextlib.ExitStack() as loading:
        if wanted:
            loading.enter_context(store.bulk_load())
        yield
        with busy(console, "building the index"):
            loading.close()


def _index_what_is_not(console: Console, client: Any, collection: str) -> None:
    """Build a folder's index anew where that makes searching faster; a server does so on its own."""
    if hasattr(client, "coverage") and client.coverage(collection).is_due:
        with busy(console, "building the index"):
            client.optimize(collection)


def _calls(client: Any) -> BlockingCalls:
    from pplx_vectorstore.engines.calls import BlockingCalls
    from pplx_vectorstore.engines.retrying import Retries

    return BlockingCalls(client, Retries.of(client))


def _recorded_fingerprint(client: Any, collection: str) -> Fingerprint | None:
    """Read how the collection was written, or return None where there is none yet."""
    from pplx_vectorstore.coroutines import run_now
    from pplx_vectorstore.operations.prepare import read_fingerprint

    return run_now(read_fingerprint(_calls(client), collection))


def _require_fingerprint(client: Any, store: str, collection: str) -> Fingerprint:
    recorded = _recorded_fingerprint(client, collection)
    if recorded is None:
        names = [] if _is_url(store) else client.collection_names()
        hint = f"it holds {', '.join(names)}" if names else "make one with: pplx-vectorstore index PATH"
        raise StoreNotFoundError(f"there is no index {collection!r} in {without_password(store)}; {hint}")
    return recorded


def _tenants(client: Any, collection: str) -> list[str] | None:
    """List a collection's tenants, or return None where it has none."""
    from pplx_vectorstore.coroutines import run_now
    from pplx_vectorstore.operations.prepare import list_tenants

    return run_now(list_tenants(_calls(client), collection))


def _reader(
    client: Any, collection: str, recorded: Fingerprint, tenant: str | None, *, create: bool = False
) -> VectorStore:
    """Open an index for what needs no model."""
    from pplx_vectorstore.encoders import PrecomputedEncoder
    from pplx_vectorstore.store import VectorStore

    encoder = PrecomputedEncoder.of_collection(recorded)
    return VectorStore(client, collection, encoder=encoder, tenant=tenant, create=create)
