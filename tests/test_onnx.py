"""ONNX Runtime as a backend, and the export: against PyTorch, the reference algorithm, and hand-made graphs."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from pplx_vectorstore import load_encoder
from pplx_vectorstore.cli import app
from pplx_vectorstore.encoders import onnx_export
from pplx_vectorstore.encoders.onnx_export import export_onnx
from pplx_vectorstore.encoders.onnx_model import _choose_providers, _count_threads
from pplx_vectorstore.equal_norms import quantize
from pplx_vectorstore.errors import (
    AlignmentError,
    EncodingError,
    InvalidInputError,
    MissingExtraError,
    ModelFileError,
    UnknownModelError,
)
from pplx_vectorstore.models import KNOWN_MODELS
from pplx_vectorstore.windows import plan_windows

load_onnx = functools.partial(load_encoder, backend="onnx")


def cosines(vectors, others):
    vectors, others = vectors.astype(np.float64), others.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    return (vectors * others).sum(axis=1) / lengths


def assert_same_codes(codes, expected):
    assert codes.shape == expected.shape
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int) - expected.astype(int)).max(initial=0) <= 1


def assert_same(vectors, expected, encoder):
    """Cosine at least 0.99999 and codes within 1; zeros where zeros are expected."""
    assert vectors.shape == expected.shape
    assert vectors.dtype == np.float32
    blank = ~expected.any(axis=1)
    assert not vectors[blank].any()
    if not blank.all():
        assert cosines(vectors[~blank], expected[~blank]).min() >= 0.99999
    assert_same_codes(quantize(vectors, encoder.spec.quantizer), quantize(expected, encoder.spec.quantizer))


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def export(tmp_path_factory, pplx_checkpoint, bert_family_checkpoint):
    """Export a model once: ``export(kind)`` → (folder, report)."""
    sources = {"pplx": str(pplx_checkpoint), "minilm": "all-minilm-l6-v2"}

    @functools.cache
    def make(kind):
        folder = tmp_path_factory.mktemp("exports") / "new" / kind
        return folder, export_onnx(sources.get(kind) or str(bert_family_checkpoint(kind)), folder)

    return make


@pytest.fixture(scope="module")
def exported(export):
    """The folder of the tiny pplx checkpoint's export; not to be changed."""
    return export("pplx")[0]


@pytest.fixture(scope="module")
def copied_export(exported):
    """Stands in for the seconds of exporting: writes what was exported from the same weights before."""

    def write(checkpoint, file):
        for part in (exported / "onnx").glob("model.onnx*"):
            shutil.copy(part, file.with_name(part.name))
        file.with_name("model.onnx.data").chmod(0o600)  # as external data may be made

    return write


SLOW = pytest.mark.slow  # each is an export of its own


@pytest.fixture(
    scope="module", params=["pplx", pytest.param("minilm", marks=SLOW), pytest.param("roberta", marks=SLOW)]
)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def by_torch(kind, request, bert_family_checkpoint):
    if kind == "roberta":
        return load_encoder(str(bert_family_checkpoint(kind)), dtype="float32")
    return request.getfixturevalue(kind)


@pytest.fixture(scope="module")
def load_export(kind, export):
    """Load the export of each kind: ``load_export(**options)``."""
    return functools.partial(load_onnx, str(export(kind)[0]))


@pytest.fixture(scope="module")
def by_onnx(load_export):
    return load_export()


@pytest.fixture(scope="module")
def reference(kind, request, bert_family_checkpoint):
    if kind == "roberta":
        make = request.getfixturevalue("bert_family_reference")
        return make(bert_family_checkpoint(kind), (["<s>"], ["</s>"]))
    return request.getfixturevalue(f"{kind}_reference")


@pytest.fixture(scope="module")
def documents(sentences):
    """Of very different lengths, so that a batch of them needs padding; each fits roberta's 64 positions."""
    return [
        sentences[:2],
        ["short"],
        ["", sentences[4][:30], " \n", "<|endoftext|> [CLS] <pad>", ""],
        [],
        ["a"] * 20,
        ["<s>", "lone \ud800 surrogate", "日本"],
        [""],
        sentences[1::-1],
    ]


class TestAgreesWithTorchAndTheReference:
    def test_every_document_alone(self, by_onnx, by_torch, reference, documents):
        for document in documents:
            (vectors,) = by_onnx.chunk_vectors([document])
            assert_same(vectors, reference(document), by_onnx)
            assert_same(vectors, by_torch.chunk_vectors([document])[0], by_onnx)

    @pytest.mark.parametrize("batch_tokens", [1, 100, 10**6])
    def test_in_batches_with_padding(self, load_export, reference, documents, batch_tokens):
        encoder = load_export(batch_tokens=batch_tokens)
        for document, vectors in zip(documents, encoder.chunk_vectors(documents), strict=True):
            assert_same(vectors, reference(document), encoder)

    @pytest.mark.parametrize("seed", [1, 2])
    def test_in_any_order(self, by_onnx, reference, documents, seed):
        shuffled = [documents[index] for index in np.random.default_rng(seed).permutation(len(documents))]
        for document, vectors in zip(shuffled, by_onnx.chunk_vectors(shuffled), strict=True):
            assert_same(vectors, reference(document), by_onnx)

    @pytest.mark.parametrize(("window_tokens", "min_context"), [(64, None), (40, 0), (33, 14)])
    def test_window_by_window(self, load_export, reference, sentences, window_tokens, min_context):
        encoder = load_export(window_tokens=window_tokens, min_context=min_context)
        frame = len(encoder.tokenizer.prefix_ids) + len(encoder.tokenizer.suffix_ids)
        windows = functools.partial(
            plan_windows, capacity=window_tokens - frame, min_context=encoder.fingerprint.min_context
        )
        documents = [sentences, [" ".join(sentences), "end"], ["short"]]
        for document, vectors in zip(documents, encoder.chunk_vectors(documents), strict=True):
            assert_same(vectors, reference(document, windows), encoder)

    def test_codes_of_documents_and_queries(self, by_onnx, by_torch, documents):
        for codes, expected in zip(
            by_onnx.encode_documents(documents), by_torch.encode_documents(documents), strict=True
        ):
            assert_same_codes(codes, expected)
        queries = ["short", "", "a longer question about curiosity", "short"]
        assert_same_codes(by_onnx.encode_queries(queries), by_torch.encode_queries(queries))

    def test_an_index_of_one_is_an_index_of_the_other(self, by_onnx, by_torch):
        ours, theirs = by_onnx.fingerprint, by_torch.fingerprint
        assert ours.model == theirs.model
        assert ours.revision == theirs.revision
        assert ours == replace(theirs, backend="onnx:model", source=ours.source, dtype=None)
        ours.require_same(theirs, "documents")
        theirs.require_same(ours, "documents")

    def test_source_loads_it_again(self, by_onnx, export, kind):
        assert by_onnx.fingerprint.source == str(export(kind)[0].resolve())


