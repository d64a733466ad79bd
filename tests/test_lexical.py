import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models

from pplx_vectorstore.collection import VECTOR_NAME, text_index_params, vector_params
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.lexical import normalize_words, unseen_words

SCRIPTS = {
    "Latin": "aeiounzAEIOUé̂öñçßøłăếÅﬁ",
    "digits": "0123456789０１２²½",
    "full-width": "ｑｄｒａｎｔＡＢＣ",
    "Greek": "αβγάέΰΆΩ",
    "Cyrillic": "абвгйёЙЁї",
    "Chinese": "机器学习人工智能的分支東京都豈車",
    "kana": "ひらがなカタカナがぱﾊﾟｶﾞー",
    "Hangul": "서울은대한민국",
    "Thai": "กรุงเทพน้ำำที่เมืองหลวง",
    "Hebrew": "שלוםעולםשּׁ",
    "Arabic": "اللغةالعربيةآأ",
    "Devanagari": "नमस्तेदुनियाक़",
}
LETTERS = "".join(SCRIPTS.values())
TEXTS = st.text(LETTERS + "  .,-_\n。、「」", max_size=40)
FORMS = ("NFC", "NFD", "NFKC", "NFKD")


@given(TEXTS)
def test_words_do_not_depend_on_the_form(text):
    assert len({normalize_words(unicodedata.normalize(form, text)) for form in FORMS}) == 1
    assert normalize_words(normalize_words(text)).split() == normalize_words(text).split()


@given(st.text(LETTERS + " .", max_size=30))
def test_what_is_seen_already_is_not_kept_again(text):
    seen = set(normalize_words(text).replace(".", " ").split())
    assert not set(unseen_words(normalize_words(text)).split()) & seen
    assert unseen_words(text.encode("ascii", "ignore").decode()) == ""


@pytest.mark.parametrize(
    "text",
    [
        "Plain words, part 80-4471, v1.2.3, snake_case, don't",
        "Das Café öffnet – “sofort”. Ёлка, עולם, नमस्ते",
        "",
    ],
)
def test_of_most_texts_nothing_is_kept(text):
    assert unseen_words(text) == ""


@given(st.text(SCRIPTS["Chinese"][:-2], min_size=2, max_size=20), st.data())
def test_a_part_of_a_run_has_the_pairs_of_the_whole(run, data):
    start = data.draw(st.integers(0, len(run) - 2))
    stop = data.draw(st.integers(start + 2, len(run)))
    assert normalize_words(run[start:stop]).strip() in normalize_words(run)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("机器学习", "机器 器学 学习"),
        ("学2", "学 2"),
        ("型号80-4471的零件", "型号 80 4471 的零 零件"),
        ("型号 80-4471", ""),  # two characters are seen as they are
        ("GPU上的机器", "GPU 上的 的机 机器"),
        ("서울은", "서울 울은"),
        ("น้ำ", "นา"),  # without the mark above, which would split the word
        ("ｶﾞｽ", "ガス"),
        ("ＱＤＲＡＮＴ ok", "QDRANT"),
        ("Cafe\u0301 ok", "Café"),
        ("學習學習", "學習 習學 學習"),
    ],
)
def test_words_that_are_not_seen(text, words):
    assert unseen_words(text) == words


def test_every_word_is_found_in_every_form(folder):
    """On the engine: whatever form a chunk is in, its words are found in any other."""
    rng = random.Random(5)
    words = [
        unicodedata.normalize("NFC", "".join(rng.choices(letters, k=rng.randint(2, 6))))
        for letters in SCRIPTS.values()
        for _ in range(12)
    ]
    with EdgeClient(folder / "index") as client:
        client.create_collection("c", vectors_config=vector_params(4), metadata={})
        for field in ("text", "words"):
            client.create_payload_index("c", field, text_index_params())
        payloads = []
        for word in words:
            text = f"({unicodedata.normalize(rng.choice(FORMS), word)})"
            payloads.append({"text": text, "word": word, "words": unseen_words(text)})
        client.upsert(
            "c",
            [
                models.PointStruct(id=i, vector={VECTOR_NAME: [1, 2, 3, 4]}, payload=payload)
                for i, payload in enumerate(payloads)
            ],
        )

        def find(question):
            requests = [
                models.QueryRequest(query=models.TextQuery(text=question), using=field, limit=200, with_payload=True)
                for field in ("text", "words")
            ]
            found = client.query_batch_points("c", requests)
            return {point.payload["word"] for one in found for point in one.points}

        for word in words:
            if not any(map(str.isalnum, normalize_words(word))):
                continue
            for form in FORMS:
                assert word in find(normalize_words(unicodedata.normalize(form, word))), (word, form)
