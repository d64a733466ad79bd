import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pplx_vectorstore

PACKAGE = Path(pplx_vectorstore.__file__).parent

PUBLIC_NAMES = {
    "AddReport",
    "ApiOptions",
    "AsyncVectorStore",
    "Chunk",
    "Chunker",
    "CollectionConfig",
    "Document",
    "EncodedQuery",
    "Encoder",
    "ExplainedHit",
    "Explanation",
    "Hit",
    "ModelSpec",
    "PplxVectorStoreError",
    "PrecomputedEncoder",
    "StoredChunk",
    "StoredDocument",
    "SyncReport",
    "Usage",
    "VectorStore",
    "__version__",
    "cosine_similarity",
    "crest_factor_for",
    "equalize_norms",
    "export_onnx",
    "hamming_distance",
    "load_encoder",
    "load_query_encoder",
    "pack_bits",
    "quantize_absmax",
    "quantize_tanh",
    "quantize_to_norm",
    "truncate",
    "unpack_bits",
}

# Imports point from later to earlier; errors stand first.
ORDER = [
    ["_version", "errors", "coroutines", "redaction", "lexical", "qdrant", "locked_files", "forked"],
    ["terminal", "guarded_http"],
    ["quantization", "documents", "pooling", "file_ids", "ignore_patterns"],
    ["equal_norms"],
    ["models", "windows", "reports"],
    ["chunking", "tokenization", "collection"],
    ["encoders"],
    ["serving"],
    ["points", "readers", "progress", "diversity"],
    ["query", "filters", "parquet", "ignore_files", "hit_places", "excerpts"],
    ["walking"],
    ["dry_run", "file_settings"],
    ["file_records"],
    ["file_reading"],
    ["engines"],
    ["filter_resolution"],
    ["operations"],
    ["store", "async_store", "display"],
    ["shared_store", "files", "rebuilding"],
    ["file_updates"],
    ["agents"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def test_public_names_are_these():
    assert set(pplx_vectorstore.__all__) == PUBLIC_NAMES
    assert set(dir(pplx_vectorstore)) >= PUBLIC_NAMES
    for name in PUBLIC_NAMES:
        assert getattr(pplx_vectorstore, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Vektorstore'"):
        _ = pplx_vectorstore.Vektorstore


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, pplx_vectorstore; "
        "heavy = {'torch', 'transformers', 'qdrant_client', 'qdrant_edge', 'numpy', 'rich', 'typer'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_loading_a_store_and_the_command_line_loads_no_torch():
    code = (
        "import sys, pplx_vectorstore.cli, pplx_vectorstore.store, pplx_vectorstore.encoders; "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_agents_are_answered_before_anything_heavy_is_loaded():
    code = (
        "import sys, pplx_vectorstore.cli; before = set(sys.modules); "
        "import pplx_vectorstore.agents.command, pplx_vectorstore.agents.server; "
        "heavy = {'torch', 'transformers', 'qdrant_client', 'qdrant_edge'}; "
        "print(sorted({'mcp', 'pydantic'} & before), sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[] []"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    for module in imported_modules(path):
        if module != own:
            assert LEVEL[module] < LEVEL[own], f"{path.name} imports {module}"


def imported_modules(path):
    """Own modules that a file imports at run time, at its top or within functions."""
    tree = ast.parse(path.read_text("utf-8"))
    for_types_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in for_types_only:
            package, _, module = (node.module or "").partition(".")
            if package == "pplx_vectorstore" and module:
                yield module.split(".")[0]
