"""What the command ``serve`` does: options → a server that runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from pplx_vectorstore.errors import InvalidInputError, MissingExtraError
from pplx_vectorstore.terminal import complain

if TYPE_CHECKING:
    from pplx_vectorstore.terminal import Messages


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What is served, and to whom.

    Attributes:
        model: Name, hub id or folder.
        host: Name or address to listen on.
        port: 0 for any that is free.
        api_key: What requests must have; None for no key.
        allowed_hosts: Names in the Host header that are right beside the server's own.
        served_names: Names that the model answers to beside its own.
        unset_encoding: How vectors are written where a request does not say.
        turn_tokens: Tokens of a batch; None for a quarter of what fills the device.
        log_requests: Whether to print a line for each request.
        load_options: For ``load_encoder``.
    """

    model: str
    host: str
    port: int
    api_key: str | None = field(repr=False)
    allowed_hosts: tuple[str, ...]
    served_names: tuple[str, ...]
    unset_encoding: str
    turn_tokens: int | None
    log_requests: bool
    load_options: Mapping[str, Any]


def serve_model(messages: Messages, options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        messages: Where lines for people go: standard error.
        options: What is served, and to whom.

    Raises:
        InvalidInputError: An option is not usable.
        MissingExtraError: The extra is not installed.
        ModelError: The model cannot be loaded.
    """
    try:
        from pplx_vectorstore.guarded_http.access import choose_access
        from pplx_vectorstore.serving.app import make_app
        from pplx_vectorstore.serving.server import Server, bind
        from pplx_vectorstore.serving.service import EmbeddingService
        from pplx_vectorstore.serving.wire import ENCODINGS
    except ModuleNotFoundError as error:
        raise MissingExtraError("the command serve", "serve") from error
    from pplx_vectorstore.encoders import load_encoder

    if options.unset_encoding not in ENCODINGS:
        raise InvalidInputError(
            f"--unset-encoding must be one of {', '.join(ENCODINGS)}, not {options.unset_encoding!r}"
        )
    if options.load_options["backend"] not in ("torch", "onnx"):
        raise InvalidInputError(f"--backend of a server must be torch or onnx, not {options.load_options['backend']!r}")
    if options.turn_tokens is not None and options.turn_tokens < 1:
        raise InvalidInputError(f"--turn-tokens must be at least 1, not {options.turn_tokens}")
    access = choose_access(options.host, options.api_key, options.allowed_hosts, host_option="--allowed-host")
    service = EmbeddingService(
        partial(load_encoder, options.model, **options.load_options),
        names=(options.model, *options.served_names),
        turn_tokens=options.turn_tokens,
    )
    app = make_app(service, access, unset_encoding=options.unset_encoding, log_requests=options.log_requests)
    listener = bind(options.host, options.port)
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    _log_to(messages)
    server = Server(
        service,
        app,
        on_listening=lambda: complain(messages, f"listening on {url}; loading {options.model}"),
        on_ready=lambda: complain(messages, f"serving {service.model.name} on {url}; Ctrl-C ends it"),
    )
    server.serve_on(listener)
    complain(messages, "all requests are answered; ended")


def _log_to(messages: Messages) -> None:
    class _ToMessages(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complain(messages, record.getMessage())

    logger = logging.getLogger("pplx_vectorstore.serving")
    logger.addHandler(_ToMessages())
    logger.setLevel(logging.INFO)
    logger.propagate = False
