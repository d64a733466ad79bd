"""The command line: ``pplx-vectorstore index | search | info | delete``."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pplx_vectorstore._version import __version__
from pplx_vectorstore.chunking import DEFAULT_CHUNK_TOKENS, Chunker, check_chunk_tokens
from pplx_vectorstore.collection import DEFAULT_COLLECTION, WEIGHTS_PREFIX
from pplx_vectorstore.documents import is_blank
from pplx_vectorstore.errors import (
    InvalidInputError,
    PplxVectorStoreError,
    StoreNotFoundError,
    UnknownModelError,
    UnreadableFileError,
)
from pplx_vectorstore.models import DEFAULT_MODEL, OFFLINE_MODEL, find_spec
from pplx_vectorstore.readers import find_files, locate_lines, read_document

if TYPE_CHECKING:
    from rich.console import Console

    from pplx_vectorstore.collection import Fingerprint
    from pplx_vectorstore.documents import Document, Hit
    from pplx_vectorstore.encoders import LateChunkingEncoder
    from pplx_vectorstore.engines.edge import EdgeClient
    from pplx_vectorstore.store import AddReport, VectorStore

app = typer.Typer(
    help="Index files in the context of their documents, and search them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the index.", metavar="FOLDER")]
CollectionOption = Annotated[str, typer.Option("--collection", help="Collection in the index.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto.")]
DtypeOption = Annotated[str, typer.Option(help="bfloat16, float32, or auto.")]

_DEFAULT_STORE = Path(".pplx-vectorstore")
_SHOWN_SKIPS = 10
_EXCERPT = 240
# What a terminal would obey instead of showing; line ends and tabs are harmless.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Set to see where an unexpected error comes from.
_DEBUG = "PPLX_VECTORSTORE_DEBUG"


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console of another encoding must not end the command
    app()


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"pplx-vectorstore {__version__}")
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
    store: StoreOption = _DEFAULT_STORE,
    collection: CollectionOption = DEFAULT_COLLECTION,
    chunk_tokens: Annotated[int, typer.Option(help="Most tokens of a chunk.")] = DEFAULT_CHUNK_TOKENS,
    window_tokens: Annotated[int | None, typer.Option(help="Tokens that go through the model at once.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="Cut vectors to so many components.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Index files and folders.

    Reads text, Markdown, reStructuredText, source code, HTML and PDF. A file
    indexed before is replaced; files that cannot be read are reported and skipped.
    """
    from pplx_vectorstore.engines.edge import EdgeClient
    from pplx_vectorstore.store import VectorStore

    with _reported_errors() as console:
        check_chunk_tokens(chunk_tokens)
        files = list(find_files(paths, skip=store))
        if not files:
            raise InvalidInputError("these folders hold no files (hidden ones are left out)")
        options = {"window_tokens": window_tokens, "dimensions": dimensions, "device": device, "dtype": dtype}
        skipped: list[tuple[Path, str]] = []
        with EdgeClient(store) as client:
            encoder = _load(console, model, _recorded_fingerprint(client, collection), options)
            chunker = Chunker(encoder.tokenizer.tokenizer, chunk_tokens)
            opened = VectorStore(client, collection, encoder=encoder, chunker=chunker)
            report = opened.add(_Reading(files, skipped), progress=True)
            chunks = opened.count()
        _print_report(console, report, skipped, chunks, store)
        if not report.documents:
            raise InvalidInputError("no file could be read; nothing was indexed")


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="A question.")],
    store: StoreOption = _DEFAULT_STORE,
    collection: CollectionOption = DEFAULT_COLLECTION,
    k: Annotated[int, typer.Option("-k", help="Most hits to show.")] = 5,
    candidates: Annotated[int | None, typer.Option(help="Points that reach the exact stage.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Show whole chunks, not their beginnings.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the index's model is now, if it moved.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Find the chunks that answer a question best."""
    from pplx_vectorstore.engines.edge import EdgeClient
    from pplx_vectorstore.query import choose_candidates
    from pplx_vectorstore.store import VectorStore

    with _reported_errors() as console:
        choose_candidates(k, candidates)  # before the model is loaded for nothing
        if is_blank(query):
            raise InvalidInputError("a query must not be blank")
        with EdgeClient(store) as client:
            recorded = _require_fingerprint(client, collection)
            encoder = _load(console, model, recorded, {"device": device, "dtype": dtype})
            hits = VectorStore(client, collection, encoder=encoder).search(query, k=k, candidates=candidates)
        if as_json:
            typer.echo(json.dumps([_hit_as_json(hit) for hit in hits], indent=2))
        elif hits:
            _print_hits(hits, full=full)
        else:
            typer.echo("nothing found: the index holds no chunk with a vector")


@app.command()
def info(
    store: StoreOption = _DEFAULT_STORE,
    collection: CollectionOption = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
) -> None:
    """Tell what an index holds and how it was made."""
    with _reported_errors():
        with _reader(store, collection) as (opened, recorded):
            facts = {
                "folder": str(store),
                "collection": collection,
                "documents": opened.count(_first_chunks()),
                "chunks": opened.count(),
                **asdict(recorded),
                "bytes on disk": sum(_bytes_on_disk(file) for file in store.rglob("*")),
            }
        if as_json:
            typer.echo(json.dumps({key.replace(" ", "_"): value for key, value in facts.items()}, indent=2))
        else:
            width = max(map(len, facts))
            for key, value in facts.items():
                shown = f"{value:,}" if isinstance(value, int) else value
                typer.echo(f"{key.replace('_', ' '):<{width}}  {'-' if shown is None else shown}")


@app.command()
def delete(
    documents: Annotated[list[str], typer.Argument(help="Ids of documents, as `search` shows them.", metavar="ID")],
    store: StoreOption = _DEFAULT_STORE,
    collection: CollectionOption = DEFAULT_COLLECTION,
) -> None:
    """Delete documents with all their chunks."""
    with _reported_errors():
        with _reader(store, collection) as (opened, _):
            missing = [document for document in documents if not opened.delete(document_ids=[document])]
        for document in documents:
            if document not in missing:
                typer.echo(f"deleted {document}")
        if missing:
            raise InvalidInputError(f"not in the index: {', '.join(missing)}")


class _Reading:
    """Reads files one by one as they are indexed; knows how many there are."""

    def __init__(self, files: list[Path], skipped: list[tuple[Path, str]]) -> None:
        self._files = files
        self._skipped = skipped

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Document]:
        for file in self._files:
            try:
                yield read_document(file)
            except UnreadableFileError as error:
                self._skipped.append((file, str(error)))


def _load(
    console: Console, model: str | None, recorded: Fingerprint | None, options: dict[str, Any]
) -> LateChunkingEncoder:
    """Load the model asked for, or the index's own with the settings that it was written with."""
    from pplx_vectorstore.encoders import load_encoder

    name = model or (recorded.source if recorded else DEFAULT_MODEL)
    settings: dict[str, Any] = {}
    # Another model has settings of its own; they differ, and then the store names every difference.
    if recorded is not None and (model is None or _is_same(model, recorded)):
        settings = {
            "dimensions": recorded.dimension,
            "window_tokens": recorded.window_tokens,
            "min_context": recorded.min_context,
            "context_weight": recorded.context_weight,
        }
        if not str(recorded.revision).startswith(WEIGHTS_PREFIX):
            settings["revision"] = recorded.revision
    if model is None and Path(name).is_absolute() and not Path(name).exists():
        raise UnknownModelError(f"the index's model was in {name}, which is gone; name its new folder with --model")
    given = {option: value for option, value in options.items() if value is not None}
    with console.status("loading the model") if console.is_terminal else contextlib.nullcontext():
        return load_encoder(name, **{**settings, **given})


def _is_same(model: str, recorded: Fingerprint) -> bool:
    from pplx_vectorstore.encoders.checkpoints import locate_checkpoint

    if recorded.source in (model, str(Path(model).resolve())):
        return True
    known = find_spec(model)
    if known is not None:
        return known.name == recorded.model
    return Path(model).is_dir() and locate_checkpoint(model).revision == recorded.revision


def _recorded_fingerprint(client: EdgeClient, collection: str) -> Fingerprint | None:
    """Read how the collection was written, or return None where there is none yet."""
    from pplx_vectorstore.collection import read_fingerprint

    return read_fingerprint(client, collection) if client.collection_exists(collection) else None


def _require_fingerprint(client: EdgeClient, collection: str) -> Fingerprint:
    recorded = _recorded_fingerprint(client, collection)
    if recorded is None:
        names = client.collection_names()
        hint = f"it holds {', '.join(names)}" if names else "make one with: pplx-vectorstore index PATH"
        raise StoreNotFoundError(f"there is no index {collection!r} in {client.folder}; {hint}")
    return recorded


@contextlib.contextmanager
def _reader(store: Path, collection: str) -> Iterator[tuple[VectorStore, Fingerprint]]:
    """Open an index for what needs no model."""
    from pplx_vectorstore.encoders import PrecomputedEncoder
    from pplx_vectorstore.engines.edge import EdgeClient
    from pplx_vectorstore.store import VectorStore

    with EdgeClient(store) as client:
        recorded = _require_fingerprint(client, collection)
        yield VectorStore(client, collection, encoder=PrecomputedEncoder.of_collection(recorded)), recorded


def _first_chunks() -> Any:
    """Match one chunk of every document."""
    from qdrant_client import models

    return models.Filter(must=[models.FieldCondition(key="chunk_index", match=models.MatchValue(value=0))])


def _print_report(
    console: Console, report: AddReport, skipped: list[tuple[Path, str]], chunks: int, store: Path
) -> None:
    for file, reason in skipped[:_SHOWN_SKIPS]:
        console.print(f"skipped {file}: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if len(skipped) > _SHOWN_SKIPS:
        console.print(f"and {len(skipped) - _SHOWN_SKIPS} more files skipped", style="yellow")
    typer.echo(
        f"indexed {_number(report.documents, 'document')}, {_number(report.chunks, 'chunk')}; "
        f"{store} now holds {_number(chunks, 'chunk')}"
    )


def _print_hits(hits: list[Hit], *, full: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=False, padding=(0, 1))
    table.add_column("score", no_wrap=True)
    table.add_column("where", overflow="fold", max_width=28)
    table.add_column("text", overflow="fold", ratio=1)
    for hit in hits:
        text = _CONTROL.sub("\ufffd", hit.text) if full else _excerpt(hit.text)
        table.add_row(f"{hit.score:.3f}", Text(f"{hit.document_id}\n{_place(hit)}"), Text(text + "\n"))
    Console().print(table)


def _place(hit: Hit) -> str:
    lines = locate_lines(hit.document_id, hit.start, hit.end, hit.text)
    if lines is not None:
        return f"lines {lines[0]}-{lines[1]}" if lines[0] != lines[1] else f"line {lines[0]}"
    if hit.start is not None:
        return f"characters {hit.start}-{hit.end}"
    return f"chunk {hit.chunk_index + 1} of {hit.chunk_count}"


def _excerpt(text: str) -> str:
    words = _CONTROL.sub("\ufffd", " ".join(text.split()))
    return words if len(words) <= _EXCERPT else words[:_EXCERPT].rsplit(" ", 1)[0] + " …"


def _hit_as_json(hit: Hit) -> dict[str, Any]:
    values = {name: getattr(hit, name) for name in ("id", "score", "document_id", "chunk_index", "chunk_count")}
    lines = locate_lines(hit.document_id, hit.start, hit.end, hit.text)
    return {
        **values,
        "start": hit.start,
        "end": hit.end,
        "lines": lines,
        "metadata": hit.metadata,
        "text": hit.text,
    }


def _bytes_on_disk(file: Path) -> int:
    """Return what a file takes on disk, which for the engine's sparse files is less than their size."""
    status = file.lstat()
    return int(status.st_blocks * 512) if hasattr(status, "st_blocks") else status.st_size


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@contextlib.contextmanager
def _reported_errors() -> Iterator[Console]:
    """Turn errors into one line on standard error and exit code 1, and Ctrl-C into 130."""
    from rich.console import Console

    console = Console(stderr=True)
    try:
        yield console
    except (PplxVectorStoreError, OSError) as error:
        message = " ".join(str(error).split())
        console.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        console.print(
            "interrupted: what was written stays usable; run the same command again to complete it", soft_wrap=True
        )
        raise typer.Exit(130) from error
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if os.environ.get(_DEBUG):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"error: unexpected {reason} (set {_DEBUG}=1 to see where)"
        console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