class TestExportedFile:
    def test_numbers_of_rows_and_tokens_are_free(self, export, kind):
        session = onnxruntime.InferenceSession(export(kind)[0] / "onnx" / "model.onnx")
        (output,) = session.get_outputs()
        assert output.name == "last_hidden_state"
        assert [node.name for node in session.get_inputs()] == ["input_ids", "attention_mask"]
        for node in session.get_inputs():
            rows, tokens = node.shape
            assert isinstance(rows, str)
            assert isinstance(tokens, str)
        for shape in [(1, 1), (1, 61), (7, 2), (3, 64)]:
            ids = np.full(shape, 9)
            (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
            assert hidden.shape == (*shape, output.shape[2])

    def test_report(self, export, kind):
        folder, report = export(kind)
        assert report.file == folder / "onnx" / "model.onnx"
        assert 0.99999 <= report.least_cosine <= 1.000001
        assert report.largest_code_difference <= 1
        parts = list((folder / "onnx").iterdir())
        assert report.bytes == sum(part.stat().st_size for part in parts) > 100_000
        assert len({part.stat().st_mode for part in parts}) == 1  # whoever may read one may read all

    def test_nothing_but_what_is_needed_is_left(self, export, kind):
        files = {"config.json", "tokenizer.json", "export.json", "onnx/model.onnx", "onnx/model.onnx.data"}
        if kind == "minilm":
            files |= {"modules.json", "1_Pooling/config.json"}
        folder = export(kind)[0]
        assert set(files_below(folder)) == files
        assert {path.name for path in folder.iterdir()} == {file.partition("/")[0] for file in files}

    def test_may_be_moved(self, exported, tmp_path, sentences):
        moved = shutil.copytree(exported, tmp_path / "elsewhere" / "renamed")
        encoder = load_onnx(str(moved))
        assert (encoder.encode_queries(sentences) == load_onnx(str(exported)).encode_queries(sentences)).all()
        assert encoder.fingerprint.identity() == load_onnx(str(exported)).fingerprint.identity()

    def test_long_rows(self, exported, pplx):
        """Far past the lengths that were traced and compared."""
        rows = [np.random.default_rng(1).integers(1, 400, size=length) for length in (2000, 30)]
        spans = [[(0, 10), (1500, 2000)], [(0, 30)]]
        found = load_onnx(str(exported))._model.pool(rows, spans)
        assert cosines(found, pplx._model.pool(rows, spans)).min() >= 0.99999


@pytest.fixture(scope="module")
def both(exported, pplx_checkpoint, tmp_path_factory):
    """A folder with the float32 export and the quantized one, and what the command printed for the latter."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("exports") / "both")
    return folder, CliRunner().invoke(app, ["export-onnx", str(pplx_checkpoint), str(folder), "--quantize"])


@pytest.mark.slow
class TestQuantized:
    def test_is_close_but_not_the_same(self, both, pplx, sentences):
        encoder = load_onnx(str(both[0]), onnx_file="model_quantized")
        (vectors,), (expected,) = (one.chunk_vectors([sentences]) for one in (encoder, pplx))
        found = cosines(vectors, expected)
        assert found.min() > 0.99
        assert found.max() < 0.999999
        assert (encoder.encode_documents([sentences])[0] != pplx.encode_documents([sentences])[0]).any()

    def test_lies_beside_the_exact_one_which_comes_first(self, both, exported, sentences):
        folder, _ = both
        assert set(files_below(folder)) - set(files_below(exported)) == {
            "onnx/model_quantized.onnx",
            "onnx/model_quantized.onnx.data",
        }
        exact, default = load_onnx(str(exported)), load_onnx(str(folder))
        assert (exact.encode_queries(sentences) == default.encode_queries(sentences)).all()

    def test_takes_less(self, both):
        def size(name):
            return sum(part.stat().st_size for part in (both[0] / "onnx").glob(f"{name}.onnx*"))

        assert size("model_quantized") < 0.7 * size("model")

    def test_command_says_how_near_it_comes(self, both):
        folder, ran = both
        assert (ran.exit_code, ran.stderr) == (0, "")
        match = re.fullmatch(
            rf"exported to {re.escape(str(folder))}/onnx/model_quantized\.onnx \(0\.\d MB\); against PyTorch: "
            r"least cosine (0\.99\d+), codes at most (\d+) apart\n",
            ran.stdout,
        )
        assert match
        assert int(match[2]) > 0


class TestExporting:
    @pytest.fixture
    def quick(self, copied_export, monkeypatch):
        monkeypatch.setattr(onnx_export, "_export", copied_export)

    @pytest.fixture
    def used(self, exported, tmp_path):
        """A folder that was exported into before, and is used for something else too."""
        folder = shutil.copytree(exported, tmp_path / "used")
        for name in ("notes.txt", "onnx/model.onnx", "onnx/model.onnx.data"):
            (folder / name).write_text(f"old {name}")
        return folder

    def test_replaces_what_was_there(self, quick, used, exported, pplx_checkpoint, sentences):
        export_onnx(str(pplx_checkpoint), used)
        assert set(files_below(used)) == {*files_below(exported), "notes.txt"}
        assert {path.name for path in used.iterdir()} == {*(path.name for path in exported.iterdir()), "notes.txt"}
        assert (used / "notes.txt").read_text() == "old notes.txt"
        for name in files_below(exported):
            assert (used / name).read_bytes() == (exported / name).read_bytes()
        assert len({path.stat().st_mode for path in (used / "onnx").iterdir()}) == 1
        assert load_onnx(str(used)).encode_queries(sentences).any()

    def break_torch(self, monkeypatch):
        """Let the original give other vectors than the exported model."""
        load = onnx_export.load_torch_model

        def load_other(*arguments, **options):
            model = load(*arguments, **options)
            pool = model.pool
            model.pool = lambda rows, spans: pool(rows, spans)[:, ::-1]
            return model

        monkeypatch.setattr(onnx_export, "load_torch_model", load_other)

    def test_other_vectors_are_refused_and_nothing_is_written(self, quick, used, pplx_checkpoint, monkeypatch):
        before = {name: (used / name).read_text() for name in files_below(used)}
        self.break_torch(monkeypatch)
        with pytest.raises(EncodingError, match=r"other vectors .*cosine -?0\.\d+, at least 0\.99999.*nothing was"):
            export_onnx(str(pplx_checkpoint), used)
        assert {name: (used / name).read_text() for name in files_below(used)} == before
        assert [path.name for path in used.iterdir() if path.name.startswith(".")] == []

    def test_vectors_that_are_not_finite_are_refused(self, quick, used, pplx_checkpoint, monkeypatch):
        load = onnx_export.load_onnx_model

        def load_broken(*arguments, **options):
            model = load(*arguments, **options)
            pool = model.pool
            model.pool = lambda rows, spans: pool(rows, spans) * np.float32("nan")
            return model

        monkeypatch.setattr(onnx_export, "load_onnx_model", load_broken)
        with pytest.raises(EncodingError):
            export_onnx(str(pplx_checkpoint), used)
        assert (used / "onnx" / "model.onnx").read_text() == "old onnx/model.onnx"

    def test_exporter_that_fails_leaves_nothing(self, used, pplx_checkpoint, monkeypatch, tmp_path):
        def fail(checkpoint, file):
            file.write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(onnx_export, "_export", fail)
        before = files_below(used)
        for folder in (used, tmp_path / "new"):
            with pytest.raises(KeyboardInterrupt):
                export_onnx(str(pplx_checkpoint), folder)
        assert files_below(used) == before
        assert [path.name for path in used.iterdir() if path.name.startswith(".")] == []
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("record", [None, "old"])
    def test_into_a_folder_of_another_model(self, quick, used, pplx_checkpoint, bert_family_checkpoint, record):
        """Its configuration would be taken for that of the exported weights, or these for its own."""
        if record is None:
            (used / "export.json").unlink()
        else:
            origin = json.loads((used / "export.json").read_text("utf-8"))
            (used / "export.json").write_text(json.dumps(origin | {"revision": "sha256:0123456789abcdef"}))
        before = {name: (used / name).read_bytes() for name in files_below(used)}
        with pytest.raises(InvalidInputError, match=r"another model.*; choose another folder"):
            export_onnx(str(pplx_checkpoint), used)
        with pytest.raises(InvalidInputError, match=r"another model.*; choose another folder"):
            export_onnx(str(bert_family_checkpoint("roberta")), used)
        assert {name: (used / name).read_bytes() for name in files_below(used)} == before

    @pytest.mark.parametrize("content", ["", "{", "\xff"])
    def test_into_a_folder_with_a_broken_record(self, quick, used, pplx_checkpoint, content):
        (used / "export.json").write_text(content, "latin-1")
        with pytest.raises((InvalidInputError, ModelFileError), match=r"export\.json|another"):
            export_onnx(str(pplx_checkpoint), used)

    def test_into_the_checkpoints_own_folder(self, quick, pplx_checkpoint, copy_checkpoint, sentences):
        folder = copy_checkpoint(pplx_checkpoint)
        before = {name: (folder / name).read_bytes() for name in files_below(folder)}
        revision = load_encoder(str(folder)).fingerprint.revision
        export_onnx(str(folder), folder)
        assert {name: (folder / name).read_bytes() for name in before} == before
        by_torch, by_onnx = load_encoder(str(folder), dtype="float32"), load_onnx(str(folder))
        assert by_torch.fingerprint.revision == by_onnx.fingerprint.revision == revision
        assert_same_codes(by_onnx.encode_queries(sentences), by_torch.encode_queries(sentences))
        # Other weights that come into the folder later are not what was exported.
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        save_file({name: tensor * 1.01 for name, tensor in weights.items()}, folder / "model.safetensors")
        assert load_encoder(str(folder)).fingerprint.revision != revision
        assert load_onnx(str(folder)).fingerprint.revision == revision

    def test_onto_a_file(self, pplx_checkpoint, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InvalidInputError, match="is a file; name a folder to export into"):
            export_onnx(str(pplx_checkpoint), tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript", "torch"])
    def test_without_packages(self, package, pplx_checkpoint, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=r"pip install 'pplx-vectorstore\[export\]'"):
            export_onnx(str(pplx_checkpoint), tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_of_no_model(self, tmp_path):
        with pytest.raises(UnknownModelError):
            export_onnx("no-such-model", tmp_path / "new")
        assert not (tmp_path / "new").exists()


def write_graph(path, table, *, inputs=("input_ids", "attention_mask"), outputs=("last_hidden_state",), **changes):
    """Write a model whose token vectors are rows of `table`, zeros where the attention mask is zero.

    Token types add 1000 each, and positions themselves, to every component, where they are among the inputs.

    Args:
        path: The file.
        table: float32, shape (n_ids, dimension).
        inputs: Their names; what is not one of the four known ones is left unused.
        outputs: Their names, in order. Those of sentences are made of the mean over all tokens.
        changes: `half`: give token vectors as float16; `flat`: give them in two dimensions; `lost`: leave so many
            tokens out at the start; `open`: let their dimension depend on the input.
    """
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["looked_up"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["seen"]),
        helper.make_node("Mul", ["looked_up", "seen"], ["masked"]),
    ]
    vectors = "masked"
    for name, factor in (("token_type_ids", "thousand"), ("position_ids", "one")):
        if name in inputs:
            nodes += [
                helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT),
                helper.make_node("Unsqueeze", [f"{name}_float", "last"], [f"{name}_column"]),
                helper.make_node("Mul", [f"{name}_column", factor], [f"{name}_scaled"]),
                helper.make_node("Add", [vectors, f"{name}_scaled"], [f"with_{name}"]),
            ]
            vectors = f"with_{name}"
    nodes.append(helper.make_node("ReduceMean", [vectors, "middle"], ["sentence"], keepdims=0))
    if changes.get("open"):
        nodes += [
            helper.make_node("ReduceMax", ["attention_mask"], ["any"], keepdims=0),
            helper.make_node("Mul", ["any", "many"], ["end"]),
            helper.make_node("Slice", [vectors, "lost", "end", "last"], ["cut"]),
        ]
        vectors = "cut"
    if changes.get("lost"):
        nodes.append(helper.make_node("Slice", [vectors, "lost", "many", "middle"], ["fewer"]))
        vectors = "fewer"
    given = []
    dimension = "dimension" if changes.get("open") else table.shape[1]
    for name in outputs:
        element, shape = TensorProto.FLOAT, ["rows", dimension]
        if name in ("last_hidden_state", "token_embeddings"):
            element = TensorProto.FLOAT16 if changes.get("half") else TensorProto.FLOAT
            shape = ["rows", dimension] if changes.get("flat") else ["rows", "more_tokens", dimension]
            operands = ["sentence"] if changes.get("flat") else [vectors]
            nodes.append(helper.make_node("Cast", operands, [name], to=element))
        elif name == "pooler_output_int8":
            element = TensorProto.INT8
            nodes += [
                helper.make_node("Tanh", ["sentence"], ["squashed"]),
                helper.make_node("Mul", ["squashed", "thousand"], ["scaled"]),
                helper.make_node("Cast", ["scaled"], [name], to=element),
            ]
        elif name == "pooler_output_binary":
            element = TensorProto.UINT8
            nodes += [
                helper.make_node("Greater", ["sentence", "zero"], ["positive"]),
                helper.make_node("Cast", ["positive"], [name], to=element),
            ]
        else:
            nodes.append(helper.make_node("Identity", ["sentence"], [name]))
        given.append(helper.make_tensor_value_info(name, element, shape))
    constants = {
        "table": table,
        "last": np.array([-1]),
        "middle": np.array([1]),
        "lost": np.array([changes.get("lost", 0)]),
        "many": np.array([1000]),
        "thousand": np.float32(1000),
        "one": np.float32(1),
        "zero": np.float32(0),
    }
    graph = helper.make_graph(
        nodes,
        "rows of a table",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"]) for name in inputs],
        given,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


TABLE = np.random.default_rng(5).normal(size=(400, 64)).astype(np.float32)
PUBLISHED = ("pooler_output", "last_hidden_state", "pooler_output_int8", "pooler_output_binary")


@pytest.fixture
def bare(pplx_checkpoint, tmp_path):
    """A checkpoint's folder without weights."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(pplx_checkpoint / name, folder)
    return folder


def means(encoder, chunks, table=TABLE):
    """What a model of `write_graph` gives: the mean of the table's rows over each chunk's own tokens."""
    return np.array([table[ids].mean(axis=0) if len(ids) else 0 * table[0] for ids in encoder.tokenizer.encode(chunks)])


class TestConventions:
    """What others' exports take and give."""

    CHUNKS = ("several words in the first", "x", "", "a chunk of more words than the others have")

    def found_and_expected(self, folder, batch_tokens=10**6):
        encoder = load_onnx(str(folder), batch_tokens=batch_tokens, window_tokens=16)
        documents = [list(self.CHUNKS), ["x"], list(self.CHUNKS[::-1])]  # rows of different lengths: padding
        vectors = np.concatenate(encoder.chunk_vectors(documents))
        return vectors, np.concatenate([means(encoder, document) for document in documents])

    @pytest.mark.parametrize(
        "outputs",
        [
            ("last_hidden_state",),
            PUBLISHED,
            ("last_hidden_state", "pooler_output"),
            ("sentence_embedding", "token_embeddings"),
            ("token_embeddings",),
        ],
        ids="+".join,
    )
    @pytest.mark.parametrize("batch_tokens", [1, 10**6])
    def test_outputs(self, bare, outputs, batch_tokens):
        write_graph(bare / "onnx" / "model.onnx", TABLE, outputs=outputs)
        found, expected = self.found_and_expected(bare, batch_tokens)
        assert np.abs(found - expected).max() < 1e-5

    def test_further_outputs_are_not_computed(self, bare, monkeypatch):
        """Asking for all of them would copy them out of the runtime for nothing."""
        write_graph(bare / "onnx" / "model.onnx", TABLE, outputs=PUBLISHED)
        encoder = load_onnx(str(bare))
        asked = []

        class Session:
            def run(self, names, values):
                asked.append((list(names), sorted(values)))
                return session.run(names, values)

        session = encoder._model._session
        monkeypatch.setattr(encoder._model, "_session", Session())
        encoder.encode_queries(["question"])
        assert asked == [(["last_hidden_state"], ["attention_mask", "input_ids"])]

    @pytest.mark.parametrize("more", [("token_type_ids",), ("token_type_ids", "position_ids")], ids="+".join)
    def test_token_types_are_zero(self, bare, more):
        inputs = ("attention_mask", *more, "input_ids")  # and their order is the file's
        write_graph(bare / "onnx" / "model.onnx", np.zeros_like(TABLE), inputs=inputs)
        (vectors,) = load_onnx(str(bare)).chunk_vectors([["some text"]])
        assert np.abs(vectors).max() < 100

    def test_positions_count_from_the_rows_start(self, bare):
        inputs = ("input_ids", "attention_mask", "position_ids")
        write_graph(bare / "onnx" / "model.onnx", np.zeros_like(TABLE), inputs=inputs)
        rows, spans = [np.full(9, 7), np.full(4, 8)], [[(0, 1), (3, 9)], [(1, 2), (2, 4)]]
        pooled = load_onnx(str(bare))._model.pool(rows, spans)
        assert pooled.tolist() == [[mean] * 64 for mean in (0, 5.5, 1, 2.5)]

    def test_half_precision_output(self, bare):
        write_graph(bare / "onnx" / "model.onnx", TABLE, half=True)
        found, expected = self.found_and_expected(bare)
        assert found.dtype == np.float32
        assert 0 < np.abs(found - expected).max() < 1e-2

    def test_a_dimension_that_the_file_leaves_open_is_the_configs(self, bare, tmp_path):
        write_graph(bare / "onnx" / "model.onnx", TABLE, open=True)
        assert onnxruntime.InferenceSession(bare / "onnx" / "model.onnx").get_outputs()[0].shape[2] == "dimension"
        found, expected = self.found_and_expected(bare)
        assert np.abs(found - expected).max() < 1e-5
        write_graph(bare / "onnx" / "model.onnx", TABLE[:, :60], open=True)
        with pytest.raises(AlignmentError, match=r"gave \(1, 3, 60\)"):
            load_onnx(str(bare))._model.pool([np.arange(3)], [[(0, 2)]])

    def test_padding_is_masked(self, bare):
        """By length, not by id: the separator has the id that fills short rows."""
        write_graph(bare / "onnx" / "model.onnx", TABLE, outputs=("pooler_output", "last_hidden_state"))
        encoder = load_onnx(str(bare))
        separator = encoder.tokenizer.token_id("<|endoftext|>")
        pooled = encoder._model.pool([np.arange(9), np.array([5, separator])], [[(0, 9)], [(1, 2)]])
        assert np.abs(pooled[1] - TABLE[separator]).max() < 1e-6
        # The table's rows come back multiplied with the mask, so that what is masked is zero.
        seen = []
        run = encoder._model._session.run

        class Session:
            def run(self, names, values):
                seen.append(values["attention_mask"].tolist())
                return run(names, values)

        encoder._model._session = Session()
        encoder._model.pool([np.arange(4), np.array([5, separator])], [[(0, 4)], [(0, 2)]])
        assert seen == [[[1, 1, 1, 1], [1, 1, 0, 0]]]

    @pytest.mark.parametrize(
        "layout",
        [
            {"inputs": ("input_ids", "attention_mask", "past_key_values.0.key")},
            {"outputs": ("pooler_output", "sentence_embedding")},
            {"flat": True},
        ],
        ids=str,
    )
    def test_what_is_no_token_model_is_refused(self, bare, layout):
        write_graph(bare / "onnx" / "model.onnx", TABLE, **layout)
        with pytest.raises(ModelFileError, match="last_hidden_state") as caught:
            load_onnx(str(bare))
        for name in (*layout.get("inputs", ()), *layout.get("outputs", ())):
            assert name in str(caught.value)

    def test_without_an_attention_mask(self, bare):
        """Padding would be part of every short row."""
        path = bare / "onnx" / "model.onnx"
        write_graph(path, TABLE)
        model = onnx.load(path)
        del model.graph.input[1]
        model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.int64), "attention_mask"))
        onnx.save(model, path)
        with pytest.raises(ModelFileError, match="takes input_ids and gives last_hidden_state; a token model takes"):
            load_onnx(str(bare))

    def test_model_that_loses_tokens(self, bare):
        write_graph(bare / "onnx" / "model.onnx", TABLE, lost=1)
        with pytest.raises(AlignmentError, match=r"gave \(1, 2, 64\) for token ids of shape \(1, 3\)"):
            load_onnx(str(bare))._model.pool([np.arange(3)], [[(0, 2)]])

    @pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
    def test_truncated_file(self, bare, keep):
        path = bare / "onnx" / "model.onnx"
        write_graph(path, TABLE)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ModelFileError, match=r"model\.onnx cannot be loaded: .*; fetch or export it again"):
            load_onnx(str(bare))

    @pytest.mark.parametrize("keep", [None, 0, 5000])
    def test_truncated_or_missing_external_data(self, exported, tmp_path, keep):
        folder = shutil.copytree(exported, tmp_path / "copy")
        data = folder / "onnx" / "model.onnx.data"
        content = data.read_bytes()
        data.unlink()
        if keep is not None:
            data.write_bytes(content[:keep])
        with pytest.raises(ModelFileError, match=r"model\.onnx cannot be loaded: .*; fetch or export it again"):
            load_onnx(str(folder))

    def test_tokenizer_of_a_larger_model(self, bare):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(bare / "tokenizer.json"))
        tokenizer.add_tokens([f"word{number}" for number in range(50)])
        tokenizer.save(str(bare / "tokenizer.json"))
        write_graph(bare / "onnx" / "model.onnx", TABLE)
        with pytest.raises(ModelFileError, match=r"has ids up to 449, .* only have 400 token"):
            load_onnx(str(bare))

    def test_config_without_the_size_of_the_vocabulary(self, bare):
        write_graph(bare / "onnx" / "model.onnx", TABLE)
        config = json.loads((bare / "config.json").read_text("utf-8"))
        del config["vocab_size"]
        (bare / "config.json").write_text(json.dumps(config), "utf-8")
        with pytest.raises(ModelFileError, match="vocab_size"):
            load_onnx(str(bare))


