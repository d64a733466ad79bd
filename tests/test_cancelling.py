"""Operations that are cancelled or fail: they stop reading, tell what they wrote, and leave others alone."""

import asyncio
import contextlib
import threading

import pytest

from pplx_vectorstore import AsyncVectorStore, Document, VectorStore
from pplx_vectorstore.engines import retrying
from pplx_vectorstore.errors import ServerUnavailableError, StoreError
from pplx_vectorstore.operations import write
from pplx_vectorstore.shared_store import SharedStore


class Down:
    """A server that answers everything with 503, and counts how often."""

    retry_after = "0"

    def __init__(self):
        self.refused = 0

    def choose(self, path):
        self.refused += 1
        return "503"


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(write, "_GROUP_DOCUMENTS", 4)


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(retrying, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(retrying, "_LONGEST_WAIT", 0.01)


def documents(prefix, n=3):
    return [Document(id=f"{prefix}{i}", chunks=[f"{prefix} {i}"]) for i in range(n)]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


@pytest.mark.usefixtures("short_waits")
def test_cancelling_one_task_leaves_the_retries_of_the_others(server, hash_encoder):
    async def run():
        async with await AsyncVectorStore.connect(server.url, encoder=hash_encoder(64), retries=10_000) as store:
            server.faults = down = Down()
            tasks = [asyncio.create_task(store.add(documents(prefix))) for prefix in "abc"]
            await until(lambda: down.refused > 10)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            seen = down.refused
            await until(lambda: down.refused > seen + 20)
            assert not tasks[1].done()
            assert not tasks[2].done()
            server.faults = None
            assert [(await task).documents for task in tasks[1:]] == [3, 3]
            return {document.id async for document in store.documents()}

    assert {f"{prefix}{i}" for prefix in "bc" for i in range(3)} <= asyncio.run(run())


@pytest.mark.usefixtures("short_waits")
def test_an_interrupted_thread_leaves_the_retries_of_the_others(server, hash_encoder):
    """The same for threads, one of which ends with what Ctrl-C raises."""
    with VectorStore.connect(server.url, encoder=hash_encoder(64), retries=10_000) as store:
        ended = {}

        def interrupted():
            yield from documents("a", 4)  # a group, whose writing is under way
            raise KeyboardInterrupt

        def work(name, given):
            try:
                ended[name] = store.add(given).documents
            except BaseException as error:  # noqa: BLE001 - it is looked at below
                ended[name] = error

        server.faults = down = Down()
        threads = [
            threading.Thread(target=work, args=("a", interrupted())),
            threading.Thread(target=work, args=("b", documents("b"))),
        ]
        for thread in threads:
            thread.start()
        threads[0].join()
        assert isinstance(ended["a"], KeyboardInterrupt)
        assert ended["a"].__notes__[0].startswith("Written before this: documents: 0, chunks: 0.")
        seen = down.refused
        while down.refused < seen + 20:
            assert "b" not in ended
        server.faults = None
        threads[1].join()
        assert ended["b"] == 3


@pytest.mark.parametrize("kind", ["edge", "server"])
@pytest.mark.parametrize("verb", ["add", "sync"])
def test_a_cancelled_call_stops_reading_and_tells_what_it_wrote(folder, server, hash_encoder, kind, verb):
    """The input is slow and endless: at most the document that is being waited for is still taken."""
    taken = 0
    go_on = threading.Event()

    def endless():
        nonlocal taken
        while True:
            if taken == 10:  # two groups of four, and two of the third
                go_on.wait()
            taken += 1
            yield Document(id=f"d{taken}", chunks=[f"text {taken}"])

    async def run(store):
        task = asyncio.create_task(getattr(store, verb)(endless()))
        await until(lambda: taken == 10)
        while await store.count() < 4:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        written = await store.count()
        assert written in (4, 8)
        assert f"Written before this: documents: {written}, chunks: {written}." in "".join(caught.value.__notes__)
        go_on.set()
        await asyncio.sleep(0.05)
        assert taken <= 11
        assert await store.count() == written
        # The same call again completes the rest.
        assert (await store.sync([Document(id=f"d{i}", chunks=[f"text {i}"]) for i in range(1, 12)])).documents == (
            11 - written
        )

    async def main():
        if kind == "edge":
            opened = AsyncVectorStore.open(folder / "index", encoder=hash_encoder(64))
        else:
            opened = AsyncVectorStore.connect(server.url, encoder=hash_encoder(64))
        async with await opened as store:
            await run(store)

    asyncio.run(main())


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("way", ["import", "copy"])
def test_a_cancelled_copy_or_import_does_not_wait_for_its_retries(folder, server, hash_encoder, way):
    async def run():
        async with (
            await AsyncVectorStore.open(folder / "from", encoder=hash_encoder(64)) as source,
            await AsyncVectorStore.connect(server.url, encoder=hash_encoder(64), retries=10**6) as target,
        ):
            await source.add(documents("d", 30))
            await source.export_parquet(folder / "all.parquet")
            assert await target.count() == 0
            server.faults = down = Down()
            moving = target.import_parquet(folder / "all.parquet") if way == "import" else source.copy_to(target)
            task = asyncio.create_task(moving)
            await until(lambda: down.refused > 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 20)
            seen = down.refused
            await asyncio.sleep(0.1)
            assert down.refused <= seen + 1
            server.faults = None

    asyncio.run(run())


@pytest.mark.usefixtures("short_waits")
def test_what_a_failed_copy_wrote_is_told(folder, server, hash_encoder):
    with (
        VectorStore.open(folder / "from", encoder=hash_encoder(64)) as source,
        VectorStore.connect(server.url, encoder=hash_encoder(64), retries=0) as target,
    ):
        source.add(documents("d", 30))
        assert target.count() == 0
        server.faults = down = Down()
        down.choose = lambda path: "503" if path.endswith("/points") else None
        with pytest.raises(ServerUnavailableError) as caught:
            source.copy_to(target)
        server.faults = None
        assert "Written before this: documents: 0, chunks: 0." in caught.value.__notes__[-1]


def test_a_blocking_store_in_the_loop_of_a_writing_task_is_refused(folder, hash_encoder):
    """It would wait for the task, and the task for the loop."""

    async def run():
        with VectorStore.open(folder / "index", encoder=hash_encoder(64)) as blocking:
            store = AsyncVectorStore(blocking._client, encoder=hash_encoder(64))
            lock = blocking._session.points._ledger.lock_of(None)
            task = asyncio.create_task(store.add(documents("d", 40)))
            loop = asyncio.get_running_loop()
            await until(lambda: lock.needs(loop) or task.done())
            assert not task.done()
            with pytest.raises(StoreError, match=r"await an AsyncVectorStore, or use asyncio\.to_thread"):
                blocking.delete(document_ids=["d0"])
            await task
            assert blocking.delete(document_ids=["d0"]) == 1
            task = asyncio.create_task(store.add(documents("e", 40)))
            assert await asyncio.to_thread(blocking.delete, document_ids=["d1"]) == 1
            assert (await task).documents == 40

    asyncio.run(run())


def test_a_cancelled_write_of_an_adapters_store_stops_reading_too(folder, hash_encoder):
    """Its methods run in threads, which are told."""
    taken = 0
    go_on = threading.Event()

    def endless():
        nonlocal taken
        while True:
            if taken == 10:
                go_on.wait()
            taken += 1
            yield Document(id=f"d{taken}", chunks=[f"text {taken}"])

    async def run():
        shared = SharedStore(folder=folder / "index", url=None, client=None, encoder=hash_encoder(64))
        task = asyncio.create_task(shared.writing.add(endless()))
        await until(lambda: taken == 10)
        task.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        written = shared.store.count()
        assert written in (4, 8)
        assert f"Written before this: documents: {written}, chunks: {written}." in "".join(caught.value.__notes__)
        assert taken <= 11
        await shared.aclose()

    asyncio.run(run())


def test_a_failed_call_stops_reading(server, hash_encoder):
    """Without retries: a group's failure ends the call within the next group."""
    taken = []

    def counted():
        for document in documents("d", 400):
            taken.append(document.id)
            if len(taken) == 10:
                server.faults = Down()
            yield document

    with VectorStore.connect(server.url, encoder=hash_encoder(64), retries=0) as store:
        with pytest.raises(ServerUnavailableError) as caught:
            store.sync(counted())
        server.faults = None
        assert len(taken) <= 16
        assert store.count() >= caught.value.report.documents in (4, 8)


def test_a_cancelled_call_ends_embedding(folder, hash_encoder):
    """The encoder's thread ends at its next report, not after the whole group."""
    encoder = hash_encoder(64)
    reports = []
    go_on = threading.Event()
    ended = threading.Event()

    class Slow:
        fingerprint = encoder.fingerprint
        tokenizer = encoder.tokenizer
        group_characters = 10_000

        def encode_documents(self, texts, *, progress=None):
            try:
                for number in range(1000):
                    if number == 3:
                        go_on.wait()
                    reports.append(number)
                    progress(number, 1000)
                return encoder.encode_documents(texts)
            finally:
                ended.set()

    async def run():
        async with await AsyncVectorStore.open(folder / "index", encoder=Slow()) as store:
            task = asyncio.create_task(store.add(documents("d")))
            await until(lambda: len(reports) == 3)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            go_on.set()
            await asyncio.to_thread(ended.wait)
            assert len(reports) == 4
            assert await store.count() == 0

    asyncio.run(run())
