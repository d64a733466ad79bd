"""A question's words in a chunk: where they are, and which of its sentences have most of them.

A hit was found by what it means; which of its sentences to show is chosen by words, which costs nothing. Where a chunk
has none of the words, its beginning is shown.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pplx_vectorstore.lexical import normalize_words

# Of English, the words that questions are made of, and of Japanese, Chinese and Korean, particles that stand alone:
# they are everywhere, and say nothing of where an answer is.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a an and are as at be been but by can could did do does for from had has have how i if in into is it its may me
        my no not of on or our shall should so such than that the their them then there these they this those to us was
        we were what when where which who whom whose why will with would you your
        の は が を に へ と で も や か ね よ 的 了 是 在 吗 呢 和 은 는 이 가 을 를 의 에 도 와 과 로
        """,
    )
)
_ENDINGS = ("ing", "ed", "es", "er", "s", "e")
_LEAST_STEM = 3
_LEAST_PREFIX = 4
_MOST_ENDING = 3
_NEARLY = 0.8  # what a word of the same stem counts for, beside the word itself
_OF_WHAT_FOLLOWS = 0.5  # what a word counts for that only the sentences after the first have

_MARKERS = re.compile(r"[ \t]*(?:[#>|]|[-*+] |\d{1,3}[.)] |```|~~~)")
_SENTENCE_END = re.compile(r"[.!?…]['\"”’)\]]*(?=\s)|[。！？][」』）]*")
# A line that is shorter was not broken by its length: what follows is another item, or another statement.
_WRAPPED = 50
_BEFORE = 60  # characters of a cut sentence shown before the first word that was asked for


class Match(NamedTuple):
    """A word of the question in a text.

    Attributes:
        start: Of its first character.
        stop: After its last.
        word: Which of the question's words it is.
        strength: 1, or less for another form of the word.
    """

    start: int
    stop: int
    word: int
    strength: float


class QueryWords:
    """The words of a question.

    Args:
        query: The question. Words without meaning of their own do not count, unless it has no others.
    """

    def __init__(self, query: str) -> None:
        words = list(dict.fromkeys(word for _, _, word in _words(normalize_words(query))))
        self._words = [word for word in words if word not in _FUNCTION_WORDS] or words

    def find(self, text: str) -> list[Match]:
        """Find the words in a text, in other forms too, in the order in which they stand.

        >>> [match[:3] for match in QueryWords("How are tenants indexed?").find("An index of a tenant.")]
        [(3, 8, 1), (14, 20, 0)]
        """
        found = []
        for start, stop, word in _words(text):
            for number, wanted in enumerate(self._words):
                strength = _likeness(wanted, word)
                if strength:
                    found.append(Match(start, stop, number, strength))
                    break
            else:
                found += self._within(text, start, stop)
        return found

    def _within(self, text: str, start: int, stop: int) -> list[Match]:
        """Find pairs of characters, of scripts that write no spaces, within a run of them."""
        run = text[start:stop]
        if run.isascii():
            return []
        return sorted(
            Match(start + at.start(), start + at.start() + len(wanted), number, 1.0)
            for number, wanted in enumerate(self._words)
            if not wanted.isascii()
            for at in re.finditer(f"(?={re.escape(wanted)})", run)
        )

    def best_part(self, text: str, length: int) -> tuple[int, int]:
        """Choose the sentences of a text that have most of the words.

        A word counts the more, the fewer sentences have it, and once however often it stands there.

        Args:
            text: Of a chunk.
            length: Most characters; of a longer sentence, the part is cut at words.

        Returns:
            The range of the part, half-open: sentences that follow one another, the first of which has one of the
            words; without any, those that the text begins with.
        """
        sentences = list(split_sentences(text))
        if not sentences:
            return 0, 0
        matches = self.find(text)
        held = [[match for match in matches if start <= match.start < stop] for start, stop in sentences]
        weights = {
            word: math.log(1 + len(sentences) / sum(any(one.word == word for one in some) for some in held))
            for word in {match.word for match in matches}
        }
        best, chosen = 0.0, 0
        for first, (start, _) in enumerate(sentences):
            if not held[first]:
                continue
            strengths: dict[int, float] = {}
            for number, (_, stop) in enumerate(sentences[first:], first):
                if stop - start > length and strengths:
                    break
                for match in held[number]:
                    strength = match.strength if number == first else match.strength * _OF_WHAT_FOLLOWS
                    strengths[match.word] = max(strength, strengths.get(match.word, 0.0))
            value = sum(weights[word] * strength for word, strength in strengths.items())
            if value > best:
                best, chosen = value, first
        return _extend(text, sentences, chosen, [match.start for match in held[chosen]], length)


