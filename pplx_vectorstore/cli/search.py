"""``pplx-vectorstore search``."""

from __future__ import annotations

import itertools
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pplx_vectorstore.cli.model import load_model_of_queries
from pplx_vectorstore.cli.options import (
    NEAREST,
    BackendOption,
    BaseUrlOption,
    CollectionOption,
    DeviceOption,
    DtypeOption,
    GrpcPortOption,
    JsonOption,
    OnnxFileOption,
    QuietOption,
    StoreOption,
    TenantOption,
    VerboseOption,
    is_url,
)
from pplx_vectorstore.cli.stores import connect, require_fingerprint
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.errors import InvalidInputError, UnsupportedFilterError
from pplx_vectorstore.redaction import without_password
from pplx_vectorstore.terminal import complain, note, reported_errors, say_json

if TYPE_CHECKING:
    from pplx_vectorstore.store import VectorStore

_NOTHING = 1
_FAILED = 2


def search(
    query: Annotated[
        list[str], typer.Argument(help="With or without quotes; - reads it from standard input.", metavar="QUESTION")
    ],
    store: StoreOption = NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    k: Annotated[int, typer.Option("-k", help="Most hits to show.")] = 5,
    candidates: Annotated[int | None, typer.Option(help="Points to be compared by their codes.")] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Condition on the metadata: lang=en, year>=2020, author.name!=Ada, or JSON; may be repeated.",
            metavar="CONDITION",
        ),
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Least score of a hit.", metavar="SCORE")] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Also rank by the words (BM25), and fuse.")] = False,
    by_document: Annotated[
        bool, typer.Option("--by-document", help="Show the best chunk of each document only.")
    ] = False,
    context: Annotated[
        int, typer.Option("--context", "-C", help="Neighbouring chunks to show on each side, whole.")
    ] = 0,
    full: Annotated[bool, typer.Option("--full", help="Show whole chunks, as they stand in the file.")] = False,
    files: Annotated[bool, typer.Option("--files", "-l", help="Show the paths of the k best files alone.")] = False,
    as_json: JsonOption = False,
    as_lines: Annotated[
        bool, typer.Option("--jsonl", help="Print a line of JSON for each hit; with -, ask each line of the input.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Where the index's model is now, if it moved.")] = None,
    backend: BackendOption = None,
    base_url: BaseUrlOption = None,
    onnx_file: OnnxFileOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Find the chunks that answer a question best.

    Prints a table in a terminal, and else a line for each hit: path:line:
    text. Exits with 0 if something was found, 1 if nothing was, 2 on errors.
    """
    from pplx_vectorstore.cli.conditions import parse_filters
    from pplx_vectorstore.cli.hits import Score, hit_as_json, locate_hit, say_hits_as_lines, show_files, show_hits
    from pplx_vectorstore.cli.questions import read_questions
    from pplx_vectorstore.display import print_changes
    from pplx_vectorstore.file_records import FileRecords
    from pplx_vectorstore.files import find_changes
    from pplx_vectorstore.operations.finding import SearchOptions
    from pplx_vectorstore.store import VectorStore

    with reported_errors(code=_FAILED, quiet=quiet, verbose=verbose) as messages:
        if files + as_json + as_lines > 1:
            raise InvalidInputError("--files, --json and --jsonl exclude one another; give one")
        options: dict[str, Any] = {
            "k": k,
            "candidates": candidates,
            "filter": parse_filters(filter_ or []),
            "score_threshold": min_score,
            "hybrid": hybrid,
            "group_by_document": by_document or files,
            "context": context,
        }
        SearchOptions(**options)  # checked before the model is loaded for nothing
        questions = read_questions(query, one_a_line=as_lines)
        first = next(questions, None)  # asked before the model is loaded, too
        score: Score = "fused" if hybrid else "cosine"
        shown: set[str] = set()
        is_refused = False
        started = time.monotonic()
        with connect(store, grpc_port) as client:
            recorded = require_fingerprint(client, store, collection)
            options_of_model = {
                "backend": backend,
                "base_url": base_url,
                "onnx_file": onnx_file,
                "device": device,
                "dtype": dtype,
            }
            encoder = load_model_of_queries(messages, model, recorded, options_of_model)
            opened = VectorStore(client, collection, encoder=encoder, tenant=tenant, create=False)
            records = None if is_url(store) else FileRecords(Path(store), collection, tenant)
            locate = partial(locate_hit, records=records)
            if verbose:
                note(messages, f"{without_password(store)}, collection {collection}, model {recorded.model}")
            for question in () if first is None else itertools.chain([first], questions):
                try:
                    hits = opened.search(question.require_text(), **options)
                except UnsupportedFilterError:  # of any question
                    raise
                except InvalidInputError as error:
                    if question.line is None:
                        raise
                    complain(messages, f"error: line {question.line}: {error}", "red")
                    is_refused = True
                    continue
                if as_lines:
                    say_hits_as_lines(hits, question.text, score, locate)
                elif as_json:
                    say_json([hit_as_json(hit, score, locate) for hit in hits])
                elif files:
                    hits = [hit for hit in hits if locate(hit) is not None]
                    show_files(hits, locate)
                else:
                    show_hits(hits, question.text, score, locate, whole=full or context > 0)
                shown.update(hit.document_id for hit in hits)
            if records is not None and not quiet:
                changes = find_changes(opened, records, list(shown))
                print_changes(messages, changes)
            # Asked of a server, this could take long, or be against its limits.
            unknown = _unknown_fields(opened, options["filter"]) if not (shown or quiet or is_url(store)) else ""
        if verbose:
            note(messages, f"this took {time.monotonic() - started:.2f} s")
        if not shown:
            note(messages, f"nothing found{unknown}")
        if is_refused or not shown:
            raise typer.Exit(_FAILED if is_refused else _NOTHING)


def _unknown_fields(opened: VectorStore, condition: dict[str, Any] | None) -> str:
    """Tell which fields of a filter no chunk has: one may be mistyped."""
    from pplx_vectorstore.cli.conditions import fields_of

    unknown = [field for field in fields_of(condition) if not opened.count({"$not": {field: None}})]
    if not unknown:
        return ""
    return f": no chunk has a field {' or '.join(map(repr, unknown))} (search --json shows what there is)"
