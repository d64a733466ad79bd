"""Text → the words that BM25 compares, where the engine's own tokenizer of text does not see them.

The engine's word tokenizer takes runs of letters and digits, in lower case. That is right for numbers, codes and the
words of most languages. But it makes one word of a Chinese sentence, and for it, é in one character and é in two make
different words. The engine's multilingual tokenizer drops all numbers. So what the word tokenizer sees in a text stays
as it is, and what it misses is kept beside the text, in a field with an index of its own, written so that the same
tokenizer sees it.
"""

from __future__ import annotations

import re
import unicodedata

# Thai, Lao, Myanmar, Hangul, Khmer, kana, bopomofo and Chinese characters: scripts whose words stand without spaces
# between them, or, in Korean, with what belongs to a word's grammar attached to it.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3031-\u3035\u3040-\u312f\u31a0-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_RUN = re.compile(f"[{_UNSPACED}]+")
_TOKEN = re.compile(rf"(?:[^\W_]|[{_UNSPACED}])+")


def normalize_words(text: str) -> str:
    """Write words so that equal ones are equal to the engine's word tokenizer.

    Characters are in Unicode's form NFKC: accents are composed, full-width forms plain, ligatures taken apart. Scripts
    without spaces become overlapping pairs of characters, as usual in search, without the marks above and below them.

    >>> normalize_words("Ｑdrant ﬁnds cafe\u0301"), normalize_words("型号80的零件")
    ('Qdrant finds café', ' 型号 80 的零 零件 ')
    """
    if text.isascii():
        return text
    return _RUN.sub(_pairs, unicodedata.normalize("NFKC", text))


def count_words(text: str) -> int:
    """Count the words that the engine's word tokenizer sees in a text.

    >>> count_words("part 80, a-b")
    4
    """
    return len(_TOKEN.findall(text))


def unseen_words(text: str) -> str:
    """Return the words of a text that the engine's word tokenizer does not see in it, as `normalize_words` writes them.

    Returns:
        Words with spaces between them; empty for most texts.

    >>> unseen_words("part 80"), unseen_words("cafe\u0301 80"), unseen_words("型号80 的零件")
    ('', 'café', '型号 80 的零 零件')
    """
    normalized = normalize_words(text)
    if normalized == text:
        return ""
    seen = set(_TOKEN.findall(text))
    return " ".join(word for word in _TOKEN.findall(normalized) if word not in seen)


def _pairs(run: re.Match[str]) -> str:
    # The engine would split words at marks.
    letters = "".join(letter for letter in run[0] if unicodedata.category(letter) != "Mn")
    pairs = [letters[i : i + 2] for i in range(max(len(letters) - 1, 1))]
    return f" {' '.join(pairs)} "