class TestChoiceOfFile:
    """Tables of different factors tell the files apart."""

    @pytest.fixture
    def folder(self, bare):
        for name, factor in (("onnx/model", 1), ("onnx/model_quantized", 2), ("onnx/model_q4", 3), ("model_own", 4)):
            write_graph(bare / f"{name}.onnx", TABLE * factor)
        return bare

    def factor(self, folder, **options):
        encoder = load_onnx(str(folder), **options)
        (vectors,) = encoder.chunk_vectors([["text"]])
        return round(float(vectors[0, 0] / means(encoder, ["text"])[0, 0]), 3)

    @pytest.mark.parametrize(
        ("name", "factor"),
        [(None, 1), ("model", 1), ("model_quantized", 2), ("model_q4", 3), ("model_own", 4)],
    )
    @pytest.mark.parametrize("ending", ["", ".onnx"])
    def test_by_name(self, folder, name, factor, ending):
        assert self.factor(folder, onnx_file=name and name + ending) == factor

    @pytest.mark.parametrize(("there", "factor"), [(["model_q4", "model_quantized"], 2), (["model_q4"], 3)])
    def test_the_most_exact_that_there_is(self, folder, there, factor):
        for path in (folder / "onnx").iterdir():
            if path.stem not in there:
                path.unlink()
        assert self.factor(folder) == factor

    def test_beside_the_config_too(self, folder):
        (folder / "onnx" / "model_q4.onnx").replace(folder / "model.onnx")
        (folder / "onnx" / "model.onnx").unlink()
        assert self.factor(folder) == 3

    def test_missing_name_says_what_there_is(self, exported, tmp_path):
        folder = shutil.copytree(exported, tmp_path / "copy")
        write_graph(folder / "onnx" / "model_q4.onnx", TABLE)
        with pytest.raises(ModelFileError, match="no ONNX file model_fp16, only model, model_q4; make one with"):
            load_onnx(str(folder), onnx_file="model_fp16")

    def test_missing_name_says_what_there_is_where_nothing_else_is(self, folder):
        with pytest.raises(ModelFileError, match="only model, model_own, model_q4, model_quantized"):
            load_onnx(str(folder), onnx_file="model_fp16")

    def test_a_checkpoint_without_any_says_how_to_make_one(self, pplx_checkpoint):
        with pytest.raises(
            ModelFileError, match=r"no ONNX file model or .*; make one with: pplx-vectorstore export-on"
        ):
            load_onnx(str(pplx_checkpoint))
        with pytest.raises(ModelFileError, match=r"export-onnx all-minilm-l6-v2 FOLDER"):
            load_onnx("all-minilm-l6-v2")

    def test_a_folder_without_weights(self, bare):
        with pytest.raises(
            ModelFileError, match="holds no ONNX file model or model_quantized or model_q4; make one with"
        ):
            load_onnx(str(bare))

    @pytest.mark.parametrize("path", ["onnx/model", "../onnx/model.onnx", "/tmp/model.onnx", "onnx\\model"])
    def test_a_path_is_no_name(self, folder, path):
        with pytest.raises(InvalidInputError, match="must be a name such as 'model', not '"):
            load_onnx(str(folder), onnx_file=path)


