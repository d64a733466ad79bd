"""The late-chunking encoder: against the reference algorithm, and over doubles of the token model."""

import asyncio
import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplx_vectorstore.encoders.late_chunking import LateChunkingEncoder, with_options
from pplx_vectorstore.equal_norms import quantize
from pplx_vectorstore.errors import AlignmentError, EncodingError, InvalidInputError
from pplx_vectorstore.models import KNOWN_MODELS, ModelSpec
from pplx_vectorstore.quantization import truncate
from pplx_vectorstore.tokenization import ChunkTokenizer
from pplx_vectorstore.windows import plan_windows

NASTY = [
    "<|endoftext|>",
    "before <|endoftext|> after",
    "[CLS] spelled [SEP] out [PAD]",
    "nul \x00 and \x1f controls",
    "lone \ud800 surrogate \udfff",
    "שלום עולם، مرحبا بالعالم",
    "e\u0301 a\u0308 combining \u0915\u094d\u0937",
    "👩‍👩‍👧‍👦 🇩🇪 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "日本語の文章。次の文。",
    "\u200b",
    "\u202eevil\u202c\ufeff",
    "\U0010ffff\ufffd",
]


def assert_same_vectors(vectors, expected):
    """Float vectors agree up to rounding: cosine at least 0.99999, zeros where zeros are expected."""
    assert vectors.shape == expected.shape
    assert vectors.dtype == np.float32
    for vector, wanted in zip(vectors.astype(np.float64), expected.astype(np.float64), strict=True):
        if wanted.any():
            assert vector @ wanted / np.linalg.norm(vector) / np.linalg.norm(wanted) >= 0.99999
            assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(wanted), rel=1e-3)
        else:
            assert not vector.any()


def assert_same_codes(codes, expected):
    """Codes agree up to one unit, where rounding ties."""
    assert codes.shape == expected.shape
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int) - expected.astype(int)).max(initial=0) <= 1


def assert_matches_reference(encoder, reference, documents, windows=None):
    vectors = encoder.chunk_vectors(documents)
    assert len(vectors) == len(documents)
    for document, floats in zip(documents, vectors, strict=True):
        assert len(floats) == len(document)
        expected = reference(document, windows)
        assert_same_vectors(floats, expected)
        reference.assert_codes(quantize(floats, encoder.spec.quantizer), expected)


def windows_of(encoder):
    """What plan_windows is told by an encoder with its default context."""
    frame = len(encoder.tokenizer.prefix_ids) + len(encoder.tokenizer.suffix_ids)
    return functools.partial(
        plan_windows,
        capacity=encoder.spec.window_tokens - frame,
        min_context=encoder.fingerprint.min_context,
    )


@pytest.fixture(scope="module")
def documents(sentences):
    """Documents of very different lengths, so that a batch of them needs padding."""
    return [
        sentences[:3],
        [sentences[3]],
        ["short"],
        sentences,
        ["", sentences[4], " \n", sentences[5], ""],
        [],
        ["a"] * 20,
        [" ".join(sentences[:4]), sentences[6]],
        [""],
        sentences[2::-1],
    ]


