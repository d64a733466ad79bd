"""Room for models to come: one that differs from all known ones takes a row of data and no code."""

import functools
import json
import shutil
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from pplx_vectorstore import Document, VectorStore, load_encoder, models
from pplx_vectorstore.equal_norms import quantize
from pplx_vectorstore.errors import ModelFileError, SchemaMismatchError, UnknownModelError
from pplx_vectorstore.windows import plan_windows

SEPARATOR = "<|chunk|>"
DOCUMENTS_COMMIT = "d" * 40
QUERIES_COMMIT = "9" * 40


@pytest.fixture(scope="module")
def checkpoints(pplx_checkpoint, tmp_path_factory):
    """Two checkpoints as the hub's cache holds them, for documents and for queries: ids → folders of commits."""
    root = tmp_path_factory.mktemp("hub")
    made = {}
    for hub_id, commit, seed in (
        ("perplexity-ai/pplx-embed-invented", DOCUMENTS_COMMIT, None),
        ("perplexity-ai/pplx-embed-invented-query", QUERIES_COMMIT, 3),
    ):
        folder = shutil.copytree(pplx_checkpoint, root / hub_id.replace("/", "--") / "snapshots" / commit)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens([AddedToken(SEPARATOR, special=True)])
        tokenizer.save(str(folder / "tokenizer.json"))
        change_weights(folder, seed)
        made[hub_id] = folder
    return made


