"""How a command loads the model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pplx_vectorstore.collection import WEIGHTS_PREFIX
from pplx_vectorstore.errors import InvalidInputError, UnknownModelError
from pplx_vectorstore.models import DEFAULT_MODEL, find_spec
from pplx_vectorstore.terminal import busy

BASE_URL_VARIABLE = "PPLX_VECTORSTORE_BASE_URL"

if TYPE_CHECKING:
    from pplx_vectorstore.collection import Fingerprint
    from pplx_vectorstore.encoders import ApiEncoder, LateChunkingEncoder, QueryEncoder
    from pplx_vectorstore.terminal import Messages


def load_model(
    messages: Messages, model: str | None, recorded: Fingerprint | None, options: dict[str, Any]
) -> LateChunkingEncoder | ApiEncoder:
    """Load the model asked for, or the index's own with the settings that it was written with."""
    from pplx_vectorstore.encoders import load_encoder

    name, settings = _choose_model(model, recorded, options)
    with busy(messages, "loading the model"):
        encoder: LateChunkingEncoder | ApiEncoder = load_encoder(name, **settings)
    return encoder


def load_model_of_queries(
    messages: Messages, model: str | None, recorded: Fingerprint, options: dict[str, Any]
) -> QueryEncoder | LateChunkingEncoder | ApiEncoder:
    """Load the same for queries alone, which for most models takes a fraction of the time."""
    from pplx_vectorstore.encoders import load_query_encoder

    name, settings = _choose_model(model, recorded, options)
    with busy(messages, "loading the model"):
        encoder: QueryEncoder | LateChunkingEncoder | ApiEncoder = load_query_encoder(name, **settings)
    return encoder


def _choose_model(
    model: str | None, recorded: Fingerprint | None, options: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the name of the model asked for, or of the index's own, and how it is loaded."""
    from pplx_vectorstore.encoders.api import ApiOptions

    if options.get("base_url") == "":
        raise InvalidInputError("--base-url is empty; was a variable not set? Leave it out to run the model here")
    if model == "":
        raise InvalidInputError("--model is empty; was a variable not set? Leave it out for the index's own model")
    name = model or (recorded.source if recorded else DEFAULT_MODEL)
    settings: dict[str, Any] = {}
    has_model = recorded is None or recorded.window_tokens > 0  # else its vectors came from elsewhere
    if not has_model and model is None:
        raise InvalidInputError(
            f"the index was written with vectors of {name!r}, which the command line cannot load; open it from "
            "Python, with the encoder or the embeddings that wrote it"
        )
    backend, _, file = (recorded.backend if recorded is not None and has_model else "torch").partition(":")
    asked = options.get("backend") or ("api" if options.get("base_url") else None)
    if asked not in (None, backend):
        backend, file = asked, ""
    onnx_file: str | None = options.get("onnx_file") or file or None
    # Another model has settings of its own; they differ, and then the store names every difference.
    if recorded is not None and (model is None or _is_same(model, recorded, backend, onnx_file)):
        settings = {
            "dimensions": recorded.dimension,
            "window_tokens": recorded.window_tokens,
            "min_context": recorded.min_context,
            "context_weight": recorded.context_weight,
            "crest_factor": recorded.crest_factor,
        }
        if options.get("window_tokens") not in (None, recorded.window_tokens):
            del settings["min_context"]  # a part of the window
        if not str(recorded.revision).startswith(WEIGHTS_PREFIX):
            settings["revision"] = recorded.revision
    if model is None and Path(name).is_absolute() and not Path(name).exists():
        raise UnknownModelError(f"the index's model was in {name}, which is gone; name its new folder with --model")
    settings |= {option: value for option, value in options.items() if value is not None}
    settings |= {"backend": backend, "onnx_file": onnx_file}
    if backend == "api":
        settings["base_url"] = _choose_base_url(recorded, options)
        for of_the_service in ("context_weight", "crest_factor"):
            settings.pop(of_the_service, None)
        if recorded is not None and recorded.quantizer == "sign":
            settings["api"] = ApiOptions(encoding="binary")
    return name, settings


def _choose_base_url(recorded: Fingerprint | None, options: dict[str, Any]) -> str | None:
    """Return the address of a server of one's own, or None for the hosted service.

    No index says where it is, which anybody may have written: what is asked, and the key, would go there.
    """
    given: str | None = options.get("base_url") or os.environ.get(BASE_URL_VARIABLE) or None
    # The hosted service tells no revision. What was kept at home must not be asked there, for want of an option.
    if given is None and recorded is not None and recorded.backend == "api" and recorded.revision is not None:
        raise InvalidInputError(
            f"the index was written by a server of your own that runs {recorded.source}; say where that is, with "
            f"--base-url http://HOST:PORT or {BASE_URL_VARIABLE}, or run the model here, with --backend torch"
        )
    return given


def _is_same(model: str, recorded: Fingerprint, backend: str, onnx_file: str | None) -> bool:
    from pplx_vectorstore.encoders.checkpoints import locate_checkpoint, locate_onnx

    if recorded.source in (model, str(Path(model).resolve())):
        return True
    known = find_spec(model)
    if known is not None:
        return known.name == recorded.model
    if not Path(model).is_dir():
        return False
    if backend == "onnx":
        return locate_onnx(model, file=onnx_file).revision == recorded.revision
    return locate_checkpoint(model).revision == recorded.revision
