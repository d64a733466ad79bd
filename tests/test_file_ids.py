import os
import sys
from pathlib import Path

import pytest

from pplx_vectorstore.file_ids import as_text, find_file, locate_file, name_file, possible_files, possible_names


def test_an_id_is_relative_to_a_root_that_holds_the_file_whatever_the_current_folder(tmp_path, monkeypatch):
    file = tmp_path / "project" / "docs" / "a.txt"
    file.parent.mkdir(parents=True)
    file.write_text("x")
    (tmp_path / "link").symlink_to(file.parent)
    absolute = file.resolve().as_posix()
    for folder in (tmp_path, file.parent):
        monkeypatch.chdir(folder)
        for spelled in (
            file,
            Path(os.path.relpath(file)),
            tmp_path / "link" / "a.txt",
            tmp_path / "link" / ".." / "docs/a.txt",
        ):
            assert name_file(spelled, tmp_path / "project") == "docs/a.txt"
            assert name_file(spelled, tmp_path / "link") == "a.txt"
            assert name_file(spelled) == name_file(spelled, Path("/")) == absolute
            assert name_file(spelled, tmp_path / "elsewhere") == absolute
    names = possible_names(tmp_path / "link" / "a.txt")
    assert names[0] == absolute
    assert {"docs/a.txt", "a.txt", "project/docs/a.txt"} < set(names)


def test_where_a_document_was_read_from_is_what_it_says_and_nothing_else():
    assert locate_file("docs/a.txt", {"source": "docs/a.txt", "root": "/p"}) == Path("/p/docs/a.txt")
    assert locate_file("/q/a.txt", {"source": "/q/a.txt", "root": "/"}) == Path("/q/a.txt")
    for metadata in ({}, {"root": "/p"}, {"source": "docs/a.txt"}, {"source": "b", "root": "/p"}, {"source": 1}):
        assert locate_file("docs/a.txt", metadata) is None
    assert locate_file("docs/a.txt", {"source": "docs/a.txt", "root": 7}) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such file name")
def test_a_file_name_that_is_no_utf8_gets_a_usable_id(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_text("text")
    assert name_file(path, tmp_path) == "caf\\xe9.txt"
    assert find_file(tmp_path / "caf\\xe9.txt") == path
    assert find_file(tmp_path / "tea\\xe9.txt") == tmp_path / "tea\\xe9.txt"  # of which there is none


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such file name")
def test_possible_files_are_those_of_the_same_text():
    mixed = Path("/a\\xe9", os.fsdecode(b"b\xe9"))
    possible = list(possible_files(Path(as_text(mixed))))
    assert mixed in possible
    assert len(possible) == 4
    assert {as_text(file) for file in possible} == {as_text(mixed)}
    accent = Path("/caf\\xc3\\xa9")  # bytes that are UTF-8 would not have been written so
    assert list(possible_files(accent)) == [accent]
    many = Path("/", *["\\xe9"] * 100)
    assert Path("/", *[os.fsdecode(b"\xe9")] * 100) in possible_files(many)
    assert len(list(possible_files(many))) <= 65
