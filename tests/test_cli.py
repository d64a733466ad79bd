import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pplx_vectorstore import Chunk, Document, VectorStore
from pplx_vectorstore.cli import app

COMMAND = [str(Path(sys.executable).with_name("pplx-vectorstore"))]
MODEL = ["--model", "all-minilm-l6-v2"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command line in an empty folder, as in a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False)

    return run


@pytest.fixture
def corpus(run, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "cats.md").write_text("# Cats\n\nCats purr when they are happy.\n")
    (tmp_path / "docs" / "stars.txt").write_text("The sun is a star.\nStars fuse hydrogen.\n")
    (tmp_path / "docs" / "photo.jpg").write_bytes(b"\xff\xd8\x00\x00")
    return run


def test_index_search_info_delete(corpus, tmp_path):
    indexed = corpus("index", "docs", *MODEL)
    assert indexed.exit_code == 0, indexed.output
    assert indexed.stdout == "indexed 2 documents, 2 chunks\n.pplx-vectorstore now holds 2 chunks\n"
    assert indexed.stderr == "left out: 1 picture (--verbose names them)\n"

    # The store remembers its model.
    found = corpus("search", "What do happy cats do?", "-k", "1")
    assert found.exit_code == 0, found.output
    assert found.stdout == "docs/cats.md:3: Cats purr when they are happy.\n"

    hits = json.loads(corpus("search", "What is the sun?", "--json").stdout)
    assert [hit["document_id"] for hit in hits] == ["docs/stars.txt", "docs/cats.md"]
    assert hits[0]["lines"] == [1, 2]
    root = tmp_path.resolve()
    assert hits[0]["metadata"] == {"source": "docs/stars.txt", "root": root.as_posix(), "line": 1}
    assert hits[0]["file"] == (root / "docs" / "stars.txt").as_posix()
    assert -1 <= hits[0]["score"] <= 1

    facts = json.loads(corpus("info", "--json").stdout)
    assert (facts["documents"], facts["chunks"], facts["model"]) == (2, 2, "all-minilm-l6-v2")
    assert "context weight  0.3" in corpus("info").stdout

    again = corpus("index", "docs")  # no model: the store's own
    assert again.stdout == "nothing to embed; 2 unchanged\n.pplx-vectorstore now holds 2 chunks\n"

    deleted = corpus("delete", "docs/cats.md", "gone")
    assert deleted.exit_code == 1
    assert "deleted docs/cats.md" in deleted.stdout
    assert "not in the index: gone" in deleted.stderr
    assert json.loads(corpus("info", "--json").stdout)["documents"] == 1


def test_settings_are_remembered_too(corpus, minilm):
    corpus("index", "docs", *MODEL, "--window-tokens", "128")
    assert corpus("search", "stars").exit_code == 0
    assert corpus("index", "docs", *MODEL).exit_code == 0  # naming the same model keeps its settings
    refused = corpus("index", "docs", "--window-tokens", "256")
    assert refused.exit_code == 1
    assert "window_tokens 128 in the collection, 256 given" in refused.stderr


def test_only_what_changed_is_embedded_and_prune_removes_what_is_gone(corpus, tmp_path, minilm):
    corpus("index", "docs", *MODEL)
    (tmp_path / "docs" / "stars.txt").write_text("The sun is a star, and not a large one.")
    (tmp_path / "docs" / "new.txt").write_text("A new file.")
    (tmp_path / "docs" / "cats.md").unlink()
    with VectorStore.open(".pplx-vectorstore", encoder=minilm) as store:
        # A program's own documents may have ids that look like files below the folder.
        store.add([Document(id="docs/no-file", chunks=["from elsewhere"]), Document(id="other", chunks=["x"])])
    changed = corpus("index", "docs")
    assert changed.stdout.splitlines()[0] == "indexed 2 documents (1 new), 2 chunks"
    assert "docs/cats.md" in corpus("documents").stdout
    pruned = corpus("index", "docs", "--prune")
    assert pruned.stdout.splitlines()[0] == "nothing to embed; 2 unchanged; 1 deleted"
    listed = json.loads(corpus("documents", "--json").stdout)
    assert [one["id"] for one in listed] == ["docs/new.txt", "docs/no-file", "docs/stars.txt", "other"]
    assert corpus("documents").stdout.splitlines()[0] == "      1  docs/new.txt"
    for file in (tmp_path / "docs").iterdir():
        file.unlink()
    assert corpus("index", "docs").exit_code == 1
    refused = corpus("index", "docs", "--prune")  # an unmounted folder looks the same
    assert (refused.exit_code, "--prune would delete all" in refused.stderr) == (1, True)
    assert len(json.loads(corpus("documents", "--json").stdout)) == 4


