import os
import random
import subprocess
from pathlib import Path

import pytest

from pplx_vectorstore import walking
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.walking import WalkOptions, walk


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder, *names, text="text"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names_of(found):
    return [file.path.as_posix() for file in found.files]


def left_out(found):
    return {reason: [path.as_posix() for path in paths] for reason, paths in found.left_out.items()}


def test_folders_are_walked_without_what_nobody_wants(here):
    make(
        here, "b.md", "a.txt", "sub/c.py", ".hidden/x.md", ".env", "node_modules/m.js", "__pycache__/c.txt",
        "venv/pyvenv.cfg", "venv/lib.py", "index/documents/collection.json", "logo.svg", "yarn.lock", "id_rsa",
    )  # fmt: skip
    found = walk(["."], skip=Path("index"))
    assert names_of(found) == ["a.txt", "b.md", "sub/c.py"]
    assert left_out(found) == {
        "hidden": [".env", ".hidden"],
        "folder of packages": ["__pycache__", "node_modules", "venv"],
        "key or certificate": ["id_rsa"],
        "index": ["index"],
        "picture": ["logo.svg"],
        "lock file": ["yarn.lock"],
    }
    assert found.skipped == []
    everything = walk(["."], WalkOptions(ignore=False, hidden=True), skip=Path("index"))
    assert {".env", ".hidden/x.md", "node_modules/m.js", "venv/lib.py"} < set(names_of(everything))


def test_an_index_is_left_out_wherever_it_is(here):
    make(here, "a.txt", "deep/index/documents/collection.json")
    (here / "deep" / "index" / "documents" / "shard").mkdir()
    assert names_of(walk(["."])) == ["a.txt"]


def test_named_files_are_always_taken_and_once(here):
    make(here, ".notes", "logo.svg", "ignored.txt", "big.txt")
    (here / "link").symlink_to(".notes")
    make(here, ".gitignore", text="ignored.txt\n")
    found = walk([".notes", "link", ".notes", "logo.svg", "ignored.txt", "big.txt"], WalkOptions(max_file_size=1))
    assert names_of(found) == [".notes", "logo.svg", "ignored.txt", "big.txt"]
    assert all(file.is_chosen for file in found.files)
    make(here, ".hidden/a.txt")
    assert names_of(walk([".hidden"])) == [".hidden/a.txt"]


def test_a_missing_path_is_refused(here):
    with pytest.raises(InvalidInputError, match="no file or folder 'gone'"):
        walk(["gone"])
    with pytest.raises(InvalidInputError, match="--max-file-size must be at least 1 byte, not 0"):
        WalkOptions(max_file_size=0)


def test_ignore_files_the_deepest_wins(here):
    make(here, "a.txt", "a.log", "keep.log", "sub/a.txt", "sub/b.log", "sub/deep/a.txt", "out/x.txt", "own.txt")
    make(here, ".gitignore", text="*.log\nout/\n")
    make(here, ".ignore", text="own.txt\n")
    make(here, ".pplxignore", text="!keep.log\n")
    make(here, "sub/.gitignore", text="a.txt\n!b.log\n")
    make(here, "sub/deep/.pplxignore", text="!a.txt\n")
    found = walk(["."])
    assert names_of(found) == ["a.txt", "keep.log", "sub/b.log", "sub/deep/a.txt"]
    assert sorted(left_out(found)["ignored"]) == ["a.log", "out", "own.txt", "sub/a.txt"]
    assert len(names_of(walk(["."], WalkOptions(ignore=False)))) == 8


def test_ignore_files_above_and_of_the_repository(here):
    make(here, "repo/.git/info/exclude", text="excluded.txt\n")
    make(here, "repo/.gitignore", text="*.log\n")
    make(here, ".gitignore", text="*.txt\n")  # not of the repository
    make(here, "repo/sub/a.txt", "repo/sub/a.log", "repo/sub/excluded.txt")
    make(here, "repo/sub/inner/.git/config", "repo/sub/inner/a.log")  # a repository of its own
    assert names_of(walk(["repo/sub"])) == ["repo/sub/a.txt", "repo/sub/inner/a.log"]
    make(here, "repo/.git/worktrees/w/commondir", text="../..\n")
    make(here, "linked/.git", text=f"gitdir: {here}/repo/.git/worktrees/w\n")
    make(here, "linked/a.txt", "linked/excluded.txt")
    assert names_of(walk(["linked"])) == ["linked/a.txt"]


