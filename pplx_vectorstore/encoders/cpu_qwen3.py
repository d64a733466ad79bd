"""Qwen3 with bidirectional attention on a CPU, without padding, in blocks that stay in its caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.encoders.packed_linear import BLOCK_TOKENS, pack_linear
from pplx_vectorstore.encoders.torch_pooling import pool_tokens
from pplx_vectorstore.pooling import Span, join_ranges
from pplx_vectorstore.windows import TokenIds

if TYPE_CHECKING:
    import torch

# Scores of one matrix product in bfloat16: 2 MB, so that softmax and the second product find them in the cache.
_SCORES_AT_ONCE = 2**20
# oneDNN keeps code and buffers for every shape it has seen: sizes are rounded up, so that there are few.
_TOKEN_GRAIN = 64


class CpuQwen3TokenModel:
    """Runs the weights of a ``transformers.Qwen3Model``, every token seeing every other of its row.

    The rows of a batch are laid end to end. All but attention is done token by token, in blocks of
    `BLOCK_TOKENS`, so that no temporary is larger than a cache,
    whatever the batch; attention is done row by row. The residual stream is float32 also where products
    are bfloat16. What is allocated is of few sizes, whatever the batch: memory that is taken and returned in
    sizes of all kinds would come to be full of holes.

    Args:
        model: Holds the weights, float32 or bfloat16; its layers are taken out, to hold them once.

    Attributes:
        dtype: Of the weights and the products.
    """

    pads = False
    # More would change nothing but the memory taken.
    batch_tokens = 4096

    def __init__(self, model: Any) -> None:
        config = model.config
        self._embed = model.embed_tokens
        self._rotary = model.rotary_emb
        self.dtype: torch.dtype = model.embed_tokens.weight.dtype
        self._epsilon: float = config.rms_norm_eps
        self._heads: int = config.num_attention_heads
        self._key_heads: int = config.num_key_value_heads
        self._head_dimension: int = config.head_dim
        self._norm = model.norm.weight.detach().float()
        self._layers: list[_Layer] = []
        while len(model.layers):
            self._layers.append(_Layer(model.layers[0], self._head_dimension**-0.5))
            del model.layers[0]

    @property
    def dimension(self) -> int:
        """Components of a token vector."""
        return int(self._embed.embedding_dim)

    @property
    def vocabulary_size(self) -> int:
        """Number of token embeddings: ids must be below it."""
        return int(self._embed.num_embeddings)

    def pool(self, rows: Sequence[TokenIds], spans: Sequence[Sequence[Span]]) -> npt.NDArray[np.float32]:
        """Run the rows as one batch and mean-pool spans of each; see ``TokenModel.pool``."""
        import torch

        lengths = [len(row) for row in rows]
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
        with torch.inference_mode():
            hidden = self._forward(torch.from_numpy(np.concatenate(rows)), lengths)
            return pool_tokens(hidden, join_ranges(starts, spans)).numpy()

    def _forward(self, ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return token vectors, float32, shape (n_tokens, dimension)."""
        import torch

        kept = self._head_dimension
        n_tokens = -(-len(ids) // _TOKEN_GRAIN) * _TOKEN_GRAIN
        room = -(-n_tokens // self.batch_tokens) * self.batch_tokens
        positions = torch.zeros(n_tokens, dtype=torch.int64)  # those after the last row are nobody's
        positions[: len(ids)] = torch.cat([torch.arange(length) for length in lengths])
        hidden = torch.empty(room, self.dimension)[:n_tokens]
        hidden[: len(ids)] = self._embed(ids)
        hidden[len(ids) :] = 0
        # cos and sin of a token repeat after half their length.
        cos, sin = (of[0, :, None, : kept // 2].float() for of in self._rotary(hidden[None], positions[None]))
        per_key = self._heads // self._key_heads
        queries = torch.empty(self._key_heads, per_key, room, kept, dtype=self.dtype)
        keys = torch.empty(self._key_heads, room, kept, dtype=self.dtype)
        values = torch.empty_like(keys)
        attended = torch.empty(room, self._key_heads, per_key, kept, dtype=self.dtype)
        attended[len(ids) : n_tokens] = 0
        for layer in self._layers:
            for block in _blocks(n_tokens):
                normed = self._normalise(hidden[block], layer.attention_norm).to(self.dtype)
                mixed = layer.queries_keys_values(normed).view(-1, self._heads + 2 * self._key_heads, kept)
                query, key, value = torch.split(mixed, [self._heads, self._key_heads, self._key_heads], dim=1)
                query = _rotate(self._normalise(query.float(), layer.query_norm), cos[block], sin[block])
                queries[:, :, block] = query.view(-1, self._key_heads, per_key, kept).permute(1, 2, 0, 3)
                key = _rotate(self._normalise(key.float(), layer.key_norm), cos[block], sin[block])
                keys[:, block] = key.transpose(0, 1)
                values[:, block] = value.transpose(0, 1)
            start = 0
            for length in lengths:
                row = slice(start, start + length)
                _attend(queries[:, :, row], keys[:, row], values[:, row], attended[row])
                start += length
            for block in _blocks(n_tokens):
                stream = hidden[block]
                stream += layer.attention_output(attended[block].flatten(1))
                normed = self._normalise(stream, layer.mlp_norm).to(self.dtype)
                gate = torch.nn.functional.silu(layer.gate(normed), inplace=True)
                stream += layer.down(gate.mul_(layer.up(normed)))
        for block in _blocks(n_tokens):
            hidden[block] = self._normalise(hidden[block], self._norm)
        return hidden[: len(ids)]

    def _normalise(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm of float32; one pass over `x` less than its textbook form."""
        import torch

        length: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        mean_square = length.square_().div_(x.shape[-1])
        return (x * mean_square.add_(self._epsilon).rsqrt_()).mul_(weight)


class _Layer:
    """One layer's weights, ready for use.

    Args:
        layer: A Qwen3DecoderLayer.
        scale: Of attention scores; goes into the norm of the queries.
    """

    def __init__(self, layer: Any, scale: float) -> None:
        import torch

        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        biases = [one.bias for one in projections if one.bias is not None]
        self.queries_keys_values = pack_linear(
            *(one.weight for one in projections), bias=torch.cat(biases).detach() if biases else None
        )
        self.attention_output = pack_linear(attention.o_proj.weight, bias=attention.o_proj.bias)
        self.gate = pack_linear(mlp.gate_proj.weight)
        self.up = pack_linear(mlp.up_proj.weight)
        self.down = pack_linear(mlp.down_proj.weight)
        self.attention_norm = layer.input_layernorm.weight.detach().float()
        self.mlp_norm = layer.post_attention_layernorm.weight.detach().float()
        self.query_norm = attention.q_norm.weight.detach().float() * scale
        self.key_norm = attention.k_norm.weight.detach().float()


def _blocks(n_tokens: int) -> Iterator[slice]:
    for start in range(0, n_tokens, BLOCK_TOKENS):
        yield slice(start, min(start + BLOCK_TOKENS, n_tokens))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions to float32 of shape (n_tokens, n_heads, head_dimension), in place."""
    first, second = x.chunk(2, dim=-1)
    turned = first * sin
    first.mul_(cos).sub_(second * sin)
    second.mul_(cos).add_(turned)
    return x


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, attended: torch.Tensor) -> None:
    """Let every token of a row attend to all of it.

    Args:
        queries: Scaled, shape (key_heads, queries_per_key, n, head_dimension).
        keys: Shape (key_heads, n, head_dimension).
        values: The same.
        attended: Where the result goes, shape (n, key_heads, queries_per_key, head_dimension).
    """
    import torch

    key_heads, per_key, n, kept = queries.shape
    if queries.dtype == torch.float32:
        for one in range(per_key):  # the queries of one key head in turn, so that keys need not be repeated
            result = torch.nn.functional.scaled_dot_product_attention(
                queries[None, :, one], keys[None], values[None], scale=1.0
            )
            attended[:, :, one] = result[0].transpose(0, 1)
        return
    # PyTorch's kernel computes bfloat16 scores with float32 instructions unless the CPU has AMX; these
    # products use what bfloat16 instructions there are.
    room = _round_up(n)
    if key_heads * per_key * room * room <= _SCORES_AT_ONCE:
        heads_at_once, step = key_heads, room
    else:
        heads_at_once, step = 1, 1 << max(4, (_SCORES_AT_ONCE // (per_key * room)).bit_length() - 1)
    fill = (0, 0, 0, room - n)
    for first in range(0, key_heads, heads_at_once):
        heads = slice(first, first + heads_at_once)
        query = torch.nn.functional.pad(queries[heads], fill)
        # Softmax does not change when one vector is taken from all keys, and without their mean the scores
        # are small enough for bfloat16's eight bits.
        mean = keys[heads].mean(dim=1, keepdim=True, dtype=torch.float32).to(keys.dtype)
        key = torch.nn.functional.pad(keys[heads] - mean, fill).transpose(1, 2)
        value = torch.nn.functional.pad(values[heads], fill)
        for start in range(0, n, step):
            some = query[:, :, start : start + step]
            scores = torch.bmm(some.reshape(heads_at_once, -1, kept), key)
            scores[:, :, n:] = -torch.inf
            result = torch.bmm(scores.softmax(-1), value).view(some.shape)
            stop = min(start + step, n)
            attended[start:stop, heads] = result[:, :, : stop - start].permute(2, 0, 1, 3)


def _round_up(n: int) -> int:
    """Round a row's length up, by an eighth at most once it is long."""
    grain = 16 if n <= 64 else max(_TOKEN_GRAIN, 1 << (n.bit_length() - 4))
    return -(-n // grain) * grain
