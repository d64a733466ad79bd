import itertools
import random
import re
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


# --- long texts ---------------------------------------------------------------------------------------


class Recording:
    """A splitter that tells how much it is given at a time."""

    def __init__(self, splitter):
        self._splitter = splitter
        self.sizes = []

    def chunk_indices(self, text):
        self.sizes.append(len(text))
        return self._splitter.chunk_indices(text)


def record(chunker, text_format):
    chunker.split("x", text_format)
    recording = chunker._splitters[text_format] = Recording(chunker._splitters[text_format])
    return recording


def repeat(pattern, n):
    return (pattern * (n // len(pattern) + 1))[:n]


# What has few or no boundaries, far apart or all alike.
LONG = {
    "Chinese without a stop": "机器学习是人工智能的一个分支它研究计算机怎样模拟人类的学习行为",
    "Thai": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "one word": "abcdefghij",
    "base64": "dGhlIHF1aWNrIGJyb3duIGZveA+/",
    "one line of sentences": "The river froze. Nobody crossed it before March. ",
    "words without a stop": "river frozen road ",
    "emoji joined": "👩\u200d",
    "combining": "e\u0301\u0301\u0301",
    "white space": " ",
    "newlines": "\n",
    "lines": "17 ms for one line of a log\n",
    "short lines": "a\n",
    "paragraphs": "One paragraph.\n\n",
    "headings": "# One\n\nText of it.\n\n",
    "list": "- item\n  - nested\n",
    "quotes": "> ",
    "brackets": "[(",
    "table": "| a | b |\n",
    "code": "def f(x):\n    return [x, 1]\n\n\n",
}
LONG_CODE = [("code", "python"), ("one word", "python"), ("brackets", "javascript"), ("lines", "go")]


@pytest.mark.parametrize(("kind", "text_format"), [*itertools.product(LONG, ["text", "markdown"]), *LONG_CODE])
def test_time_grows_as_the_text_does(tokenizers, kind, text_format):
    """The splitter, whose time for a text grows as the square of its length, is never given much at a time."""
    text = repeat(LONG[kind], 100_000)
    chunker = Chunker(tokenizers["minilm"].tokenizer)
    recording = record(chunker, text_format)
    chunks = chunker.split(text, text_format)
    assert sum(recording.sizes) < 3 * len(text)
    # One token alone may be longer than any window: whatever WordPiece does not know, and white space.
    longest = max((chunk.end - chunk.start for chunk in chunks), default=len(text))
    assert max(recording.sizes) <= max(65_536, 4 * longest)
    position = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        assert chunk.start >= position
        assert not text[position : chunk.start].strip()
        position = chunk.end
    assert not text[position:].strip()


@pytest.mark.parametrize("pattern", ["abcdefghij", "机器学习是人工智能的一个分支", "The river froze. "])
def test_what_is_tokenized_grows_as_a_long_line_does(tokenizers, pattern):
    """Without a boundary in sight, the splitter tokenizes all that follows for each chunk."""
    from semantic_text_splitter import TextSplitter

    tokenizer = tokenizers["pplx"].tokenizer
    tokenized = []

    def count_tokens(text):
        tokenized.append(len(text))
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    amounts = []
    for n in (40_000, 80_000):
        chunker = Chunker(tokenizer)
        chunker._splitters["text"] = TextSplitter.from_callback(count_tokens, 256)
        tokenized.clear()
        chunker.split(repeat(pattern, n) + "\n")
        amounts.append(sum(tokenized))
    assert amounts[1] < 2.2 * amounts[0]


def make_prose(n, rng):
    """Make Markdown of all sorts."""

    def sentence():
        words = ["".join(rng.choices("abcdefghij", k=rng.randint(1, 9))) for _ in range(rng.randint(3, 25))]
        return " ".join(words).capitalize() + "."

    def paragraph():
        return " ".join(sentence() for _ in range(rng.randint(1, 7)))

    kinds = [
        lambda: f"{'#' * rng.randint(1, 4)} {sentence()[:-1]}",
        lambda: "\n".join(f"{'  ' * rng.randint(0, 2)}- {sentence()}" for _ in range(rng.randint(2, 9))),
        lambda: "```python\n" + "\n\n".join(f"# {sentence()}\nx = {i}" for i in range(rng.randint(1, 30))) + "\n```",
        lambda: "> " + paragraph(),
        lambda: "| a | b |\n|---|---|\n" + "\n".join(f"| {sentence()} | 1 |" for _ in range(rng.randint(1, 9))),
        *[paragraph] * 8,
    ]
    blocks = []
    while n > 0:
        blocks.append(rng.choice(kinds)())
        n -= len(blocks[-1]) + 2
    return "\n\n".join(blocks)


@pytest.mark.parametrize("text_format", ["text", "markdown"])
def test_windows_change_nothing_in_ordinary_texts(tokenizers, text_format):
    text = make_prose(200_000, random.Random(2))
    chunker = Chunker(tokenizers["minilm"].tokenizer)
    recording = record(chunker, text_format)
    chunks = chunker.split(text, text_format)
    assert len(recording.sizes) > 3
    whole = recording._splitter.chunk_indices(text)
    assert [(chunk.start, chunk.end) for chunk in chunks] == chunker._join_marks(text, whole)


def test_windows_change_nothing_in_ordinary_code(tokenizers):
    functions = [
        f"class C{i}:\n    '''Doc.\n\nOf {i}.\n    '''\n\n    def f(self, x):\n        return [x, {i}]\n\n\n"
        * (1 + i % 3)
        + f"def g{i}(x):\n    y = x + {i}\n\n    return y\n\n\n"
        for i in range(700)
    ]
    text = "".join(functions)
    chunker = Chunker(tokenizers["minilm"].tokenizer)
    recording = record(chunker, "python")
    chunks = chunker.split(text, "python")
    assert len(recording.sizes) > 1
    assert [(chunk.start, chunk.text) for chunk in chunks] == recording._splitter.chunk_indices(text)


def test_a_text_that_fits_one_window_is_given_whole(tokenizers):
    chunker = Chunker(tokenizers["minilm"].tokenizer)
    recording = record(chunker, "markdown")
    chunker.split(repeat("A line of prose, and more of it.\n", 65_536), "markdown")
    assert recording.sizes == [65_536]


def test_words_far_apart(tokenizers):
    """A chunk that spans windows of nothing."""
    text = "word" + "\n" * 300_000 + "word"
    for tokenizer in tokenizers.values():
        assert "".join(chunk.text.replace("\n", "") for chunk in Chunker(tokenizer.tokenizer).split(text)) == "wordword"


@pytest.mark.parametrize("chunk_tokens", [64, 128, 256])
def test_no_chunk_is_but_the_fence_of_a_code_block(tokenizers, chunk_tokens):
    lines = "\n".join(f"value_{i} = compute({i})" for i in range(40))
    text = "\n\n".join(f"Part {i} says this.\n\n```python\n{lines}\n```\n\n<!-- end -->" for i in range(5))
    chunks = Chunker(tokenizers["minilm"].tokenizer, chunk_tokens).split(text, "markdown")
    assert sum("```python" in chunk.text for chunk in chunks) == 5
    assert all(re.search(r"\w", re.sub(r"```\w*|<!-- end -->", "", chunk.text)) for chunk in chunks)
    assert "".join("".join(chunk.text.split()) for chunk in chunks) == "".join(text.split())


def test_marks_alone_are_chunks_where_there_is_nothing_else(tokenizers):
    chunker = Chunker(tokenizers["minilm"].tokenizer, 16)
    for text in ("---", "* * *\n\n" * 500, "```python\n```", "— " * 300):
        chunks = chunker.split(text, "markdown")
        assert "".join("".join(chunk.text.split()) for chunk in chunks) == "".join(text.split())