def change_weights(folder, seed):
    """Give the tokens added to the vocabulary an embedding; with a seed, make all weights others."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    table = weights["embed_tokens.weight"]
    generator = torch.Generator().manual_seed(31)
    weights["embed_tokens.weight"] = torch.cat([table, torch.randn(1, table.shape[1], generator=generator)])
    if seed is not None:
        generator.manual_seed(seed)
        weights = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()
        }
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(table) + 1}), "utf-8")


@pytest.fixture
def spec():
    return models.ModelSpec(
        name="perplexity-ai/pplx-embed-invented",
        dimension=64,
        min_dimension=16,
        quantizer="norm",
        window_tokens=60,
        max_window_tokens=128,
        context_weight=1.0,
        layout="pplx",
        separator=SEPARATOR,
        query_model="perplexity-ai/pplx-embed-invented-query",
        query_prefix="[Q] ",
        document_prefix="[D] ",
    )


@pytest.fixture
def fetched(checkpoints, monkeypatch):
    """Let the two be found on the hub; what was asked for: hub ids with revisions."""
    asked = []

    def snapshot_download(hub_id, *, revision=None, allow_patterns=None):
        asked.append((hub_id, revision))
        if hub_id not in checkpoints:
            raise FileNotFoundError(hub_id)
        return str(checkpoints[hub_id])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.fixture
def load(spec, fetched, monkeypatch):
    """Load the invented model: ``load(name, of_spec={…}, **options)``."""
    known = models._SPECS

    def load(name="pplx-embed-invented", of_spec=(), **options):
        monkeypatch.setattr(models, "_SPECS", (*known, replace(spec, **dict(of_spec))))
        return load_encoder(name, dtype="float32", **options)

    return load


@pytest.fixture(scope="module")
def references(checkpoints, reference_module):
    """The reference algorithm on either checkpoint, each with its prefix: (of documents, of queries)."""

    def make(folder, prefix):
        model = reference_module.load_bidirectional_qwen3(folder, "sdpa")
        forward = reference_module.Forward(model, qwen3_mask=True)
        reference = reference_module.Reference(
            folder, forward, separator=SEPARATOR, frame=([], []), context_weight=1.0, quantizer="norm"
        )
        reference.prefix = reference.tokenizer.encode(prefix, add_special_tokens=False).ids
        assert len(reference.prefix) > 1
        return reference

    return [make(folder, prefix) for folder, prefix in zip(checkpoints.values(), ("[D] ", "[Q] "), strict=True)]


def assert_same(vectors, expected):
    assert vectors.shape == expected.shape
    vectors, expected = vectors.astype(np.float64), expected.astype(np.float64)
    blank = ~expected.any(axis=1)
    assert not vectors[blank].any()
    lengths = np.linalg.norm(vectors[~blank], axis=1) * np.linalg.norm(expected[~blank], axis=1)
    assert ((vectors * expected).sum(axis=1)[~blank] / lengths).min() >= 0.99999


def assert_same_codes(codes, expected):
    assert codes.shape == expected.shape
    assert np.abs(codes.astype(int) - expected.astype(int)).max() <= 1


@pytest.fixture(scope="module")
def documents(sentences):
    return [sentences[:2], ["short", "", "x"], [f"spelled {SEPARATOR} out", "after it"], [sentences[5]]]


class TestVectors:
    def test_of_documents(self, load, references, documents):
        encoder = load(window_tokens=128)
        of_documents, of_queries = references
        for document, vectors in zip(documents, encoder.chunk_vectors(documents), strict=True):
            assert_same(vectors, of_documents(document))
            # The test can tell the two checkpoints apart.
            assert np.abs(vectors - of_queries(document)).max() > 0.1

    def test_of_documents_window_by_window(self, load, references, sentences):
        """Each window has the prefix; it takes its room from the window."""
        encoder = load()
        of_documents, _ = references
        frame = max(len(reference.prefix) for reference in references)
        windows = functools.partial(plan_windows, capacity=60 - frame, min_context=encoder.fingerprint.min_context)
        assert encoder.fingerprint.min_context == (60 - frame) // 8
        for document in (sentences, [" ".join(sentences), "end"]):
            (vectors,) = encoder.chunk_vectors([document])
            assert_same(vectors, of_documents(document, windows))

    def test_of_queries(self, load, references, sentences):
        encoder = load(window_tokens=128)
        of_documents, of_queries = references
        queries = [*sentences[:3], "", "x"]
        codes = encoder.encode_queries(queries)
        expected = np.concatenate([of_queries([query]) for query in queries])
        of_queries.assert_codes(codes, expected)
        others = np.concatenate([of_documents([query]) for query in queries])
        assert np.abs(codes.astype(int) - of_documents.codes(others)).max() > 10

    def test_without_a_prefix_they_are_others(self, load, references, documents):
        """Prefixes are seen, though nothing is pooled over them."""
        encoder = load(of_spec={"document_prefix": "", "query_prefix": ""}, window_tokens=128)
        of_documents, of_queries = references
        assert np.abs(encoder.chunk_vectors(documents)[0] - of_documents(documents[0])).max() > 0.01
        expected = quantize(of_queries(["x"]), "norm")
        assert np.abs(encoder.encode_queries(["x"]).astype(int) - expected).max() > 2

    def test_quantizer_and_dimension_are_the_specs(self, load, references, documents):
        encoder = load(dimensions=16, window_tokens=128)
        of_documents, _ = references
        for document, codes in zip(documents, encoder.encode_documents(documents), strict=True):
            assert_same_codes(codes, quantize(of_documents(document)[:, :16], "norm"))
            squares = np.square(codes.astype(int)).sum(axis=1)
            assert (squares == np.where([bool(chunk) for chunk in document], 127**2, 0)).all()


class TestRows:
    """What goes through which model, and what is pooled of it."""

    @pytest.fixture
    def watched(self, load):
        """An encoder, and what its two models are given: (ids, spans) of each row."""
        encoder = load()
        seen = {}
        for name in ("_model", "_query_model"):
            model = getattr(encoder, name)
            seen[name] = []
            pool = model.pool

            def watch(rows, spans, pool=pool, seen=seen[name]):
                seen.extend((row.tolist(), list(of)) for row, of in zip(rows, spans, strict=True))
                return pool(rows, spans)

            model.pool = watch
        assert encoder._model is not encoder._query_model
        return encoder, seen["_model"], seen["_query_model"]

    def test_documents(self, watched):
        encoder, of_documents, of_queries = watched
        prefix, one, two = (ids.tolist() for ids in encoder.tokenizer.encode(["[D] ", "one", "and two"]))
        separator = encoder.tokenizer.token_id(SEPARATOR)
        encoder.encode_documents([["one", "and two"]])
        start = len(prefix)
        second = start + len(one) + 1
        spans = [(start, start + len(one)), (second, second + len(two))]
        assert of_documents == [(prefix + one + [separator] + two, spans)]
        assert of_queries == []

    def test_windows_of_a_long_document(self, watched, sentences):
        encoder, of_documents, _ = watched
        prefix = encoder.tokenizer.encode(["[D] "])[0].tolist()
        separator = encoder.tokenizer.token_id(SEPARATOR)
        encoder.encode_documents([sentences])
        assert len(of_documents) > 1
        pooled = []
        for ids, spans in of_documents:
            assert ids[: len(prefix)] == prefix
            assert len(ids) <= 60
            assert min(start for start, _ in spans) >= len(prefix)
            pooled += [token for start, stop in spans for token in ids[start:stop]]
        assert separator not in pooled
        expected = [token for ids in encoder.tokenizer.encode(sentences) for token in ids.tolist()]
        assert sorted(pooled) == sorted(expected)

    def test_queries(self, watched):
        encoder, of_documents, of_queries = watched
        prefix, question = (ids.tolist() for ids in encoder.tokenizer.encode(["[Q] ", "a question"]))
        encoder.encode_queries(["a question", " "])
        assert of_queries == [(prefix + question, [(len(prefix), len(prefix) + len(question))])]
        assert of_documents == []


class TestIdentity:
    def test_revision_names_both_commits(self, load, fetched):
        fingerprint = load(revision="v2").fingerprint
        assert fingerprint.revision == f"{DOCUMENTS_COMMIT}+{QUERIES_COMMIT}"
        assert (fingerprint.model, fingerprint.source) == ("perplexity-ai/pplx-embed-invented",) * 2
        assert (fingerprint.window_tokens, fingerprint.quantizer, fingerprint.dimension) == (60, "norm", 64)
        # A revision is the documents' model's: the other repository need not have it.
        assert fetched == [
            ("perplexity-ai/pplx-embed-invented", "v2"),
            ("perplexity-ai/pplx-embed-invented-query", None),
        ]

    def test_revisions_of_both(self, load, fetched):
        """In the form that the fingerprint has, so that an index's model can be had again."""
        again = load(revision=load().fingerprint.revision)
        assert fetched[2:] == [
            ("perplexity-ai/pplx-embed-invented", DOCUMENTS_COMMIT),
            ("perplexity-ai/pplx-embed-invented-query", QUERIES_COMMIT),
        ]
        assert again.fingerprint == load().fingerprint

    @pytest.mark.parametrize("name", ["PPLX-Embed-Invented", "perplexity-ai/pplx-embed-invented"])
    def test_is_found_by_its_names(self, load, name):
        assert load(name).fingerprint == load().fingerprint

    def test_another_query_model_is_another_index(self, load, checkpoints, tmp_path, monkeypatch):
        before = load().fingerprint
        hub_id = "perplexity-ai/pplx-embed-invented-query"
        monkeypatch.setitem(checkpoints, hub_id, shutil.copytree(checkpoints[hub_id], tmp_path / ("8" * 40)))
        after = load().fingerprint
        with pytest.raises(SchemaMismatchError, match=r"revision 'd+\+9+' in the collection, 'd+\+8+' given"):
            before.require_same(after, "documents")

    @pytest.mark.parametrize("name", ["someone/embed-invented", "embed-invented"])
    def test_of_another_organisation(self, load, checkpoints, monkeypatch, name):
        hub_id = "someone/embed-invented"
        monkeypatch.setitem(checkpoints, hub_id, checkpoints["perplexity-ai/pplx-embed-invented"])
        encoder = load(name, of_spec={"name": hub_id})
        assert (encoder.spec.name, encoder.spec.document_prefix) == (hub_id, "[D] ")
        assert models.find_spec("perplexity-ai/embed-invented") is None


