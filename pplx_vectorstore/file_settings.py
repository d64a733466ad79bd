"""How the files of an index are read and cut: recorded with the collection, so that a later run does the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pplx_vectorstore.chunking import DEFAULT_CHUNK_TOKENS, check_chunk_tokens
from pplx_vectorstore.coroutines import run_now
from pplx_vectorstore.errors import InvalidInputError, StoreError
from pplx_vectorstore.readers.plain import text_encoding

if TYPE_CHECKING:
    from pplx_vectorstore.engines.calls import BlockingCalls

METADATA_KEY = "pplx_vectorstore_files"
"""Key of the collection's metadata, beside that of the model's fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings:
    """What all files of an index have in common.

    Attributes:
        chunk_tokens: Most tokens of a chunk.
        encoding: Of text that does not say its own; None for UTF-8, or the one that is guessed.
        text_columns: Columns of tables whose values are the text; none for all.
        root: What ids are relative to, from the folder that holds the index's folder; None for that folder itself. Of
            an index on a server, which is nowhere near the files, it is not recorded.
    """

    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    encoding: str | None = None
    text_columns: tuple[str, ...] = ()
    root: str | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any] | None) -> FileSettings | None:
        """Read what a collection records, or return None where it records nothing, as those of older versions."""
        found = (metadata or {}).get(METADATA_KEY)
        if not isinstance(found, Mapping):
            return None
        known = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        return cls(**{**known, "text_columns": tuple(known.get("text_columns") or ())})

    def to_metadata(self) -> dict[str, Any]:
        """Return what a collection records."""
        return {METADATA_KEY: {**asdict(self), "text_columns": list(self.text_columns)}}


def choose_settings(
    recorded: FileSettings | None,
    *,
    chunk_tokens: int | None,
    encoding: str | None,
    text_columns: tuple[str, ...],
    rebuild: bool,
) -> FileSettings:
    """Return the settings that are recorded, changed by what is asked for.

    Args:
        recorded: Of the index, or None.
        chunk_tokens: Asked for, or None.
        encoding: Asked for, or None.
        text_columns: Asked for, or empty.
        rebuild: Whether what is recorded may change.

    Raises:
        InvalidInputError: An option is not usable, or differs from what is recorded and `rebuild` is false.
    """
    if chunk_tokens is not None:
        check_chunk_tokens(chunk_tokens)
    if encoding is not None:
        encoding = _known_encoding(encoding)
    asked = {"chunk_tokens": chunk_tokens, "encoding": encoding, "text_columns": text_columns or None}
    wanted: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if recorded is not None and not rebuild:
        different = [
            f"{_option(name)} {_shown(getattr(recorded, name))}, and {_shown(value)} is given"
            for name, value in wanted.items()
            if getattr(recorded, name) != value
        ]
        if different:
            raise InvalidInputError(
                f"the index was made with {'; '.join(different)}. Leave that out, or give --rebuild to have all its "
                "files read, cut and embedded again"
            )
    return replace(recorded or FileSettings(), **wanted)


def relative_root(root: Path, store: Path) -> str | None:
    """Return a root as it is recorded."""
    home = store.resolve().parent
    if root == home:
        return None
    if root.anchor != home.anchor:  # on another drive
        return root.as_posix()
    return Path(os.path.relpath(root, home)).as_posix()


def absolute_root(recorded: str | None, store: Path) -> Path:
    """Return the folder that a recorded root means, of an index in a folder."""
    home = store.resolve().parent
    return home if recorded is None else (home / recorded).resolve()


def read_settings(calls: BlockingCalls, collection: str) -> FileSettings | None:
    """Read the settings that a collection records; None where it does not exist, or records none."""
    if not run_now(calls("collection_exists", collection)):
        return None
    info = run_now(calls("get_collection", collection))
    return FileSettings.from_metadata(info.config.metadata)


def record_settings(
    calls: BlockingCalls, collection: str, settings: FileSettings, *, read: FileSettings | None
) -> None:
    """Record settings with a collection that exists.

    Args:
        calls: Of the client.
        collection: Where.
        settings: To be recorded.
        read: What was recorded there when they were chosen, or None.

    Raises:
        StoreError: Others have been recorded since.
    """
    recorded = read_settings(calls, collection)
    if recorded not in (read, settings):
        raise _changed(collection, settings, recorded)
    if recorded != settings:
        run_now(calls("update_collection", collection, metadata=settings.to_metadata()))


def require_recorded(calls: BlockingCalls, collection: str, settings: FileSettings) -> None:
    """Make sure that what was written with settings is what the collection's settings say.

    Raises:
        StoreError: Others have been recorded since.
    """
    recorded = read_settings(calls, collection)
    if recorded != settings:
        raise _changed(collection, settings, recorded)


def _changed(collection: str, settings: FileSettings, recorded: FileSettings | None) -> StoreError:
    now = recorded or FileSettings()
    different = [
        f"{_option(name)} {_shown(getattr(now, name))} instead of {_shown(value)}"
        for name, value in asdict(settings).items()
        if getattr(now, name) != value
    ]
    what = "; ".join(different) or "they are not recorded any more"
    return StoreError(
        f"another run has changed the settings of index {collection!r} meanwhile: {what}. Index these "
        "files again, so that all are read and cut alike"
    )


def _known_encoding(encoding: str) -> str:
    known = text_encoding(encoding)
    if known is None:
        raise InvalidInputError(
            f"--encoding must be one of text that Python knows, such as latin-1, cp1251 or shift_jis, not {encoding!r}"
        )
    return known


def _option(name: str) -> str:
    return "--text-column" if name == "text_columns" else f"--{name.replace('_', '-')}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
