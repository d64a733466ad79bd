"""Jupyter notebooks → Markdown: what was written, and what cells printed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers.content import Blocks, Content, ReaderOptions
from pplx_vectorstore.readers.plain import decode

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,[A-Za-z0-9+/=]*", re.ASCII)
_MOST_OUTPUT = 2_000
_MOST_CHARACTERS_OF_A_LANGUAGE = 40


def read_notebook(data: bytes, options: ReaderOptions) -> Content:
    """Read an .ipynb file of format 3 or 4: Markdown as it is, code fenced, and text that was printed.

    Pictures, tables as HTML and other rich outputs have a text form beside them or say nothing. Of a long output, the
    beginning is kept, and that it was longer is noted. Chunks know their cells, counted from 1.

    Raises:
        UnreadableFileError: It is no notebook.
    """
    text, _ = decode(data, options)
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"is a notebook whose JSON is broken ({error})") from error
    cells = _cells(notebook)
    if cells is None:
        raise UnreadableFileError("is no notebook: it has no list of cells")
    language = _language(notebook)
    blocks = Blocks()
    shortened = []
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict):
            continue
        source = _joined(cell.get("source", cell.get("input", "")))
        kind = cell.get("cell_type")
        if kind == "code":
            parts = [_fenced(source, language)] if source.strip() else []
            outputs = "\n".join(filter(None, _outputs(cell)))
            if len(outputs) > _MOST_OUTPUT:
                shortened.append(number)
                outputs = outputs[:_MOST_OUTPUT]
            parts += [_fenced(outputs, "")] if outputs else []
            blocks.add("\n\n".join(parts), {"cell": number})
        elif kind == "heading":  # of format 3
            level = cell.get("level")
            signs = "#" * (level if type(level) is int and 1 <= level <= 6 else 1)
            blocks.add(f"{signs} {' '.join(source.split())}", {"cell": number})
        else:
            blocks.add(_DATA_URI.sub("", source), {"cell": number})
    notes = [f"has long outputs, which were shortened: of cells {', '.join(map(str, shortened))}"] if shortened else []
    return Content(text=blocks.text, format="markdown", anchors=blocks.anchors, notes=notes)


def _cells(notebook: Any) -> list[Any] | None:
    if not isinstance(notebook, dict):
        return None
    if isinstance(notebook.get("cells"), list):
        return list(notebook["cells"])
    sheets = notebook.get("worksheets")
    if not isinstance(sheets, list):
        return None
    return [
        cell
        for sheet in sheets
        if isinstance(sheet, dict) and isinstance(sheet.get("cells"), list)
        for cell in sheet["cells"]
    ]


def _outputs(cell: dict[str, Any]) -> Iterator[str]:
    outputs = cell.get("outputs")
    for output in outputs if isinstance(outputs, list) else []:
        if not isinstance(output, dict):
            continue
        rich = output.get("data")
        text = output.get("text") or (rich.get("text/plain") if isinstance(rich, dict) else None)
        if output.get("output_type") in ("error", "pyerr"):
            text = f"{output.get('ename', '')}: {output.get('evalue', '')}"
        yield _COLOURS.sub("", _joined(text)).strip("\n")


def _joined(source: Any) -> str:
    """Return a text that is written as one string, or as its lines."""
    if isinstance(source, list):
        return "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""


def _language(notebook: dict[str, Any]) -> str:
    about = notebook.get("metadata")
    for key in ("language_info", "kernelspec"):
        found = about.get(key) if isinstance(about, dict) else None
        name = found.get("name" if key == "language_info" else "language") if isinstance(found, dict) else None
        if isinstance(name, str) and name.isalnum() and len(name) <= _MOST_CHARACTERS_OF_A_LANGUAGE:
            return name
    return "python"


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"