def split_sentences(text: str) -> Iterator[tuple[int, int]]:
    r"""Yield the ranges of a text's sentences, headings, items, rows of tables and lines of code.

    >>> text = "# Cats\n\nThey purr. Why?\n- They are happy."
    >>> [text[start:stop] for start, stop in split_sentences(text)]
    ['# Cats', 'They purr.', 'Why?', '- They are happy.']
    """
    for start, stop in _paragraphs(text):
        at = start
        for end in _SENTENCE_END.finditer(text, start, stop):
            yield from _without_space(text, at, end.end())
            at = end.end()
        yield from _without_space(text, at, stop)


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Yield ranges of lines that belong together."""
    first = at = 0
    previous = ""
    for line in text.splitlines(keepends=True):
        goes_on = len(previous.rstrip()) >= _WRAPPED and line.strip() and not _MARKERS.match(line)
        if not goes_on:
            if at > first:
                yield first, at
            first = at
        at += len(line)
        previous = "" if line.startswith(("#", "|", "```")) else line
    if at > first:
        yield first, at


def _without_space(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    part = text[start:stop]
    if part.strip():
        start += len(part) - len(part.lstrip())
        yield start, start + len(part.strip())


def _extend(
    text: str, sentences: Sequence[tuple[int, int]], chosen: int, matches: Sequence[int], length: int
) -> tuple[int, int]:
    """Return the range of a sentence and of what follows it, as long as there is room."""
    start, stop = sentences[chosen]
    if stop - start > length:
        first = matches[0] if matches else start
        before = min(_BEFORE, length // 4)
        if first - start > length - before:
            start = _word_after(text, first - before, first)
        return start, _word_before(text, min(stop, start + length), start, stop)
    for _, end in sentences[chosen + 1 :]:
        if end - start > length:
            break
        stop = end
    return start, stop


def _word_after(text: str, at: int, most: int) -> int:
    """Return where the first word after a place begins."""
    space = re.compile(r"\s+").search(text, at, most)
    return space.end() if space else at


def _word_before(text: str, at: int, least: int, stop: int) -> int:
    """Return where the last word that ends by a place ends."""
    if at == stop:
        return at
    end = len(text[least : at + 1].rstrip())
    if end <= at - least:
        return least + end
    cut = text[least:at].rpartition(" ")[0].rstrip()
    return least + len(cut) if cut else at


def _words(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield ranges of the words of a text, with each as it is compared."""
    start: int | None = None
    for at, character in enumerate(text):
        if character.isalnum() or (start is not None and unicodedata.category(character)[0] == "M"):
            start = at if start is None else start
        elif start is not None:
            yield start, at, _comparable(text[start:at])
            start = None
    if start is not None:
        yield start, len(text), _comparable(text[start:])


def _comparable(word: str) -> str:
    return word.lower() if word.isascii() else unicodedata.normalize("NFKC", word).casefold()


def _likeness(one: str, other: str) -> float:
    if one == other:
        return 1.0
    short, long = sorted((one, other), key=len)
    if not (one.isalpha() and other.isalpha()):
        return 0.0
    if len(short) >= _LEAST_PREFIX and long.startswith(short) and len(long) - len(short) <= _MOST_ENDING:
        return _NEARLY
    stem = _stem(one)
    return _NEARLY if len(stem) >= _LEAST_STEM and stem == _stem(other) else 0.0


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _LEAST_STEM:
            return word.removesuffix(ending)
    return word
