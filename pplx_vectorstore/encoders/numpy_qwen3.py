"""Qwen3 with bidirectional attention in numpy, for queries: no framework to import."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pplx_vectorstore.encoders.checkpoints import Checkpoint, read_config
from pplx_vectorstore.encoders.numpy_layers import (
    UnsupportedByNumpyError,
    attend,
    require_number,
    rms_norm,
    run_rows,
    silu,
)
from pplx_vectorstore.encoders.weights import Floats, Tensor, Weights
from pplx_vectorstore.pooling import Span
from pplx_vectorstore.windows import TokenIds

_EMBEDDINGS = "embed_tokens.weight"
# What Qwen3 is by itself, where a config does not say.
_ROPE_THETA = 10000.0
_EPSILON = 1e-6
_HEAD_DIMENSION = 128


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer's weights; those of matrices stay as they lie in the file."""

    attention_norm: Floats
    query: Tensor
    key: Tensor
    value: Tensor
    query_norm: Floats
    key_norm: Floats
    attention_output: Tensor
    mlp_norm: Floats
    gate: Tensor
    up: Tensor
    down: Tensor


class NumpyQwen3Model:
    """Runs a checkpoint of Qwen3's, every token seeing every other of its row.

    Weights in bfloat16 become float32 block by block, as they are multiplied: nothing but one block is kept of them.

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
        rope = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise UnsupportedByNumpyError(f"rotary positions of type {rope.get('rope_type', rope.get('type'))!r}")
        for name, usual in (("hidden_act", "silu"), ("attention_bias", False), ("use_sliding_window", False)):
            if config.get(name, usual) != usual:
                raise UnsupportedByNumpyError(f"{name} = {config[name]!r}")
        self.dimension = require_number(config, "hidden_size")
        self.vocabulary_size = require_number(config, "vocab_size")
        self._heads = require_number(config, "num_attention_heads")
        self._key_heads = require_number(config, "num_key_value_heads")
        self._kept: int = config.get("head_dim") or _HEAD_DIMENSION
        self._epsilon: float = config.get("rms_norm_eps", _EPSILON)
        theta = rope.get("rope_theta", config.get("rope_theta", _ROPE_THETA))
        exponents = np.arange(0, self._kept, 2, dtype=np.float32) / np.float32(self._kept)
        self._frequencies = (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32)
        self._read(Weights(checkpoint.folder), config)

    def pool(self, rows: Sequence[TokenIds], spans: Sequence[Sequence[Span]]) -> Floats:
        """Run the rows and mean-pool spans of each; see ``TokenModel.pool``."""
        return run_rows(rows, spans, self.vocabulary_size, self._forward)

    def _read(self, weights: Weights, config: Mapping[str, Any]) -> None:
        dimension, inner = self.dimension, require_number(config, "intermediate_size")
        of_queries, of_keys = self._heads * self._kept, self._key_heads * self._kept
        prefix = weights.prefix_of(_EMBEDDINGS)
        self._words = weights.take(prefix + _EMBEDDINGS, (self.vocabulary_size, dimension))
        self._norm = weights.take(f"{prefix}norm.weight", (dimension,))[:]
        self._layers = []
        for i in range(require_number(config, "num_hidden_layers")):

            def take(name: str, *shape: int, layer: int = i) -> Tensor:
                return weights.take(f"{prefix}layers.{layer}.{name}.weight", shape)

            self._layers.append(
                _Layer(
                    attention_norm=take("input_layernorm", dimension)[:],
                    query=take("self_attn.q_proj", of_queries, dimension),
                    key=take("self_attn.k_proj", of_keys, dimension),
                    value=take("self_attn.v_proj", of_keys, dimension),
                    # The scale of attention's scores goes into the norm of the queries.
                    query_norm=take("self_attn.q_norm", self._kept)[:] * np.float32(1 / math.sqrt(self._kept)),
                    key_norm=take("self_attn.k_norm", self._kept)[:],
                    attention_output=take("self_attn.o_proj", dimension, of_queries),
                    mlp_norm=take("post_attention_layernorm", dimension)[:],
                    gate=take("mlp.gate_proj", inner, dimension),
                    up=take("mlp.up_proj", inner, dimension),
                    down=take("mlp.down_proj", dimension, inner),
                )
            )
        weights.require_all_taken("layers.")

    def _forward(self, ids: TokenIds, places: list[slice]) -> Floats:
        positions = np.concatenate([np.arange(place.stop - place.start) for place in places]).astype(np.float32)
        angles = positions[:, None, None] * self._frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        hidden = self._words[ids]
        for layer in self._layers:
            normed = rms_norm(hidden, layer.attention_norm, self._epsilon)
            query, key, value = (
                part.multiply(normed).reshape(len(ids), -1, self._kept)
                for part in (layer.query, layer.key, layer.value)
            )
            query = _rotate(rms_norm(query, layer.query_norm, self._epsilon), cos, sin)
            key = _rotate(rms_norm(key, layer.key_norm, self._epsilon), cos, sin)
            hidden = hidden + layer.attention_output.multiply(attend(query, key, value, places))
            normed = rms_norm(hidden, layer.mlp_norm, self._epsilon)
            hidden = hidden + layer.down.multiply(silu(layer.gate.multiply(normed)) * layer.up.multiply(normed))
        return rms_norm(hidden, self._norm, self._epsilon)


def _rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Apply rotary positions to float32 of shape (n_tokens, n_heads, head_dimension)."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
