"""An encoder without a model: codes are hashes, so that tests of a store need no torch.

A plain module, so that a subprocess can use it too: put this folder on ``sys.path`` and
``from hash_encoder import make_encoder``.
"""

import hashlib
import json

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.equal_norms import quantize_to_norm
from pplx_vectorstore.models import ModelSpec
from pplx_vectorstore.tokenization import ChunkTokenizer


class HashEncoder:
    """Codes depend on the whole document and on the chunk, as a contextual model's do.

    A query is a document of one chunk: it is at cosine 1 from a document of that one chunk, and at a
    random angle from everything else. Blank texts get the zero vector.

    Attributes:
        calls: The documents of every call of encode_documents, in order.
    """

    def __init__(self, dimension=64, name="hash-encoder", revision="1"):
        self.spec = ModelSpec(
            name=name,
            dimension=dimension,
            min_dimension=dimension,
            quantizer="norm",
            window_tokens=512,
            max_window_tokens=512,
            context_weight=1.0,
            layout="mean-pooled",
        )
        # Words and single marks are tokens; which ones does not matter, so all are the unknown one.
        words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        self.tokenizer = ChunkTokenizer(words)
        self.fingerprint = Fingerprint(
            model=name,
            revision=revision,
            dimension=dimension,
            quantizer="norm",
            window_tokens=512,
            min_context=64,
            context_weight=1.0,
            source=name,
            squared_norm=self.spec.squared_norm,
        )
        self.calls = []

    def encode_documents(self, documents, *, progress=None):
        self.calls.append([list(document) for document in documents])
        codes = [self._encode(document) for document in documents]
        if progress is not None:
            progress(1, 1)
        return codes

    def encode_queries(self, queries):
        none = np.zeros((0, self.spec.dimension), np.int8)
        return np.concatenate([none, *(self._encode([query]) for query in queries)])

    def _encode(self, chunks):
        codes = np.zeros((len(chunks), self.spec.dimension), np.int8)
        context = hashlib.sha256(json.dumps(list(chunks)).encode()).digest()
        for row, chunk in zip(codes, chunks, strict=True):
            if chunk.strip():
                stream = hashlib.shake_256(context + chunk.encode("utf-8", "replace"))
                row[:] = np.frombuffer(stream.digest(self.spec.dimension), np.int8)
        return quantize_to_norm(codes.astype(np.float32), self.spec.squared_norm)


def make_encoder(dimension=64, *, name="hash-encoder", revision="1"):
    """Make a `HashEncoder`."""
    return HashEncoder(dimension, name, revision)