class TestAgainstTheReference:
    def test_every_document_alone(self, token_encoder, reference_vectors, documents):
        for document in documents:
            assert_matches_reference(token_encoder, reference_vectors, [document])

    def test_all_documents_in_one_call(self, token_encoder, reference_vectors, documents):
        assert_matches_reference(token_encoder, reference_vectors, documents)

    def test_codes(self, token_encoder, reference_vectors, documents):
        codes = token_encoder.encode_documents(documents)
        assert len(codes) == len(documents)
        for document, int8 in zip(documents, codes, strict=True):
            reference_vectors.assert_codes(int8, reference_vectors(document))

    def test_codes_of_queries(self, token_encoder, reference_vectors, sentences):
        queries = [*sentences, "", "short"]
        expected = np.concatenate([reference_vectors([query]) for query in queries])
        reference_vectors.assert_codes(token_encoder.encode_queries(queries), expected)

    @pytest.mark.parametrize("seed", [1, 2])
    def test_in_any_order(self, token_encoder, reference_vectors, documents, seed):
        order = np.random.default_rng(seed).permutation(len(documents))
        assert_matches_reference(token_encoder, reference_vectors, [documents[index] for index in order])

    @pytest.mark.parametrize("batch_tokens", [1, 100, 10**6])
    def test_whatever_the_batch(self, load_like, reference_vectors, documents, batch_tokens):
        assert_matches_reference(load_like(batch_tokens=batch_tokens), reference_vectors, documents)

    @pytest.mark.parametrize("nasty", NASTY)
    def test_nasty_text(self, token_encoder, reference_vectors, nasty):
        document = [nasty, "plain text between", f"{nasty} {nasty}", "", nasty]
        assert_matches_reference(token_encoder, reference_vectors, [document, [nasty]])

    @pytest.mark.parametrize(("window_tokens", "min_context"), [(64, None), (40, 0), (33, 15), (16, 3)])
    def test_window_by_window(self, load_like, reference_vectors, documents, window_tokens, min_context):
        encoder = load_like(window_tokens=window_tokens, min_context=min_context)
        assert_matches_reference(encoder, reference_vectors, documents, windows_of(encoder))

    def test_document_longer_than_the_default_window_of_minilm(self, minilm, minilm_reference, sentences):
        document = [f"{number}. {sentences[number % 8]}" for number in range(45)]
        document[5] = " ".join(document[5:45])  # a chunk that alone exceeds the window
        assert len(minilm.tokenizer.encode([document[5]])[0]) > 510
        assert sum(map(len, minilm.tokenizer.encode(document))) > 2 * 510
        assert_matches_reference(minilm, minilm_reference, [document, document[:3]], windows_of(minilm))

    def test_document_longer_than_the_default_window_of_pplx(self, pplx, pplx_reference, sentences):
        document = [f"{number}. {sentences[number % 8]}" for number in range(260)]
        assert sum(map(len, pplx.tokenizer.encode(document))) > 4096
        assert_matches_reference(pplx, pplx_reference, [document], windows_of(pplx))

    @settings(max_examples=30)
    @given(
        document=st.lists(
            st.one_of(
                st.sampled_from(["", " ", "\n\t", *NASTY]),
                st.lists(st.one_of(st.characters(), st.sampled_from("\ud800\udfff")), max_size=30).map("".join),
            ),
            max_size=8,
        )
    )
    def test_random_unicode(self, load_like_cached, reference_vectors, document):
        encoder = load_like_cached(64)
        assert_matches_reference(encoder, reference_vectors, [document], windows_of(encoder))


@pytest.fixture(scope="module")
def load_like_cached(load_like):
    return functools.cache(lambda window_tokens: load_like(window_tokens=window_tokens))


class TestContext:
    def test_chunks_see_what_comes_after_them_and_before(self, token_encoder, sentences):
        encode = token_encoder.chunk_vectors
        one, after, before = encode([[sentences[0], "x"], [sentences[0], "y"], ["y", sentences[0]]])
        alone = encode([[sentences[0]]])[0][0]
        assert np.abs(one[0] - after[0]).max() > 1e-3
        assert np.abs(one[0] - alone).max() > 1e-3
        assert np.abs(before[1] - alone).max() > 1e-3

    def test_documents_do_not_see_each_other(self, token_encoder, documents):
        """One batch of unrelated texts is not one document."""
        together = token_encoder.encode_documents(documents)
        for document, codes in zip(documents, together, strict=True):
            assert_same_codes(token_encoder.encode_documents([document])[0], codes)

    def test_weight_zero_is_each_chunk_alone(self, load_like, sentences):
        encoder = load_like(context_weight=0.0)
        (codes,) = encoder.encode_documents([sentences])
        assert_same_codes(codes, encoder.encode_queries(sentences))

    def test_weights_between_are_a_blend_of_float_vectors(self, load_like, sentences):
        late, independent, blended = (
            load_like(context_weight=weight).chunk_vectors([sentences, ["", "x"]]) for weight in (1.0, 0.0, 0.25)
        )
        for a, b, mixed in zip(late, independent, blended, strict=True):
            assert np.abs(mixed - (0.25 * a + 0.75 * b)).max() < 1e-5

    def test_a_query_is_a_document_of_one_chunk(self, token_encoder, sentences):
        queries = [*sentences, "", "x"]
        codes = token_encoder.encode_queries(queries)
        alone = np.concatenate(token_encoder.encode_documents([[query] for query in queries]))
        assert_same_codes(codes, alone)