@pytest.fixture
def opened():
    """The paths that this process opens from now on."""
    paths = []
    is_watching = True

    def watch(event, arguments):
        if is_watching and event == "open" and isinstance(arguments[0], str):
            paths.append(arguments[0])

    sys.addaudithook(watch)  # there is no way to remove one
    yield paths
    is_watching = False


def test_no_path_from_the_store_is_opened(corpus, tmp_path, minilm, opened):
    (tmp_path / "secret.txt").write_text("The secret word is swordfish.")
    os.mkfifo(tmp_path / "pipe")  # to open it would hang
    hostile = ["secret.txt", "pipe", *(str(tmp_path / name) for name in ("secret.txt", "pipe")), "/dev/zero", "\0"]
    with VectorStore.open(".pplx-vectorstore", encoder=minilm) as store:
        for number, name in enumerate(hostile):
            metadata = {"source": name, "root": "/" if number % 2 else str(tmp_path), "line": 1}
            # As a chunk of the file that it names would be, so that nothing but opening it tells them apart.
            chunk = Chunk(text="The secret word is swordfish.", start=0, end=29)
            store.add([Document(id=name, chunks=[chunk], metadata=metadata)])
            store.add([Document(id=f"./{name}", chunks=[chunk], metadata={"source": f"./{name}"})])
    opened.clear()
    shown = corpus("search", "swordfish", "-k", "20", "--full")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("swordfish") == 2 * len(hostile)
    assert (shown.stdout.count(":1:\n"), shown.stdout.count("(characters 0-29):\n")) == (len(hostile), len(hostile))
    for command in (["search", "x", "--json"], ["documents"], ["info"], ["index", "docs", "--prune"]):
        assert corpus(*command).exit_code == 0
    assert corpus("delete", "pipe").exit_code == 0
    names = {Path(path).name for path in opened}
    assert "stars.txt" in names  # it does watch
    assert not names & {"secret.txt", "pipe", "zero"}


def test_lines_are_those_of_the_file_that_was_indexed(corpus, tmp_path):
    lines = [f"Line {number} is about the number {number}." for number in range(1, 201)]
    (tmp_path / "docs" / "long.txt").write_bytes("\r\n".join(lines).encode())
    (tmp_path / "docs" / "page.html").write_text("\n\n<p>A page about nothing.")
    corpus("index", "docs", *MODEL, "--chunk-tokens", "40")
    (tmp_path / "docs" / "long.txt").unlink()
    hits = json.loads(corpus("search", "line 150", "-k", "100", "--json").stdout)
    found = [hit for hit in hits if hit["document_id"] == "docs/long.txt"]
    assert len(found) > 20
    for hit in found:
        first, last = hit["lines"]
        assert hit["text"].splitlines() == lines[first - 1 : last]
    assert [hit["lines"] for hit in hits if hit["document_id"] == "docs/page.html"] == [None]