class TestRevisionOfAFolder:
    def test_is_that_of_its_safetensors_where_it_has_them(self, pplx_checkpoint, copy_checkpoint, pplx):
        folder = copy_checkpoint(pplx_checkpoint)
        write_graph(folder / "onnx" / "model.onnx", TABLE)
        assert load_onnx(str(folder)).fingerprint.revision == pplx.fingerprint.revision

    def test_is_a_digest_of_the_onnx_file_where_that_is_all(self, bare, tmp_path):
        path = bare / "onnx" / "model.onnx"
        write_graph(path, TABLE)
        first = load_onnx(str(bare)).fingerprint
        assert re.fullmatch("sha256:[0-9a-f]{16}", first.revision)
        moved = shutil.copytree(bare, tmp_path / "moved" / bare.name)
        assert load_onnx(str(moved)).fingerprint.identity() == first.identity()
        changed = TABLE.copy()
        changed *= 1.01
        write_graph(path, changed)
        assert load_onnx(str(bare)).fingerprint.revision != first.revision

    def test_covers_external_data(self, exported, tmp_path):
        folder = shutil.copytree(exported, tmp_path / "copy")
        (folder / "export.json").unlink()
        before = load_onnx(str(folder)).fingerprint.revision
        data = folder / "onnx" / "model.onnx.data"
        data.write_bytes(bytes(byte ^ 1 for byte in data.read_bytes()))
        assert load_onnx(str(folder)).fingerprint.revision != before

    def test_is_of_the_chosen_file_alone(self, bare):
        """Named or chosen by default, the same file gives the same vectors."""
        write_graph(bare / "onnx" / "model.onnx", TABLE)
        alone = load_onnx(str(bare)).fingerprint.revision
        write_graph(bare / "onnx" / "model_quantized.onnx", TABLE * 2)
        revisions = [
            load_onnx(str(bare), onnx_file=name).fingerprint.revision for name in (None, "model", "model_quantized")
        ]
        assert revisions[:2] == [alone, alone]
        assert revisions[2] != alone

    @pytest.mark.parametrize("name", ["all-minilm-l6-v2", "pplx-embed-context-v1-0.6b"])
    def test_export_of_a_folder_that_bears_a_models_name(
        self, name, copy_checkpoint, pplx_checkpoint, copied_export, sentences, monkeypatch
    ):
        """A clone of a model from the hub, or a model of one's own: named by its folder, not looked up by it."""
        folder = copy_checkpoint(pplx_checkpoint)
        folder = folder.rename(folder.with_name(name))
        monkeypatch.setattr(onnx_export, "_export", copied_export)
        export_onnx(str(folder), folder.with_name("out"))
        by_torch, by_onnx = load_encoder(str(folder), dtype="float32"), load_onnx(str(folder.with_name("out")))
        assert by_onnx.spec == by_torch.spec
        assert_same_codes(by_onnx.encode_queries(sentences), by_torch.encode_queries(sentences))

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": "x"}', '{"model": "x", "revision": 3}'])
    def test_broken_export_record(self, exported, tmp_path, content):
        folder = shutil.copytree(exported, tmp_path / "copy")
        (folder / "export.json").write_text(content)
        with pytest.raises(ModelFileError, match=r"export\.json"):
            load_onnx(str(folder))


