"""10,000 random documents through tokenization and windows: nothing lost, nothing doubled, nothing shifted."""

import random

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.normalizers import NFC

from pplx_vectorstore.encoders.late_chunking import LateChunkingEncoder
from pplx_vectorstore.models import ModelSpec
from pplx_vectorstore.tokenization import ChunkTokenizer
from pplx_vectorstore.windows import lay_out, plan_windows

pytestmark = pytest.mark.slow

DOCUMENTS = 10_000
TOKENIZED_AT_ONCE = 400  # some 1,400 chunks: more than the tokenizer takes at a time
ENCODED_AT_ONCE = 20

RANGES = [
    (0x00, 0x20),  # controls
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x300, 0x370),  # combining marks
    (0x370, 0x530),
    (0x590, 0x700),  # right to left
    (0x900, 0xE00),  # Indic, with vowel signs
    (0x1100, 0x1200),  # Hangul letters, which NFC joins
    (0x2000, 0x2070),  # spaces, joiners, direction marks
    (0x3040, 0x3100),
    (0x4E00, 0xA000),
    (0xAC00, 0xD7A4),
    (0xD800, 0xE000),  # surrogates
    (0xE000, 0xF900),  # private use
    (0xF900, 0x10000),
    (0x10000, 0x20000),
    (0x1F300, 0x1FB00),
    (0x20000, 0x40000),
    (0xE0000, 0xE01F0),  # tags and variation selectors
    (0xF0000, 0x110000),
]
PHRASES = [
    "<|endoftext|>",
    "[CLS]",
    "[SEP]",
    "[PAD]",
    "[MASK]",
    "[UNK]",
    "<s></s>",
    "##ing",
    "👩‍👩‍👧‍👦",
    "👨🏿‍🚀",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "🇩🇪🇫🇷",
    "e\u0301\u0323\u0302",
    "\ufeff",
    "\u202eabc\u202c",
    "\r\n",
    "ﷺ",
    "İıſK",
    "curiosity",
    "1887",
    "The lighthouse keeper counted the ships.",
    "don't",
]
BLANKS = ["", "", " ", "\n\t", "\u3000", "\u2003\u2028", "\x1c"]


def make_text(rng, pieces):
    text = []
    for _ in range(pieces):
        which = rng.random()
        if which < 0.25:
            text.append(rng.choice(PHRASES))
        elif which < 0.4:
            text.append(" ")
        else:
            first, after = rng.choice(RANGES)
            text.append("".join(chr(rng.randrange(first, after)) for _ in range(rng.randint(1, 4))))
    return "".join(text)


def make_document(rng):
    n_chunks = rng.choice([0, 1, 1, 2, 3, 3, 4, 5, 6, 8])
    if rng.random() < 0.01:
        n_chunks = rng.randint(20, 60)
    document = []
    for _ in range(n_chunks):
        which = rng.random()
        if which < 0.15:
            document.append(rng.choice(BLANKS))
        elif which < 0.15 + 0.001:
            document.append(make_text(rng, rng.randint(300, 1500)))
        else:
            document.append(make_text(rng, rng.randint(1, 12)))
    return document


def clean(text):
    return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)


@pytest.fixture(scope="module")
def documents():
    rng = random.Random(20_240_904)
    return [make_document(rng) for _ in range(DOCUMENTS)]


@pytest.fixture(scope="module", params=["pplx", "minilm"])
def folder(request, pplx_checkpoint, minilm_folder):
    return pplx_checkpoint if request.param == "pplx" else minilm_folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return ChunkTokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def separator(folder, pplx_checkpoint):
    return "<|endoftext|>" if folder == pplx_checkpoint else None


@pytest.fixture(scope="module")
def specials(tokenizer):
    """Ids that no text may have: [UNK] may stand for what the vocabulary lacks."""
    added = tokenizer.tokenizer.get_added_tokens_decoder()
    ids = [number for number, token in added.items() if token.special and token.content != "[UNK]"]
    assert ids
    return ids


@pytest.fixture(scope="module")
def token_ids(tokenizer, documents):
    """Each document's chunks' ids, tokenized many documents at a time, as encoders do it."""
    found = []
    for first in range(0, DOCUMENTS, TOKENIZED_AT_ONCE):
        some = documents[first : first + TOKENIZED_AT_ONCE]
        ids = iter(tokenizer.encode([chunk for document in some for chunk in document]))
        found += [[next(ids) for _ in document] for document in some]
        assert next(ids, None) is None
    return found


def test_the_documents_are_what_they_are_meant_to_be(documents, token_ids):
    chunks = [chunk for document in documents for chunk in document]
    text = "".join(chunks)
    assert len(documents) == DOCUMENTS
    assert sum(not document for document in documents) > 500
    assert sum(not chunk.strip() for chunk in chunks) > 3000
    assert all(text.count(phrase) > 100 for phrase in PHRASES)
    assert {ord(letter) >> 16 for letter in text} >= {0, 1, 2, 3, 14, 15, 16}
    assert sum("\ud800" <= letter <= "\udfff" for letter in text) > 1000
    assert max(len(ids) for document in token_ids for ids in document) > 1000