def test_an_index_of_an_older_version_is_not_embedded_again(corpus, tmp_path, minilm):
    # Ids were relative to the current folder, and nothing told which that was.
    old = [
        Document(id=f"docs/{name}", text=(tmp_path / "docs" / name).read_text(), metadata={"source": f"docs/{name}"},
                 format=kind)
        for name, kind in (("cats.md", "markdown"), ("stars.txt", "text"))
    ]  # fmt: skip
    gone = Document(id="docs/gone.txt", text="Gone.", metadata={"source": "docs/gone.txt"})
    with VectorStore.open(".pplx-vectorstore", encoder=minilm) as store:
        store.add([*old, gone])
    upgraded = corpus("index", "docs", "--prune")
    assert upgraded.stdout.startswith("nothing to embed; 2 with new metadata\n")
    hits = json.loads(corpus("search", "the sun", "--json").stdout)
    assert [hit["lines"] for hit in hits if hit["document_id"] == "docs/stars.txt"] == [[1, 2]]
    # Whose file that was, nobody knows: another project's documents may be called the same.
    assert "docs/gone.txt" in corpus("documents").stdout
    (tmp_path / "docs" / "cats.md").unlink()
    assert "1 unchanged; 1 deleted" in corpus("index", "docs", "--prune").stdout

    # In an index elsewhere, they are relative to a folder that has to be named.
    with VectorStore.open(tmp_path / "far" / "index", encoder=minilm) as store:
        store.add(old[1:])
    noted = corpus("index", "docs", "--store", "far/index")
    assert noted.stdout.startswith("indexed 1 document, 1 chunk\n")
    assert "also holds docs/stars.txt" in noted.stderr
    assert "--root" in noted.stderr
    corpus("delete", str(tmp_path / "docs"), "--store", "far/index")
    named = corpus("index", "docs", "--store", "far/index", "--root", ".")
    assert named.stdout.startswith("nothing to embed; 1 with new metadata\n")
    assert named.stderr.count("note") == 0


def test_a_file_has_one_id_however_and_from_wherever_it_is_indexed(corpus, tmp_path, monkeypatch):
    (tmp_path / "docs" / "sub").mkdir()
    (tmp_path / "docs" / "sub" / "deep.txt").write_text("Deep down.")
    (tmp_path / "docs" / "photo.jpg").unlink()
    (tmp_path / "link").symlink_to("docs")
    (tmp_path / "docs" / "again.txt").symlink_to("stars.txt")
    store = ["--store", str(tmp_path / ".pplx-vectorstore")]
    assert corpus("index", "docs/sub", *MODEL, *store).stdout.startswith("indexed 1 document, 1 chunk")
    assert corpus("index", "docs", *store).stdout.startswith("indexed 2 documents, 2 chunks; 1 unchanged")
    monkeypatch.chdir(tmp_path / "docs" / "sub")
    for paths, n in (
        (["."], 1),
        (["deep.txt", "../cats.md"], 2),
        (["../../link"], 3),
        ([str(tmp_path / "link" / "sub" / ".." / "stars.txt"), ".."], 3),
    ):
        again = corpus("index", *paths, "--prune", *store)
        assert again.stdout.startswith(f"nothing to embed; {n} unchanged\n"), again.output
    listed = [one["id"] for one in json.loads(corpus("documents", "--json", *store).stdout)]
    assert listed == ["docs/cats.md", "docs/stars.txt", "docs/sub/deep.txt"]
    # What is shown can be opened from here, and what is given is found from here.
    shown = corpus("search", "deep", "-k", "3", *store).stdout
    assert "deep.txt:1: Deep down.\n" in shown
    assert "../cats.md:1: # Cats" in shown
    assert "docs/sub" not in shown
    assert "deleted deep.txt" in corpus("delete", "deep.txt", *store).stdout
    assert [one["id"] for one in json.loads(corpus("documents", "--json", *store).stdout)] == listed[:2]