class TestOptions:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_dtype_is_the_files_own(self, exported, dtype):
        with pytest.raises(InvalidInputError, match="dtype is not an option of backend='onnx'"):
            load_onnx(str(exported), dtype=dtype)

    @pytest.mark.parametrize("device", ["mps", "cpu:0", "cuda:x", "cuda0", "quantum", ""])
    def test_unknown_devices(self, exported, device):
        with pytest.raises(InvalidInputError, match=f"must be 'auto', 'cpu', 'cuda' or 'cuda:N', not '{device}'"):
            load_onnx(str(exported), device=device)

    @pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is CUDA")
    @pytest.mark.parametrize("device", ["cuda", "cuda:1"])
    def test_cuda_without_cuda(self, exported, device):
        with pytest.raises(
            InvalidInputError, match=r"no CUDA here .*pip install onnxruntime-gpu .*or use device='cpu'"
        ):
            load_onnx(str(exported), device=device)

    def test_choice_of_device(self):
        both = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        cpu = ["CPUExecutionProvider"]
        assert _choose_providers("auto", cpu) == _choose_providers("cpu", cpu) == _choose_providers("cpu", both) == cpu
        for device, number in (("auto", 0), ("cuda", 0), ("cuda:1", 1)):
            assert _choose_providers(device, both) == [("CUDAExecutionProvider", {"device_id": number}), *cpu]

    def test_onnx_file_is_no_option_of_torch(self, pplx_checkpoint):
        with pytest.raises(InvalidInputError, match="onnx_file is not an option of backend='torch'"):
            load_encoder(str(pplx_checkpoint), onnx_file="model")

    @pytest.mark.parametrize("onnx_file", [3, b"model"])
    def test_onnx_file_that_is_no_name(self, exported, onnx_file):
        with pytest.raises(InvalidInputError, match="onnx_file"):
            load_onnx(str(exported), onnx_file=onnx_file)

    def test_without_onnxruntime(self, exported, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'pplx-vectorstore\[onnx\]'"):
            load_onnx(str(exported))

    def test_nothing_is_reported_to_its_makers(self, exported, tmp_path):
        # Left alone, ONNX Runtime of version 1.29 or newer writes a device id into the user's cache and sends events.
        code = (
            "import os, sys; from pplx_vectorstore import load_encoder\n"
            "load_encoder(sys.argv[1], backend='onnx').encode_queries(['a question'])\n"
            "print(os.environ['ORT_DISABLE_TELEMETRY'])"
        )
        environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        for given, seen in ((None, "1"), ("0", "0")):
            if given is not None:
                environment["ORT_DISABLE_TELEMETRY"] = given
            command = [sys.executable, "-c", code, str(exported)]
            run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            assert run.stdout.split() == [seen]
            if given is None:
                assert files_below(tmp_path) == []

    def test_without_torch(self, exported, monkeypatch, sentences):
        expected = load_onnx(str(exported)).encode_queries(sentences)
        monkeypatch.setitem(sys.modules, "torch", None)
        monkeypatch.setitem(sys.modules, "transformers", None)
        assert (load_onnx(str(exported)).encode_queries(sentences) == expected).all()

    def test_prints_nothing(self, exported, capfd):
        load_onnx(str(exported)).encode_queries(["question"])
        assert capfd.readouterr() == ("", "")

    def test_threads(self, exported, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert _count_threads() == 3
        session = load_onnx(str(exported))._model._session
        assert session.get_session_options().intra_op_num_threads == 3
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        for nonsense in ("", "0", "-1", "many", "1.5"):
            monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
            assert _count_threads() == usable
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert _count_threads() == usable


COMMIT = "1234567890abcdef1234567890abcdef12345678"


class Hub:
    """Doubles the two functions of huggingface_hub that reach the network.

    Attributes:
        files: What the repository holds, by path.
        listed: What list_repo_files was asked.
        fetched: What snapshot_download was asked, and which files it wrote.
    """

    def __init__(self, folder, files):
        self.folder = folder / "snapshots" / COMMIT
        self.files = files
        self.listed = []
        self.fetched = []

    def list_repo_files(self, repo_id, *, revision=None):
        self.listed.append((repo_id, revision))
        return list(self.files)

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns=None):
        from huggingface_hub.utils import filter_repo_objects

        wanted = list(filter_repo_objects(self.files, allow_patterns=allow_patterns))
        for name in wanted:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.files[name], self.folder / name)
        self.fetched.append((repo_id, revision, sorted(wanted)))
        return str(self.folder)


