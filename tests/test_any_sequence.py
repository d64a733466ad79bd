"""Any sequence of operations: after each, a store holds exactly what a plain dict says, and finds what numpy finds.

Documents are added, synced, edited, relabelled and deleted, chunk ids move between them, stores are copied, exported,
imported and reopened, and writes are cut off in the middle and done again. More sequences than by default:
``EXAMPLES=5000 pytest tests/test_any_sequence.py -k OnEdge``.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pplx_vectorstore import AsyncVectorStore, Chunk, Document, VectorStore, cosine_similarity, equalize_norms
from pplx_vectorstore.engines import edge
from pplx_vectorstore.errors import DuplicateDocumentError, PplxVectorStoreError
from pplx_vectorstore.operations import replace, write

pytestmark = pytest.mark.slow


STEPS = 30
DIMENSION = 64
K = 10

DOCUMENTS = "abcdef"
CHUNKS = [f"id{number}" for number in range(8)]
TEXTS = ["apple", "pear", "plum", "fig", " "]
LABELS = [None, "red", "green"]


@dataclass(frozen=True)
class Held:
    """A chunk as a store must hold it."""

    text: str
    id: str | None
    index: int
    count: int
    metadata: dict = field(hash=False)
    codes: np.ndarray = field(compare=False, repr=False, hash=False)


# Chunks without ids are told by their texts' numbers, so that every text is of one chunk of one version alone.
contents = st.lists(st.sampled_from(TEXTS), max_size=5)
labels = st.sampled_from(LABELS)


@st.composite
def groups(draw):
    """Documents of different ids, and of different chunk ids: (document id, [(chunk id, text)], label)."""
    ids = draw(st.lists(st.sampled_from(DOCUMENTS), min_size=1, max_size=4, unique=True))
    free = draw(st.permutations(CHUNKS))
    made = []
    for id_ in ids:
        texts = draw(contents)
        with_ids = draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
        chunks = [(free.pop() if own and free else None, text) for own, text in zip(with_ids, texts, strict=True)]
        made.append((id_, chunks, draw(labels)))
    return made


def to_document(id_, chunks, label):
    metadata = {} if label is None else {"label": label}
    made = [Chunk(text=text, id=own, metadata={"own": own} if own else {}) for own, text in chunks]
    return Document(id=id_, chunks=made, metadata=metadata)


class Library:
    """A store, and the dict that it must equal: document id → its chunks, by chunk index."""

    def __init__(self, store, encoder):
        self.store = store
        self.held = {}
        self._encoder = encoder

    def version(self, document):
        (codes,) = self._encoder.encode_documents([[chunk.text for chunk in document.chunks]])
        return [
            Held(chunk.text, chunk.id, i, len(document.chunks), {**document.metadata, **chunk.metadata}, codes[i])
            for i, chunk in enumerate(document.chunks)
        ]

    def holder_of(self, chunk_id):
        return next((id_ for id_, chunks in self.held.items() if any(chunk.id == chunk_id for chunk in chunks)), None)

    def refused(self, documents):
        """The documents of a call that want chunk ids of documents not in it, or of refused ones."""
        seen = {document.id for document in documents}
        refused = set()
        while True:
            more = {
                document.id
                for document in documents
                for chunk in document.chunks
                if chunk.id is not None
                and (holder := self.holder_of(chunk.id)) not in (None, document.id)
                and (holder not in seen or holder in refused)
            }
            if more <= refused:
                return refused
            refused |= more

    def put(self, documents):
        """What the store holds once these documents are written."""
        self.held |= {document.id: self.version(document) for document in documents}
        self.held = {id_: chunks for id_, chunks in self.held.items() if chunks}

    def check(self):
        found = {}
        for chunk in self.store.chunks(with_codes=True):
            found.setdefault(chunk.document_id, []).append(chunk)
        assert found.keys() == self.held.keys()
        for id_, chunks in found.items():
            chunks.sort(key=lambda chunk: chunk.chunk_index)
            for chunk, expected in zip(chunks, self.held[id_], strict=True):
                assert (chunk.text, chunk.chunk_index, chunk.chunk_count) == (
                    expected.text,
                    expected.index,
                    expected.count,
                )
                assert chunk.metadata == expected.metadata
                assert expected.id in (None, chunk.id)
                np.testing.assert_array_equal(chunk.codes, expected.codes)
        assert sorted((one.id, one.chunks) for one in self.store.documents()) == sorted(
            (id_, len(chunks)) for id_, chunks in self.held.items()
        )
        assert self.store.count() == sum(map(len, self.held.values()))

    def check_search(self, codes):
        everything = [(id_, chunk) for id_, chunks in self.held.items() for chunk in chunks if chunk.codes.any()]
        hits = self.store.search(codes, k=K)
        assert len(hits) == min(K, len(everything))
        if not hits:
            return
        stored = equalize_norms(np.stack([chunk.codes for _, chunk in everything]), 784 * DIMENSION)
        cosines = cosine_similarity(codes, stored)
        of = {(id_, chunk.index): cosine for (id_, chunk), cosine in zip(everything, cosines, strict=True)}
        scores = [hit.score for hit in hits]
        np.testing.assert_allclose(scores, [of[hit.document_id, hit.chunk_index] for hit in hits], rtol=0, atol=1e-5)
        np.testing.assert_allclose(scores, np.sort(cosines)[::-1][:K], rtol=0, atol=1e-5)


class Sequences(RuleBasedStateMachine):
    """The operations; subclasses open stores and cut writes off."""

    encoder = None

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.open_all()
        self.library = Library(self.open("main"), self.encoder)
        self.mirror = Library(self.open("mirror"), self.encoder)

    def teardown(self):
        self.library.store.close()
        self.mirror.store.close()
        self.close_all()
        shutil.rmtree(self.folder)

    def open_all(self):
        """Begin."""

    def close_all(self):
        """End."""

    def open(self, name):
        """Return the store of that name, new or opened again."""
        raise NotImplementedError

    def cut_off(self, after):
        """Let the first store's write fail from its request of that number on; return what undoes that."""
        raise NotImplementedError

    @initialize(documents=st.sampled_from([1, 256]), points=st.sampled_from([2, 256]))
    def choose_sizes(self, documents, points):
        """How many documents are written together, and how many points in a request."""
        write._GROUP_DOCUMENTS = documents
        replace._UPSERT_POINTS = points

    # --- writing ------------------------------------------------------------------------------------

    def write(self, verb, documents):
        refused = self.library.refused(documents)
        call = getattr(self.library.store, verb)
        if refused:
            with pytest.raises(DuplicateDocumentError):
                call(documents)
        else:
            call(documents)
        self.library.put([document for document in documents if document.id not in refused])

    @rule(group=groups())
    def add(self, group):
        self.write("add", [to_document(*one) for one in group])

    @rule(group=groups())
    def sync(self, group):
        self.write("sync", [to_document(*one) for one in group])

    @rule(group=groups())
    def sync_all(self, group):
        documents = [to_document(*one) for one in group]
        self.library.store.sync(documents, delete_missing=True)
        self.library.held = {}
        self.library.put(documents)

    @precondition(lambda self: self.library.held)
    @rule(data=st.data(), label=labels)
    def relabel(self, data, label):
        """New metadata for a document that is stored as it was given."""
        id_ = data.draw(st.sampled_from(sorted(self.library.held)))
        chunks = self.library.held[id_]
        document = to_document(id_, [(chunk.id, chunk.text) for chunk in chunks], label)
        report = self.library.store.sync([document])
        is_whole = [chunk.index for chunk in chunks] == list(range(chunks[0].count))
        assert report.documents in ((0,) if is_whole else (0, 1))
        self.library.put([document])

    @precondition(lambda self: len(self.library.held) > 1)
    @rule(data=st.data())
    def move_chunk(self, data):
        """A chunk's id goes to another document; both come, in either order."""
        a, b = data.draw(st.permutations(sorted(self.library.held)))[:2]
        parts = {id_: [(chunk.id, chunk.text) for chunk in self.library.held[id_]] for id_ in (a, b)}
        moved = data.draw(st.integers(0, len(parts[a]) - 1))
        parts[b].insert(data.draw(st.integers(0, len(parts[b]))), parts[a].pop(moved))
        documents = [to_document(id_, chunks, None) for id_, chunks in parts.items()]
        if data.draw(st.booleans()):
            documents.reverse()
        self.write("sync", documents)

    @precondition(lambda self: self.library.held)
    @rule(data=st.data())
    def delete_chunk(self, data):
        id_ = data.draw(st.sampled_from(sorted(self.library.held)))
        chunk = data.draw(st.sampled_from(self.library.held[id_]))
        stored = {(one.document_id, one.chunk_index): one.id for one in self.library.store.chunks()}
        assert self.library.store.delete(ids=[stored[id_, chunk.index], "no such id"]) == 1
        self.library.held[id_] = [one for one in self.library.held[id_] if one is not chunk]
        if not self.library.held[id_]:
            del self.library.held[id_]

    @rule(ids=st.lists(st.sampled_from(DOCUMENTS), min_size=1, max_size=3))
    def delete_documents(self, ids):
        n = sum(len(self.library.held.pop(id_, ())) for id_ in set(ids))
        assert self.library.store.delete(document_ids=ids) == n

    @rule(label=st.sampled_from(LABELS[1:]))
    def delete_by_filter(self, label):
        n = 0
        for id_, chunks in list(self.library.held.items()):
            if chunks[0].metadata.get("label") == label:
                n += len(chunks)
                del self.library.held[id_]
        assert self.library.store.delete(filter={"label": label}) == n

    @rule(group=groups(), verb=st.sampled_from(["add", "sync"]), after=st.integers(0, 6), reopened=st.booleans())
    def write_cut_off_and_again(self, group, verb, after, reopened):
        """Cut off anywhere, each document is listed once; the same call again completes it."""
        documents = [to_document(*one) for one in group]
        refused = self.library.refused(documents)
        undo = self.cut_off(after)
        try:
            getattr(self.library.store, verb)(documents)
        except PplxVectorStoreError:
            pass
        finally:
            undo()
        if reopened:
            self.reopen()
        told = list(self.library.store.documents())
        listed = [one.id for one in told]
        assert len(set(listed)) == len(listed)
        for one in told:  # whole, old or new, or said not to be
            if one.chunks == one.chunk_count:
                texts = [chunk.text for chunk in self.read(one.id)]
                known = [[chunk.text for chunk in self.library.held.get(one.id, ())]]
                known += [[chunk.text for chunk in document.chunks] for document in documents if document.id == one.id]
                assert texts in known
        untouched = self.library.held.keys() - {document.id for document in documents}
        assert untouched <= set(listed)
        if refused:
            with pytest.raises(DuplicateDocumentError):
                getattr(self.library.store, verb)(documents)
        else:
            getattr(self.library.store, verb)(documents)
        self.library.put([document for document in documents if document.id not in refused])

    def read(self, id_):
        found = [chunk for chunk in self.library.store.chunks() if chunk.document_id == id_]
        return sorted(found, key=lambda chunk: chunk.chunk_index)

    # --- moving -------------------------------------------------------------------------------------

    def copy_expected(self):
        """Whether the mirror can take the library's documents."""
        wanted = {chunk.id for chunks in self.library.held.values() for chunk in chunks if chunk.id}
        holders = {self.mirror.holder_of(id_) for id_ in wanted} - {None}
        return holders <= self.library.held.keys()

    def take_over(self):
        self.mirror.held |= {id_: list(chunks) for id_, chunks in self.library.held.items()}

    @rule()
    def copy(self):
        if self.copy_expected():
            assert self.library.store.copy_to(self.mirror.store) == self.library.store.count()
            self.take_over()
        else:
            with pytest.raises(DuplicateDocumentError):
                self.library.store.copy_to(self.mirror.store)
        self.mirror.check()

    @rule()
    def export_and_import(self):
        path = self.folder / "all.parquet"
        assert self.library.store.export_parquet(path) == self.library.store.count()
        if self.copy_expected():
            self.mirror.store.import_parquet(path)
            self.take_over()
        else:
            with pytest.raises(DuplicateDocumentError):
                self.mirror.store.import_parquet(path)
        self.mirror.check()

    @rule()
    def swap(self):
        self.library, self.mirror = self.mirror, self.library

    @rule()
    def reopen(self):
        name = self.library.store.name
        self.library.store.close()
        self.library.store = self.open(name)

    @rule()
    def optimize(self):
        self.library.store.optimize()

    # --- after every step ---------------------------------------------------------------------------

    @invariant()
    def holds_what_the_dict_says(self):
        self.library.check()

    @invariant()
    def finds_what_numpy_finds(self):
        known = [chunk.codes for chunks in self.library.held.values() for chunk in chunks if chunk.codes.any()]
        codes = known[0] if known else self.encoder.encode_queries(["apple"])[0]
        self.library.check_search(codes)
        self.library.check_search(self.encoder.encode_queries(["pear"])[0])


