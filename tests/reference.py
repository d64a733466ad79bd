"""The reference algorithm of late chunking, written out plainly: the oracle for every encoder.

It shares with the library only ``plan_windows``, whose output it is told to follow, and takes one
unpadded forward pass per window through a stock transformers model that it loads itself.
"""

import numpy as np
import torch
from tokenizers import Tokenizer


class Reference:
    """One model's reference.

    Args:
        folder: The checkpoint.
        forward: Token ids (a list of int) → last hidden state, shape (n_tokens, dimension).
        separator: The separator token, or None.
        frame: The tokens put at a sequence's start and end, as two lists of their names.
        context_weight: Share of the contextual vector.
        quantizer: "tanh" or "norm".
    """

    def __init__(self, folder, forward, *, separator, frame, context_weight, quantizer):
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True
        self.forward = forward
        self.separator = [] if separator is None else [self.tokenizer.token_to_id(separator)]
        self.prefix, self.suffix = ([self.tokenizer.token_to_id(token) for token in side] for side in frame)
        self.context_weight = context_weight
        self.quantizer = quantizer

    def __call__(self, chunks, windows=None):
        """Return the float vectors of one document's chunks, shape (n_chunks, dimension).

        Args:
            chunks: The document.
            windows: A function (chunk spans, number of tokens) → windows, for documents longer than
                one; None to put the whole document through the model at once.
        """
        vectors = self.late(chunks, windows)
        if self.context_weight < 1:
            alone = [self.late([chunk], windows)[0] for chunk in chunks]
            weight = self.context_weight
            vectors = [weight * a + (1 - weight) * b for a, b in zip(vectors, alone, strict=True)]
        return np.array(vectors, np.float32).reshape(len(chunks), self.dimension)

    def late(self, chunks, windows=None):
        ids, spans = self.lay_out(chunks)
        if windows is None:
            passes = [(0, len(ids), [(chunk, start, stop) for chunk, (start, stop) in enumerate(spans)])]
        else:
            passes = [
                (window.start, window.stop, [(piece.chunk, piece.start, piece.stop) for piece in window.pieces])
                for window in windows(spans, len(ids))
            ]
        sums = [0.0 for _ in chunks]
        counts = [0 for _ in chunks]
        for start, stop, pieces in passes:
            if stop > start:
                hidden = self.forward(self.prefix + ids[start:stop] + self.suffix)
                hidden = hidden[len(self.prefix) :]
                for chunk, first, last in pieces:
                    sums[chunk] = sums[chunk] + hidden[first - start : last - start].sum(axis=0, dtype=np.float64)
                    counts[chunk] += last - first
        dimension = self.dimension
        return [total / count if count else np.zeros(dimension) for total, count in zip(sums, counts, strict=True)]

    def lay_out(self, chunks):
        ids, spans = [], []
        for index, chunk in enumerate(chunks):
            if index:
                ids.extend(self.separator)
            clean = "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in chunk)
            tokens = self.tokenizer.encode(clean, add_special_tokens=False).ids if clean.strip() else []
            spans.append((len(ids), len(ids) + len(tokens)))
            ids.extend(tokens)
        return ids, spans

    def codes(self, vectors):
        """Quantize float vectors, in torch rather than numpy.

        For "norm", scaling and rounding is all that is done: the squared norm is met but for a little.
        """
        vectors = torch.tensor(vectors)
        if self.quantizer == "tanh":
            return torch.clamp(torch.round(torch.tanh(vectors) * 127), -128, 127).to(torch.int8).numpy()
        of_one_norm, of_one_maximum, loss = scale_and_round(vectors)
        return np.where(loss[:, None] < MOST_LOSS, of_one_norm, of_one_maximum)

    def assert_codes(self, codes, vectors):
        """Compare a library's codes with those of the reference's float vectors.

        They agree up to one unit, where rounding ties. To meet the squared norm exactly, the library moves a few
        components to their other neighbour.
        """
        expected = self.codes(vectors)
        assert codes.shape == expected.shape
        assert codes.dtype == np.int8
        if self.quantizer == "norm":
            of_one_norm, of_one_maximum, loss = scale_and_round(torch.tensor(vectors))
            squared_norm = squared_norm_of(codes.shape[1])
            has_norm = np.square(codes.astype(int)).sum(axis=1) == squared_norm
            # Moving a few costs a little, too: about the most that it may be, either way is right.
            assert (has_norm | (loss > 0.5 * MOST_LOSS) | ~vectors.any(axis=1)).all()
            assert (~has_norm | (loss < 1.5 * MOST_LOSS)).all()
            expected = np.where(has_norm[:, None], of_one_norm, of_one_maximum)
            # Rounding errors add up like the root of their number, and so does what it takes to make up for them.
            most = 8 + 1.5 * codes.shape[1] ** 0.5
            assert np.count_nonzero(codes != expected, axis=1).max(initial=0) <= most
        assert np.abs(codes.astype(int) - expected.astype(int)).max(initial=0) <= 1

    @property
    def dimension(self):
        return self.forward.dimension


