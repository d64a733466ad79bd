"""Vectors of any norm ↔ codes that all have one norm, so that Euclid's order is the cosine's.

Of vectors of one norm C, ``|q - x|² = 2 C² (1 - cos)``. So a search by Euclidean distance ranks by the cosine, whoever
runs it. C is an irrational number as a rule; its square is a whole one, and that is what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.quantization import (
    Codes,
    Floats,
    Quantizer,
    norms,
    quantize_absmax,
    quantize_tanh,
    require_finite,
    scale_largest_to_one,
)

LARGEST = 127
"""Largest component of a code, without its sign."""

CREST_FACTOR = LARGEST / 28
"""Largest component over the root mean square that fits by default, about 4.5: then C is 28 √dimension."""

NOTABLE_LOSS = 0.001
"""What storing may cost of a cosine before it is reported (`storage_loss`)."""

_UNNOTED_LOSS = 2e-4  # about three times what rounding costs

MOST_LOSS = 0.1
"""What it may lose before a vector is refused."""

_ROWS = 512
_CREST_STEP = math.sqrt(2)
_CREST_RESERVE = 1.1
_SCALINGS = 4
# The last few units are made up by some of 32 components, looked for among 128 at a time, up to four times.
_CANDIDATES = 32
_COLUMNS = 128
_BLOCKS = 4
# More units than these need more components.
_MANY = 500

Numbers = npt.NDArray[Any]
Moves = tuple[tuple[int, int], ...]
"""What one component may do: pairs of what the squared norm gains, and by how much the component changes."""


def squared_norm_of(dimension: int, crest_factor: float = CREST_FACTOR) -> int:
    """Return C², the squared norm that all vectors of a collection get.

    Args:
        dimension: Components of a vector.
        crest_factor: Largest component over the root mean square that is to fit without being clipped.

    Raises:
        InvalidInputError: The crest factor is below 1, which no vector has.

    >>> squared_norm_of(1024), squared_norm_of(384), squared_norm_of(8)
    (802816, 301056, 16129)
    """
    if isinstance(crest_factor, bool) or not isinstance(crest_factor, (int, float)) or not crest_factor >= 1:
        raise InvalidInputError(f"crest_factor must be a number of at least 1, not {crest_factor!r}")
    # No vector's largest component is more than its norm: a larger crest factor would only cost precision.
    return max(LARGEST**2, round(dimension * (LARGEST / crest_factor) ** 2))


def crest_factor_for(vectors: Floats) -> float:
    """Return a crest factor that vectors like these fit, in steps of √2 so that another sample gives the same.

    Args:
        vectors: Floating point, shape (n, dimension).

    Raises:
        EncodingError: A value is NaN or infinite.
        InvalidInputError: Another shape.
    """
    if vectors.ndim != 2:
        raise InvalidInputError(f"vectors must be of shape (n, dimension), not {vectors.shape}")
    rows = scale_largest_to_one(vectors[vectors.any(axis=1)]).astype(np.float64)
    root_mean_square = np.sqrt(np.mean(np.square(rows), axis=1))
    largest = float(np.max(np.abs(rows).max(axis=1, initial=0) / root_mean_square, initial=0))
    crest_factor = CREST_FACTOR
    while crest_factor < _CREST_RESERVE * largest:
        crest_factor *= _CREST_STEP
    return crest_factor


def quantize(vectors: Floats, quantizer: Quantizer, squared_norm: int | None = None) -> Codes:
    """Quantize with the quantizer of that name.

    See `quantize_tanh` and `quantize_to_norm`; "sign" gives +1 where ``x >= 0``, else -1, and
    zeros for a zero vector.

    Args:
        vectors: Floating point, shape (n, dimension).
        quantizer: "tanh", "norm" or "sign".
        squared_norm: Of the codes, for "norm".

    Returns:
        int8, same shape.
    """
    if quantizer == "tanh":
        return quantize_tanh(vectors)
    if quantizer == "norm":
        return quantize_to_norm(vectors, squared_norm)
    if quantizer == "sign":
        require_finite(vectors)
        signs = np.where(vectors >= 0, 1, -1).astype(np.int8)
        signs[~vectors.any(axis=-1)] = 0
        return signs
    raise InvalidInputError(f"quantizer must be 'tanh', 'norm' or 'sign', not {quantizer!r}")


def quantize_to_norm(vectors: Floats, squared_norm: int | None = None) -> Codes:
    """Scale each vector to one norm and round, so that nothing has to be rounded again when it is stored.

    A vector whose largest component would not fit is clipped where that costs next to nothing, and else scaled by
    `quantize_absmax` instead: no direction is bent.

    Args:
        vectors: Floating point, shape (n, dimension).
        squared_norm: C²; None for that of the dimension.

    Returns:
        int8, same shape; the zero vector stays zero.

    Raises:
        EncodingError: A value is NaN or infinite.

    >>> codes = quantize_to_norm(np.random.default_rng(0).normal(size=(2, 128)))
    >>> np.square(codes.astype(int)).sum(axis=1)
    array([100352, 100352])
    """
    squared_norm = squared_norm or squared_norm_of(vectors.shape[-1])
    unit = scale_largest_to_one(vectors)
    # With the largest component at 1: it fits where C over the norm is at most 127.
    fits = LARGEST**2 * np.square(unit).sum(axis=-1, dtype=np.float64) >= squared_norm
    codes = np.zeros(vectors.shape, np.int8)
    codes[fits] = equalize_norms(unit[fits], squared_norm)
    others = np.flatnonzero(~fits & unit.any(axis=-1))
    if len(others):
        clipped = equalize_norms(unit[others], squared_norm)
        nearly = storage_loss(unit[others], clipped, squared_norm) < _UNNOTED_LOSS
        codes[others] = np.where(nearly[:, None], clipped, quantize_absmax(unit[others]))
    return codes


def as_codes(vectors: Sequence[Sequence[float]]) -> Codes:
    """Turn vectors, such as frameworks pass on, into int8 codes of their directions, all that the cosine heeds.

    Args:
        vectors: Codes as floats, or any floats, shape (n, dimension).

    Returns:
        int8, same shape: codes as they are, floats by `quantize_to_norm`.

    Raises:
        InvalidInputError: They are no lists of numbers, or not of one length.
        EncodingError: One holds NaN or infinity.
    """
    try:
        floats = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"an embedding must be a list of numbers: {error}") from error
    if floats.ndim != 2:
        raise InvalidInputError(f"an embedding must be one list of numbers, not an array of shape {floats.shape[1:]}")
    require_finite(floats)
    codes: Codes = np.rint(floats).clip(-128, 127).astype(np.int8)
    others = ~(floats == codes).all(axis=1)
    codes[others] = quantize_to_norm(floats[others])
    return codes


def equalize_norms(vectors: Numbers, squared_norm: int) -> Codes:
    """Scale vectors to one norm and round them so that the squared norm is met.

    Rounding misses it by a little; then components whose rounding was the closest call go to their other neighbour
    until nothing is missing: seldom more than three of them. Components that do not fit int8 are clipped and the others
    enlarged, which bends the direction: `storage_loss` tells how much.

    Args:
        vectors: Codes (int8) or floats, shape (n, dimension).
        squared_norm: C².

    Returns:
        int8, same shape; the squared norm of each row is C², or as near as its components permit. A row of int8 that
        has it already stays as it is, and the zero vector stays zero.

    Raises:
        EncodingError: A value is NaN or infinite.
        InvalidInputError: Another dtype or shape.
    """
    if vectors.ndim != 2 or (vectors.dtype != np.int8 and vectors.dtype.kind != "f"):
        raise InvalidInputError(
            f"vectors must be int8 or floats of shape (n, dimension), not {vectors.dtype} of shape {vectors.shape}"
        )
    equal = np.zeros(vectors.shape, np.int8)
    for first in range(0, len(vectors), _ROWS):
        some = vectors[first : first + _ROWS]
        into = equal[first : first + _ROWS]
        floats = (some if some.dtype == np.int8 else scale_largest_to_one(some)).astype(np.float32)
        squares = np.einsum("ij,ij->i", floats, floats, dtype=np.float64)
        if some.dtype == np.int8:
            done = squares == squared_norm
            into[done] = some[done]
            left = np.flatnonzero(~done & (squares > 0))
            # Up to there, a component may miss its value and still be told from its neighbours (`recover_codes`).
            room = 0.48 * np.sqrt(squared_norm / squares[left])
        else:
            left = np.flatnonzero(squares > 0)
            room = np.ones(len(left))
        if len(left):
            into[left] = _equalize(floats[left], squares[left], squared_norm, room)
    return equal


def _equalize(
    vectors: npt.NDArray[np.float32], squares: npt.NDArray[np.float64], squared_norm: int, room: Floats
) -> Codes:
    sizes = np.abs(vectors)
    scales = _scales(sizes, squares, squared_norm)
    for _ in range(_SCALINGS):
        # Each time, the closest calls go the other way.
        rounded = np.rint(sizes * scales[:, None].astype(np.float32))
        np.minimum(rounded, LARGEST, out=rounded)
        missing = squared_norm - np.einsum("ij,ij->i", rounded, rounded, dtype=np.float64)
        scaled, scales = scales, scales * (1 + missing / (2 * squared_norm))
    beyond = sizes * scaled[:, None].astype(np.float32) - rounded
    whole = rounded.astype(np.int32)
    _complete(whole, beyond, missing.astype(np.int64), room)
    codes: Codes = np.where(vectors < 0, -whole, whole).astype(np.int8)
    return codes


def _scales(
    sizes: npt.NDArray[np.float32], squares: npt.NDArray[np.float64], squared_norm: int
) -> npt.NDArray[np.float64]:
    """Return the factor of each vector that gives it the norm once what is too large is clipped."""
    scales = np.sqrt(squared_norm / squares)
    largest = sizes.max(axis=1)
    clipped = np.flatnonzero(largest * scales > LARGEST)
    while len(clipped):
        over = sizes[clipped] * scales[clipped, None] > LARGEST
        rest = squared_norm - LARGEST**2 * over.sum(axis=1)
        free = np.square(np.where(over, 0, sizes[clipped]), dtype=np.float64).sum(axis=1)
        possible = (rest > 0) & (free > 0)
        larger = np.sqrt(np.divide(rest, free, out=np.zeros(len(free)), where=possible))
        grows = possible & (larger > scales[clipped] * (1 + 1e-9))
        scales[clipped[grows]] = larger[grows]
        clipped = clipped[grows]
    return scales


def _complete(
    sizes: npt.NDArray[np.int32], beyond: npt.NDArray[np.float32], missing: npt.NDArray[np.int64], room: Floats
) -> None:
    """Move components of vectors to a neighbour until their squared norms are met, the closest calls first.

    Args:
        sizes: int32, shape (n, dimension): components without their signs, rounded; changed in place.
        beyond: float32, same shape: what rounding took from each.
        missing: int64, shape (n,): what the squared norms lack, or have too much where negative; changed in place.
        room: float64, shape (n,): how far from its exact value a component may be moved, if that can be helped.
    """
    for row in np.flatnonzero(np.abs(missing) > _MANY):
        missing[row] -= _move_many(sizes[row], beyond[row], int(missing[row]))
    left = np.flatnonzero(missing)
    for first in range(0, min(sizes.shape[1], _BLOCKS * _COLUMNS), _COLUMNS):
        # Any components would do; among so many, there are enough of all sizes, nearly always.
        some = slice(first, first + _COLUMNS)
        left = left[~_complete_by(sizes[:, some], beyond[:, some], missing, room, left)]
    for row in left:
        # By moves of any components in either direction, or as near as they come.
        near = np.flatnonzero(np.abs(beyond[row]) <= 0.5)[: 2 * _CANDIDATES].tolist()
        for place, step in _choose([_moves(size) for size in sizes[row, near].tolist()], int(missing[row])):
            sizes[row, near[place]] += step


def _complete_by(
    sizes: npt.NDArray[np.int32],
    beyond: npt.NDArray[np.float32],
    missing: npt.NDArray[np.int64],
    room: Floats,
    rows: npt.NDArray[np.intp],
) -> npt.NDArray[np.bool_]:
    """Complete some rows by these of their components alone; tell of which the squared norm is met now."""
    some, rest = sizes[rows], beyond[rows]
    steps = np.where(rest >= 0, 1, -1)
    moved, calls = some + steps, np.abs(rest)
    can_move = (1 - room[rows, None] <= calls) & (calls <= 0.5) & (moved >= 0) & (moved <= LARGEST)
    # The first, not the closest of all: of codes, these would be of one size, which add up to few totals.
    can_move &= np.cumsum(can_move, axis=1) <= _CANDIDATES
    closest = np.argsort(np.where(can_move, -calls, 1), axis=1, kind="stable")[:, :_CANDIDATES]
    gains = np.take_along_axis(np.where(can_move, steps * (moved + some), 0), closest, axis=1)
    met = np.zeros(len(rows), np.bool_)
    for i, (row, of_row, total) in enumerate(zip(rows, gains.tolist(), missing[rows].tolist(), strict=True)):
        chosen = _choose_exactly(of_row, total)
        if chosen is not None:
            columns = closest[i, chosen]
            sizes[row, columns] += steps[i, columns]
            met[i] = True
    return met


def _choose_exactly(gains: Sequence[int], total: int) -> list[int] | None:
    """Choose gains that add up to a total, the first are preferred; None where none do."""
    lowest = sum(gain for gain in gains if gain < 0)
    aim = total - lowest
    # Bit s of these numbers tells whether the gains so far can add up to s + lowest.
    reach = [1 << -lowest]
    for gain in gains:
        if aim < 0 or reach[-1] >> aim & 1:
            break
        reach.append(reach[-1] | (reach[-1] << gain if gain > 0 else reach[-1] >> -gain))
    if aim < 0 or not reach[-1] >> aim & 1:
        return None
    chosen = []
    for place in range(len(reach) - 2, -1, -1):
        if not reach[place] >> aim & 1:
            aim -= gains[place]
            chosen.append(place)
    return chosen


def _moves(size: int) -> Moves:
    """Return what a component of that size may do."""
    return tuple((2 * step * size + 1, step) for step in (1, -1) if 0 <= size + step <= LARGEST)


def _move_many(sizes: npt.NDArray[np.int32], beyond: npt.NDArray[np.float32], missing: int) -> int:
    """Where much is missing, as of vectors of few different components, move as many of the closest calls as it takes.

    Returns:
        What the squared norm gained.
    """
    step = 1 if missing > 0 else -1
    gains = step * 2 * sizes + 1
    useful = np.flatnonzero((np.abs(beyond) <= 0.5) & (sizes + step <= LARGEST) & (sizes + step >= 0))
    useful = useful[np.argsort(-step * beyond[useful], kind="stable")]
    taken = useful[: int(np.searchsorted(np.abs(np.cumsum(gains[useful])), abs(missing), side="right"))]
    sizes[taken] += step
    beyond[taken] -= step
    return int(gains[taken].sum())


def _choose(moves: Sequence[Moves], total: int) -> list[tuple[int, int]]:
    """Choose moves of components, at most one of each, whose gains add up to a total; the first are preferred.

    Args:
        moves: Of each component.
        total: What the gains shall add up to.

    Returns:
        Pairs of (place in `moves`, step) whose gains add up to it, or come as near as can be.
    """
    lowest = sum(min(0, *(gain for gain, _ in of)) for of in moves if of)
    highest = sum(max(0, *(gain for gain, _ in of)) for of in moves if of)
    aim = min(max(total, lowest), highest) - lowest
    # Bit s of these numbers tells whether the components so far can gain s + lowest.
    reach = [1 << -lowest]
    for of in moves:
        if reach[-1] >> aim & 1:
            break
        after = reach[-1]
        for gain, _ in of:
            after |= reach[-1] << gain if gain > 0 else reach[-1] >> -gain
        reach.append(after)
    while not reach[-1] >> aim & 1:  # the nearest that can be had: below, above, and so on
        below = reach[-1] & ((1 << aim) - 1)
        above = reach[-1] >> aim
        nearest_below = aim - below.bit_length() + 1 if below else highest
        nearest_above = (above & -above).bit_length() - 1 if above else highest
        aim += nearest_above if nearest_above <= nearest_below else -nearest_below
    chosen = []
    for place in range(len(reach) - 2, -1, -1):
        if not reach[place] >> aim & 1:
            gain, step = next(move for move in moves[place] if aim >= move[0] and reach[place] >> (aim - move[0]) & 1)
            aim -= gain
            chosen.append((place, step))
    return chosen


def recover_codes(stored: Codes, norms: Floats, squared_norm: int) -> Codes:
    """Scale stored codes back to the norms that they had.

    Args:
        stored: int8, shape (n, dimension), from `equalize_norms`.
        norms: float64, shape (n,): of the codes that they were made of.
        squared_norm: C².

    Returns:
        int8, same shape: those codes, byte for byte, where they were not clipped and their norms are not too near to C
        or above it.
    """
    factors = np.asarray(norms, np.float64) / math.sqrt(squared_norm)
    codes: Codes = np.clip(np.rint(stored * factors[:, None]), -128, 127).astype(np.int8)
    return codes


def storage_loss(vectors: Numbers, stored: Codes, squared_norm: int) -> npt.NDArray[np.float64]:
    """Return how far scores of what is stored may be off: by the direction, and by a norm that could not be met.

    A norm of ``(1 - e) C`` moves a cosine to ``e + (1 - e) cos``. Vectors of few components that are not zero have no
    others to enlarge where these are clipped.

    Args:
        vectors: Shape (n, dimension).
        stored: int8, same shape, from `equalize_norms`.
        squared_norm: C².
    """
    lengths = norms(stored)
    short = np.where(lengths > 0, np.abs(1 - lengths / math.sqrt(squared_norm)), 0.0)
    return direction_loss(vectors, stored) + short


def direction_loss(vectors: Numbers, codes: Codes) -> npt.NDArray[np.float64]:
    """Return by how much the cosine of each vector with the codes made of it falls short of 1; 0 for zero vectors.

    Args:
        vectors: Shape (n, dimension).
        codes: int8, same shape.
    """
    a, b = vectors.astype(np.float32), codes.astype(np.float32)
    dots, squares, of_codes = (np.einsum("ij,ij->i", x, y, dtype=np.float64) for x, y in ((a, b), (a, a), (b, b)))
    lengths = np.sqrt(squares * of_codes)
    return np.where(squares > 0, 1 - np.divide(dots, lengths, out=np.zeros(len(dots)), where=lengths > 0), 0.0)
