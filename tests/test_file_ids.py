import os
import sys
from pathlib import Path

import pytest

from pplx_vectorstore.file_ids import locate_file, name_file, possible_names


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
