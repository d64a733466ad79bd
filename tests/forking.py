"""Work in a forked process, of which a test hears the end whatever becomes of it."""

import faulthandler
import os
import signal
import traceback

STDERR = 2
FAILED = 70


def run_forked(work, *, seconds=60):
    """Return the exit code of a process forked from this one: what `work()` returns, a number or a bool.

    An error is printed and gives `FAILED`. What takes longer ends with a traceback, and code -14.
    """
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
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
