"""An index that is opened when somebody first asks for it, and again when another one takes its place."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pplx_vectorstore.agents.model import LazyModel
from pplx_vectorstore.errors import PplxVectorStoreError, StoreClosedError, StoreNotFoundError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pplx_vectorstore.agents.model import Load, LoadedEncoder
    from pplx_vectorstore.collection import Fingerprint
    from pplx_vectorstore.engines.calls import BlockingCalls
    from pplx_vectorstore.file_settings import FileSettings
    from pplx_vectorstore.store import VectorStore

    Connect = Callable[[], AbstractContextManager[Any]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an index is.

    Attributes:
        name: Folder or URL, as it may be shown.
        collection: Name of the collection.
        tenant: Whose documents; None in a collection without tenants.
        folder: Of an index in a folder, that; None of one on a server.
        way_out: What to do where there is no index yet.
    """

    name: str
    collection: str
    tenant: str | None
    folder: Path | None
    way_out: str


class LazyIndex:
    """An index that may not be there yet, or may be replaced by another one, and its model.

    Threads may share it. What it hands out stays open for as long as it is used, whatever takes its place meanwhile.

    Args:
        place: Where it is.
        connect: Opens the engine there: a context manager of its client.
        load: Loads the model of an index, or, of None, the one that a new index is to have.
    """

    def __init__(self, place: Place, connect: Connect, load: Load) -> None:
        self.place = place
        self._connect = connect
        self._model = LazyModel(load)
        self._lock = threading.Lock()
        self._creating = threading.Lock()
        self._current: _Opened | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[OpenIndex]:
        """Open the index for what needs no model.

        Raises:
            StoreNotFoundError: There is none.
            PplxVectorStoreError: It cannot be opened.
        """
        opened = self._enter()
        try:
            yield OpenIndex(opened, opened.reader)
        finally:
            self._leave(opened)

    @contextlib.contextmanager
    def searching(self) -> Iterator[OpenIndex]:
        """Open the index with its model; wait for that to be loaded.

        Raises:
            StoreNotFoundError: There is no index.
            ModelError: The model cannot be loaded; the next call tries again.
            PplxVectorStoreError: The index cannot be opened.
        """
        opened = self._enter()
        try:
            yield OpenIndex(opened, opened.with_model(self._model.get(opened.fingerprint)))
        finally:
            self._leave(opened)

    @contextlib.contextmanager
    def writing(self) -> Iterator[OpenIndex]:
        """Open the index with its model, and make an empty one where there is none; errors as of `searching`."""
        with self._creating:
            try:
                opened = self._enter()
            except StoreNotFoundError:
                self._create()
            else:
                self._leave(opened)
        with self.searching() as index:
            yield index

    def exists(self) -> bool:
        """Tell whether there is an index; errors as of `reading`, but for the one that there is none."""
        try:
            with self.reading():
                return True
        except StoreNotFoundError:
            return False

    def preload(self) -> None:
        """Begin to load the model of the index, if there is one, without waiting for it; what fails is logged."""
        threading.Thread(target=self._preload, name="pplx-vectorstore preload", daemon=True).start()

    def close(self) -> None:
        """Let go of the index."""
        with self._lock:
            opened, self._current = self._current, None
            is_used = opened is not None and opened.retire()
        if opened is not None and not is_used:
            opened.close()

    def _preload(self) -> None:
        try:
            opened = self._enter()
            try:
                self._model.get(opened.fingerprint)
            finally:
                self._leave(opened)
        except StoreNotFoundError:
            return  # until there is one
        except PplxVectorStoreError as error:
            logger.warning("%s", error)
        except Exception:
            logger.exception("the model could not be loaded")

    def _enter(self) -> _Opened:
        """Return the index that is there now; give it back with `_leave`."""
        with self._lock:
            opened = self._current
            if opened is not None:
                opened.users += 1
        if opened is not None:
            try:
                with contextlib.suppress(StoreClosedError):  # replaced just now
                    if opened.is_current():
                        return opened
            except BaseException:
                self._leave(opened)
                raise
            with self._lock:
                if self._current is opened:
                    self._current = None
                    opened.retire()
            self._leave(opened)
        with self._lock:
            if self._current is None:
                self._current = _Opened.open(self.place, self._connect)
            self._current.users += 1
            return self._current

    def _leave(self, opened: _Opened) -> None:
        with self._lock:
            opened.users -= 1
            is_last = opened.is_retired and not opened.users
        if is_last:
            opened.close()

    def _create(self) -> None:
        from pplx_vectorstore.engines.calls import BlockingCalls
        from pplx_vectorstore.store import VectorStore

        encoder = self._model.get(None)
        with self._connect() as client:
            VectorStore(client, self.place.collection, encoder=encoder, tenant=self.place.tenant)
            fingerprint = _read_fingerprint(BlockingCalls.of(client), self.place.collection)
        self._model.keep(fingerprint, encoder)


