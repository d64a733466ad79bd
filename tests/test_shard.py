"""One shard that all of a process share, whose index is built aside, on a disk that may be full or read only.

Turns between processes are in test_turns.py.
"""

import asyncio
import errno
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from forking import run_forked

from pplx_vectorstore import AsyncVectorStore, Document, VectorStore, cosine_similarity
from pplx_vectorstore.engines import indexing, shard, shard_files
from pplx_vectorstore.engines.folder_turns import FolderTurn
from pplx_vectorstore.errors import StoreClosedError, StoreError, StoreFullError, StoreLockedError, StoreReadOnlyError

DIMENSION = 64


def made(numbers, version=1, chunks=2):
    return [
        Document(id=f"d{i}", chunks=[f"{j} of {i} in {version}" for j in range(chunks)], metadata={"number": i})
        for i in numbers
    ]


def shard_of(store):
    return store._client._shard("documents")


def folders_of(index):
    return sorted(path.name for path in (index / "documents").glob("shard*"))


def assert_holds(store, documents):
    """Check that a store holds exactly these, and finds each chunk first."""
    expected = {(one.id, chunk.text) for one in documents for chunk in one.chunks}
    assert {(chunk.document_id, chunk.text) for chunk in store.chunks()} == expected
    assert store.count() == len(expected)
    some = documents[:: max(1, len(documents) // 10)]
    all_codes = store._session.encoder.encode_documents([[chunk.text for chunk in one.chunks] for one in some])
    for document, codes in zip(some, all_codes, strict=True):
        for chunk, query in zip(document.chunks, codes, strict=True):
            hit = store.search(query, k=1, candidates=10)[0]
            # Bent to be of one norm, codes are not quite what they were.
            assert (hit.text, hit.score) == (chunk.text, pytest.approx(1, abs=1e-3))


@pytest.fixture
def index(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def store(index, hash_encoder):
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        yield store


class Gate:
    """Holds up the program that builds an index."""

    def __init__(self, monkeypatch):
        self.open = threading.Event()
        self.reached = threading.Event()
        build = indexing.Indexing.build

        def build_later(self_):
            built = build(self_)
            self.reached.set()
            assert self.open.wait(60)
            return built

        monkeypatch.setattr(indexing.Indexing, "build", build_later)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


# --- shared by a process ---------------------------------------------------------------------------------------------


def test_a_notebook_cell_that_runs_twice_works(index, hash_encoder):
    for version in (1, 2, 3):
        store = VectorStore.open(index, encoder=hash_encoder(DIMENSION))  # and is never closed
        store.sync(made(range(10), version))
    assert_holds(store, made(range(10), 3))
    del store
    gc.collect()
    deadline = time.monotonic() + 30
    while shard._shards:  # nobody has it any more
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stores_of_one_folder_are_one_index(index, hash_encoder):
    first = VectorStore.open(index, encoder=hash_encoder(DIMENSION))
    second = VectorStore.open(index / ".." / "index", encoder=hash_encoder(DIMENSION))
    first.add(made(range(5)))
    assert_holds(second, made(range(5)))
    second.add(made(range(3, 8), 2))
    first.optimize()
    now = made(range(3)) + made(range(3, 8), 2)
    assert_holds(second, now)
    first.close()
    second.delete(document_ids=["d0"])  # what one has closed, the other has open
    assert_holds(second, now[1:])
    with pytest.raises(StoreClosedError):
        first.count()
    second.close()
    assert shard._shards == {}
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as third:
        assert_holds(third, now[1:])


def test_threads_that_open_and_close_one_folder(index, hash_encoder):
    encoder = hash_encoder(DIMENSION)
    VectorStore.open(index, encoder=encoder).close()
    errors = []

    def work(number):
        try:
            for version in range(5):
                with VectorStore.open(index, encoder=encoder) as store:
                    store.add(made(range(10 * number, 10 * number + 5), version))
                    assert store.count({"number": 10 * number}) == 2
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with VectorStore.open(index, encoder=encoder) as store:
        assert_holds(store, [one for number in range(4) for one in made(range(10 * number, 10 * number + 5), 4)])


# --- an index that is built aside ------------------------------------------------------------------------------------


def test_what_is_written_while_an_index_is_built_is_in_it(store, index, gate):
    """Every kind of write, in one life: the copy that takes the shard's place has them all."""
    store.add(made(range(60)))
    waiting = threading.Thread(target=store.optimize)
    waiting.start()
    assert gate.reached.wait(60)
    assert len(folders_of(index)) == 2
    store.add(made(range(50, 70), 2, chunks=3))
    store.sync([Document(id="d1", chunks=["0 of 1 in 1", "1 of 1 in 1"], metadata={"number": 500})])  # labels alone
    store.delete(document_ids=[f"d{i}" for i in range(10, 20)])
    store.delete(filter={"number": 21})
    store.delete(ids=[chunk.id for chunk in store.chunks({"number": 22})])
    documents = [one for one in made(range(50)) if one.id not in {f"d{i}" for i in (*range(10, 20), 21, 22)}]
    documents += made(range(50, 70), 2, chunks=3)
    assert_holds(store, documents)
    gate.open.set()
    waiting.join(60)
    assert_holds(store, documents)
    assert store.count({"number": 500}) == 2
    assert len(folders_of(index)) == 1
    coverage = store._client.coverage("documents")
    assert coverage.points == store.count()
    store.add(made([100]))
    store.optimize()
    assert_holds(store, [*documents, *made([100])])


def test_what_an_index_lacks_is_known_after_it_has_taken_its_place(store, gate):
    """Else the bits of what was written meanwhile, which are all 1, would be believed."""
    store.add(made(range(300)))
    waiting = threading.Thread(target=store.optimize)
    waiting.start()
    assert gate.reached.wait(60)
    store.add(made(range(300, 400)))
    gate.open.set()
    waiting.join(60)
    info = store._client.get_collection("documents")
    assert info.points_count - info.indexed_vectors_count <= store._client.coverage("documents").unindexed
    assert_holds(store, made(range(400)))


def test_closing_does_not_wait_for_an_index(index, hash_encoder, monkeypatch):
    store = VectorStore.open(index, encoder=hash_encoder(DIMENSION))
    store.add(made(range(2000)))
    monkeypatch.setattr(indexing.indexing_program, "__file__", __file__.replace("test_shard", "sleeping_program"))
    ended = []

    def optimize():
        with pytest.raises(StoreClosedError):
            store.optimize()
        ended.append(True)

    waiting = threading.Thread(target=optimize)
    waiting.start()
    while (running := shard_of(store)._indexing) is None or running._process is None:
        time.sleep(0.01)
    started = time.monotonic()
    store.close()
    assert time.monotonic() - started < 1
    waiting.join(60)
    assert len(ended) == 1
    assert len(folders_of(index)) == 1
    assert running._process.returncode == -signal.SIGKILL
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        assert_holds(store, made(range(2000)))


def test_indexing_ends_whatever_was_deleted_or_is_being_written(store):
    """The engine leaves holes where few points are gone, and another thread may write for ever."""
    store.add(made(range(200)))
    store.optimize()
    store.delete(document_ids=["d3", "d4"])
    store.optimize()
    store.optimize()
    assert_holds(store, made([0, 1, 2, *range(5, 200)]))
    stop = threading.Event()

    def write():
        for version in range(10_000):
            store.add(made([1000], version))
            if stop.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(3):
        store.optimize()
    stop.set()
    writer.join()
    assert store.count() == 2 * 199


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_that_is_forked_while_an_index_is_built(index, hash_encoder, monkeypatch):
    store = VectorStore.open(index, encoder=hash_encoder(DIMENSION))
    store.add(made(range(50)))
    monkeypatch.setattr(indexing.indexing_program, "__file__", __file__.replace("test_shard", "sleeping_program"))
    monkeypatch.setattr(shard, "_SECONDS_AT_REST", 600)
    running = store._client._shard("documents")._start_indexing()
    while running._process is None:
        time.sleep(0.01)
    time.sleep(0.2)  # until its thread reads what the program says

    def add_and_count():
        store.add(made([50]))
        return store.count()

    assert run_forked(add_and_count) == 102
    assert running._process.poll() is None
    assert_holds(store, made(range(51)))
    store.close()
    assert running._process.returncode == -signal.SIGKILL


def test_an_index_that_was_removed_and_made_anew(index, hash_encoder):
    """As in a notebook's cell that begins with removing the folder, and runs twice."""
    for version in range(3):
        shutil.rmtree(index, ignore_errors=True)
        store = VectorStore.open(index, encoder=hash_encoder(DIMENSION))
        store.add(made(range(version + 5), version))
        assert_holds(store, made(range(version + 5), version))
    shutil.rmtree(index)
    for _ in range(2):
        with pytest.raises(StoreClosedError, match="was removed since it was opened"):
            store.add(made([9]))
    store.close()


def test_an_index_that_cannot_be_built_is_tried_less_and_less_often(store, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(shard, "_WALKED_BYTES", 0)
    monkeypatch.setattr(shard, "_SHARE_WHILE_WRITING", 0.01)
    failing = tmp_path / "failing.py"
    failing.write_text("raise ValueError('no such luck')")
    monkeypatch.setattr(indexing.indexing_program, "__file__", str(failing))
    copies = []
    copy_folder = shard_files.copy_folder
    monkeypatch.setattr(shard_files, "copy_folder", lambda *arguments: copies.append(copy_folder(*arguments)))
    for i in range(30):
        store.add(made([i]))
        while (running := shard_of(store)._indexing) is not None:
            running.wait()
    assert 1 <= len(copies) <= 3
    assert [record.message for record in caplog.records if "no such luck" in record.message] != []
    assert len(caplog.records) == 1
    assert_holds(store, made(range(30)))


def test_a_thread_that_cannot_be_started_leaves_nothing_half_begun(store, index, monkeypatch):
    store.add(made(range(10)))

    def fail(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(StoreError, match="can't start new thread"):
            store.optimize()
    assert len(folders_of(index)) == 1
    store.optimize()
    assert_holds(store, made(range(10)))


def test_a_program_that_fails_leaves_everything_as_it_was(store, index, monkeypatch, tmp_path):
    store.add(made(range(20)))
    failing = tmp_path / "failing.py"
    failing.write_text("raise ValueError('no such luck')")
    with monkeypatch.context() as patched:
        patched.setattr(indexing.indexing_program, "__file__", str(failing))
        with pytest.raises(StoreError, match="could not be built: ValueError: no such luck"):
            store.optimize()
    failing.write_text("import os; os.kill(os.getpid(), 9)")
    with monkeypatch.context() as patched:
        patched.setattr(indexing.indexing_program, "__file__", str(failing))
        with pytest.raises(StoreError, match="could not be built: it ended with code -9"):
            store.optimize()
    assert len(folders_of(index)) == 1
    store.add(made(range(20, 30)))
    assert_holds(store, made(range(30)))
    store.optimize()
    assert_holds(store, made(range(30)))


def test_without_a_python_to_start_the_index_is_built_here(store, monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    store.add(made(range(30)))
    store.optimize()
    assert store._client.get_collection("documents").indexed_vectors_count > 0
    assert_holds(store, made(range(30)))


def test_an_index_that_covers_everything_is_not_built_again(store, monkeypatch):
    store.add(made(range(30)))
    store.optimize()
    monkeypatch.setattr(sys, "executable", "/nowhere")
    store.optimize()
    store.add(made(range(30, 60)))
    with pytest.raises(StoreError, match="could not be built: /nowhere could not be started"):
        store.optimize()
    assert_holds(store, made(range(60)))


def test_the_program_ends_with_its_parent(index, hash_encoder, tmp_path):
    """A pipe whose other end is closed, by whatever has become of the process that held it."""
    folder = tmp_path / "nothing"
    folder.mkdir()
    program = indexing.indexing_program.__file__
    code = f"import runpy, time; m = runpy.run_path({program!r}); m['_end_with_standard_input'](); "
    code += "print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(10) == -signal.SIGIO


def test_what_a_killed_process_left_is_removed_by_the_next_opening(index, hash_encoder):
    """Copies that were being indexed, by this process or another one, and what an exchange had not removed yet."""
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        store.add(made(range(10)))
        store.optimize()
        assert folders_of(index) != ["shard"]
    at = index / "documents"
    for name in ("shard", "shard-abandoned"):
        (at / name / "segments").mkdir(parents=True)
        (at / name / "segments" / "file").write_text("x")
    (at / "at-work-on-shard-abandoned").touch()
    (at / f"at-work-on-{shard_files.current_folder(at).name}").touch()
    busy = shard_files.Workplace(at)
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        assert_holds(store, made(range(10)))
        assert folders_of(index) == sorted({shard_files.current_folder(at).name, busy.folder.name})
    busy.leave(keep=False)
    assert list(at.glob("at-work-on-*")) == []


# --- space -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch):
    """Make disks look full: ``full(bytes)`` says how much is left."""

    def set_free(n):
        monkeypatch.setattr(shard_files, "free_bytes", lambda folder: n)

    return set_free


def test_a_full_disk_refuses_writes_and_goes_on_searching(store, index, hash_encoder, full):
    store.add(made(range(20)))
    full(2**20)
    for write in (
        lambda: store.add(made([50])),
        lambda: store.sync(made(range(20), 2)),
        lambda: store.delete(document_ids=["d1"]),
        store.optimize,
    ):
        with pytest.raises(StoreFullError, match=r"needs \d+\.\d MiB of free space .* has 1\.0 MiB left") as caught:
            write()
        assert caught.value.free == 2**20 < caught.value.needed
        assert_holds(store, made(range(20)))
    store.close()
    full(2**30)
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as again:
        assert_holds(again, made(range(20)))
        again.sync(made(range(20), 2))
        assert_holds(again, made(range(20), 2))


def test_an_index_on_a_full_disk_opens_and_is_written_to_once_there_is_room(index, hash_encoder, tmp_path, monkeypatch):
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        store.add(made(range(20)))
    left = [0]
    monkeypatch.setattr(
        shard_files, "free_bytes", lambda folder: left[0] if index in (folder, *folder.parents) else 2**30
    )
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        assert_holds(store, made(range(20)))
        with pytest.raises(StoreFullError):
            store.add(made([20]))
        left[0] = 2**30
        store.add(made([20]))
        assert_holds(store, made(range(21)))
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        assert_holds(store, made(range(21)))


# --- reading only ----------------------------------------------------------------------------------------------------


def files_of(index):
    return {str(path.relative_to(index)): path.read_bytes() for path in index.rglob("*") if path.is_file()}


@pytest.mark.parametrize("way", ["asked", "found out"])
def test_a_folder_that_is_only_read(index, hash_encoder, tmp_path, monkeypatch, way):
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        store.add(made(range(20)))
        store.optimize()
        store.add(made(range(20, 30)))
    before = files_of(index)
    if way == "found out":

        def refuse(self, *arguments):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(FolderTurn, "take", refuse)
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION), read_only=way == "asked") as store:
        assert_holds(store, made(range(30)))
        assert store.count() == 60
        assert len(list(store.documents())) == 30
        assert store.export_parquet(tmp_path / "out.parquet") == 60
        if way == "asked":
            with VectorStore.open(tmp_path / "other", encoder=hash_encoder(DIMENSION)) as other:
                assert store.copy_to(other) == 60
                assert_holds(other, made(range(30)))
        for write in (
            lambda: store.add(made([50])),
            lambda: store.sync(made(range(30), 2)),
            lambda: store.delete(document_ids=["d1"]),
            store.optimize,
        ):
            with pytest.raises(StoreReadOnlyError, match=r"read_only=True|be written to"):
                write()
        assert_holds(store, made(range(30)))
    assert files_of(index) == before


def test_reading_only_shows_what_was_there_when_it_was_opened(index, hash_encoder):
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        store.add(made(range(20)))
        with VectorStore.open(index, encoder=hash_encoder(DIMENSION), read_only=True) as reader:
            assert_holds(reader, made(range(20)))
            store.add(made(range(20, 25)))
            assert_holds(reader, made(range(20)))
        with VectorStore.open(index, encoder=hash_encoder(DIMENSION), read_only=True) as reader:
            assert_holds(reader, made(range(25)))
        assert_holds(store, made(range(25)))


def test_nothing_is_created_to_be_read_only(index, hash_encoder):
    with pytest.raises(StoreReadOnlyError, match="read_only=True"):
        VectorStore.open(index, encoder=hash_encoder(DIMENSION), read_only=True)
    assert not index.exists()


# --- turns within a process ------------------------------------------------------------------------------------------


def test_a_cancelled_call_gives_the_turn_back(index, hash_encoder, run_async):
    async def use():
        async with await AsyncVectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
            await store.add(made(range(5)))
            of_process = store._client._shard("documents")
            for i in range(60):
                task = asyncio.create_task(store.delete(document_ids=["nothing"]))
                await asyncio.sleep(0.0002 * (i % 12))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert not of_process._pins
            await store.add(made([5]))
            return await store.count()

    assert run_async(use()) == 12


def test_closing_does_not_wait_for_a_turn_that_is_waited_for(index, hash_encoder):
    VectorStore.open(index, encoder=hash_encoder(DIMENSION)).close()
    other = FolderTurn(index / "documents")
    store = VectorStore.open(index, encoder=hash_encoder(DIMENSION), timeout=60)
    waiting = threading.Thread(target=lambda: other.take(60, lambda: None))
    waiting.start()
    waiting.join()  # the store has let go, since nobody called
    ended = []

    def count():
        with pytest.raises(StoreClosedError):
            store.count()
        ended.append(time.monotonic())

    counting = threading.Thread(target=count)
    counting.start()
    time.sleep(0.3)
    assert ended == []
    started = time.monotonic()
    store.close()
    counting.join()
    assert time.monotonic() - started < 1
    other.leave()


def test_each_store_waits_as_long_as_it_was_told(index, hash_encoder):
    VectorStore.open(index, encoder=hash_encoder(DIMENSION)).close()
    patient = VectorStore.open(index, encoder=hash_encoder(DIMENSION), timeout=60)
    hasty = VectorStore.open(index, encoder=hash_encoder(DIMENSION), timeout=0.1)
    other = FolderTurn(index / "documents")
    other.take(60, lambda: None)
    with pytest.raises(StoreLockedError, match=rf"process {os.getpid()}, since \d+ seconds"):
        hasty.count()
    counted = []
    counting = threading.Thread(target=lambda: counted.append(patient.count()))
    counting.start()
    time.sleep(0.5)
    other.leave()
    counting.join(30)
    assert counted == [0]
    hasty.close()
    patient.close()


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sync_folder", "_write_mark"])
def test_whatever_fails_while_closing_the_folder_is_free(index, hash_encoder, monkeypatch, name):
    store = VectorStore.open(index, encoder=hash_encoder(DIMENSION))
    store.add(made(range(10)))

    def fail(*arguments):
        raise OSError(errno.EIO, "no luck")

    with monkeypatch.context() as patched:
        patched.setattr(shard_files if name == "sync_folder" else shard.Shard, name, fail)
        with pytest.raises(StoreError, match="no luck"):
            store.close()
    store.close()
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION), timeout=0) as again:
        assert_holds(again, made(range(10)))


@pytest.mark.parametrize("left", ["", " ", "x", "5"])
def test_a_mark_that_was_cut_off_is_none(index, hash_encoder, left):
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        store.add(made(range(10)))
    (index / "documents" / "unindexed").write_text(left)
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        assert store._client.coverage("documents").unindexed == (5 if left == "5" else 20)
        assert_holds(store, made(range(10)))


def test_private_copies_go_with_their_process(index, hash_encoder, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        store.add(made(range(10)))

    def be_killed_with_one():
        reader = VectorStore.open(index, encoder=hash_encoder(DIMENSION), read_only=True)
        reader.count()
        os.kill(os.getpid(), signal.SIGKILL)

    assert run_forked(be_killed_with_one) == -signal.SIGKILL
    assert len(list(temporary.iterdir())) == 1
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION), read_only=True) as first:
        assert_holds(first, made(range(10)))
        assert len(list(temporary.iterdir())) == 1
    assert list(temporary.iterdir()) == []


def test_a_private_copy_that_another_process_takes_for_one_left_behind_is_made_elsewhere(
    index, hash_encoder, tmp_path, monkeypatch
):
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        store.add(made(range(10)))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    lock, taken = shard_files.portalocker.lock, []

    def taken_before(file, *arguments):
        if temporary in Path(file.name).parents and len(taken) < 2:
            taken.append(file)
            shutil.rmtree(Path(file.name).parent)
        lock(file, *arguments)

    monkeypatch.setattr(shard_files.portalocker, "lock", taken_before)
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION), read_only=True) as store:
        assert_holds(store, made(range(10)))
        assert len(list(temporary.iterdir())) == 1
    assert (len(taken), list(temporary.iterdir())) == (2, [])
    assert all(file.closed for file in taken)


