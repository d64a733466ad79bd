"""Several processes on one folder, spawned and forked: each gets its turn, nothing is lost or doubled."""

import asyncio
import contextlib
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forking import run_forked

from pplx_vectorstore import AsyncVectorStore, Document, VectorStore
from pplx_vectorstore.engines import shard
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.engines.folder_turns import FolderGoneError, FolderTurn
from pplx_vectorstore.errors import StoreClosedError, StoreError, StoreLockedError

DIMENSION = 64

# A process that does so many operations on an index, at random, on documents of its own and on those of all; what it
# does is checked at once, and what is left in the end is printed.
WORKER = """
import json, os, random, sys
sys.path.insert(0, sys.argv[1])
from hash_encoder import make_encoder
from pplx_vectorstore import Document, VectorStore

ENCODER = make_encoder(64)

def document(name, version):
    chunks = [f"{i} of {name} in version {version}" for i in range(1 + version % 4)]
    return Document(id=name, chunks=chunks, metadata={"version": version})

def work(index, number, n):
    rng = random.Random(number)
    with VectorStore.open(index, encoder=ENCODER, timeout=120) as store:
        mine = {}
        for step in range(n):
            name = f"{number}-{rng.randrange(20)}"
            kind = rng.random()
            if kind < 0.25:
                store.add([document(name, step)])
                mine[name] = step
            elif kind < 0.3:
                store.sync([document(name, step), document("everybody's", 1000 * step + number)])
                mine[name] = step
            elif kind < 0.35:
                store.delete(document_ids=[name])
                mine.pop(name, None)
            elif kind < 0.36:
                store.optimize()
            elif mine:
                name = rng.choice(sorted(mine))
                (codes,) = ENCODER.encode_documents([[chunk.text for chunk in document(name, mine[name]).chunks]])
                hit = store.search(codes[-1], k=1)[0]
                assert hit.text == f"{len(codes) - 1} of {name} in version {mine[name]}", (hit, name, mine)
                assert hit.score > 0.999
        # A document that all replace is of one version, whoever was the last.
        common = [c for c in store.chunks() if c.document_id == "everybody's"]
        assert len({c.metadata["version"] for c in common}) <= 1, common
        assert len(common) == (common[0].chunk_count if common else 0), common
    return mine
"""

SPAWNED = (
    WORKER
    + """
print(json.dumps(work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))), flush=True)
"""
)

# Opens, searches, forks children that work beside it, works itself, and tells what all of them have left.
FORKING = (
    WORKER
    + """
index, n_children, n = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
import signal
store = VectorStore.open(index, encoder=ENCODER, timeout=120)
store.add([document("before", 3)])
assert len(store.search("before", k=4)) == 4
children = {}
for number in range(n_children):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(280)
        # The store of before the fork is one more, of this process now.
        assert store.count() >= 4
        assert sum(hit.document_id == "before" for hit in store.search("before", k=1000)) == 4
        left = work(index, number, n)
        store.close()
        os.write(writing, json.dumps(left).encode())
        os._exit(0)
    os.close(writing)
    children[pid] = reading
left = work(index, n_children, n)
for pid, reading in children.items():
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    left.update(json.loads(os.read(reading, 2**16)))
assert len(store.search("before", k=4)) == 4
store.add([document("after", 3)])
store.close()
print(json.dumps(left), flush=True)
"""
)


