"""Each process of a job imports what it needs, and no more: there are several of them for each job."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["ledger", "sink"])
def test_what_only_counts_imports_no_client_of_a_server(module):
    heavy = {"qdrant_client", "tokenizers", "torch"}
    code = f"import sys, ray_pplx_vectorstore.{module}; print({heavy} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
