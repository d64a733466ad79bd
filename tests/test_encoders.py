"""load_encoder: what it loads, and what it refuses."""

import copy
import json
import pickle
import shutil
import sys

import numpy as np
import pytest

from pplx_vectorstore import load_encoder
from pplx_vectorstore.encoders import LateChunkingEncoder
from pplx_vectorstore.errors import InvalidInputError, MissingExtraError, ModelFileError, UnknownModelError


@pytest.fixture
def folder(pplx_checkpoint, copy_checkpoint):
    return copy_checkpoint(pplx_checkpoint)


def weights_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def save_weights(folder, weights):
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors")


class TestLoads:
    @pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
    def test_the_offline_model_by_its_names(self, name, minilm, sentences):
        encoder = load_encoder(name, dtype="float32", device="cpu")
        assert encoder.fingerprint == minilm.fingerprint
        assert (encoder.encode_queries(sentences[:2]) == minilm.encode_queries(sentences[:2])).all()

    def test_its_folder_like_any_checkpoint(self, minilm, minilm_folder, sentences):
        encoder = load_encoder(str(minilm_folder), dtype="float32")
        (codes,), (expected,) = (one.encode_documents([sentences]) for one in (encoder, minilm))
        assert (codes == expected).all()

    def test_models_for_single_chunks(self, folder, pplx, sentences):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        config["auto_map"]["AutoModel"] = "modeling.PPLXQwen3Model"
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        encoder = load_encoder(str(folder), dtype="float32")
        assert encoder.spec.context_weight == 0.0
        (codes,) = encoder.encode_documents([sentences])
        assert np.abs(codes.astype(int) - pplx.encode_queries(sentences)).max() <= 1

    def test_a_checkpoint_in_several_files(self, folder, pplx, sentences):
        weights = weights_of(folder)
        (folder / "model.safetensors").unlink()
        from safetensors.torch import save_file

        names = sorted(weights)
        index = {}
        for number, part in enumerate((names[::2], names[1::2]), start=1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(part, file)
        content = {"metadata": {"total_size": 1}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content), "utf-8")
        encoder = load_encoder(str(folder), dtype="float32")
        assert (encoder.encode_queries(sentences) == pplx.encode_queries(sentences)).all()

    def test_a_path_below_the_home_folder(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder.parent))
        assert load_encoder(f"~/{folder.name}").spec.dimension == 64

    def test_never_runs_the_checkpoints_own_code(self, folder, tmp_path):
        marker = tmp_path / "was-run"
        code = f"open({str(marker)!r}, 'w').close()\nclass PPLXQwen3ContextualModel: pass\n"
        (folder / "modeling.py").write_text(code, "utf-8")
        load_encoder(str(folder)).encode_queries(["question"])
        assert not marker.exists()

    def test_prints_nothing(self, folder, capfd):
        load_encoder(str(folder)).encode_queries(["question"])
        out, err = capfd.readouterr()
        assert (out, err) == ("", "")


