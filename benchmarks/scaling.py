"""How time grows with the length of the input, from text to windows and requests: it should grow as the length does.

Every kind of input is made in five sizes, each twice the one before. Printed are microseconds of processor time per
character (or per chunk) at the smallest and the largest size, and the exponent: the slope of log time over log size.
It is 1 where time grows as the input does, 2 where it grows as the square. A byte-level BPE tokenizer is trained on
the spot, since a WordPiece tokenizer makes one token of a word that it does not know. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pplx_vectorstore import Chunk, Chunker, Document
from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.encoders.api_requests import Item, ItemPlanner, pack_requests
from pplx_vectorstore.encoders.batching import plan_batches
from pplx_vectorstore.points import hash_document
from pplx_vectorstore.tokenization import ChunkTokenizer
from pplx_vectorstore.windows import lay_out, plan_windows

SENTENCES = "The river froze in the winter of 1887. Nobody crossed it before March, when the ferry came back. "
TEXTS = {  # name → format, what is repeated
    "prose": ("text", SENTENCES * 3 + "\n\n"),
    "prose in one line": ("text", SENTENCES),
    "lines of a log": ("text", "GET /index.html 200 in 17 ms\n"),
    "Chinese without a stop": ("text", "机器学习是人工智能的一个分支它研究计算机怎样模拟人类的学习行为"),
    "Korean without a space": ("text", "기계학습은인공지능의한분야로"),
    "Thai": ("text", "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย"),
    "base64": ("text", "dGhlIHF1aWNrIGJyb3duIGZveA+/"),
    "one word": ("text", "9f86d081884c7d659a2feaa0c55ad015"),
    "white space": ("text", " "),
    "newlines": ("text", "\n"),
    "Markdown": ("markdown", f"# River\n\n{SENTENCES}\n\n- one\n- two\n\n```\nx = 1\n```\n\n"),
    "Markdown, one table": ("markdown", "| river | 1887 |\n"),
    "Markdown, a base64 image": ("markdown", "dGhlIHF1aWNrIGJyb3duIGZveA+/"),
    "Python": ("python", "def f(x):\n    if x:\n        return [x, 1]\n    return None\n\n\n"),
    "Python, one list": ("python", "    1887, 1888,\n"),
}
CAPACITY, MIN_CONTEXT = 4096, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smallest", type=int, default=25_000, help="characters, and chunks, of the smallest input")
    parser.add_argument("--doublings", type=int, default=4)
    arguments = parser.parse_args()
    sizes = [arguments.smallest * 2**i for i in range(arguments.doublings + 1)]
    tokenizer = train_tokenizer()
    print(f"{'':32}{sizes[0]:>14,}{sizes[-1]:>14,}{'exponent':>12}")
    for name, prepare in steps(tokenizer).items():
        measure(name, prepare, sizes)


def train_tokenizer() -> ChunkTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SENTENCES], trainer)
    return ChunkTokenizer(tokenizer)


def steps(tokenizer: ChunkTokenizer) -> dict[str, Callable[[int], Callable[[], object]]]:
    """Return what is measured: name → a function that prepares an input of a size, and returns what is timed."""
    chunker = Chunker(tokenizer.tokenizer)

    def chunk(kind: str) -> Callable[[int], Callable[[], object]]:
        text_format, pattern = TEXTS[kind]

        def prepare(n: int) -> Callable[[], object]:
            text = (pattern * (n // len(pattern) + 1))[:n]
            return lambda: chunker.split(text, text_format)

        return prepare

    def plan(chunks: Sequence[str]) -> None:
        layout = lay_out(tokenizer.encode(chunks), 0)
        windows = plan_windows(layout.chunk_spans, len(layout.ids), capacity=CAPACITY, min_context=MIN_CONTEXT)
        plan_batches([window.stop - window.start for window in windows], 2 * CAPACITY, pads=True)

    def request(chunks: Sequence[str], contextual: bool) -> None:
        context = MIN_CONTEXT if contextual else 0
        planner = ItemPlanner(tokenizer, 0, capacity=CAPACITY, min_context=context, contextual=contextual)
        pack_requests(planner.plan(chunks, 0))

    def pack(n: int) -> Callable[[], object]:
        sizes = np.random.default_rng(0).integers(1, CAPACITY, n).tolist()
        items = [Item(("a",), (i,), (size,), size) for i, size in enumerate(sizes)]
        return lambda: pack_requests(items)

    def hash_of(n: int) -> Callable[[], object]:
        document = Document(id="d", chunks=[Chunk(text="a", start=i, end=i + 1) for i in range(n)])
        return lambda: hash_document(document, document.chunks, FINGERPRINT)  # type: ignore[arg-type]

    return {
        **{f"chunks: {kind}": chunk(kind) for kind in TEXTS},
        "windows: one-letter chunks": lambda n: lambda: plan(["a"] * n),
        "windows: blank chunks": lambda n: lambda: plan(["", " "] * (n // 2)),
        "windows: one chunk": lambda n: lambda: plan([SENTENCES * (n // len(SENTENCES))]),
        "windows: one word": lambda n: lambda: plan(["9f86d081884c7d65" * (n // 16)]),
        "requests: one-letter chunks": lambda n: lambda: request(["a"] * n, True),
        "requests: each by itself": lambda n: lambda: request(["a"] * n, False),
        "requests: one chunk": lambda n: lambda: request([SENTENCES * (n // len(SENTENCES))], True),
        "requests: packing": pack,
        "hash: one-letter chunks": hash_of,
    }


FINGERPRINT = Fingerprint(
    model="m",
    revision=None,
    dimension=64,
    quantizer="tanh",
    window_tokens=CAPACITY,
    min_context=MIN_CONTEXT,
    context_weight=1.0,
    source="m",
    squared_norm=1,
)


def measure(name: str, prepare: Callable[[int], Callable[[], object]], sizes: Sequence[int]) -> None:
    """Time a step at each size, small ones three times, and print its line."""
    prepare(sizes[0])()  # what is made once
    seconds = []
    for n in sizes:
        step = prepare(n)
        times: list[float] = []
        while len(times) < 3 and sum(times) < 0.5:
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
        seconds.append(min(times))
    exponent = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    first, last = (1e6 * seconds[i] / sizes[i] for i in (0, -1))
    print(f"{name:32}{first:11.2f} µs{last:11.2f} µs{exponent:12.2f}", flush=True)


if __name__ == "__main__":
    main()
