"""Writing documents: embed a group while the last one is being upserted, then remove what became stale."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Awaitable, Collection, Container, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.documents import Chunk, Document, is_blank
from pplx_vectorstore.encoders.meter import Progress
from pplx_vectorstore.engines.retrying import give_up_unless, operation, require_wanted
from pplx_vectorstore.equal_norms import quantize, storage_loss
from pplx_vectorstore.errors import (
    AlignmentError,
    DuplicateDocumentError,
    InvalidDocumentError,
    InvalidInputError,
    PplxVectorStoreError,
    StoreError,
)
from pplx_vectorstore.operations.access import field_any, in_batches
from pplx_vectorstore.operations.documents import document_pages
from pplx_vectorstore.operations.manage import delete_documents, flush
from pplx_vectorstore.operations.places import plan_extension
from pplx_vectorstore.operations.replace import (
    Claim,
    Holder,
    Piece,
    Version,
    find_holders,
    refuse_held,
    replace_documents,
    write_pieces,
)
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import (
    Vectors,
    chunk_point_id,
    content_hash,
    equalize_codes,
    hash_document,
    hash_of_piece,
    iter_points,
    join_metadata,
    point_id_of,
)
from pplx_vectorstore.progress import Advance, CountsBytes, show_progress
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.quantization import Codes, Quantizer
from pplx_vectorstore.reports import AddReport, SyncReport

_GROUP_DOCUMENTS = 256
_UPDATE_IDS = 256


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A document on its way: its chunks, and the hash of what is to be stored."""

    document: Document
    chunks: tuple[Chunk, ...]
    hash: str

    def point_ids(self, tenant: str | None) -> list[str]:
        """Return the ids of its points, in chunk order."""
        return [chunk_point_id(self.document, chunk, i, tenant) for i, chunk in enumerate(self.chunks)]

    def claims(self, tenant: str | None) -> dict[str, Claim]:
        """Return what its chunks' own ids are, by point id."""
        return {
            point_id_of(chunk.id, tenant): Claim(chunk.id, self.document.id)
            for chunk in self.chunks
            if chunk.id is not None
        }


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be done with a group of documents.

    Attributes:
        to_embed: To be embedded and written.
        new: Ids of documents of which nothing is stored.
        done: What was done with the others.
    """

    to_embed: list[_Prepared]
    new: Collection[str] = ()
    done: SyncReport = field(default_factory=SyncReport)


async def add(session: Session, documents: Iterable[Document], *, replace: bool, progress: bool) -> AddReport:
    """Embed and write documents, all of them, in the place of what was stored of them or beside it."""
    if not isinstance(replace, bool):
        raise InvalidInputError(f"replace must be True or False, not {replace!r}")
    done = await _write(session, documents, progress=progress, extend=not replace, seen=set())
    return AddReport(**{name: getattr(done, name) for name in AddReport.__dataclass_fields__})


async def sync(session: Session, documents: Iterable[Document], *, delete_missing: bool, progress: bool) -> SyncReport:
    """Embed and write what is new or changed; delete what is missing, if asked to."""
    seen: set[str] = set()
    done = await _write(
        session, documents, progress=progress, skip_unchanged=True, replaces_all=delete_missing, seen=seen
    )
    if not delete_missing:
        return done
    if not seen:
        raise InvalidInputError(
            "sync with delete_missing and without documents would delete every document; if that is meant, "
            "delete them by their ids"
        )
    deleted = 0
    try:
        missing = [one.id async for page in document_pages(session) for one in page if one.id not in seen]
        for some in in_batches(missing, _GROUP_DOCUMENTS):
            await delete_documents(session, some)
            deleted += len(some)
    except BaseException as error:
        _attach(error, replace(done, deleted_documents=deleted))
        raise
    return replace(done, deleted_documents=deleted)


async def _write(
    session: Session,
    documents: Iterable[Document],
    *,
    progress: bool,
    seen: set[str],
    skip_unchanged: bool = False,
    replaces_all: bool = False,
    extend: bool = False,
) -> SyncReport:
    """Write documents.

    Args:
        session: The open store.
        documents: To be written.
        progress: Whether a bar is shown.
        seen: Gets the ids of the documents that came.
        skip_unchanged: Whether only what is new or changed is written.
        replaces_all: Whether every other document will be deleted, so that its chunk ids are free.
        extend: Whether what is stored of the documents stays.
    """
    if isinstance(documents, (Document, str, Mapping)) or not isinstance(documents, Iterable):
        raise InvalidDocumentError(
            f"documents must be a list or another iterable of Document, not {type(documents).__name__}"
        )
    total = len(documents) if isinstance(documents, Sized) else None
    size = documents if isinstance(documents, CountsBytes) else None
    shown = show_progress(total, size) if progress else contextlib.nullcontext(None)
    with shown as advance, operation() as given_up:
        written = _Written(advance)
        used_before = session.usage
        report_tokens = partial(_go_on, advance)

        async def write(plan: _Plan) -> None:
            codes = await _codes_of(session, plan.to_embed, report_tokens)
            await written.settle()
            if extend:
                work = _extend_group(session, plan.to_embed, codes)
            else:
                work = _write_group(session, plan.to_embed, codes, None if replaces_all else free)
            written.follow(session.calls.start(work), _sum(plan.done, _count(plan.to_embed, plan.new)))

        try:
            groups = _groups(session, documents, seen, given_up, need_ids=extend)
            waiting: dict[str, _Prepared] = {}
            free = _Seen(seen, waiting)
            # The caller's iterable and the chunking take their time, which is no event loop's to give.
            while group := await session.calls.run(next, groups, None):
                plan = await _plan(session, group) if skip_unchanged else _Plan(group)
                if not (extend or replaces_all):
                    plan = await _set_aside(session, plan, free)
                await write(plan)
            require_wanted()  # whoever waits for the thread that this runs in may have been cancelled
            # By now, whatever the call replaces has come: a chunk's id may have moved from one document to another.
            await written.settle()
            holders = await find_holders(session, _claims(session, waiting.values()))
            refused = _held(holders, _Seen(seen, {}))
            last = [waiting.pop(id_) for id_ in list(waiting) if id_ not in refused]
            for some in in_batches(last, _GROUP_DOCUMENTS):
                plan = await _plan(session, some) if skip_unchanged else _Plan(some)
                await write(plan)
            await written.settle()
            await flush(session)
            refuse_held(holders, seen)
        except BaseException as error:
            # What is under way ends first, so that the report is true and no thread is left behind; but
            # whoever interrupts will not wait for a server to come back, nor is any more input read.
            give_up_unless(error)
            with contextlib.suppress(Exception):
                await written.settle()
            _attach(error, replace(written.report, usage=session.usage - used_before))
            raise
        return replace(written.report, usage=session.usage - used_before)


def _go_on(advance: Advance | None, done: int, all_of_them: int) -> None:
    """Report the progress of embedding; end it where nobody waits for it any more."""
    require_wanted()
    if advance is not None:
        advance.tokens(done, all_of_them)


class _Written:
    """The sum of the groups that were written, and the one under way."""

    def __init__(self, advance: Advance | None) -> None:
        self.report = SyncReport()
        self._advance = advance
        self._pending: tuple[Awaitable[int], SyncReport] | None = None

    def follow(self, work: Awaitable[int], report: SyncReport) -> None:
        self._pending = work, report

    async def settle(self) -> None:
        """Wait until the group under way is written."""
        if self._pending is None:
            return
        work, report = self._pending
        try:
            bent = await work
        except Exception:
            self._pending = None
            raise
        self._pending = None
        self.report = _sum(self.report, replace(report, bent_chunks=bent))
        if self._advance is not None:
            handled = self.report.documents + self.report.unchanged_documents + self.report.relabelled_documents
            self._advance.documents(handled, self.report.chunks)


def _groups(
    session: Session, documents: Iterable[Document], seen: set[str], given_up: threading.Event, *, need_ids: bool
) -> Iterator[list[_Prepared]]:
    """Chunk documents and gather them into what is embedded and written together."""
    most = min(_GROUP_DOCUMENTS, session.points.limits.condition_size or _GROUP_DOCUMENTS)
    group: list[_Prepared] = []
    characters = 0
    seen_chunks: set[str] = set()
    for document in documents:
        if given_up.is_set():
            return
        if not isinstance(document, Document):
            raise InvalidDocumentError(f"documents must hold Document objects, not {type(document).__name__}")
        if document.id in seen:
            raise DuplicateDocumentError(f"document id {document.id!r} comes twice in one call; ids are unique")
        seen.add(document.id)
        chunks = session.chunks_of(document)
        for i, chunk in enumerate(chunks):
            if chunk.id is None:
                if need_ids:
                    raise InvalidDocumentError(
                        f"chunk {i} of document {document.id!r} has no id; with replace=False chunks need ids of their "
                        "own, since their places are not known beforehand"
                    )
            else:
                if chunk.id in seen_chunks:
                    raise DuplicateDocumentError(f"chunk id {chunk.id!r} comes twice in one call; ids are unique")
                seen_chunks.add(chunk.id)
        group.append(_Prepared(document, chunks, hash_document(document, chunks, session.fingerprint)))
        characters += sum(len(chunk.text) for chunk in chunks)
        if characters >= session.group_characters or len(group) == most:
            yield group
            group, characters = [], 0
    if group:
        yield group


async def _plan(session: Session, group: list[_Prepared]) -> _Plan:
    """Tell what of a group is new or changed; what differs by its metadata alone is written at once.

    A document is unchanged when as many of its points have its hash as it has chunks, and it has no
    others: what an interrupted write left is neither.
    """
    by_id, by_hash = await _stored(session, group)
    to_embed, to_relabel = [], []
    n_unchanged = 0
    for one in group:
        n_chunks, n_stored = len(one.chunks), by_id.get(one.document.id, 0)
        same_content = sum(n for hash_, n in by_hash.items() if content_hash(hash_) == content_hash(one.hash))
        if n_stored != n_chunks or same_content != n_chunks:
            to_embed.append(one)
        elif n_chunks and by_hash.get(one.hash, 0) != n_chunks:
            to_relabel.append(one)
        else:
            n_unchanged += 1
    changed_meanwhile = await _relabel(session, to_relabel, list(by_hash))
    to_embed += changed_meanwhile
    new = {one.document.id for one in to_embed if not by_id.get(one.document.id)}
    done = SyncReport(
        unchanged_documents=n_unchanged,
        relabelled_documents=len(to_relabel) - len(changed_meanwhile),
        empty_documents=tuple(one.document.id for one in group if not one.chunks and one not in to_embed),
    )
    return _Plan(to_embed, new, done)


@dataclass(frozen=True, slots=True)
class _Seen(Container[str]):
    """Documents that have come in a call, without those that wait for its end.

    Attributes:
        seen: Ids of all that came.
        waiting: Of those that wait.
    """

    seen: Collection[str]
    waiting: dict[str, _Prepared]

    def __contains__(self, document_id: object) -> bool:
        return document_id in self.seen and document_id not in self.waiting


async def _set_aside(session: Session, plan: _Plan, free: _Seen) -> _Plan:
    """Let documents wait for the end of the call whose chunks' ids belong to others that have not come yet."""
    held = _held(await find_holders(session, _claims(session, plan.to_embed)), free)
    free.waiting.update((one.document.id, one) for one in plan.to_embed if one.document.id in held)
    return replace(plan, to_embed=[one for one in plan.to_embed if one.document.id not in held])