@pytest.mark.parametrize("where", ["folder", "server"])
def test_two_projects_in_one_store(run, tmp_path, monkeypatch, server, where):
    store = server.url if where == "server" else str(tmp_path / "far" / "index")
    for project in ("one", "two"):
        for name in ("both.txt", f"{project}.txt"):
            file = tmp_path / project / "docs" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name} of project {project}.")
        monkeypatch.chdir(tmp_path / project)
        assert run("index", "docs", "--store", store, *MODEL).stdout.startswith("indexed 2 documents, 2 chunks\n")
    for project in ("one", "two"):
        (tmp_path / project / "docs" / "both.txt").unlink()
    monkeypatch.chdir(tmp_path / "one")
    assert run("index", "docs", "--prune", "--store", store).stdout.startswith(
        "nothing to embed; 1 unchanged; 1 deleted\n"
    )
    hits = json.loads(run("search", "project", "--json", "--store", store).stdout)
    root = tmp_path.resolve()
    assert {hit["file"]: hit["text"] for hit in hits} == {
        f"{root}/one/docs/one.txt": "one.txt of project one.",
        f"{root}/two/docs/both.txt": "both.txt of project two.",
        f"{root}/two/docs/two.txt": "two.txt of project two.",
    }
    assert run("index", "../two/docs", "--prune", "--store", store).stdout.startswith(
        "nothing to embed; 1 unchanged; 1 deleted\n"
    )


