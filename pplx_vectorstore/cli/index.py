"""``pplx-vectorstore index``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pplx_vectorstore.chunking import DEFAULT_CHUNK_TOKENS
from pplx_vectorstore.cli.model import load_model
from pplx_vectorstore.cli.options import (
    NEAREST,
    BackendOption,
    BaseUrlOption,
    BulkOption,
    CollectionOption,
    DeviceOption,
    DtypeOption,
    GrpcPortOption,
    OnnxFileOption,
    QuietOption,
    StoreOption,
    TenantOption,
    is_url,
    read_path,
)
from pplx_vectorstore.cli.stores import (
    bulk_load,
    connect,
    index_what_is_not,
    open_reader,
    recorded_fingerprint,
)
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.models import DEFAULT_MODEL, OFFLINE_MODEL
from pplx_vectorstore.redaction import without_password
from pplx_vectorstore.terminal import note, reported_errors
from pplx_vectorstore.walking import DEFAULT_MAX_FILE_SIZE

if TYPE_CHECKING:
    from pplx_vectorstore.file_updates import FileUpdate
    from pplx_vectorstore.store import VectorStore


def index(
    paths: Annotated[list[Path], typer.Argument(parser=read_path, help="Files and folders.", metavar="PATH")],
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Model name, hub id or folder; by default the index's own, or {DEFAULT_MODEL} for a new index. "
            f"{OFFLINE_MODEL} works without network."
        ),
    ] = None,
    store: StoreOption = NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also delete from the index what is gone from these paths.")
    ] = False,
    root: Annotated[
        Path | None,
        typer.Option(
            parser=read_path,
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
    quiet: QuietOption = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Name every file that is left out or skipped.")
    ] = False,
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
    base_url: BaseUrlOption = None,
    onnx_file: OnnxFileOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Index files and folders; what has not changed is skipped.

    Reads text, Markdown, source code, HTML, PDF, Word, PowerPoint, Excel,
    EPUB, notebooks, tables and e-mail. A file that has changed is embedded
    again whole; files that cannot be read are reported and skipped.
    """
    from pplx_vectorstore.chunking import Chunker
    from pplx_vectorstore.display import print_estimate, print_notes, print_report, print_skipped
    from pplx_vectorstore.dry_run import estimate
    from pplx_vectorstore.encoders.unfinished import Unfinished
    from pplx_vectorstore.engines.calls import BlockingCalls
    from pplx_vectorstore.file_records import FileRecords
    from pplx_vectorstore.file_settings import (
        absolute_root,
        choose_settings,
        read_settings,
        record_settings,
        relative_root,
        require_recorded,
    )
    from pplx_vectorstore.file_updates import FileUpdate
    from pplx_vectorstore.files import find_changed
    from pplx_vectorstore.rebuilding import (
        choose_collection,
        complete_replacing,
        delete_unusable,
        find_left,
        replace_collection,
    )
    from pplx_vectorstore.reports import SyncReport
    from pplx_vectorstore.store import VectorStore
    from pplx_vectorstore.walking import EMPTY, WalkOptions, walk

    with reported_errors(quiet=quiet, verbose=verbose) as messages:
        base = _choose_root(root, store, paths)
        walk_options = WalkOptions(
            ignore=not no_ignore,
            hidden=hidden,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            max_file_size=max_file_size,
        )
        found = walk(paths, walk_options, skip=None if is_url(store) else Path(store))
        found.leave_out_empty()
        nothing = not found.files
        if nothing and (prune or not found.left_out.get(EMPTY)):
            would = "; --prune would delete all that was indexed from them" if prune else ""
            print_skipped(messages, found, None, verbose=verbose)
            raise InvalidInputError(f"there is no file to read in these folders{would}")
        options = {
            "window_tokens": window_tokens,
            "dimensions": dimensions,
            "backend": backend,
            "base_url": base_url,
            "onnx_file": onnx_file,
            "device": device,
            "dtype": dtype,
        }
        with connect(store, grpc_port) as client:
            recorded = read_settings(BlockingCalls.of(client), collection)
            settings = choose_settings(
                recorded,
                chunk_tokens=chunk_tokens,
                encoding=encoding,
                text_columns=tuple(text_column or ()),
                rebuild=rebuild,
            )
            if not is_url(store):
                if root is not None and base is not None:
                    settings = replace(settings, root=relative_root(base, Path(store)))
                elif settings.root is not None:
                    base = absolute_root(settings.root, Path(store))
            complete_replacing(client, collection)
            left = None if rebuild else find_left(client, collection)
            if left is not None:
                note(
                    messages,
                    f"note: an interrupted --rebuild left {left!r} beside the index, which is as it was; --rebuild "
                    "with the options of then completes it",
                    "yellow",
                )
            fingerprint = recorded_fingerprint(client, collection)
            records = None if is_url(store) else FileRecords(Path(store), collection, tenant)
            if nothing and (fingerprint is None or rebuild or dry_run):
                raise InvalidInputError("there is no file to read in these folders but empty ones")
            update = FileUpdate(found, settings, root=base, records=records)
            opened = before = reading = None
            if fingerprint is not None and (records or nothing) and not (rebuild or dry_run):
                opened = before = open_reader(client, collection, fingerprint, tenant)
                update.leave_out_unchanged(opened)
            target = collection
            # Whether options of the model fit, its encoder knows.
            if found.files or any(value not in (None, "auto") for value in (model, *options.values())):
                encoder = load_model(messages, model, fingerprint, options)
                target = choose_collection(client, collection, encoder.fingerprint, rebuild=rebuild)
                chunker = Chunker(encoder.tokenizer.tokenizer, settings.chunk_tokens)
                opened = None
                if target == collection and (fingerprint is not None or not dry_run):
                    opened = before = VectorStore(client, collection, encoder=encoder, chunker=chunker, tenant=tenant)
                elif fingerprint is not None:
                    before = open_reader(client, collection, fingerprint, tenant)
                print_notes(messages, update.choose_names(before))
                reading = update.read(chunker, password=password)
                if dry_run:
                    changed = reading if opened is None else find_changed(opened, reading)
                    print_estimate(estimate(changed, encoder), verbose=verbose)
                    print_skipped(messages, found, reading, verbose=verbose)
                    return
                if rebuild and before is not None:
                    _require_all(before, update, paths, prune=prune)
                if opened is None:
                    delete_unusable(client, target, encoder.fingerprint)
                    opened = VectorStore(client, target, encoder=encoder, chunker=chunker)
                calls = BlockingCalls.of(client)
                read = recorded if target == collection else read_settings(calls, target)
                record_settings(calls, target, settings, read=read)
                encoder.unfinished = Unfinished(_unfinished_folder(store, target))
                with bulk_load(messages, opened, bulk):
                    report = update.write(opened, progress=not quiet)
                encoder.unfinished.clear()
                require_recorded(calls, target, settings)
            else:
                print_notes(messages, update.choose_names(before))
                record_settings(BlockingCalls.of(client), collection, settings, read=recorded)
                report = SyncReport(unchanged_documents=len(update.unchanged))
            assert opened is not None
            gone = update.find_gone(before or opened, paths) if prune else []
            gone += update.find_emptied(before or opened)
            if nothing and not gone:
                raise InvalidInputError("there is no file to read in these folders but empty ones")
            if target != collection:
                replace_collection(client, collection, made_of=update.ids, may_go=gone)
                opened = VectorStore(client, collection, encoder=encoder, chunker=chunker)
            elif gone:
                opened.delete(document_ids=gone)
            report = replace(report, deleted_documents=len(gone))
            update.remember(gone, anew=rebuild)
            chunks = opened.count()
            index_what_is_not(messages, client, collection)
        print_skipped(messages, found, reading, verbose=verbose)
        if not quiet:
            print_report(report, chunks, without_password(store))
        if not update.unchanged and reading is not None and not reading.n_read:
            raise InvalidInputError("no file could be read; nothing was indexed")
        if strict and (found.skipped or (reading is not None and reading.losses)):
            raise InvalidInputError("some files, or parts of them, could not be read (--strict)")


