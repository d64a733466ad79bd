"""``pplx-vectorstore export-onnx``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pplx_vectorstore.cli.options import read_path
from pplx_vectorstore.terminal import busy, reported_errors, say


def export_onnx(
    model: Annotated[str, typer.Argument(help="Model name, hub id or folder.")],
    folder: Annotated[Path, typer.Argument(parser=read_path, help="Folder to write.", metavar="FOLDER")],
    quantize: Annotated[
        bool, typer.Option("--quantize", help="Weights of matrix products as int8: smaller, nearly the same vectors.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Write a model as ONNX, for --backend onnx.

    The file is written only if ONNX Runtime gives the vectors that PyTorch
    gives.
    """
    from pplx_vectorstore.encoders.onnx_export import export_onnx as write_onnx

    with reported_errors() as messages:
        with busy(messages, f"exporting {model}"):
            report = write_onnx(model, folder, revision=revision, quantize_weights=quantize)
        say(
            f"exported to {report.file} ({report.bytes / 1e6:,.1f} MB); against PyTorch: least cosine "
            f"{report.least_cosine:.6f}, codes at most {report.largest_code_difference} apart"
        )
