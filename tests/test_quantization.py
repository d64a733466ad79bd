import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pplx_vectorstore.equal_norms import as_codes, quantize, quantize_to_norm
from pplx_vectorstore.errors import EncodingError, InvalidInputError, PplxVectorStoreError
from pplx_vectorstore.quantization import (
    cosine_similarity,
    hamming_distance,
    norms,
    pack_bits,
    quantize_absmax,
    quantize_tanh,
    truncate,
    unpack_bits,
)

BIT_ORDERS = st.sampled_from(["big", "little"])


def codes_of_shape(*shape):
    """All of int8, -128 included, and vectors of zeros often enough."""
    values = st.one_of(st.just(0), st.integers(-128, 127))
    return hnp.arrays(np.int8, shape, elements=values)


@st.composite
def queries_and_codes(draw):
    dimension = draw(st.integers(1, 40))
    return (
        draw(codes_of_shape(draw(st.integers(1, 4)), dimension)),
        draw(codes_of_shape(draw(st.integers(0, 6)), dimension)),
    )


@pytest.fixture(scope="module")
def published(tests_folder):
    return json.loads((tests_folder / "data" / "pplx_reference.json").read_text("utf-8"))


class TestTanh:
    def test_gives_the_codes_of_the_real_model(self, published):
        pooled = np.frombuffer(bytes.fromhex(published["pooled_float32_hex_le"]), "<f4")
        assert quantize_tanh(pooled).tolist() == published["int8"]
        assert quantize_tanh(pooled.astype(np.float64)).tolist() == published["int8"]

    @given(hnp.arrays(np.float64, 16, elements=st.floats(-1e300, 1e300)))
    def test_is_the_nearest_of_127_steps(self, vectors):
        codes = quantize_tanh(vectors)
        assert codes.dtype == np.int8
        for code, value in zip(codes.tolist(), vectors.tolist(), strict=True):
            assert abs(code - 127 * math.tanh(value)) <= 0.5 + 1e-9
            assert -127 <= code <= 127

    def test_rounds_half_to_even(self):
        ties = 0
        for half, even in [(0.5, 0), (2.5, 2), (3.5, 4), (4.5, 4), (10.5, 10), (-2.5, -2), (-3.5, -4)]:
            value = np.float32(math.atanh(half / 127))
            for _ in range(20):
                value = np.nextafter(value, np.float32(-9))
            for _ in range(40):
                value = np.nextafter(value, np.float32(9))
                if np.tanh(value) * np.float32(127) == half:
                    ties += 1
                    assert quantize_tanh(np.array([value])).tolist() == [even]
        assert ties

    def test_agrees_with_torch(self):
        import torch

        vectors = np.random.default_rng(0).normal(0, 0.7, (50, 1024)).astype(np.float32)
        expected = torch.clamp(torch.round(torch.tanh(torch.tensor(vectors)) * 127), -128, 127).numpy()
        difference = np.abs(quantize_tanh(vectors) - expected)
        assert difference.max() <= 1
        assert difference.mean() < 1e-4


