import io
import json
import logging
import os
import subprocess
import sys
import unicodedata
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest
import typer
from file_samples import epub
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from pplx_vectorstore import Chunk, Document, VectorStore
from pplx_vectorstore.cli import app
from pplx_vectorstore.encoders import PrecomputedEncoder
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.terminal import Messages, busy, complain, printable, reported_errors, say_json

COMMAND = str(Path(sys.executable).with_name("pplx-vectorstore"))
# Renames the window, paints in red by a C1 control, turns the order of what follows, hides, and begins lines anew.
HOSTILE = "x\x1b]0;owned\x07\x9b31m\u202e\u2066\u200b\u200f\r\n\x7f\u2028error: y\U000e0041"
NAME = HOSTILE.replace("/", "")
# Joiners within words and emoji, and Arabic and Indic marks that are seen.
HARMLESS = {*"\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"}


def obeyed(text, allowed="\n"):
    """Return the characters of a text that a terminal would obey."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {one for one in text if unicodedata.category(one) in kinds and one not in HARMLESS and one not in allowed}


@given(st.text(st.characters(codec=None, exclude_characters=[])) | st.text("\x1b\x9b\x7f\r\n\t\u202e\u2028\ud800a"))
def test_nothing_that_a_terminal_obeys_is_left(text):
    shown = printable(text)
    assert obeyed(shown, "") == set()
    assert len(shown) == len(text)
    assert all(one == other for one, other in zip(text, shown, strict=True) if other != "\ufffd")
    whole = printable(text, multiline=True)
    assert whole.count("\n") == text.count("\n")
    assert whole.replace("\n", "").replace("\t", "") == printable(
        text.replace("\r\n", "\n").replace("\n", "").replace("\t", "")
    )


PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
HINDI = "\u0915\u094d\u200d\u0937"


@pytest.mark.parametrize("text", ["Smörgås 日本 (1\u00a0kg)", PERSIAN, HINDI, "👩\u200d👩\u200d👧", "\u05e9\u05dc", ""])
def test_what_people_write_stays(text):
    assert printable(text) == text


def test_lines_and_tabs_stay_in_a_text_and_not_in_a_name():
    assert printable("a\tb\r\nc\n", multiline=True) == "a\tb\nc\n"
    assert printable("a\tb\r\nc") == "a\ufffdb\ufffd\ufffdc"


def test_json_holds_no_control_character_and_the_same_values(capsys):
    say_json({HOSTILE: [HOSTILE]})
    printed = capsys.readouterr().out
    assert obeyed(printed) == set()
    assert json.loads(printed) == {HOSTILE: [HOSTILE]}


def test_brackets_and_colons_are_no_markup():
    shown = io.StringIO()
    shown.isatty = lambda: True
    messages = Messages(Console(file=shown, force_terminal=True, width=80))
    complain(messages, "skipped [/red] :smile: [bold]x[/bold]")
    with busy(messages, f"exporting to [/x] {HOSTILE}"):
        pass
    assert "skipped [/red] :smile: [bold]x[/bold]\n" in shown.getvalue()
    assert "exporting to [/x]" in shown.getvalue()
    assert "\x1b]0;" not in shown.getvalue()


def fail():
    raise ZeroDivisionError(HOSTILE)


def test_warnings_and_logs_of_others_are_cleaned_too(capsys):
    factory = logging.getLogRecordFactory()  # another library may have set its own
    logger = logging.getLogger("somebody")
    handler = logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)
    with warnings.catch_warnings(), reported_errors():
        warnings.simplefilter("default")
        logger.warning("one %s", HOSTILE)
        try:
            fail()
        except ZeroDivisionError:
            logger.exception("two")
        warnings.warn(HOSTILE, UserWarning, stacklevel=1)
    logger.removeHandler(handler)
    logged = handler.stream.getvalue()
    assert logged.startswith("one x")
    assert "Traceback" in logged
    assert "ZeroDivisionError: x" in logged
    printed = capsys.readouterr().err
    assert printed.startswith("warning: x")
    assert printed.count("\n") == 1
    assert obeyed(logged + printed) == set()
    assert logging.getLogRecordFactory() is factory


@pytest.mark.parametrize("debugging", [False, True])
def test_an_unexpected_error_is_one_line_and_where_it_comes_from_on_request(capsys, monkeypatch, debugging):
    if debugging:
        monkeypatch.setenv("PPLX_VECTORSTORE_DEBUG", "1")
    with pytest.raises(typer.Exit) as caught, reported_errors():
        fail()
    printed = capsys.readouterr().err
    assert caught.value.exit_code == 1
    assert "error: unexpected ZeroDivisionError: x" in printed
    assert (Path(__file__).name in printed, printed.count("\n") == 1) == (debugging, not debugging)
    assert obeyed(printed) == set()


def test_wrong_usage_is_cleaned_and_exits_with_2():
    for arguments in ([HOSTILE], ["search", "x", f"--{HOSTILE}"], ["search", "x", "-k", HOSTILE]):
        ran = subprocess.run([COMMAND, *arguments], capture_output=True, check=False)
        assert ran.returncode == 2
        assert b"Usage" in ran.stderr
        assert obeyed((ran.stdout + ran.stderr).decode()) == set()
    bare = subprocess.run([COMMAND], capture_output=True, text=True, check=False)
    assert "Index files" in bare.stdout + bare.stderr


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command line in a folder whose own name is hostile, and check what it printed."""
    here = tmp_path / NAME
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments, code=0):
        ran = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert ran.exit_code == code, ran.output
        assert obeyed(ran.stdout) == set(), ran.stdout
        assert obeyed(ran.stderr) == set(), ran.stderr
        return ran

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such file names")
def test_files_with_hostile_names_and_contents(run):
    folder = Path("docs") / NAME
    folder.mkdir(parents=True)
    (folder / f"{NAME}.txt").write_text(HOSTILE + " Cats purr.")
    (folder / f"{NAME}.html").write_text(f"<title>{HOSTILE}</title><p>{HOSTILE}")
    (folder / f"{NAME}.blob").write_bytes(b"\0")
    (folder / os.fsdecode(b"\xe9\x1b.blob")).write_bytes(b"\0")
    (folder / "book.epub").write_bytes(epub({"one": "<p>One", quote(HOSTILE, safe=""): "<p>Two"}))
    (Path("docs") / f"{NAME}-link").symlink_to(folder.resolve())
    indexed = run("index", "docs", "--model", "all-minilm-l6-v2")
    assert "skipped docs/x" in indexed.stderr
    reason = [line for line in indexed.stderr.splitlines() if "book.epub" in line]
    assert "owned" in reason[0].rpartition("book.epub")[2]  # the name of a part, as the book has it
    shapes = (
        [],
        ["--full"],
        ["--json"],
        ["--jsonl"],
        ["-l"],
        ["--context", "1", "--full"],
        ["--by-document", "--hybrid"],
    )
    for options in shapes:
        assert "owned" in run("search", f"{HOSTILE} cats", *options).stdout
    assert "owned" in run("documents").stdout
    run("documents", "--json")
    run("info")
    ids = [one["id"] for one in json.loads(run("documents", "--json").stdout)]
    assert "owned" in run("delete", ids[0]).stdout
    assert "owned" in run("delete", HOSTILE, code=1).stderr
    assert run("delete", "docs").stdout == "deleted docs (2 documents)\n"
    run("index", folder / f"{NAME}.blob", code=1)
    run("index", NAME, code=1)


