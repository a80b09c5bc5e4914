"""Our RMSNorm against transformers', forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from sparring.backend.local.norms import RootMeanSquareNorm, install_norms


def _pair(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    theirs = LlamaRMSNorm(48, 1e-3).to(dtype)
    theirs.weight.data.normal_(1, 0.3)
    theirs.requires_grad_(False)
    ours = nn.ModuleDict({"norm": theirs})
    assert install_norms(ours) == 1
    assert isinstance(ours["norm"], RootMeanSquareNorm)
    return theirs, ours["norm"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
def test_outputs_and_gradients_equal_transformers(dtype: torch.dtype, tolerance: float, size: float) -> None:
    theirs, ours = _pair(dtype)
    x = (torch.randn(5, 7, 48) * size).to(dtype)
    direction = torch.randn(5, 7, 48).to(dtype)
    results = []
    for norm in (theirs, ours):
        leaf = x.clone().requires_grad_(True)
        y = norm(leaf)
        assert y.dtype == dtype
        y.backward(direction)
        assert leaf.grad is not None
        results.append((y.detach().float(), leaf.grad.float()))
    for want, got in zip(*results, strict=True):
        assert float((got - want).norm() / want.norm()) < tolerance


def test_norms_of_another_formula_stay() -> None:
    model = nn.ModuleDict({"one": Qwen3RMSNorm(8), "other": GemmaRMSNorm(8), "plain": nn.LayerNorm(8)})
    assert install_norms(model) == 1
    assert isinstance(model["other"], GemmaRMSNorm)
