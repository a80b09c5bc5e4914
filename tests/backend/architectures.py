"""Tiny random models of every architecture that is computed exactly, as folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from sparring.backend.datum import Datum
from sparring.backend.local.lora import Adapter
from sparring.backend.training import ForwardOutput
from tests.backend.batches import relative

SIZES: Mapping[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""As small as grouped-query attention gets; the vocabulary is the tiny tokenizer's."""

WINDOW = 5
_NO_CAPS: Mapping[str, Any] = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
_MIXED: Mapping[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
ARCHITECTURES: Mapping[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-untied": LlamaConfig(**SIZES, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "mistral-window": MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2-window": Qwen2Config(**SIZES, **_MIXED, use_sliding_window=True, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
    "qwen3-untied": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
    "gemma2": Gemma2Config(**SIZES, **_MIXED, **_NO_CAPS, head_dim=8, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(**SIZES, **_MIXED, head_dim=8, query_pre_attn_scalar=16),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layers=[1, 0], tie_word_embeddings=True),
}


def tiny(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights, of fp32."""
    model = AutoModelForCausalLM.from_config(config)
    assert isinstance(model, PreTrainedModel)
    model.float()
    return model


def plain(folder: Path) -> PreTrainedModel:
    """The model of a folder in transformers, with its own attention written out."""
    model = AutoModelForCausalLM.from_pretrained(str(folder), attn_implementation="eager")
    assert isinstance(model, PreTrainedModel)
    model.float().eval()
    return model


def full_pass(model: torch.nn.Module, tokens: np.ndarray, *, temperature: float = 1.0) -> torch.Tensor:
    """Log-prob of every token but the first, f32[T - 1], by one pass of a transformers or PEFT model."""
    ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
    scores = torch.log_softmax(model(input_ids=ids).logits[0, :-1] / temperature, dim=-1)
    return scores.gather(1, ids[0, 1:, None])[:, 0]


def assert_same_logprobs(data: Sequence[Datum], output: ForwardOutput, other: torch.nn.Module, *, atol: float) -> None:
    """The scored tokens' log-probs are those of a full pass of a transformers or PEFT model."""
    with torch.no_grad():
        for datum, got in zip(data, output.logprobs, strict=True):
            want = full_pass(other, datum.tokens)
            np.testing.assert_allclose(got[datum.mask], want[datum.mask[1:]], rtol=1e-4, atol=atol)


def assert_equals_peft(
    adapter: Adapter, peft: torch.nn.Module, data: Sequence[Datum], output: ForwardOutput, temperature: float = 1.0
) -> None:
    """Log-probs, and the gradient of every A and B, of the scored tokens' summed log-probs."""
    for datum, got in zip(data, output.logprobs, strict=True):
        want = full_pass(peft, datum.tokens, temperature=temperature)
        np.testing.assert_allclose(got[datum.mask], want.detach()[datum.mask[1:]], rtol=1e-4, atol=2e-5)
        (-want[torch.from_numpy(datum.mask[1:])].sum()).backward()
    theirs = {name: p.grad for name, p in peft.named_parameters() if p.grad is not None}
    assert len(theirs) == 2 * len(adapter.targets)
    for target, a, b in zip(adapter.targets, adapter.weights.grad_a, adapter.weights.grad_b, strict=True):
        for letter, grad in (("A", a), ("B", b)):
            assert relative(grad, theirs[f"base_model.model.{target.name}.lora_{letter}.default.weight"]) < 1e-5
