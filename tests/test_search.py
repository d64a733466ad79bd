"""Search options on every engine: hybrid, grouped, diverse, with context, explained, filtered by operators."""

import math
import re
from datetime import UTC, date, datetime

import numpy as np
import pytest

from pplx_vectorstore import (
    Chunk,
    CollectionConfig,
    Document,
    EncodedQuery,
    cosine_similarity,
    hamming_distance,
    pack_bits,
)
from pplx_vectorstore.diversity import by_relevance_and_novelty
from pplx_vectorstore.errors import InvalidInputError, StoreError, UnsupportedFilterError
from pplx_vectorstore.lexical import normalize_words, unseen_words

N_DOCUMENTS, PER_DOCUMENT, DIMENSION = 30, 6, 64


@pytest.fixture
def codes():
    rng = np.random.default_rng(20240701)
    centres = rng.normal(size=(N_DOCUMENTS, DIMENSION))
    vectors = np.repeat(centres, PER_DOCUMENT, axis=0) + rng.normal(size=(N_DOCUMENTS * PER_DOCUMENT, DIMENSION))
    return np.clip(np.rint(40 * vectors), -128, 127).astype(np.int8)


@pytest.fixture
def stored(codes, as_stored):
    """The codes as they are ranked by."""
    return as_stored(codes)


@pytest.fixture
def filled(new_store, codes):
    """A store of 30 documents of 6 chunks; chunk j of document i has the words "common", "doc<i>", "chunk<j>"."""
    return fill(new_store(DIMENSION), codes)


def fill(store, codes):
    store.add(
        Document(
            id=f"d{i}",
            chunks=[f"common words of doc{i} and chunk{j}" for j in range(PER_DOCUMENT)],
            vectors=codes[i * PER_DOCUMENT : (i + 1) * PER_DOCUMENT],
            metadata={
                "number": i,
                "share": i / 10,
                "lang": ["en", "de", "fr"][i % 3],
                "when": f"2024-01-{i + 1:02}T00:00:00Z",
                **({"tag": "x"} if i < 5 else {}),
                "inner": {"deep": i % 2},
            },
        )
        for i in range(N_DOCUMENTS)
    )
    return store


def places(hits):
    return [(int(hit.document_id[1:]), hit.chunk_index) for hit in hits]


def rows(hits):
    return [document * PER_DOCUMENT + chunk for document, chunk in places(hits)]


# --- hybrid ------------------------------------------------------------------------------------------


def fuse(*rankings):
    """Reciprocal rank fusion with Qdrant's constant: a first rank is worth 1/2, a second 1/3."""
    scores = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking):
            scores[row] = scores.get(row, 0) + 1 / (rank + 2)
    return scores


def test_hybrid_fuses_the_rankings_by_cosine_and_by_words(filled, stored):
    question = "doc7 chunk3"
    (query,) = filled._session.encoder.encode_queries([question])
    by_cosine = np.argsort(-cosine_similarity(query, stored), kind="stable")[:20]
    hits = filled.search(question, k=5, candidates=20, hybrid=True)
    # Of the chunks that hold a word of the question, the one with both comes first; the others tie.
    expected = fuse(by_cosine, [7 * PER_DOCUMENT + 3])
    by_row = dict(zip(rows(hits), (hit.score for hit in hits), strict=True))
    assert by_row[7 * PER_DOCUMENT + 3] == pytest.approx(expected[7 * PER_DOCUMENT + 3], abs=1e-6)
    assert by_row[int(by_cosine[0])] >= 1 / 2 - 1e-6
    assert sorted((hit.score for hit in hits), reverse=True) == [hit.score for hit in hits]


def test_hybrid_finds_by_words_what_the_vectors_do_not(filled):
    hits = filled.search("doc21", k=3, candidates=3, hybrid=True)
    assert 21 in {document for document, _ in places(hits)}
    assert 21 not in {document for document, _ in places(filled.search("doc21", k=3, candidates=3))}


def test_hybrid_keeps_to_the_filter_in_both_rankings(filled):
    for hits in filled.search_batch(["doc21 chunk1", "common"], k=10, hybrid=True, filter={"lang": "de"}):
        assert hits
        assert {document % 3 for document, _ in places(hits)} == {1}


