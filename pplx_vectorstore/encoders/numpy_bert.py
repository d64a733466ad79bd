"""Encoders of the BERT family in numpy, for queries: no framework to import."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.encoders.checkpoints import MEAN_POOLED_MODEL_TYPES, Checkpoint, read_config
from pplx_vectorstore.encoders.numpy_layers import (
    UnsupportedByNumpyError,
    attend,
    gelu,
    layer_norm,
    relu,
    require_number,
    run_rows,
)
from pplx_vectorstore.encoders.weights import Floats, Tensor, Weights
from pplx_vectorstore.pooling import Span
from pplx_vectorstore.windows import TokenIds

_ACTIVATIONS = {"gelu": gelu, "relu": relu}
_EMBEDDINGS = "embeddings.word_embeddings.weight"
_RELATIVE_BIAS = "encoder.relative_attention_bias.weight"
# Of MPNet, in which transformers fixes it: distances beyond share the last of the buckets.
_MOST_DISTANCE = 128
# What all of them have by default.
_EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class _Names:
    """What an architecture calls the parts of a layer, in the order of `_Layer`, and the sizes in its config."""

    layers: str = "encoder.layer"
    parts: tuple[str, ...] = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    dimension: str = "hidden_size"
    inner: str = "intermediate_size"
    n_layers: str = "num_hidden_layers"
    n_heads: str = "num_attention_heads"
    activation: str = "hidden_act"


_BERT = _Names()
_MPNET = _Names(
    parts=(
        "attention.attn.q",
        "attention.attn.k",
        "attention.attn.v",
        "attention.attn.o",
        "attention.LayerNorm",
        *_BERT.parts[5:],
    )
)
_DISTILBERT = _Names(
    layers="transformer.layer",
    parts=(
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    ),
    dimension="dim",
    inner="hidden_dim",
    n_layers="n_layers",
    n_heads="n_heads",
    activation="activation",
)


@dataclass(frozen=True, slots=True, eq=False)
class _Linear:
    weight: Tensor
    bias: Floats

    def __call__(self, x: Floats) -> Floats:
        product = self.weight.multiply(x)
        product += self.bias
        return product


@dataclass(frozen=True, slots=True, eq=False)
class _Norm:
    weight: Floats
    bias: Floats
    epsilon: float

    def __call__(self, x: Floats) -> Floats:
        return layer_norm(x, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    query: _Linear
    key: _Linear
    value: _Linear
    attention_output: _Linear
    attention_norm: _Norm
    up: _Linear
    down: _Linear
    norm: _Norm


class NumpyBertModel:
    """Runs a checkpoint of the BERT family: bert, distilbert, mpnet, roberta, xlm-roberta or camembert.

    Args:
        checkpoint: Where it is.

    Raises:
        ModelFileError: The files are truncated, incomplete or do not fit each other.
        UnsupportedByNumpyError: It has something that only PyTorch runs here.
    """

    pads = False
    batch_tokens = 4096

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = read_config(checkpoint.folder)
        kind = config["model_type"]
        names = {"distilbert": _DISTILBERT, "mpnet": _MPNET}.get(kind, _BERT)
        activation = config.get(names.activation, "gelu")
        if activation not in _ACTIVATIONS:
            raise UnsupportedByNumpyError(f"the activation {activation!r}")
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise UnsupportedByNumpyError(f"positions of type {config['position_embedding_type']!r}")
        self._activation = _ACTIVATIONS[activation]
        self.dimension = require_number(config, names.dimension)
        self.vocabulary_size = require_number(config, "vocab_size")
        self._heads = require_number(config, names.n_heads)
        # Roberta and its like count positions from the one after that of padding.
        self._first_position = require_number(config, "pad_token_id") + 1 if MEAN_POOLED_MODEL_TYPES[kind] else 0
        self._read(Weights(checkpoint.folder), names, kind, config)

    def pool(self, rows: Sequence[TokenIds], spans: Sequence[Sequence[Span]]) -> Floats:
        """Run the rows and mean-pool spans of each; see ``TokenModel.pool``."""
        return run_rows(rows, spans, self.vocabulary_size, self._forward)

    def _read(self, weights: Weights, names: _Names, kind: str, config: Mapping[str, Any]) -> None:
        dimension, inner = self.dimension, require_number(config, names.inner)
        epsilon = config.get("layer_norm_eps", _EPSILON)
        prefix = weights.prefix_of(_EMBEDDINGS)

        def linear(name: str, outputs: int, inputs: int) -> _Linear:
            weight = weights.take(f"{prefix}{name}.weight", (outputs, inputs))
            return _Linear(weight, weights.take(f"{prefix}{name}.bias", (outputs,))[:])

        def norm(name: str) -> _Norm:
            parts = ("weight", "bias")
            if weights.has(f"{prefix}{name}.gamma"):  # as the first checkpoints call them
                parts = ("gamma", "beta")
            weight, bias = (weights.take(f"{prefix}{name}.{part}", (dimension,))[:] for part in parts)
            return _Norm(weight, bias, epsilon)

        self._words = weights.take(prefix + _EMBEDDINGS, (self.vocabulary_size, dimension))
        positions = require_number(config, "max_position_embeddings")
        self._positions = weights.take(f"{prefix}embeddings.position_embeddings.weight", (positions, dimension))
        self._type: Floats | None = None
        if names is _BERT:
            types = (config.get("type_vocab_size", 2), dimension)
            self._type = weights.take(f"{prefix}embeddings.token_type_embeddings.weight", types)[0]
        self._norm = norm("embeddings.LayerNorm")
        self._relative: Floats | None = None
        if kind == "mpnet":
            buckets = config.get("relative_attention_num_buckets", 32)
            self._relative = weights.take(prefix + _RELATIVE_BIAS, (buckets, self._heads))[:]
        self._layers = []
        for i in range(require_number(config, names.n_layers)):
            parts = [f"{names.layers}.{i}.{part}" for part in names.parts]
            self._layers.append(
                _Layer(
                    query=linear(parts[0], dimension, dimension),
                    key=linear(parts[1], dimension, dimension),
                    value=linear(parts[2], dimension, dimension),
                    attention_output=linear(parts[3], dimension, dimension),
                    attention_norm=norm(parts[4]),
                    up=linear(parts[5], inner, dimension),
                    down=linear(parts[6], dimension, inner),
                    norm=norm(parts[7]),
                )
            )
        weights.require_all_taken(f"{names.layers}.")

    def _forward(self, ids: TokenIds, places: list[slice]) -> Floats:
        n_tokens, heads = len(ids), self._heads
        places_in_rows = np.concatenate([np.arange(place.stop - place.start) for place in places])
        hidden = self._words[ids] + self._positions[places_in_rows + self._first_position]
        if self._type is not None:
            hidden += self._type
        hidden = self._norm(hidden)
        bias = None if self._relative is None else functools.partial(_relative_bias, self._relative)
        scale = np.float32(1 / math.sqrt(self.dimension // heads))
        for layer in self._layers:
            query, key, value = (
                part(hidden).reshape(n_tokens, heads, -1) for part in (layer.query, layer.key, layer.value)
            )
            attended = attend(query * scale, key, value, places, bias)
            hidden = layer.attention_norm(hidden + layer.attention_output(attended))
            hidden = layer.norm(hidden + layer.down(self._activation(layer.up(hidden))))
        return hidden


def _relative_bias(weight: Floats, length: int) -> Floats:
    """Return what MPNet adds to scores, by how far a key is from a query: shape (n_heads, length, length).

    Half of the buckets are for keys before the query, and half for those after. Half of these are for one distance
    each, the others for ranges that grow with the logarithm.
    """
    half = len(weight) // 2
    offsets = np.arange(length)[:, None] - np.arange(length)[None, :]  # query minus key
    distances = np.abs(offsets)
    exact = half // 2
    with np.errstate(divide="ignore"):  # of distance 0, which has its own bucket
        logarithms = np.log(distances.astype(np.float32) / exact) / math.log(_MOST_DISTANCE / exact)
    ranges = np.minimum(exact + np.where(distances < exact, 0, logarithms * (half - exact)).astype(np.int64), half - 1)
    buckets: npt.NDArray[np.int64] = np.where(distances < exact, distances, ranges) + half * (offsets < 0)
    return weight[buckets].transpose(2, 0, 1)
