import re

import pytest

from pplx_vectorstore.serving.metrics import Counter, Histogram, Metrics

LINE = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"\})? -?[0-9.e+-]+')


def make():
    return Metrics(queue_size=lambda: 3, held_bytes=lambda: 10)


def test_the_text_is_in_prometheus_format():
    text = make().text()
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line.startswith(("# HELP te_", "# TYPE te_")) or LINE.fullmatch(line), line
    assert "te_queue_size 3\n" in text


def test_the_names_are_those_of_dashboards():
    names = set(re.findall(r"# TYPE (\w+)", make().text()))
    assert names >= {
        "te_request_count",
        "te_request_success",
        "te_request_failure",
        "te_request_duration",
        "te_request_tokenization_duration",
        "te_request_queue_duration",
        "te_request_inference_duration",
        "te_request_input_length",
        "te_queue_size",
        "te_batch_next_size",
        "te_batch_next_tokens",
    }
    assert not any(name.endswith(("_total", "_created")) for name in names)


def test_buckets_are_cumulative():
    histogram = Histogram("x", "X", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9):
        histogram.observe(value)
    assert histogram.lines()[2:] == [
        'x_bucket{le="1"} 2',
        'x_bucket{le="2"} 3',
        'x_bucket{le="+Inf"} 4',
        "x_sum 12",
        "x_count 4",
    ]


def test_no_series_is_ever_added():
    counter = Counter("x", "X", "method", ("a", "b"))
    with pytest.raises(KeyError):
        counter.add("c")
    counter.add("a")
    assert counter.lines()[2:] == ['x{method="a"} 1', 'x{method="b"} 0']
