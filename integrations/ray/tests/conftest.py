"""One Ray cluster of two CPUs on this machine, for all tests that need one; they are slow."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def chaos(tests_folder):
    """The module chaos.py, as workers import it."""
    for folder in (tests_folder, HERE):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    import chaos

    return chaos


@pytest.fixture(scope="session")
def cluster(tests_folder):
    """``import ray``, running on two CPUs. What it writes is in a folder of its own; nothing is sent anywhere."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patched,
    ):
        home = Path(folder) / "home"
        home.mkdir()
        # An authentication token goes to the home folder, logs and sockets to the other; paths of sockets are short.
        patched.setenv("HOME", str(home))
        patched.setenv("RAY_TMPDIR", folder)
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("PYTHONPATH", os.pathsep.join([str(tests_folder), str(HERE), os.environ.get("PYTHONPATH", "")]))
        import ray

        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=128 * 2**20,
            _node_ip_address="127.0.0.1",
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
        ray.shutdown()
