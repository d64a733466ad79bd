"""A model that is loaded when somebody first asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pplx_vectorstore.collection import Fingerprint
    from pplx_vectorstore.encoders import ApiEncoder, LateChunkingEncoder, QueryEncoder

    LoadedEncoder = LateChunkingEncoder | ApiEncoder | QueryEncoder
    Load = Callable[[Fingerprint | None], LoadedEncoder]

# How often who waits for the model looks whether the answer is still wanted.
_GLANCE = 0.1


class LazyModel:
    """Loads a model once for all who ask for it; again after a failure, and for an index of another model.

    It is loaded in a thread that nobody is bound to: whoever gives up does not wait for it, and neither does the
    process when it ends.

    Args:
        load: Loads the model of an index, or, of None, the one that a new index is to have.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._of: Fingerprint | None = None
        self._future: Future[LoadedEncoder] | None = None

    def get(self, recorded: Fingerprint | None) -> LoadedEncoder:
        """Return the model of an index, or of None that of a new one."""
        from pplx_vectorstore.engines.retrying import require_wanted

        with self._lock:
            future = self._future
            if future is None or self._of != recorded or (future.done() and future.exception() is not None):
                future = self._future = Future()
                self._of = recorded
                threading.Thread(
                    target=self._run, args=(future, recorded), name="pplx-vectorstore model", daemon=True
                ).start()
        while not future.done():
            wait([future], timeout=_GLANCE)
            require_wanted()
        return future.result()

    def keep(self, recorded: Fingerprint | None, encoder: LoadedEncoder) -> None:
        """Note that a model is that of an index, too, which was made with it."""
        future: Future[LoadedEncoder] = Future()
        future.set_result(encoder)
        with self._lock:
            self._of, self._future = recorded, future

    def _run(self, future: Future[LoadedEncoder], recorded: Fingerprint | None) -> None:
        try:
            future.set_result(self._load(recorded))
        except BaseException as error:  # noqa: BLE001 - it is raised where the model is needed
            future.set_exception(error)
