"""The sparse vectors that a Qdrant server makes of texts ("qdrant/bm25"), and how it ranks by them.

Written down from Qdrant 1.18: words are runs of letters and digits in lower case; the weight of a word in a document of
n words that has it t times is ``2.2 t / (t + 1.2 (0.25 + 0.75 n / avg_len))``; the rarity of a word that is in m of M
documents, ``ln(1 + (M - m + 0.5) / (m + 0.5))``; a score is the sum of weight times rarity over the question's words.
"""

import math
import re
import threading
from collections import Counter

from qdrant_client.http import models

_WORD = re.compile(r"[^\W_]+")
_K, _B = 1.2, 0.75


def words_of(document, number):
    """Return the words of a document or question.

    Args:
        document: A `models.Document`, or its JSON.
        number: The server's version, as numbers.

    Raises:
        ValueError: The server would not make what the library takes for granted.
    """
    given = document if isinstance(document, dict) else document.model_dump(exclude_none=True)
    options = dict(given.get("options") or {})
    del options["avg_len"]
    plain = {"stemmer": {"type": "none"}, "stopwords": {"custom": []}} if number >= (1, 19) else {"language": "none"}
    if given["model"] != "qdrant/bm25" or options != {"tokenizer": "word", **plain}:
        raise ValueError(f"InferenceService is not initialized, or other words than expected are made: {given}")
    return _WORD.findall(given["text"].lower())


def is_document(value):
    return isinstance(value, models.Document) or (isinstance(value, dict) and "model" in value and "text" in value)


class WordVectors:
    """The sparse vectors of one collection's points."""

    def __init__(self):
        self._of = {}
        self._lock = threading.Lock()

    def put(self, point_id, document, number):
        """Take a point's document for its vector."""
        with self._lock:
            self._of[str(point_id)] = Counter(words_of(document, number)), document["options"]["avg_len"]

    def rank(self, question, among, existing, number):
        """Return the ids of points that have some of a question's words, best first, and their scores.

        Args:
            question: A `models.Document`.
            among: Ids of points that match.
            existing: Ids of all points.
            number: The server's version, as numbers.
        """
        with self._lock:
            vectors = {id_: self._of[id_] for id_ in existing if id_ in self._of}
        scores = dict.fromkeys(among, 0.0)
        for word in set(words_of(question, number)):
            holders = {id_: counts[word] for id_, (counts, _) in vectors.items() if counts[word]}
            rarity = math.log(1 + (len(vectors) - len(holders) + 0.5) / (len(holders) + 0.5))
            for id_, times in holders.items():
                if id_ in scores:
                    counts, average = vectors[id_]
                    length = _K * (1 - _B + _B * counts.total() / average)
                    scores[id_] += rarity * times * (_K + 1) / (times + length)
        return sorted(((score, id_) for id_, score in scores.items() if score), key=lambda one: (-one[0], one[1]))


def fuse(rankings, query):
    """Return ids and scores of rankings that are fused by reciprocal ranks, best first.

    Args:
        rankings: Lists of ids.
        query: `models.FusionQuery` or `models.RrfQuery`.
    """
    weights = query.rrf.weights if isinstance(query, models.RrfQuery) else None
    scores = Counter()
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for place, id_ in enumerate(ranking):
            scores[id_] += 1 / (2 + place) if weights is None else 1 / (1 + (place + 1) / weight)
    return sorted(((score, id_) for id_, score in scores.items()), key=lambda one: (-one[0], one[1]))