class TestHub:
    @pytest.fixture
    def hub(self, bare, tmp_path, monkeypatch):
        import huggingface_hub

        for number, name in enumerate(["model", "model_quantized", "model_q4", "model_fp16"]):
            write_graph(bare / "onnx" / f"{name}.onnx", TABLE * (number + 1))
            (bare / "onnx" / f"{name}.onnx_data").write_bytes(b"more")
        for name in ("model.safetensors", "README.md", "pytorch_model.bin"):
            (bare / name).write_bytes(b"large")
        hub = Hub(tmp_path, {name: bare / name for name in files_below(bare)})
        monkeypatch.setattr(huggingface_hub, "list_repo_files", hub.list_repo_files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
        return hub

    def keep(self, hub, *names):
        hub.files = {
            name: path
            for name, path in hub.files.items()
            if not name.startswith("onnx/") or name.partition("/")[2].partition(".")[0] in names
        }

    def factor(self, encoder):
        vectors = encoder.chunk_vectors([["text"]])[0]
        return round(float(vectors[0, 0] / means(encoder, ["text"])[0, 0]), 3)

    @pytest.mark.parametrize(
        ("there", "chosen", "factor"),
        [
            (["model", "model_quantized", "model_q4", "model_fp16"], "model", 1),
            (["model_quantized"], "model_quantized", 2),
            (["model_q4", "model_quantized"], "model_quantized", 2),
            (["model_q4", "model_fp16"], "model_q4", 3),
        ],
    )
    def test_fetches_the_most_exact_file_alone(self, hub, there, chosen, factor):
        self.keep(hub, *there)
        encoder = load_onnx("somebody/tiny", revision="main")
        assert self.factor(encoder) == factor
        assert hub.listed == [("somebody/tiny", "main")]
        files = ["config.json", f"onnx/{chosen}.onnx", f"onnx/{chosen}.onnx_data", "tokenizer.json"]
        assert hub.fetched == [("somebody/tiny", "main", files)]
        fingerprint = encoder.fingerprint
        assert (fingerprint.model, fingerprint.source) == ("somebody/tiny", "somebody/tiny")
        assert (fingerprint.revision, fingerprint.backend) == (COMMIT, f"onnx:{chosen}")

    @pytest.mark.parametrize(("name", "factor"), [("model_quantized", 2), ("model_q4.onnx", 3), ("model_fp16", 4)])
    def test_fetches_the_named_file_alone(self, hub, name, factor):
        encoder = load_onnx("somebody/tiny", onnx_file=name)
        assert self.factor(encoder) == factor
        ((_, _, files),) = hub.fetched
        stem = name.removesuffix(".onnx")
        assert [file for file in files if "onnx" in file] == [f"onnx/{stem}.onnx", f"onnx/{stem}.onnx_data"]
        assert not any("safetensors" in file for file in files)

    def test_known_names_go_by_their_hub_id(self, hub, bare):
        spec = KNOWN_MODELS["perplexity-ai/pplx-embed-context-v1-0.6b"]
        write_graph(bare / "onnx" / "model.onnx", np.ones((400, spec.dimension), np.float32))
        encoder = load_onnx("PPLX-embed-context-v1-0.6b")
        assert encoder.spec == spec
        assert hub.listed == [(spec.name, None)]
        assert hub.fetched[0][0] == spec.name
        assert encoder.encode_queries(["text"]).shape == (1, spec.dimension)

    def test_a_repository_without_onnx(self, hub):
        self.keep(hub)
        with pytest.raises(ModelFileError, match=r"no ONNX file model .*export-onnx somebody/tiny FOLDER"):
            load_onnx("somebody/tiny")

    @pytest.mark.parametrize(("cached", "factor"), [("model", 1), ("model_quantized", 2), ("model_q4", 3)])
    def test_without_network_what_was_fetched_before_will_do(self, hub, cached, factor, monkeypatch):
        import huggingface_hub

        load_onnx("somebody/tiny", onnx_file=cached)

        def fail(*arguments, **options):
            raise ConnectionError("no network")

        monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
        # What the real one does offline: it returns the snapshot as it is, whatever it lacks.
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *arguments, **options: str(hub.folder))
        assert self.factor(load_onnx("somebody/tiny")) == factor
        assert self.factor(load_onnx("somebody/tiny", onnx_file=cached)) == factor

    def test_without_network_and_without_files(self):
        with pytest.raises(UnknownModelError, match=r"'somebody/tiny' could not be fetched"):
            load_onnx("somebody/tiny")

    def test_exports_of_a_hub_model_are_of_its_commit(self, exported, tmp_path):
        folder = shutil.copytree(exported, tmp_path / "copy")
        origin = {"model": "somebody/tiny", "revision": COMMIT}
        (folder / "export.json").write_text(json.dumps(origin))
        fingerprint = load_onnx(str(folder)).fingerprint
        assert (fingerprint.model, fingerprint.revision) == ("somebody/tiny", COMMIT)


