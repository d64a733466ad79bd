import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pplx_vectorstore import load_encoder
from pplx_vectorstore.encoders.checkpoints import MEAN_POOLED_MODEL_TYPES
from pplx_vectorstore.encoders.cpu_qwen3 import CpuQwen3TokenModel
from pplx_vectorstore.encoders.torch_model import TorchTokenModel
from pplx_vectorstore.errors import AlignmentError, EncodingError
from pplx_vectorstore.pooling import pool_spans


def cosines(vectors, others):
    vectors, others = vectors.astype(np.float64), others.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    return (vectors * others).sum(axis=1) / lengths


@pytest.fixture(scope="module")
def eager(pplx_checkpoint, reference_module):
    return reference_module.load_bidirectional_qwen3(pplx_checkpoint, "eager")


@pytest.fixture(scope="module", params=["on the CPU", "padded, as on a GPU"])
def pplx_model(request, pplx, pplx_checkpoint, reference_module):
    """The tiny pplx checkpoint, run in each way."""
    if request.param == "on the CPU":
        assert isinstance(pplx._model, CpuQwen3TokenModel)
        return pplx._model
    model = reference_module.load_bidirectional_qwen3(pplx_checkpoint, "sdpa")
    return TorchTokenModel(model, 0, bidirectional_qwen3=True)


class TestBidirectionalQwen3:
    def hidden(self, model, ids, visible):
        """Token vectors by eager attention under a mask that is written out: True where seen."""
        added = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([ids.tolist()]), attention_mask={"full_attention": added})
        return output.last_hidden_state[0].numpy()

    def test_every_token_sees_every_other(self, pplx, pplx_model, eager, sentences):
        ids = np.concatenate(pplx.tokenizer.encode(sentences[:2]))
        spans = [(0, 5), (5, len(ids) - 1), (len(ids) - 1, len(ids))]
        pooled = pplx_model.pool([ids], [spans])
        all_visible = torch.ones(len(ids), len(ids), dtype=torch.bool)
        expected = pool_spans(self.hidden(eager, ids, all_visible), spans)
        assert cosines(pooled, expected).min() > 0.99999
        # The test can tell: with the causal mask that Qwen3 has by itself, vectors are others.
        causal = pool_spans(self.hidden(eager, ids, all_visible.tril()), spans)
        assert cosines(pooled, causal).min() < 0.99

    def test_padding_is_seen_by_none(self, pplx, pplx_model, eager, sentences):
        rows = pplx.tokenizer.encode([sentences[0], "x", sentences[2]])
        spans = [[(0, len(row))] for row in rows]
        pooled = pplx_model.pool(rows, spans)
        for row, vector in zip(rows, pooled, strict=True):
            visible = torch.ones(len(row), len(row), dtype=torch.bool)
            expected = self.hidden(eager, row, visible).mean(axis=0)
            assert cosines(vector[None], expected[None]).min() > 0.99999

    def test_separator_tokens_are_real_tokens_though_padding_has_their_id(self, pplx, pplx_model, eager):
        """Padding is told by position: a mask made from ids would hide the separators as well."""
        separator = pplx.tokenizer.token_id("<|endoftext|>")
        long, short = np.arange(100, 130), np.array([200, separator, 201])
        pooled = pplx_model.pool([long, short], [[(0, 30)], [(0, 1), (2, 3)]])
        hidden = self.hidden(eager, short, torch.ones(3, 3, dtype=torch.bool))
        assert cosines(pooled[1:], hidden[[0, 2]]).min() > 0.99999


@pytest.fixture(scope="module")
def load_pplx(pplx_checkpoint):
    return functools.cache(lambda dtype: load_encoder(str(pplx_checkpoint), dtype=dtype))


FRAMES = {"bert": "[CLS] [SEP]", "distilbert": "[CLS] [SEP]"}


@pytest.mark.parametrize("model_type", sorted(MEAN_POOLED_MODEL_TYPES))
class TestBertFamily:
    def test_matches_the_reference(self, model_type, bert_family_checkpoint, bert_family_reference, sentences):
        """In a batch of rows of different lengths: padding and position offsets must be right."""
        folder = bert_family_checkpoint(model_type)
        start, end = FRAMES.get(model_type, "<s> </s>").split()
        encoder = load_encoder(str(folder), dtype="float32")
        assert (encoder.spec.dimension, encoder.spec.window_tokens) == (32, 64)
        assert (encoder.spec.quantizer, encoder.spec.context_weight) == ("norm", 0.3)
        documents = [sentences[:2], ["short"], ["", sentences[2], f"<pad> {start} {end}"]]
        reference = bert_family_reference(folder, ([start], [end]))
        for document, vectors in zip(documents, encoder.chunk_vectors(documents), strict=True):
            expected = reference(document)
            blank = ~expected.any(axis=1)
            assert not vectors[blank].any()
            assert cosines(vectors[~blank], expected[~blank]).min() > 0.99999

    def test_windows_may_use_every_position(self, model_type, bert_family_checkpoint, sentences):
        """A row as long as the model has positions: one more would be out of range."""
        encoder = load_encoder(str(bert_family_checkpoint(model_type)), dtype="float32")
        (codes,) = encoder.encode_documents([[" ".join(sentences), "end"]])
        assert codes.any(axis=1).all()


