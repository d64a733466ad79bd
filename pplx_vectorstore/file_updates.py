"""Bringing an index up to date with files, step by step, as the command line and agents do it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pplx_vectorstore.file_ids import name_file
from pplx_vectorstore.file_reading import Reading
from pplx_vectorstore.file_records import way_of_reading
from pplx_vectorstore.files import Names, find_emptied, find_gone, find_names, find_unchanged
from pplx_vectorstore.readers import ReaderOptions
from pplx_vectorstore.walking import EMPTY

if TYPE_CHECKING:
    from pplx_vectorstore.chunking import Chunker
    from pplx_vectorstore.file_records import FileRecord, FileRecords
    from pplx_vectorstore.file_settings import FileSettings
    from pplx_vectorstore.reports import SyncReport
    from pplx_vectorstore.store import VectorStore
    from pplx_vectorstore.walking import Walk


class FileUpdate:
    """What becomes of some files in an index.

    Names are chosen first; where files turn out to be unchanged, they are not read. Only `write` needs a model. What
    the index still holds of files that are empty or gone is found at the end, for whoever may delete it.

    Args:
        found: The files. Unchanged ones are taken out, and those that cannot be read are noted.
        settings: How they are read and cut.
        root: What the ids of new ones are relative to, as for `find_names`.
        records: What is remembered of them; None of an index on a server.

    Attributes:
        files: All of them, unchanged or not.
        names: What they are called; None until that is chosen.
        unchanged: File → id of its document, and what is to be remembered of it.
        reading: Reads the others; None until `read`.
    """

    def __init__(self, found: Walk, settings: FileSettings, *, root: Path | None, records: FileRecords | None) -> None:
        self.files = [file.path for file in found.files]
        self.names: Names | None = None
        self.unchanged: dict[Path, tuple[str, FileRecord]] = {}
        self.reading: Reading | None = None
        self._found = found
        self._settings = settings
        self._root = root
        self._records = records
        self._way = way_of_reading(settings)

    @property
    def emptied(self) -> list[Path]:
        """Files that hold nothing; after they were read, also those of blanks."""
        return self._found.left_out.get(EMPTY, [])

    @property
    def ids(self) -> set[str]:
        """Ids of the files' documents; names must be chosen."""
        return {name_file(file, root) for file, root in self._named.roots.items()}

    def choose_names(self, opened: VectorStore | None) -> Names:
        """Choose what the files are called, if that is not done: in a store, or of None in a new one."""
        if self.names is None:
            new = Names(dict.fromkeys(self.files, self._root))
            self.names = new if opened is None else find_names(opened, self.files, self._root)
        return self.names

    def leave_out_unchanged(self, opened: VectorStore) -> None:
        """Leave out the files that hold what was read before, where the store has what that gave."""
        names = self.choose_names(opened)
        if self._records is not None:
            self.unchanged = find_unchanged(opened, self._found.files, names, self._records, self._way)
            self._found.files = [file for file in self._found.files if file.path not in self.unchanged]

    def read(self, chunker: Chunker, *, password: str | None = None) -> Reading:
        """Return what reads the files, one by one; names must be chosen."""
        options = ReaderOptions(
            encoding=self._settings.encoding, password=password, text_columns=self._settings.text_columns
        )
        self.reading = Reading(self._found, self._named.roots, chunker, options)
        return self.reading

    def write(self, opened: VectorStore, *, progress: bool = False) -> SyncReport:
        """Embed and write what is new or changed of what `read` returned."""
        assert self.reading is not None
        self.reading.remember(opened.fingerprint, self._way)
        report = opened.sync(self.reading, progress=progress)
        return replace(report, unchanged_documents=report.unchanged_documents + len(self.unchanged))

    def find_emptied(self, opened: VectorStore) -> list[str]:
        """Find the documents of files that hold nothing any more."""
        return find_emptied(opened, self.emptied, self._root)

    def find_gone(self, opened: VectorStore, paths: Sequence[Path]) -> list[str]:
        """Find the documents of files that were indexed from below these paths, and are there no longer."""
        return find_gone(opened, paths, self.files, self._root)

    def remember(self, forgotten: Iterable[str], *, anew: bool = False) -> None:
        """Remember what was read, for the next time.

        Args:
            forgotten: Ids of documents that were deleted.
            anew: Whether all that was remembered of other files is forgotten.
        """
        if self._records is not None:
            read = {} if self.reading is None else self.reading.records
            self._records.save({**dict(self.unchanged.values()), **read}, forgotten, anew=anew)

    @property
    def _named(self) -> Names:
        assert self.names is not None
        return self.names
