"""A checkpoint's safetensors, mapped into memory and read by numpy where they are used."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.errors import ModelFileError

Floats = npt.NDArray[np.float32]
# Of each tensor, its dtype, shape and bytes.
_Mapped = dict[str, tuple[str, Sequence[int], npt.NDArray[np.uint8]]]

# numpy has no bfloat16: it is the upper half of a float32.
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_LENGTH_BYTES = 8
# Far more than any model's; what is larger is no header.
_MOST_HEADER_BYTES = 100_000_000
# Weights that become float32 at once: they are multiplied while they are still in the processor's cache.
_WIDENED_AT_ONCE = 2**18


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor as it lies in its file; indexing gives float32.

    Attributes:
        raw: float32, float16, or bfloat16 as uint16.
    """

    raw: npt.NDArray[Any]

    def __getitem__(self, index: Any) -> Floats:
        chosen = self.raw[index]
        if chosen.dtype == np.uint16:
            widened: npt.NDArray[np.uint32] = np.left_shift(chosen, 16, dtype=np.uint32)
            return widened.view(np.float32)
        floats: Floats = chosen.astype(np.float32, copy=False)
        return floats

    def multiply(self, vectors: Floats) -> Floats:
        """Return ``vectors @ weight.T``: float32, shape (n, rows of the weight)."""
        if self.raw.dtype == np.float32:
            whole: Floats = vectors @ self.raw.T
            return whole
        n_rows, width = self.raw.shape
        product = np.empty((len(vectors), n_rows), dtype=np.float32)
        step = max(1, _WIDENED_AT_ONCE // width)
        for start in range(0, n_rows, step):
            np.matmul(vectors, self[start : start + step].T, out=product[:, start : start + step])
        return product


class Weights:
    """All tensors of a checkpoint, by name.

    Args:
        folder: Holds ``*.safetensors``, one or several.

    Raises:
        ModelFileError: A file is truncated or is none of safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: _Mapped = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._tensors |= _map_file(path)
        self._taken: set[str] = set()

    def prefix_of(self, name: str) -> str:
        """Return what stands before a tensor's name: models are published with the name of their class or without.

        Raises:
            ModelFileError: There is no such tensor.
        """
        for full in self._tensors:
            if full == name or full.endswith(f".{name}"):
                return full.removesuffix(name)
        raise self._misfit(name)

    def has(self, name: str) -> bool:
        """Tell whether there is a tensor of that name."""
        return name in self._tensors

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a tensor.

        Raises:
            ModelFileError: There is none of that name and shape, or it is not of floats.
        """
        dtype, found, raw = self._tensors.get(name, ("", (), np.empty(0, np.uint8)))
        if tuple(found) != tuple(shape) or dtype not in _DTYPES:
            raise self._misfit(name)
        self._taken.add(name)
        return Tensor(raw.view(_DTYPES[dtype]).reshape(shape))

    def require_all_taken(self, part: str) -> None:
        """Refuse a checkpoint that has more of a kind of tensors than its config.json says.

        Args:
            part: What their names contain, such as ``layers.``.

        Raises:
            ModelFileError: Names one.
        """
        left = sorted(name for name in self._tensors.keys() - self._taken if part in name)
        if left:
            raise self._misfit(left[0])

    def _misfit(self, name: str) -> ModelFileError:
        return ModelFileError(
            f"the weights in {self._folder} and its config.json differ, first in {name}; fetch the checkpoint again"
        )


def _map_file(path: Path) -> _Mapped:
    try:
        return _read_places(np.memmap(path, np.uint8, mode="r"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(
            f"the checkpoint {path} cannot be loaded (truncated or altered?): {error}; fetch it again"
        ) from error


def _read_places(file: npt.NDArray[np.uint8]) -> _Mapped:
    """Return dtype, shape and bytes of each tensor of a file.

    Source: https://github.com/huggingface/safetensors, "Format": the header's length in 8 bytes, the header as JSON,
    and the tensors, whose places are counted from the header's end.
    """
    length = int.from_bytes(file[:_LENGTH_BYTES].tobytes(), "little")
    if length > min(len(file) - _LENGTH_BYTES, _MOST_HEADER_BYTES):
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(file[_LENGTH_BYTES : _LENGTH_BYTES + length].tobytes())
    data = file[_LENGTH_BYTES + length :]
    tensors: _Mapped = {}
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (start, stop) = facts["dtype"], facts["shape"], facts["data_offsets"]
        fits = dtype not in _DTYPES or math.prod(shape) * _DTYPES[dtype].itemsize == stop - start
        if not fits or not 0 <= start <= stop <= len(data):
            raise ValueError(f"{name} does not lie within it")
        tensors[name] = dtype, shape, data[start:stop]
    return tensors