def test_a_threshold_of_a_hybrid_search_is_of_the_fused_score(filled):
    all_hits = filled.search("doc7 chunk3", k=10, hybrid=True)
    least = all_hits[2].score
    kept = filled.search("doc7 chunk3", k=10, hybrid=True, score_threshold=least)
    assert {hit.id for hit in kept} == {hit.id for hit in all_hits if hit.score >= least}


def test_hybrid_needs_words(filled, codes):
    with pytest.raises(InvalidInputError, match="needs the question's words"):
        filled.search(codes[0], hybrid=True)


def test_hybrid_takes_codes_that_are_there_already(filled, codes, monkeypatch):
    question = "doc7 chunk3"
    (query,) = filled._session.encoder.encode_queries([question])
    expected = {hit.id: hit.score for hit in filled.search(question, k=200, hybrid=True)}
    monkeypatch.delattr(type(filled._session.encoder), "encode_queries")
    encoded = EncodedQuery(question, query)
    assert {hit.id: hit.score for hit in filled.search(encoded, k=200, hybrid=True)} == expected
    assert rows(filled.search(EncodedQuery("", codes[40]), k=1)) == [40]
    for wrong in (EncodedQuery(question, query[:5]), EncodedQuery(question, query.astype(float))):
        with pytest.raises(InvalidInputError, match=r"int8 codes of shape \(64,\)"):
            filled.search(wrong, hybrid=True)
    with pytest.raises(InvalidInputError, match="must not be blank"):
        filled.search(EncodedQuery(" ", query), hybrid=True)


def test_rankings_have_shares_in_a_hybrid_search(filled, stored):
    question = "doc7 chunk3"
    (query,) = filled._session.encoder.encode_queries([question])
    by_cosine = np.argsort(-cosine_similarity(query, stored), kind="stable")[:20]
    both = 7 * PER_DOCUMENT + 3
    ranks = {}
    for share in (0.02, 0.3, 0.5, 0.7, 0.98):
        found = rows(filled.search(question, k=50, candidates=50, hybrid=True, lexical_weight=share))
        ranks[share] = found.index(both), found.index(int(by_cosine[0]))
    assert ranks[0.98][0] == 0
    assert ranks[0.02][1] == 0
    assert sorted(ranks[share][0] for share in ranks) == [ranks[share][0] for share in sorted(ranks, reverse=True)]
    assert sorted(ranks[share][1] for share in ranks) == [ranks[share][1] for share in sorted(ranks)]
    same = filled.search(question, k=10, hybrid=True, lexical_weight=0)
    assert same == filled.search(question, k=10)


def test_words_alone_rank_without_an_embedding(filled, monkeypatch):
    monkeypatch.delattr(type(filled._session.encoder), "encode_queries")
    options = {"hybrid": True, "lexical_weight": 1}
    hits = filled.search("doc7 chunk3", k=30, **options)
    assert places(hits)[0] == (7, 3)
    # A chunk with neither word is not found: 5 more of the document, 29 more of that number.
    assert len(filled.search("doc7 chunk3", k=100, **options)) == 35
    assert {document == 7 or chunk == 3 for document, chunk in places(hits)} == {True}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert filled.search("doc7 chunk3", k=100, **options, score_threshold=hits[0].score - 1e-3) == hits[:1]
    assert {d % 3 for d, _ in places(filled.search("chunk3", k=50, filter={"lang": "de"}, **options))} == {1}
    grouped = filled.search("doc7 chunk3", k=3, **options, group_by_document=True)
    assert len({hit.document_id for hit in grouped}) == 3
    assert grouped[0].id == hits[0].id
    assert filled.search("doc7 chunk3", k=3, **options, diversity=0.5)[0].id == hits[0].id
    assert filled.search("absent", **options) == []
    with pytest.raises(InvalidInputError, match="must not be blank"):
        filled.search(" ", **options)


