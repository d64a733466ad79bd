import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest
import typer.main

from pplx_vectorstore.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("integrations/*/README.md")), *sorted(ROOT.glob("docs/*.md"))]
# A block of Python that imports what it uses, with the output that is shown right below it.
EXAMPLE = re.compile(
    r"```python\n((?:(?!```).)*?from (?:[\w.]+[_.])?pplx_vectorstore.*?)```(?:\n+```text\n(.*?)```)?", re.DOTALL
)
NUMBER = re.compile(r"-?\d+\.\d+")


def examples():
    for page in PAGES:
        for number, match in enumerate(EXAMPLE.finditer(page.read_text("utf-8")), 1):
            yield pytest.param(match[1], match[2], id=f"{page.relative_to(ROOT)}-{number}")


@pytest.mark.parametrize(("code", "expected"), list(examples()))
def test_examples_run_and_print_what_the_page_shows(code, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "example", "exec"), {})
    assert expected is not None, "an example shows its output"
    assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", expected)
    # Hardware with and without bfloat16 differs in the second decimal.
    assert numbers(printed.getvalue()) == pytest.approx(numbers(expected), abs=0.02)


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


def test_the_picture_of_windows_is_what_the_library_plans():
    code = runpy.run_path(str(ROOT / "docs" / "draw_windows.py"))
    assert (ROOT / "docs" / "windows.svg").read_text("utf-8") == code["draw"]()
