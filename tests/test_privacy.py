"""Indexing and searching contact nobody but the store and the model that the user named, whatever the backend."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pplx_vectorstore.tokenization import ChunkTokenizer

# What a process of its own runs: Python's sockets are watched by an audit hook, those of native code in /proc.
CHILD = """
import json, os, re, sys, threading, time

contacted = []

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else str(address)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    else:
        return
    if not str(host).startswith(("127.", "::1", "localhost")):
        contacted.append([event, str(host)])

sys.addaudithook(watch)
LOOPBACK = re.compile("0100007F|0{31}1|0{24}0100007F|0{16}FFFF00000100007F", re.I)

def own_sockets():
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            yield target[8:-1]

def watch_native(stop):
    while not stop.is_set():
        inodes = set(own_sockets())
        for table in ("tcp", "tcp6", "udp", "udp6"):
            with open(f"/proc/self/net/{table}") as file:
                for line in list(file)[1:]:
                    fields = line.split()
                    remote = fields[2].split(":")[0]
                    if fields[9] in inodes and set(remote) != {"0"} and not LOOPBACK.fullmatch(remote):
                        contacted.append([table, remote])
        time.sleep(0.002)

stop = threading.Event()
watching = threading.Thread(target=watch_native, args=(stop,))
if os.path.isdir("/proc/self/fd"):
    watching.start()

if sys.argv[1] == "control":
    import socket
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        outward.connect(("192.0.2.1", 9))  # of no one; nothing is sent
        time.sleep(0.3)
    stop.set()
    print(json.dumps(contacted))
    sys.exit()

from pplx_vectorstore import Document, VectorStore, load_encoder
from pplx_vectorstore.encoders.api import ApiOptions

kind, model, folder, url, tokenizer = sys.argv[1:]
options = {"torch": {}, "onnx": {"backend": "onnx"}, "api": {"backend": "api", "api_key": "key"}}[kind]
if kind == "api":
    options["api"] = ApiOptions(base_url=url, tokenizer=tokenizer)
encoder = load_encoder(model, **options)
with VectorStore.open(folder, encoder=encoder) as store:
    store.add([Document(id="d", text="The harbour froze, and the ferries stayed where they were.")])
    store.sync([Document(id="d", text="The harbour froze.", metadata={"a": 1})])
    store.optimize()
    assert store.search("harbour", k=1)[0].document_id == "d"
    assert store.search("harbour", k=1, hybrid=True)
    store.export_parquet(folder + ".parquet")
time.sleep(0.3)  # whoever reports at the end
stop.set()
if os.path.isdir("/proc/self/fd"):
    watching.join()
print(json.dumps(contacted))
"""


@pytest.fixture
def run(tmp_path):
    def run(kind, model, url="-", tokenizer="-"):
        environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        command = [sys.executable, "-c", CHILD, kind, str(model), str(tmp_path / "index"), url, str(tokenizer)]
        done = subprocess.run(
            command, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("model", ["all-minilm-l6-v2", "pplx"])
def test_pytorch(run, model, request):
    assert run("torch", request.getfixturevalue("pplx_checkpoint") if model == "pplx" else model) == "[]"


@pytest.mark.slow
def test_onnx_runtime(run, pplx_checkpoint, tmp_path):
    from pplx_vectorstore.encoders.onnx_export import export_onnx

    export_onnx(str(pplx_checkpoint), tmp_path / "onnx")
    assert run("onnx", tmp_path / "onnx") == "[]"


def test_the_hosted_service_alone(run, pplx_checkpoint):
    tokenizer = ChunkTokenizer.from_folder(pplx_checkpoint)
    with load_service().PerplexityServer(
        key="key", count_tokens=lambda text: len(tokenizer.encode([text])[0])
    ) as server:
        assert run("api", "pplx-embed-context-v1-0.6b", server.url, pplx_checkpoint) == "[]"
        assert len(server.requests) > 1


def load_service():
    spec = importlib.util.spec_from_file_location("perplexity_server", Path(__file__).parent / "perplexity_server.py")
    module = sys.modules.setdefault("perplexity_server", importlib.util.module_from_spec(spec))
    if not hasattr(module, "PerplexityServer"):
        spec.loader.exec_module(module)
    return module


def test_the_watch_sees_what_python_and_native_code_do(run):
    seen = run("control", "-")
    assert "192.0.2.1" in seen
    assert '"udp", "010200C0"' in seen or not os.path.isdir("/proc/self/fd")