class TestNothingIsLost:
    @pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000"])
    def test_blank_chunks_are_zero_vectors_in_their_place(self, token_encoder, blank):
        (codes,) = token_encoder.encode_documents([[blank, "text", blank, "more text", blank]])
        assert codes.any(axis=1).tolist() == [False, True, False, True, False]

    @pytest.mark.parametrize("document", [[], [""], ["", " "]])
    def test_documents_without_text(self, token_encoder, document):
        vectors, between, codes = token_encoder.encode_documents([document, ["text"], document])
        for empty in (vectors, codes):
            assert empty.shape == (len(document), token_encoder.spec.dimension)
            assert not empty.any()
        assert between.any()

    def test_nothing_gives_nothing(self, token_encoder):
        assert token_encoder.encode_documents([]) == []
        assert token_encoder.encode_queries([]).shape == (0, token_encoder.spec.dimension)
        assert token_encoder.encode_queries(["", " "]).any() == np.False_

    def test_very_long_chunk_without_a_space(self, load_like):
        chunk = "abcdefghij" * 10_000
        (codes,) = load_like(window_tokens=256).encode_documents([["before", chunk, "after"]])
        assert len(codes) == 3
        assert codes.any(axis=1).all()

    @pytest.mark.slow
    def test_very_long_chunk_of_many_windows_on_minilm(self, minilm):
        chunk = "unquestionable,misunderstandings." * 3_000
        assert len(minilm.tokenizer.encode([chunk])[0]) > 10 * 512
        (codes,) = minilm.encode_documents([[chunk]])
        assert codes.shape == (1, 384)
        assert codes.any()

    def test_a_chunk_cut_into_pieces_is_pooled_over_all_of_it(self, load_like):
        """The end of a long chunk matters as much as its start."""
        encoder = load_like(window_tokens=32)
        words = [f"word{number} " for number in range(120)]
        vectors = [
            encoder.chunk_vectors([["".join(changed)]])[0][0]
            for changed in (words, ["other ", *words[1:]], [*words[:-1], "other "])
        ]
        assert np.abs(vectors[1] - vectors[0]).max() > 1e-4
        assert np.abs(vectors[2] - vectors[0]).max() > 1e-4

    def test_separator_spelled_in_text_shifts_no_vector(self, pplx):
        """Parsed as a token, it would split its chunk and give later chunks their neighbours' vectors."""
        spelled = ["first", "sec<|endoftext|>ond", "third"]
        (vectors,) = pplx.chunk_vectors([spelled])
        (other,) = pplx.chunk_vectors([["first", "sec<|endoftext|xond", "third"]])
        assert len(vectors) == 3
        cosines = (vectors * other).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(other, axis=1)
        assert cosines.min() > 0.9


