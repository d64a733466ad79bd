"""What a search prints and how it is asked; what it finds is tested elsewhere."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pplx_vectorstore import Chunk, Document, VectorStore
from pplx_vectorstore.cli import app
from pplx_vectorstore.cli.conditions import parse_filters
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.filters import build_filter

COMMAND = str(Path(sys.executable).with_name("pplx-vectorstore"))
GUIDE = (
    "---\ntopic: cats\nyear: 2021\nversion: '3'\nrating: 4.5\ndraft: false\nauthor:\n  name: Ada\n---\n# Guide\n\n"
    "Cats are small.\n\nThey sleep a lot, wherever it is warm.\n\nA cat purrs.\n"
)
CODE = """def purr(cat):
    if cat.is_happy and not cat.is_hungry and not cat.is_asleep and not cat.is_under_the_bed and cat.is_here:
        return 1
"""


@pytest.fixture
def run(tmp_path, monkeypatch, loaded_encoder):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text(GUIDE)
    (tmp_path / "docs" / "cat.py").write_text(CODE)
    (tmp_path / "docs" / "stars.txt").write_text("The sun is a star.\nStars fuse hydrogen.\n")
    (tmp_path / "docs" / "table.csv").write_text("name,age\nAda,36\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "PPLX_VECTORSTORE_STORE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments, code=0, stdin=""):
        done = CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done

    run("index", "docs", "--quiet")
    return run


@pytest.fixture
def in_colour(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    return run


def plain(text):
    """Text without what a terminal obeys."""
    return re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", text)


def found(run, *arguments, **options):
    return [hit["document_id"] for hit in json.loads(run("search", *arguments, "--json", **options).stdout)]


# --- other programs --------------------------------------------------------------------------------------------


def test_each_hit_is_a_line_with_the_line_of_the_sentence_that_matches(run):
    lines = run("search", "when", "do", "cats", "purr").stdout.splitlines()
    assert len(lines) == 4
    assert {line.split(": ")[0] for line in lines} == {
        "docs/guide.md:16", "docs/cat.py:1", "docs/stars.txt:1", "docs/table.csv (row 2)",
    }  # fmt: skip
    assert "docs/guide.md:16: A cat purrs." in lines
    assert GUIDE.splitlines()[15] == "A cat purrs."


def test_full_shows_code_as_it_stands(run):
    shown = run("search", "purr", "-k", "1", "--full", "--filter", "source=docs/cat.py").stdout
    assert shown == f"docs/cat.py:1:\n{CODE.rstrip()}\n"
    two = run("search", "purr", "-k", "2", "--full").stdout
    assert len(re.findall(r"^docs/\S+:\d+:$", two, re.MULTILINE)) == 2
    assert "\n\ndocs/" in two


def test_context_shows_the_neighbours(run, loaded_encoder):
    with VectorStore.open("other", encoder=loaded_encoder) as store:
        store.add([Document(id="d", chunks=["One.", "Two.", "Three."])])
    shown = run("search", "Two.", "-k", "1", "--store", "other", "-C", "1", "--filter", '{"x": null}').stdout
    assert "One.\n\nTwo." in shown or "Two.\n\nThree." in shown
    assert re.match(r"d \(chunk \d of 3\):\n", shown)


def test_json_is_utf8_and_says_what_the_score_is(run):
    Path("docs/odd.txt").write_text("Smörgås 日本 🐈 \u202e\x9b\x7f")
    run("index", "docs", "--quiet")
    printed = run("search", "x", "--json", "--filter", "source=docs/odd.txt").stdout
    assert "Smörgås 日本 🐈 \\u202e\\u009b\\u007f" in printed
    (hit,) = json.loads(printed)
    assert hit["text"] == "Smörgås 日本 🐈 \u202e\x9b\x7f"
    assert hit["score_kind"] == "cosine"
    assert json.loads(run("search", "sun", "--hybrid", "--json").stdout)[0]["score_kind"] == "fused"


def test_lines_of_json_have_the_query_and_the_rank(run):
    lines = [json.loads(line) for line in run("search", "a", "b", "--jsonl", "-k", "2").stdout.splitlines()]
    assert [(line["query"], line["rank"]) for line in lines] == [("a b", 1), ("a b", 2)]


def test_each_line_of_the_input_is_a_question(run, loaded_encoder):
    loaded_encoder.loads = 0
    asked = "one\n\n two \r\nthree"
    lines = [json.loads(line) for line in run("search", "-", "--jsonl", "-k", "1", stdin=asked).stdout.splitlines()]
    assert [line["query"] for line in lines] == ["one", "two", "three"]
    assert loaded_encoder.loads == 1
    whole = run("search", "-", "--json", "-k", "1", stdin="The sun is a star.\nStars fuse hydrogen.\n").stdout
    assert json.loads(whole)[0]["score"] == pytest.approx(1, abs=0.01)  # the chunk, word by word
    for nothing in ("", " \n\n"):
        assert "must not be blank" in run("search", "-", stdin=nothing, code=2).stderr
        assert run("search", "-", "--jsonl", stdin=nothing, code=1).stdout == ""


@pytest.mark.parametrize("odd", ["\u200b".encode(), b"caf\xe9"])
def test_a_line_that_cannot_be_asked_is_told_and_the_others_are_answered(run, loaded_encoder, odd, monkeypatch):
    def encode(queries, *more):  # as of models that have no token for what nobody sees
        codes = original(queries, *more)
        codes[[query == "\u200b" for query in queries]] = 0
        return codes

    original = loaded_encoder.encode_queries
    monkeypatch.setattr(loaded_encoder, "encode_queries", encode)
    done = run("search", "-", "--jsonl", "-k", "1", stdin=b"salt\n\n" + odd + b"\nsteak\n", code=2)
    assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == ["salt", "steak"]
    assert done.stderr.startswith("error: line 3: a query")
    assert run("search", "-", "--jsonl", "-k", "1", stdin=odd, code=2).stdout == ""
    assert "error: a query" in run("search", "-", stdin=odd, code=2).stderr
    wrong = run("search", "-", "--jsonl", "--filter", '{"$no": 1}', stdin="a\nb\n", code=2)
    assert wrong.stderr.count("error") == 1


def test_a_question_is_answered_before_the_next_one_comes(run, monkeypatch):
    class Conversation(io.StringIO):
        def __next__(self):
            answered.append(len(printed.getvalue().splitlines()))
            return super().__next__()

    answered, printed = [], io.StringIO()
    monkeypatch.setattr("sys.stdin", Conversation("one\ntwo\n"))
    monkeypatch.setattr("sys.stdout", printed)
    app(["search", "-", "--jsonl", "-k", "1"], standalone_mode=False)
    assert answered == [0, 1, 2]


def test_a_question_from_a_closed_input_and_hits_for_a_closed_output(run, monkeypatch, capfd):
    monkeypatch.setattr("sys.stdin", None)
    assert app(["search", "-"], standalone_mode=False) == 2
    assert "standard input, which is closed" in capfd.readouterr().err
    monkeypatch.setattr("sys.stdout", None)
    assert not app(["search", "cats"], standalone_mode=False)


def test_files_alone(run, loaded_encoder):
    Path("docs/long.md").write_text("\n\n".join(f"# {number}\n\n" + "cats " * 200 for number in range(3)))
    run("index", "docs", "--quiet")
    names = run("search", "cats", "-l", "-k", "10").stdout.splitlines()
    assert sorted(names) == ["docs/cat.py", "docs/guide.md", "docs/long.md", "docs/stars.txt", "docs/table.csv"]
    assert len(run("search", "cats", "--files", "-k", "2").stdout.splitlines()) == 2
    assert "exclude one another" in run("search", "x", "-l", "--json", code=2).stderr
    with VectorStore.open(".pplx-vectorstore", encoder=loaded_encoder) as store:
        store.add([Document(id="of-a-program", chunks=["Cats."])])
    assert len(run("search", "cats", "-l", "-k", "10").stdout.splitlines()) == 5
    assert run("search", "cats", "-l", "--filter", "source=null", code=1).output == "nothing found\n"


def test_exit_codes_are_those_of_grep(run):
    run("search", "cats")
    nothing = run("search", "cats", "--filter", "topic=dogs", code=1)
    assert (nothing.stdout, nothing.stderr) == ("", "nothing found\n")
    assert run("search", "cats", "--min-score", "2", "--json", "--quiet", code=1).output == "[]\n"
    for wrong in (["--filter", "topic"], ["-k", "0"], ["--store", "none"], ["--min-score", "nan"]):
        assert run("search", "cats", *wrong, code=2).stderr.startswith("error: ")


def test_what_goes_on_reading_is_not_needed(run, tmp_path):
    """A pipe that closes early ends the command without a word."""
    ran = subprocess.run(
        f"{COMMAND} documents --json | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (ran.stdout, ran.stderr) == ("[\n0\n", "")


def test_a_pipe_that_closes_is_no_error(run, monkeypatch):
    def close(*arguments, **options):
        raise BrokenPipeError

    monkeypatch.setattr("pplx_vectorstore.cli.hits.say", close)
    monkeypatch.setattr("pplx_vectorstore.terminal.os.dup2", lambda *descriptors: None)
    assert run("search", "cats").output == ""


# --- terminals -------------------------------------------------------------------------------------------------


def test_in_a_terminal_words_are_in_colour_and_files_are_links(in_colour, tmp_path):
    shown = in_colour("search", "when do cats purr?", "-k", "4").stdout
    assert "\x1b[1;31mcat\x1b[0m \x1b[1;31mpurrs\x1b[0m." in shown
    uri = (tmp_path.resolve() / "docs" / "guide.md").as_uri()
    assert re.search(rf"\x1b]8;id=\d+;{re.escape(uri)}\x1b\\", shown)
    lines = plain(shown).splitlines()
    assert re.match(r"cosine +where +text", lines[0])
    assert any(re.match(r"-?\d\.\d{3} +docs/guide\.md +A cat purrs\.", line) for line in lines)
    assert any("lines 10-16" in line for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_narrow_terminal_is_kept_to_and_takes_no_word_apart(in_colour, monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "30")
    shown = plain(in_colour("search", "where do they sleep", "--filter", "topic=cats").stdout)
    assert max(map(len, shown.splitlines())) <= 30
    assert "They sleep a lot, wherever it is warm." in " ".join(shown.split())


def test_in_a_terminal_hybrid_scores_are_named_and_code_is_not_wrapped(in_colour):
    assert plain(in_colour("search", "cats", "--hybrid").stdout).startswith("fused")
    whole = plain(in_colour("search", "purr", "--full", "--filter", "source=docs/cat.py").stdout)
    assert re.match(r"-?\d\.\d{3} \(cosine\)  docs/cat\.py  lines 1-3\n", whole)
    assert CODE in whole


@pytest.mark.parametrize(
    "root", ["relative", "/a\x1b]8;;http://evil\x07b", "/\ud800".encode("utf-8", "replace").decode()]
)
def test_links_hold_nothing_but_uris_of_files(in_colour, loaded_encoder, root):
    with VectorStore.open("other", encoder=loaded_encoder) as store:
        metadata = {"source": "x\x1b\\y", "root": root, "line": 1}
        store.add([Document(id="x\x1b\\y", chunks=[Chunk(text="Text.")], metadata=metadata)])
    for options in ([], ["--full"]):
        shown = in_colour("search", "x", "--store", "other", *options).stdout
        links = re.findall(r"\x1b]8;([^\x1b]*)\x1b\\", shown)
        assert all(re.fullmatch(r"(id=\d+;file:///[\w%./~-]+)?;?", link) for link in links), links
        assert "\x1b" not in plain(shown)


# --- conditions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["topic=cats"], {"guide.md"}),
        (["year=2021"], {"guide.md"}),
        (["year>=2021", "year<2022"], {"guide.md"}),
        (["year>2021"], set()),
        (["version=3"], {"guide.md"}),  # stored as text
        (["rating=4.5"], {"guide.md"}),
        (["draft=false"], {"guide.md"}),
        (["author.name=Ada"], {"guide.md"}),
        (["author.name!=Ada"], {"cat.py", "stars.txt", "table.csv"}),
        (['topic=["cats", "dogs"]'], {"guide.md"}),
        (["topic!=cats"], {"cat.py", "stars.txt", "table.csv"}),
        (["topic=null"], {"cat.py", "stars.txt", "table.csv"}),
        (["row=2"], {"table.csv"}),
        (["heading=Guide"], {"guide.md"}),
        (["source=docs/stars.txt"], {"stars.txt"}),
        (['{"$or": [{"topic": "cats"}, {"row": {"$gte": 1}}]}'], {"guide.md", "table.csv"}),
        (['{"topic": "cats"}', "year=2020"], set()),
    ],
)
def test_conditions(run, conditions, names):
    options = [option for condition in conditions for option in ("--filter", condition)]
    assert {Path(name).name for name in found(run, "x", *options, code=0 if names else 1)} == names


@pytest.mark.parametrize(
    ("given_condition", "parsed"),
    [
        ("a=b=c", {"a": "b=c"}),
        ("a = b ", {"a": "b"}),
        ("a=", {"a": ""}),
        ("author.name=Ada", {"author": {"name": "Ada"}}),
        ('"a.b".c=x', {"a.b": {"c": "x"}}),
        ('"a=b"=x', {"a=b": "x"}),
        ("a!=1", {"$not": {"$or": [{"a": 1}, {"a": "1"}]}}),
        ("v=1.10", {"$or": [{"v": 1.1}, {"v": "1.10"}]}),
        ('v="1.10"', {"v": "1.10"}),
        ("day>=2024-05-01", {"day": {"$gte": "2024-05-01"}}),
        ("a<=-2", {"a": {"$lte": -2}}),
        ("a=nan", {"a": "nan"}),
        ("a=NaN", {"a": "NaN"}),
        ("a=1e999", {"a": "1e999"}),
        ('a={"b": 1}', {"a": '{"b": 1}'}),
        ('{"a": {"$gt": 1}}', {"a": {"$gt": 1}}),
    ],
)
def test_how_conditions_are_read(given_condition, parsed):
    assert parse_filters([given_condition]) == parsed
    assert parse_filters([given_condition, "x=y"]) == {"$and": [parsed, {"x": "y"}]}
    build_filter(parsed)


@pytest.mark.parametrize("wrong", ["lang==en", "year=>2020", "year=<2020", "a<>b", "a!==b", "a>>1", "a= =b"])
def test_comparisons_that_there_are_not_are_refused_with_what_to_write(wrong):
    with pytest.raises(InvalidInputError, match=r"there is no comparison .*key>=value") as refused:
        parse_filters([wrong])
    parse_filters([re.search(r"'([^']*)'$", str(refused.value))[1]])


def test_a_value_may_begin_as_a_comparison_does():
    assert parse_filters(['a="=b"']) == {"a": "=b"}
    assert parse_filters(['{"a": "<b"}']) == {"a": "<b"}


def test_a_field_that_no_chunk_has_is_told(run):
    told = run("search", "x", "--filter", "nofield=x", "--filter", "topic=dogs", code=1).stderr
    assert told == "nothing found: no chunk has a field 'nofield' (search --json shows what there is)\n"
    assert run("search", "x", "--filter", "nofield.name=x", "--quiet", code=1).output == ""


@pytest.mark.parametrize("wrong", ["", "a", "=b", "a..b=1", ".a=1", '"a"b=1', "{", "[]", '{"a": 1', "[1]"])
def test_what_is_no_condition_is_refused(wrong):
    with pytest.raises(InvalidInputError, match="--filter"):
        parse_filters([wrong])


@given(st.text(max_size=20))
def test_any_text_is_a_condition_or_refused(text):
    try:
        parsed = parse_filters([text])
    except InvalidInputError:
        return
    assert isinstance(parsed, dict)


# --- what else the commands take -------------------------------------------------------------------------------


def test_delete_what_is_below_a_folder(run):
    assert "nothing to delete was named" in run("delete", code=1).stderr
    assert run("delete", "docs/stars.txt", "--quiet").output == ""
    assert run("delete", "--under", "docs").stdout == "deleted docs (3 documents)\n"
    assert "not in the index: docs" in run("delete", "--under", "docs", code=1).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["delete", "--under", ""],
        ["delete", "docs/cat.py", "--under", ""],
        ["delete", "docs/cat.py", "--store", ""],
        ["index", ""],
        ["index", "docs", "--root", ""],
        ["index", "docs", "--store", ""],
        ["export", ""],
        ["import", ""],
        ["copy", "", "to"],
        ["copy", ".pplx-vectorstore", ""],
        ["mcp", "--root", ""],
        ["export-onnx", "all-minilm-l6-v2", ""],
    ],
)
def test_an_empty_text_is_no_path(run, tmp_path, arguments):
    """As in --under "$UNSET"; it must not mean the current folder."""
    before = sorted(tmp_path.iterdir())
    refused = run(*arguments, code=1 if "copy" in arguments else 2)
    assert "an empty text is no path" in " ".join(refused.stderr.split())
    assert len(json.loads(run("documents", "--json").stdout)) == 4
    assert sorted(tmp_path.iterdir()) == before


def test_help_is_there_at_once():
    code = (
        "import sys; from pplx_vectorstore.cli import main; sys.argv[1:] = sys.argv[1:]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'qdrant_client', 'qdrant_edge', 'lxml', 'openpyxl', 'markdown_it', 'rich',\n"
        "         'pplx_vectorstore.readers', 'pplx_vectorstore.store'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    for command in ("index", "search", "export-onnx"):
        ran = subprocess.run([sys.executable, "-c", code, command, "-h"], capture_output=True, text=True, check=True)
        assert "Usage" in ran.stdout
        assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes_commands_and_options():
    script = subprocess.run([COMMAND, "--show-completion", "bash"], capture_output=True, text=True, check=True).stdout
    ask = "COMP_WORDS=({words}); COMP_CWORD={at}; _pplx_vectorstore_completion pplx-vectorstore; echo ${{COMPREPLY[@]}}"
    for words, at, expected in (
        ("pplx-vectorstore doc", 1, "documents"),
        ("pplx-vectorstore search --hyb", 2, "--hybrid"),
    ):
        shell = f"PATH={Path(COMMAND).parent}:$PATH\n{script}\n{ask.format(words=words, at=at)}"
        ran = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
        assert expected in ran.stdout.split(), ran.stderr