class TestAbsmax:
    @given(hnp.arrays(np.float32, (3, 9), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
    def test_scales_the_largest_to_127(self, vectors):
        codes = quantize_absmax(vectors).astype(int)
        for code, vector in zip(codes, vectors.astype(float), strict=True):
            largest = np.abs(vector).max()
            if largest == 0:
                assert not code.any()
            else:
                assert np.abs(code).max() == 127
                assert np.abs(code - vector / largest * 127).max() <= 0.5 + 1e-4

    @given(codes_of_shape(2, 12), st.integers(-60, 60))
    def test_does_not_depend_on_scale(self, codes, exponent):
        vectors = codes.astype(np.float32)
        assert (quantize_absmax(vectors) == quantize_absmax(vectors * np.float32(2.0**exponent))).all()

    def test_rounds_half_to_even(self):
        vectors = np.array([127, 0.5, 1.5, 2.5, 4.5, -0.5, -2.5, -3.5], np.float32)
        assert quantize_absmax(vectors).tolist() == [127, 0, 2, 2, 4, 0, -2, -4]

    def test_survives_the_ends_of_the_float_range(self):
        huge, tiny = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
        vectors = np.array([[huge, -huge / 2], [tiny, -tiny], [0, 0]], np.float32)
        assert quantize_absmax(vectors).tolist() == [[127, -64], [127, -127], [0, 0]]


@pytest.mark.parametrize("quantizer", ["tanh", "norm"])
class TestBothQuantizers:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_refuse_what_is_not_finite(self, quantizer, bad):
        vectors = np.zeros((2, 4), np.float32)
        vectors[1, 2] = bad
        with pytest.raises(EncodingError, match="1 of 8 vector components are NaN or infinite"):
            quantize(vectors, quantizer)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("shape", [(1, 5), (0, 5), (6, 5)])
    def test_keep_the_shape(self, quantizer, dtype, shape):
        vectors = np.random.default_rng(1).normal(size=shape).astype(dtype)
        codes = quantize(vectors, quantizer)
        assert codes.shape == shape
        assert codes.dtype == np.int8

    def test_keep_the_given_array(self, quantizer):
        vectors = np.array([[1.0, -2.0]], np.float32)
        quantize(vectors, quantizer)
        assert vectors.tolist() == [[1.0, -2.0]]


@pytest.mark.parametrize("quantizer", [quantize_tanh, quantize_absmax])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_those_of_one_vector_at_a_time_take_any_number_of_axes(quantizer, dtype, shape):
    codes = quantizer(np.random.default_rng(1).normal(size=shape).astype(dtype))
    assert (codes.shape, codes.dtype) == (shape, np.int8)


def test_quantizer_must_be_known():
    with pytest.raises(InvalidInputError, match="'tanh', 'norm' or 'sign', not 'int4'"):
        quantize(np.zeros((1, 2)), "int4")


class TestBits:
    @given(st.data(), st.integers(1, 40), BIT_ORDERS)
    def test_are_the_signs_in_the_stated_order(self, data, dimension, order):
        codes = data.draw(codes_of_shape(3, dimension))
        packed = pack_bits(codes, order)
        assert packed.shape == (3, -(-dimension // 8))
        for row, row_bytes in zip(codes.tolist(), packed.tolist(), strict=True):
            expected = [0] * len(row_bytes)
            for index, code in enumerate(row):
                if code >= 0:
                    place = 7 - index % 8 if order == "big" else index % 8
                    expected[index // 8] |= 1 << place
            assert row_bytes == expected  # spare bits are 0 as well

    @given(st.data(), st.integers(1, 40), BIT_ORDERS)
    def test_round_trip(self, data, dimension, order):
        codes = data.draw(codes_of_shape(2, dimension))
        signs = unpack_bits(pack_bits(codes, order), dimension, order)
        assert signs.dtype == np.int8
        assert (signs == np.where(codes >= 0, 1, -1)).all()
        assert (pack_bits(signs, order) == pack_bits(codes, order)).all()

    def test_the_two_orders_differ(self):
        codes = np.array([1, -1, -1, -1, -1, -1, -1, -1], np.int8)
        assert pack_bits(codes).tolist() == [0b1000_0000]
        assert pack_bits(codes, "little").tolist() == [0b0000_0001]

    def test_of_floats_take_their_sign(self):
        assert unpack_bits(pack_bits(np.array([-0.001, 0.001, 0.0, -3.0])), 4).tolist() == [-1, 1, 1, -1]

    @pytest.mark.parametrize("n_bytes", [0, 1, 3])
    def test_number_of_bytes_must_fit(self, n_bytes):
        with pytest.raises(InvalidInputError, match=f"9 dimensions pack into 2 bytes, not {n_bytes}"):
            unpack_bits(np.zeros((4, n_bytes), np.uint8), 9)


class TestHamming:
    @given(queries_and_codes(), BIT_ORDERS)
    def test_equals_a_slow_count(self, both, order):
        queries, codes = both
        distances = hamming_distance(pack_bits(queries, order), pack_bits(codes, order))
        assert distances.shape == (len(queries), len(codes))
        for query, row in zip(queries.tolist(), distances.tolist(), strict=True):
            for code, distance in zip(codes.tolist(), row, strict=True):
                assert distance == sum((a >= 0) != (b >= 0) for a, b in zip(query, code, strict=True))
        assert (hamming_distance(pack_bits(queries[0], order), pack_bits(codes, order)) == distances[0]).all()

    def test_does_not_overflow_a_byte(self):
        ones, zeros = np.full(2560 // 8, 255, np.uint8), np.zeros((1, 2560 // 8), np.uint8)
        assert hamming_distance(ones, zeros).tolist() == [2560]


class TestCosine:
    @given(queries_and_codes())
    def test_equals_a_slow_loop(self, both):
        queries, codes = both
        cosines = cosine_similarity(queries, codes)
        assert cosines.shape == (len(queries), len(codes))
        for query, row in zip(queries.tolist(), cosines.tolist(), strict=True):
            for code, cosine in zip(codes.tolist(), row, strict=True):
                dot = sum(a * b for a, b in zip(query, code, strict=True))
                length = math.sqrt(sum(a * a for a in query) * sum(b * b for b in code))
                assert cosine == pytest.approx(dot / length if length else 0, abs=1e-12)
        assert (cosine_similarity(queries[0], codes) == cosines[0]).all()

    @given(queries_and_codes())
    def test_stays_between_minus_one_and_one(self, both):
        queries, codes = both
        assert np.abs(cosine_similarity(queries, queries)).max() <= 1
        assert np.abs(cosine_similarity(queries, codes)).max(initial=0) <= 1

    def test_does_not_overflow_int8(self):
        codes = np.full((1, 2560), -128, np.int8)
        assert cosine_similarity(codes, codes).tolist() == [[pytest.approx(1)]]
        assert norms(codes).tolist() == [128 * math.sqrt(2560)]


@given(codes_of_shape(3, 17))
def test_norms_are_exact_under_the_root(codes):
    expected = [math.sqrt(sum(code * code for code in row)) for row in codes.tolist()]
    assert norms(codes).tolist() == expected
    assert norms(codes[0]) == expected[0]


class TestTruncate:
    @pytest.mark.parametrize("dimension", [1, 3, 5])
    def test_keeps_the_first_components(self, dimension):
        vectors = np.arange(10.0).reshape(2, 5)
        cut = truncate(vectors, dimension)
        assert cut.tolist() == [row[:dimension] for row in vectors.tolist()]
        assert cut.base is not None

    @pytest.mark.parametrize("dimension", [0, -1, 6])
    def test_refuses_more_or_less_than_there_is(self, dimension):
        with pytest.raises(InvalidInputError, match=f"from 1 to 5, not {dimension}"):
            truncate(np.zeros((2, 5)), dimension)


def test_signs_of_a_zero_vector_are_zeros():
    vectors = np.array([[0.5, -0.1, 0.0], [0.0, 0.0, 0.0]])
    assert quantize(vectors, "sign").tolist() == [[1, -1, 1], [0, 0, 0]]
    with pytest.raises(EncodingError):
        quantize(np.array([np.nan]), "sign")


def test_vectors_of_floats_become_codes():
    # Of so few components the norm is 127, as near as whole numbers come.
    mean = np.array([40.5, -80.25, 3.0])  # of several queries, whatever the model's quantizer is
    codes = as_codes([[-128.0, 0.0, 127.0], [0.3, -0.4, 0.0], mean.tolist()])
    assert codes[0].tolist() == [-128, 0, 127]
    np.testing.assert_allclose(codes[1], [127 * 0.6, -127 * 0.8, 0], atol=1)
    assert cosine_similarity(codes[2], np.int8([[81, -127, 5]]))[0] > 0.99
    np.testing.assert_array_equal(codes[2], quantize_to_norm(mean[None])[0])
    for wrong in ("text", [["nested"]], [[1.0, 2.0]], None, [1.0, float("nan")], [None]):
        with pytest.raises(PplxVectorStoreError):
            as_codes([wrong])
