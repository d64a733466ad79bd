"""Loads token models on PyTorch: Qwen3 with bidirectional attention, and the BERT family."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.encoders.batching import pad_rows
from pplx_vectorstore.encoders.checkpoints import Checkpoint
from pplx_vectorstore.encoders.cpu_qwen3 import CpuQwen3TokenModel
from pplx_vectorstore.encoders.packed_linear import can_pack, pack_linears
from pplx_vectorstore.encoders.torch_pooling import pool_tokens
from pplx_vectorstore.errors import AlignmentError, InvalidInputError, MissingExtraError, ModelFileError
from pplx_vectorstore.pooling import Span, join_ranges
from pplx_vectorstore.windows import TokenIds

if TYPE_CHECKING:
    import torch

_LAYER = re.compile(r"\blayers?\.\d+\.")

# On a CPU, code and buffers are kept for every shape that was seen: rows are filled up to a multiple of this, so that
# there are few, and memory stays what it is.
_CPU_GRAIN = 16

DTYPES = ("auto", "bfloat16", "float32", "float16")


class TorchTokenModel:
    """Runs a transformer and pools on its device; only pooled vectors leave it.

    Args:
        model: A transformers model whose ``forward(input_ids, attention_mask)`` attends in both
            directions and gives ``last_hidden_state``.
        pad_id: Id that fills short rows; the attention mask keeps it from mattering.
        bidirectional_qwen3: The attention mask must be handed over in prepared form.
    """

    pads = True

    def __init__(self, model: Any, pad_id: int, *, bidirectional_qwen3: bool) -> None:
        self._model = model
        self._pad_id = pad_id
        self._prepared_mask = bidirectional_qwen3

    @property
    def dimension(self) -> int:
        """Components of a token vector."""
        return int(self._model.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the products."""
        return self._model.dtype  # type: ignore[no-any-return]

    @property
    def vocabulary_size(self) -> int:
        """Number of token embeddings: ids must be below it."""
        return int(self._model.get_input_embeddings().num_embeddings)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch: enough to fill the device, few enough to stay in a CPU's caches."""
        return 4096 if self.runs_on_cpu else 65536

    @property
    def runs_on_cpu(self) -> bool:
        """Whether it shares the processor's cores with the rest."""
        return bool(self._model.device.type == "cpu")

    def pool(self, rows: Sequence[TokenIds], spans: Sequence[Sequence[Span]]) -> npt.NDArray[np.float32]:
        """Run the rows as one batch and mean-pool spans of each; see ``TokenModel.pool``."""
        import torch

        # Some models have so many positions, whoever takes them.
        positions = getattr(self._model.config, "max_position_embeddings", None)
        ids, lengths = pad_rows(rows, self._pad_id, grain=_CPU_GRAIN if self.runs_on_cpu else 1, most=positions)
        with torch.inference_mode():
            hidden = self._forward(torch.from_numpy(ids), lengths)
            if hidden.shape[:2] != ids.shape:
                raise AlignmentError(f"the model gave {tuple(hidden.shape)} for token ids of shape {ids.shape}")
            ranges = join_ranges(range(0, ids.size, ids.shape[1]), spans)
            return pool_tokens(hidden.flatten(0, 1), ranges).cpu().numpy()

    def _forward(self, ids: torch.Tensor, lengths: npt.NDArray[np.int64]) -> torch.Tensor:
        import torch

        device = self._model.device
        mask: Any = None
        if lengths.min() < ids.shape[1]:  # without padding, attention runs faster with no mask at all
            real = torch.arange(ids.shape[1])[None, :] < torch.from_numpy(lengths)[:, None]
            mask = real.to(device)
        if self._prepared_mask:
            # As a dict, Qwen3Model takes the mask as it is and adds no causal one.
            mask = {"full_attention": None if mask is None else mask[:, None, None, :]}
        output = self._model(input_ids=ids.to(device), attention_mask=mask)
        return output.last_hidden_state  # type: ignore[no-any-return]