class TestRefusesOptions:
    @pytest.mark.parametrize("window_tokens", [0, -1, 32769, 10**9])
    def test_window_of_pplx(self, pplx_checkpoint, window_tokens):
        with pytest.raises(InvalidInputError, match=f"must be from 1 to 32768, not {window_tokens}"):
            load_encoder(str(pplx_checkpoint), window_tokens=window_tokens)

    @pytest.mark.parametrize("window_tokens", [0, -1, 513])
    def test_window_of_minilm(self, window_tokens):
        with pytest.raises(InvalidInputError, match=f"must be from 1 to 512, not {window_tokens}"):
            load_encoder("all-minilm-l6-v2", window_tokens=window_tokens)

    @pytest.mark.parametrize("window_tokens", [1, 2])
    def test_window_without_room_for_text(self, window_tokens):
        with pytest.raises(InvalidInputError, match="more than 2, its start and end tokens alone"):
            load_encoder("all-minilm-l6-v2", window_tokens=window_tokens)

    def test_smallest_and_largest_window_work(self, pplx_checkpoint):
        for window_tokens in (1, 32768):
            encoder = load_encoder(str(pplx_checkpoint), window_tokens=window_tokens)
            assert encoder.encode_queries(["a few words"]).any()

    @pytest.mark.parametrize("min_context", [-1, 32, 64, 1000])
    def test_context(self, pplx_checkpoint, min_context):
        with pytest.raises(InvalidInputError, match="less than half of the window's 64 tokens"):
            load_encoder(str(pplx_checkpoint), window_tokens=64, min_context=min_context)

    @pytest.mark.parametrize("dimensions", [0, -1, 127, 193])
    def test_dimensions(self, wide_pplx_checkpoint, dimensions):
        with pytest.raises(InvalidInputError, match=f"must be from 128 to 192, not {dimensions}"):
            load_encoder(str(wide_pplx_checkpoint), dimensions=dimensions)

    @pytest.mark.parametrize("dimensions", [128, 383, 385])
    def test_dimensions_of_minilm(self, dimensions):
        with pytest.raises(InvalidInputError, match=f"must be 384, not {dimensions}"):
            load_encoder("all-minilm-l6-v2", dimensions=dimensions)

    @pytest.mark.parametrize("context_weight", [-0.01, 1.01, float("nan")])
    def test_context_weight(self, pplx_checkpoint, context_weight):
        with pytest.raises(InvalidInputError, match="context_weight must be from 0 to 1"):
            load_encoder(str(pplx_checkpoint), context_weight=context_weight)

    @pytest.mark.parametrize("batch_tokens", [0, -1])
    def test_batch_tokens(self, pplx_checkpoint, batch_tokens):
        with pytest.raises(InvalidInputError, match=f"batch_tokens must be at least 1, not {batch_tokens}"):
            load_encoder(str(pplx_checkpoint), batch_tokens=batch_tokens)

    @pytest.mark.parametrize("name", ["window_tokens", "min_context", "dimensions", "batch_tokens", "context_weight"])
    @pytest.mark.parametrize("value", ["130", 130.5])
    def test_of_another_type(self, wide_pplx_checkpoint, name, value):
        with pytest.raises(InvalidInputError, match=name):
            load_encoder(str(wide_pplx_checkpoint), **{name: value})

    def test_float16_for_pplx(self, pplx_checkpoint):
        with pytest.raises(InvalidInputError, match="overflows float16 and gives NaN; use dtype='bfloat16'"):
            load_encoder(str(pplx_checkpoint), dtype="float16")

    @pytest.mark.parametrize("dtype", ["int8", "half", "", "float64", None])
    def test_dtype(self, pplx_checkpoint, dtype):
        with pytest.raises(InvalidInputError, match="dtype must be one of auto, bfloat16, float32, float16"):
            load_encoder(str(pplx_checkpoint), dtype=dtype)

    @pytest.mark.parametrize("device", ["quantum", "cuda:99", "cpu:x", ""])
    def test_device(self, pplx_checkpoint, device):
        with pytest.raises(InvalidInputError, match=f"device '{device}' is not available here.*device='auto'"):
            load_encoder(str(pplx_checkpoint), device=device)

    @pytest.mark.parametrize("backend", ["tensorrt", "", None])
    def test_backend(self, pplx_checkpoint, backend):
        with pytest.raises(InvalidInputError, match="backend must be 'torch', 'onnx' or 'api'"):
            load_encoder(str(pplx_checkpoint), backend=backend)

    @pytest.mark.parametrize("option", [{"onnx_file": "model"}, {"api_key": "key"}])
    def test_options_of_other_backends(self, pplx_checkpoint, option):
        with pytest.raises(InvalidInputError, match="is not an option of backend='torch'"):
            load_encoder(str(pplx_checkpoint), **option)


class TestPickling:
    @pytest.mark.parametrize("remake", [lambda encoder: pickle.loads(pickle.dumps(encoder)), copy.deepcopy])
    def test_loads_the_model_again_with_its_options(self, pplx_checkpoint, sentences, remake):
        encoder = load_encoder(str(pplx_checkpoint), dtype="float32", window_tokens=64, query_cache=3)
        again = remake(encoder)
        assert again.fingerprint == encoder.fingerprint
        assert (again.encode_documents([sentences])[0] == encoder.encode_documents([sentences])[0]).all()

    def test_holds_no_weights(self, minilm):
        assert len(pickle.dumps(minilm)) < 1000

    def test_one_made_by_hand_says_what_to_pickle(self, pplx):
        by_hand = LateChunkingEncoder(pplx._model, pplx.tokenizer, pplx.spec)
        with pytest.raises(TypeError, match="load_encoder did not make"):
            pickle.dumps(by_hand)


