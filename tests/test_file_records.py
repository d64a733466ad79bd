"""What `index` remembers of files: what it spares, and that it is never believed about what files and stores hold."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from file_samples import PICTURE, pdf, shown
from typer.testing import CliRunner

from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.cli import app
from pplx_vectorstore.file_records import FILE, READ_BY, FileRecord, FileRecords, way_of_reading
from pplx_vectorstore.file_settings import FileSettings

STORE = Path(".pplx-vectorstore")
RECORDS = STORE / "documents" / FILE
CATS, STARS = "Cats purr.", "Stars fuse hydrogen."
NOTHING = "nothing to embed; 2 unchanged\n"


@pytest.fixture
def encoder(loaded_encoder):
    return loaded_encoder


@pytest.fixture
def run(tmp_path, monkeypatch, encoder):
    docs = tmp_path / "project" / "docs"
    docs.mkdir(parents=True)
    (docs / "cats.txt").write_text(CATS)
    (docs / "stars.txt").write_text(STARS)
    monkeypatch.chdir(docs.parent)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done

    return run


def texts(run, *arguments):
    """What the index holds: document → its text."""
    done = run("search", "x", "-k", "100", "--json", "--quiet", *arguments)
    return {hit["document_id"]: hit["text"] for hit in json.loads(done.stdout)}


def keep_time(file, text):
    """Write a file as an editor would that puts its old time back."""
    status = file.stat()
    file.write_text(text)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_with_nothing_to_do_no_model_is_loaded_and_no_file_read_but_for_its_bytes(run, encoder, monkeypatch):
    run("index", "docs")
    encoder.loads = 0
    monkeypatch.setattr("pplx_vectorstore.file_reading.read_content", None)
    for paths in (["docs"], ["docs", "--prune"]):
        assert run("index", *paths).stdout.startswith(NOTHING)
    assert encoder.loads == 0
    assert run("index", "docs", "--quiet").output == ""
    assert json.loads(run("documents", "--json").stdout)[0]["chunks"] == 1


def test_with_nothing_to_do_nothing_heavy_is_imported(run):
    run("index", "docs")
    code = (
        "import sys; from pplx_vectorstore.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'qdrant_client', 'rich', 'markdown_it', 'lxml', 'semantic_text_splitter'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code, "index", "docs"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(NOTHING)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_options_of_the_model_are_still_compared(run, encoder):
    run("index", "docs")
    for option in (["--model", "hash-encoder"], ["--device", "cpu"], ["--window-tokens", "512"]):
        encoder.loads = 0
        assert run("index", "docs", *option).stdout.startswith(NOTHING)
        assert encoder.loads == 1
    assert "--chunk-tokens 256, and 9 is given" in run("index", "docs", "--chunk-tokens", "9", code=1).stderr


@pytest.mark.parametrize("seconds", [0, -1000, 1000], ids=["the same time", "back", "forward"])
def test_a_change_is_seen_whatever_the_time_of_the_file(run, encoder, seconds):
    run("index", "docs")
    file = Path("docs/cats.txt")
    time = file.stat().st_mtime_ns + seconds * 10**9
    file.write_text(CATS.replace("purr", "hiss"))  # of the same size
    os.utime(file, ns=(time, time))
    assert run("index", "docs").stdout.startswith("indexed 1 document (0 new), 1 chunk; 1 unchanged\n")
    assert encoder.calls[-1] == [["Cats hiss."]]
    keep_time(file, CATS)
    assert run("index", "docs").stdout.startswith("indexed 1 document (0 new), 1 chunk; 1 unchanged\n")
    assert texts(run) == {"docs/cats.txt": CATS, "docs/stars.txt": STARS}


def test_what_others_did_to_the_store_is_seen(run, encoder):
    run("index", "docs")
    run("delete", "docs/cats.txt")
    assert run("index", "docs").stdout.startswith("indexed 1 document, 1 chunk; 1 unchanged\n")
    with VectorStore.open(STORE, encoder=encoder) as store:
        store.add([Document(id="docs/stars.txt", chunks=["Not the file's."])])
        store.add([Document(id="docs/cats.txt", chunks=[CATS, "One more."])])
    assert run("index", "docs").stdout.startswith("indexed 2 documents (0 new), 2 chunks\n")
    assert texts(run) == {"docs/cats.txt": CATS, "docs/stars.txt": STARS}
    shutil.rmtree(STORE)
    assert run("index", "docs").stdout.startswith("indexed 2 documents, 2 chunks\n")


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 1, "home": 5, "tenants": {}}',
        '{"version": 1, "home": null, "tenants": {}}',
        '{"version": 1, "home": "/", "tenants": []}',
        '{"version": 1, "home": "/", "tenants": {"": []}}',
        '{"version": 1, "home": "/", "tenants": {"": {"docs/cats.txt": [1]}}}',
        '{"version": 1, "home": "/", "tenants": {"": {"docs/cats.txt": [0, 1, 1, "", "", "", 1]}}}',
        '{"version": 1, "home": "/", "tenants": {"": {"docs/cats.txt": ["/\\u0000", 1, 1, "", "", "", 1]}}}',
        None,
    ],
)
def test_records_that_are_lost_or_damaged_cost_reading_alone(run, encoder, damaged):
    run("index", "docs")
    RECORDS.unlink() if damaged is None else RECORDS.write_text(damaged)
    assert run("search", CATS, "-k", "1").stderr == ""
    assert run("index", "docs").stdout.startswith(NOTHING)
    encoder.loads = 0
    assert run("index", "docs").stdout.startswith(NOTHING)
    assert encoder.loads == 0


def test_older_records_come_back_and_do_no_harm(run):
    run("index", "docs")
    older = RECORDS.read_bytes()
    keep_time(Path("docs/cats.txt"), "Cats hiss.")
    run("index", "docs")
    RECORDS.write_bytes(older)
    assert run("index", "docs").stdout.startswith(NOTHING)
    keep_time(Path("docs/cats.txt"), CATS)  # as these records know it, and the store does not
    RECORDS.write_bytes(older)
    assert run("index", "docs").stdout.startswith("indexed 1 document")
    assert texts(run)["docs/cats.txt"] == CATS


def test_another_way_of_reading_reads_again(run, encoder, monkeypatch):
    run("index", "docs")
    encoder.loads = 0
    monkeypatch.setattr("pplx_vectorstore.file_records.__version__", "newer")
    assert run("index", "docs").stdout.startswith(NOTHING)  # read again, with the same text in it
    assert encoder.loads == 1
    assert run("index", "docs").stdout.startswith(NOTHING)
    assert encoder.loads == 1
    ways = {way_of_reading(FileSettings(**options)) for options in ({}, {"encoding": "cp1252"}, {"chunk_tokens": 9})}
    assert len(ways) == 3
    assert way_of_reading(FileSettings(root="..")) in ways


def test_what_reads_files_is_what_the_extras_bring():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = {re.match(r"[\w-]+", one)[0] for one in [*extras["documents"], *extras["code"]]}
    assert names < set(READ_BY)
    assert set(READ_BY) - names == {"markdown-it-py", "semantic-text-splitter", "tokenizers"}


def test_files_of_which_there_is_something_to_tell_are_read_each_time(run):
    Path("docs/odd.txt").write_bytes("Grüße aus Köln, schöne Grüße.".encode("cp1252"))
    for _ in range(2):
        told = run("index", "docs").stderr
        assert "docs/odd.txt" in told
    Path("docs/odd.txt").unlink()
    Path("docs/half.pdf").write_bytes(pdf(shown("A page of text."), PICTURE))
    for _ in range(2):
        assert "docs/half.pdf" in run("index", "docs", "--strict", code=1).stderr


def test_a_project_that_moved_is_labelled_anew(run, tmp_path, monkeypatch):
    run("index", "docs")
    (tmp_path / "project").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert run("search", CATS).stderr == ""
    assert run("index", "docs").stdout.startswith("nothing to embed; 2 with new metadata\n")
    assert run("index", "docs").stdout.startswith(NOTHING)


def test_tenants_have_records_of_their_own(run, encoder):
    for tenant in ("a", "b"):
        run("index", "docs", "--tenant", tenant)
    encoder.loads = 0
    for tenant in ("a", "b"):
        assert run("index", "docs", "--tenant", tenant).stdout.startswith(NOTHING)
    assert encoder.loads == 0
    run("delete", "docs/cats.txt", "--tenant", "a")
    assert run("index", "docs", "--tenant", "b").stdout.startswith(NOTHING)
    assert run("index", "docs", "--tenant", "a").stdout.startswith("indexed 1 document")


def test_whatever_happens_in_between_the_index_holds_what_the_files_hold(run, encoder):
    chance = random.Random(5)
    words = ["aa", "bb", "cc"]

    def edit():
        file = Path("docs") / chance.choice(["cats.txt", "stars.txt", "new.md"])
        if file.exists() and chance.random() < 0.5:
            keep_time(file, chance.choice(words))
        else:
            file.write_text(chance.choice(words))

    def remove():
        (Path("docs") / chance.choice(["stars.txt", "new.md"])).unlink(missing_ok=True)

    def meddle():
        with VectorStore.open(STORE, encoder=encoder) as store:
            name = f"docs/{chance.choice(['cats.txt', 'stars.txt'])}"
            if chance.random() < 0.5:
                store.delete(document_ids=[name])
            else:
                store.add([Document(id=name, chunks=[chance.choice(words)])])

    def go_back():
        if kept:
            RECORDS.write_bytes(chance.choice(kept))

    kept = []
    for _ in range(12):
        for step in chance.choices([edit, remove, meddle, go_back], weights=[4, 1, 2, 1], k=2):
            if STORE.exists() or step in (edit, remove):
                step()
        run("index", "docs", "--prune")
        kept.append(RECORDS.read_bytes())
        assert texts(run) == {f"docs/{file.name}": file.read_text() for file in Path("docs").iterdir()}


# --- the notice ------------------------------------------------------------------------------------------------


def test_a_search_tells_what_has_changed(run):
    run("index", "docs")
    assert run("search", CATS).stderr == ""
    os.utime("docs/cats.txt")
    one = "note: since they were indexed, 1 file has changed (docs/cats.txt); run index again\n"
    assert run("search", CATS).stderr == one
    assert run("search", CATS, "--json").stderr == one
    assert run("search", CATS, "--quiet").stderr == ""
    run("index", "docs")
    assert run("search", CATS).stderr == ""
    Path("docs/cats.txt").write_text("Longer than it was.")
    Path("docs/stars.txt").unlink()
    assert run("search", CATS).stderr == (
        "note: since they were indexed, 1 file has changed (docs/cats.txt), and 1 file is gone (docs/stars.txt); run "
        "index again with --prune\n"
    )
    run("delete", "docs/stars.txt")
    assert "gone" not in run("search", CATS).stderr
    run("index", "docs", "--prune")
    assert run("search", CATS).stderr == ""


def test_a_copy_tells_only_what_it_can_know(run, tmp_path, monkeypatch):
    run("index", "docs")
    elsewhere = tmp_path / "elsewhere" / "copy"
    shutil.copytree(tmp_path / "project", elsewhere, copy_function=shutil.copyfile)  # with times of its own
    for file in (elsewhere / "docs").iterdir():
        os.utime(file, (1, 1))
    monkeypatch.chdir(elsewhere)
    assert run("search", CATS).stderr == ""
    Path("docs/cats.txt").write_text("Of another size.")
    assert "1 file has changed (docs/cats.txt)" in run("search", CATS).stderr
    run("index", "docs")
    os.utime("docs/stars.txt", (1, 1))
    assert run("search", CATS).stderr == ""
    os.utime("docs/stars.txt", (2, 2))
    assert "1 file has changed (docs/stars.txt)" in run("search", CATS).stderr


def test_an_index_that_moves_without_its_files_knows_them_where_they_are(run, tmp_path):
    run("index", "docs")
    STORE.rename(tmp_path / "index")
    store = ["--store", str(tmp_path / "index")]
    assert run("search", CATS, *store).stderr == ""
    os.utime("docs/cats.txt", (1, 1))
    assert "1 file has changed (docs/cats.txt)" in run("search", CATS, *store).stderr
    Path("docs").rename(tmp_path / "away")
    assert run("search", CATS, *store).stderr == ""


def record(root, **changed):
    known = {"size": 1, "mtime_ns": 1, "content": "c", "way": "w", "document_hash": "h", "chunks": 1}
    return FileRecord(root=str(root), **{**known, **changed})


def test_the_files_of_hits_are_looked_at_first_and_what_cannot_be_looked_at_is_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "index" / "c").mkdir(parents=True)
    records = FileRecords(tmp_path / "index", "c", None)
    records.save({name: record(tmp_path) for name in ("a", "b", "\0", "x" * 300)})
    assert FileRecords(tmp_path / "index", "c", None).find_changes(["b"]) == ([], ["b", "a"])
    assert len(FileRecords(tmp_path / "index", "c", "tenant")) == 0
    monkeypatch.setattr("pplx_vectorstore.file_records._PATIENCE", -1)
    assert FileRecords(tmp_path / "index", "c", None).find_changes(["b"]) == ([], ["b"])
    records.save({}, gone=["a"])
    assert records.get("a") is None


def test_what_writers_remember_at_once_all_stays(tmp_path, monkeypatch):
    (tmp_path / "index" / "c").mkdir(parents=True)
    known = FileRecords(tmp_path / "index", "c", "a")
    known.save({"old": record(tmp_path), "gone": record(tmp_path)})
    dump = json.dump
    monkeypatch.setattr(json, "dump", lambda *given: time.sleep(0.01) or dump(*given))
    together = threading.Barrier(6, timeout=60)

    def save(n):
        records = FileRecords(tmp_path / "index", "c", "ab"[n % 2])
        together.wait(20)
        records.save({f"{n}.txt": record(tmp_path)}, gone=["gone"])
        assert records.get(f"{n}.txt")
        records.save({f"{n}.md": record(tmp_path)})

    others = [
        subprocess.Popen([sys.executable, "-c", SAVES_RECORDS, str(tmp_path), tenant], stdout=subprocess.PIPE)
        for tenant in "ab"
    ]
    assert [other.stdout.readline() for other in others] == [b"saved\n"] * 2
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(save, range(6)))
    for other in others:
        other.communicate(timeout=60)
        assert other.returncode == 0
    for tenant, written in (
        ("a", {"old", "0.txt", "0.md", "2.txt", "2.md", "4.txt", "4.md"}),
        ("b", {"1.txt", "5.md"}),
    ):
        kept = FileRecords(tmp_path / "index", "c", tenant)
        assert all(kept.get(name) for name in written)
        assert all(kept.get(f"{tenant}.{n}") for n in range(20))
        assert len(kept) == 27 - (tenant == "b")
        assert kept.get("gone") is None
    # Who read them before has what the others wrote once it writes, too; and, where that is asked for, nothing else.
    known.save({"new": record(tmp_path)})
    assert known.get("0.txt")
    assert known.get("gone") is None
    known.save({"new": record(tmp_path)}, anew=True)
    assert len(FileRecords(tmp_path / "index", "c", "a")) == 1
    assert len(FileRecords(tmp_path / "index", "c", "b")) == 26
    assert [path.name for path in (tmp_path / "index" / "c").glob("*.new")] == []


SAVES_RECORDS = """
import json, pathlib, sys, time
from pplx_vectorstore.file_records import FileRecord, FileRecords
dump = json.dump
json.dump = lambda *given: time.sleep(0.01) or dump(*given)
folder, tenant = pathlib.Path(sys.argv[1]), sys.argv[2]
for n in range(20):
    record = FileRecord(str(folder), 1, 1, "c", "w", "h", 1)
    FileRecords(folder / "index", "c", tenant).save({f"{tenant}.{n}": record})
    print("saved", flush=True)
