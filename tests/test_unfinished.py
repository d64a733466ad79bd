"""What an interrupt leaves of a large document that was being embedded, and what the next run makes of it."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pplx_vectorstore import VectorStore
from pplx_vectorstore.cli import app
from pplx_vectorstore.encoders import late_chunking
from pplx_vectorstore.encoders.unfinished import Unfinished, key_of

ONE, TWO, THREE = (key_of(name) for name in ("one", "two", "three"))


def rows_of(unfinished, *keys):
    return [found if found is None else found[0].tolist() for found in map(unfinished.find, keys)]


class TestKeeping:
    def test_what_is_kept_is_found_by_another_process(self, tmp_path):
        first = Unfinished(tmp_path / "kept")
        assert not first.folder.exists()
        first.begin()
        first.keep(ONE, np.arange(3, dtype=np.float32), np.array([[1]], np.int8))
        first.keep(TWO, np.zeros((0, 4), np.float32))
        second = Unfinished(tmp_path / "kept")
        floats, codes = second.find(ONE)
        assert (floats.tolist(), floats.dtype, codes.tolist(), codes.dtype) == ([0, 1, 2], "f4", [[1]], "i1")
        assert [array.shape for array in second.find(TWO)] == [(0, 4)]
        assert second.find(THREE) is None
        if os.name == "posix":
            assert (first.folder.stat().st_mode & 0o777, first._files()[0].stat().st_mode & 0o777) == (0o700, 0o600)

    def test_the_end_that_a_killed_process_did_not_write_is_not_read(self, tmp_path):
        kept = Unfinished(tmp_path)
        kept.begin()
        kept.keep(ONE, np.array([1.0]))
        whole = kept._files()[0].read_bytes()
        kept.keep(TWO, np.array([2.0]))
        both = kept._files()[0].read_bytes()
        for size in range(len(whole), len(both) + 1):
            kept._files()[0].write_bytes(both[:size])
            expected = [2.0] if size == len(both) else None
            assert rows_of(Unfinished(tmp_path), ONE, TWO) == [[1.0], expected]
        for damaged in (len(whole) - 1, len(whole) - 9):
            data = bytearray(both)
            data[damaged] ^= 1
            kept._files()[0].write_bytes(data)
            assert rows_of(Unfinished(tmp_path), ONE, TWO) == [None, [2.0]]

    def test_the_latest_few_documents_are_kept_and_what_is_used_again_with_them(self, tmp_path):
        kept = Unfinished(tmp_path)
        for number, key in enumerate((ONE, TWO)):
            kept.begin()
            kept.keep(key, np.array([number]))
        for _ in range(3):  # interrupted again and again
            again = Unfinished(tmp_path)
            again.begin()
            (found,) = again.find(ONE)
            again.keep(ONE, found)
            assert len(again._files()) <= 3
        assert rows_of(Unfinished(tmp_path), ONE, TWO) == [[0], None]
        again.clear()
        assert not tmp_path.exists()
        assert rows_of(Unfinished(tmp_path), ONE) == [None]

    def test_two_processes_in_one_folder_do_no_harm(self, tmp_path):
        one, other = Unfinished(tmp_path), Unfinished(tmp_path)
        one.begin()
        one.keep(ONE, np.array([1]))
        other.begin()
        other.keep(TWO, np.array([2]))
        other.clear()
        assert rows_of(one, ONE, TWO) == [[1], None]
        one.keep(THREE, np.array([3]))
        later = Unfinished(tmp_path)
        assert rows_of(later, ONE, TWO, THREE) == [[1], None, [3]]
        later.clear()
        assert not tmp_path.exists()
        assert rows_of(one, ONE) == [None]  # computed again

    def test_many_that_begin_and_end_at_once_keep_what_they_do(self, tmp_path, caplog):
        def work(number):
            for step in range(100):
                kept, key = Unfinished(tmp_path / "kept"), key_of(f"{number} {step}")
                kept.begin()
                kept.keep(key, np.array([step]))
                assert rows_of(kept, key) in ([[step]], [None])  # of another's, no more than a few files stay
                kept.clear()

        with caplog.at_level(logging.WARNING), ThreadPoolExecutor(6) as threads:
            list(threads.map(work, range(6)))
        assert caplog.records == []
        assert not (tmp_path / "kept").exists()

    @pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), 5])
    def test_a_full_disk_is_told_once_and_stops_nothing(self, tmp_path, monkeypatch, caplog, failure):
        def write(file, data):
            if isinstance(failure, OSError):
                raise failure
            return failure

        kept = Unfinished(tmp_path)
        kept.begin()
        monkeypatch.setattr(os, "write", write)
        with caplog.at_level(logging.WARNING):
            kept.keep(ONE, np.array([1]))
            kept.keep(TWO, np.array([2]))
        (record,) = caplog.records
        assert "cannot be kept" in record.getMessage()
        assert rows_of(kept, ONE, TWO) == [None, None]


class TestEmbedding:
    @pytest.fixture
    def ran(self, minilm, monkeypatch):
        """The rows that go through the model, as they do."""
        ran = []
        pool = minilm._model.pool
        monkeypatch.setattr(minilm._model, "pool", lambda rows, spans: ran.extend(rows) or pool(rows, spans))
        monkeypatch.setattr(minilm, "unfinished", None)
        monkeypatch.setattr(minilm, "_batch_tokens", 256)
        monkeypatch.setattr(late_chunking, "_MANY_BATCHES", 8)
        return ran

    def test_an_interrupted_document_goes_on_where_it_was(self, minilm, ran, tmp_path):
        document = [
            f"Part {number} of a long report about the river and its {number} bridges." for number in range(150)
        ]
        (expected,) = minilm.encode_documents([document])
        n_rows = len(ran)
        assert n_rows > 20

        def stop(done, of_all):
            if len(ran) > n_rows // 5:
                raise KeyboardInterrupt

        for _ in range(3):
            ran.clear()
            minilm.unfinished = Unfinished(tmp_path)
            with pytest.raises(KeyboardInterrupt):
                minilm.encode_documents([["A short one."], document], progress=stop)
        ran.clear()
        minilm.unfinished = Unfinished(tmp_path)
        (codes,) = minilm.encode_documents([document])
        assert len(ran) < n_rows // 2
        assert np.abs(codes.astype(int) - expected).max() <= 1
        ran.clear()
        minilm.unfinished = Unfinished(tmp_path)
        (again,) = minilm.encode_documents([document])
        assert not ran
        assert np.array_equal(again, codes)
        minilm.encode_documents([[*document[:-1], "Another end."]])  # windows far from it are the same
        assert 0 < len(ran) < n_rows // 2

    def test_usual_documents_are_not_kept(self, minilm, ran, tmp_path):
        minilm.unfinished = Unfinished(tmp_path / "kept")
        minilm.encode_documents([["A short one.", "Of two chunks."]] * 3)
        minilm.encode_queries(["where?"])
        assert not (tmp_path / "kept").exists()

    def test_what_a_model_should_not_give_is_not_kept(self, minilm, ran, tmp_path, monkeypatch):
        document = [f"Part {number} of a long report about the river." for number in range(150)]
        monkeypatch.setattr(minilm._model, "pool", lambda rows, spans: np.full((sum(map(len, spans)), 384), np.nan))
        minilm.unfinished = Unfinished(tmp_path / "kept")
        with pytest.raises(late_chunking.EncodingError):
            minilm.encode_documents([document])
        assert not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_a_killed_run_over_a_large_file_is_completed_by_the_next(tmp_path, monkeypatch, minilm):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    words = ["valley", "river", "road", "railway", "committee", "budget", "bridge", "winter", "harvest", "letter"]
    rng = np.random.default_rng(1)
    lines = [" ".join(rng.choice(words, 12)) + f" {number}." for number in range(2800)]
    (tmp_path / "docs" / "large.txt").write_text("\n".join(lines))
    (tmp_path / "docs" / "small.txt").write_text("A short note.")
    command = [str(Path(sys.executable).with_name("pplx-vectorstore")), "index", "docs", "--model", "all-minilm-l6-v2"]
    kept = tmp_path / ".pplx-vectorstore" / ".unfinished-documents"
    with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
        deadline = time.monotonic() + 120
        while sum(path.stat().st_size for path in kept.glob("*")) < 50_000:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    assert kept.exists()

    def run(*arguments):
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    found = []
    find = Unfinished.find
    monkeypatch.setattr(Unfinished, "find", lambda self, key: found.append(find(self, key)) or found[-1])
    run("index", "docs")
    assert 0 < sum(one is not None for one in found) < len(found)
    assert not kept.exists()
    run("index", "docs", "--model", "all-minilm-l6-v2", "--store", "undisturbed")
    assert json.loads(run("info", "--json"))["documents"] == 2
    stored = []
    for store in (".pplx-vectorstore", "undisturbed"):
        with VectorStore.open(tmp_path / store, encoder=minilm) as opened:
            stored.append({(one.document_id, one.chunk_index): one for one in opened.chunks(with_codes=True)})
    one, other = stored
    assert one.keys() == other.keys()
    for place, chunk in one.items():
        assert chunk.text == other[place].text
        assert np.abs(chunk.codes.astype(int) - other[place].codes).max() <= 2
