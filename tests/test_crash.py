"""kill -9 while documents are written: what was acknowledged is there, and the same run again repairs the rest."""

import contextlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pplx_vectorstore import Chunk, Document, VectorStore
from pplx_vectorstore.points import derive_point_id, join_metadata

pytestmark = pytest.mark.slow

N_KILLS = 20
N_KILLS_WHILE_INDEXING = 6  # of those
DIMENSION = 64
N_DOCUMENTS = 60
MOST_TOGETHER = 4
N_KILLS_OF_SYNC = 50

# What the killed process runs. Two rounds: the second replaces documents by versions of more, fewer or no
# chunks. A line is printed when an add has returned, and when an optimization starts.
CHILD = """
import os
import sys
sys.path.insert(0, sys.argv[1])
from hash_encoder import make_encoder
from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.engines import shard

shard._WALKED_BYTES = 20 * 64
shard._SHARE_WHILE_WRITING = 0.05
start = shard.Shard._start_indexing

def tell(line):
    os.write(1, f"{line}\\n".encode())  # whole, whichever thread it is

def tell_and_start(self):
    tell("indexing")
    return start(self)

shard.Shard._start_indexing = tell_and_start

def chunks_of(number, version):
    n_chunks = (number * 7 + version * 3) % 6
    return [f"chunk {i} of {number} in version {version}" for i in range(n_chunks)]

if __name__ == "__main__":
    with VectorStore.open(sys.argv[2], encoder=make_encoder(64)) as store:
        for version in (1, 2):
            number = 0
            while number < 60:
                together = 1 + number % 4
                numbers = range(number, min(60, number + together))
                store.add(Document(id=f"d{n}", chunks=chunks_of(n, version)) for n in numbers)
                for n in numbers:
                    tell(f"added {n} {version}")
                number += together
    tell("done")
"""