def _require_all(opened: VectorStore, update: FileUpdate, paths: list[Path], *, prune: bool) -> None:
    """Refuse to change the settings of an index for some of its files alone."""
    from pplx_vectorstore.display import number
    from pplx_vectorstore.files import find_recorded

    spared = update.ids | set(update.find_emptied(opened))
    if prune:
        spared.update(update.find_gone(opened, paths))
    others = [document_id for document_id in find_recorded(opened) if document_id not in spared]
    if others:
        raise InvalidInputError(
            f"--rebuild is of all files of an index, and it also holds {number(len(others), 'document')} of others, "
            f"such as {others[0]}. Give their paths too, or delete them (--prune deletes those whose files are gone)"
        )


def _choose_root(given: Path | None, store: str, paths: list[Path]) -> Path | None:
    """Return what ids are to be relative to: what moves together with the index, or None for absolute ids."""
    if given is None:
        return None if is_url(store) else Path(store).resolve().parent
    if not given.is_dir():
        raise InvalidInputError(f"--root must be a folder that exists, not {str(given)!r}")
    for path in paths:
        if not path.resolve().is_relative_to(given.resolve()):
            raise InvalidInputError(f"{str(path)!r} is not below --root {str(given)!r}; give a folder that holds it")
    return given.resolve()


def _unfinished_folder(store: str, collection: str) -> Path:
    """Return where to keep what is computed of large files until it is stored."""
    from platformdirs import user_cache_path

    from pplx_vectorstore.encoders.unfinished import key_of

    if is_url(store):
        return user_cache_path("pplx-vectorstore") / f"unfinished-{key_of(without_password(store), collection).hex()}"
    return Path(store) / f".unfinished-{collection}"
