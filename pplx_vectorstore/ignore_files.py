"""What ignore files say of a file: .gitignore as git reads it, .ignore, and .pplxignore."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pplx_vectorstore.ignore_patterns import Patterns

_GIT = ".gitignore"
_OWN = (".ignore", ".pplxignore")  # the later is stronger
_MOST_BYTES = 1 << 20


class _Layer(NamedTuple):
    """Patterns of a folder."""

    folder: str
    patterns: Patterns
    is_of_git: bool


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """What the ignore files of a folder, and of those above it, say; the deepest that says anything is right.

    Attributes:
        layers: The weakest first.
    """

    layers: tuple[_Layer, ...] = ()

    @classmethod
    def above(cls, folder: Path) -> IgnoreRules:
        """Read what holds in a folder, from the root of its repository on; outside of one, from the folder on."""
        above = [folder, *folder.parents]
        root = next((index for index, one in enumerate(above) if (one / ".git").exists()), 0)
        rules = cls()
        for one in reversed(above[: root + 1]):
            rules = rules.within(one)
        return rules

    def within(self, folder: Path) -> IgnoreRules:
        """Return what holds in a folder below."""
        layers = list(self.layers)
        git = folder / ".git"
        if os.path.lexists(git):  # a repository of its own, which those around it say nothing of
            layers = [layer for layer in layers if not layer.is_of_git]
            layers += _layer(folder, [_exclude_file(git)], is_of_git=True)
        layers += _layer(folder, [folder / _GIT], is_of_git=True)
        layers += _layer(folder, [folder / name for name in _OWN], is_of_git=False)
        return IgnoreRules(tuple(layers))

    def ignores(self, path: Path, *, is_folder: bool) -> bool:
        """Tell whether a file or folder is ignored, given that the folder that it is in is not."""
        name = path.as_posix()
        for layer in reversed(self.layers):
            said = layer.patterns.find(name[len(layer.folder) :], is_folder=is_folder)
            if said is not None:
                return said
        return False


def _layer(folder: Path, files: Sequence[Path], *, is_of_git: bool) -> list[_Layer]:
    patterns = Patterns(line for file in files for line in _lines(file))
    return [_Layer(f"{folder.as_posix().rstrip('/')}/", patterns, is_of_git)] if patterns else []


def _lines(file: Path) -> list[str]:
    """Return a file's lines; none where there is none that can be read: then it says nothing, as for git."""
    try:
        if not file.is_file():
            return []
        with file.open("rb") as opened:
            # As the names of files come, whatever they are encoded in; a form feed ends no line.
            return opened.read(_MOST_BYTES).decode("utf-8-sig", "surrogateescape").split("\n")
    except OSError:
        return []


def _exclude_file(git: Path) -> Path:
    """Return where a repository's own exclusions are: in a linked work tree, .git is a file that names its folder."""
    folder = git
    if git.is_file():
        named = next((line for line in _lines(git) if line.startswith("gitdir:")), "gitdir: .")
        folder = git.parent / named.partition(":")[2].strip()
        common = next(iter(_lines(folder / "commondir")), ".")
        folder = folder / common.strip()
    return folder / "info" / "exclude"
