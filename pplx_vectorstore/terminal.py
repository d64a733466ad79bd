"""What reaches a terminal: lines, JSON, errors and warnings, without anything that a terminal would obey.

Names, texts, settings and messages come from files, stores, models and servers, which may be anybody's. A terminal
obeys control characters (it moves the cursor, renames its window, hides lines) and format characters (which turn the
order of what follows), so that what is shown need not be what is there. Whatever the command line prints passes
`printable`, and nothing else prints.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import re
import shutil
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from pplx_vectorstore.errors import PplxVectorStoreError

if TYPE_CHECKING:
    from rich.console import Console

# Controls (C0, C1, DEL), format characters (bidirectional overrides, invisible ones, tags), lone surrogates, and
# separators of lines and paragraphs.
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Format characters that words of Persian, Indic scripts and emoji are written with, and marks that are seen.
_WRITTEN = frozenset(
    "\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
_REPLACEMENT = "\ufffd"
# A byte that is no text, as a path has it.
_UNDECODED = re.compile("([\udc80-\udcff])")
# A stream whose encoding is one of these can show everything.
_WHOLE = re.compile(r"utf-?(8|16|32)", re.IGNORECASE)
_GONE = "the current folder is gone; change to one that exists, or name all folders and files from the root"
# Set to see where an unexpected error comes from.
_DEBUG = "PPLX_VECTORSTORE_DEBUG"


def printable(text: str, *, multiline: bool = False) -> str:
    r"""Return a text with U+FFFD for every character that a terminal would obey instead of showing.

    Args:
        text: Anything.
        multiline: Whether line ends and tabs stay, as in a text that is shown whole; else they are replaced
            too, since a line break within a name would let it write lines of its own.

    >>> printable("\x1b[2Jcats\u202e.md\n") == "\ufffd[2Jcats\ufffd.md\ufffd"
    True
    """
    if text.isprintable():
        return text
    if not multiline:
        return "".join(map(_shown, text))
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.replace("\r\n", "\n").split("\n"))


@functools.lru_cache(maxsize=4096)
def _shown(character: str) -> str:
    is_obeyed = character not in _WRITTEN and unicodedata.category(character) in _OBEYED
    return _REPLACEMENT if is_obeyed else character


def say(line: str) -> None:
    """Print a line on standard output.

    In a terminal, bytes of a file's name that are no text (`os.fsdecode`) are replaced as well; a program gets them as
    they are, else it could not open the file.
    """
    if sys.stdout is None or sys.stdout.isatty() or not _UNDECODED.search(line):
        typer.echo(printable(line))
        return
    encoding = sys.stdout.encoding or "utf-8"
    parts = enumerate(_UNDECODED.split(line))
    typer.echo(
        b"".join(os.fsencode(part) if at % 2 else printable(part).encode(encoding, "replace") for at, part in parts)
    )


def say_json(value: Any, *, indent: int | None = 2) -> None:
    """Print JSON for programs on standard output.

    Args:
        value: Anything that JSON can hold.
        indent: Spaces a level, or None for one line. What a terminal would obey stands as escapes; and so does all
            that is not ASCII where the stream could not show it.
    """
    is_whole = _WHOLE.match(getattr(sys.stdout, "encoding", None) or "") is not None
    written = json.dumps(value, indent=indent, ensure_ascii=not is_whole)
    lines = (line if line.isprintable() else "".join(map(_escaped, line)) for line in written.split("\n"))
    typer.echo("\n".join(lines))


@functools.lru_cache(maxsize=4096)
def _escaped(character: str) -> str:
    if _shown(character) == character:
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


class Messages:
    """What a command says beside its results, on standard error.

    Args:
        console: Where it says that; by default, standard error.
        quiet: Whether notes and progress are left out.
        verbose: Whether details are told.

    Attributes:
        quiet: As given.
        verbose: As given.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False, verbose: bool = False) -> None:
        self._console = console
        self.quiet = quiet
        self.verbose = verbose

    @property
    def console(self) -> Console:
        """The console, made when it is needed first: rich takes its time to be imported."""
        if self._console is None:
            self._console = make_console(stderr=True)
        return self._console

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but lines of text to be written."""
        return self._console is None and (sys.stderr is None or not (sys.stderr.isatty() or _forced()))

    def print(self, text: str, style: str) -> None:
        """Print lines that are clean already; where nobody can read them, the command goes on without."""
        with contextlib.suppress(OSError):
            if self.is_plain:
                typer.echo(text, err=True)
                return
            from rich.text import Text

            # As a Text, so that brackets and colons in it are no markup.
            self.console.print(Text(text, style=style), soft_wrap=True)


def make_console(*, stderr: bool = False) -> Console:
    """Return what draws in a terminal: on standard output, or on standard error."""
    from rich.console import Console

    class OurConsole(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to `reported_errors`; rich would end the process with an exit code of its own."""
            raise BrokenPipeError

    # Of a terminal that knows no colours, rich takes the width for 80, whatever it is.
    is_dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    width, height = shutil.get_terminal_size() if is_dumb else (None, None)
    return OurConsole(stderr=stderr, width=width, height=height)