def test_every_chunk_has_its_own_tokens_and_all_of_them(
    documents, token_ids, tokenizer, folder, separator, specials, pplx_checkpoint
):
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True
    for number, (document, chunk_ids) in enumerate(zip(documents, token_ids, strict=True)):
        for chunk, ids in zip(document, chunk_ids, strict=True):
            assert ids.dtype == np.int64
            assert ids.ndim == 1
            assert not np.isin(ids, specials).any(), (number, chunk)
            text = clean(chunk)
            if not text.strip():
                assert len(ids) == 0, (number, chunk)
            elif folder == pplx_checkpoint:  # bytes: nothing is unknown, and the text can be had back
                decoded = plain.decode(ids.tolist(), skip_special_tokens=False)
                # Not Python's NFC: its Unicode may be of another version, and order other marks.
                assert decoded == NFC().normalize_str(text), (number, chunk)
            elif number % 5 == 0 or len(chunk) > 1000:
                alone = plain.encode(text, add_special_tokens=False).ids
                assert ids.tolist() == alone, (number, chunk)


def test_every_token_of_every_chunk_is_pooled_exactly_once(documents, token_ids, tokenizer, separator):
    rng = random.Random(7)
    separator_id = None if separator is None else tokenizer.token_id(separator)
    for number, (document, chunk_ids) in enumerate(zip(documents, token_ids, strict=True)):
        capacity = rng.randint(1, 60)
        min_context = rng.randint(0, (capacity - 1) // 2)
        where = (number, capacity, min_context)

        layout = lay_out(chunk_ids, separator_id)
        spans = layout.chunk_spans
        n_tokens = len(layout.ids)
        assert len(spans) == len(document), where
        chunk_of = np.full(n_tokens, -1)  # of each token; -1 is a separator
        position = 0
        for index, ((start, stop), ids) in enumerate(zip(spans, chunk_ids, strict=True)):
            if index and separator_id is not None:
                assert layout.ids[position] == separator_id, where
                position += 1
            assert start == position, where  # no overlap, and nothing between but the separator
            assert np.array_equal(layout.ids[start:stop], ids), where
            chunk_of[start:stop] = index
            position = stop
        assert position == n_tokens, where

        windows = plan_windows(spans, n_tokens, capacity=capacity, min_context=min_context)
        edges = np.zeros(n_tokens + 1, int)  # pieces that begin, less those that end
        for window in windows:
            assert 0 <= window.start < window.stop <= n_tokens, where
            assert window.stop - window.start <= capacity, where
            assert window.pieces, where
            for piece in window.pieces:
                assert window.start <= piece.start < piece.stop <= window.stop, where
                start, stop = spans[piece.chunk]
                assert start <= piece.start < piece.stop <= stop, where
                edges[piece.start] += 1
                edges[piece.stop] -= 1
        assert np.array_equal(np.cumsum(edges[:-1]), chunk_of >= 0), where


class HashModel:
    """A token model whose token vectors are random, and the same for the same id.

    A pooled vector tells the ids that went into it, and how often each did: one more or less, or another,
    moves it by more than rounding does.
    """

    pads = True
    dimension = 24
    batch_tokens = 512

    def __init__(self, n_ids, prefix, suffix, window_tokens):
        self.table = np.random.default_rng(3).normal(size=(n_ids, self.dimension))
        self.prefix, self.suffix, self.window_tokens = prefix.tolist(), suffix.tolist(), window_tokens

    def pool(self, rows, spans):
        pooled = []
        for row, of in zip(rows, spans, strict=True):
            assert len(row) <= self.window_tokens
            assert row[: len(self.prefix)].tolist() == self.prefix
            assert row[len(row) - len(self.suffix) :].tolist() == self.suffix
            pooled += [self.table[row[start:stop]].mean(axis=0) for start, stop in of]
        return np.array(pooled, np.float32)


def test_every_vector_is_the_mean_of_its_own_tokens(documents, token_ids, tokenizer, separator):
    """A fifth of the documents, through the whole of the encoder but the model."""
    rng = random.Random(11)
    frame = len(tokenizer.prefix_ids) + len(tokenizer.suffix_ids)
    for first in range(0, DOCUMENTS, 5 * ENCODED_AT_ONCE):
        some = slice(first, first + ENCODED_AT_ONCE)
        capacity = rng.randint(1, 60)
        model = HashModel(tokenizer.largest_id + 1, tokenizer.prefix_ids, tokenizer.suffix_ids, capacity + frame)
        spec = ModelSpec(
            name="hashes",
            dimension=model.dimension,
            min_dimension=model.dimension,
            quantizer="norm",
            window_tokens=capacity + frame,
            max_window_tokens=512,
            context_weight=rng.choice([0.0, 0.4, 1.0, 1.0]),
            layout="pplx",
            separator=separator,
        )
        min_context = rng.randint(0, (capacity - 1) // 2)
        encoder = LateChunkingEncoder(
            model, tokenizer, spec, min_context=min_context, batch_tokens=rng.choice([1, 7, 100, 512])
        )
        vectors = encoder.chunk_vectors(documents[some])
        assert len(vectors) == ENCODED_AT_ONCE
        for number, (chunk_ids, rows) in enumerate(zip(token_ids[some], vectors, strict=True), start=first):
            assert rows.shape == (len(chunk_ids), model.dimension), number
            for ids, row in zip(chunk_ids, rows, strict=True):
                expected = model.table[ids].mean(axis=0) if len(ids) else np.zeros(model.dimension)
                # The least that one token too many can do, of a vector of random directions.
                assert np.abs(row - expected).max() < min(1e-5, 0.05 / max(len(ids), 1)), (number, capacity)