def _held(holders: Sequence[Holder], free: Container[str]) -> set[str]:
    """Return the documents that claim chunk ids of others that are not free, or of documents that do so themselves.

    What is refused is to keep what it has.
    """
    held: set[str] = set()
    while (
        more := {of.claim.document_id for of in holders if of.document_id not in free or of.document_id in held} - held
    ):
        held |= more
    return held


def _claims(session: Session, group: Iterable[_Prepared]) -> dict[str, Claim]:
    return {point_id: claim for one in group for point_id, claim in one.claims(session.points.tenant).items()}


async def _stored(session: Session, group: list[_Prepared]) -> tuple[dict[str, int], dict[str, int]]:
    """Count the points of each document of a group, and of each hash that they have."""
    ids = field_any("document_id", [one.document.id for one in group])
    by_id = await session.points.facet("document_id", ids, len(group))
    return by_id, await session.points.facet("document_hash", ids, 2 * len(group)) if by_id else {}


async def _relabel(session: Session, group: list[_Prepared], hashes: Sequence[str]) -> list[_Prepared]:
    """Write new metadata; return the documents that have to be written whole.

    Those are the documents of which another writer has changed the content meanwhile, or points were lost.

    Args:
        session: The open store.
        group: Documents of which only the metadata differs from what is stored.
        hashes: The hashes that their points had.
    """
    if not group:
        return []
    async with session.points.writing():
        try:
            await session.points.set_payloads(_relabellings(session, group, hashes))
        except StoreError as error:
            # After a process was killed, the embedded engine may still find points by their fields that it has lost.
            if session.points.capabilities.kind != "embedded" or "No point with id" not in str(error):
                raise
            return group
        by_id, by_hash = await _stored(session, group)
    return [one for one in group if not by_id.get(one.document.id, 0) == by_hash.get(one.hash, 0) == len(one.chunks)]


