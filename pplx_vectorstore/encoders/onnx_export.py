"""Writes a checkpoint as ONNX, after checking that it gives the same vectors."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.encoders.checkpoints import EXPORT_FILE, Checkpoint, locate_checkpoint, read_origin
from pplx_vectorstore.encoders.late_chunking import TokenModel
from pplx_vectorstore.encoders.onnx_model import load_onnx_model
from pplx_vectorstore.encoders.onnx_runtime import import_onnxruntime
from pplx_vectorstore.encoders.torch_model import load_stock_model, load_torch_model
from pplx_vectorstore.equal_norms import quantize
from pplx_vectorstore.errors import EncodingError, InvalidInputError, MissingExtraError
from pplx_vectorstore.models import KNOWN_MODELS
from pplx_vectorstore.tokenization import ChunkTokenizer

# The first with attention, rotary positions and RMSNorm as operators of their own: a quarter of the memory
# and four times the speed at 4,096 tokens of the same graph in older operators.
_OPSET = 23
_COPIED = ("config.json", "tokenizer.json", "modules.json", "*_Pooling/config.json")
# Of an exported float32 model, pooled vectors; of int8 weights, what tells rounding from a broken file.
_LEAST_COSINE = {"model": 0.99999, "model_quantized": 0.9}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """How an export compares with the original.

    Attributes:
        file: The ONNX file that was written.
        bytes: What it takes on disk, with its external data.
        least_cosine: Of the pooled float vectors of the two, over rows of several lengths in one batch.
        largest_code_difference: Of their int8 codes.
    """

    file: Path
    bytes: int
    least_cosine: float
    largest_code_difference: int


def export_onnx(
    model: str, folder: str | os.PathLike[str], *, revision: str | None = None, quantize_weights: bool = False
) -> ExportReport:
    """Export a model that ``load_encoder`` takes to ONNX, with free numbers of rows and tokens.

    The folder gets what ``load_encoder(folder, backend="onnx")`` needs, and is recorded to hold the same
    weights: an index that one of them wrote, the other can search. Nothing is written unless ONNX Runtime
    gives the vectors that PyTorch gives, or comes near them with quantized weights.

    Args:
        model: A known name, a hub id or a checkpoint folder.
        folder: Where to write; made if need be. ``onnx/model.onnx`` in it is replaced.
        revision: Branch, tag or commit on the hub.
        quantize_weights: Write ``onnx/model_quantized.onnx`` instead: the weights of matrix products as int8,
            a quarter of their size. Its vectors are close to the original's but not the same.

    Returns:
        What was written, and how near it comes to the original.

    Raises:
        UnknownModelError: No such model.
        ModelFileError: Its checkpoint is broken.
        MissingExtraError: Packages for exporting are not installed.
        EncodingError: The exported model gives other vectors; nothing was written.
    """
    for package in ("onnx", "onnxruntime", "onnxscript", "torch"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("exporting to ONNX", "export")
    import_onnxruntime()  # before a package that exports does
    checkpoint = locate_checkpoint(model, revision)
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InvalidInputError(f"{target} is a file; name a folder to export into")
    origin = {
        "model": checkpoint.spec.name,
        "revision": checkpoint.revision,
        "known": KNOWN_MODELS.get(checkpoint.spec.name) == checkpoint.spec,
    }
    _require_no_other(target, checkpoint, origin)
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    try:
        # Beside the target, so that moving the result there is one step of the file system.
        with tempfile.TemporaryDirectory(dir=target, prefix=".export-") as scratch:
            file = Path(scratch) / "model.onnx"
            _export(checkpoint, file)
            if quantize_weights:
                file = _quantize(file)
            comparison = _compare(checkpoint, file)
            size = _move(checkpoint, file, target)
        (target / EXPORT_FILE).write_text(json.dumps(origin, indent=2), "utf-8")
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # it holds something, then
                target.rmdir()
        raise
    return ExportReport(file=target / "onnx" / file.name, bytes=size, **comparison)


def _require_no_other(target: Path, checkpoint: Checkpoint, origin: dict[str, Any]) -> None:
    """Refuse a folder of another model: its configuration would pass for that of these weights."""
    if (target / EXPORT_FILE).is_file():
        if read_origin(target) != origin:
            raise InvalidInputError(f"{target} holds an export of another model or revision; choose another folder")
    elif (target / "config.json").is_file() and target.resolve() != checkpoint.folder.resolve():
        raise InvalidInputError(f"{target} holds another model; choose another folder")


def _move(checkpoint: Checkpoint, file: Path, target: Path) -> int:
    """Put an export and what it needs in its place; return the export's bytes."""
    for source in (path for pattern in _COPIED for path in checkpoint.folder.glob(pattern)):
        copy = target / source.relative_to(checkpoint.folder)
        if source.resolve() != copy.resolve():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, copy)
    final = target / "onnx"
    final.mkdir(exist_ok=True)
    size = 0
    for part in sorted(file.parent.glob(f"{file.name}*"), reverse=True):  # the data before what refers to it
        size += part.stat().st_size
        part.chmod(file.stat().st_mode)  # external data is made for its owner alone
        os.replace(part, final / part.name)
    return size