def test_a_store_with_hostile_contents(run, hash_encoder):
    encoder = PrecomputedEncoder(HOSTILE, 64)
    codes = hash_encoder(64).encode_documents([["x"]])[0]
    metadata = {"source": HOSTILE, "root": f"/{HOSTILE}", "line": 1, HOSTILE: HOSTILE}
    document = Document(
        id=HOSTILE, chunks=[Chunk(text=HOSTILE, id=HOSTILE, start=1, end=2)], vectors=codes, metadata=metadata
    )
    with VectorStore.open(NAME, encoder=encoder, tenant=HOSTILE) as store:
        store.add([document])
    here = ["--store", NAME]
    assert "owned" in run("info", *here).stdout
    for command in (["info"], ["info", "--json"], ["documents"], ["documents", "--json"]):
        run(*command, *here, "--tenant", HOSTILE)
    run("documents", *here, code=1)  # it holds tenants
    assert "owned" in run("search", "x", *here, code=2).stderr  # no model to load
    run("search", "x", *here, "--model", HOSTILE, code=2)
    run("search", "x", *here, "--filter", HOSTILE, code=2)
    run("search", "x", *here, "--filter", json.dumps({"$" + HOSTILE: HOSTILE}), code=2)
    run("info", *here, "--collection", HOSTILE, code=1)
    run("info", "--store", f"{NAME}-none", code=1)
    assert "owned" in run("copy", NAME, f"{NAME}-2").stdout
    assert "owned" in run("copy", NAME, f"{NAME}-2", "--tenant", "nobody", code=1).stderr
    assert "owned" in run("export", f"{NAME}.parquet", *here, "--tenant", HOSTILE).stdout
    assert "owned" in run("import", f"{NAME}.parquet", "--store", f"{NAME}-3", "--tenant", HOSTILE).stdout
    Path(f"{NAME}.bin").write_bytes(HOSTILE.encode())
    assert "owned" in run("import", f"{NAME}.bin", "--store", f"{NAME}-3", code=1).stderr
    assert "owned" in run("export", Path(NAME) / HOSTILE / "x", *here, "--tenant", HOSTILE, code=1).stderr
    model = Path("model")
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": HOSTILE, "hidden_size": HOSTILE}))
    run("index", NAME, "--model", "model", "--store", "new", code=1)
    run("export-onnx", HOSTILE, "out", code=1)


