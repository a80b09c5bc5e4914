"""Every architecture: what is computed here equals transformers and PEFT; what cannot be exact is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import Gemma2Config, Gemma3Config, Gemma3TextConfig, LlamaConfig, PreTrainedConfig, Qwen3NextConfig

from sparring.backend.local import LocalBackend, row_attention
from sparring.backend.local.checkpoint import adapter_files, write_folder
from sparring.backend.local.supported import layer_windows, part_of, refuse_unsupported
from sparring.backend.losses import PPO, CrossEntropy
from sparring.backend.sampling import SamplingParams
from sparring.errors import UnsupportedError
from tests.backend.architectures import SIZES, WINDOW, assert_equals_peft, assert_same_logprobs, full_pass, plain
from tests.backend.batches import LORA, conversations, gradient, groups, lora_of, plain_loss, relative, spread


@pytest.fixture
def anyio_backend() -> str:
    """One event loop is enough: what is compared here happens on the engine thread."""
    return "asyncio"


async def test_logprobs_equal_transformers(backend: LocalBackend, architecture: Path) -> None:
    model = await backend.create_model(str(architecture), lora=LORA)
    data = groups()
    assert max(len(datum.tokens) for datum in data) > 2 * WINDOW
    output = await model.forward(data, CrossEntropy())
    assert_same_logprobs(data, output, plain(architecture), atol=2e-5)


async def test_adapters_equal_pefts(backend: LocalBackend, architecture: Path, tmp_path: Path) -> None:
    """Outputs, and the gradient of every A and B, in calls that share prefixes and pack rows."""
    model = await backend.create_model(str(architecture), lora=LORA)
    spread(model)
    adapter, data = lora_of(model), groups(2, 3)
    write_folder(tmp_path / "adapter", adapter_files(adapter, "tiny"))
    peft = PeftModel.from_pretrained(plain(architecture), str(tmp_path / "adapter"), is_trainable=True)
    assert_equals_peft(adapter, peft, data, await model.forward_backward(data, CrossEntropy()))


@pytest.mark.parametrize("attention", ["products", "blocks", "torch"])
async def test_shared_prefixes_give_the_gradient_of_data_apart(
    backend: LocalBackend, architecture: Path, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await backend.create_model(str(architecture), lora=LORA)
    spread(model)
    data = groups() + conversations()
    want, _ = plain_loss(model, data, PPO())
    if attention == "torch":
        monkeypatch.setattr(row_attention, "LONGEST", 0)
    if attention == "blocks":
        monkeypatch.setattr(row_attention, "BLOCK", 5)
    assert relative(await gradient(model, data, PPO()), want) <= 1e-5


async def test_sampled_logprobs_equal_a_full_pass(backend: LocalBackend, architecture: Path, tmp_path: Path) -> None:
    """Of every token drawn with an adapter, prompts longer and shorter than a window, against PEFT."""
    model = await backend.create_model(str(architecture), lora=LORA)
    spread(model)
    write_folder(tmp_path / "adapter", adapter_files(lora_of(model), "tiny"))
    peft = PeftModel.from_pretrained(plain(architecture), str(tmp_path / "adapter"))
    sampler = await model.sampler()
    for length in (2, 3 * WINDOW):
        prompt = np.random.default_rng(length).integers(3, 320, length).astype(np.int32)
        params = SamplingParams(max_tokens=4 * WINDOW, temperature=0.8, seed=length)
        for drawn in await sampler.sample(prompt, params, n=3):
            whole = np.concatenate([prompt, drawn.tokens])
            with torch.no_grad():
                want = full_pass(peft, whole, temperature=0.8)[length - 1 :]
                unheated = full_pass(peft, whole)
            np.testing.assert_allclose(drawn.logprobs, want, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose((await sampler.logprobs(whole))[1:], unheated, rtol=1e-4, atol=1e-4)


async def test_drawing_many_at_once_changes_no_logprob(architecture: Path, tmp_path: Path) -> None:
    """In the mode that is not deterministic, where rows of all lengths share a pass."""
    async with LocalBackend(dtype="float32", cache_dir=tmp_path) as backend:
        model = await backend.create_model(str(architecture), lora=LORA)
        sampler = await model.sampler()
        prompt = np.arange(3, 3 + 2 * WINDOW, dtype=np.int32)
        for one in await sampler.sample(prompt, SamplingParams(max_tokens=3 * WINDOW, seed=1), n=4):
            scored = await sampler.logprobs(np.concatenate([prompt, one.tokens]))
            np.testing.assert_allclose(one.logprobs, scored[len(prompt) :], rtol=1e-4, atol=1e-4)


_CAPPED: dict[str, Any] = {**SIZES, "head_dim": 8}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (Gemma2Config(**_CAPPED, attn_logit_softcapping=None), "final_logit_softcapping=30.0"),
        (Gemma2Config(**_CAPPED, final_logit_softcapping=None), "attn_logit_softcapping=50.0"),
        (Gemma3TextConfig(**_CAPPED, use_bidirectional_attention=True), "use_bidirectional_attention=True"),
        (Gemma3Config(), "'gemma3' is more than a text model"),
    ],
)
def test_what_changes_scores_elsewhere_is_refused(config: PreTrainedConfig, named: str) -> None:
    with pytest.raises(UnsupportedError, match=f"model 'm': .*{named}"):
        refuse_unsupported(config, "m")


def test_a_kind_of_attention_that_is_not_known_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"model 'm': layers of type \['linear_attention'\]"):
        layer_windows(Qwen3NextConfig(num_hidden_layers=4), "m")


def test_windows_are_those_of_the_layers() -> None:
    assert layer_windows(LlamaConfig(num_hidden_layers=3), "m") == (None, None, None)
    gemma = Gemma3TextConfig(num_hidden_layers=6, sliding_window=7)
    assert layer_windows(gemma, "m") == (7, 7, 7, 7, 7, None)


def test_a_layer_that_is_neither_attention_nor_mlp_is_refused() -> None:
    assert part_of("layers.0.self_attn.q_proj", "m") == "attention"
    assert part_of("layers.0.mlp.up_proj", "m") == "mlp"
    with pytest.raises(UnsupportedError, match=r"model 'm': its layer 'layers.0.mlp.router' is none of q_proj"):
        part_of("layers.0.mlp.router", "m")
