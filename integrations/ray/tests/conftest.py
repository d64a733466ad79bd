"""One Ray cluster of two CPUs on this machine, for all tests that need one; they are slow."""

import contextlib
import os
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from ray_pplx_vectorstore import patience

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def chaos(tests_folder):
    """The module chaos.py, as workers import it."""
    for folder in (tests_folder, HERE):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    import chaos

    return chaos


@pytest.fixture
def be_away(server, qdrant_server_module, monkeypatch):
    """``with be_away():`` the server refuses everything and hangs up, until it has done so six times."""
    monkeypatch.setattr(patience, "_LONGEST_WAIT", 0.1)

    @contextlib.contextmanager
    def until_six():
        away = qdrant_server_module.Faults(seed=1, rate=1.0, kinds=("503", "reset_before"), everything=True)
        ended = threading.Event()

        def come_back():
            while away.total < 6 and not ended.wait(0.01):
                pass
            server.faults = None

        server.faults = away
        thread = threading.Thread(target=come_back)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        assert away.total >= 6

    return until_six


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
        # Else 32 processes start to read the end of one small file.
        patched.setenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
        patched.setenv("PYTHONPATH", os.pathsep.join([str(tests_folder), str(HERE), os.environ.get("PYTHONPATH", "")]))
        import ray

        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=128 * 2**20,
            _node_ip_address="127.0.0.1",
            # A process that has imported everything waits for the next job: else each job's processes are new.
            _system_config={"idle_worker_killing_time_threshold_ms": 600_000},
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
        ray.shutdown()
