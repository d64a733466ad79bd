"""Work in a forked process, of which a test hears the end whatever becomes of it."""

import contextlib
import faulthandler
import os
import select
import signal
import threading
import time
import traceback
import warnings

STDERR = 2
FAILED = 70
GRACE = 10


def run_forked(work, *, seconds=120):
    """Return the exit code of a process forked from this one: what `work()` returns, a number or a bool.

    An error is printed and gives `FAILED`. What takes longer ends with a traceback and code -14, or -6 where it has not
    come so far.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which are what is tried
        pid = os.fork()
    if not pid:
        code = FAILED
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            faulthandler.register(signal.SIGALRM, file=STDERR, chain=True)
            signal.alarm(seconds)
            code = int(work())
        except BaseException:  # noqa: BLE001 - the process must end here, whatever it is
            os.write(STDERR, traceback.format_exc().encode())
        finally:
            os._exit(code)
    until, ended = time.monotonic() + seconds + GRACE, False
    try:
        while time.monotonic() < until:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
    finally:
        if not ended:
            os.kill(pid, signal.SIGABRT)
            _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@contextlib.contextmanager
def beside_a_forked_process():
    """Have a process within the block that was forked from this one before, and does nothing."""
    end, ending = os.pipe()
    beginning, begun = os.pipe()
    codes = []

    def wait_for_the_end():
        os.close(ending)
        os.write(begun, b"1")
        return os.read(end, 1) == b""

    waiting = threading.Thread(target=lambda: codes.append(run_forked(wait_for_the_end)))
    waiting.start()
    try:
        assert select.select([beginning], [], [], 60)[0]
        yield
    finally:
        os.close(ending)
        waiting.join()
        for file in (end, beginning, begun):
            os.close(file)
    assert codes == [True]