class CutOffError(PplxVectorStoreError):
    """What a store's engine raises once it is cut off."""


class Named:
    """A store with its name."""

    def __init__(self, store, name):
        self._inner, self.name = store, name

    def __getattr__(self, attribute):
        return getattr(self._inner, attribute)

    def copy_to(self, target):
        return self._inner.copy_to(target._inner)


class FragileClient(edge.EdgeClient):
    """The embedded engine, whose writes fail from one on, as if the process had ended there."""

    left = None

    def _count(self):
        if self.left is not None:
            if self.left == 0:
                raise CutOffError("cut off")
            self.left -= 1

    def upsert(self, *arguments, **options):
        self._count()
        super().upsert(*arguments, **options)

    def delete(self, *arguments, **options):
        self._count()
        super().delete(*arguments, **options)

    def batch_update_points(self, *arguments, **options):
        self._count()
        super().batch_update_points(*arguments, **options)


class OnEdge(Sequences):
    """VectorStore over the embedded engine."""

    def open(self, name):
        client = FragileClient(self.folder / name)
        store = VectorStore(client, encoder=self.encoder)
        store._owns_client = True
        return Named(store, name)

    def cut_off(self, after):
        client = self.library.store._client
        client.left = after
        return lambda: setattr(client, "left", None)