LANGUAGES = {
    "Chinese": ("机器学习是人工智能的一个分支。", ["人工智能", "学习", "什么是机器学习？"]),
    "Japanese": ("東京都は日本の首都です。", ["東京", "首都", "日本の首都はどこ"]),
    "Thai": ("กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", ["เมืองหลวง", "ประเทศไทย"]),
    "Korean": ("서울은 대한민국의 수도이다", ["서울", "대한민국", "수도"]),
    "apart": ("Der Ku\u0308hlschrank o\u0308ffnet", ["öffnet", "o\u0308ffnet", "KÜHLSCHRANK"]),
    "together": ("Die Säge läuft", ["läuft", "la\u0308uft", "sa\u0308ge"]),
    "full-width": ("ｔｙｐｅ ４７１１ＡＢ", ["4711AB", "４７１１ａｂ"]),
    "half-width": ("ｶﾀﾛｸﾞ", ["カタログ", "ｶﾀﾛｸﾞ"]),
    "digits within": ("型号80-4471的零件", ["80-4471", "4471", "零件"]),
    "digits": ("Seal for the lid, part 80-4417.", ["80-4417", "part 4417", "4417"]),
}


def test_words_are_found_in_every_script_and_form(new_store):
    store = new_store()
    store.add(Document(id=name, chunks=[text]) for name, (text, _) in LANGUAGES.items())
    store.add(Document(id=f"other {i}", chunks=[f"Filler {i}, of no use", f"毫无用处的填充{i}"]) for i in range(20))
    questions = [(name, question) for name, (_, asked) in LANGUAGES.items() for question in asked]
    for share in (1, 0.99):
        found = store.search_batch([question for _, question in questions], k=1, hybrid=True, lexical_weight=share)
        assert [hit.document_id for (hit,) in found] == [name for name, _ in questions]
    for (hit,), (name, _) in zip(found, questions, strict=True):
        assert hit.text == LANGUAGES[name][0]
    assert store.search("不存在", hybrid=True, lexical_weight=1) == []


def bm25(question, texts):
    """Score texts by BM25 with its usual settings."""
    documents = [re.findall(r"[^\W_]+", text.lower()) for text in texts]
    documents = {i: words for i, words in enumerate(documents) if words}
    mean = sum(map(len, documents.values())) / len(documents)
    scores = np.zeros(len(texts))
    for word in set(re.findall(r"[^\W_]+", question.lower())):
        having = [i for i, words in documents.items() if word in words]
        idf = math.log(1 + (len(documents) - len(having) + 0.5) / (len(having) + 0.5))
        for i in having:
            tf = documents[i].count(word)
            scores[i] += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(documents[i]) / mean))
    return scores


def test_scores_of_words_alone_are_those_of_bm25(new_store):
    texts = ["GPU 上的机器学习", "机器学习 on a GPU, GPU time", "Of the GPU", "CPU time", "机器", "型号80的 GPU"]
    texts += [f"Filler {i}" for i in range(9)]
    store = new_store()
    if "bm25" in store._session.points.lexical_fields:
        pytest.skip("of vectors of words, test_word_vectors knows the scores")
    store.add([Document(id="d", chunks=texts)])
    for question in ("GPU 机器学习 time", "GPU", "机器学习"):
        hits = store.search(question, k=9, hybrid=True, lexical_weight=1)
        words = normalize_words(question)
        expected = bm25(words, texts) + bm25(words, [unseen_words(text) for text in texts])
        assert {hit.chunk_index for hit in hits} == set(np.flatnonzero(expected).tolist())
        assert [hit.score for hit in hits] == pytest.approx([expected[hit.chunk_index] for hit in hits], abs=1e-4)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        least = hits[1].score
        kept = store.search(question, k=9, hybrid=True, lexical_weight=1, score_threshold=least - 1e-6)
        assert [hit.id for hit in kept] == [hit.id for hit in hits if hit.score >= least]
        assert [hit.id for hit in store.search(question, k=2, hybrid=True, lexical_weight=1)] == [
            hit.id for hit in hits[:2]
        ]


ANIMALS = "猫狗鸟鱼马牛羊鸡鸭鹅"