def load_torch_model(checkpoint: Checkpoint, *, device: str, dtype: str) -> TorchTokenModel | CpuQwen3TokenModel:
    """Load a checkpoint's weights; its own code is never run.

    Args:
        checkpoint: Where it is and how it is used.
        device: "auto" (cuda, then mps, then cpu) or a torch device.
        dtype: One of `DTYPES`; "auto" is bfloat16 where the hardware multiplies it natively.

    Raises:
        InvalidInputError: The device or dtype is unknown or unfit for the model.
        MissingExtraError: torch or transformers is not installed.
        ModelFileError: The files are truncated, incomplete or of another architecture.
    """
    try:
        import torch
        import transformers  # noqa: F401 - to tell in time that it is missing
    except ImportError as error:
        raise MissingExtraError("a local model", "torch") from error
    if dtype not in DTYPES:
        raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if dtype == "float16" and not checkpoint.spec.float16:
        raise InvalidInputError(
            f"{checkpoint.spec.name} overflows float16 and gives NaN; use dtype='bfloat16' or 'float32'"
        )
    place = _choose_device(device)
    chosen = getattr(torch, _choose_dtype(place) if dtype == "auto" else dtype)
    model = load_stock_model(checkpoint, chosen).to(place)
    bidirectional_qwen3 = checkpoint.spec.layout == "pplx"
    if torch.device(place).type == "cpu":
        if bidirectional_qwen3:
            return CpuQwen3TokenModel(model)
        pack_linears(model)
    pad_id = getattr(model.config, "pad_token_id", None)
    return TorchTokenModel(model, pad_id or 0, bidirectional_qwen3=bidirectional_qwen3)


def load_stock_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Load a checkpoint's weights into the class of transformers that they are of, on the CPU.

    Raises:
        ModelFileError: The files are truncated, incomplete or of another architecture.
    """
    import transformers

    settings = json.loads((checkpoint.folder / "config.json").read_text("utf-8"))
    bidirectional_qwen3 = checkpoint.spec.layout == "pplx"
    config: Any
    kind: Any
    try:
        if bidirectional_qwen3:
            # The published config names remote code; the weights are stock Qwen3's.
            for key in ("auto_map", "architectures", "model_type", "dtype", "torch_dtype"):
                settings.pop(key, None)
            config, kind = transformers.Qwen3Config(**settings), transformers.Qwen3Model
        else:
            config = transformers.AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
            kind = transformers.AutoModel
        # Qwen3 must not fall back to eager attention, which adds a causal mask; others may where they have no SDPA.
        attention = "sdpa" if bidirectional_qwen3 else None
        model = _load_weights(kind, checkpoint, config, dtype, attention)
    except ModelFileError:
        raise
    except Exception as error:  # transformers raises nearly anything on a broken checkpoint
        reason = " ".join(str(error).split())
        raise ModelFileError(
            f"the checkpoint {checkpoint.folder} cannot be loaded (truncated or altered?): "
            f"{type(error).__name__}: {reason}; fetch it again"
        ) from error
    if bidirectional_qwen3:
        for layer in model.layers:
            layer.self_attn.is_causal = False
    return model.eval()


def _load_weights(kind: Any, checkpoint: Checkpoint, config: Any, dtype: torch.dtype, attention: str | None) -> Any:
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what it would warn of is an error below
    try:
        model, info = kind.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    # transformers fills what is missing with random numbers and only warns.
    wrong = sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]])
    wrong = [key for key in wrong if "pooler." not in key]  # unused: we pool ourselves
    # Layers left over mean that config.json asks for too few of them.
    wrong += sorted(str(key) for key in info["unexpected_keys"] if _LAYER.search(str(key)))
    if wrong:
        raise ModelFileError(
            f"the weights in {checkpoint.folder} and its config.json differ in {len(wrong)} tensors, "
            f"first {wrong[0]}; fetch the checkpoint again"
        )
    return model


def _choose_device(device: str) -> str:
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own error for what is not there
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InvalidInputError(f"device {device!r} is not available here ({reason}); use device='auto'") from error
    return device


def _choose_dtype(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        # Compute capability 8 (Ampere) is the first with bfloat16 tensor cores; older ones emulate it.
        native = torch.cuda.get_device_capability(device)[0] >= 8
    elif torch.device(device).type == "cpu":
        native = _cpu_multiplies_bfloat16() and can_pack(torch.bfloat16)  # without oneDNN it is slow all the same
    else:
        native = False
    return "bfloat16" if native else "float32"


def _cpu_multiplies_bfloat16() -> bool:
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    # Before torch 2.12 the same facts have private names.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)