@pytest.mark.parametrize("buffer", [None, 8192, 2**17])
def test_sparse_files_are_copied_with_their_holes(tmp_path, monkeypatch, buffer):
    if buffer is not None:
        monkeypatch.setattr(io, "DEFAULT_BUFFER_SIZE", buffer)
    (tmp_path / "a" / "b").mkdir(parents=True)
    with (tmp_path / "a" / "b" / "sparse").open("wb") as file:
        file.truncate(50 * 2**20)
        file.seek(20 * 2**20)
        file.write(b"middle")
    (tmp_path / "a" / "plain").write_bytes(bytes(range(256)) * 5000)
    (tmp_path / "a" / "empty").touch()
    (tmp_path / "c").mkdir()
    shard_files.copy_folder(tmp_path / "a", tmp_path / "c")
    assert files_of(tmp_path / "c") == files_of(tmp_path / "a")
    if hasattr(os, "SEEK_DATA"):
        assert shard_files.used_bytes(tmp_path / "c") < 4 * 2**20


def test_an_index_of_before_there_was_a_current_folder_opens(index, hash_encoder):
    """One that an earlier version wrote: no file says which folder is the current one, and the log is long."""
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        store.add(made(range(20)))
    settings = index / "documents" / "shard" / "edge_config.json"
    settings.write_text(settings.read_text().replace("wal_options", "other"))
    (index / "documents" / "unindexed").write_text("40")
    (index / "documents" / "holder").unlink()
    (index / "documents" / "waiting").unlink()
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        assert_holds(store, made(range(20)))
        store.sync(made(range(20), 2))
        store.optimize()
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
        assert_holds(store, made(range(20), 2))


def test_scores_are_those_of_numpy_in_every_state(index, hash_encoder):
    encoder = hash_encoder(DIMENSION)
    texts = [f"{j} of {i} in 1" for i in range(200) for j in range(2)]
    query = encoder.encode_queries(["0 of 7 in 1"])[0]

    def check(store):
        hits = store.search("0 of 7 in 1", k=10, with_codes=True)
        scores = cosine_similarity(query, np.stack([hit.codes for hit in hits]))
        np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-6)
        return [hit.text for hit in hits]

    with VectorStore.open(index, encoder=encoder) as store:
        store.add(made(range(200)))
        found = check(store)
        store.optimize()
        assert check(store) == found
        assert set(found) <= set(texts)
    with VectorStore.open(index, encoder=encoder) as store:
        assert check(store) == found
    with VectorStore.open(index, encoder=encoder, read_only=True) as store:
        assert check(store) == found
