"""The README's example, with a server on this machine in the place of the one that it names."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
SCORE = re.compile(r"\d\.\d\d")


@pytest.mark.slow
def test_the_example_runs_and_prints_what_the_page_shows(cluster, server):
    (code,), (expected,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "text"))
    assert code.count("http://localhost:6333") == 1
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code.replace("http://localhost:6333", server.url), "example", "exec"), {})
    assert SCORE.sub("#", printed.getvalue()) == SCORE.sub("#", expected)
    scores, shown = (list(map(float, SCORE.findall(text))) for text in (printed.getvalue(), expected))
    # Hardware with and without bfloat16 differs in the second decimal.
    assert scores == pytest.approx(shown, abs=0.0201)
