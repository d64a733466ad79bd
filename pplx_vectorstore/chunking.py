"""Text → chunks at sentence, paragraph, heading or syntax boundaries, with character offsets."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pplx_vectorstore.documents import Chunk, clean_text, is_blank
from pplx_vectorstore.errors import InvalidInputError

if TYPE_CHECKING:
    from semantic_text_splitter import CodeSplitter, MarkdownSplitter, TextSplitter
    from tokenizers import Tokenizer

    Splitter = CodeSplitter | MarkdownSplitter | TextSplitter
    Piece = tuple[int, str]
    Span = tuple[int, int]

DEFAULT_CHUNK_TOKENS = 256

# For each chunk, the splitter looks through all that follows: the next paragraph, sentence or word may end anywhere. So
# it is given windows. Texts that fit one are cut as they would be without windows. Characters per token of a chunk:
_WINDOW = 256
_LONG_LINE = 96
_WINDOW_IN_LONG_LINE = 16  # smaller: where there is no boundary, the splitter also tokenizes all that follows
_LEAST_TOKENS = DEFAULT_CHUNK_TOKENS  # smaller chunks get the windows of these

_LINE = re.compile(r"[^\r\n]+")
_WORD = re.compile(r"\w")
_MARKS = re.compile(r"^[ \t]*(?:```|~~~).*$|<!--[^>]*-->", re.MULTILINE)
# A window best starts where no structure of the format is open: after an empty line, with what is no list, quote or
# indented block, and after as many of the marks that open as of those that close, which look alike.
_TOP_LEVEL = re.compile(r"[\w#@]")
_PAIRED_MARKS = ("```", "~~~", '"""', "'''")

