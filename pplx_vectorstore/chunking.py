"""Text → chunks at sentence, paragraph, heading or syntax boundaries, with character offsets."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pplx_vectorstore.documents import Chunk, clean_text, is_blank
from pplx_vectorstore.errors import InvalidInputError

if TYPE_CHECKING:
    from semantic_text_splitter import CodeSplitter, MarkdownSplitter, TextSplitter
    from tokenizers import Tokenizer

    Splitter = CodeSplitter | MarkdownSplitter | TextSplitter

DEFAULT_CHUNK_TOKENS = 256

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
        return [
            Chunk(text=piece, start=start, end=start + len(piece))
            for start, piece in self._splitters[format].chunk_indices(text)
            if not is_blank(piece)  # the splitter does not count separators such as U+001F as white space
        ]

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