async def _write_group(
    session: Session, group: list[_Prepared], all_codes: Sequence[Codes], may_take_from: Container[str] | None
) -> int:
    """Put a group in the place of what is stored of its documents; return how many chunks were bent."""
    all_vectors = await session.calls.run(_equalize, session, group, all_codes)
    await session.points.heed_lengths(_texts(group))
    tenant = session.points.tenant
    versions = [
        Version(
            one.document.id,
            point_ids,
            one.claims(tenant),
            partial(iter_points, one.document, one.chunks, vectors, point_ids, one.hash, tenant),
        )
        for one, vectors in zip(group, all_vectors, strict=True)
        for point_ids in [one.point_ids(tenant)]
    ]
    if versions:
        await replace_documents(session, versions, may_take_from)
    return sum(vectors.n_bent for vectors in all_vectors)


async def _extend_group(session: Session, group: list[_Prepared], all_codes: Sequence[Codes]) -> int:
    """Put a group's chunks beside what is stored of its documents; return how many were bent."""
    all_vectors = await session.calls.run(_equalize, session, group, all_codes)
    await session.points.heed_lengths(_texts(group))
    async with session.points.writing():
        extension = await plan_extension(session, [(one.document, one.chunks) for one in group])
        pieces = [
            Piece(
                partial(
                    iter_points,
                    one.document,
                    one.chunks,
                    vectors,
                    one.point_ids(session.points.tenant),
                    one.hash if places.are_whole else hash_of_piece(one.hash),
                    session.points.tenant,
                    places,
                ),
                superseded,
            )
            for one, vectors, places, superseded in zip(
                group, all_vectors, extension.places, extension.superseded, strict=True
            )
        ]
        await write_pieces(session, pieces)
    return sum(vectors.n_bent for vectors in all_vectors)


