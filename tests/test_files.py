import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.files import Names, find_below, find_gone, find_names


def document(document_id, root, text="text", **metadata):
    """What a file was indexed as, under an id that is relative to a root."""
    codes = np.full((1, 64), 7, np.int8)
    return Document(
        id=document_id, chunks=[text], vectors=codes, metadata={"source": document_id, "root": root, **metadata}
    )


@pytest.fixture
def project(tmp_path):
    """A folder with 150 files, resolved."""
    folder = tmp_path.resolve() / "project"
    for number in range(150):
        file = folder / "docs" / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text")
    return folder


def test_a_file_keeps_the_id_that_it_has(new_store, project):
    files = sorted((project / "docs").iterdir())
    store = new_store()
    assert find_names(store, files, project).roots == dict.fromkeys(files, project)
    absolute = [document(file.as_posix(), "/") for file in files[:50]]
    deeper = [document(file.name, (project / "docs").as_posix()) for file in files[50:100]]
    store.add([*absolute, *deeper])
    names = find_names(store, files, project)
    assert (names.without_root, names.replaced) == ([], [])
    expected = [*[None] * 50, *[project / "docs"] * 50, *[project] * 50]
    assert [names.roots[file] for file in files] == expected


def test_ids_of_which_the_folder_is_not_known_are_told_of_new_files_only(new_store, project):
    store = new_store()
    file = project / "docs" / "1.txt"
    of_a_program = Document(id="1.txt", chunks=["x"], metadata={"source": "1.txt"})
    store.add([of_a_program, Document(id="docs/1.txt", chunks=["x"])])
    assert find_names(store, [file], None) == Names({file: None}, ["1.txt"], [])
    assert find_names(store, [file], file.parent) == Names({file: file.parent}, [], [])
    store.add([document(file.as_posix(), "/")])
    assert find_names(store, [file], None) == Names({file: None}, [], [])


def test_an_id_that_is_relative_to_the_root_is_of_the_file_that_is_there(new_store, project, tmp_path):
    store = new_store()
    mine, other = project / "docs" / "1.txt", tmp_path.resolve() / "other" / "docs" / "1.txt"
    other.parent.mkdir(parents=True)
    other.write_text("other")
    store.add([document("docs/1.txt", (tmp_path / "other").resolve().as_posix())])
    assert find_names(store, [mine], project) == Names({mine: project}, [], [other])
    # Where both are indexed at once, each has an id.
    assert find_names(store, [mine, other], project) == Names({other: other.parents[1], mine: None}, [], [])
    shutil.rmtree(tmp_path / "other")
    assert find_names(store, [mine], project) == Names({mine: project}, [], [])


def test_what_is_gone_is_told_by_where_it_was(new_store, project):
    store = new_store()
    files = sorted((project / "docs").iterdir())
    store.add([document(f"docs/{file.name}", project.as_posix()) for file in files])
    store.add(
        [
            document("docs/gone.txt", project.as_posix()),
            document(f"{project.as_posix()}/docs/also gone.txt", "/"),
            document("documents/gone.txt", project.as_posix()),
            document("docs/gone.txt ", "/elsewhere"),
            document("../project/docs/gone.txt", project.as_posix()),
            document("docs/\0", project.as_posix()),
            document(f"docs/{'x' * 1000}", project.as_posix()),
            document("docs/0.txt/below a file", project.as_posix()),
            Document(id=f"{project.as_posix()}/docs/a program's", chunks=["x"]),
        ]
    )
    gone = {"docs/gone.txt", f"{project.as_posix()}/docs/also gone.txt", "docs/0.txt/below a file"}
    assert set(find_gone(store, [project / "docs"], files, None)) == gone
    assert set(find_gone(store, [project / "docs"], [], None)) == gone
    assert find_gone(store, [project / "docs" / "0.txt"], files, None) == ["docs/0.txt/below a file"]
    # Relative to the folder that ids are relative to now, another is: it was elsewhere, and is gone there too.
    assert set(find_gone(store, [project / "docs"], files, project)) == {*gone, "docs/gone.txt "}
    assert find_below(store, project / "docs" / "1.txt") == ["docs/1.txt"]
    assert find_below(store, project / "documents") == ["documents/gone.txt"]
    assert len(find_below(store, project)) == 150 + 6


def test_an_index_stays_where_it_was_opened(tmp_path, monkeypatch, hash_encoder):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with VectorStore.open("index", encoder=hash_encoder(64)) as store:
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.add([Document(id="a", chunks=["one", "two"])])
        assert len(store.search("one", k=2)) == 2
        with VectorStore(store._client, "second", encoder=hash_encoder(64)) as second:
            second.add([Document(id="b", chunks=["three"])])
    assert os.listdir(tmp_path / "elsewhere") == []
    monkeypatch.chdir(tmp_path)
    with VectorStore.open(Path("index"), encoder=hash_encoder(64)) as store:
        assert store.count() == 2
