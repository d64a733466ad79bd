import pytest

from pplx_vectorstore import progress
from pplx_vectorstore.progress import duration, show_progress


class Files:
    bytes_read = 0
    bytes = 1000


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_now_and_then_where_there_is_no_terminal(clock, capsys):
    files = Files()
    with show_progress(10, files) as advance:
        files.bytes_read = 500
        clock[0] += 9
        advance.tokens(1, 2)
        assert capsys.readouterr().err == ""
        clock[0] += 1
        advance.tokens(1, 2)
        # A quarter of all bytes is embedded after 10 seconds.
        assert capsys.readouterr().err == ("indexing: 0/10 documents, 0 chunks, 50% read, embedding 50%, 30 s left\n")
        advance.documents(5, 70)
        clock[0] += 10
        files.bytes_read = 1000
        advance.tokens(0, 2)
        assert capsys.readouterr().err == "indexing: 5/10 documents, 70 chunks, 100% read, 20 s left\n"


def test_without_sizes_documents_are_counted(clock, capsys):
    with show_progress(4) as advance:
        clock[0] += 20
        advance.documents(1, 2)
    assert capsys.readouterr().err == "indexing: 1/4 documents, 2 chunks, 1:00 min left\n"
    with show_progress(None) as advance:
        clock[0] += 20
        advance.documents(1, 2)
    assert capsys.readouterr().err == "indexing: 1 documents, 2 chunks\n"


def test_durations():
    assert [duration(seconds) for seconds in (0, 59.4, 60, 3599, 3600, 90_000)] == [
        "0 s", "59 s", "1:00 min", "59:59 min", "1:00 h", "25:00 h",
    ]  # fmt: skip
