"""Vectors in three forms: float32, int8 codes, and packed bits (the signs of the codes).

Everything here is plain numpy and is the reference that every search result is tested against. How codes of
different norms are brought to one is in `equal_norms`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.errors import EncodingError, InvalidInputError

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.int8]
PackedBits = npt.NDArray[np.uint8]
BitOrder = Literal["big", "little"]
Quantizer = Literal["tanh", "norm", "sign"]


def quantize_tanh(vectors: Floats) -> Codes:
    """Quantize as the pplx-embed models are trained to: ``clamp(round(tanh(x) * 127), -128, 127)``.

    Rounds half to even, as ``torch.round`` does.

    Args:
        vectors: Floating point, any shape; the pooled, unnormalised output of the model.

    Returns:
        int8, same shape.

    Raises:
        EncodingError: A value is NaN or infinite.

    Source: arXiv:2602.11151.

    >>> quantize_tanh(np.array([-9.0, -0.001, 0.0, 0.5, 9.0]))
    array([-127,    0,    0,   59,  127], dtype=int8)
    """
    require_finite(vectors)
    codes: Codes = np.rint(np.tanh(vectors) * 127).astype(np.int8)
    return codes


def quantize_absmax(vectors: Floats) -> Codes:
    """Scale each vector so that its largest component becomes 127, and round half to even.

    Cosine does not depend on a vector's scale, so nothing but rounding is lost, whatever the vector looks like.

    Args:
        vectors: Floating point, shape (..., dimension).

    Returns:
        int8, same shape; the zero vector stays zero.

    Raises:
        EncodingError: A value is NaN or infinite.

    >>> quantize_absmax(np.array([[0.1, -0.2, 0.05], [0.0, 0.0, 0.0]]))
    array([[  64, -127,   32],
           [   0,    0,    0]], dtype=int8)
    """
    # Dividing first keeps the product in range even where `vectors` is near the float's maximum.
    codes: Codes = np.rint(scale_largest_to_one(vectors) * 127).astype(np.int8)
    return codes


def scale_largest_to_one(vectors: Floats) -> Floats:
    """Divide each vector by its largest component, whatever its sign; the zero vector stays.

    Raises:
        EncodingError: A value is NaN or infinite.
    """
    require_finite(vectors)
    largest = np.max(np.abs(vectors), axis=-1, keepdims=True, initial=0)
    scaled: Floats = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    return scaled


def pack_bits(codes: Codes, bitorder: BitOrder = "big") -> PackedBits:
    """Keep the sign of each code: bit 1 where ``code >= 0``.

    Args:
        codes: int8 (or floats), shape (..., dimension).
        bitorder: Which end of a byte holds its first dimension: "big" is the most significant bit
            (``np.packbits``, the hub's ``ubinary``), "little" the least (the hosted API's
            ``base64_binary``).

    Returns:
        uint8, shape (..., ceil(dimension / 8)); spare bits of the last byte are 0.

    >>> pack_bits(np.array([5, -1, 0, -7, -2, -2, -2, 3], dtype=np.int8))
    array([161], dtype=uint8)
    >>> pack_bits(np.array([5, -1, 0, -7, -2, -2, -2, 3], dtype=np.int8), "little")
    array([133], dtype=uint8)
    """
    return np.packbits(np.asarray(codes) >= 0, axis=-1, bitorder=bitorder)


def unpack_bits(packed_bits: PackedBits, dimension: int, bitorder: BitOrder = "big") -> Codes:
    """Invert `pack_bits` as far as it can be: +1 for bit 1 and -1 for bit 0.

    Args:
        packed_bits: uint8, shape (..., ceil(dimension / 8)).
        dimension: Number of dimensions that were packed.
        bitorder: The order given to `pack_bits`.

    Returns:
        int8, shape (..., dimension).

    Raises:
        InvalidInputError: The number of bytes does not fit the dimension.

    >>> unpack_bits(np.array([161], dtype=np.uint8), 8)
    array([ 1, -1,  1, -1, -1, -1, -1,  1], dtype=int8)
    """
    expected = -(-dimension // 8)
    if packed_bits.shape[-1] != expected:
        raise InvalidInputError(f"{dimension} dimensions pack into {expected} bytes, not {packed_bits.shape[-1]}")
    bits = np.unpackbits(packed_bits, axis=-1, count=dimension, bitorder=bitorder)
    return (bits.astype(np.int8) * 2 - 1).astype(np.int8)


def truncate(vectors: npt.NDArray[Any], dimension: int) -> npt.NDArray[Any]:
    """Keep the first `dimension` components, as Matryoshka-trained (MRL) models allow.

    Args:
        vectors: Any dtype, shape (..., n), n ≥ dimension. Cut floats before quantizing to a norm.
        dimension: Components to keep, from 1 to n.

    Returns:
        A view of shape (..., dimension).

    Raises:
        InvalidInputError: `dimension` is out of range.
    """
    if not 1 <= dimension <= vectors.shape[-1]:
        raise InvalidInputError(f"dimension must be from 1 to {vectors.shape[-1]}, not {dimension}")
    return vectors[..., :dimension]


def norms(codes: Codes) -> npt.NDArray[np.float64]:
    """Euclidean norm of each code vector: float64, shape ``codes.shape[:-1]``; exact under the root."""
    wide = codes.astype(np.int64)
    squared: npt.NDArray[np.float64] = np.einsum("...i,...i->...", wide, wide).astype(np.float64)
    return np.sqrt(squared)


def cosine_similarity(queries: Codes, codes: Codes) -> npt.NDArray[np.float64]:
    """Exact cosine of every query with every code vector.

    Args:
        queries: int8, shape (dimension,) or (n_queries, dimension).
        codes: int8, shape (n, dimension).

    Returns:
        float64 in [-1, 1], shape (n,) or (n_queries, n); 0 where either vector is zero.

    >>> cosine_similarity(np.array([3, 4], np.int8), np.array([[6, 8], [-4, 3], [0, 0]], np.int8))
    array([1., 0., 0.])
    """
    dots = queries.astype(np.float64) @ codes.astype(np.float64).T
    lengths = np.multiply.outer(norms(queries), norms(codes))
    # The root in the norms may round a cosine past its bounds by a last digit.
    return np.clip(np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0), -1.0, 1.0)


def hamming_distance(queries: PackedBits, packed_bits: PackedBits) -> npt.NDArray[np.int64]:
    """Count the differing bits of every query with every packed vector.

    Args:
        queries: uint8, shape (n_bytes,) or (n_queries, n_bytes), in the same bit order as
        packed_bits: uint8, shape (n, n_bytes).

    Returns:
        int64, shape (n,) or (n_queries, n).

    >>> hamming_distance(np.array([0b1010], np.uint8), np.array([[0b1010], [0b0101]], np.uint8))
    array([0, 4])
    """
    differing = np.bitwise_xor(queries[..., None, :], packed_bits)
    distances: npt.NDArray[np.int64] = _POPCOUNT[differing].sum(axis=-1, dtype=np.int64)
    return distances


def require_finite(vectors: Floats) -> None:
    """Refuse vectors that hold NaN or infinity.

    Raises:
        EncodingError: Says how many.
    """
    if not np.isfinite(vectors).all():
        bad = int(np.size(vectors) - np.count_nonzero(np.isfinite(vectors)))
        raise EncodingError(
            f"{bad} of {np.size(vectors)} vector components are NaN or infinite; nothing was stored. "
            "If the model ran in float16, load it with dtype='bfloat16' or 'float32'."
        )


# numpy 1.26 has no bitwise_count.
_POPCOUNT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
