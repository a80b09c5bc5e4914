"""Dropout before A: the same masks for the same seed, step and micro-batch; gradients through them; none in sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from sparring.backend.datum import Datum
from sparring.backend.local import LocalBackend
from sparring.backend.local.dropout import Dropout
from sparring.backend.local.linear import LoraLinear
from sparring.backend.local.lora import Adapter, AdapterCall, Target
from sparring.backend.local.readout import Readout
from sparring.backend.losses import CrossEntropy, Custom
from sparring.backend.sampling import SamplingParams
from sparring.backend.training import Adam, Lora
from sparring.errors import SettingError
from tests.backend.batches import LORA, conversations, gradient, groups, lora_of, relative, spread

LORA_DROPOUT = replace(LORA, unembedding=True, dropout=0.3)
CPU = torch.device("cpu")


def _masks(dropout: Dropout, step: int, micro_batch: int, count: int = 3) -> list[torch.Tensor]:
    dropout.begin(step, micro_batch)
    masks = [dropout.mask(torch.zeros(40, 50)) for _ in range(count)]
    return [mask for mask in masks if mask is not None]


def test_masks_are_a_function_of_seed_step_micro_batch_and_layer() -> None:
    one, again = (_masks(Dropout(0.25, 3, CPU), 5, 2) for _ in range(2))
    assert len(one) == 3
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], one[1])
    for seed, step, number in ((4, 5, 2), (3, 6, 2), (3, 5, 1), (3, 2, 5)):
        assert not torch.equal(one[0], _masks(Dropout(0.25, seed, CPU), step, number)[0])


def test_a_mask_leaves_out_its_share_and_keeps_the_mean() -> None:
    (mask,) = _masks(Dropout(0.25, 0, CPU), 0, 0, count=1)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert Dropout(0.25, 0, CPU).mask(torch.zeros(2, 2)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_and_its_gradients_are_those_of_masked_inputs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    lora = Lora(rank=3, alpha=6.0, dropout=0.5)
    target = Target(name="x", inputs=6, outputs=5, part="mlp")
    adapter = Adapter([target], lora, seed=1, dtype=dtype, device=CPU)
    adapter.master.normal_()
    adapter.refresh()
    call = AdapterCall()
    layer = LoraLinear(torch.nn.Linear(6, 5, dtype=dtype), call, 0)
    x = torch.randn(2, 4, 6, dtype=dtype, requires_grad=True)
    slope = torch.randn(2, 4, 5, dtype=dtype)
    dropout = adapter.weights.dropout
    assert dropout is not None
    dropout.begin(7, 1)
    with call.rows([(adapter.weights, 2)]):
        y = layer(x)
    y.backward(slope)
    (mask,) = _masks_like(lora, x.detach().flatten(0, 1), step=7, micro_batch=1)
    plain = x.detach().float().requires_grad_(True)
    a, b = (w[0].detach().float().requires_grad_(True) for w in (adapter.weights.a, adapter.weights.b))
    assert layer.bias is not None
    masked = plain * mask.view(x.shape).float()
    want = linear(plain, layer.weight.float(), layer.bias.float()) + 2.0 * linear(linear(masked, a), b)
    want.backward(slope.float())
    close = 1e-5 if dtype == torch.float32 else 2e-2
    assert plain.grad is not None and a.grad is not None and b.grad is not None and x.grad is not None
    assert relative(y.detach().float(), want.detach()) < close
    assert relative(x.grad.float(), plain.grad) < close
    assert relative(adapter.weights.grad_a[0], a.grad) < close
    assert relative(adapter.weights.grad_b[0], b.grad) < close


def _masks_like(lora: Lora, *inputs: torch.Tensor, step: int, micro_batch: int) -> list[torch.Tensor]:
    """What an adapter made with seed 1 leaves out of these inputs, in this order."""
    dropout = Dropout(lora.dropout, 1, CPU)
    dropout.begin(step, micro_batch)
    return [mask for mask in (dropout.mask(x) for x in inputs) if mask is not None]


def test_the_output_layers_inputs_are_masked_too() -> None:
    torch.manual_seed(0)
    lora = Lora(rank=3, alpha=6.0, dropout=0.5)
    adapter = Adapter([Target(name="x", inputs=6, outputs=9, part="unembedding")], replace(lora, unembedding=True),
                      seed=1, dtype=torch.float32, device=CPU)  # fmt: skip
    readout = Readout(torch.randn(9, 6), adapter.weights)
    hidden = torch.randn(4, 6, requires_grad=True)
    assert adapter.weights.dropout is not None
    adapter.weights.dropout.begin(0, 0)
    states = readout.states(hidden)
    slope = torch.randn(states.shape)
    states.backward(slope)
    (mask,) = _masks_like(lora, hidden.detach(), step=0, micro_batch=0)
    plain, a = hidden.detach().requires_grad_(True), adapter.weights.a[0].clone().requires_grad_(True)
    want = torch.cat([plain, 2.0 * (plain * mask) @ a.T], dim=1)
    want.backward(slope)
    assert hidden.grad is not None and plain.grad is not None and a.grad is not None
    assert torch.allclose(states, want)
    assert relative(hidden.grad, plain.grad) < 1e-6
    assert relative(adapter.weights.grad_a[0], a.grad) < 1e-6


async def test_two_runs_take_the_same_steps_and_another_seed_takes_others(tiny_llama: Path, tmp_path: Path) -> None:
    async def run(seed: int, lora: Lora, data: Sequence[Datum]) -> str:
        async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=64) as backend:
            model = await backend.create_model(str(tiny_llama), lora=replace(lora, seed=seed))
            for _ in range(3):
                model.forward_backward(data, CrossEntropy())
                await model.optim_step(Adam(learning_rate=1e-2))
            return await model.digest()

    with anyio.fail_after(120):
        data = conversations() + groups()
        one = await run(0, LORA_DROPOUT, data)
        assert one == await run(0, LORA_DROPOUT, data)
        assert one != await run(0, replace(LORA_DROPOUT, dropout=0.0), data)
        assert one != await run(1, LORA_DROPOUT, data)


async def test_steps_and_micro_batches_leave_out_other_inputs(backend: LocalBackend, tiny_llama: Path) -> None:
    model = await backend.create_model(str(tiny_llama), lora=LORA_DROPOUT)
    spread(model)
    data = groups()
    first = await gradient(model, data, CrossEntropy())
    assert torch.equal(first, await gradient(model, data, CrossEntropy()))  # discarded: the step begins anew
    model.forward_backward(data, CrossEntropy())
    await model.forward_backward(data, CrossEntropy())
    second = lora_of(model).grad - first
    assert relative(second, first) > 0.05
    model.discard_gradients()
    await model.forward_backward(data, CrossEntropy())
    await model.optim_step(Adam(learning_rate=0.0))
    assert relative(await gradient(model, data, CrossEntropy()), first) > 0.05


async def test_sampling_and_forward_leave_nothing_out(backend: LocalBackend, tiny_llama: Path, tmp_path: Path) -> None:
    with_dropout = await backend.create_model(str(tiny_llama), lora=LORA_DROPOUT)
    without = await backend.create_model(str(tiny_llama), lora=replace(LORA_DROPOUT, dropout=0.0))
    data, prompt = groups(), np.arange(3, 12, dtype=np.int32)
    for model in (with_dropout, without):
        spread(model)
    await with_dropout.forward_backward(data, CrossEntropy())
    one, two = [await model.forward(data, CrossEntropy()) for model in (with_dropout, without)]
    assert all(np.array_equal(a, b) for a, b in zip(one.logprobs, two.logprobs, strict=True))
    params = SamplingParams(max_tokens=8, seed=1)
    (drawn,), (plain,) = [await (await m.sampler()).sample(prompt, params) for m in (with_dropout, without)]
    assert np.array_equal(drawn.logprobs, plain.logprobs)
    await with_dropout.save_state(str(tmp_path / "state"))
    again = await backend.create_from_state(str(tmp_path / "state"))
    assert again.info.lora is not None and again.info.lora.dropout == 0.3
    assert await again.digest() == await with_dropout.digest()
    await with_dropout.export(str(tmp_path / "peft"))
    imported = await backend.create_from_state(str(tmp_path / "peft"), optimizer=False)
    assert imported.info.lora is not None and imported.info.lora.dropout == 0.3


async def test_a_custom_loss_in_two_passes_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    def loss(data: Sequence[Datum], logprobs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        return -torch.stack([lp.sum() for lp in logprobs]).sum(), {}

    async with LocalBackend(cache_dir=tmp_path, token_budget=16) as backend:
        model = await backend.create_model(str(tiny_llama), lora=LORA_DROPOUT)
        with pytest.raises(
            SettingError, match=r"dropout=0.3.*would leave out different.*set dropout=0, or raise token_b"
        ):
            await model.forward_backward(groups(), Custom(function=loss))
        await model.discard_gradients()
        await model.forward_backward(groups(1, 1), Custom(function=loss))


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_that_are_none_are_refused(rate: float) -> None:
    with pytest.raises(SettingError, match=r"lora.dropout=.*: must be at least 0 and less than 1"):
        Lora(dropout=rate)
