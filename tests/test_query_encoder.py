import json
import logging
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch

from pplx_vectorstore import Document, VectorStore, load_encoder, load_query_encoder
from pplx_vectorstore.encoders import LateChunkingEncoder, QueryEncoder
from pplx_vectorstore.encoders.checkpoints import MEAN_POOLED_MODEL_TYPES
from pplx_vectorstore.errors import InvalidInputError, ModelFileError
from pplx_vectorstore.quantization import cosine_similarity

# Of many scripts, one blank, one of letters alone, and one that is longer than a window.
QUERIES = [
    "how are tenants kept apart",
    "Wie viele Einwohner hat Zürich, und seit wann?",
    "¿Dónde está la biblioteca?",
    "Сколько стоит билет до Москвы?",
    "天気がいいので、散歩に行きましょう。",
    "北京有多少人口？",
    "كم عدد سكان القاهرة؟",
    "दिल्ली की जनसंख्या कितनी है?",
    "Πόσο απέχει η Αθήνα;",
    "서울의 인구는 얼마입니까?",
    "ประเทศไทยมีกี่จังหวัด",
    "כמה תושבים יש בירושלים?",
    "",
    " \n",
    "water",
    "<|endoftext|> [CLS] <s> is text",
    "def area(width, height):\n    return width * height",
    "one word after the other " * 150,
]


def largest_difference(codes, others):
    return np.abs(codes.astype(int) - others.astype(int)).max()


def require_same_codes(codes, others, *, most=1, share=0.001):
    """Sums in another order may round to the other side, seldom and by one."""
    assert codes.dtype == np.int8
    assert codes.shape == others.shape
    assert largest_difference(codes, others) <= most
    assert (codes != others).mean() <= share


