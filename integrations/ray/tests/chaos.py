"""Encoders that go wrong at certain texts; workers import this module by its name."""

import contextlib
import functools
import os
import signal
from pathlib import Path

from hash_encoder import HashEncoder

from pplx_vectorstore.errors import EncodingError


class ChaosEncoder(HashEncoder):
    """Codes are hashes, unless a text says what is to happen.

    "kill once N": the process dies, the first time that this text comes. "kill always": every time. "NaN": an error of
    the document. "bug": an error that is none of the library's.

    Args:
        folder: Remembers what has happened, for all processes.
    """

    def __init__(self, folder):
        super().__init__()
        self._folder = Path(folder)

    def encode_documents(self, documents, *, progress=None):
        for text in [chunk for document in documents for chunk in document]:
            if "kill always" in text or ("kill once" in text and self._is_first(text)):
                os.kill(os.getpid(), signal.SIGKILL)
            if "NaN" in text:
                raise EncodingError(f"the model gave NaN for {text!r}")
            if "bug" in text:
                raise ZeroDivisionError("of a model")
        codes = super().encode_documents(documents, progress=None)
        self.calls.clear()
        if progress is not None:
            n_tokens = sum(len(chunk.split()) for document in documents for chunk in document)
            progress(n_tokens, n_tokens)
        return codes

    def _is_first(self, text):
        with contextlib.suppress(FileExistsError):
            (self._folder / text.replace(" ", "-")).touch(exist_ok=False)
            return True
        return False


def make_chaos(folder):
    """Return the function that a worker makes the encoder with."""
    return functools.partial(ChaosEncoder, str(folder))
