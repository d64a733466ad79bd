"""Servers of ``pplx-vectorstore serve`` within a test's process, on models that take no time.

::

    with serve(make_encoder("pplx-embed-context-v1-0.6b")) as server:
        httpx.post(f"{server.url}/v1/embeddings", ...)
"""

import contextlib
import threading
import time

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from pplx_vectorstore.encoders import LateChunkingEncoder
from pplx_vectorstore.guarded_http.access import choose_access
from pplx_vectorstore.models import find_spec
from pplx_vectorstore.serving.app import make_app
from pplx_vectorstore.serving.server import Server, bind
from pplx_vectorstore.serving.service import EmbeddingService
from pplx_vectorstore.tokenization import ChunkTokenizer

SEPARATOR = "<|endoftext|>"
_WORD_IDS = 200


def word_tokenizer(words=()):
    """A tokenizer with a token for each word between spaces, and an id for each of those given."""
    names = [SEPARATOR, "[other]", *dict.fromkeys(words)]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[other]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return ChunkTokenizer(tokenizer)


class TableModel:
    """A token model in numpy: a token's vector is its id's, moved towards the mean of its row.

    Args:
        dimension: Of the vectors.

    Attributes:
        batches: The rows' lengths of each batch that was run.
        before: Called with the rows before each batch.
    """

    batch_tokens = 4096
    pads = False
    vocabulary_size = _WORD_IDS

    def __init__(self, dimension):
        self.dimension = dimension
        self.batches = []
        self.before = lambda rows: None
        self._table = np.random.default_rng(0).normal(scale=0.5, size=(_WORD_IDS, dimension)).astype(np.float32)

    def pool(self, rows, spans):
        self.batches.append([len(row) for row in rows])
        self.before(rows)
        pooled = []
        for row, of_row in zip(rows, spans, strict=True):
            # By counts: a vector for each token of 32,000 would take long.
            of_whole = self._mean(row)
            pooled += [0.7 * self._mean(row[start:stop]) + 0.3 * of_whole for start, stop in of_row]
        return np.stack(pooled)

    def _mean(self, ids):
        found, counts = np.unique(ids, return_counts=True)
        return (counts @ self._table[found] / len(ids)).astype(np.float32)


def make_encoder(name="pplx-embed-context-v1-0.6b", words=(), **options):
    """An encoder of a known model's settings on a `TableModel`."""
    spec = find_spec(name)
    return LateChunkingEncoder(TableModel(spec.dimension), word_tokenizer(words), spec, **options)


class RunningServer:
    """A server in a thread.

    Attributes:
        url: Where it is.
        address: The same as host and port.
        service: What does the work.
    """

    def __init__(self, load, *, api_key=None, host="127.0.0.1", allowed_hosts=(), app_options=None, **options):
        self.service = EmbeddingService(load, **options)
        access = choose_access(host, api_key, allowed_hosts)
        app = make_app(self.service, access, **(app_options or {}))
        self.app = app
        self._listener = bind(host, 0)
        self.address = self._listener.getsockname()[:2]
        self.url = "http://{}:{}".format(*self.address)
        self.server = Server(self.service, app)
        self.error = None
        self.thread = threading.Thread(target=self._run)

    def start(self, *, wait=True):
        self.thread.start()
        while wait and self.service.state == "loading":
            assert self.thread.is_alive(), self.error
            time.sleep(0.005)
        return self

    def stop(self, seconds=30):
        """Stop as SIGTERM does, and wait for the end."""
        self.server.stop()
        self.thread.join(seconds)
        assert not self.thread.is_alive()

    def _run(self):
        try:
            self.server.serve_on(self._listener)
        except BaseException as error:  # noqa: BLE001 - for the test to look at
            self.error = error


@contextlib.contextmanager
def serve(encoder, **options):
    """Serve an encoder within the block; yields a `RunningServer`."""
    running = RunningServer(lambda: encoder, **options).start()
    try:
        yield running
    finally:
        running.stop()
    assert running.error is None
