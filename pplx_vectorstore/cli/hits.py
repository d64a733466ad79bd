"""How hits are shown: in a terminal, to other programs line by line, and as JSON."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pplx_vectorstore.documents import Hit
from pplx_vectorstore.excerpts import QueryWords
from pplx_vectorstore.file_ids import find_file, locate_file
from pplx_vectorstore.hit_places import describe_place, line_range
from pplx_vectorstore.terminal import make_console, printable, say, say_json, shows_colours

if TYPE_CHECKING:
    from rich.text import Text

    from pplx_vectorstore.file_records import FileRecords

Score = Literal["cosine", "fused"]
"""What a hit's score is: the cosine, or, of a hybrid search, the sum of ``1 / (rank + 1)`` over both rankings."""

Locate = Callable[[Hit], Path | None]
"""Tells where the file of a hit is; None of a document that is of no file."""

_EXCERPT = 240
# Columns of a terminal; in fewer, words would be taken apart.
_LEAST_OF_A_TABLE = 60
# Legible on light and on dark ground.
_PATH = "magenta"
_WORD = "bold red"


def locate_hit(hit: Hit, records: FileRecords | None) -> Path | None:
    """Return where the file of a hit is, by what is remembered beside an index in a folder."""
    if records is not None:
        return records.locate(hit.document_id, hit.metadata)
    file = locate_file(hit.document_id, hit.metadata)
    return None if file is None else find_file(file)


def show_hits(hits: Sequence[Hit], query: str, score: Score, locate: Locate, *, whole: bool) -> None:
    """Print hits for people: in a terminal with words of the query in colour, else a line each.

    Args:
        hits: The best first.
        query: What was asked.
        score: What their scores are.
        locate: Tells where their files are.
        whole: Whether all of their text is shown, with their context where they have it, as it stands.
    """
    words = QueryWords(query)
    if shows_colours():
        (_print_whole if whole else _print_table)(hits, words, score, locate)
    elif whole:
        for number, hit in enumerate(hits):
            say(f"{_located(hit, 0, locate)}:")
            for line in _text(hit).split("\n"):
                say(line)
            if number < len(hits) - 1:
                say("")
    else:
        for hit in hits:
            start, stop = words.best_part(hit.text, _EXCERPT)
            say(f"{_located(hit, start, locate)}: {_on_one_line(hit.text, start, stop)}")


def show_files(hits: Sequence[Hit], locate: Locate) -> None:
    """Print the files that hits are in, each once."""
    for file in dict.fromkeys(map(locate, hits)):
        if file is not None:
            say(_shortest(file))


def hit_as_json(hit: Hit, score: Score, locate: Locate) -> dict[str, Any]:
    """Return a hit as programs read it."""
    file = locate(hit)
    return {
        "id": hit.id,
        "score": hit.score,
        "score_kind": score,
        "document_id": hit.document_id,
        "chunk_index": hit.chunk_index,
        "chunk_count": hit.chunk_count,
        "file": None if file is None else file.as_posix(),
        "start": hit.start,
        "end": hit.end,
        "lines": line_range(hit),
        "metadata": hit.metadata,
        "text": hit.text,
        **({} if hit.context is None else {"context": hit.context}),
    }


def say_hits_as_lines(hits: Sequence[Hit], query: str, score: Score, locate: Locate) -> None:
    """Print a line of JSON for each hit, with the query and the hit's rank, from 1."""
    for rank, hit in enumerate(hits, 1):
        say_json({"query": query, "rank": rank, **hit_as_json(hit, score, locate)}, indent=None)


def _print_table(hits: Sequence[Hit], words: QueryWords, score: Score, locate: Locate) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = make_console()
    if console.width < _LEAST_OF_A_TABLE:
        for hit in hits:
            start, stop = words.best_part(hit.text, _EXCERPT)
            console.print(_head(hit, score, locate))
            console.print(_highlighted(_on_one_line(hit.text, start, stop), words).append("\n"))
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=False, padding=(0, 1))
    table.add_column(score, no_wrap=True)
    table.add_column("where", overflow="fold", max_width=28)
    table.add_column("text", overflow="fold", ratio=1)
    for hit in hits:
        start, stop = words.best_part(hit.text, _EXCERPT)
        where = Text.assemble(_linked(hit, locate), "\n", printable(describe_place(hit)))
        text = _highlighted(_on_one_line(hit.text, start, stop), words)
        table.add_row(f"{hit.score:.3f}", where, text.append("\n"))
    console.print(table)


def _print_whole(hits: Sequence[Hit], words: QueryWords, score: Score, locate: Locate) -> None:
    console = make_console()
    for hit in hits:
        console.print(_head(hit, score, locate), soft_wrap=True)
        console.print(_highlighted(printable(_text(hit), multiline=True), words).append("\n"), soft_wrap=True)


def _head(hit: Hit, score: Score, locate: Locate) -> Text:
    from rich.text import Text

    place = printable(describe_place(hit))
    return Text.assemble(f"{hit.score:.3f} ({score})  ", _linked(hit, locate), f"  {place}")


def _highlighted(text: str, words: QueryWords) -> Text:
    from rich.text import Text

    shown = Text(text)
    for match in words.find(text):
        shown.stylize(_WORD, match.start, match.stop)
    return shown


def _linked(hit: Hit, locate: Locate) -> Text:
    """Return a hit's name, as a link to its file where the terminal can open that."""
    from rich.style import Style
    from rich.text import Text

    file = locate(hit)
    # As a URI, whatever its name holds is escaped.
    link = file.as_uri() if file is not None and file.is_absolute() else None
    return Text(printable(_name(hit, locate)), style=Style.parse(_PATH) + Style(link=link))


def _on_one_line(text: str, start: int, stop: int) -> str:
    """Return a part of a text on one line, with an ellipsis where a sentence is cut."""
    part = printable(" ".join(text[start:stop].split()))
    before, after = text[:start].rstrip(" \t")[-1:], text[stop:].lstrip(" \t")[:1]
    cut_before = bool(before) and before not in _ENDS
    cut_after = bool(after) and after != "\n" and part[-1:] not in _ENDS
    return f"{'… ' if cut_before else ''}{part}{' …' if cut_after else ''}"


_ENDS = "\n.!?…。！？\"'”’)]」』）"


def _text(hit: Hit) -> str:
    return hit.text if hit.context is None else hit.context


def _located(hit: Hit, start: int, locate: Locate) -> str:
    """Return the name of a hit's document with where in it the text is: ``path:line`` or ``path (page 3)``."""
    lines = line_range(hit)
    name = _name(hit, locate)
    if lines is None:
        return f"{name} ({describe_place(hit)})"
    line = lines[0] + hit.text.count("\n", 0, start)
    return f"{name}:{line}"


def _name(hit: Hit, locate: Locate) -> str:
    """Return the path of a hit's file; else its document's id."""
    file = locate(hit)
    return hit.document_id if file is None else _shortest(file)


def _shortest(file: Path) -> str:
    """Return the shorter of a file's absolute path and that from the current folder."""
    return min(_spellings(file), key=len)


def _spellings(file: Path) -> Iterator[str]:
    yield file.as_posix()
    # There is no way from the current folder where that is gone, or on another drive.
    with contextlib.suppress(FileNotFoundError, ValueError):
        yield Path(os.path.relpath(file)).as_posix()