# Language → the module of its grammar and the function in it.
GRAMMARS = {
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "go": ("tree_sitter_go", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "python": ("tree_sitter_python", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}


def check_chunk_tokens(chunk_tokens: int) -> None:
    """Refuse a chunk size that is not a positive whole number.

    Raises:
        InvalidInputError: Says what came.
    """
    if not isinstance(chunk_tokens, int) or isinstance(chunk_tokens, bool) or chunk_tokens < 1:
        raise InvalidInputError(f"chunk_tokens must be a whole number of at least 1, not {chunk_tokens!r}")


class Chunker:
    """Cuts text into chunks of at most so many tokens, as large as fit, at the best boundary there is.

    Args:
        tokenizer: Counts tokens; the encoder's own.
        chunk_tokens: Most tokens of a chunk, at least 1. (A special token spelled out in the text
            counts as one here, though it is embedded as the characters it is written with.)

    Raises:
        InvalidInputError: `chunk_tokens` is not a positive whole number.
    """

    def __init__(self, tokenizer: Tokenizer, chunk_tokens: int = DEFAULT_CHUNK_TOKENS) -> None:
        check_chunk_tokens(chunk_tokens)
        self.chunk_tokens = chunk_tokens
        self._tokenizer = tokenizer
        self._splitters: dict[str, Splitter] = {}

    def split(self, text: str, format: str = "text") -> list[Chunk]:  # noqa: A002 - the field's name in Document
        """Cut a text.

        Args:
            text: The whole text.
            format: "text", "markdown" or a programming language. A language whose grammar is not
                known or not installed (extra ``code``) is cut as text.

        Returns:
            Chunks in order; ``text[chunk.start:chunk.end] == chunk.text``, and only white space lies
            between them. Blank text gives none.
        """
        text = clean_text(text, "text")  # which keeps every offset
        if format not in self._splitters:
            self._splitters[format] = self._make_splitter(format)
        # The splitter does not count separators such as U+001F as white space.
        pieces = [piece for piece in self._cut(text, self._splitters[format]) if not is_blank(piece[1])]
        return [Chunk(text=text[start:stop], start=start, end=stop) for start, stop in self._join_marks(text, pieces)]

    def _join_marks(self, text: str, pieces: list[Piece]) -> list[Span]:
        """Put what is but marks, such as the fence of a code block or a comment, with a neighbour."""
        spans: list[Span] = []
        joined = False
        for i, (start, piece) in enumerate(pieces):
            if joined:  # into this one, with what was before
                joined = False
                spans[-1] = (spans[-1][0], start + len(piece))
                continue
            stop = start + len(piece)
            if not _WORD.search(_MARKS.sub("", piece)):
                following = pieces[i + 1] if i + 1 < len(pieces) else None
                if spans and self._fits(text[spans[-1][0] : stop]):
                    spans[-1] = (spans[-1][0], stop)
                    continue
                joined = following is not None and self._fits(text[start : following[0] + len(following[1])])
                if spans and not joined:
                    start = self._take_a_line(text, spans, start, stop)
            spans.append((start, stop))
        return spans

    def _take_a_line(self, text: str, spans: list[Span], start: int, stop: int) -> int:
        """Take the last line from the chunk before, where that leaves something; return where the next one starts."""
        first, last = spans[-1]
        end = text.rfind("\n", first, last)
        if end < 0 or not text[first:end].strip() or not self._fits(text[end + 1 : stop]):
            return start
        spans[-1] = (first, first + len(text[first:end].rstrip()))
        return stop - len(text[end + 1 : stop].lstrip())

    def _fits(self, text: str) -> bool:
        return len(self._tokenizer.encode(text, add_special_tokens=False)) <= self.chunk_tokens

    def _cut(self, text: str, splitter: Splitter) -> Iterator[Piece]:
        """Cut a text in time that grows as its length does; pieces as the splitter's own."""
        tokens = max(self.chunk_tokens, _LEAST_TOKENS)
        done = 0
        for line in _LINE.finditer(text):
            start, stop = line.span()
            if stop - start > _LONG_LINE * tokens:
                yield from _cut_in_windows(text, done, start, splitter, _WINDOW * tokens)
                yield from _cut_in_windows(text, start, stop, splitter, _WINDOW_IN_LONG_LINE * tokens)
                done = stop
        yield from _cut_in_windows(text, done, len(text), splitter, _WINDOW * tokens)

    def _make_splitter(self, format: str) -> Splitter:  # noqa: A002
        from semantic_text_splitter import CodeSplitter, MarkdownSplitter, TextSplitter

        if format == "markdown":
            return MarkdownSplitter.from_huggingface_tokenizer(self._tokenizer, self.chunk_tokens)
        if format in GRAMMARS:
            module, function = GRAMMARS[format]
            try:
                language = getattr(importlib.import_module(module), function)()
            except ImportError:
                pass  # documented: without the grammar, code is cut as text
            else:
                return CodeSplitter.from_huggingface_tokenizer(language, self._tokenizer, self.chunk_tokens)
        return TextSplitter.from_huggingface_tokenizer(self._tokenizer, self.chunk_tokens)


def _cut_in_windows(text: str, start: int, stop: int, splitter: Splitter, size: int) -> Iterator[Piece]:
    """Cut ``text[start:stop]`` in windows of so many characters, or more where a piece is that long."""
    window_size = size
    while start < stop:
        window = text[start : min(start + window_size, stop)]
        pieces = splitter.chunk_indices(window)
        is_last = start + len(window) == stop
        kept = len(pieces) if is_last else _choose_seam(window, pieces)
        yield from ((start + at, piece) for at, piece in pieces[:kept])
        if is_last:
            return
        if kept:
            start += pieces[kept][0]
            window_size = max(size, window_size // 2)
        else:
            window_size *= 2


def _choose_seam(window: str, pieces: list[Piece]) -> int:
    """Return how many pieces of a window to keep; the next window starts with the piece after them.

    The last two are not kept: with more text, they might end elsewhere.
    """
    last = max(len(pieces) - 2, 0)
    for kept in range(last, 0, -1):
        (before, piece), (at, _) = pieces[kept - 1 : kept + 1]
        if at < len(window) // 2:
            break
        gap = window[before + len(piece) : at]
        if (
            len(gap.splitlines()) > 1
            and gap[-1] in "\r\n"
            and _TOP_LEVEL.match(window, at)
            and all(window.count(mark, 0, at) % 2 == 0 for mark in _PAIRED_MARKS)
        ):
            return kept
    return last