"""


# --- names that are no UTF-8 -----------------------------------------------------------------------------------


@pytest.fixture
def odd(run):
    """A file whose name is no UTF-8, in a folder of such a name."""
    if sys.platform != "linux":
        pytest.skip("other systems allow no such file name")
    file = Path("docs", os.fsdecode(b"caf\xe9"), os.fsdecode(b"latin\xe9\xff.md"))
    file.parent.mkdir()
    file.write_text("Der Bär schläft.")
    run("index", ".", "--quiet")
    return file


def test_a_file_whose_name_is_no_utf8_is_not_gone(run, odd):
    assert run("search", "x").stderr == ""
    assert "deleted" not in run("index", ".", "--prune", "--exclude", "*.md").stdout
    assert "docs/caf\\xe9/latin\\xe9\\xff.md" in texts(run)
    odd.unlink()
    assert "1 file is gone" in run("search", "x").stderr
    assert "1 deleted" in run("index", ".", "--prune", "--exclude", "*.md").stdout


def test_a_file_of_a_name_that_only_looks_like_that_is_not_gone_either(run, odd):
    odd.unlink()
    alike = Path("docs", "caf\\xe9", "latin\\xe9\\xff.md")
    alike.parent.mkdir()
    alike.write_text("The bear sleeps.")
    assert "deleted" not in run("index", ".", "--prune", "--exclude", "*.md").stdout


@pytest.mark.slow
def test_programs_can_open_what_is_found_and_name_what_is_to_be_deleted(run, odd, monkeypatch):
    def printed(*arguments):
        command = Path(sys.executable).with_name("pplx-vectorstore")
        return subprocess.run([command, *arguments], capture_output=True, check=True).stdout

    monkeypatch.setenv("PPLX_VECTORSTORE_STORE", str(STORE.parent / "real"))
    printed("index", ".", "--model", "all-minilm-l6-v2")
    for arguments in (["-l"], []):
        (line,) = (line for line in printed("search", "x", *arguments).splitlines() if b"latin" in line)
        assert Path(os.fsdecode(line.split(b":")[0])).samefile(odd)
    assert any(Path(hit["file"]).samefile(odd) for hit in json.loads(printed("search", "x", "--json")))
    assert printed("delete", odd) == b"deleted docs/caf\xe9/latin\xe9\xff.md (1 document)\n"


def test_what_is_found_in_a_project_that_moved_is_where_it_is_now(run, tmp_path, monkeypatch):
    run("index", "docs", "--quiet")
    Path("docs/stars.txt").rename(tmp_path / "stars.txt")  # not moved with it
    moved = tmp_path / "moved"
    Path.cwd().rename(moved)
    monkeypatch.chdir(moved)
    assert "docs/cats.txt:1: Cats purr." in run("search", "cats", "--quiet").stdout
    files = {hit["document_id"]: hit["file"] for hit in json.loads(run("search", "cats", "--json").stdout)}
    assert files["docs/cats.txt"] == str(moved.resolve() / "docs" / "cats.txt")
    assert files["docs/stars.txt"] == str(tmp_path.resolve() / "project" / "docs" / "stars.txt")