def test_words_that_the_index_of_the_text_does_not_see_are_fused_alike(new_store, codes, stored):
    """Sums of BM25 make one ranking, whatever is done with the candidates."""
    n = N_DOCUMENTS * PER_DOCUMENT
    rng = np.random.default_rng(12)
    texts = ["".join(rng.choice(list(ANIMALS), size=2 + i)) + f" x{i % 7}" + " y" * i for i in rng.permutation(n)]
    store = new_store(DIMENSION)
    store.add(
        Document(
            id=f"d{i}",
            chunks=texts[i * PER_DOCUMENT : (i + 1) * PER_DOCUMENT],
            vectors=codes[i * PER_DOCUMENT : (i + 1) * PER_DOCUMENT],
            metadata={"lang": ["zh", "en"][i % 2]},
        )
        for i in range(N_DOCUMENTS)
    )
    question = "猫狗鸟 x3"
    (query,) = store._session.encoder.encode_queries([question])
    words = normalize_words(question)
    scores = bm25(words, texts) + bm25(words, [unseen_words(text) for text in texts])
    lexical = sorted(np.flatnonzero(scores).tolist(), key=lambda row: -scores[row])
    assert np.min(-np.diff(np.sort(scores[scores > 0])[::-1])) > 1e-5  # else their order is the engine's
    by_cosine = np.argsort(-cosine_similarity(query, stored), kind="stable").tolist()
    expected = fuse(by_cosine, lexical)
    hits = store.search(question, k=8, candidates=n, hybrid=True)
    # Far down, cosines may be so alike that the engine's 32 bits put them in another order.
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True)[:8], abs=1e-3)
    assert [expected[row] for row in rows(hits)] == pytest.approx([hit.score for hit in hits], abs=1e-3)
    assert store.search_batch([question, "absent", question], k=8, candidates=n, hybrid=True)[::2] == [hits, hits]
    assert store.search(question, k=8, candidates=n, hybrid=True, score_threshold=hits[3].score - 1e-6) == [
        hit for hit in hits if hit.score >= hits[3].score
    ]
    for hit in store.search(question, k=8, hybrid=True, filter={"lang": "zh"}, with_codes=True):
        (row,) = rows([hit])
        assert (row // PER_DOCUMENT % 2, hit.text) == (0, texts[row])
        assert (hit.codes == codes[row]).all()
    grouped = store.search(question, k=5, hybrid=True, group_by_document=True)
    assert len({hit.document_id for hit in grouped}) == 5
    assert store.search(question, k=5, candidates=n, hybrid=True, diversity=0.5)[0].id == hits[0].id
    alone = store.search(question, k=200, hybrid=True, lexical_weight=1)
    assert set(rows(alone)) == set(np.flatnonzero(scores).tolist())


def test_hybrid_without_a_text_index_says_how_to_build_it(new_store, engine):
    if engine == "memory":
        pytest.skip("QdrantClient(':memory:') does not tell which indexes it has")
    store = new_store(config=CollectionConfig(text_index=False), collection="c")
    store.add([Document(id="d", chunks=["some words"])])
    with pytest.raises(StoreError, match=r"config=CollectionConfig\(text_index=True\)|copy it into a new collection"):
        store.search("words", hybrid=True)
    assert store.search("words")


# --- grouping ----------------------------------------------------------------------------------------


def best_of_documents(query, codes, k, most):
    scores = cosine_similarity(query, codes)
    groups = {}
    for row in np.argsort(-scores, kind="stable"):
        groups.setdefault(int(row) // PER_DOCUMENT, []).append(int(row))
    return [row for group in list(groups.values())[:k] for row in group[:most]]


@pytest.mark.parametrize("most", [True, 1, 2, 6, 99])
def test_grouping_gives_the_best_chunks_of_the_best_documents(filled, codes, stored, most):
    for query in codes[::37]:
        hits = filled.search(query, k=4, group_by_document=most)
        expected = best_of_documents(query, stored, 4, int(most))
        scores = cosine_similarity(query, stored)
        # Of two chunks at the same cosine, to 32 bits, either may come first.
        np.testing.assert_allclose(scores[rows(hits)], scores[expected], rtol=0, atol=1e-6)
        assert [document for document, _ in places(hits)] == [row // PER_DOCUMENT for row in expected]
        assert len(set(rows(hits))) == len(hits)


def test_grouping_asks_for_more_candidates_until_there_are_enough_documents(filled, codes, stored):
    hits = filled.search(codes[0], k=N_DOCUMENTS, candidates=N_DOCUMENTS, group_by_document=True)
    assert len({hit.document_id for hit in hits}) == N_DOCUMENTS
    assert rows(hits) == best_of_documents(codes[0], stored, N_DOCUMENTS, 1)
    assert len(filled.search(codes[0], k=50, group_by_document=True)) == N_DOCUMENTS


def test_grouping_in_a_batch_with_filter_and_threshold(filled, codes):
    options = {"k": 3, "group_by_document": 2, "filter": {"lang": "fr"}, "score_threshold": 0.0}
    batch = filled.search_batch([codes[3], codes[100]], **options)
    assert [rows(hits) for hits in batch] == [rows(filled.search(query, **options)) for query in codes[[3, 100]]]
    for hits in batch:
        assert {document % 3 for document, _ in places(hits)} == {2}
        assert all(hit.score >= 0 for hit in hits)


# --- diversity ---------------------------------------------------------------------------------------


def mmr(query, codes, pool, k, diversity):
    """Carbonell and Goldstein, written out."""
    relevance = cosine_similarity(query, codes)
    likeness = cosine_similarity(codes, codes)
    chosen, left = [], list(pool)
    while left and len(chosen) < k:
        if chosen:
            scores = [(1 - diversity) * relevance[i] - diversity * max(likeness[i, j] for j in chosen) for i in left]
        else:
            scores = [relevance[i] for i in left]
        chosen.append(left.pop(int(np.argmax(scores))))
    return chosen


@pytest.mark.parametrize("diversity", [0, 0.3, 0.7, 1])
def test_diversity_is_maximal_marginal_relevance_over_the_codes(filled, codes, stored, diversity):
    for query in codes[[0, 50, 111]]:
        pool = np.argsort(-cosine_similarity(query, stored), kind="stable")[:40]
        hits = filled.search(query, k=8, candidates=40, diversity=diversity)
        found = filled.search(query, k=40, candidates=40)
        assert rows(hits) == mmr(query, stored, rows(found), 8, diversity)
        np.testing.assert_allclose([hit.score for hit in hits], cosine_similarity(query, stored)[rows(hits)], atol=1e-6)
        if diversity == 0:
            assert set(rows(hits)) <= set(pool.tolist())


def test_diversity_and_grouping_together(filled, codes, stored):
    query = codes[0] // 2 + codes[100] // 2  # of itself and another, a stored vector would be as near as far
    hits = filled.search(query, k=5, candidates=60, diversity=0.4, group_by_document=True)
    assert len({hit.document_id for hit in hits}) == len(hits) == 5
    pool = rows(filled.search(query, k=60, candidates=60))
    first_of = {}
    for row in mmr(query, stored, pool, 60, 0.4):
        first_of.setdefault(row // PER_DOCUMENT, row)
    assert rows(hits) == list(first_of.values())[:5]


def test_the_order_by_novelty_of_nothing_and_of_equals():
    query = np.array([1, 2, 3], np.int8)

    def order(codes, diversity):
        return list(by_relevance_and_novelty(cosine_similarity(query, codes), codes, diversity))

    assert order(np.zeros((0, 3), np.int8), 0.5) == []
    assert order(np.array([[1, 2, 3]] * 3, np.int8), 0.5) == [0, 1, 2]
    assert order(np.array([[0, 0, 0], [1, 2, 3]], np.int8), 0.0) == [1, 0]


def test_diversity_of_a_hybrid_search_starts_from_the_fused_scores(filled):
    fused = filled.search("doc7 chunk3", k=6, hybrid=True)
    alone = filled.search("doc7 chunk3", k=6, hybrid=True, diversity=0)
    assert sorted(hit.score for hit in alone) == pytest.approx(sorted(hit.score for hit in fused))
    assert filled.search("doc7 chunk3", k=1, hybrid=True, diversity=1)[0].score == fused[0].score


def test_groups_come_in_the_order_of_their_best_chunk(new_store):
    rng = np.random.default_rng(5)
    store = new_store(32)
    codes = rng.integers(-128, 128, size=(20, 30, 32)).astype(np.int8)
    store.add(Document(id=f"d{i}", chunks=["x"] * 30, vectors=rows) for i, rows in enumerate(codes))
    for query in codes[:, 0][:8]:
        hits = store.search(query, k=6, candidates=20, group_by_document=3)
        groups = list(dict.fromkeys(hit.document_id for hit in hits))
        best = [max(hit.score for hit in hits if hit.document_id == document_id) for document_id in groups]
        assert best == sorted(best, reverse=True)


# --- context -----------------------------------------------------------------------------------------


def test_context_joins_the_neighbours(new_store):
    text = "One two.  Three four.\nFive six. Seven."
    spans = [(0, 8), (10, 21), (22, 31), (32, 38)]
    store = new_store()
    store.add(
        [
            Document(id="with", chunks=[Chunk(text=text[a:b], start=a, end=b) for a, b in spans]),
            Document(id="without", chunks=["a", "b", "c"]),
        ]
    )
    by_text = {hit.text: hit for hit in store.search("x", k=10, context=1)}
    assert by_text["One two."].context == "One two.\n\nThree four."
    assert by_text["Three four."].context == "One two.\n\nThree four. Five six."
    assert by_text["Seven."].context == "Five six. Seven."
    assert by_text["b"].context == "a\n\nb\n\nc"
    assert by_text["a"].context == "a\n\nb"
    assert {hit.text: hit.context for hit in store.search("x", k=10, context=9)}["c"] == "a\n\nb\n\nc"
    assert all(hit.context is None for hit in store.search("x", k=10))
    assert by_text["b"].chunk_index == 1


def test_overlapping_chunks_are_joined_without_repeating_the_overlap(new_store):
    text = "abcdefghijklmnop"
    store = new_store()
    spans = [(0, 6), (4, 10), (5, 9), (8, 16)]
    store.add([Document(id="d", chunks=[Chunk(text=text[a:b], start=a, end=b) for a, b in spans])])
    hits = {hit.chunk_index: hit.context for hit in store.search("x", k=4, context=3)}
    assert hits == dict.fromkeys(range(4), text)


def test_offsets_that_begin_anew_lose_nothing(new_store):
    store = new_store()
    pages = [Chunk(text="A" * 50, start=0, end=50), Chunk(text="second page", start=0, end=11)]
    odd = [Chunk(text="said to be longer", start=50, end=90), Chunk(text="end", start=80, end=83)]
    store.add([Document(id="d", chunks=[*pages, *odd])])
    for hit in store.search("x", k=4, context=3):
        assert hit.context == f"{'A' * 50}\n\nsecond page\n\nsaid to be longer\n\nend"


def test_context_of_many_hits_in_a_batch(filled, codes):
    for hits in filled.search_batch([codes[0], codes[90]], k=100, context=1):
        assert len(hits) == 100
        for hit, (document, chunk) in zip(hits, places(hits), strict=True):
            expected = [f"common words of doc{document} and chunk{j}" for j in (chunk - 1, chunk, chunk + 1)]
            assert hit.context == "\n\n".join(expected[chunk == 0 : 3 - (chunk == PER_DOCUMENT - 1)])


# --- explain -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("query_encoding", ["scalar8bits", "binary"])
def test_explain_gives_the_ranks_of_each_stage(new_store, codes, stored, engine, query_encoding):
    filled = fill(new_store(DIMENSION, config=CollectionConfig(query_encoding=query_encoding)), codes)
    filled.optimize()
    query = codes[77]
    explained = filled.explain(query, k=5, candidates=40)
    hits = filled.search(query, k=5, candidates=40)
    assert [one.hit for one in explained.hits] == hits
    assert explained.candidates == 40
    assert explained.way == "codes"  # 64 bits tell too little
    cosine = cosine_similarity(query, stored)
    if query_encoding == "binary":  # ties among whole numbers leave a choice
        hamming, unsure = hamming_distance(pack_bits(query), pack_bits(stored)), 0.0
    else:  # a differing bit counts as much as the query's component, of which the engine keeps 8 bits
        weights = query.astype(float) + 1  # it takes the bits of value - 127, and the query alike
        hamming = (np.abs(weights) * ((stored >= 0) != (query >= 0))).sum(axis=1)
        unsure = np.abs(weights).max() / 127 * math.sqrt(DIMENSION)
    for one, row in zip(explained.hits, rows(hits), strict=True):
        assert one.exact_rank == 1 + np.count_nonzero(cosine > cosine[row])
        if engine == "edge":
            at_least = 1 + np.count_nonzero(hamming < hamming[row] - unsure)
            assert at_least <= one.hamming_rank <= np.count_nonzero(hamming <= hamming[row] + unsure)
    if engine == "memory":
        assert {one.hamming_rank for one in explained.hits} == {None}


def test_explain_names_what_the_first_stage_missed(filled, codes, stored):
    filled.optimize()
    exact = cosine_similarity(codes[5], stored)
    best = set(np.argsort(-exact, kind="stable")[:10].tolist())
    narrow = filled.explain(codes[5], k=10, candidates=10)
    found = set(rows([one.hit for one in narrow.hits]))
    assert set(rows(narrow.missed)) == best - found
    assert narrow.recall == pytest.approx(len(best & found) / 10)
    wide = filled.explain(codes[5], k=10, candidates=1000)
    assert (wide.recall, wide.missed) == (1.0, ())


def test_explain_of_nothing(filled, codes):
    explained = filled.explain(codes[0], filter={"lang": "none"})
    assert (explained.hits, explained.missed, explained.recall) == ((), (), 1.0)


# --- filters with operators --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"number": {"$gt": 3, "$lte": 7}}, lambda i: 3 < i <= 7),
        ({"number": {"$gte": 28}}, lambda i: i >= 28),
        ({"share": {"$lt": 0.25}}, lambda i: i / 10 < 0.25),
        ({"share": 0.2}, lambda i: i == 2),
        ({"when": {"$gte": "2024-01-10", "$lt": "2024-01-12T00:00:00Z"}}, lambda i: i in (9, 10)),
        ({"when": {"$gt": datetime(2024, 1, 29, tzinfo=UTC)}}, lambda i: i > 28),
        ({"when": {"$lte": date(2024, 1, 2)}}, lambda i: i < 2),
        ({"lang": {"$ne": "en"}}, lambda i: i % 3 != 0),
        ({"lang": {"$in": ["en", "fr"]}}, lambda i: i % 3 != 1),
        ({"lang": {"$nin": ["en", "fr"]}}, lambda i: i % 3 == 1),
        ({"tag": {"$exists": True}}, lambda i: i < 5),
        ({"tag": {"$exists": False}}, lambda i: i >= 5),
        ({"tag": {"$ne": "x"}}, lambda i: i >= 5),
        ({"inner": {"deep": {"$gt": 0}}}, lambda i: i % 2 == 1),
        ({"inner": {"$ne": {"deep": 1, "gone": 1}}}, lambda i: True),
        ({"inner": {"$ne": {"deep": 1, "gone": None}}}, lambda i: i % 2 == 0),
        ({"inner": {"deep": 1}, "number": {"$lt": 10, "$ne": 3}}, lambda i: i % 2 == 1 and i < 10 and i != 3),
    ],
)
def test_operators_of_a_filter(filled, codes, given, kept):
    expected = {i for i in range(N_DOCUMENTS) if kept(i)}
    assert filled.count(given) == PER_DOCUMENT * len(expected)
    hits = filled.search(codes[0], k=200, candidates=200, filter=given)
    assert {document for document, _ in places(hits)} == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": {"$gt": 1, "b": 2}}, "mixes operators and fields"),
        ({"a": {"$like": "x"}}, "operators of a field are"),
        ({"a": {"$gt": True}}, "bounds must be finite numbers"),
        ({"a": {"$gt": math.nan}}, "bounds must be finite numbers"),
        ({"a": {"$gt": 1, "$lt": "2024-01-01"}}, "bounds must be finite numbers"),
        ({"a": {"$gt": "yesterday"}}, "no date"),
        ({"a": {"$gt": 1, "$gte": 3}}, "two bounds on one side"),
        ({"a": {"$in": "en"}}, "needs a list"),
        ({"a": {"$nin": 1}}, "needs a list"),
        ({"a": {"$exists": "yes"}}, "with True or False"),
        ({"a": {"$or": [1, 2]}}, r"\$and, \$or, \$not stand around whole filters"),
        ({"$gte": 5}, "the others within a field"),
    ],
)
def test_operators_that_mean_nothing_are_refused(filled, given, message):
    with pytest.raises(UnsupportedFilterError, match=message):
        filled.count(given)


# --- arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"hybrid": 1},
        {"lexical_weight": 1.5, "hybrid": True},
        {"lexical_weight": None},
        {"group_by_document": -1},
        {"group_by_document": 1.5},
        {"diversity": 1.1},
        {"diversity": True},
        {"diversity": "much"},
        {"context": -1},
        {"context": 101},
        {"context": True},
    ],
    ids=repr,
)
def test_bad_search_options_are_refused_by_name(filled, options):
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        filled.search("text", **options)
