"""Defaults for options, from a file of the project.

Whoever works in a folder obeys its file, and may not have written it. So it chooses among what the options offer, but
names no server that questions and keys would be sent to, no hosted model, and no secret.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pplx_vectorstore.cli.model import BASE_URL_VARIABLE
from pplx_vectorstore.cli.options import STORE_NAME, is_url
from pplx_vectorstore.errors import InvalidInputError

if TYPE_CHECKING:
    from typer.core import TyperGroup

OPTIONS = frozenset({
    "backend", "bulk", "by-document", "candidates", "chunk-tokens", "collection", "context", "device", "dimensions",
    "dtype", "encoding", "exclude", "filter", "full", "hidden", "hybrid", "include", "k", "max-file-size", "min-score",
    "model", "no-ignore", "onnx-file", "prune", "quiet", "root", "store", "strict", "tenant", "text-column", "verbose",
    "window-tokens",
})  # fmt: skip
"""What a file may set; everything else is for the command line."""

WHOLE_NUMBERS = frozenset({
    "candidates", "chunk-tokens", "context", "dimensions", "k", "max-file-size", "window-tokens",
})  # fmt: skip
NUMBERS = frozenset({"min-score"})

# There, it is where an agent may have files read and indexed.
NOT_OF = frozenset({("mcp", "root")})

FILE = "config.toml"
_PROJECT = "pyproject.toml"
_TABLE = "pplx-vectorstore"


class Defaults(NamedTuple):
    """What a project's file says of options.

    Attributes:
        values: Command → parameter → value.
        notes: Of files that may have said something, and could not be read.
        error: What is wrong with the file; only a command that runs is told, so that help is there always.
    """

    values: dict[str, dict[str, Any]]
    notes: list[str]
    error: InvalidInputError | None = None


def read_defaults(group: TyperGroup) -> Defaults:
    """Read the nearest file's defaults, from the current folder upwards.

    Args:
        group: The commands.
    """
    notes: list[str] = []
    try:
        return Defaults(_read_nearest(group, Path.cwd(), notes), notes)
    except FileNotFoundError:  # the current folder is gone
        return Defaults({}, [])
    except InvalidInputError as error:
        error.add_note("(--no-config before the command heeds no file)")
        return Defaults({}, notes, error)


def _read_nearest(group: TyperGroup, here: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    found = next(_tables(here, notes), None)
    if found is None:
        return {}
    file, table = found
    if not isinstance(table, Mapping):
        raise InvalidInputError(f"{file} sets {_TABLE!r} to {table!r}; it is a table of options")
    defaults: dict[str, dict[str, Any]] = {name: {} for name in group.commands}
    for key, value in table.items():
        if key not in group.commands:
            takers = [name for name in group.commands if _set(defaults[name], group, name, key, value, file)]
            if not takers:
                raise InvalidInputError(f"{file} sets {key!r}; {_what_it_may(file)}")
    for name in group.commands:
        own = table.get(name, {})
        if not isinstance(own, Mapping):
            raise InvalidInputError(f"{file} sets {name!r} to {own!r}; the options of a command are a table")
        for key, value in own.items():
            if not _set(defaults[name], group, name, key, value, file):
                raise InvalidInputError(f"{file} sets {key!r} of {name!r}; {_what_it_may(file)}")
    return defaults


def _tables(here: Path, notes: list[str]) -> Iterator[tuple[Path, Any]]:
    """Yield the files with settings, the nearest first. A project's that is broken may be none of ours."""
    for folder in (here, *here.parents):
        own = folder / STORE_NAME / FILE
        if os.path.isfile(own):
            try:
                yield own, _parse(own.read_bytes())
            except (OSError, ValueError, RecursionError) as error:
                raise InvalidInputError(f"{own} cannot be read as TOML: {error}") from error
        project = folder / _PROJECT
        try:
            data = project.read_bytes()
        except OSError:
            continue
        try:
            tools = _parse(data).get("tool", {})
        except (ValueError, RecursionError) as error:
            if _TABLE.encode() in data:
                notes.append(f"{project} cannot be read as TOML, and is not heeded: {error}")
            continue
        if isinstance(tools, Mapping) and _TABLE in tools:
            yield project, tools[_TABLE]


def _parse(data: bytes) -> dict[str, Any]:
    return tomllib.loads(data.decode("utf-8-sig"))


def _set(defaults: dict[str, Any], group: TyperGroup, command: str, key: str, value: Any, file: Path) -> bool:
    """Set a default, or return False where the command has no such option."""
    name = key.replace("_", "-")
    if (command, name) in NOT_OF:
        return False
    if name == "base-url":
        raise InvalidInputError(
            f"{file} sets {key!r}. Where texts and keys are sent to is for you to choose: give --base-url, or set "
            f"{BASE_URL_VARIABLE}"
        )
    option = f"-{name}" if len(name) == 1 else f"--{name}"
    parameter = next((one for one in group.commands[command].params if option in one.opts), None)
    if parameter is None or name not in OPTIONS or parameter.name is None:
        return False
    is_flag, many = getattr(parameter, "is_flag", False), getattr(parameter, "multiple", False)
    values = value if many and isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, bool) is not is_flag or not isinstance(one, (str, int, float)):
            wanted = "true or false" if is_flag else "texts or numbers" if many else "a text or a number"
            raise InvalidInputError(f"{file} sets {key!r} to {value!r}; it takes {wanted}")
        if (name in WHOLE_NUMBERS and not isinstance(one, int)) or (name in NUMBERS and isinstance(one, str)):
            wanted = "a whole number" if name in WHOLE_NUMBERS else "a number"
            raise InvalidInputError(f"{file} sets {key!r} to {value!r}; it takes {wanted}")
    if name in ("store", "root"):
        values = [_beside(file, key, one) for one in values]
    elif name == "model" and str(value).startswith(("./", "../")):
        values = [_beside(file, key, value)]
    elif name == "backend" and value == "api":
        raise InvalidInputError(f"{file} sets a hosted model, which is for you to choose: give --backend api")
    defaults[parameter.name] = values if many else values[0]
    return True


def _beside(file: Path, key: str, value: Any) -> str:
    """Return a path as it is meant: from the folder of the project."""
    if value == "":
        raise InvalidInputError(f"{file} sets {key!r} to an empty text; the folder of the file is written .")
    if is_url(str(value)):
        raise InvalidInputError(
            f"{file} sets {key!r} to a URL. Where questions and keys are sent to is for you to choose: give --store, "
            "or set PPLX_VECTORSTORE_STORE"
        )
    home = file.parent.parent if file.name == FILE else file.parent
    return os.path.normpath(home / str(value))


def _what_it_may(file: Path) -> str:
    kind = "a project" if file.name == _PROJECT else "a config file"
    return f"{kind} may set, for all commands or in a table of one: {', '.join(sorted(OPTIONS))}"
