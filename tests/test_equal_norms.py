"""Codes of one norm: exact norms, exact way back, bounded loss of direction."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_vectorstore import cosine_similarity, crest_factor_for, equalize_norms, quantize_absmax, quantize_to_norm
from pplx_vectorstore.equal_norms import (
    CREST_FACTOR,
    LARGEST,
    as_codes,
    direction_loss,
    quantize,
    recover_codes,
    squared_norm_of,
    storage_loss,
)
from pplx_vectorstore.errors import EncodingError, InvalidInputError
from pplx_vectorstore.points import equalize_codes
from pplx_vectorstore.quantization import norms, quantize_tanh

DIMENSIONS = (128, 256, 384, 1024, 2560)
# Root mean square of the codes of pplx-embed-context-v1-0.6b: norms of 383 to 519 at 1,024 dimensions.
PPLX_SCALE = 0.115


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def squares(codes):
    return np.square(codes.astype(np.int64)).sum(axis=-1)


def pplx_like(rng, n, dimension):
    """Codes of norms as the real model's: each vector has a scale of its own."""
    scales = PPLX_SCALE * rng.uniform(0.8, 1.15, size=(n, 1))
    return quantize_tanh(scales * rng.normal(size=(n, dimension)))


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kind", ["floats", "pplx-like codes", "absmax codes"])
def test_every_vector_gets_exactly_the_norm_and_keeps_its_direction(rng, dimension, kind):
    floats = rng.normal(size=(300, dimension)) * rng.uniform(0.01, 100, size=(300, 1))
    vectors = {
        "floats": floats,
        "pplx-like codes": pplx_like(rng, 300, dimension),
        "absmax codes": quantize_absmax(floats),
    }[kind]
    squared_norm = squared_norm_of(dimension)
    codes = equalize_norms(vectors, squared_norm)
    assert (squares(codes) == squared_norm).all()
    assert direction_loss(vectors, codes).max() < 5e-4
    assert np.median(direction_loss(vectors, codes)) < 1e-4


def test_the_norm_comes_of_the_dimension_and_the_crest_factor():
    assert [squared_norm_of(dimension) for dimension in (1024, 384, 128)] == [896**2, 784 * 384, 784 * 128]
    assert squared_norm_of(1024, 2 * CREST_FACTOR) == 448**2
    # In few dimensions any direction fits, that of an axis too.
    for dimension in range(1, 21):
        axis = equalize_norms(np.eye(dimension)[:1], squared_norm_of(dimension))
        assert axis[0, 0] == LARGEST
        assert not axis[0, 1:].any()
    for wrong in (0.5, True, "4", float("nan")):
        with pytest.raises(InvalidInputError, match="crest_factor must be a number of at least 1"):
            squared_norm_of(384, wrong)


def test_codes_of_the_norm_stay_as_they_are(rng):
    codes = quantize_to_norm(rng.normal(size=(50, 384)))
    np.testing.assert_array_equal(equalize_norms(codes, squared_norm_of(384)), codes)
    np.testing.assert_array_equal(recover_codes(codes, norms(codes), squared_norm_of(384)), codes)


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1e20, 1e300])
def test_floats_of_any_scale_are_told_by_their_direction(rng, scale):
    vectors = rng.normal(size=(5, 128))
    np.testing.assert_array_equal(quantize_to_norm(scale * vectors), quantize_to_norm(vectors))
    with pytest.raises(EncodingError, match="NaN"):
        equalize_norms(np.full((1, 8), np.nan), squared_norm_of(8))


def test_zero_vectors_stay_zero_and_none_are_fine():
    assert not equalize_norms(np.zeros((2, 8), np.int8), squared_norm_of(8)).any()
    assert equalize_norms(np.zeros((0, 8)), squared_norm_of(8)).shape == (0, 8)
    assert quantize_to_norm(np.zeros((0, 8))).shape == (0, 8)
    assert equalize_codes([], 1) == []


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_ten_thousand_codes_like_the_models_come_back_byte_for_byte(rng, dimension):
    squared_norm = squared_norm_of(dimension)
    n = 10_000 if dimension == 1024 else 500
    codes = pplx_like(rng, n, dimension)
    (vectors,) = equalize_codes([codes], squared_norm)
    assert (squares(vectors.stored) == squared_norm).all()
    recovered = recover_codes(vectors.stored, vectors.norms, squared_norm)
    assert (recovered[vectors.are_recovered] == codes[vectors.are_recovered]).all()
    # The others are stored beside the point; they are to be few.
    assert vectors.are_recovered.mean() > 0.98