class TestSameCodesAsPyTorch:
    def test_of_the_offline_model(self, minilm):
        encoder = load_query_encoder("all-minilm-l6-v2")
        assert isinstance(encoder, QueryEncoder)
        require_same_codes(encoder.encode_queries(QUERIES), minilm.encode_queries(QUERIES))

    @pytest.mark.parametrize("model_type", sorted(MEAN_POOLED_MODEL_TYPES))
    def test_of_each_architecture_of_the_bert_family(self, model_type, bert_family_checkpoint):
        folder = str(bert_family_checkpoint(model_type))
        expected = load_encoder(folder, dtype="float32").encode_queries(QUERIES)
        encoder = load_query_encoder(folder)
        assert isinstance(encoder, QueryEncoder)
        require_same_codes(encoder.encode_queries(QUERIES), expected)

    def test_of_the_pplx_layout(self, pplx, pplx_checkpoint):
        encoder = load_query_encoder(str(pplx_checkpoint))
        assert isinstance(encoder, QueryEncoder)
        require_same_codes(encoder.encode_queries(QUERIES), pplx.encode_queries(QUERIES))

    @pytest.mark.parametrize("options", [{"dimensions": 128}, {"window_tokens": 64, "min_context": 4}])
    def test_with_options(self, wide_pplx_checkpoint, options):
        folder = str(wide_pplx_checkpoint)
        expected = load_encoder(folder, dtype="float32", **options)
        encoder = load_query_encoder(folder, **options)
        assert encoder.spec == expected.spec
        require_same_codes(encoder.encode_queries(QUERIES), expected.encode_queries(QUERIES))

    def test_for_a_store_that_has_room_for_large_components(self, bert_family_checkpoint):
        folder, options = str(bert_family_checkpoint("bert")), {"crest_factor": 9.0, "context_weight": 0.5}
        expected = load_encoder(folder, dtype="float32", **options)
        encoder = load_query_encoder(folder, **options)
        assert encoder.fingerprint == expected.fingerprint
        require_same_codes(encoder.encode_queries(QUERIES), expected.encode_queries(QUERIES))

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_of_weights_of_16_bits(self, pplx_checkpoint, copy_checkpoint, dtype):
        folder = copy_checkpoint(pplx_checkpoint)
        change_weights(
            folder, lambda weights: {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
        )
        expected = load_encoder(str(folder), dtype="float32").encode_queries(QUERIES)
        require_same_codes(load_query_encoder(str(folder)).encode_queries(QUERIES), expected)

    def test_of_several_files_under_the_name_of_a_class(self, pplx, pplx_checkpoint, copy_checkpoint):
        from safetensors.torch import load_file, save_file

        folder = copy_checkpoint(pplx_checkpoint)
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(weights)
        for number, some in enumerate((names[::2], names[1::2]), start=1):
            file = folder / f"model-0000{number}-of-00002.safetensors"
            save_file({f"model.{name}": weights[name] for name in some}, file)
        require_same_codes(load_query_encoder(str(folder)).encode_queries(QUERIES), pplx.encode_queries(QUERIES))

    def test_of_norms_as_the_first_checkpoints_call_their_parts(self, bert_family_checkpoint, copy_checkpoint):
        folder = copy_checkpoint(bert_family_checkpoint("bert"))
        expected = load_query_encoder(str(folder), crest_factor=5.0).encode_queries(QUERIES)

        def rename(name):
            return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

        change_weights(folder, lambda weights: {rename(name): tensor for name, tensor in weights.items()})
        codes = load_query_encoder(str(folder), crest_factor=5.0).encode_queries(QUERIES)
        assert (codes == expected).all()

    def test_whatever_stands_beside_a_query(self, pplx_checkpoint):
        encoder = load_query_encoder(str(pplx_checkpoint))
        alone = np.concatenate([encoder.encode_queries([query]) for query in QUERIES])
        require_same_codes(encoder.encode_queries(QUERIES), alone)


@pytest.mark.parametrize("kind", ["pplx_checkpoint", "offline"])
def test_what_bfloat16_wrote_is_found_by_float32(kind, request):
    """An index may have been written by either: the record says which, and queries of both are nearly the same."""
    model = "all-minilm-l6-v2" if kind == "offline" else str(request.getfixturevalue(kind))
    rounded = load_encoder(model, dtype="bfloat16")
    encoder = load_query_encoder(model)
    assert (rounded.fingerprint.dtype, encoder.fingerprint.dtype) == ("bfloat16", "float32")
    queries = [query for query in QUERIES if query.strip()]
    codes, others = encoder.encode_queries(queries), rounded.encode_queries(queries)
    assert np.diag(cosine_similarity(codes, others)).min() > 0.998


class TestStores:
    DOCUMENTS = (
        Document(id="berlin", chunks=["Berlin is the capital of Germany.", "It has 3.9 million inhabitants."]),
        Document(id="paris", chunks=["Paris is the capital of France.", "It has 2.1 million inhabitants."]),
    )

    @pytest.fixture
    def index(self, folder, minilm):
        with VectorStore.open(folder / "index", encoder=minilm) as store:
            store.add(self.DOCUMENTS)
        return folder / "index"

    def test_are_opened_and_searched(self, index, minilm):
        question = "How many inhabitants does Paris have?"
        with VectorStore.open(index, encoder=minilm) as store:
            expected = store.search(question)
        with VectorStore.open(index, encoder=load_query_encoder("all-minilm-l6-v2"), create=False) as store:
            found = store.search(question)
        assert [hit.id for hit in found] == [hit.id for hit in expected]
        assert found[0].text == "It has 2.1 million inhabitants."

    async def test_are_awaited(self, index):
        from pplx_vectorstore import AsyncVectorStore

        encoder = load_query_encoder("all-minilm-l6-v2")
        async with await AsyncVectorStore.open(index, encoder=encoder) as store:
            (hit,) = await store.search("the capital of France", k=1)
        assert hit.document_id == "paris"

    def test_of_documents_it_writes_none(self, index):
        with (
            VectorStore.open(index, encoder=load_query_encoder("all-minilm-l6-v2")) as store,
            pytest.raises(InvalidInputError, match="embeds queries alone; open the store with load_encoder"),
        ):
            store.add([Document(id="rome", chunks=["Rome is the capital of Italy."])])

    def test_record_what_they_were_written_by(self, index):
        with VectorStore.open(index) as store:
            assert (store.fingerprint.backend, store.fingerprint.dtype) == ("torch", "float32")

    def test_of_before_do_not_say(self, index):
        path = index / "documents" / "collection.json"
        settings = json.loads(path.read_text("utf-8"))
        del settings["metadata"]["pplx_vectorstore"]["dtype"]
        path.write_text(json.dumps(settings), "utf-8")
        with VectorStore.open(index, encoder=load_query_encoder("all-minilm-l6-v2")) as store:
            assert store.fingerprint.dtype is None
            assert store.search("the capital of France", k=1)[0].document_id == "paris"

    def test_of_another_model_are_refused(self, index, pplx_checkpoint):
        from pplx_vectorstore.errors import SchemaMismatchError

        with pytest.raises(SchemaMismatchError, match="model 'all-minilm-l6-v2' in the collection"):
            VectorStore.open(index, encoder=load_query_encoder(str(pplx_checkpoint)))


class TestWhatNumpyDoesNotRun:
    @pytest.mark.parametrize(
        ("model_type", "change", "lacking"),
        [
            ("bert", {"hidden_act": "gelu_new"}, "the activation 'gelu_new'"),
            ("bert", {"layer_norm_eps": None, "type_vocab_size": None}, None),
            ("bert", {"position_embedding_type": "relative_key"}, "positions of type 'relative_key'"),
            ("roberta", {"pad_token_id": None}, "the default of pad_token_id"),
        ],
    )
    def test_of_the_bert_family_pytorch_runs(
        self, bert_family_checkpoint, copy_checkpoint, caplog, model_type, change, lacking
    ):
        folder = copy_checkpoint(bert_family_checkpoint(model_type))
        change_config(folder, change)
        with caplog.at_level(logging.INFO, "pplx_vectorstore"):
            encoder = load_query_encoder(str(folder), crest_factor=5.0)
        if lacking is None:  # what transformers has by default, too
            assert isinstance(encoder, QueryEncoder)
        else:
            assert isinstance(encoder, LateChunkingEncoder)
            assert f"are embedded by PyTorch: numpy lacks {lacking}" in caplog.text
        expected = load_encoder(str(folder), dtype="float32", crest_factor=5.0).encode_queries(QUERIES)
        require_same_codes(encoder.encode_queries(QUERIES), expected, most=2, share=1)

    @pytest.mark.parametrize(
        ("change", "lacking"),
        [
            ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rotary positions of type 'linear'"),
            ({"attention_bias": True}, "attention_bias = True"),
        ],
    )
    def test_of_qwen3_pytorch_runs(self, pplx_checkpoint, copy_checkpoint, caplog, change, lacking):
        folder = copy_checkpoint(pplx_checkpoint)
        change_config(folder, change)
        if "attention_bias" in change:

            def with_biases(weights):
                names = [name for name in weights if name.endswith("_proj.weight") and "self_attn" in name]
                biases = {name.replace("weight", "bias"): torch.ones(len(weights[name])) for name in names}
                return weights | biases

            change_weights(folder, with_biases)
        with caplog.at_level(logging.INFO, "pplx_vectorstore"):
            encoder = load_query_encoder(str(folder))
        assert isinstance(encoder, LateChunkingEncoder)
        assert f"are embedded by PyTorch: numpy lacks {lacking}" in caplog.text
        assert encoder.encode_queries(["text"]).any()

    @pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"device": "meta"}, {"backend": "onnx"}])
    def test_what_was_asked_for_comes(self, options, minilm_folder):
        """What only the other loader can do, or can say why not."""
        if options == {"dtype": "bfloat16"}:
            assert load_query_encoder("all-minilm-l6-v2", **options).fingerprint.dtype == "bfloat16"
            return
        with pytest.raises((InvalidInputError, ModelFileError)) as expected:
            load_encoder(str(minilm_folder), **options)
        with pytest.raises(type(expected.value)) as error:
            load_query_encoder(str(minilm_folder), **options)
        assert str(error.value) == str(expected.value)

    @pytest.mark.parametrize(
        "options", [{"onnx_file": "model"}, {"dimensions": 1.5}, {"context_weight": "all"}, {"window_tokens": 513}]
    )
    def test_wrong_options_are_refused_as_by_the_other_loader(self, options):
        with pytest.raises(InvalidInputError) as expected:
            load_encoder("all-minilm-l6-v2", **options)
        with pytest.raises(InvalidInputError) as error:
            load_query_encoder("all-minilm-l6-v2", **options)
        assert str(error.value) == str(expected.value)