class TestOptions:
    def test_dimensions_cut_floats_before_quantizing(self, wide_pplx_checkpoint, sentences):
        from pplx_vectorstore import load_encoder

        full = load_encoder(str(wide_pplx_checkpoint), dtype="float32")
        cut = load_encoder(str(wide_pplx_checkpoint), dtype="float32", dimensions=128)
        assert (full.spec.dimension, cut.spec.dimension, cut.fingerprint.dimension) == (192, 128, 128)
        for floats, codes in zip(
            full.chunk_vectors([sentences, []]), cut.encode_documents([sentences, []]), strict=True
        ):
            assert_same_codes(codes, quantize(truncate(floats, 128), "tanh"))
        assert_same_codes(cut.encode_queries(["question"]), full.encode_queries(["question"])[:, :128])
        assert cut.encode_queries([]).shape == (0, 128)

    def test_the_norm_is_that_of_the_cut_vector(self, minilm, sentences):
        spec = replace(minilm.spec, dimension=32)
        cut = LateChunkingEncoder(minilm._model, minilm.tokenizer, spec)
        (codes,) = cut.encode_documents([sentences])
        (floats,) = minilm.chunk_vectors([sentences])
        assert_same_codes(codes, quantize(floats[:, :32], "norm"))
        assert (np.square(codes.astype(int)).sum(axis=1) == 28**2 * 32).all()

    @pytest.mark.parametrize(
        "options", [{}, {"dimensions": 192}, {"dimensions": 128}, {"window_tokens": 1}, {"context_weight": 0}]
    )
    def test_within_the_models_range(self, options):
        spec = replace(KNOWN_MODELS["perplexity-ai/pplx-embed-context-v1-0.6b"], dimension=192)
        changed = with_options(spec, **options)
        assert changed.dimension == options.get("dimensions", 192)
        assert changed.window_tokens == options.get("window_tokens", 4096)
        assert changed.context_weight == options.get("context_weight", 1.0)

    @pytest.mark.parametrize("dimensions", [0, -1, 127, 1025])
    def test_dimensions_out_of_range(self, dimensions):
        spec = KNOWN_MODELS["perplexity-ai/pplx-embed-context-v1-0.6b"]
        with pytest.raises(InvalidInputError, match=f"must be from 128 to 1024, not {dimensions}"):
            with_options(spec, dimensions=dimensions)

    @pytest.mark.parametrize("dimensions", [1, 383, 385])
    def test_dimensions_of_a_model_that_cannot_be_cut(self, dimensions):
        with pytest.raises(InvalidInputError, match=f"all-minilm-l6-v2 must be 384, not {dimensions}"):
            with_options(KNOWN_MODELS["all-minilm-l6-v2"], dimensions=dimensions)

    @pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
    def test_context_weight_out_of_range(self, weight):
        with pytest.raises(InvalidInputError, match="context_weight must be from 0 to 1"):
            with_options(KNOWN_MODELS["all-minilm-l6-v2"], context_weight=weight)


class TestAsync:
    def test_gives_what_the_sync_methods_give(self, token_encoder, documents, sentences):
        async def both():
            return await asyncio.gather(
                token_encoder.aencode_documents(documents), token_encoder.aencode_queries(sentences)
            )

        codes, queries = asyncio.run(both())
        for awaited, expected in zip(codes, token_encoder.encode_documents(documents), strict=True):
            assert (awaited == expected).all()
        assert (queries == token_encoder.encode_queries(sentences)).all()

    def test_leaves_the_event_loop_free(self, token_encoder, sentences):
        async def count_while_encoding():
            task = asyncio.create_task(token_encoder.aencode_documents([sentences] * 4))
            ticks = 0
            while not task.done():
                await asyncio.sleep(0.001)
                ticks += 1
            return ticks

        assert asyncio.run(count_while_encoding()) > 1


class TestProgress:
    def test_rises_to_the_total(self, load_like, documents):
        seen = []
        load_like(batch_tokens=64).encode_documents(documents, progress=lambda done, total: seen.append((done, total)))
        assert len(seen) > 3
        assert len({total for _, total in seen}) == 1
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        assert seen[-1][0] == seen[-1][1]

    def test_is_silent_without_work(self, token_encoder):
        token_encoder.encode_documents([[""], []], progress=lambda done, total: pytest.fail("called"))