class OnServer(Sequences):
    """VectorStore over HTTP; the server's answers get lost."""

    server_module = None

    def open_all(self):
        self.server = self.server_module.QdrantServer(self.folder / "server")

    def close_all(self):
        self.server.close()

    def open(self, name):
        return Named(VectorStore.connect(self.server.url, encoder=self.encoder, collection=name, retries=0), name)

    def cut_off(self, after):
        self.server.faults = After(after)
        return lambda: setattr(self.server, "faults", None)


class After:
    """All requests from one on fail; of the first that does, only the answer."""

    retry_after = "0"

    def __init__(self, number):
        self._left = number

    def choose(self, path):
        self._left -= 1
        return None if self._left >= 0 else "500_after" if self._left == -1 else "500"


class Asynchronous(OnServer):
    """AsyncVectorStore over HTTP."""

    blocking = None
    run_async = None

    def open(self, name):
        connecting = AsyncVectorStore.connect(self.server.url, encoder=self.encoder, collection=name, retries=0)
        run = type(self).run_async
        return Named(self.blocking(run(connecting), run), name)


class AsynchronousOnEdge(OnEdge):
    """AsyncVectorStore over the embedded engine."""

    blocking = None
    run_async = None

    def open(self, name):
        store = AsyncVectorStore(FragileClient(self.folder / name), encoder=self.encoder)
        store._owns_client = True
        run = type(self).run_async
        return Named(self.blocking(store, run), name)


# Over HTTP, each step takes several times as long.
EXAMPLES = {OnEdge: 200, AsynchronousOnEdge: 50, OnServer: 30, Asynchronous: 15}


@pytest.mark.parametrize("machine", EXAMPLES, ids=lambda machine: machine.__name__)
def test_any_sequence(machine, hash_encoder, qdrant_server_module, run_async, blocking, monkeypatch):
    monkeypatch.setattr(write, "_GROUP_DOCUMENTS", write._GROUP_DOCUMENTS)  # both are set in each sequence
    monkeypatch.setattr(replace, "_UPSERT_POINTS", replace._UPSERT_POINTS)
    machine.encoder = hash_encoder(DIMENSION)
    machine.server_module = qdrant_server_module
    machine.run_async = staticmethod(run_async)
    machine.blocking = blocking
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("EXAMPLES", EXAMPLES[machine])),
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
