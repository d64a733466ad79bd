"""The one place where ONNX Runtime is imported, so that it is never imported with its telemetry on."""

from __future__ import annotations

import os
from types import ModuleType

from pplx_vectorstore.errors import MissingExtraError

_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime, which from version 1.29 on would report its use to its makers and keep a device id.

    Who wants that sets the environment variable ORT_DISABLE_TELEMETRY to 0.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    os.environ.setdefault(_TELEMETRY, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("backend='onnx'", "onnx") from error
    return onnxruntime  # type: ignore[no-any-return]
