import time

import pytest

from pplx_vectorstore.ignore_patterns import Patterns


@pytest.mark.parametrize(
    ("lines", "ignored", "kept"),
    [
        (["*.log", "!keep.log"], ["a.log", "x/a.log"], ["keep.log", "x/keep.log", "a.txt"]),
        (["/a.txt"], ["a.txt"], ["x/a.txt"]),
        (["x/*.txt"], ["x/a.txt"], ["x/y/a.txt", "y/x/a.txt"]),
        (["**/a.txt"], ["a.txt", "x/y/a.txt"], ["ba.txt"]),
        (["x/**"], ["x/a", "x/y/a"], ["x", "y/x"]),
        (["a/**/b"], ["a/b", "a/x/b", "a/x/y/b"], ["b", "ab", "x/a/b"]),
        (["a?c", "[ab].t", "[!x].u", "[^x].v", "[a-c]1", "[[:digit:]].d", "[]].e"],
         ["abc", "a.t", "y.u", "y.v", "b1", "7.d", "].e"], ["a/c", "c.t", "x.u", "x.v", "d1", "x.d"]),
        ([r"\#a", r"\!b", "c ", r"d\ ", r"e\*"], ["#a", "!b", "c", "d ", "e*"], ["a", "b", "c ", "d", "ex"]),
        (["# remark", "", "   ", "/", "[", "a\\", "[z-a]", "[[:odd:]]"], [], ["# remark", "a", "[", "z"]),
    ],
)  # fmt: skip
def test_patterns_match_as_in_git(lines, ignored, kept):
    patterns = Patterns(lines)
    assert [path for path in ignored if not patterns.find(path, is_folder=False)] == []
    assert [path for path in kept if patterns.find(path, is_folder=False)] == []


def test_patterns_of_folders_are_of_folders_alone():
    patterns = Patterns(["build/", "!*/"])
    assert patterns.find("build", is_folder=False) is None
    assert Patterns(["build/"]).find("x/build", is_folder=True) is True
    assert patterns.find("build", is_folder=True) is False
    assert Patterns(["build/"]).match_within("build/x/a.txt")
    assert not Patterns(["build/"]).match_within("build")
    assert not Patterns(["# nothing"])


def test_names_are_bytes_as_in_git():
    assert Patterns(["?.txt", "[!a].md"]).find("é.txt", is_folder=False) is None
    assert Patterns(["??.txt"]).find("é.txt", is_folder=False)
    assert Patterns(["é.txt", "gr*n"]).find("é.txt", is_folder=False)
    assert Patterns(["\udce9.txt"]).find("\udce9.txt", is_folder=False)  # of Latin-1, as file systems hand them out
    assert Patterns(["\ud800*"]).find("\ud800.txt", is_folder=False)
    assert Patterns(["[[:space:]]x"]).find("\xa0x", is_folder=False) is None


def test_a_hostile_pattern_takes_no_time():
    started = time.process_time()
    assert Patterns(["*a" * 100 + "b"]).find("a" * 250, is_folder=False) is None
    assert Patterns(["**/a/" * 50 + "b"]).find("a/" * 200 + "c", is_folder=False) is None
    assert time.process_time() - started < 1