MOST_LOSS = 2e-4
"""What clipping may cost of a cosine: of vectors that it would cost more, no component is clipped."""


def squared_norm_of(dimension):
    """28 times the root of the dimension is the norm, 127 at least; squared."""
    return max(127**2, 28**2 * dimension)


def scale_and_round(vectors):
    """Quantize vectors to one norm, and so that the largest component is 127; tell what the former costs of a cosine.

    Where a component is clipped, the others are enlarged, until the norm is met.
    """
    vectors = vectors.double()
    target = squared_norm_of(vectors.shape[1])
    low, high = torch.zeros(len(vectors), 1).double(), torch.full((len(vectors), 1), 1e9).double()
    for _ in range(200):
        factor = (low + high) / 2
        too_long = torch.clamp(factor * vectors, -127, 127).square().sum(dim=1, keepdim=True) > target
        low, high = torch.where(too_long, low, factor), torch.where(too_long, factor, high)
    of_one_norm = torch.round(torch.clamp(low * vectors, -127, 127))
    largest = vectors.abs().amax(dim=1, keepdim=True)
    of_one_maximum = torch.round(torch.where(largest > 0, 127 * vectors / largest, 0 * vectors))
    loss = 1 - torch.cosine_similarity(vectors, of_one_norm, dim=1)
    fits = largest * target**0.5 <= 127 * torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    loss = torch.where(fits[:, 0], 0, loss)
    return of_one_norm.to(torch.int8).numpy(), of_one_maximum.to(torch.int8).numpy(), loss.numpy()


class Forward:
    """One unpadded full-attention forward pass of a stock transformers model."""

    def __init__(self, model, *, qwen3_mask=False):
        self.model = model.eval()
        self.qwen3_mask = qwen3_mask
        self.dimension = model.config.hidden_size
        self.known = {}

    def __call__(self, ids):
        key = tuple(ids)
        if key not in self.known:
            self.known[key] = self.run(ids)
        return self.known[key]

    def run(self, ids):
        # As a dict, Qwen3Model takes the mask as it is; None is no mask at all.
        mask = {"attention_mask": {"full_attention": None}} if self.qwen3_mask else {}
        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([ids]), **mask).last_hidden_state[0].numpy()


def load_bidirectional_qwen3(folder, attention):
    """Load the pplx layout: stock Qwen3 weights, every token sees every other."""
    import json

    from safetensors.torch import load_file
    from transformers import Qwen3Config, Qwen3Model

    settings = json.loads((folder / "config.json").read_text("utf-8"))
    config = Qwen3Config(**{k: v for k, v in settings.items() if k not in ("auto_map", "architectures", "model_type")})
    config._attn_implementation = attention
    model = Qwen3Model(config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    for layer in model.layers:
        layer.self_attn.is_causal = False
    return model