def test_a_server_that_answers_with_hostile_messages(run):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"status": {"error": HOSTILE}, "result": None, "time": 0}).encode()
            if self.path == "/":
                body = json.dumps({"title": HOSTILE, "version": HOSTILE}).encode()
            self.send_response(200 if self.path == "/" else 400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_GET  # noqa: N815 - names that http.server calls

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert "owned" in run("info", "--store", url, code=1).stderr
        run("documents", "--store", url, "--collection", HOSTILE, code=1)
        server.shutdown()
    run("info", "--store", f"http://{HOSTILE}", code=1)
    run("info", "--store", f"ftp://{HOSTILE}", code=1)


class Closed(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("stderr", [None, Closed()], ids=["closed", "broken"])
@pytest.mark.parametrize("colour", ["", "1"])
def test_where_nobody_reads_the_errors_the_exit_code_is_the_same(monkeypatch, stderr, colour):
    monkeypatch.setenv("FORCE_COLOR", colour)
    monkeypatch.setattr("sys.stderr", stderr)
    with reported_errors(code=2) as messages:
        complain(messages, "note")
    with pytest.raises(typer.Exit) as ended, reported_errors(code=2) as messages, busy(messages, "waiting"):
        raise InvalidInputError("wrong")
    assert ended.value.exit_code == 2


def test_without_standard_streams_commands_end_as_with_them(tmp_path):
    (tmp_path / "index" / "documents").mkdir(parents=True)
    shell = f"{COMMAND} documents --store {tmp_path / 'index'} %s; echo $? >&3"
    for closed, code in (("<&- >&- 2>&-", "1"), ("--help >&- 2>&-", "0"), ("--no-such-option 2>&-", "2")):
        command = f"exec 3>&1; {shell % closed}"
        assert subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout == f"{code}\n"