def _export(checkpoint: Checkpoint, file: Path) -> None:
    import torch

    model = load_stock_model(checkpoint, torch.float32)
    bidirectional_qwen3 = checkpoint.spec.layout == "pplx"

    class TokenVectors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            if not bidirectional_qwen3:
                return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # type: ignore[no-any-return]
            rows, tokens = input_ids.shape
            # One row of positions per row of ids: ONNX Runtime's rotary operator does not repeat them.
            positions = torch.arange(tokens)[None].expand(rows, -1)
            seen = attention_mask[:, None, None, :].bool().expand(-1, -1, tokens, -1)
            return self.model(  # type: ignore[no-any-return]
                input_ids=input_ids, position_ids=positions, attention_mask={"full_attention": seen}, use_cache=False
            ).last_hidden_state

    ids = torch.randint(0, model.config.vocab_size, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.inference_mode(), _quietly():
        torch.onnx.export(
            TokenVectors(),
            (ids, mask),
            file,
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state"],
            dynamic_shapes={"input_ids": free, "attention_mask": free},
            opset_version=_OPSET,
            external_data=True,
            dynamo=True,
            verbose=False,
        )


def _quantize(file: Path) -> Path:
    import_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = file.with_name("model_quantized.onnx")
    with _quietly():
        quantize_dynamic(
            file,
            quantized,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
    return quantized


def _compare(checkpoint: Checkpoint, file: Path) -> dict[str, Any]:
    """Run both models on rows of several lengths, with padding, and compare what is pooled."""
    original = load_torch_model(checkpoint, device="cpu", dtype="float32")
    exported = load_onnx_model(checkpoint, file, device="cpu")
    tokenizer = ChunkTokenizer.from_folder(checkpoint.folder)
    expected, found = (_sample(model, tokenizer, checkpoint.spec.window_tokens) for model in (original, exported))
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    cosine = float(((expected * found).sum(axis=1) / lengths).min())
    codes = [quantize(vectors, checkpoint.spec.quantizer).astype(int) for vectors in (expected, found)]
    difference = int(np.abs(codes[0] - codes[1]).max())
    if not cosine >= _LEAST_COSINE[file.stem]:
        raise EncodingError(
            f"the exported model gives other vectors than the checkpoint (cosine {cosine:.6f}, at least "
            f"{_LEAST_COSINE[file.stem]} is needed); nothing was written"
        )
    return {"least_cosine": cosine, "largest_code_difference": difference}


def _sample(model: TokenModel, tokenizer: ChunkTokenizer, window_tokens: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(0)
    frame = len(tokenizer.prefix_ids) + len(tokenizer.suffix_ids)
    pooled = []
    room = window_tokens - frame
    for lengths in ([1], [min(n, room) for n in (3, 40, 17)], [min(n, room) for n in (300, 9)]):
        inner = [rng.integers(0, tokenizer.largest_id, size=length) for length in lengths]
        rows = [np.concatenate([tokenizer.prefix_ids, ids, tokenizer.suffix_ids]) for ids in inner]
        start = len(tokenizer.prefix_ids)
        spans = [[(start, start + len(ids)), (start + len(ids) // 2, start + len(ids))] for ids in inner]
        pooled.append(model.pool(rows, spans))
    return np.concatenate(pooled).astype(np.float64)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter from writing of its steps and of its own future to the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