class TestCommandLine:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch, copied_export):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(onnx_export, "_export", copied_export)
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "cats.md").write_text("# Cats\n\nCats purr when they are happy.\n")
        (tmp_path / "docs" / "stars.txt").write_text("The sun is a star.\nStars fuse hydrogen.\n")
        return lambda *arguments: CliRunner().invoke(app, list(arguments), catch_exceptions=False)

    def scores(self, ran):
        assert (ran.exit_code, ran.stderr) == (0, "")
        return {hit["document_id"]: hit["score"] for hit in json.loads(ran.stdout)}

    def test_export_index_search(self, run, pplx_checkpoint):
        ran = run("export-onnx", str(pplx_checkpoint), "out")
        assert (ran.exit_code, ran.stderr) == (0, "")
        assert re.fullmatch(
            r"exported to out/onnx/model\.onnx \(0\.6 MB\); against PyTorch: "
            r"least cosine 1\.000000, codes at most [01] apart\n",
            ran.stdout,
        )
        indexed = run("index", "docs", "--model", "out", "--backend", "onnx")
        assert indexed.stdout == "indexed 2 documents, 2 chunks\n.pplx-vectorstore now holds 2 chunks\n"
        found = self.scores(run("search", "What is the sun?", "--backend", "onnx", "--json"))
        assert found.keys() == {"docs/cats.md", "docs/stars.txt"}
        # The index remembers both model and backend, and the original can search it too.
        assert self.scores(run("search", "What is the sun?", "--json")) == found
        facts = json.loads(run("info", "--json").stdout)
        assert (facts["backend"], facts["model"]) == ("onnx:model", pplx_checkpoint.name)
        by_torch = ["--model", str(pplx_checkpoint), "--backend", "torch", "--dtype", "float32", "--json"]
        again = self.scores(run("search", "What is the sun?", *by_torch))
        assert again == pytest.approx(found, abs=1e-3)
        assert run("index", "docs").stdout.startswith("nothing to embed; 2 unchanged")

    def test_the_index_remembers_the_file(self, run, exported, tmp_path):
        folder = shutil.copytree(exported, tmp_path / "two")
        write_graph(folder / "onnx" / "model_quantized.onnx", TABLE)  # other vectors, to tell
        run("index", "docs", "--model", "two", "--backend", "onnx", "--onnx-file", "model_quantized")
        assert json.loads(run("info", "--json").stdout)["backend"] == "onnx:model_quantized"
        remembered = self.scores(run("search", "What is the sun?", "--json"))
        named = self.scores(run("search", "What is the sun?", "--onnx-file", "model_quantized", "--json"))
        exact = self.scores(run("search", "What is the sun?", "--onnx-file", "model", "--json"))
        assert remembered == named
        assert remembered != pytest.approx(exact, abs=1e-2)

    def test_the_export_searches_the_originals_index(self, run, pplx_checkpoint, exported):
        run("index", "docs", "--model", str(pplx_checkpoint), "--dtype", "float32")
        found = self.scores(run("search", "What is the sun?", "--dtype", "float32", "--json"))
        again = run("search", "What is the sun?", "--model", str(exported), "--backend", "onnx", "--json")
        assert self.scores(again) == pytest.approx(found, abs=1e-3)

    def test_what_cannot_be_exported(self, run, tmp_path, pplx_checkpoint):
        for arguments, message in (
            (["no-such-model", "out"], "no model or checkpoint folder 'no-such-model'"),
            ([str(pplx_checkpoint), "docs/cats.md"], "is a file; name a folder to export into"),
        ):
            ran = run("export-onnx", *arguments)
            assert (ran.exit_code, ran.stdout) == (1, "")
            assert message in ran.stderr
