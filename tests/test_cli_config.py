"""Defaults from a project's file."""

import json
import sys
import typing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pplx_vectorstore.cli import app
from pplx_vectorstore.cli.config import NUMBERS, OPTIONS, WHOLE_NUMBERS
from pplx_vectorstore.cli.index import index
from pplx_vectorstore.cli.search import search

TABLE = "[tool.pplx-vectorstore]\n"


@pytest.fixture
def run(tmp_path, monkeypatch, loaded_encoder):
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        (tmp_path / "docs" / name).write_text(f"Text of {name}.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPLX_VECTORSTORE_STORE", raising=False)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done

    return run


def test_a_project_sets_defaults_for_all_commands_and_for_one(run, tmp_path, monkeypatch):
    Path("pyproject.toml").write_text(
        f'[project]\nname = "x"\n{TABLE}store = "made/index"\ncollection = "notes"\n'
        "[tool.pplx-vectorstore.search]\nk = 1\nhybrid = true\n"
        '[tool.pplx-vectorstore.index]\nexclude = ["b.txt"]\nchunk_tokens = 64\n'
    )
    monkeypatch.chdir("docs/sub")
    run("index", "..")
    assert (tmp_path / "made" / "index" / "notes").is_dir()
    assert json.loads(run("info", "--json").stdout)["chunk_tokens"] == 64
    hits = json.loads(run("search", "text", "--json").stdout)
    assert [hit["score_kind"] for hit in hits] == ["fused"]
    assert len(json.loads(run("search", "text", "--json", "-k", "5").stdout)) == 2  # the command line goes before
    assert "there is no index 'other'" in run("info", "--collection", "other", code=1).stderr
    assert "there is no index 'documents'" in run("--no-config", "info", code=1).stderr


def test_a_file_beside_the_index_goes_before_the_project_and_the_nearest_before_others(run, tmp_path, monkeypatch):
    Path("pyproject.toml").write_text(f'{TABLE}collection = "of-the-project"\n')
    Path(".pplx-vectorstore").mkdir()
    Path(".pplx-vectorstore/config.toml").write_text('collection = "beside"\n')
    run("index", "docs")
    assert Path(".pplx-vectorstore/beside").is_dir()
    Path("docs/pyproject.toml").write_text('[project]\nname = "y"\n')  # says nothing of this
    monkeypatch.chdir("docs")
    assert json.loads(run("info", "--json").stdout)["collection"] == "beside"
    Path("pyproject.toml").write_text(f'{TABLE}collection = "near"\n')
    assert "there is no index 'near'" in run("info", code=1).stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool]\npplx-vectorstore = 3", "sets 'pplx-vectorstore' to 3; it is a table of options"),
        (f"{TABLE}kk = 1", "sets 'kk'; a project may set"),
        (f'{TABLE}password = "x"', "sets 'password'"),
        (f"{TABLE}json = true", "sets 'json'"),
        (f'{TABLE}store = "http://127.0.0.1:1"', "sets 'store' to a URL"),
        (f'{TABLE}store = ""', "sets 'store' to an empty text"),
        (f'{TABLE}backend = "api"', "give --backend api"),
        (f'{TABLE}base-url = "http://127.0.0.1:1"', "give --base-url, or set PPLX_VECTORSTORE_BASE_URL"),
        (f'{TABLE}[tool.pplx-vectorstore.mcp]\nbase_url = "http://127.0.0.1:1"', "is for you to choose"),
        (f'{TABLE}[tool.pplx-vectorstore.mcp]\nroot = "/"', "sets 'root' of 'mcp'"),
        (f"{TABLE}search = 1", "the options of a command are a table"),
        (f"{TABLE}[tool.pplx-vectorstore.search]\nchunk-tokens = 1", "sets 'chunk-tokens' of 'search'"),
        (f'{TABLE}hybrid = "yes"', "it takes true or false"),
        (f"{TABLE}k = [1]", "it takes a text or a number"),
        (f"{TABLE}k = 2.5", "sets 'k' to 2.5; it takes a whole number"),
        (f'{TABLE}chunk-tokens = "many"', "it takes a whole number"),
        (f'{TABLE}min-score = "low"', "it takes a number"),
        (f"{TABLE}k = true", "it takes a text or a number"),
        (f"{TABLE}exclude = [true]", "it takes texts or numbers"),
    ],
)
def test_what_a_file_may_not_set_is_named(run, text, said):
    Path("pyproject.toml").write_text(text)
    refused = run("search", "x", code=2)
    assert said in refused.stderr
    assert "pyproject.toml" in refused.stderr
    assert "--no-config" in refused.stderr
    assert "Usage" in run("search", "-h").stdout
    run("--no-config", "documents", code=1)  # for there is no index


