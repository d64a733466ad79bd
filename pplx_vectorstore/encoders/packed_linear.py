"""Matrix products with weights laid out for the CPU once, instead of at every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK_TOKENS = 512
"""Rows of a product: enough for the CPU's full rate, few enough that what is made of them stays in its caches."""


def pack_linear(*weights: torch.Tensor, bias: torch.Tensor | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return ``x → x @ weight.T + bias`` for weights stacked one over the other.

    Where PyTorch has oneDNN, the weight is kept in the layout that its products run fastest on. That is how
    ``torch.compile`` prepares weights too; here it needs no compiler on the user's machine.

    Args:
        weights: float32 or bfloat16 on the CPU, shape (n_out, n_in), all of one n_in; not needed afterwards.
        bias: Shape (sum of n_out,), or None.
    """
    import torch

    weight = (torch.cat(weights) if len(weights) > 1 else weights[0]).detach().contiguous()
    if not can_pack(weight.dtype):
        return lambda x: torch.nn.functional.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, BLOCK_TOKENS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def pack_linears(model: torch.nn.Module) -> None:
    """Replace every ``torch.nn.Linear`` of a model on the CPU by its packed form."""
    import torch

    class PackedLinear(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.multiply = pack_linear(linear.weight, bias=None if linear.bias is None else linear.bias.detach())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.multiply(x)

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, PackedLinear(child))


def can_pack(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN multiplies this dtype here."""
    import torch

    operators = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not torch._C._has_mkldnn or not all(hasattr(operators, name) for name in names):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(operators._is_mkldnn_bf16_supported()))