@st.composite
def any_codes(draw):
    """Codes of any norm, with outliers or without, of few or many different components."""
    dimension = draw(st.sampled_from([128, 200, 384, 1024, 2560]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.floats(0.3, 90))
    floats = rng.normal(size=(3, dimension)) * scale
    for _ in range(draw(st.integers(0, 3))):
        floats[:, rng.integers(dimension)] *= draw(st.sampled_from([5, 10, 20]))
    if draw(st.booleans()):
        floats = np.rint(floats / scale) * max(1.0, scale / 3)
    codes = np.clip(np.rint(floats), -128, 127).astype(np.int8)
    if draw(st.booleans()):
        codes[draw(st.integers(0, 2))] = 0
    return codes


@given(any_codes())
def test_any_codes_have_one_norm_when_stored_and_come_back_as_they_were(codes):
    from pplx_vectorstore.points import read_codes

    dimension = codes.shape[1]
    squared_norm = squared_norm_of(dimension)
    (vectors,) = equalize_codes([codes], squared_norm)
    for row, (values, fields) in enumerate(vectors.rows()):
        vector = {} if values is None else {"codes": values}
        np.testing.assert_array_equal(read_codes(vector, fields, dimension, squared_norm), codes[row])
        assert (values is None) == (not codes[row].any())
        if vectors.losses[row] < 0.001 and codes[row].any():
            # As near as can be: of vectors of few different components, some may be left.
            few = len(np.unique(np.abs(codes[row]))) < 10
            assert abs(squares(vectors.stored[row]) - squared_norm) <= (2e-3 * squared_norm if few else 1)
        assert ("loss" in fields) == (vectors.losses[row] > 0.001)


@pytest.mark.parametrize("outlier", [5, 10, 20])
@pytest.mark.parametrize("dimension", [384, 1024])
def test_outliers_are_clipped_and_what_that_costs_is_bounded(rng, dimension, outlier):
    floats = rng.normal(size=(200, dimension))
    floats[:, 7] = outlier * np.sqrt(np.mean(np.square(floats[:, 8:]), axis=1))
    crest = np.abs(floats).max(axis=1) / np.sqrt(np.mean(np.square(floats), axis=1))

    default = equalize_norms(floats, squared_norm_of(dimension))
    assert (squares(default) == squared_norm_of(dimension)).all()
    # One component of r times the root mean square, clipped to 4.5 times, the others enlarged.
    excess = np.maximum(crest - CREST_FACTOR, 0)
    share = crest**2 / dimension
    bound = excess**2 / (2 * dimension * (1 - share)) + 2e-4
    assert (direction_loss(floats, default) <= bound).all()

    fitting = squared_norm_of(dimension, crest_factor_for(floats))
    kept = equalize_norms(floats, fitting)
    assert (squares(kept) == fitting).all()
    # Nothing is clipped; rounding alone costs, the more the smaller the others get.
    assert direction_loss(floats, kept).max() < {5: 3e-4, 10: 1e-3, 20: 2.5e-3}[outlier]


def test_a_norm_that_cannot_be_met_is_a_loss_too():
    # Two components of one size: clipped, they nearly keep their direction, but nothing is there to be enlarged.
    vectors = np.zeros((1, 384))
    vectors[0, :2] = 1
    squared_norm = squared_norm_of(384)
    stored = equalize_norms(vectors, squared_norm)
    assert direction_loss(vectors, stored)[0] < 0.01
    assert storage_loss(vectors, stored, squared_norm)[0] > 0.6
    fitting = squared_norm_of(384, crest_factor_for(vectors))
    assert storage_loss(vectors, equalize_norms(vectors, fitting), fitting)[0] < 0.002


def test_floats_that_do_not_fit_are_not_bent_by_quantizing(rng):
    floats = rng.normal(size=(20, 384))
    floats[::2, 3] = 15
    codes = quantize_to_norm(floats)
    assert (squares(codes[1::2]) == squared_norm_of(384)).all()
    np.testing.assert_array_equal(codes[::2], quantize_absmax(floats[::2]))
    assert direction_loss(floats, codes).max() < 1.5e-3


def test_floats_that_hardly_stand_out_are_rounded_once(rng):
    floats = rng.normal(size=(50, 1024))
    floats[:, 3] = 4.7
    codes = quantize_to_norm(floats)
    assert (squares(codes) == squared_norm_of(1024)).all()
    assert direction_loss(floats, codes).max() < 2e-4


def test_what_is_no_table_of_vectors_is_refused():
    for wrong in (np.zeros(8), np.zeros((2, 8), np.int64)):
        with pytest.raises(InvalidInputError, match=r"int8 or floats of shape \(n, dimension\)"):
            equalize_norms(wrong, squared_norm_of(8))
    with pytest.raises(InvalidInputError, match="must be of shape"):
        crest_factor_for(np.zeros(8))
    with pytest.raises(EncodingError, match="NaN"):
        crest_factor_for(np.full((1, 8), np.nan))


def test_crest_factors_come_in_steps_so_that_another_sample_gives_the_same(rng):
    usual = rng.normal(size=(20, 384))
    assert crest_factor_for(usual) == CREST_FACTOR
    outliers = usual.copy()
    outliers[:, 5] = 10
    assert crest_factor_for(outliers) == crest_factor_for(outliers[:3]) == pytest.approx(CREST_FACTOR * 2**1.5)
    assert crest_factor_for(np.zeros((3, 8))) == CREST_FACTOR


def test_order_by_distance_is_the_order_by_cosine_whatever_the_norms_were(rng):
    vectors = rng.normal(size=(2000, 128)) * rng.uniform(1, 8, size=(2000, 1))
    vectors[::50, 3] = 6 * np.abs(vectors[::50]).mean(axis=1)
    stored = equalize_norms(vectors, squared_norm_of(128)).astype(np.int64)
    queries = equalize_norms(rng.normal(size=(20, 128)), squared_norm_of(128)).astype(np.int64)
    distances = squares(queries[:, None] - stored[None])
    cosines = cosine_similarity(queries.astype(np.int8), stored.astype(np.int8))
    np.testing.assert_allclose(1 - distances / (2 * squared_norm_of(128)), cosines, rtol=0, atol=1e-9)


def test_quantizers_by_name(rng):
    floats = rng.normal(size=(4, 64))
    np.testing.assert_array_equal(quantize(floats, "norm"), quantize_to_norm(floats))
    np.testing.assert_array_equal(quantize(floats, "norm", 20_000), quantize_to_norm(floats, 20_000))
    np.testing.assert_array_equal(quantize(floats, "tanh"), quantize_tanh(floats))
    assert (squares(quantize(floats, "norm", 20_000)) == 20_000).all()
    floats[0, 0] = np.nan
    for quantizer in ("norm", "tanh", "sign"):
        with pytest.raises(EncodingError, match="NaN"):
            quantize(floats, quantizer)


def test_embeddings_of_frameworks_become_codes(rng):
    floats = rng.normal(size=(3, 128))
    codes = as_codes(floats.tolist())
    assert (squares(codes) == squared_norm_of(128)).all()
    mixed = [codes[0].astype(float).tolist(), floats[1].tolist(), codes[2].astype(float).tolist()]
    np.testing.assert_array_equal(as_codes(mixed), codes)


@pytest.mark.skipif(
    not (Path(__file__).parents[2] / "shared/data/pplx_embed_context_reference.json").is_file(),
    reason="the published reference outputs are not beside the project",
)
def test_the_real_models_codes_fit_and_come_back():
    path = Path(__file__).parents[2] / "shared/data/pplx_embed_context_reference.json"
    reference = json.loads(path.read_text("utf-8"))
    codes = np.array(reference["int8"], np.int8)
    (vectors,) = equalize_codes([codes], squared_norm_of(codes.shape[1]))
    assert vectors.are_recovered.all()
    assert (squares(vectors.stored) == squared_norm_of(codes.shape[1])).all()
    # The query is compared as the model gave it. One side is rounded again, by a 97th of the root mean square at most.
    difference = np.abs(cosine_similarity(codes, codes) - cosine_similarity(codes, vectors.stored))
    assert difference.max() < 1e-3