class TestDtypes:
    @pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
    def test_agree_with_float32(self, model_kind, load_like, sentences, dtype):
        name = {"dtype": dtype}
        loaded = load_like.func(*load_like.args, **{**load_like.keywords, **name})
        (expected,), (vectors,) = (one.chunk_vectors([sentences]) for one in (load_like(), loaded))
        assert vectors.dtype == np.float32
        assert cosines(vectors, expected).min() > 0.999

    def test_float16_where_the_model_stands_it(self, minilm, sentences):
        (vectors,) = load_encoder("all-minilm-l6-v2", dtype="float16").chunk_vectors([sentences])
        assert cosines(vectors, minilm.chunk_vectors([sentences])[0]).min() > 0.999

    def test_what_the_checkpoint_says_is_not_what_it_is_run_in(self, pplx_checkpoint, copy_checkpoint, sentences):
        """Published configs say bfloat16; on most CPUs that is the slower choice."""
        folder = copy_checkpoint(pplx_checkpoint)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(
            json.dumps(config | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}), "utf-8"
        )
        loaded = load_encoder(str(folder), dtype="float32")
        assert loaded._model.dtype == torch.float32


@pytest.mark.parametrize("length", [40, 700, 1300])
def test_attention_in_bfloat16_in_one_product_and_in_many(load_pplx, length):
    """Long rows are attended to head by head and block by block; each way must give what float32 gives."""
    rows = [np.random.default_rng(length).integers(10, 390, size=n) for n in (length, 3, length // 2)]
    spans = [[(start, start + 3) for start in range(0, len(row) - 2, 3)] for row in rows]
    exact, rounded = (load_pplx(dtype)._model.pool(rows, spans) for dtype in ("float32", "bfloat16"))
    assert cosines(rounded, exact).min() > 0.999


class TestPooling:
    def test_equals_pool_spans(self, pplx_model):
        rows = [np.arange(50, 70), np.arange(90, 95), np.arange(7, 40)]
        spans = [[(0, 3), (3, 4), (10, 20)], [(0, 5)], [(1, 33), (0, 33)]]
        pooled = pplx_model.pool(rows, spans)
        assert pooled.dtype == np.float32
        assert pooled.shape == (6, 64)
        alone = [
            pplx_model.pool([row], [[(i, i + 1) for i in range(len(row))]])  # every token vector
            for row in rows
        ]
        expected = np.concatenate([pool_spans(one, of) for one, of in zip(alone, spans, strict=True)])
        assert np.abs(pooled - expected).max() < 1e-5

    def test_model_that_loses_tokens(self):
        """Token vectors that do not correspond to the ids would be pooled into the wrong chunks."""

        class Short(torch.nn.Module):
            device = torch.device("cpu")
            config = SimpleNamespace()

            def forward(self, input_ids, attention_mask):
                hidden = torch.zeros(len(input_ids), input_ids.shape[1] - 1, 64)
                return type("Output", (), {"last_hidden_state": hidden})

        model = TorchTokenModel(Short(), 0, bidirectional_qwen3=True)
        with pytest.raises(AlignmentError, match=r"gave \(1, 15, 64\) for token ids of shape \(1, 16\)"):
            model.pool([np.arange(3)], [[(0, 2)]])

    def test_few_shapes_of_batches_and_no_position_too_many(self):
        """Libraries below keep code and buffers for each; a position that a model lacks is out of range."""
        shapes = set()

        class Seeing(torch.nn.Module):
            device = torch.device("cpu")
            config = SimpleNamespace(max_position_embeddings=100)

            def forward(self, input_ids, attention_mask):
                shapes.add(tuple(input_ids.shape))
                if attention_mask is not None:
                    assert ((input_ids == 9) == ~attention_mask).all()
                return SimpleNamespace(last_hidden_state=input_ids[..., None].float())

        model = TorchTokenModel(Seeing(), 9, bidirectional_qwen3=False)
        for length in range(1, 101):
            pooled = model.pool([np.full(length, length + 9), np.arange(1)], [[(0, length)], [(0, 1)]])
            assert pooled.tolist() == [[length + 9], [0]]
        assert shapes == {(2, width) for width in (16, 32, 48, 64, 80, 96, 100)}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_stored(pplx_checkpoint, copy_checkpoint, bad):
    from safetensors.torch import load_file, save_file

    folder = copy_checkpoint(pplx_checkpoint)
    weights = load_file(folder / "model.safetensors")
    weights["norm.weight"][5] = bad
    save_file(weights, folder / "model.safetensors")
    encoder = load_encoder(str(folder), dtype="float32")
    with pytest.raises(EncodingError, match="NaN or infinite"):
        encoder.encode_documents([["some", "text"]])
    with pytest.raises(EncodingError, match="NaN or infinite"):
        encoder.encode_queries(["text"])


def test_blank_texts_do_not_hide_broken_weights_but_need_no_model(pplx):
    assert not pplx.encode_queries([" "]).any()