@pytest.fixture
def index(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def start(tmp_path, tests_folder):
    """Start a process that runs a script: ``start(script, *arguments)``; all are ended after the test."""
    processes = []

    def start(script, *arguments):
        path = tmp_path / f"script{len(processes)}.py"
        path.write_text(script, "utf-8")
        command = [sys.executable, str(path), str(tests_folder), *map(str, arguments)]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        with process:
            process.kill()


def texts_of(versions):
    return {f"{i} of {name} in version {version}" for name, version in versions.items() for i in range(1 + version % 4)}


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(out)


def assert_left(index, encoder, left):
    """Check that an index holds what its processes believe, and finds all of it."""
    with VectorStore.open(index, encoder=encoder) as store:
        chunks = [chunk for chunk in store.chunks() if chunk.document_id != "everybody's"]
        assert len(chunks) == len({chunk.text for chunk in chunks})
        assert {chunk.text for chunk in chunks} == texts_of(left)
        for name, version in left.items():
            texts = [f"{i} of {name} in version {version}" for i in range(1 + version % 4)]
            (codes,) = encoder.encode_documents([texts])
            for text, query in zip(texts, codes, strict=True):
                assert store.search(query, k=1)[0].text == text


@pytest.mark.parametrize("n", [30, pytest.param(150, marks=pytest.mark.slow)])
def test_spawned_processes_share_a_folder(index, hash_encoder, start, n):
    workers = [start(SPAWNED, index, number, n) for number in range(4)]
    left = {}
    for worker in workers:
        left.update(finish(worker))
    assert_left(index, hash_encoder(DIMENSION), left)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.slow
def test_forked_processes_share_a_folder(index, hash_encoder, start):
    left = finish(start(FORKING, index, 3, 150))
    assert_left(index, hash_encoder(DIMENSION), {**left, "before": 3, "after": 3})


HOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from hash_encoder import make_encoder
from pplx_vectorstore import Document, VectorStore
store = VectorStore.open(sys.argv[2], encoder=make_encoder(64))
store.add([Document(id="d", chunks=["a", "b"])])
if sys.argv[3] == "pinned":
    store._client.pin("documents", pinned=[])
print("open", flush=True)
for line in sys.stdin:
    print(store.count(), flush=True)
store.close()
"""


def test_who_has_a_folder_open_lets_go_between_two_calls(index, hash_encoder, start):
    first = start(HOLDER, index, "idle")
    assert first.stdout.readline() == "open\n"
    for expected in (2, 3, 4):
        with VectorStore.open(index, encoder=hash_encoder(DIMENSION)) as store:
            assert store.count() == expected
            store.add([Document(id=f"e{expected}", chunks=["c"])])
            first.stdin.write("\n")
            first.stdin.flush()
            assert first.stdout.readline() == f"{expected + 1}\n"
            assert store.count() == expected + 1


def test_who_waits_too_long_is_told_who_has_the_folder(index, hash_encoder, start):
    first = start(HOLDER, index, "pinned")
    assert first.stdout.readline() == "open\n"
    started = time.monotonic()
    said = rf"in use by process {first.pid}, since \d+ seconds, .* Close it there, or wait longer \(timeout=\)"
    with pytest.raises(StoreLockedError, match=said):
        VectorStore.open(index, encoder=hash_encoder(DIMENSION), timeout=0.5)
    assert 0.4 < time.monotonic() - started < 20
    first.send_signal(signal.SIGKILL)
    first.wait()
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION), timeout=0.5) as store:
        assert store.count() == 2


@pytest.mark.parametrize("timeout", [-1, "5", None, True, float("nan")])
def test_a_timeout_that_is_none_is_refused(index, hash_encoder, timeout):
    from pplx_vectorstore.errors import InvalidInputError

    with pytest.raises(InvalidInputError, match="timeout must be a number of seconds"):
        VectorStore.open(index, encoder=hash_encoder(DIMENSION), timeout=timeout)
    assert not index.exists()


def test_turns_are_taken_by_whoever_waits(tmp_path):
    def go_on():
        pass

    first, second, third = FolderTurn(tmp_path), FolderTurn(tmp_path), FolderTurn(tmp_path)
    first.take(1, go_on)
    assert not first.is_wanted()
    with pytest.raises(StoreLockedError):
        second.take(0.05, go_on)
    assert not first.is_wanted()
    first.leave()
    second.take(0.05, go_on)
    second.leave()
    third.take(0.05, go_on)
    third.leave()


def test_a_turn_is_that_of_the_folder_that_is_there(tmp_path):
    def go_on():
        pass

    def replace():
        folder.rename(tmp_path / f"old-{len(list(tmp_path.iterdir()))}")
        folder.mkdir()

    folder = tmp_path / "folder"
    folder.mkdir()
    first, third, reader = (FolderTurn(folder) for _ in range(3))
    first.take(1, go_on)
    assert not first.is_gone()
    # Who waits when it is replaced has the turn of the new one, and keeps others from it.
    with ThreadPoolExecutor(2) as threads, contextlib.ExitStack() as read:
        taken = threads.submit(third.take, 20, go_on)
        while not first.is_wanted():
            time.sleep(0.01)
        replace()
        assert first.is_gone()
        first.leave()
        taken.result()
        assert not third.is_gone()
        with pytest.raises(StoreLockedError), reader.to_read(0.05, go_on):
            pass
        third.leave()
        read.enter_context(reader.to_read(0.05, go_on))
        with pytest.raises(StoreLockedError):
            third.take(0.05, go_on)
    third.take(1, go_on)
    shutil.rmtree(folder)
    assert third.is_gone()
    third.leave()
    with pytest.raises(FolderGoneError):
        third.take(1, go_on)
    assert not folder.exists()


def test_where_locks_do_not_hold_nobody_waits_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    turn = FolderTurn(tmp_path)
    with pytest.raises(StoreError, match="without lasting inodes"):
        turn.take(1, lambda: None)
    (tmp_path / "waiting").touch()
    with pytest.raises(StoreError, match="without lasting inodes"), turn.to_read(1, lambda: None):
        pass


IDLE = (
    WORKER
    + """
with VectorStore.open(sys.argv[2], encoder=make_encoder(64, name="old"), read_only=sys.argv[3] == "read") as store:
    client = store._session.calls.client
    if sys.argv[3] != "read":
        store.add([document("idle", 1)])
        client.update_collection("documents", metadata={"is": "old"})
    print("idle", flush=True)
    for step in sys.stdin:
        calls = {
            "add": lambda: store.add([document("late", 1)]),
            "sync": lambda: store.sync([document("idle", 2)]),
            "delete": lambda: store.delete(document_ids=["idle"]),
            "search": lambda: store.search("1 of idle in version 1", k=1),
            "metadata": lambda: client.update_collection("documents", metadata={"is": "older"}),
            "drop": lambda: client.delete_collection("documents"),
        }
        try:
            calls[step.strip()]()
            print("done", flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
"""
)


@pytest.mark.parametrize("first", ["add", "sync", "delete", "search", "metadata", "drop"])
def test_an_idle_process_leaves_alone_what_has_taken_the_place_of_its_index(index, hash_encoder, start, first):
    with EdgeClient(index) as client:
        old = VectorStore(client, "documents", encoder=hash_encoder(DIMENSION, name="old"))
        old.add([Document(id="old", chunks=["one"])])
        idle = start(IDLE, index, "write")
        assert idle.stdout.readline() == "idle\n"
        assert old.count() == 3  # so the other has let go of it
        encoder = hash_encoder(DIMENSION, name="new")
        VectorStore(client, "new", encoder=encoder).add([Document(id="new", chunks=["one", "two"])])
        client.replace_collection("documents", by="new")
        with pytest.raises(StoreClosedError, match="another one put in its place"):
            old.count()
        new = VectorStore(client, "documents", encoder=encoder)
        assert new.count() == 2
        for call in dict.fromkeys([first, "add", "search", "drop", first]):
            print(call, file=idle.stdin, flush=True)
            said = idle.stdout.readline()
            assert said.startswith("StoreClosedError")
            assert "another one put in its place" in said
        assert [document.id for document in new.documents()] == ["new"]
        (codes,) = encoder.encode_documents([["one", "two"]])
        assert [new.search(query, k=1)[0].text for query in codes] == ["one", "two"]
        assert "is" not in client.get_collection("documents").config.metadata
        new.add([Document(id="newer", chunks=["three"])])
        assert new.count() == 3


@pytest.mark.parametrize("change", ["lock removed", "moved and back", "restored", "copied into its place"])
def test_an_idle_process_goes_on_with_an_index_that_is_the_same(index, hash_encoder, start, tmp_path, change):
    idle = start(IDLE, index, "write")
    assert idle.stdout.readline() == "idle\n"
    with VectorStore.open(index, encoder=hash_encoder(DIMENSION, name="old")) as store:
        store.add([Document(id="other", chunks=["one"])])  # so the other has let go of it
    if change == "lock removed":
        (index / "documents" / "lock").unlink()
    else:
        index.rename(tmp_path / "away")
        if change == "moved and back":
            (tmp_path / "away").rename(index)
        else:
            names = ("lock", "waiting", "holder") if change == "restored" else ()
            shutil.copytree(tmp_path / "away", index, ignore=shutil.ignore_patterns(*names))
    for call in ("search", "add", "sync", "metadata", "delete", "search"):
        print(call, file=idle.stdin, flush=True)
        assert idle.stdout.readline() == "done\n"
    with EdgeClient(index) as client:
        assert client.get_collection("documents").config.metadata["is"] == "older"
        store = VectorStore(client, encoder=hash_encoder(DIMENSION, name="old"))
        assert {document.id for document in store.documents()} == {"other", "late"}


FIRST = (
    WORKER
    + """
from pplx_vectorstore.engines.edge import EdgeClient
client = EdgeClient(sys.argv[2], read_only=sys.argv[3] == "read")
print("waits", flush=True)
try:
    with VectorStore(client, encoder=make_encoder(64, name="old"), create=False) as store:
        store.search("one", k=1)
        store.add([document("late", 1)])
    print("done", flush=True)
except Exception as error:
    print(type(error).__name__, flush=True)
print(VectorStore(client, encoder=make_encoder(64, name="new")).count(), flush=True)
"""
)


@pytest.mark.parametrize("way", ["write", "read"])
def test_who_waits_to_open_an_index_that_is_replaced_meanwhile_opens_the_new_one(index, hash_encoder, start, way):
    encoder = hash_encoder(DIMENSION, name="new")
    with EdgeClient(index) as client:
        VectorStore(client, encoder=hash_encoder(DIMENSION, name="old")).add([Document(id="old", chunks=["one"])])
        VectorStore(client, "new", encoder=encoder).add([Document(id="new", chunks=["one", "two"])])
        pinned = []
        client.pin("documents", pinned=pinned)
        waiting = start(FIRST, index, way)
        assert waiting.stdout.readline() == "waits\n"
        time.sleep(0.5)
        client.replace_collection("documents", by="new")
        client.unpin("documents", pinned=pinned)
        assert waiting.stdout.readline() == "SchemaMismatchError\n"
        assert waiting.stdout.readline() == "2\n"
        new = VectorStore(client, encoder=encoder)
        assert [document.id for document in new.documents()] == ["new"]


def test_who_only_reads_goes_on_with_the_copy_beside_those_who_opened_later(index, hash_encoder):
    old, new = hash_encoder(DIMENSION, name="old"), hash_encoder(DIMENSION, name="new")
    with EdgeClient(index) as client, EdgeClient(index, read_only=True) as reader:
        VectorStore(client, encoder=old).add([Document(id="old", chunks=["one"])])
        first = VectorStore(reader, encoder=old)
        assert first.count() == 1
        VectorStore(client, "new", encoder=new).add([Document(id="new", chunks=["one", "two"])])
        client.replace_collection("documents", by="new")
        second = VectorStore(reader, encoder=new)
        VectorStore(client, encoder=new).add([Document(id="newer", chunks=["three"])])
        assert first._session.calls.client.is_gone("documents")
        assert not second._session.calls.client.is_gone("documents")
        for _ in range(2):
            assert [document.id for document in first.documents()] == ["old"]
            assert [document.id for document in second.documents()] == ["new"]
        first.close()
        assert second.count() == 2
        if hasattr(os, "fork"):
            assert run_forked(second.count) == 3  # it reads anew
        assert second.count() == 2
        assert VectorStore(reader, encoder=new).count() == 2
        del first, second
        for _ in range(3):
            client.delete_collection("documents")
            VectorStore(client, encoder=new).add([Document(id="again", chunks=["one"])])
            assert VectorStore(reader, encoder=new).count() == 1
        gc.collect()
        assert len(reader._superseded) <= 1  # no copies stay that nobody reads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("is_first", ["the writer", "the reader", "the one that is replaced"])
def test_a_forked_process_leaves_all_stores_of_a_folder_to_the_other(index, hash_encoder, monkeypatch, is_first):
    encoder = hash_encoder(DIMENSION)
    with EdgeClient(index) as client, EdgeClient(index, read_only=True) as reader:
        VectorStore(client, encoder=encoder).add([Document(id="old", chunks=["one"])])
        replaced = VectorStore(reader, encoder=encoder)
        assert replaced.count() == 1
        client.delete_collection("documents")
        store = VectorStore(client, encoder=encoder)
        store.add([Document(id="first", chunks=["two"])])
        copy = VectorStore(reader, encoder=encoder)
        assert copy.count() == 1
        store.add([Document(id="second", chunks=["three"])])
        shards = {
            "the writer": client._shard("documents"),
            "the reader": reader._shard("documents"),
            "the one that is replaced": replaced._session.calls.client._shard("documents"),
        }
        assert all(one._engine is not None for one in shards.values())
        assert len(set(shards.values())) == 3
        in_order = sorted(shards.values(), key=lambda one: one is not shards[is_first])
        monkeypatch.setattr(shard, "_all", in_order)

        def use_all():
            assert all(one._engine is None for one in shards.values())
            assert (copy.count(), store.count()) == (2, 2)
            store.add([Document(id="of the other", chunks=["four"])])
            store.optimize()
            with VectorStore.open(index, encoder=encoder) as another:
                assert {document.id for document in another.documents()} == {"first", "second", "of the other"}
            with pytest.raises(StoreClosedError, match="another one put in its place"):
                replaced.count()
            store.close()
            copy.close()
            return True

        assert run_forked(use_all) == 1
        assert (replaced.count(), copy.count(), store.count()) == (1, 1, 3)
        store.add([Document(id="last", chunks=["five"])])
        assert store.search("four", k=1)[0].document_id == "of the other"
        assert {document.id for document in store.documents()} == {"first", "second", "of the other", "last"}


def test_stores_over_one_client_come_and_go_with_what_they_opened(index, hash_encoder):
    encoder = hash_encoder(DIMENSION)
    with EdgeClient(index) as client, EdgeClient(index) as other:
        first = VectorStore(client, encoder=encoder)
        first.add([Document(id="a", chunks=["one"])])
        other.delete_collection("documents")
        with pytest.raises(StoreClosedError):
            first.count()
        second = VectorStore(client, encoder=encoder)
        second.add([Document(id="b", chunks=["one"])])
        opened = second._session.calls.client._shard("documents")
        with VectorStore(client, encoder=encoder) as short_lived:
            assert short_lived._session.calls.client._shard("documents") is opened
        third = VectorStore(client, encoder=encoder)
        VectorStore(other, "new", encoder=encoder).add([Document(id="c", chunks=["one"])])
        other.replace_collection("documents", by="new")
        for store in (first, second, third):
            with pytest.raises(StoreClosedError):
                store.add([Document(id="late", chunks=["one"])])
        assert client.count("documents").count == 1  # a client means what has the name now
        with VectorStore(client, encoder=encoder) as fourth:
            assert [document.id for document in fourth.documents()] == ["c"]

            async def add_and_replace():
                async with AsyncVectorStore(client, encoder=encoder) as awaited:
                    await awaited.add([Document(id="d", chunks=["two"])])
                    assert await awaited.count() == 1
                    client.delete_collection("documents")
                    with pytest.raises(StoreClosedError, match="another one put in its place"):
                        await awaited.count()

            fourth.sync([Document(id="c", chunks=["one", "three"])])
            fourth.delete(document_ids=["c"])
            asyncio.run(add_and_replace())
            with pytest.raises(StoreClosedError):
                fourth.add([Document(id="late", chunks=["one"])])
            fifth = VectorStore(client, encoder=encoder)
            fifth.add([Document(id="e", chunks=["one", "two", "three"])])
        with pytest.raises(StoreClosedError, match="the store is closed"):
            fourth.count()
        fifth.close()
        open_still = client._shard("documents")
        assert open_still._engine is not None  # although no store has it
        assert client.count("documents").count == 3
        last = VectorStore(client, encoder=encoder)
    with pytest.raises(StoreClosedError, match="was closed"):
        last.count()


KILLED = (
    WORKER
    + """
from pplx_vectorstore.engines import shard
shard._WALKED_BYTES = 0
shard._SHARE_WHILE_WRITING = 0.2
rng = random.Random(sys.argv[3])
with VectorStore.open(sys.argv[2], encoder=ENCODER, timeout=120) as store:
    print("open", flush=True)
    for step in range(int(sys.argv[4])):
        name = f"{sys.argv[3]}-{rng.randrange(10)}"
        print("adding", name, step, ".", flush=True)
        store.add([document(name, step)])
        print("added", name, step, ".", flush=True)
        if rng.random() < 0.1:
            store.optimize()
"""
)


def children_of(pid):
    """The programs that a process has started, from whichever of its threads."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            found += [int(child) for child in (task / "children").read_text("ascii").split()]
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.slow
def test_kills_at_any_moment_lose_and_double_nothing(index, hash_encoder, start):
    """Two processes write, index aside and take turns; one, the program that indexes for it, or all are killed."""
    rng = random.Random(0)
    encoder = hash_encoder(DIMENSION)
    acknowledged = {}
    killed_programs = 0
    n_rounds, n_kills = 0, 40
    while n_kills > 0:
        workers = [start(KILLED, index, number, 10_000) for number in range(2)]
        begun = {}
        for worker in workers:
            assert worker.stdout.readline() == "open\n"
        for _ in range(min(n_kills, 4)):
            time.sleep(rng.random() * 0.4)
            programs = [child for worker in workers for child in children_of(worker.pid)]
            if programs and rng.random() < 0.6:
                killed_programs += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(programs), signal.SIGKILL)
                n_kills -= 1
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            n_kills -= 1
        for worker in workers:
            for line in worker.stdout.read().splitlines():
                if not line.endswith("."):  # cut off
                    continue
                verb, name, step, _ = line.split()
                begun[name] = int(step)
                if verb == "added":
                    acknowledged[name] = int(step)
                    del begun[name]
        with VectorStore.open(index, encoder=encoder) as store:
            found = {}
            for chunk in store.chunks():
                found.setdefault(chunk.document_id, []).append(chunk)
            assert found.keys() >= acknowledged.keys()
            for name, chunks in found.items():
                versions = {chunk.metadata["version"] for chunk in chunks}
                assert len(versions) == 1
                (version,) = versions
                assert version in (acknowledged.get(name), begun.get(name))
                assert {chunk.text for chunk in chunks} == texts_of({name: version})
                assert len(chunks) == 1 + version % 4
                acknowledged[name] = version
        assert len(list((index / "documents").glob("shard*"))) == 1
        n_rounds += 1
    assert killed_programs > n_rounds // 10  # whether one runs at a moment is chance
    assert_left(index, encoder, acknowledged)
