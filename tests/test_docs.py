import contextlib
import importlib
import io
import re
import runpy
from pathlib import Path

import pytest
import typer.main

from pplx_vectorstore.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("integrations/*/README.md")), *sorted(ROOT.glob("docs/**/*.md"))]
# A block of Python that imports what it uses, with the output that is shown right below it.
EXAMPLE = re.compile(
    r"```python\n((?:(?!```).)*?from (?:[\w.]+[_.])?pplx_vectorstore.*?)```(?:\n+```text\n(.*?)```)?", re.DOTALL
)
PACKAGES = (
    "pplx_vectorstore",
    "langchain_pplx_vectorstore",
    "llama_index.embeddings.pplx_vectorstore",
    "llama_index.vector_stores.pplx_vectorstore",
    "ray_pplx_vectorstore",
)
NUMBER = re.compile(r"-?\d+\.\d+")


def examples():
    for page in PAGES:
        for number, match in enumerate(EXAMPLE.finditer(page.read_text("utf-8")), 1):
            if "ray_pplx_vectorstore" in match[1]:
                continue  # needs a server and a cluster: integrations/ray/tests/test_jobs.py
            yield pytest.param(match[1], match[2], id=f"{page.relative_to(ROOT)}-{number}")


@pytest.mark.parametrize(("code", "expected"), list(examples()))
def test_examples_run_and_print_what_the_page_shows(code, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "example", "exec"), {})
    assert expected is not None, "an example shows its output"
    assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", expected)
    # Where a model runs, hardware with and without bfloat16 differs in the second decimal.
    unsure = 0.0201 if re.search("load_encoder|model", code) else 0.0011
    assert numbers(printed.getvalue()) == pytest.approx(numbers(expected), abs=unsure)


def test_every_command_and_option_is_documented():
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        section = re.search(rf"\n## {name}\n(.*?)(\n## |\Z)", page, re.DOTALL)
        assert section, f"docs/cli.md has no section on {name}"
        for parameter in command.params:
            option = parameter.opts[0]
            if option.startswith("-") and option != "--help":
                assert f"`{option}" in section[1] or option in page[: page.index("\n## ")] + section[1], option


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
            other = (page.parent / target) if target else page
            assert other.is_file(), f"{page.name} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)", other.read_text("utf-8"), re.MULTILINE)
                assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, f"{page.name}#{anchor}"


def numbers(text):
    return [float(number) for number in NUMBER.findall(text)]


@pytest.fixture
def benchmarks(monkeypatch):
    """Run a script of the benchmarks, which import one another by name, without its main."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: runpy.run_path(str(ROOT / "benchmarks" / name))


def test_tables_are_what_was_measured(benchmarks):
    fill = benchmarks("fill_tables.py")["fill"]
    found = 0
    for page in PAGES:
        text = page.read_text("utf-8")
        assert fill(text) == text, f"{page.name}: run benchmarks/fill_tables.py"
        found += text.count("<!-- table: ")
    assert found > 20


def test_pictures_are_of_what_was_measured(benchmarks, tmp_path):
    code = benchmarks("draw.py")
    code["draw"](tmp_path)
    for name in code["PICTURES"]:
        # Coordinates may differ in their last digits between machines.
        assert places(tmp_path / name) == pytest.approx(places(ROOT / "docs" / name), abs=0.1), name


def places(picture):
    """Return the coordinates of everything that is drawn."""
    drawn = re.findall(r'(?:\bd|\bx|\by|transform)="([^"]*)"', picture.read_text("utf-8"))
    return [float(number) for text in drawn for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_every_public_name_has_a_place_in_the_reference():
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    for package in PACKAGES:
        for name in set(importlib.import_module(package).__all__) - {"__version__"}:
            assert re.search(rf"^::: [\w.]+\.{name}$", pages, re.MULTILINE) or name == "PplxVectorStoreError", name
    assert "::: pplx_vectorstore.errors\n" in pages


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").glob("**/*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation


def test_the_picture_of_windows_is_what_the_library_plans():
    code = runpy.run_path(str(ROOT / "docs" / "draw_windows.py"))
    assert (ROOT / "docs" / "windows.svg").read_text("utf-8") == code["draw"]()