def test_a_project_that_moves_with_its_index_is_not_embedded_again(corpus, tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (tmp_path / "docs").rename(old / "docs")
    monkeypatch.chdir(old)
    corpus("index", "docs", *MODEL)
    old.rename(new)
    monkeypatch.chdir(new)
    assert corpus("index", "docs").stdout.startswith("nothing to embed; 2 with new metadata\n")
    assert "docs/cats.md" in corpus("search", "happy cats", "-k", "1").stdout
    # A copy, too, becomes a project of its own while the original is there.
    shutil.copytree(new, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert corpus("index", "docs").stdout.startswith("nothing to embed; 2 with new metadata\n")
    # Without its documents, the index goes on to know them where they are.
    (new / ".pplx-vectorstore").rename(tmp_path / "index")
    monkeypatch.chdir(new)
    assert corpus("index", "docs", "--store", "../index").stdout.startswith("nothing to embed; 2 unchanged\n")
    # A folder that is renamed has other documents; the old ones go with what held them, or by name.
    (new / "docs").rename(new / "manual")
    assert corpus("index", "manual", "--store", "../index", "--prune").stdout.startswith("indexed 2 documents")
    assert corpus("index", ".", "--store", "../index", "--prune").stdout.startswith(
        "nothing to embed; 2 unchanged; 2 del"
    )
    (new / "manual").rename(new / "book")
    assert corpus("delete", "manual", "--store", "../index").stdout == "deleted manual (2 documents)\n"
    assert corpus("delete", "", "--store", "../index").exit_code == 1  # not all that is here


def test_root_makes_ids_that_do_not_depend_on_the_machine(corpus, tmp_path, monkeypatch, server):
    on_server = ["--store", server.url, "--root", "."]
    checkouts = [tmp_path / name for name in ("first", "second")]
    for checkout in checkouts:
        shutil.copytree(tmp_path / "docs", checkout / "docs")
    monkeypatch.chdir(checkouts[0])
    (checkouts[0] / "docs" / "old.txt").write_text("Only in the first.")
    corpus("index", "docs", *MODEL, *on_server)
    monkeypatch.chdir(checkouts[1])
    second = corpus("index", "docs", "--prune", *on_server)
    assert second.stdout.startswith("nothing to embed; 2 with new metadata\n")
    assert "first/docs/cats.md and 1 more, by files of the same ids" in second.stderr
    shutil.rmtree(checkouts[0])
    pruned = corpus("index", "docs", "--prune", *on_server)
    assert pruned.stdout.startswith("nothing to embed; 2 unchanged; 1 deleted\n")
    assert "note" not in pruned.stderr
    # Once a file has an id, it keeps that, asked for or not.
    (checkouts[1] / "docs" / "new.txt").write_text("New.")
    more = corpus("index", "docs", "--store", server.url)
    assert more.stdout.startswith("indexed 1 document, 1 chunk; 2 unchanged\n")
    listed = [one["id"] for one in json.loads(corpus("documents", "--json", "--store", server.url).stdout)]
    assert listed == [f"{checkouts[1].resolve()}/docs/new.txt", "docs/cats.md", "docs/stars.txt"]
    for root, message in (("docs/sub", "must be a folder"), ("docs", "'.' is not below --root 'docs'")):
        refused = corpus("index", ".", "--root", root, *MODEL)
        assert (refused.exit_code, message in refused.stderr) == (1, True)


def test_prune_spares_what_it_cannot_look_for(corpus, tmp_path):
    names = [os.fsdecode(b"caf\xe9.txt"), "x" * 200 + ".txt"]
    for name in names:
        (tmp_path / "docs" / name).write_text(f"{len(name)} letters")
    assert corpus("index", "docs", *MODEL).stdout.startswith("indexed 4 documents")
    assert corpus("index", "docs", "--prune").stdout.startswith("nothing to embed; 4 unchanged\n")


def test_search_options(corpus):
    corpus("index", "docs", *MODEL)
    hits = json.loads(corpus("search", "hydrogen", "--hybrid", "--json").stdout)
    assert hits[0]["document_id"] == "docs/stars.txt"
    filtered = corpus("search", "hydrogen", "--filter", '{"source": "docs/cats.md"}', "--json", "--by-document")
    assert [hit["document_id"] for hit in json.loads(filtered.stdout)] == ["docs/cats.md"]
    (hit,) = json.loads(corpus("search", "stars", "-k", "1", "--context", "1", "--json").stdout)
    assert hit["context"] == hit["text"]
    for bad, message in (('{"source"', "--filter begins as JSON"), ("[1]", "--filter must be a JSON object")):
        refused = corpus("search", "x", "--filter", bad)
        assert (refused.exit_code, message in refused.stderr) == (2, True)


def test_a_server_behind_the_same_commands(corpus, server):
    on_server = ["--store", server.url]
    indexed = corpus("index", "docs", *MODEL, *on_server)
    assert indexed.exit_code == 0, indexed.output
    assert f"{server.url} now holds 2 chunks" in indexed.stdout
    assert "docs/cats.md" in corpus("search", "happy cats", "-k", "1", *on_server).stdout
    facts = json.loads(corpus("info", "--json", *on_server).stdout)
    assert (facts["store"], facts["documents"]) == (server.url, 2)
    assert "nothing to embed; 2 unchanged" in corpus("index", "docs", *on_server).stdout
    missing = corpus("info", *on_server, "--collection", "other")
    assert (missing.exit_code, "there is no index 'other'" in missing.stderr) == (1, True)


def test_a_server_over_grpc_on_its_port(corpus, grpc_server):
    on_server = ["--store", grpc_server.url, "--grpc-port", str(grpc_server.port)]
    for arguments, said in (
        (["index", "docs", *MODEL], "now holds 2 chunks"),
        (["search", "happy cats", "-k", "1"], "docs/cats.md"),
        (["info"], "all-minilm-l6-v2"),
        (["documents"], "docs/cats.md"),
        (["export", "all.parquet"], "exported 2 chunks"),
        (["import", "all.parquet"], "imported 2 chunks"),
        (["delete", "docs/cats.md"], "deleted docs/cats.md"),
    ):
        grpc_server.calls.clear()
        done = corpus(*arguments, *on_server)
        assert (done.exit_code, said in done.stdout) == (0, True), done.output
        assert "HealthCheck" in grpc_server.calls or "Get" in grpc_server.calls
    assert grpc_server.rest.requests == [], "nothing goes over HTTP"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--grpc-port", "6334"],
            "--grpc-port is of a server, and --store is the folder '.pplx-vectorstore'; give a URL",
        ),
        (["--store", "http://127.0.0.1:1", "--grpc-port", "70000"], "grpc_port must be a port from 1 to 65535"),
    ],
)
def test_a_grpc_port_that_cannot_be(corpus, arguments, said):
    refused = corpus("info", *arguments)
    assert (refused.exit_code, said in refused.stderr) == (1, True), refused.output


