"""The suite on a server that QDRANT_URL names: what is skipped, why, and what is left of it afterwards."""

import os
import re
import subprocess
import sys

import pytest

TESTS = """
import pytest
from pplx_vectorstore import CollectionConfig, Document
from pplx_vectorstore.errors import StoreError

pytestmark = pytest.mark.real_server
on_the_server = pytest.mark.parametrize("engine", ["server", "server-grpc"], indirect=True)
DOCUMENTS = [Document(id="d", chunks=["some words"])]


@on_the_server
def test_what_every_server_can(new_store):
    store, other, again = new_store(), new_store(collection="c"), new_store(collection="c")
    store.add(DOCUMENTS)
    assert (store.count(), other.count()) == (1, 0)
    other.add(DOCUMENTS)
    assert again.count() == 1


@on_the_server
def test_what_a_newer_one_can(new_store):
    store = new_store()
    store.add(DOCUMENTS)
    assert store.search("words", hybrid=True, lexical_weight=0.9)


@on_the_server
def test_what_only_a_newer_one_refuses(new_store):
    store = new_store(config=CollectionConfig(text_index=False))
    with pytest.raises(StoreError, match="has no index of its text"):
        store.search("words", hybrid=True, lexical_weight=0.9)


@on_the_server
def test_what_fails(new_store):
    new_store().add(DOCUMENTS)
    new_store(collection="c", no_such_option=True)


def test_what_has_nothing_to_do_with_it(hash_encoder):
    from pplx_vectorstore.errors import UnsupportedServerError

    raise UnsupportedServerError("of a stand-in")
"""


@pytest.fixture
def run(grpc_server, tests_folder, tmp_path):
    """Run these tests on a server of a version, which has a collection already: ``run("1.18.3")`` → what is printed."""
    (tmp_path / "test_on_a_server.py").write_text(TESTS)
    server = grpc_server.rest

    def run(version):
        server.version = version
        root = tests_folder.parent
        paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        of_server = {"QDRANT_URL": server.url, "QDRANT_GRPC_PORT": str(grpc_server.port)}
        arguments = ["-c", root / "pyproject.toml", "--rootdir", tmp_path, "-p", "conftest", "-p", "no:cacheprovider"]
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *arguments, tmp_path],
            env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "250", **of_server},  # no reason is cut short
            capture_output=True,
            text=True,
            check=False,
        )
        return ran.stdout + ran.stderr

    return run


@pytest.mark.slow
def test_what_the_server_is_too_old_for_is_skipped_and_nothing_is_left(run, grpc_server, hash_encoder):
    from pplx_vectorstore import VectorStore

    own = {"collection": "c", "encoder": hash_encoder(64)}
    VectorStore.connect(grpc_server.url, **own).close()
    said = run("1.16.3")
    assert re.search(r"SKIPPED \[\d\].*lexical_weight=0\.9 needs Qdrant 1\.17 or newer, .*is 1\.16\.3", said), said
    assert "3 failed, 2 passed, 4 skipped" in said, said
    assert "test_what_has_nothing_to_do_with_it - pplx_vectorstore.errors.UnsupportedServerError" in said
    made = {path.split("/")[2] for method, path in grpc_server.rest.requests if method == "DELETE"}
    assert len(made) == 12, "over REST and gRPC, also by tests that failed or were skipped"
    assert all(re.fullmatch(r"pplx-vectorstore-test-[0-9a-f]{32}-[\w-]+", name) for name in made)
    assert grpc_server.rest.client.collection_names() == ["c"], "which is the user's"
    assert grpc_server.rest.unknown == []


@pytest.mark.slow
def test_a_server_older_than_the_oldest_is_an_error(run):
    said = run("1.15.5")
    assert "1 failed, 8 errors" in said, said
    assert "version 1.16 or newer is needed" in said