def _forced() -> bool:
    """Tell whether rich was asked to take what is no terminal for one."""
    return bool(os.environ.get("FORCE_COLOR") or os.environ.get("TTY_COMPATIBLE"))


def shows_colours() -> bool:
    """Tell whether standard output is a terminal, or to be taken for one."""
    if sys.stdout is None or os.environ.get("TTY_COMPATIBLE") == "0":
        return False
    return sys.stdout.isatty() or _forced()


def complain(messages: Messages, line: str, style: str = "") -> None:
    """Print a line on standard error; white space, line ends too, becomes single spaces."""
    messages.print(printable(" ".join(line.split())), style)


def note(messages: Messages, line: str, style: str = "") -> None:
    """Print what the user may want to know, on standard error, unless they do not."""
    if not messages.quiet:
        complain(messages, line, style)


def busy(messages: Messages, what: str) -> contextlib.AbstractContextManager[Any]:
    """Show what is being done while the block runs, if there is a terminal."""
    if messages.quiet or messages.is_plain or not messages.console.file.isatty():
        return contextlib.nullcontext()
    from rich.text import Text

    return messages.console.status(Text(printable(what)))


def run_app(app: typer.Typer) -> None:
    """Run the command line, and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console of another encoding must not end the command
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "show"):  # wrong usage; typer has the classes of click under no public name
            raise
        shown = io.StringIO()
        error.show(shown)
        typer.echo(printable(shown.getvalue(), multiline=True), err=True, nl=False)
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def reported_errors(*, code: int = 1, quiet: bool = False, verbose: bool = False) -> Iterator[Messages]:
    """Turn errors into one line on standard error and an exit code, and Ctrl-C into 130.

    Args:
        code: The exit code of errors.
        quiet: Whether the block leaves out notes and progress.
        verbose: Whether it tells details.
    """
    messages = Messages(quiet=quiet, verbose=verbose)
    try:
        with _clean_warnings(messages), _clean_logs():
            yield messages
    except BrokenPipeError as error:  # whoever read the output has what they wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(0) from error
    except (PplxVectorStoreError, OSError) as error:
        notes = getattr(error, "__notes__", [])
        reason = _GONE if _lacks_current_folder(error) else str(error)
        complain(messages, f"error: {' '.join([reason, *notes])}", "red")
        raise typer.Exit(code) from error
    except KeyboardInterrupt as error:
        complain(messages, "interrupted: what was written stays usable; run the same command again to complete it")
        raise typer.Exit(130) from error
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if os.environ.get(_DEBUG):
            messages.print(printable(traceback.format_exc(), multiline=True), "")
        reason = f"{type(error).__name__}: {error}"
        complain(messages, f"error: unexpected {reason} (set {_DEBUG}=1 to see where)", "red")
        raise typer.Exit(code) from error


def _lacks_current_folder(error: Exception) -> bool:
    """Tell whether an error, which then names no file, is that the current folder was deleted."""
    if not isinstance(error, FileNotFoundError) or error.filename is not None:
        return False
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


@contextlib.contextmanager
def _clean_warnings(messages: Messages) -> Iterator[None]:
    """Print the warnings of the block as lines of ours."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        complain(messages, f"warning: {message}", "yellow")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _clean_logs() -> Iterator[None]:
    """Clean what libraries log within the block, whoever prints it."""
    make = logging.getLogRecordFactory()

    def make_clean(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        record.msg, record.args = printable(record.getMessage(), multiline=True), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = printable("".join(traceback.format_exception(*record.exc_info)), multiline=True).rstrip()
        return record

    logging.setLogRecordFactory(make_clean)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)
