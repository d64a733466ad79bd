"""What the stores of one collection share in this process: whose turn it is to write, and what writes made old."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from pplx_vectorstore.collection import index_type, index_types
from pplx_vectorstore.engines.calls import Calls
from pplx_vectorstore.engines.turns import TurnLock
from pplx_vectorstore.qdrant import models

# Seconds for which a server's word on a collection is believed.
_STATE_AGE = 1.0


class Ledger:
    """Every write to a collection passes through `write`, whichever store of this process it comes from.

    Args:
        collection: Its name.

    Attributes:
        indexes: The type of each payload index, by its path, as far as it is known here.
        read_only_clients: Those that the server has refused to change the collection's settings.
        renewal: What to await now and then while indexing is held back here.
        words_lock: Held while it is found out how long texts are.
    """

    def __init__(self, collection: str) -> None:
        self.collection = collection
        self._state: tuple[float, models.CollectionInfo] | None = None
        self.indexes: Mapping[str, str] = {}
        self.read_only_clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin with locks that nobody has, and with no hold."""
        self.renewal: Callable[[], Awaitable[None]] | None = None
        self.words_lock = TurnLock()
        self._locks: dict[str | None, TurnLock] = {}
        self._mutex = threading.Lock()

    def lock_of(self, tenant: str | None) -> TurnLock:
        """Return the lock that is held while documents are replaced: tenants have none in common."""
        with self._mutex:
            return self._locks.setdefault(tenant, TurnLock())

    async def write(self, calls: Calls, verb: str, **options: Any) -> None:
        """Call a verb that changes the collection."""
        await self.renew(calls)
        await calls(verb, self.collection, **options)

    async def renew(self, calls: Calls) -> None:
        """Tell others, if it is time to, that the process lives that holds indexing back."""
        renewal = self.renewal
        if renewal is not None:
            await renewal()

    async def create_index(self, calls: Calls, field: str, schema: Any) -> None:
        """Index a payload field, by a type's name or index parameters; filters heed it from now on."""
        await self.write(calls, "create_payload_index", field_name=field, field_schema=schema)
        self.indexes = {**self.indexes, field: index_type(schema)}

    async def change(self, calls: Calls, **options: Any) -> None:
        """Change the collection's settings or metadata, as ``update_collection`` of the client does."""
        try:
            await calls("update_collection", self.collection, **options)
        finally:
            self._state = None

    async def info(self, calls: Calls, *, fresh: bool = False) -> models.CollectionInfo:
        """Return the collection's state, asked for now or, unless it has to be `fresh`, within the last second."""
        now = time.monotonic()
        state = self._state
        if fresh or state is None or now - state[0] > _STATE_AGE:
            self._state = state = now, await calls("get_collection", self.collection)
            self.indexes = index_types(state[1])
        return state[1]


_registering = threading.Lock()
_of_servers: MutableMapping[tuple[str, str], Ledger] = weakref.WeakValueDictionary()
_of_clients: MutableMapping[Any, dict[str, Ledger]] = weakref.WeakKeyDictionary()


def ledger_of(client: Any, where: str | None, collection: str) -> Ledger:
    """Return the ledger that all stores of a collection share.

    Args:
        client: Of the store.
        where: The server's address, which several clients may have; None where the client is the engine, of whose
            folder there may be several clients, or an emulation.
        collection: Its name.
    """
    with _registering:
        if where is None and (folder := getattr(client, "folder", None)) is not None:
            where = str(folder)
        if where is None:
            return _of_clients.setdefault(client, {}).setdefault(collection, Ledger(collection))
        ledger = _of_servers.get((where, collection))
        if ledger is None:
            ledger = _of_servers[where, collection] = Ledger(collection)
        return ledger


def _renew_locks() -> None:
    """In a forked process: a thread of the other may have had one, and it is the other that holds indexing back."""
    global _registering
    _registering = threading.Lock()
    of_clients = [ledger for ledgers in _of_clients.values() for ledger in ledgers.values()]
    for ledger in [*_of_servers.values(), *of_clients]:
        ledger.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
