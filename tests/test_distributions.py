"""The distributions of this repository are released together."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import pplx_vectorstore

ROOT = Path(__file__).parent.parent
INTEGRATIONS = sorted(ROOT.glob("integrations/*/pyproject.toml"))


@pytest.mark.parametrize("path", INTEGRATIONS, ids=lambda path: path.parent.name)
def test_versions_move_in_lockstep(path):
    project = tomllib.loads(path.read_text("utf-8"))
    version_file = path.parent / project["tool"]["hatch"]["version"]["path"]
    own = {}
    exec(version_file.read_text("utf-8"), own)
    assert own["__version__"] == pplx_vectorstore.__version__
    requirements = {Requirement(text).name: Requirement(text) for text in project["project"]["dependencies"]}
    assert pplx_vectorstore.__version__ in requirements["pplx-vectorstore"].specifier
    major, minor, _ = pplx_vectorstore.__version__.split(".")
    assert f"{major}.{int(minor) + 1}.0" not in requirements["pplx-vectorstore"].specifier


def test_there_are_integrations():
    assert [path.parent.name for path in INTEGRATIONS] == ["langchain", "llama_index", "ray"]


@pytest.mark.parametrize("path", INTEGRATIONS, ids=lambda path: path.parent.name)
def test_licences_are_the_same(path):
    assert (path.parent / "LICENSE").read_text("utf-8") == (ROOT / "LICENSE").read_text("utf-8")