def test_include_and_exclude(here):
    make(here, "a.md", "b.svg", "docs/c.md", "docs/d.txt", "docs/old/e.md", "ignored.md")
    make(here, ".gitignore", text="ignored.md\n")
    assert names_of(walk(["."], WalkOptions(include=("*.md", "*.svg"), exclude=("old/",)))) == [
        "a.md",
        "b.svg",
        "docs/c.md",
    ]
    found = walk(["."], WalkOptions(include=("docs/",)))
    assert names_of(found) == ["docs/c.md", "docs/d.txt", "docs/old/e.md"]
    assert sorted(left_out(found)["not included"]) == ["a.md", "b.svg"]


def test_what_cannot_be_taken_is_reported_and_the_rest_is_found(here, monkeypatch):
    make(here, "project/a.txt", "project/big.txt", "project/locked/b.txt", "outside/c.txt")
    project = here / "project"
    (project / "big.txt").write_text("x" * 2000)
    (project / "broken").symlink_to("gone")
    (project / "circle").symlink_to("circle")
    (project / "folder").symlink_to(project)
    (project / "inside.txt").symlink_to("a.txt")
    (project / "leads out.txt").symlink_to(here / "outside" / "c.txt")
    os.mkfifo(project / "pipe")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(walking.os, "scandir", refuse)
    found = walk(["project"], WalkOptions(max_file_size=1000))
    assert names_of(found) == ["project/a.txt"]
    assert {path.name: reason for path, reason in found.skipped} == {
        "big.txt": "is larger than 1,000 bytes; name it, or give --max-file-size",
        "broken": "No such file or directory",
        "circle": "Too many levels of symbolic links",
        "leads out.txt": "is a link that leads out of the folder; name it to have it",
        "locked": "is a folder that cannot be read (Permission denied)",
        "pipe": "is no regular file",
    }
    assert left_out(found) == {"link to a folder": ["project/folder"]}


def test_folders_nested_deep(here):
    deep = here.joinpath(*["d"] * 500)
    deep.mkdir(parents=True)
    (deep / "a.txt").write_text("x")
    assert len(walk(["."]).files) == 1


# Of every form that patterns have.
PATTERNS = [
    "*.log", "build/", "/a", "!keep.log", "logs/*", "!logs/keep.txt", "**/b/*.txt", "a/**/c.d", "# c", "", "x\\ y/",
    "*.md", "/b/", "[ab].txt", "c.?", "!*/", "!/a/", "foo/**", "**/logs", "!b.log ", "a/b", "/*.txt", "[!a].md",
    "!a.md", "a\\*b", "*a*.log", "**/a/*", "a/**", "x*/", "[[:alpha:]].log", "b/**/c.*",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_the_files_of_a_large_tree_are_those_that_git_lists(tmp_path, seed):
    chosen = random.Random(seed)
    top = tmp_path / "repo"
    subprocess.run(["git", "init", "--quiet", str(top)], check=True)
    folders = [top]
    for _ in range(400):
        folder = chosen.choice(folders) / chosen.choice(["a", "b", "build", "logs", "x y", "c.d", "n", "m"])
        if len(folder.parts) - len(top.parts) < 12 and not folder.exists():
            folder.mkdir()
            folders.append(folder)
    for number in range(10_500):
        name = chosen.choice(["a", "b", "keep", "logs", *[f"n{number}", f"m{number}"] * 40])
        (chosen.choice(folders) / f"{name}{chosen.choice(['.txt', '.log', '.md', '.d'])}").touch()
    for folder in chosen.sample(folders, len(folders) // 4):
        (folder / ".gitignore").write_text("\n".join(chosen.sample(PATTERNS, chosen.randint(1, 5))) + "\n")
    (top / ".git" / "info" / "exclude").write_text("n1*.md\n")
    listed = subprocess.run(
        ["git", "-C", str(top), "-c", "core.excludesFile=/dev/null", "ls-files", "-coz", "--exclude-standard"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found = walk([top], WalkOptions(hidden=True))
    assert {file.path.relative_to(top).as_posix() for file in found.files} == set(filter(None, listed.split("\0")))
    assert 1_000 < len(found.files) < 10_000
