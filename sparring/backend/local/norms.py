"""RMSNorm with a backward pass of its own: the same numbers as transformers' in fewer passes over memory.

transformers writes it as eight operations, and autograd keeps an fp32 copy of the input for them; on a CPU that costs as much
as attention. On CUDA torch has one kernel for each direction, which rounds once where the formula does twice.
Letters: `D` hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

_SAME_FORMULA = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
"""Modules that compute weight * (x / rms(x)), normalised in fp32 and rounded before the product; others stay as they are."""


class RootMeanSquareNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension (arXiv 1910.07467), with a weight [D] that begins frozen."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Gradients flow to `x`, and to the weight where it is trained."""
        if x.is_cuda:
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        if torch.is_grad_enabled():
            return _Norm.apply(x, self.weight, self.eps)  # type: ignore[no-any-return, no-untyped-call]
        return _normed(x, self.weight, self.eps)[0]


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """And 1 / rms(x), in fp32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(x, scale, out=torch.empty_like(x)).mul_(weight), scale


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        slope = (grads[0] * weight).to(torch.float32)
        normal = torch.mul(x, scale)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.mul(grads[0], normal).flatten(0, -2).sum(0).to(weight.dtype)
        along = torch.linalg.vecdot(slope, normal).div_(x.shape[-1])[..., None]
        return slope.sub_(normal.mul_(along)).mul_(scale).to(x.dtype), grad_weight, None


def install_norms(model: nn.Module) -> int:
    """Replace the norms of a frozen model that have this formula; returns how many."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, _SAME_FORMULA)]
    for name, module in found:
        parent, _, child = name.rpartition(".")
        norm = RootMeanSquareNorm(module.weight.detach(), float(module.variance_epsilon))
        model.get_submodule(parent).register_module(child, norm)
    return len(found)