class TestRefusesModels:
    def test_unknown_name(self):
        with pytest.raises(UnknownModelError, match="all-minilm-l6-v2"):
            load_encoder("no-such-model")

    def test_known_name_without_network(self):
        with pytest.raises(UnknownModelError, match=r"could not be fetched from the hub.*'all-minilm-l6-v2' works"):
            load_encoder("perplexity-ai/pplx-embed-context-v1-0.6b")

    def test_missing_tokenizer(self, folder):
        (folder / "tokenizer.json").unlink()
        with pytest.raises(ModelFileError, match=r"holds no tokenizer\.json"):
            load_encoder(str(folder))

    def test_tokenizer_without_the_separator(self, folder, bert_family_checkpoint):
        shutil.copy(bert_family_checkpoint("bert") / "tokenizer.json", folder)
        with pytest.raises(ModelFileError, match=r"no token '<\|endoftext\|>', which the model needs between chunks"):
            load_encoder(str(folder))

    def test_tokenizer_of_a_larger_model(self, folder):
        """Ids past the embedding table would crash in the middle of a run."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_tokens([f"word{number}" for number in range(50)])
        tokenizer.save(str(folder / "tokenizer.json"))
        with pytest.raises(ModelFileError, match=r"tokenizer\.json .* has ids up to 449, .* only have 400 token"):
            load_encoder(str(folder))

    @pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
    def test_truncated_weights(self, folder, keep):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ModelFileError, match=r"truncated or altered.*fetch .* again"):
            load_encoder(str(folder))

    def test_missing_tensor(self, folder):
        weights = weights_of(folder)
        del weights["layers.1.mlp.up_proj.weight"]
        save_weights(folder, weights)
        with pytest.raises(ModelFileError, match=r" 1 tensors.* first layers\.1\.mlp\.up_proj\.weight"):
            load_encoder(str(folder))

    def test_tensor_of_another_shape(self, folder):
        weights = weights_of(folder)
        weights["layers.0.mlp.up_proj.weight"] = weights["layers.0.mlp.up_proj.weight"][:-1].contiguous()
        save_weights(folder, weights)
        with pytest.raises(ModelFileError):
            load_encoder(str(folder))

    def test_layers_that_config_does_not_ask_for(self, folder):
        """A config of fewer layers would run part of the model, and be none the wiser."""
        config = json.loads((folder / "config.json").read_text("utf-8")) | {"num_hidden_layers": 1}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        with pytest.raises(ModelFileError, match=r" 11 tensors.* first layers\.1\."):
            load_encoder(str(folder))

    def test_weights_of_another_model(self, folder, bert_family_checkpoint):
        shutil.copy(bert_family_checkpoint("bert") / "model.safetensors", folder)
        with pytest.raises(ModelFileError, match=r" 56 tensors.* first embed_tokens\.weight"):
            load_encoder(str(folder))

    @pytest.mark.parametrize(
        ("key", "value"),
        [("num_hidden_layers", "two"), ("num_attention_heads", 0), ("hidden_size", 128), ("rope_parameters", 3)],
    )
    def test_config_that_makes_no_sense(self, folder, key, value):
        config = json.loads((folder / "config.json").read_text("utf-8")) | {key: value}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        with pytest.raises(ModelFileError):
            load_encoder(str(folder))

    def test_config_of_the_bert_family_that_makes_no_sense(self, bert_family_checkpoint, copy_checkpoint):
        folder = copy_checkpoint(bert_family_checkpoint("bert"))
        config = json.loads((folder / "config.json").read_text("utf-8")) | {"num_hidden_layers": "two"}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        with pytest.raises(ModelFileError):
            load_encoder(str(folder))

    def test_without_torch(self, pplx_checkpoint, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'pplx-vectorstore\[torch\]'"):
            load_encoder(str(pplx_checkpoint))