def _texts(group: Iterable[_Prepared]) -> Iterator[str]:
    return (chunk.text for one in group for chunk in one.chunks)


def _equalize(session: Session, group: list[_Prepared], all_codes: Sequence[Codes]) -> list[Vectors]:
    """Bring vectors to the collection's norm, before anything of the group is written."""
    all_vectors = equalize_codes(all_codes, session.fingerprint.squared_norm)
    for i, one in enumerate(group):
        floats = one.document.vectors
        if floats is not None and floats.dtype != np.int8:
            # What quantizing cost is part of what storing costs.
            losses = storage_loss(floats, all_vectors[i].stored, session.fingerprint.squared_norm)
            all_vectors[i] = all_vectors[i]._replace(losses=np.where(all_vectors[i].norms > 0, losses, 0.0))
        all_vectors[i].require_directions(one.document.id, range(len(one.chunks)))
    return all_vectors


def _relabellings(
    session: Session, group: list[_Prepared], hashes: Sequence[str]
) -> Iterator[tuple[dict[str, Any], models.Filter]]:
    """Yield the payload fields to set, and what the points must match: their place, and the content still."""
    size = session.points.limits.condition_size or _UPDATE_IDS
    for one in group:
        lots: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for i, chunk in enumerate(one.chunks):
            metadata = join_metadata(one.document, chunk)
            fields = {"metadata": metadata, "document_hash": one.hash}
            _, ids = lots.setdefault(json.dumps(metadata, sort_keys=True), (fields, []))
            ids.append(chunk_point_id(one.document, chunk, i, session.points.tenant))
        of_content = [hash_ for hash_ in hashes if content_hash(hash_) == content_hash(one.hash)]
        unchanged = field_any("document_hash", of_content)
        for fields, ids in lots.values():
            for some in in_batches(ids, size):
                yield fields, models.Filter(must=[models.HasIdCondition(has_id=list(some)), unchanged])


