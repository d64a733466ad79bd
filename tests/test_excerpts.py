from hypothesis import given
from hypothesis import strategies as st

from pplx_vectorstore.excerpts import QueryWords, split_sentences

TEXTS = st.text(st.sampled_from("ab é\n\n. .!?#-|`。東京天気\u0301\x1f\u2028"), max_size=300)
GUIDE = """# Kettle

The kettle holds 1.7 litres. Fill it with cold water, up to the mark on the side of the kettle, never above.

- Descale it once a month with citric acid.
- Rinse it twice.

| part | number |
|---|---|
| filter | 80-4471 |
"""


def best(query, text, length=60):
    start, stop = QueryWords(query).best_part(text, length)
    return text[start:stop]


def words(query, text):
    return [text[match.start : match.stop] for match in QueryWords(query).find(text)]


def test_the_sentences_that_have_the_words_are_chosen():
    assert best("How often should I descale my kettle?", GUIDE).startswith("- Descale it once a month")
    assert best("What is the number of the filter?", GUIDE).endswith("| filter | 80-4471 |")
    assert best("How much does it hold?", GUIDE) == "The kettle holds 1.7 litres."
    # What follows is shown as long as there is room.
    assert best("descaling", GUIDE, 1000).endswith("80-4471 |")


def test_without_any_of_the_words_the_beginning_is_shown():
    assert best("Wie heißt das?", GUIDE, 40).startswith("# Kettle")
    assert best("", GUIDE, 40).startswith("# Kettle")
    assert best("kettle", "") == ""
    assert best("kettle", " \n ") == ""


def test_a_rare_word_counts_more_than_a_frequent_one():
    text = "Cats eat. Cats sleep. Cats purr loudly. Cats run."
    assert best("cats that purr", text, 20) == "Cats purr loudly."


def test_a_sentence_that_is_too_long_is_cut_at_words_around_the_first():
    text = "word " * 100 + "needle " + "more " * 100
    found = best("needle", text, 100)
    assert len(found) <= 100
    assert "needle" in found
    assert found.startswith("word")
    assert found.endswith("more")
    assert len(best("x", "y" * 500, 100)) == 100


def test_other_forms_of_a_word_are_found_and_other_words_are_not():
    assert words("tenants indexed storing", "A tenant stores an index; indexing stored it.") == [
        "tenant", "stores", "index", "indexing", "stored",
    ]  # fmt: skip
    assert words("the cat", "The category catches cats.") == ["cats"]
    assert words("the who", "The Who") == ["The", "Who"]  # a question of nothing else
    assert words("80-4471", "Part 80-4471, not 4471x.") == ["80", "4471"]


def test_words_are_found_in_other_scripts():
    assert words("café ＡＢＣ", "Cafe\u0301 abc") == ["Cafe\u0301", "abc"]
    assert words("東京の天気", "今日の東京は天気が良い。") == ["東京", "天気"]
    assert best("天気", "東京は大きい。天気が良い。以上。", 7) == "天気が良い。"
    assert words("STRASSE", "Die Straße") == ["Straße"]


@given(text=TEXTS)
def test_sentences_are_in_order_and_leave_out_white_space_alone(text):
    at = 0
    for start, stop in split_sentences(text):
        assert not text[at:start].strip()
        assert text[start:stop] == text[start:stop].strip() != ""
        at = stop
    assert not text[at:].strip()


@given(text=TEXTS, query=TEXTS, length=st.integers(1, 80))
def test_a_part_is_never_longer_than_asked_for_and_never_empty(text, query, length):
    start, stop = QueryWords(query).best_part(text, length)
    assert 0 <= start <= stop <= len(text)
    assert stop - start <= length
    assert bool(text[start:stop].strip()) == bool(text.strip())


@given(text=TEXTS, query=TEXTS)
def test_matches_are_ranges_of_the_text_in_order(text, query):
    matches = QueryWords(query).find(text)
    assert matches == sorted(matches, key=lambda match: match.start)
    for match in matches:
        assert text[match.start : match.stop].strip()
        assert 0 < match.strength <= 1


def test_particles_that_stand_alone_are_no_words_of_a_question():
    found = QueryWords("猫 の 話").find("猫の話は東京の猫。")
    assert ["猫の話は東京の猫。"[match.start : match.stop] for match in found] == ["猫", "話", "猫"]
    assert QueryWords("の").find("猫の話")  # of a question that has no others
