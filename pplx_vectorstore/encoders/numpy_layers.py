"""What transformers consist of, in numpy, for a few short texts: rows lie end to end, without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.encoders.weights import Floats
from pplx_vectorstore.errors import ModelFileError
from pplx_vectorstore.pooling import Span, pool_spans
from pplx_vectorstore.windows import TokenIds

# Numerator and denominator of erf(x) / x in powers of x², the highest first, for |x| up to 4, beyond which float32
# knows no other value than 1. Eigen's, and so PyTorch's, of 32 bits.
_ERF_LIMIT = 4.0
_ERF_ABOVE: Final[tuple[float, ...]] = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_BELOW: Final[tuple[float, ...]] = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


class UnsupportedByNumpyError(Exception):
    """A model has something that is not written in numpy; PyTorch runs it. Says what."""


def require_number(config: Mapping[str, Any], name: str) -> int:
    """Return a size of a model.

    Raises:
        UnsupportedByNumpyError: Its config.json leaves it to transformers to know.
    """
    value = config.get(name)
    if not isinstance(value, int):
        raise UnsupportedByNumpyError(f"the default of {name}")
    return value


def run_rows(
    rows: Sequence[TokenIds],
    spans: Sequence[Sequence[Span]],
    vocabulary_size: int,
    forward: Callable[[TokenIds, list[slice]], Floats],
) -> Floats:
    """Run rows through a model, end to end, and mean-pool spans of each; see ``TokenModel.pool``.

    Args:
        rows: int64 ids.
        spans: Of each row.
        vocabulary_size: Number of token embeddings.
        forward: Ids of all rows, and where each row lies → float32, shape (n_tokens, dimension).

    Raises:
        ModelFileError: There is no embedding of a token.
    """
    ids = np.concatenate(rows)
    if ids.max() >= vocabulary_size:
        raise ModelFileError(
            f"the tokenizer gave the id {ids.max()}, but the weights only have {vocabulary_size} token embeddings; "
            "they are of different models"
        )
    places = list(_places(rows))
    hidden = forward(ids, places)
    return np.concatenate([pool_spans(hidden[place], of_row) for place, of_row in zip(places, spans, strict=True)])


def _places(rows: Sequence[TokenIds]) -> Iterator[slice]:
    start = 0
    for row in rows:
        yield slice(start, start + len(row))
        start += len(row)


def attend(
    queries: Floats, keys: Floats, values: Floats, places: Sequence[slice], bias: Callable[[int], Floats] | None = None
) -> Floats:
    """Let every token of a row attend to all of it.

    Args:
        queries: Scaled, shape (n_tokens, n_heads, head_dimension).
        keys: Shape (n_tokens, n_key_heads, head_dimension); neighbouring heads of queries share one of keys.
        values: The same.
        places: Where each row lies.
        bias: Length of a row → what is added to its scores, shape (n_heads, length, length).

    Returns:
        float32, shape (n_tokens, n_heads * head_dimension).
    """
    n_tokens, n_heads, kept = queries.shape
    per_key = n_heads // keys.shape[1]
    attended = np.empty((n_tokens, n_heads, kept), dtype=np.float32)
    for place in places:
        length = place.stop - place.start
        added = None if bias is None else bias(length)
        for head in range(n_heads):
            scores = queries[place, head] @ keys[place, head // per_key].T
            if added is not None:
                scores += added[head]
            np.matmul(_softmax(scores), values[place, head // per_key], out=attended[place, head])
    return attended.reshape(n_tokens, -1)


def _softmax(scores: Floats) -> Floats:
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def layer_norm(x: Floats, weight: Floats, bias: Floats, epsilon: float) -> Floats:
    """Normalise each vector to mean 0 and variance 1, then scale and shift it."""
    centred: Floats = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    centred *= weight / np.sqrt(variance + np.float32(epsilon))
    centred += bias
    return centred


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """Scale each vector to a root mean square of 1, then by a weight."""
    mean_square = np.square(x).mean(axis=-1, keepdims=True)
    normed: Floats = x / np.sqrt(mean_square + np.float32(epsilon))
    normed *= weight
    return normed


def gelu(x: Floats) -> Floats:
    """Gaussian error linear unit: ``x * (1 + erf(x / √2)) / 2``."""
    scaled = x * np.float32(np.sqrt(0.5))
    half: Floats = np.float32(0.5) * x
    return half + half * erf(scaled)


def relu(x: Floats) -> Floats:
    """Keep what is positive."""
    return np.maximum(x, 0)


def silu(x: Floats) -> Floats:
    """``x / (1 + exp(-x))``."""
    # Beyond, exp would overflow, and the result is zero to 32 bits.
    bounded = np.maximum(x, np.float32(-87))
    silued: Floats = x / (1 + np.exp(-bounded))
    return silued


def erf(x: Floats) -> Floats:
    """Error function, to about 1e-7; float32, as numpy has none.

    >>> erf(np.array([-9, 0, 0.5, 9], np.float32)).round(4).tolist()[::3]
    [-1.0, 1.0]
    """
    bounded = np.clip(x, -_ERF_LIMIT, _ERF_LIMIT)
    squares = bounded * bounded
    result: Floats = bounded * _polynomial(squares, _ERF_ABOVE) / _polynomial(squares, _ERF_BELOW)
    return result


def _polynomial(x: Floats, coefficients: Sequence[float]) -> Floats:
    total: npt.NDArray[np.float32] = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total *= x
        total += np.float32(coefficient)
    return total
