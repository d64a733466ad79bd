"""The guard of the benchmarks' ratios: that it fails when it should."""

import json
import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "check.py"))


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ({"disk": 0.34}, None),
        ({"disk": 0.30}, None),
        ({"disk": 0.357}, None),
        ({"disk": 0.358}, "disk: 0.358, recorded 0.340, more than 5% worse"),
        ({}, "disk: recorded as 0.340, but this run did not come to it"),
        ({"disk": 0.34, "new": 1.0}, "new: not recorded"),
    ],
)
def test_only_what_is_worse_by_more_than_the_margin_fails(check, found, complaint):
    lines = list(check["worse"](found, {"disk": check["Recorded"](0.34, 0.05)}))
    assert len(lines) == (complaint is not None)
    assert all(complaint in line for line in lines)


def test_every_ratio_is_recorded_with_a_margin(check):
    recorded = check["read_record"]()
    assert {what.split(":")[0].split(",")[0] for what in recorded} == {"search", "ingest", "quality", "encode"}
    for what, (ratio, margin) in recorded.items():
        assert ratio > 0, what
        assert 0 < margin < 1, what


def test_ratios_of_search_are_those_recorded(check):
    ratios = runpy.run_path(str(BENCHMARKS / "search.py"))["ratios"]
    searches = [{"recall_float": 0.98, "recall_int8": 0.98, "p50_ms": 1.0}]
    stub = {"searches": searches, "disk_bytes": {"vectors": 1}, "memory_bytes": {"own": 1}, "walk_bytes": 1}
    found = ratios(*2 * [stub | {"build_seconds": 1.0}]).keys() - {"resident"}
    expected = {f"search: {what}, ours over float32" for what in found}
    recorded = {what for what in check["read_record"]() if what.startswith("search: ") and what.endswith("float32")}
    assert recorded == expected


def test_recording_keeps_margins(check, tmp_path, monkeypatch):
    record = tmp_path / "recorded.json"
    write = check["write_record"]
    monkeypatch.setitem(write.__globals__, "RECORD", record)
    write({"a": 0.5, "b, seconds": 2.0}, {"a": check["Recorded"](0.4, 0.3)})
    assert json.loads(record.read_text("utf-8")) == {
        "a": {"ratio": 0.5, "margin": 0.3},
        "b, seconds": {"ratio": 2.0, "margin": 0.6},
    }
