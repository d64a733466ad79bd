import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pplx_vectorstore.chunking import DEFAULT_CHUNK_TOKENS, GRAMMARS, Chunker
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.tokenization import ChunkTokenizer

FORMATS = ["text", "markdown", *sorted(GRAMMARS), "a language nobody wrote a grammar for"]

NASTY = [
    "e\u0301a\u0308o\u0327",  # combining characters
    "👩‍👩‍👧‍👦 🇩🇪🏴󠁧󠁢󠁥󠁮󠁧󠁿",  # emoji of several code points
    "שלום עולם، مرحبا بالعالم",  # right to left
    "\u202eevil\u202c \u200b\u200d\ufeff",  # marks that cannot be seen
    "\x00\x01\x1f\x85\u2028\u2029",  # control characters and line separators
    "日本語の文章。次の文。",
    "\ufffd\U0010ffff",
    "<|endoftext|> [CLS] [SEP]",
    "# Heading\n\n- item\n  - nested\n\n```python\nx = 1\n```\n\n| a | b |\n|---|---|\n",
    "def f(x):\n    '''doc'''\n    return x\n\n\nclass C:\n    pass\n",
    '}}}{{{((\n\t"unterminated',
    "word " * 12,
    "\r\n\r\n",
    "x" * 50,
    "\n\n\n",
    "   ",
]
TEXTS = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=30)), max_size=12).map("".join)


@pytest.fixture(scope="module")
def tokenizers(pplx_checkpoint, minilm_folder):
    """What counts the tokens: byte-level, where one character may be several, and WordPiece."""
    return {
        "pplx": ChunkTokenizer.from_folder(pplx_checkpoint),
        "minilm": ChunkTokenizer.from_folder(minilm_folder),
    }


@pytest.mark.parametrize("tokenizer_name", ["pplx", "minilm"])
@pytest.mark.parametrize("text_format", FORMATS)
@settings(max_examples=20)
@given(text=TEXTS, chunk_tokens=st.integers(1, 30))
@example(text="".join(NASTY), chunk_tokens=5)
@example(text="a\n" * 40, chunk_tokens=7)
def test_offsets_sizes_and_nothing_lost(tokenizers, tokenizer_name, text_format, text, chunk_tokens):
    tokenizer = tokenizers[tokenizer_name]
    chunks = Chunker(tokenizer.tokenizer, chunk_tokens).split(text, text_format)
    position = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        assert not text[position : chunk.start].strip()
        assert position <= chunk.start < chunk.end
        position = chunk.end
        # A single character is never cut, though it may be several tokens; nor are special tokens,
        # which count as one, in text that spells them.
        if len(chunk.text) > 1 and not any(special in text for special in ("<|endoftext|>", "[CLS]", "[SEP]")):
            (ids,) = tokenizer.encode([chunk.text])
            assert len(ids) <= chunk_tokens
    assert not text[position:].strip()


@pytest.mark.parametrize("text_format", ["text", "markdown", "python"])
@pytest.mark.parametrize("text", ["", " ", "\n\n\t", "\u2003", "\x1f", " \x1c\x1d\x1e\n"])
@pytest.mark.parametrize("tokenizer_name", ["pplx", "minilm"])
def test_blank_text_gives_no_chunk(tokenizers, tokenizer_name, text_format, text):
    assert Chunker(tokenizers[tokenizer_name].tokenizer).split(text, text_format) == []


def test_chunks_are_as_large_as_fit(tokenizers):
    chunks = Chunker(tokenizers["minilm"].tokenizer, 10).split("word " * 95)
    assert [len(chunk.text.split()) for chunk in chunks] == [10] * 9 + [5]


def test_default_size(tokenizers):
    chunker = Chunker(tokenizers["minilm"].tokenizer)
    assert chunker.chunk_tokens == DEFAULT_CHUNK_TOKENS == 256
    assert len(chunker.split("word " * 256)) == 1
    assert len(chunker.split("word " * 257)) == 2


def test_text_is_cut_between_sentences(tokenizers, sentences):
    chunks = Chunker(tokenizers["minilm"].tokenizer, 30).split(" ".join(sentences[3:]))
    assert all(chunk.text.rstrip().endswith(".") for chunk in chunks)
    assert len(chunks) >= 3


def test_markdown_is_cut_at_headings(tokenizers):
    text = "# One\n\nalpha beta\n\ngamma delta\n\n# Two\n\nepsilon zeta\n\neta theta\n"
    tokenizer = tokenizers["minilm"]
    size = len(tokenizer.encode([text])[0]) - 3  # room for all but the last paragraph
    markdown, plain = (Chunker(tokenizer.tokenizer, size).split(text, kind) for kind in ("markdown", "text"))
    assert [chunk.text.startswith("#") for chunk in markdown] == [True, True]
    assert not all(chunk.text.startswith("#") for chunk in plain)


PROGRAMS = {
    "python": "def one():\n    a = 1\n    return a\ndef two():\n    b = 2\n\n    return b\n",
    "javascript": "function one() {\n  let a = 1\n  return a\n}\nfunction two() {\n  let b = 2\n\n  return b\n}\n",
    "go": "func one() int {\n\ta := 1\n\treturn a\n}\nfunc two() int {\n\tb := 2\n\n\treturn b\n}\n",
}


@pytest.mark.parametrize("language", sorted(PROGRAMS))
def test_code_is_cut_at_functions_not_at_blank_lines(tokenizers, language):
    text = PROGRAMS[language]
    tokenizer = tokenizers["minilm"]
    size = len(tokenizer.encode([text])[0]) - 2  # room for all but the end of the second function
    code, plain = (Chunker(tokenizer.tokenizer, size).split(text, kind) for kind in (language, "text"))
    assert [chunk.text.startswith(("def ", "func")) for chunk in code] == [True, True]
    assert not all(chunk.text.startswith(("def ", "func")) for chunk in plain)


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_every_grammar_is_used(tokenizers, language):
    """A grammar that fails to load would be passed over in silence."""
    from semantic_text_splitter import CodeSplitter

    assert isinstance(Chunker(tokenizers["minilm"].tokenizer)._make_splitter(language), CodeSplitter)


def test_without_the_grammar_code_is_cut_as_text(tokenizers, monkeypatch):
    monkeypatch.setitem(sys.modules, "tree_sitter_python", None)
    tokenizer = tokenizers["minilm"].tokenizer
    text = PROGRAMS["python"][0]
    assert Chunker(tokenizer, 12).split(text, "python") == Chunker(tokenizer, 12).split(text, "text")


@pytest.mark.parametrize("chunk_tokens", [0, -1, 1.5, 256.0, "256", None, True])
def test_size_must_be_a_positive_whole_number(tokenizers, chunk_tokens):
    with pytest.raises(InvalidInputError, match="chunk_tokens must be a whole number of at least 1"):
        Chunker(tokenizers["minilm"].tokenizer, chunk_tokens)


def test_long_text_without_a_space(tokenizers):
    text = "".join(chr(ord("a") + index % 26) for index in range(20_000))
    chunks = Chunker(tokenizers["pplx"].tokenizer, 256).split(text)
    assert "".join(chunk.text for chunk in chunks) == text
    assert max(len(tokenizers["pplx"].encode([chunk.text])[0]) for chunk in chunks) <= 256