class TestBrokenCheckpoints:
    @pytest.mark.parametrize("kept", [0, 4, 1000, -1])
    def test_truncated(self, pplx_checkpoint, copy_checkpoint, kept):
        folder = copy_checkpoint(pplx_checkpoint)
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ModelFileError, match=r"cannot be loaded \(truncated or altered\?\).*fetch it again"):
            load_query_encoder(str(folder))

    @pytest.mark.parametrize("header", [b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32"}}', b"no JSON"])
    def test_no_safetensors(self, pplx_checkpoint, copy_checkpoint, header):
        folder = copy_checkpoint(pplx_checkpoint)
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(ModelFileError, match=r"cannot be loaded \(truncated or altered\?\)"):
            load_query_encoder(str(folder))

    @pytest.mark.parametrize("fewer", [1, 3])
    def test_of_another_number_of_layers(self, pplx_checkpoint, copy_checkpoint, fewer):
        folder = copy_checkpoint(pplx_checkpoint)
        change_config(folder, {"num_hidden_layers": fewer})
        with pytest.raises(ModelFileError, match=r"config\.json differ, first in layers\.[12]\."):
            load_query_encoder(str(folder))

    def test_without_a_tensor(self, bert_family_checkpoint, copy_checkpoint):
        folder = copy_checkpoint(bert_family_checkpoint("bert"))
        change_weights(folder, lambda weights: {name: one for name, one in weights.items() if "word_emb" not in name})
        with pytest.raises(ModelFileError, match=r"first in embeddings\.word_embeddings\.weight"):
            load_query_encoder(str(folder))

    def test_with_the_tokenizer_of_another_model(self, pplx_checkpoint, copy_checkpoint, minilm_folder):
        folder = copy_checkpoint(pplx_checkpoint)
        tokenizer = json.loads((minilm_folder / "tokenizer.json").read_text("utf-8"))
        separator = {"id": 30522, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False}
        tokenizer["added_tokens"].append({**separator, "normalized": False, "special": True})
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
        encoder = load_query_encoder(str(folder))
        with pytest.raises(ModelFileError, match=r"only have \d+ token embeddings; they are of different models"):
            encoder.encode_queries(["a question"])


def test_pickling_keeps_how_it_was_loaded(pplx_checkpoint):
    encoder = load_query_encoder(str(pplx_checkpoint), query_cache=3)
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert again.fingerprint == encoder.fingerprint
    assert (again.encode_queries(["text"]) == encoder.encode_queries(["text"])).all()


def test_queries_with_a_model_of_their_own(pplx_checkpoint, copy_checkpoint, monkeypatch):
    """Newer families have two: only that of the queries is read, and the fingerprint is of both."""
    from dataclasses import replace

    from pplx_vectorstore.encoders import checkpoints

    of_queries = copy_checkpoint(pplx_checkpoint)
    change_weights(of_queries, lambda weights: {name: tensor * 0.9 for name, tensor in weights.items()})
    read = checkpoints.read_spec

    def read_spec(folder, name=None):
        own = None if folder == of_queries else str(of_queries)
        return replace(read(folder, name), query_model=own, query_prefix="[Q] ")

    monkeypatch.setattr(checkpoints, "read_spec", read_spec)
    expected = load_encoder(str(pplx_checkpoint), dtype="float32")
    encoder = load_query_encoder(str(pplx_checkpoint))
    assert isinstance(encoder, QueryEncoder)
    assert encoder.fingerprint == expected.fingerprint
    assert "+" in encoder.fingerprint.revision
    require_same_codes(encoder.encode_queries(QUERIES), expected.encode_queries(QUERIES))


def change_config(folder, changes):
    path = folder / "config.json"
    settings = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}), "utf-8")


def change_weights(folder, change):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = change(load_file(path))
    save_file(weights, path.with_suffix(".new"), metadata={"format": "pt"})
    shutil.move(path.with_suffix(".new"), path)