# What is forked and killed in `sync`: once for each index that is named on its standard input. A line is printed
# before each of the engine's verbs; it kills itself at the line whose number, or at the first verb whose name, is given
# with the index.
SYNCING_CHILD = """
import itertools
import os
import pickle
import signal
import sys
import threading

sys.path.insert(0, sys.argv[1])
from hash_encoder import make_encoder
from pplx_vectorstore import VectorStore
from pplx_vectorstore.engines import edge, shard
from pplx_vectorstore.operations import replace, write

write._GROUP_DOCUMENTS = 5
replace._UPSERT_POINTS = 4
shard._WALKED_BYTES = 20 * 64
shard._SHARE_WHILE_WRITING = 0.05

def tell(owner, name):
    function = getattr(owner, name)

    def tell_and_do(*args, **options):
        with telling:  # no thread tells anything between another's last line and its end
            os.write(1, f"{name}\\n".encode())
            if last in (str(next(numbers)), name):
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    setattr(owner, name, tell_and_do)

for name in ("facet", "retrieve", "upsert", "delete", "batch_update_points", "scroll", "count", "flush"):
    tell(edge.EdgeClient, name)
tell(shard.Shard, "_start_indexing")

with open(sys.argv[2], "rb") as file:
    documents = pickle.load(file)
numbers = itertools.count(1)
telling = threading.Lock()
for line in sys.stdin:
    index, last = line.split()
    pid = os.fork()
    if not pid:
        print(os.getpid(), flush=True)
        with VectorStore.open(index, encoder=make_encoder(64), create=False) as store:
            store.sync(documents, delete_missing=True)
        assert "torch" not in sys.modules
        print("done", flush=True)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print("ended", os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture
def folder():
    """A new folder, in memory where that is possible: a killed process loses nothing there either."""
    in_memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=in_memory if os.access(in_memory, os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture
def command(folder, tests_folder):
    script = folder / "child.py"
    script.write_text(CHILD, "utf-8")
    return [sys.executable, str(script), str(tests_folder)]


def chunks_of(number, version):
    n_chunks = (number * 7 + version * 3) % 6
    return [f"chunk {i} of {number} in version {version}" for i in range(n_chunks)]


def run(command, index, kill_at=None, delay=0.0):
    """Run the child to its end, or kill it `delay` seconds after its line number `kill_at`.

    Returns:
        The lines that it printed.
    """
    lines = []
    with subprocess.Popen([*command, str(index)], stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            lines.append(line.strip())
            if len(lines) == kill_at:
                time.sleep(delay)
                child.send_signal(signal.SIGKILL)
                lines += child.stdout.read().split("\n")  # what it said before it died
                break
    # Killed late, it may have ended before.
    assert child.returncode == 0 or (kill_at is not None and child.returncode == -signal.SIGKILL)
    return [line for line in lines if line]


def read_all(index, encoder):
    """Every chunk in the index: id → (text, document, index, count, codes)."""
    with VectorStore.open(index, encoder=encoder, create=False) as store:
        points, _ = store._client.scroll("documents", limit=100_000)
        chunks = store.get([point.id for point in points], with_codes=True)
        assert len(chunks) == len(points) == store.count()
    return {
        chunk.id: (chunk.text, chunk.document_id, chunk.chunk_index, chunk.chunk_count, chunk.codes.tobytes())
        for chunk in chunks
    }


def assert_whole(found, number, version, encoder):
    """The document is there in this version: every chunk, no other, each with the codes of this context."""
    texts = chunks_of(number, version)
    own = {place: chunk for place, chunk in found.items() if chunk[1] == f"d{number}"}
    (codes,) = encoder.encode_documents([texts])
    assert own == {
        derive_point_id(f"d{number}", i): (text, f"d{number}", i, len(texts), codes[i].tobytes())
        for i, text in enumerate(texts)
    }


def anywhere(lines, rng, n, most_delay):
    """Choose the lines after which to kill, spread over the run, and how many seconds after."""
    width = (len(lines) - 1) / n
    return [(1 + int(width * (i + rng.random())), rng.uniform(0, most_delay)) for i in range(n)]


def moments(lines, rng):
    """Choose when to kill: anywhere, and some while indexing."""
    indexing = [number for number, line in enumerate(lines, start=1) if line == "indexing"]
    assert indexing  # how many there are is a matter of speed: what is written meanwhile is not a reason for one
    spread = anywhere(lines, rng, N_KILLS - N_KILLS_WHILE_INDEXING, 0.02)
    # The program that indexes takes about 0.3 s, while the process that is killed goes on writing.
    while_indexing = [(line, rng.uniform(0, 0.1)) for line in rng.choices(indexing, k=N_KILLS_WHILE_INDEXING)]
    return spread + while_indexing


def test_killed_processes_lose_nothing_and_running_again_repairs(command, folder, hash_encoder):
    encoder = hash_encoder(DIMENSION)
    lines_of_all = run(command, folder / "undisturbed")
    expected = read_all(folder / "undisturbed", encoder)
    assert len(expected) == sum(len(chunks_of(number, 2)) for number in range(N_DOCUMENTS)) > 100
    n_unfinished = 0
    for round_, (kill_at, delay) in enumerate(moments(lines_of_all, random.Random(20240613))):
        index = folder / f"killed-{round_}"
        lines = run(command, index, kill_at, delay)
        n_unfinished += lines[-1] != "done"
        added = [tuple(map(int, line.split()[1:])) for line in lines if line.startswith("added")]
        acknowledged = dict(added)  # number → the latest version
        # One add may have been running, of the documents that come next; they are old, new or mixed.
        following = added[-1][0] + 1 if added else 0
        running = {(following + i) % N_DOCUMENTS for i in range(MOST_TOGETHER)}

        found = read_all(index, encoder)
        for number, version in acknowledged.items():
            if number not in running:
                assert_whole(found, number, version, encoder)
        for text, document_id, i, _, _ in found.values():
            number = int(document_id[1:])
            assert number in acknowledged or number in running
            assert text in {text for version in (1, 2) for text in chunks_of(number, version)[i : i + 1]}

        with VectorStore.open(index, encoder=encoder) as store:
            for number in [number for number in acknowledged if number not in running][::6]:
                (codes,) = encoder.encode_documents([chunks_of(number, acknowledged[number])])
                for row in codes:
                    (hit,) = store.search(row, k=1, candidates=10)
                    assert (hit.document_id, hit.score) == (f"d{number}", pytest.approx(1, abs=1e-6))

        assert run(command, index)[-1] == "done"
        assert read_all(index, encoder) == expected
    assert n_unfinished >= N_KILLS - 4


def changing_document(number, version):
    """A document in one of two versions: its metadata, its chunks or nothing changes, by its number."""
    id_ = f"d{number}"
    match number % 4:
        case 0:
            chunks = [Chunk(text=f"part {i} of {number}", metadata={"edition": version} if i else {}) for i in range(3)]
            return Document(id=id_, chunks=chunks, metadata={"version": version})
        case 1:
            return Document(id=id_, chunks=["always", "the same", f"as {number}"], metadata={"version": 1})
        case 2:  # their own ids, some of which go on to other places
            texts = chunks_of(number, version)
            chunks = [Chunk(text=text, id=f"c{number}-{i + version}") for i, text in enumerate(texts)]
            return Document(id=id_, chunks=chunks)
    return Document(id=id_, chunks=chunks_of(number, version) * (5 if number == 19 else 1))


@pytest.fixture
def sync_and_kill(folder, tests_folder):
    """``sync_and_kill(documents, index, kill_at=None, delay=None)`` → the lines that it printed.

    Killed are forks of one process, so that not each has to import everything first: `delay` seconds after
    their line number `kill_at`, or by themselves at that very line, or at the first line of that name.
    """
    script = folder / "syncing.py"
    script.write_text(SYNCING_CHILD, "utf-8")
    with contextlib.ExitStack() as stack:
        started = []

        def run(documents, index, kill_at=None, delay=None):
            if not started:
                (folder / "documents").write_bytes(pickle.dumps(documents))
                command = [sys.executable, str(script), str(tests_folder), str(folder / "documents")]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
                started.append(stack.enter_context(subprocess.Popen(command, **pipes, text=True)))
            (parent,) = started
            parent.stdin.write(f"{index} {kill_at or 0 if delay is None else 0}\n")
            parent.stdin.flush()
            pid = int(parent.stdout.readline())
            lines = []
            while not (line := parent.stdout.readline().strip()).startswith("ended"):
                assert line
                lines.append(line)
                if len(lines) == kill_at and delay is not None:
                    time.sleep(delay)
                    with contextlib.suppress(ProcessLookupError):  # it was faster
                        os.kill(pid, signal.SIGKILL)
            assert line == ("ended 0" if lines[-1] == "done" else f"ended {-signal.SIGKILL}")
            return lines

        yield run


def read_points(store):
    """Every point, past the store: id → (payload, vector)."""
    points, _ = store._client.scroll("documents", limit=100_000, with_vectors=True)
    return {point.id: (point.payload, point.vector) for point in points}


def of_document(points, document_id):
    return {id_: point for id_, point in points.items() if point[0]["document_id"] == document_id}


def test_a_killed_sync_loses_nothing_and_another_completes_it(folder, hash_encoder, sync_and_kill):
    encoder = hash_encoder(DIMENSION)
    old, new = [
        [changing_document(number, version) for number in numbers]
        for version, numbers in ((1, range(36)), (2, range(8, 44)))
    ]
    with VectorStore.open(folder / "undisturbed", encoder=encoder) as store:
        store.add(old)
        before = read_points(store)
    lines_of_all = sync_and_kill(new, folder / "undisturbed")
    assert set(lines_of_all) >= {"facet", "upsert", "delete", "batch_update_points", "scroll", "_start_indexing"}
    with VectorStore.open(folder / "undisturbed", encoder=encoder) as store:
        expected = read_points(store)
    chunks = {(one.id, i): (chunk.text, join_metadata(one, chunk)) for one in new for i, chunk in enumerate(one.chunks)}
    stored = [payload for payload, _ in expected.values()]
    assert len(stored) == len(chunks) > 100
    assert {
        (payload["document_id"], payload["chunk_index"]): (payload["text"], payload["metadata"]) for payload in stored
    } == chunks
    sizes = [(len(of_document(before, one.id)), len(of_document(expected, one.id))) for one in new]
    assert any(0 < a < b for a, b in sizes)
    assert any(a > b > 0 for a, b in sizes)
    assert {(a == 0, b == 0) for a, b in sizes} >= {(True, False), (False, True), (False, False)}

    rng = random.Random(20250704)
    interrupted = []
    at_each = [(name, None) for name in ("facet", "upsert", "delete", "batch_update_points", "_start_indexing")]
    spread = anywhere(lines_of_all, rng, N_KILLS_OF_SYNC - len(at_each), 0.003)
    for round_, (kill_at, delay) in enumerate(at_each + spread):
        index = folder / "killed"
        with VectorStore.open(index, encoder=encoder) as store:
            store.add(old)
        lines = sync_and_kill(new, index, kill_at, delay if round_ % 2 else None)
        interrupted.append(lines[-1])
        with VectorStore.open(index, encoder=encoder, create=False) as store:
            found = read_points(store)
            for id_, point in found.items():
                assert point in (before.get(id_), expected.get(id_))
            for one in new:
                # Nothing of the old version goes before all of the new one is there.
                wanted = of_document(expected, one.id)
                assert (
                    of_document(before, one.id).keys() <= found.keys()
                    or wanted.items() == {id_: found.get(id_) for id_ in wanted}.items()
                )
            store.sync(new, delete_missing=True)
            assert read_points(store) == expected
            assert store.sync(new, delete_missing=True).unchanged_documents == len(new)
            one = rng.choice([one for one in new if of_document(expected, one.id)])
            (codes,) = encoder.encode_documents([[chunk.text for chunk in one.chunks]])
            (hit,) = store.search(codes[-1], k=1, candidates=10)
            assert (hit.document_id, hit.score) == (one.id, pytest.approx(1, abs=1e-6))
        shutil.rmtree(index)
    assert interrupted.count("done") <= 3
    assert interrupted[: len(at_each)] == [name for name, _ in at_each]


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("shard_files.write_safely", 1),
        ("os.fsync", 1),
        ("pathlib.Path.replace", 1),
        ("pathlib.Path.replace", 2),
        ("pathlib.Path.rename", 1),
        ("EdgeClient.create_payload_index", 1),
        ("EdgeClient.create_payload_index", 2),
        ("EdgeClient.upsert", 1),
    ],
)
def test_a_process_killed_while_it_creates_a_collection_leaves_none_or_a_usable_one(
    folder, tests_folder, hash_encoder, name, calls
):
    """It kills itself before that call of that function."""
    code = f"""
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
from hash_encoder import make_encoder
from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.engines import shard_files
from pplx_vectorstore.engines.edge import EdgeClient

owner, _, name = {name!r}.rpartition(".")
owner = eval(owner)
left = [{calls}]
function = getattr(owner, name)

def count_down(*args, **kwargs):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)

setattr(owner, name, count_down)
with VectorStore.open(sys.argv[2], encoder=make_encoder(64)) as store:
    store.add([Document(id="d", chunks=["a"])])
"""
    index = folder / "index"
    child = subprocess.run([sys.executable, "-c", code, str(tests_folder), str(index)], timeout=60, check=False)
    assert child.returncode == -signal.SIGKILL
    with VectorStore.open(index, encoder=hash_encoder(64)) as store:
        assert store.count() == 0
        store.add(Document(id=document_id, chunks=["a"]) for document_id in "de")
        assert {hit.document_id for hit in store.search("a", k=5)} == {"d", "e"}
    with VectorStore.open(index, encoder=hash_encoder(64), create=False) as store:
        assert store.delete(document_ids=["d"]) == 1