class TestBadInput:
    @pytest.mark.parametrize("documents", ["one text", [["fine"], "a str"], [["fine"], [b"bytes"]], [["fine", None]]])
    def test_documents_must_be_lists_of_str(self, pplx, documents):
        with pytest.raises(InvalidInputError, match="must be a list"):
            pplx.encode_documents(documents)

    @pytest.mark.parametrize("documents", [None, 3, iter([["a"], ["b"]]), {"a": ["b"]}])
    def test_documents_must_be_a_list(self, pplx, documents):
        """An iterator most of all: reading it twice would find it empty, and give no vectors at all."""
        with pytest.raises(InvalidInputError, match="must be a list"):
            pplx.encode_documents(documents)

    @pytest.mark.parametrize("document", [None, 3, iter(["a"]), {"a": "b"}])
    def test_each_document_must_be_a_list(self, pplx, document):
        with pytest.raises(InvalidInputError, match="a document must be a list of str"):
            pplx.encode_documents([["fine"], document])

    @pytest.mark.parametrize("queries", ["one query", b"bytes", None, 3, [3], ["fine", None], iter(["a"])])
    def test_queries_must_be_a_list_of_str(self, pplx, queries):
        with pytest.raises(InvalidInputError, match="queries must be a list of str"):
            pplx.encode_queries(queries)


class IdModel:
    """A token model whose token vectors depend on the id alone: pooling can be checked to the bit's end.

    Vectors are one-hot in the id, so a pooled vector is the histogram of the ids it was pooled over.
    """

    pads = True
    batch_tokens = 64

    def __init__(self, dimension):
        self.dimension = dimension
        self.rows = []

    def pool(self, rows, spans):
        self.rows.extend(row.tolist() for row in rows)
        assert len(rows) == 1 or len(rows) * max(map(len, rows)) <= self.batch_tokens
        return np.array(
            [
                np.bincount(row[start:stop], minlength=self.dimension) / (stop - start)
                for row, of in zip(rows, spans, strict=True)
                for start, stop in of
            ],
            np.float32,
        )


@pytest.fixture(scope="module")
def tokenizer(pplx_checkpoint):
    return ChunkTokenizer.from_folder(pplx_checkpoint)


@pytest.fixture(scope="module")
def id_spec(tokenizer):
    size = tokenizer.tokenizer.get_vocab_size()
    return ModelSpec(
        name="ids",
        dimension=size,
        min_dimension=size,
        quantizer="norm",
        window_tokens=24,
        max_window_tokens=100,
        context_weight=1.0,
        layout="pplx",
        separator="<|endoftext|>",
    )


class TestBookkeeping:
    """Which tokens are pooled into which vector, through windows, batches and pieces."""

    @settings(max_examples=60)
    @given(
        documents=st.lists(st.lists(st.one_of(st.just(""), st.text("ab cd", max_size=120)), max_size=6), max_size=4),
        window_tokens=st.integers(1, 40),
        context_weight=st.sampled_from([0.0, 0.4, 1.0]),
    )
    def test_each_vector_is_the_mean_of_its_own_tokens(
        self, tokenizer, id_spec, documents, window_tokens, context_weight
    ):
        spec = replace(id_spec, window_tokens=window_tokens, context_weight=context_weight)
        vectors = LateChunkingEncoder(IdModel(spec.dimension), tokenizer, spec).chunk_vectors(documents)
        assert [len(rows) for rows in vectors] == [len(document) for document in documents]
        for document, rows in zip(documents, vectors, strict=True):
            for ids, row in zip(tokenizer.encode(document), rows, strict=True):
                expected = np.bincount(ids, minlength=spec.dimension) / max(len(ids), 1)
                assert np.abs(row - expected).max() < 1e-6

    def test_prefixes_frame_every_window_and_are_pooled_nowhere(self, tokenizer, id_spec):
        spec = replace(id_spec, document_prefix="[D] ", query_prefix="[Query] ", window_tokens=30)
        document_prefix, query_prefix, question = (
            ids.tolist() for ids in tokenizer.encode(["[D] ", "[Query] ", "question"])
        )
        model = IdModel(spec.dimension)
        encoder = LateChunkingEncoder(model, tokenizer, spec)
        text = "some words that are many more than fit in a window of thirty tokens"
        (vectors,) = encoder.chunk_vectors([[text, "end"]])
        assert len(model.rows) > 1
        assert all(row[: len(document_prefix)] == document_prefix for row in model.rows)
        assert max(map(len, model.rows)) <= 30
        for ids, vector in zip(tokenizer.encode([text, "end"]), vectors, strict=True):
            assert np.abs(vector - np.bincount(ids, minlength=spec.dimension) / len(ids)).max() < 1e-6
        model.rows.clear()
        encoder.encode_queries(["question"])
        assert model.rows == [query_prefix + question]

    def test_no_context_computes_no_late_pass_and_no_blend_no_second_one(self, tokenizer, id_spec):
        chunks = ["a b", "c d", ""]
        lengths = [len(ids) for ids in tokenizer.encode(chunks)]
        for weight, rows in [(0.0, lengths[:2]), (1.0, [sum(lengths) + 1]), (0.5, [*lengths[:2], sum(lengths) + 1])]:
            model = IdModel(id_spec.dimension)
            spec = replace(id_spec, context_weight=weight)
            LateChunkingEncoder(model, tokenizer, spec).encode_documents([chunks])
            # A trailing separator may be left out: nothing is pooled near it.
            assert len(model.rows) == len(rows)
            assert sum(map(len, model.rows)) <= sum(rows) + 1


