"""Patterns of ignore files, matched as git matches them: a name itself, and nothing because of what it is in.

Names are bytes to git: ``?`` is one of the two that an é may be. Here, each byte is a character of Latin-1.

What is below an ignored folder is not asked about, so that this is enough, and ``!*/`` brings back folders but not the
files in them. The time of a match does not grow beyond measure, whoever wrote the pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "digit": "0-9",
    "lower": "a-z",
    "punct": "!-/:-@\\[-`{-~",
    "space": " \\t-\\r",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}

_NOTHING = re.compile("(?!)")


class Pattern(NamedTuple):
    """A line of an ignore file.

    Attributes:
        names: Of a path from the ignore file's folder on, or of its last name alone: what each has to be; None for
            any number of folders.
        is_of_path: Which of these.
        is_of_folder: Whether it is of folders alone.
        ignores: Whether it ignores, or brings back.
    """

    names: tuple[re.Pattern[str] | None, ...]
    is_of_path: bool
    is_of_folder: bool
    ignores: bool


class Patterns:
    """The patterns of a folder, of which the last that matches is right.

    Args:
        lines: Of an ignore file; what is no pattern matches nothing.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._patterns = [pattern for pattern in map(_compile, lines) if pattern is not None][::-1]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def find(self, path: str, *, is_folder: bool) -> bool | None:
        """Tell whether a path is ignored (True) or brought back (False), or None where nothing matches.

        >>> patterns = Patterns(["*.log", "!keep.log", "build/"])
        >>> [patterns.find(path, is_folder=False) for path in ("a/b.log", "keep.log", "build", "b.md")]
        [True, False, None, None]
        """
        names = _as_bytes(path).split("/")
        for pattern in self._patterns:
            if pattern.is_of_folder and not is_folder:
                continue
            if _match(pattern.names, names if pattern.is_of_path else names[-1:]):
                return pattern.ignores
        return None

    def match_within(self, path: str) -> bool:
        """Tell whether a file matches, or a folder that it is in."""
        ends = [at for at, character in enumerate(path) if character == "/"]
        return any(self.find(path[:end], is_folder=True) for end in ends) or bool(self.find(path, is_folder=False))


def _as_bytes(text: str) -> str:
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # names that only Windows allows
        encoded = text.encode("utf-8", "surrogatepass")
    return encoded.decode("latin-1")


def _compile(line: str) -> Pattern | None:
    line = _as_bytes(line).rstrip("\r\n")
    while line.endswith(" ") and not line.endswith("\\ "):
        line = line[:-1]
    if not line or line.startswith("#"):
        return None
    ignores = not line.startswith("!")
    line = line.removeprefix("!")
    is_of_folder = line.endswith("/")
    line = line.removesuffix("/")
    is_of_path = "/" in line
    if not line:
        return None
    names: list[re.Pattern[str] | None] = []
    for name in line.removeprefix("/").split("/") if is_of_path else [line]:
        if name == "**" and is_of_path:
            if not names or names[-1] is not None:
                names.append(None)
            continue
        translated = _translate(name)
        if translated is None:
            return None
        try:
            names.append(re.compile(translated, re.DOTALL))
        except re.error:  # such as a range that ends before it begins
            return None
    if names[-1] is None:
        names.append(re.compile(".+", re.DOTALL))  # what is within, and not the folder itself
    return Pattern(tuple(names), is_of_path, is_of_folder, ignores)


def _match(wanted: tuple[re.Pattern[str] | None, ...], names: list[str]) -> bool:
    """Tell whether names are as wanted; where any number of folders may stand, as few as will do."""
    at = 0
    retry: tuple[int, int] | None = None
    position = 0
    while position < len(names):
        one = wanted[at] if at < len(wanted) else _NOTHING
        if one is None:
            retry = at, position
            at += 1
        elif one.fullmatch(names[position]):
            at += 1
            position += 1
        elif retry is not None:
            at, position = retry[0] + 1, retry[1] + 1
            retry = retry[0], position
        else:
            return False
    return at == len(wanted)


def _translate(segment: str) -> str | None:
    """Return the regular expression of a name, or None where it is no pattern."""
    chunks = [""]  # what is between stars
    at = 0
    while at < len(segment):
        character = segment[at]
        at += 1
        if character == "*":
            if at == 1 or segment[at - 2] != "*" or chunks[-1]:
                chunks.append("")
        elif character == "?":
            chunks[-1] += "[^/]"
        elif character == "[":
            found = _translate_class(segment, at)
            if found is None:
                return None
            chunks[-1] += found[0]
            at = found[1]
        elif character == "\\":
            if at == len(segment):
                return None
            chunks[-1] += re.escape(segment[at])
            at += 1
        else:
            chunks[-1] += re.escape(character)
    if len(chunks) == 1:
        return chunks[0]
    # The first place that fits is as good as any later one; atomic, so that no other is tried.
    middle = "".join(f"(?>[^/]*?{chunk})" for chunk in chunks[1:-1])
    return f"{chunks[0]}{middle}[^/]*{chunks[-1]}"


def _translate_class(segment: str, at: int) -> tuple[str, int] | None:
    """Translate ``[…]`` of which the inside begins at `at`; return it, and where what follows begins."""
    negated = segment[at : at + 1] in ("!", "^")
    at += negated
    inside = ""
    is_first = True
    while at < len(segment):
        character = segment[at]
        named = re.compile(r"\[:(\w+):\]").match(segment, at)
        if character == "]" and not is_first:
            return f"(?!/)[{'^' if negated else ''}{inside}]", at + 1
        if named:
            if named[1] not in _CLASSES:
                return None
            inside += _CLASSES[named[1]]
            at = named.end()
        elif character == "\\":
            inside += re.escape(segment[at + 1 : at + 2])
            at += 2
        else:
            inside += character if character == "-" else re.escape(character)
            at += 1
        is_first = False
    return None
