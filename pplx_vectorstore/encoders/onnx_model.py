"""Token models on ONNX Runtime."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.encoders.batching import pad_rows
from pplx_vectorstore.encoders.checkpoints import Checkpoint
from pplx_vectorstore.encoders.onnx_runtime import import_onnxruntime
from pplx_vectorstore.errors import AlignmentError, InvalidInputError, ModelFileError
from pplx_vectorstore.models import KNOWN_MODELS
from pplx_vectorstore.pooling import Span, pool_rows
from pplx_vectorstore.windows import TokenIds

if TYPE_CHECKING:
    import onnxruntime

# What exports call the token vectors: transformers' name, and sentence-transformers'.
_TOKEN_VECTORS = ("last_hidden_state", "token_embeddings")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class OnnxTokenModel:
    """Runs an ONNX file that gives token vectors; whatever else it gives is left alone.

    Args:
        session: Of the file.
        pad_id: Id that fills short rows; the attention mask keeps it from mattering.
        vocabulary_size: Number of token embeddings.
        dimension: Components of a token vector, for files that do not tell.

    Raises:
        ModelFileError: Its inputs or outputs are not those of a token model.
    """

    pads = True

    def __init__(
        self, session: onnxruntime.InferenceSession, pad_id: int, *, vocabulary_size: int, dimension: int
    ) -> None:
        self.vocabulary_size = vocabulary_size
        self._session = session
        self._pad_id = pad_id
        self._inputs = {node.name: _INTEGERS.get(node.type) for node in session.get_inputs()}
        outputs = {node.name: node for node in session.get_outputs()}
        chosen = next((name for name in _TOKEN_VECTORS if name in outputs), None)
        unknown = set(self._inputs) - set(_INPUTS)
        if None in self._inputs.values():
            types = ", ".join(f"{node.name} {node.type}" for node in session.get_inputs())
            raise ModelFileError(f"the ONNX file takes {types}; a token model takes int64 or int32")
        if chosen is None or unknown or "input_ids" not in self._inputs or "attention_mask" not in self._inputs:
            raise ModelFileError(
                f"the ONNX file takes {', '.join(self._inputs)} and gives {', '.join(outputs)}; a token model takes "
                f"input_ids and attention_mask (maybe also token_type_ids, position_ids) and gives {_TOKEN_VECTORS[0]}"
            )
        self._output: str = chosen
        if len(outputs[chosen].shape) != 3:
            raise ModelFileError(
                f"{chosen} of the ONNX file has shape {outputs[chosen].shape}; (rows, tokens, dimension) is needed"
            )
        width = outputs[chosen].shape[-1]
        self.dimension: int = width if isinstance(width, int) else dimension

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch: enough to fill the device, few enough that short rows are scored together."""
        return 4096 if self.runs_on_cpu else 32768

    @property
    def runs_on_cpu(self) -> bool:
        """Whether it shares the processor's cores with the rest."""
        return bool(self._session.get_providers()[0] == "CPUExecutionProvider")

    def pool(self, rows: Sequence[TokenIds], spans: Sequence[Sequence[Span]]) -> npt.NDArray[np.float32]:
        """Run the rows as one batch and mean-pool spans of each; see ``TokenModel.pool``."""
        ids, lengths = pad_rows(rows, self._pad_id)
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        values = {
            "input_ids": ids,
            "attention_mask": (positions < lengths[:, None]).astype(np.int64),
            "token_type_ids": np.zeros_like(ids),
            "position_ids": positions,
        }
        (hidden,) = self._session.run(
            [self._output], {name: values[name].astype(dtype, copy=False) for name, dtype in self._inputs.items()}
        )
        if hidden.shape != (*ids.shape, self.dimension):
            raise AlignmentError(f"the model gave {hidden.shape} for token ids of shape {ids.shape}")
        return pool_rows(hidden.astype(np.float32, copy=False), spans)


def load_onnx_model(checkpoint: Checkpoint, path: Path, *, device: str) -> OnnxTokenModel:
    """Open an ONNX file of a checkpoint.

    Args:
        checkpoint: Where its configuration is.
        path: The file; its external data, if any, lies beside it.
        device: "auto" (cuda where onnxruntime-gpu finds one, else cpu), "cpu", "cuda" or "cuda:1".

    Raises:
        InvalidInputError: ONNX Runtime has no such device here.
        MissingExtraError: onnxruntime is not installed.
        ModelFileError: The file is broken or not a token model.
    """
    onnxruntime = import_onnxruntime()
    providers = _choose_providers(device, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _count_threads()
    # Threads that spin between batches take the processor from tokenizer, engine and everyone else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena keeps the largest of every size it has seen: with batches of all shapes, memory would grow.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions share no base but Exception
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{path} cannot be loaded: {reason}; fetch or export it again") from error
    if device.startswith("cuda") and session.get_providers()[0] != "CUDAExecutionProvider":
        raise InvalidInputError(
            "ONNX Runtime could not use CUDA and would run on the CPU (it tells why on standard error); "
            "install the CUDA and cuDNN versions that it needs, or use device='cpu'"
        )
    settings = json.loads((checkpoint.folder / "config.json").read_text("utf-8"))
    vocabulary_size = settings.get("vocab_size")
    if not isinstance(vocabulary_size, int):
        raise ModelFileError(f"config.json in {checkpoint.folder} needs a vocab_size, not {vocabulary_size!r}")
    return OnnxTokenModel(
        session,
        settings.get("pad_token_id") or 0,
        vocabulary_size=vocabulary_size,
        dimension=KNOWN_MODELS.get(checkpoint.spec.name, checkpoint.spec).dimension,
    )


def _choose_providers(device: str, available: Sequence[str]) -> list[Any]:
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdigit())):
        raise InvalidInputError(f"device of backend='onnx' must be 'auto', 'cpu', 'cuda' or 'cuda:N', not {device!r}")
    has_cuda = "CUDAExecutionProvider" in available
    if kind == "cuda" and not has_cuda:
        raise InvalidInputError(
            f"ONNX Runtime has no CUDA here (it has {', '.join(available)}): pip install onnxruntime-gpu in place of "
            "onnxruntime, or use device='cpu'"
        )
    if kind == "cpu" or not has_cuda:
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]


def _count_threads() -> int:
    """Processors this process may use; OMP_NUM_THREADS counts here as it does for PyTorch."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
