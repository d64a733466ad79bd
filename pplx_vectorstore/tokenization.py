"""Text → token ids, with nothing added, cut off or parsed as a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pplx_vectorstore.documents import clean_text, is_blank
from pplx_vectorstore.errors import ModelFileError
from pplx_vectorstore.windows import TokenIds

# A tokenizer's result object takes some hundred bytes a token; slices keep that off the peak.
_TEXTS_AT_ONCE = 512


class ChunkTokenizer:
    """A model's tokenizer, set up so that text stays text.

    Truncation and padding are off, and special tokens within text are encoded as the characters they
    are written with: a chunk that mentions ``<|endoftext|>`` is not split by it.

    Args:
        tokenizer: The model's tokenizer; its settings are changed in place.

    Attributes:
        tokenizer: The same object, e.g. for sizing chunks.
        prefix_ids: int64 ids that the model expects at the start of a sequence (``[CLS]``), maybe none.
        suffix_ids: int64 ids at its end (``[SEP]``), maybe none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        # The published MiniLM tokenizer cuts at 128 tokens and pads: text would be lost in silence.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        framed = tokenizer.encode("a", add_special_tokens=True).ids
        at = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), None)
        if at is None or not bare:
            raise ModelFileError("the tokenizer changes text when it adds its special tokens")
        self.prefix_ids: TokenIds = np.array(framed[:at], dtype=np.int64)
        self.suffix_ids: TokenIds = np.array(framed[at + len(bare) :], dtype=np.int64)

    def __reduce__(self) -> tuple[type[ChunkTokenizer], tuple[Tokenizer]]:
        """Pickle so that the settings, which a Tokenizer does not keep, are made again."""
        return ChunkTokenizer, (self.tokenizer,)

    @classmethod
    def from_folder(cls, folder: Path) -> ChunkTokenizer:
        """Load ``tokenizer.json`` of a checkpoint.

        Raises:
            ModelFileError: The file is missing or not a tokenizer.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelFileError(f"{folder} holds no tokenizer.json; a checkpoint needs one")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelFileError(f"{path} is not a usable tokenizer: {error}") from error
        return cls(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Tokenize texts, several at a time in parallel.

        Args:
            texts: Any strings; lone surrogates count as U+FFFD.

        Returns:
            One int64 array per text, without special tokens; empty for a blank text.
        """
        ids: list[TokenIds] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            cleaned = [clean_text(text, "a chunk") for text in texts[start : start + _TEXTS_AT_ONCE]]
            inputs = ["" if is_blank(text) else text for text in cleaned]
            encodings = self.tokenizer.encode_batch_fast(inputs, add_special_tokens=False)
            ids.extend(np.array(encoding.ids, dtype=np.int64) for encoding in encodings)
        return ids

    @property
    def largest_id(self) -> int:
        """The largest id that it can give."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    def token_id(self, token: str) -> int:
        """Look up a token of the vocabulary.

        Raises:
            ModelFileError: The vocabulary has no such token.
        """
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ModelFileError(f"the tokenizer has no token {token!r}, which the model needs between chunks")
        return int(found)