async def _codes_of(session: Session, group: list[_Prepared], progress: Progress) -> list[Codes]:
    """Embed the group's documents that come without vectors, together."""
    texts = [[chunk.text for chunk in one.chunks] for one in group if one.document.vectors is None]
    codes: list[Codes] = []
    if texts:
        codes = await session.encode_documents(texts, progress)
    if len(codes) != len(texts):
        raise AlignmentError(f"the encoder gave codes of {len(codes)} documents for {len(texts)}")
    for chunks, some in zip(texts, codes, strict=True):
        session.require_codes(some, len(chunks))
    return await session.calls.run(_join_given, session, group, codes)


def _join_given(session: Session, group: list[_Prepared], codes: Sequence[Codes]) -> list[Codes]:
    """Return the codes of all documents of a group: those that were embedded, and those that came with vectors."""
    encoded = iter(codes)
    return [next(encoded) if one.document.vectors is None else _given_codes(session, one) for one in group]


def _given_codes(session: Session, one: _Prepared) -> Codes:
    vectors = cast("npt.NDArray[Any]", one.document.vectors)
    dimension = session.fingerprint.dimension
    if vectors.shape[1] != dimension:
        raise InvalidDocumentError(
            f"vectors of document {one.document.id!r} have {vectors.shape[1]} dimensions; "
            f"collection {session.points.collection!r} holds {dimension} (model {session.fingerprint.model!r})"
        )
    if vectors.dtype == np.int8:
        codes = vectors.copy()
    else:
        codes = quantize(vectors, cast("Quantizer", session.fingerprint.quantizer), session.fingerprint.squared_norm)
    codes[[is_blank(chunk.text) for chunk in one.chunks]] = 0  # a blank chunk is never found
    return codes


def _count(group: Sequence[_Prepared], new: Collection[str]) -> SyncReport:
    return SyncReport(
        documents=len(group),
        new_documents=sum(one.document.id in new for one in group),
        chunks=sum(len(one.chunks) for one in group),
        blank_chunks=sum(is_blank(chunk.text) for one in group for chunk in one.chunks),
        empty_documents=tuple(one.document.id for one in group if not one.chunks),
    )


def _sum(one: SyncReport, other: SyncReport) -> SyncReport:
    return SyncReport(**{name: getattr(one, name) + getattr(other, name) for name in SyncReport.__dataclass_fields__})


def _attach(error: BaseException, report: SyncReport) -> None:
    """Tell with an error what was written before it."""
    if isinstance(error, PplxVectorStoreError):
        error.report = report
    done = {
        "documents": report.documents,
        "chunks": report.chunks,
        "relabelled documents": report.relabelled_documents,
        "deleted documents": report.deleted_documents,
    }
    told = ", ".join(f"{what}: {n}" for what, n in done.items() if n or what in ("documents", "chunks"))
    rest = "" if isinstance(error, DuplicateDocumentError) else "; the same call again completes the rest"
    error.add_note(f"Written before this: {told}. That is kept{rest}.")
