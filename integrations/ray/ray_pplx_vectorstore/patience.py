"""How long a server that is away is waited for, beyond the store's own tries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from pplx_vectorstore.errors import InvalidInputError, ServerUnavailableError

T = TypeVar("T")

DEFAULT_PATIENCE = 900.0
"""Seconds; less than Ray Data's own, after which it ends a job without progress, 1,800 by default."""

# Seconds, beside the store's own tries, which take about a minute.
_LONGEST_WAIT = 10.0


def check_patience(patience: float) -> float:
    """Return seconds of patience as they are.

    Raises:
        InvalidInputError: They are no number of seconds.
    """
    is_number = isinstance(patience, (int, float)) and not isinstance(patience, bool)
    if not (is_number and 0 <= patience < math.inf):
        raise InvalidInputError(f"patience must be seconds of at least 0, not {patience!r}")
    return float(patience)


def insist(function: Callable[[], T], patience: float) -> T:
    """Call a function, and again while the server is away and patience, in seconds, lasts."""
    retrying = Retrying(
        retry=retry_if_exception_type(ServerUnavailableError),
        stop=stop_after_delay(patience),
        wait=wait_random_exponential(max=_LONGEST_WAIT),
        reraise=True,
    )
    return retrying(function)