class TestBadModels:
    """What a token model gives is checked before anything is made of it."""

    def encode(self, tokenizer, spec, pool, documents=(("one", "two"), ("three",))):
        model = IdModel(spec.dimension)
        model.pool = pool
        encoder = LateChunkingEncoder(model, tokenizer, spec)
        return encoder.encode_documents([list(document) for document in documents])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("quantizer", ["tanh", "norm"])
    def test_nan_and_infinity(self, tokenizer, id_spec, bad, quantizer):
        def pool(rows, spans):
            vectors = np.ones((sum(map(len, spans)), id_spec.dimension), np.float32)
            vectors[-1, 3] = bad
            return vectors

        spec = replace(id_spec, quantizer=quantizer)
        with pytest.raises(EncodingError, match="NaN or infinite"):
            self.encode(tokenizer, spec, pool)

    def test_nan_in_a_query(self, tokenizer, id_spec):
        model = IdModel(id_spec.dimension)
        model.pool = lambda rows, spans: np.full((1, id_spec.dimension), np.nan, np.float32)
        with pytest.raises(EncodingError, match="NaN or infinite"):
            LateChunkingEncoder(model, tokenizer, id_spec).encode_queries(["question"])

    @pytest.mark.parametrize("difference", [-1, 1])
    def test_another_number_of_vectors(self, tokenizer, id_spec, difference):
        def pool(rows, spans):
            return np.ones((sum(map(len, spans)) + difference, id_spec.dimension), np.float32)

        with pytest.raises(AlignmentError, match=f"gave {3 + difference} vectors for 3 spans"):
            self.encode(tokenizer, id_spec, pool)

    @pytest.mark.parametrize("dimension", [1, 7])
    def test_another_dimension(self, tokenizer, id_spec, dimension):
        """One component would be broadcast over all of them in silence."""

        def pool(rows, spans):
            return np.ones((sum(map(len, spans)), dimension), np.float32)

        with pytest.raises(EncodingError):
            self.encode(tokenizer, id_spec, pool)


class TestFingerprint:
    def test_records_what_vectors_depend_on(self, minilm):
        fingerprint = minilm.fingerprint
        assert fingerprint.model == fingerprint.source == "all-minilm-l6-v2"
        assert fingerprint.revision == "sha256:53aa51172d142c89"
        assert (fingerprint.dimension, fingerprint.quantizer) == (384, "norm")
        assert (fingerprint.window_tokens, fingerprint.min_context) == (512, 510 // 8)
        assert fingerprint.context_weight == 0.3

    @pytest.mark.parametrize("options", [{"window_tokens": 64}, {"min_context": 3}, {"context_weight": 0.5}], ids=str)
    def test_changes_with_every_option_that_changes_vectors(self, load_like, token_encoder, options):
        assert load_like(**options).fingerprint.identity() != token_encoder.fingerprint.identity()

    def test_does_not_change_with_the_batch(self, load_like, token_encoder):
        assert load_like(batch_tokens=17).fingerprint == token_encoder.fingerprint