def test_a_file_does_not_say_what_agents_may_have_indexed(run):
    Path("pyproject.toml").write_text(f'{TABLE}root = "."\n')  # for `index`
    refused = run("mcp", "--allow-write", code=1)
    assert "--allow-write needs --root FOLDER" in refused.stderr


def test_what_a_file_may_set_are_options_that_there_are():
    import typer.main

    commands = typer.main.get_command(app).commands.values()
    options = {option.lstrip("-") for command in commands for one in command.params for option in one.opts}
    assert options >= OPTIONS
    assert not OPTIONS & {"password", "json", "grpc-port", "allow-write", "key", "host", "port"}


def test_which_options_are_numbers_is_known():
    hints = [typing.get_type_hints(command) for command in (index, search)]
    for number, known in ((int, WHOLE_NUMBERS), (float, NUMBERS)):
        names = {name for types in hints for name, kind in types.items() if kind in (number, number | None)}
        assert {name.replace("_", "-") for name in names} & OPTIONS == known


def test_the_store_may_come_from_the_environment(run, monkeypatch, tmp_path):
    Path("pyproject.toml").write_text(f'{TABLE}store = "project"\n')
    monkeypatch.setenv("PPLX_VECTORSTORE_STORE", str(tmp_path / "mine"))
    run("index", "docs")
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize(
    "broken", [b"[project", b"\xff\xfe", b"[" * 100_000, None], ids=["open", "bytes", "deep", "folder"]
)
def test_a_broken_project_that_says_nothing_of_this_is_nobodys_business(run, tmp_path, monkeypatch, broken):
    Path("pyproject.toml").write_text(f'{TABLE}collection = "above"\n', "utf-8-sig")
    monkeypatch.chdir("docs")
    file = Path("pyproject.toml")
    file.mkdir() if broken is None else file.write_bytes(broken)
    assert run("info", code=1).stderr.startswith("error: there is no index 'above'")


def test_a_broken_project_that_may_say_something_is_told(run, tmp_path, monkeypatch):
    Path("pyproject.toml").write_text("[tool.pplx-vectorstore")
    told = run("info", code=1).stderr
    assert told.startswith("note: ")
    assert "pyproject.toml cannot be read as TOML, and is not heeded" in told
    assert "note" not in run("--no-config", "info", code=1).stderr
    assert run("search", "x", "-q", code=2).stderr.startswith("error")
    Path(".pplx-vectorstore").mkdir()
    Path(".pplx-vectorstore/config.toml").write_text("k = ")
    refused = run("search", "x", code=2)
    assert "config.toml cannot be read as TOML" in refused.stderr
    assert "--no-config" in refused.stderr
    assert "Usage" in run("search", "-h").stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no current folder")
def test_in_a_folder_that_is_gone_what_needs_none_works(run, tmp_path, monkeypatch):
    run("index", "docs")
    store = tmp_path / ".pplx-vectorstore"
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert str(tmp_path.resolve() / "docs") in run("search", "text", "--store", str(store), "-k", "1").stdout
    for arguments in (["documents"], ["index", ".", "--store", str(store)], ["delete", "x", "--store", str(store)]):
        assert "the current folder is gone" in run(*arguments, code=1).stderr