def test_an_index_moves_between_folder_file_and_server(corpus, server):
    corpus("index", "docs", *MODEL)
    assert corpus("copy", ".pplx-vectorstore", server.url).stdout == f"copied 2 chunks to {server.url}\n"
    assert "nothing to embed; 2 unchanged" in corpus("index", "docs", "--store", server.url).stdout
    assert corpus("export", "all.parquet", "--store", server.url).stdout == "exported 2 chunks to all.parquet\n"
    assert corpus("import", "all.parquet", "--store", "new").stdout == "imported 2 chunks into new\n"
    assert "docs/cats.md" in corpus("search", "happy cats", "-k", "1", "--store", "new").stdout
    copied = corpus("copy", "new", "newer", "--to-collection", "other")
    assert copied.stdout == "copied 2 chunks to newer\n"
    assert json.loads(corpus("info", "--json", "--store", "newer", "--collection", "other").stdout)["chunks"] == 2
    for arguments, message in (
        (["new", "localhost:6333"], "looks like a server's address"),
        (["new", "ftp://x"], "looks like a server's address"),
        (["new", "./new"], "FROM and TO are the same index"),
        (["new", "newer", "--tenant", "nobody"], "holds no tenant 'nobody'"),
    ):
        refused = corpus("copy", *arguments)
        assert (refused.exit_code, message in refused.stderr) == (1, True), refused.output
    secret = corpus("info", "--store", "http://bob:s3cret@127.0.0.1:1")
    assert (secret.exit_code, "s3cret" in secret.output, "127.0.0.1:1 gave no answer" in secret.stderr) == (
        1,
        False,
        True,
    )
    lost = corpus("copy", "nowhere", "newer")
    assert (lost.exit_code, "there is no index 'documents' in nowhere" in lost.stderr) == (1, True)


def test_tenants_on_the_command_line(corpus):
    corpus("index", "docs/cats.md", *MODEL, "--tenant", "a")
    corpus("index", "docs/stars.txt", "--tenant", "b")
    assert json.loads(corpus("info", "--json", "--tenant", "a").stdout)["chunks"] == 1
    assert json.loads(corpus("info", "--json").stdout)["tenants"] == 2
    hits = json.loads(corpus("search", "happy cats", "--tenant", "b", "--json").stdout)
    assert [hit["document_id"] for hit in hits] == ["docs/stars.txt"]
    refused = corpus("search", "cats")
    assert (refused.exit_code, "holds tenants; say which" in refused.stderr) == (2, True)
    assert corpus("copy", ".pplx-vectorstore", "all").stdout == "copied 2 chunks to all\n"
    assert json.loads(corpus("info", "--json", "--store", "all").stdout)["tenants"] == 2


def test_what_the_command_line_writes_the_library_reads(corpus, minilm):
    corpus("index", "docs", *MODEL)
    with VectorStore.open(".pplx-vectorstore", encoder=minilm) as store:
        assert store.search("happy cats", k=1)[0].document_id == "docs/cats.md"


def test_a_checkpoint_folder_is_remembered_by_its_path(corpus, pplx_checkpoint, tmp_path):
    link = tmp_path / "tiny"
    link.symlink_to(pplx_checkpoint)
    assert corpus("index", "docs", "--model", str(link), "--dtype", "float32").exit_code == 0
    assert corpus("search", "stars", "--dtype", "float32").exit_code == 0


def test_a_checkpoint_that_moved_is_named_by_hand(corpus, pplx_checkpoint, tmp_path):
    shutil.copytree(pplx_checkpoint, tmp_path / "old")
    assert corpus("index", "docs", "--model", "old", "--dtype", "float32").exit_code == 0
    (tmp_path / "old").rename(tmp_path / "new")
    lost = corpus("search", "stars")
    assert lost.exit_code == 2
    assert "name its new folder with --model" in lost.stderr
    assert corpus("search", "stars", "--dtype", "float32", "--model", "new").exit_code == 0


