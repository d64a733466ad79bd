"""What workers may take of a cluster, whatever that has."""

import types

import pytest
import ray
from ray_pplx_vectorstore.pool import Pool

from pplx_vectorstore.errors import InvalidInputError


@pytest.fixture
def require_room(monkeypatch):
    """``require_room(cluster, checkpoint=None, **pool)`` refuses a pool on a cluster of these resources."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)

    def require(there, *, checkpoint=None, **pool):
        monkeypatch.setattr(ray, "cluster_resources", lambda: there)
        ds = types.SimpleNamespace(context=types.SimpleNamespace(checkpoint_config=checkpoint))
        Pool(**{"workers": 1, "num_gpus": 0, "num_cpus": None, "batch_size": 9} | pool).require_room_for_reading(ds)

    return require


@pytest.mark.parametrize(
    "pool",
    [
        {"workers": 3},
        {"workers": 4, "num_cpus": 0.75},
        {"workers": 2, "checkpoint": "a configuration"},
        {"workers": 9, "num_cpus": 0},
        {"workers": 5, "num_cpus": 1},  # by whoever says so, the cluster grows
        {"workers": 9, "num_gpus": 1},  # there are two
    ],
    ids=str,
)
def test_reading_has_room(require_room, pool):
    require_room({"CPU": 4.0, "GPU": 2.0}, **pool)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"workers": 4}, "4 workers take 4 of the cluster's 4 CPUs, but reading needs 1"),
        ({"workers": 8}, "8 workers take 8 of the cluster's 4 CPUs"),
        ({"workers": 4, "num_cpus": 1}, "4 workers take 4 of"),
        (
            {"workers": 3, "checkpoint": "a configuration"},
            "3 workers take 3 of the cluster's 4 CPUs, but reading needs 2",
        ),
        ({"workers": 2, "num_gpus": 1, "num_cpus": 2}, "2 workers take 4 of"),
    ],
    ids=str,
)
def test_a_pool_that_would_wait_for_itself_is_refused(require_room, pool, message):
    with pytest.raises(InvalidInputError, match=message):
        require_room({"CPU": 4.0, "GPU": 2.0}, **pool)


@pytest.mark.parametrize(
    ("option", "value"),
    [("workers", 0), ("workers", True), ("batch_size", 2.5), ("num_gpus", -1), ("num_gpus", None), ("num_cpus", "1")],
)
def test_numbers_are_checked(require_room, option, value):
    with pytest.raises(InvalidInputError, match=f"{option} must be a"):
        require_room({"CPU": 4.0}, **{option: value})