class TestSearch:
    def test_an_index_of_it(self, load, folder, sentences):
        encoder = load(window_tokens=128)
        with VectorStore.open(folder / "index", encoder=encoder) as store:
            store.add([Document(id=f"d{i}", chunks=sentences[i : i + 2]) for i in range(0, 8, 2)])
            hits = store.search("Who counted the ships?", k=8)
        assert sorted(hit.text for hit in hits) == sorted(sentences)
        (query,) = encoder.encode_queries(["Who counted the ships?"]).astype(float)
        codes = np.concatenate(encoder.encode_documents([sentences[i : i + 2] for i in range(0, 8, 2)])).astype(float)
        scores = codes @ query / np.linalg.norm(codes, axis=1) / np.linalg.norm(query)
        assert [hit.text for hit in hits] == [sentences[i] for i in np.argsort(-scores)]
        assert [hit.score for hit in hits] == pytest.approx(sorted(scores, reverse=True), abs=1e-4)


class TestRefuses:
    def test_separator_that_the_tokenizer_lacks(self, load):
        with pytest.raises(ModelFileError, match=r"no token '<\|other\|>', which the model needs between chunks"):
            load(of_spec={"separator": "<|other|>"})

    def test_query_model_that_cannot_be_fetched(self, load):
        with pytest.raises(UnknownModelError, match="perplexity-ai/pplx-embed-absent"):
            load(of_spec={"query_model": "perplexity-ai/pplx-embed-absent"})

    def test_query_model_with_a_smaller_vocabulary(self, load, checkpoints, pplx_checkpoint, monkeypatch):
        monkeypatch.setitem(checkpoints, "perplexity-ai/pplx-embed-invented-query", pplx_checkpoint)
        with pytest.raises(ModelFileError, match=r"has ids up to 400, but the weights only have 400 token embeddings"):
            load()