class OpenIndex:
    """An index in use.

    Attributes:
        store: The store, with its model where that was asked for.
        fingerprint: How its vectors were made.
    """

    def __init__(self, opened: _Opened, store: VectorStore) -> None:
        self._opened = opened
        self.store = store
        self.fingerprint = opened.fingerprint

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own, by which files are cut."""
        return self._opened.encoder.tokenizer.tokenizer

    @property
    def file_settings(self) -> FileSettings | None:
        """How files become documents, as it is recorded now; None where it is not."""
        from pplx_vectorstore.file_settings import read_settings

        return read_settings(self._opened.calls, self._opened.place.collection)

    def record_file_settings(self, settings: FileSettings, *, read: FileSettings | None) -> None:
        """Record how files become documents, where nobody has since `read` was recorded."""
        from pplx_vectorstore.file_settings import record_settings

        record_settings(self._opened.calls, self._opened.place.collection, settings, read=read)

    def require_file_settings(self, settings: FileSettings) -> None:
        """Make sure that these are still recorded."""
        from pplx_vectorstore.file_settings import require_recorded

        require_recorded(self._opened.calls, self._opened.place.collection, settings)


class _Opened:
    """A client, and the stores over it, counted by who uses them.

    Attributes:
        users: Calls that are under way.
        is_retired: Whether another one has taken its place: who leaves last closes it.
    """

    def __init__(self, place: Place, client: Any, calls: BlockingCalls, fingerprint: Fingerprint, stack: ExitStack):
        from pplx_vectorstore.encoders import PrecomputedEncoder

        self.place = place
        self.calls = calls
        self.fingerprint = fingerprint
        self.users = 0
        self.is_retired = False
        self._client = client
        self._stack = stack
        self._lock = threading.Lock()
        self._searcher: tuple[LoadedEncoder, VectorStore] | None = None
        self.reader = self._store(PrecomputedEncoder.of_collection(fingerprint))

    @classmethod
    def open(cls, place: Place, connect: Connect) -> _Opened:
        from pplx_vectorstore.engines.calls import BlockingCalls

        with ExitStack() as stack:
            client = stack.enter_context(connect())
            calls = BlockingCalls.of(client)
            fingerprint = _read_fingerprint(calls, place.collection)
            if fingerprint is None:
                raise StoreNotFoundError(f"there is no index {place.collection!r} in {place.name}; {place.way_out}")
            opened = cls(place, client, calls, fingerprint, stack)
            opened._stack = stack.pop_all()
        return opened

    def is_current(self) -> bool:
        """Tell whether this is still the index that is there; one that was made anew may have another model."""
        collection = self.place.collection
        client = self.reader._session.calls.client
        if hasattr(client, "is_gone") and client.is_gone(collection):
            return False
        return _read_fingerprint(self.calls, collection) == self.fingerprint

    @property
    def encoder(self) -> LoadedEncoder:
        """The model, which `with_model` was given."""
        assert self._searcher is not None
        return self._searcher[0]

    def with_model(self, encoder: LoadedEncoder) -> VectorStore:
        """Return the store with a model."""
        with self._lock:
            if self._searcher is None or self._searcher[0] is not encoder:
                self._searcher = encoder, self._store(encoder)
            return self._searcher[1]

    def retire(self) -> bool:
        """Have the last user close this; return whether there is one."""
        self.is_retired = True
        return self.users > 0

    def close(self) -> None:
        self._stack.close()

    def _store(self, encoder: Any) -> VectorStore:
        from pplx_vectorstore.store import VectorStore

        return VectorStore(self._client, self.place.collection, encoder=encoder, tenant=self.place.tenant, create=False)


def _read_fingerprint(calls: BlockingCalls, collection: str) -> Fingerprint | None:
    from pplx_vectorstore.coroutines import run_now
    from pplx_vectorstore.operations.prepare import read_fingerprint

    return run_now(read_fingerprint(calls, collection))
