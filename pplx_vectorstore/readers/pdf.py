"""PDF → text, page after page, by a program that may fail without harm."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pplx_vectorstore.errors import MissingExtraError, UnreadableFileError
from pplx_vectorstore.readers import pdf_program
from pplx_vectorstore.readers.content import Blocks, Content, ReaderOptions
from pplx_vectorstore.readers.plain import EXTRA

MOST_BYTES = 1 << 30
"""Memory that reading a file may take, the program's own included."""

MOST_SECONDS = 60.0
"""That one page may take, or opening the file."""

_MOST_SECONDS_OF_A_FILE = 600.0
_MOST_RESTARTS = 10
_MOST_PAGES = 100_000
_MOST_COMPLAINTS = 1 << 20
# A hyphen at the end of a line, as the engine has it, and the line end where it kept that.
_HYPHEN = re.compile("[\ufffe\u0002](?:\r?\n)?")
_NOT_TEXT = re.compile("[\0\uffff]")


@dataclass(slots=True)
class _Pages:
    """What is known of a file's pages so far.

    Attributes:
        count: How many it says that it has; None while it was not opened.
        texts: Page, from 0 → its text.
        failures: Page → why it could not be read.
        scans: Pages that show something, and have no text.
        begun: The page that is being read.
    """

    count: int | None = None
    texts: dict[int, str] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    scans: list[int] = field(default_factory=list)
    begun: int | None = None


def read_pdf(data: bytes, options: ReaderOptions) -> Content:
    """Read the text layer of a PDF; chunks know their pages, and pages that cannot be read are named.

    Raises:
        UnreadableFileError: It is broken, needs a password, holds no text, or the extra is missing.
    """
    pages = _read_pages(data, options)
    blocks = Blocks()
    for index in sorted(pages.texts):
        blocks.add(_clean(pages.texts[index]), {"page": index + 1})
    losses = [f"{_numbers(failed)} could not be read ({reason})" for reason, failed in _by_reason(pages.failures)]
    if not blocks.text:
        reason = f"; {losses[0]}" if losses else ""
        raise UnreadableFileError(
            f"holds no text{' (a scan?): run a text recognition on it first' if pages.scans else ''}{reason}"
        )
    if pages.scans:
        losses.append(f"{_numbers(pages.scans)} hold{'' if len(pages.scans) > 1 else 's'} no text (scans?)")
    return Content(text=blocks.text, anchors=blocks.anchors, losses=losses)


def _read_pages(data: bytes, options: ReaderOptions) -> _Pages:
    """Read all pages; after one that ends the program, with the next."""
    found = importlib.util.find_spec("pypdfium2")
    if found is None or found.origin is None:
        raise UnreadableFileError(str(MissingExtraError("reading PDF", EXTRA)))
    pages = _Pages()
    first = 0
    until = time.monotonic() + _MOST_SECONDS_OF_A_FILE
    for _ in range(_MOST_RESTARTS):
        pages.begun = None
        failure = _run(data, options, first, pages, until)
        if failure is None:
            return pages
        if pages.begun is None:
            raise UnreadableFileError(f"is a PDF that cannot be read ({failure})")
        pages.failures[pages.begun] = failure
        first = pages.begun + 1
        if pages.count is None or first >= pages.count or time.monotonic() > until:
            break
    for index in range(first, min(pages.count or 0, _MOST_PAGES)):
        pages.failures.setdefault(index, "too many pages before could not be read, or took too long")
    return pages


def _run(data: bytes, options: ReaderOptions, first: int, pages: _Pages, until: float) -> str | None:
    """Run the program once; return why it ended before it was done, or None."""
    request = {
        "path": [folder for folder in sys.path if folder],
        "most_bytes": MOST_BYTES,
        "most_seconds": int(_MOST_SECONDS_OF_A_FILE),
        "password": options.password,
        "first": first,
    }
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            [sys.executable, "-I", "-S", str(pdf_program.__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,  # Ctrl-C is for its parent
        ) as process,
    ):
        watch = _Watch(process, until)
        try:
            _send(process, json.dumps(request).encode() + b"\n" + data)
            for message in _messages(process):
                watch.renew()
                _take(message, pages, options)
                if pages.count is not None and pages.count > _MOST_PAGES:
                    raise UnreadableFileError(f"is a PDF with {pages.count:,} pages; at most {_MOST_PAGES:,} are read")
        finally:
            watch.stop()
            process.kill()
        code = process.wait()
        if watch.has_ended_it:
            return f"it took more than {MOST_SECONDS:.0f} seconds"
        if pages.begun is None and pages.count is not None:
            return None
        complaints.seek(0)
        return _reason(code, complaints.read(_MOST_COMPLAINTS).decode(errors="replace"))


class _Watch:
    """Ends a process that says nothing for too long."""

    def __init__(self, process: subprocess.Popen[bytes], until: float) -> None:
        self.has_ended_it = False
        self._process = process
        self._until = until
        self._renewed = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Note that it has said something."""
        self._renewed = time.monotonic()

    def stop(self) -> None:
        """End watching."""
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(min(1.0, MOST_SECONDS / 10)):
            now = time.monotonic()
            if now - self._renewed > MOST_SECONDS or now > self._until:
                self.has_ended_it = True
                self._process.kill()
                return


def _send(process: subprocess.Popen[bytes], data: bytes) -> None:
    pipe = process.stdin
    assert pipe is not None
    try:
        pipe.write(data)
        pipe.close()
    except BrokenPipeError:
        return  # it has ended, and its exit code says why


def _messages(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    pipe = process.stdout
    assert pipe is not None
    for line in pipe:
        if line.endswith(b"\n"):  # else it was ended within
            yield json.loads(line)


def _take(message: dict[str, Any], pages: _Pages, options: ReaderOptions) -> None:
    if "pages" in message:
        pages.count = message["pages"]
    elif "begun" in message:
        pages.begun = message["begun"]
    elif "page" in message:
        index = message["page"]
        pages.begun = None
        if "error" in message:
            pages.failures[index] = message["error"]
        else:
            pages.texts[index] = message["text"]
            if message["is_scan"]:
                pages.scans.append(index)
    elif "assword" in message["error"]:
        wrong = ", and the one that was given is not it" if options.password else ""
        raise UnreadableFileError(f"is a PDF with a password{wrong}; give it with --password")
    else:
        raise UnreadableFileError(f"is a PDF that cannot be read ({message['error']})")


def _reason(code: int, complaints: str) -> str:
    lines = complaints.strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the program that reads it {ended}{said}; it may take more than {MOST_BYTES:,} bytes of memory"


def _clean(text: str) -> str:
    return _NOT_TEXT.sub("", _HYPHEN.sub("", text)).replace("\r\n", "\n").replace("\r", "\n").strip()


def _by_reason(failures: dict[int, str]) -> Iterator[tuple[str, list[int]]]:
    for reason in dict.fromkeys(failures.values()):
        yield reason, sorted(index for index, why in failures.items() if why == reason)


def _numbers(indexes: list[int]) -> str:
    """Say which pages: ``page 3``, ``pages 3-5, 8``."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and index == runs[-1][-1] + 1:
            runs[-1][1:] = [index]
        else:
            runs.append([index])
    shown = ", ".join("-".join(str(index + 1) for index in run) for run in runs[:10])
    more = f" and {len(runs) - 10} more ranges" if len(runs) > 10 else ""
    return f"page{'s' if len(indexes) > 1 else ''} {shown}{more}"