def test_a_folder_that_bears_the_models_name_is_not_taken_for_it(corpus, tmp_path):
    corpus("index", "docs", *MODEL)
    (tmp_path / "all-minilm-l6-v2").mkdir()
    assert corpus("search", "stars").exit_code == 0


def test_a_console_of_another_encoding_and_control_characters_do_no_harm(corpus, tmp_path):
    (tmp_path / "docs" / "odd.txt").write_text("Smörgås \x1b]0;title\x07 " + "and more words " * 40)
    corpus("index", "docs", *MODEL)
    ran = subprocess.run(
        [*COMMAND, "search", "smörgås"],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "iso8859-5"},
    )
    assert ran.returncode == 0, ran.stderr
    assert b"\x1b]" not in ran.stdout
    assert b"Sm?rg?s" in ran.stdout


def test_an_index_within_a_folder_is_not_indexed(corpus, tmp_path):
    corpus("index", "docs", *MODEL, "--store", "docs/my-index")
    again = corpus("index", "docs", *MODEL)
    assert "indexed 2 documents" in again.stdout, again.output


def test_what_nobody_expected_is_one_line_too(corpus, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("pplx_vectorstore.encoders.load_encoder", fail)
    ran = corpus("index", "docs", *MODEL)
    assert (ran.exit_code, ran.stderr.count("\n")) == (1, 1)
    assert "error: unexpected ZeroDivisionError: a b" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info"], "there is no index 'documents' in .pplx-vectorstore"),
        (["info", "--store", "docs"], "docs is not an index"),
        (["index", "gone", *MODEL], "there is no file or folder 'gone'"),
        (["index", "docs", "--model", "no-such-model"], "'all-minilm-l6-v2' works offline"),
        (["index", "docs/photo.jpg", *MODEL], "no file could be read"),
        (["index", "docs", *MODEL, "--chunk-tokens", "0"], "chunk_tokens must be"),
        (["index", "docs", *MODEL, "--dtype", "int4"], "dtype must be one of"),
        (["index", "docs", *MODEL, "--device", "warp"], "device 'warp' is not available"),
        (["index", "docs", *MODEL, "--dimensions", "100"], "dimensions of all-minilm-l6-v2 must be 384"),
        (["index", "docs", *MODEL, "--collection", "../x"], "a collection's name"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(corpus, arguments, message):
    ran = corpus(*arguments)
    assert ran.exit_code == 1, ran.output
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in ran.output


@pytest.mark.parametrize(
    "arguments", [["search", " "], ["search", "x", "-k", "0"], ["search", "x", "--candidates", "2"]]
)
def test_bad_searches_are_one_line_too(corpus, arguments):
    corpus("index", "docs", *MODEL)
    ran = corpus(*arguments)
    assert ran.exit_code == 2
    assert ran.stderr.startswith("error: ")


def test_version_and_help(run):
    assert run("--version").stdout.startswith("pplx-vectorstore ")
    for command in ([], ["index"], ["search"], ["info"], ["delete"]):
        assert "Usage" in run(*command, "--help").stdout


def test_the_installed_command_reports_errors_without_a_traceback(tmp_path):
    ran = subprocess.run([*COMMAND, "search", "x"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: there is no index")
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_a_usable_index(tmp_path, corpus, minilm):
    for number in range(300):
        (tmp_path / "docs" / f"{number}.txt").write_text(f"Note {number}. " + "It says a few words. " * 150)
    child = subprocess.Popen(
        [*COMMAND, "index", "docs", *MODEL],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background with SIGINT ignored, and children inherit that.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    written = tmp_path / ".pplx-vectorstore" / "documents" / "collection.json"
    deadline = time.monotonic() + 60
    while not written.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(3)
    os.kill(child.pid, signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    with VectorStore.open(tmp_path / ".pplx-vectorstore", encoder=minilm) as store:
        assert store.search("Note 7", k=1, candidates=1) or store.count() == 0
    assert corpus("index", "docs").exit_code == 0
    assert json.loads(corpus("info", "--json").stdout)["documents"] == 302
