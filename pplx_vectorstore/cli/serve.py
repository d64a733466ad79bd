"""``pplx-vectorstore serve``."""

from __future__ import annotations

from typing import Annotated

import typer

from pplx_vectorstore.cli.options import DeviceOption, DtypeOption, OnnxFileOption
from pplx_vectorstore.guarded_http.access import KEY_VARIABLE
from pplx_vectorstore.models import DEFAULT_MODEL
from pplx_vectorstore.terminal import reported_errors


def serve(
    model: Annotated[str, typer.Option(help="Model name, hub id or folder.")] = DEFAULT_MODEL,
    host: Annotated[
        str, typer.Option(help="Name or address to listen on; others than this machine's own need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any that is free.")] = 8090,
    api_key: Annotated[
        str | None,
        typer.Option(help="Key that requests must have; better in the environment.", envvar=KEY_VARIABLE),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Also answer to this name in the Host header; may be repeated.", metavar="NAME"),
    ] = None,
    served_name: Annotated[
        list[str] | None, typer.Option(help="Also answer to this model name; may be repeated.", metavar="NAME")
    ] = None,
    unset_encoding: Annotated[
        str, typer.Option(help="Format for requests that name none: base64_int8, base64_binary, base64 or float.")
    ] = "base64_int8",
    window_tokens: Annotated[int | None, typer.Option(help="Tokens that go through the model at once.")] = None,
    turn_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a batch; by default a quarter of what fills the device.")
    ] = None,
    backend: Annotated[str, typer.Option(help="torch or onnx.")] = "torch",
    onnx_file: OnnxFileOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Print a line for each request, without what it holds.")
    ] = False,
) -> None:
    """Serve a model by the protocol of Perplexity's embeddings API.

    Other programs then embed by this model: through Perplexity's SDK, OpenAI's,
    or load_encoder(backend="api", base_url=...).
    """
    from pplx_vectorstore.serving.command import ServeOptions, serve_model

    with reported_errors() as messages:
        serve_model(
            messages,
            ServeOptions(
                model=model,
                host=host,
                port=port,
                api_key=api_key,
                allowed_hosts=tuple(allowed_host or ()),
                served_names=tuple(served_name or ()),
                unset_encoding=unset_encoding,
                turn_tokens=turn_tokens,
                log_requests=log_requests,
                load_options={
                    "window_tokens": window_tokens,
                    "backend": backend,
                    "onnx_file": onnx_file,
                    "device": device,
                    "dtype": dtype,
                },
            ),
        )
