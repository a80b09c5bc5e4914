"""The training client's mathematics on tiny models: gradients, log-probs, optimizer steps, digests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch

from sparring.backend.datum import token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.losses import PPO, CrossEntropy, ImportanceSampling, Loss
from sparring.backend.training import Adam
from tests.backend.batches import LORA, conversations, gradient, groups, lora_of, plain_loss, relative, spread, trainer


@pytest.mark.parametrize("loss", [CrossEntropy(), ImportanceSampling(), PPO()])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_gradients_and_logprobs_equal_the_plain_way(
    backend: LocalBackend, tiny_model: Path, loss: Loss, temperature: float
) -> None:
    """Prompts shared, micro-batches packed, chunks of the head: against one datum at a time with full logits."""
    model = await backend.create_model(str(tiny_model), lora=LORA)
    spread(model)
    data = groups(temperature=temperature)
    want, want_logprobs = plain_loss(model, data, loss)
    output = await model.forward_backward(data, loss)
    assert relative(lora_of(model).grad, want) < 1e-5
    for got, lp in zip(output.logprobs, want_logprobs, strict=True):
        np.testing.assert_allclose(got, lp, rtol=1e-4, atol=2e-5)
    assert output.metrics["tokens"] == sum(int(datum.mask.sum()) for datum in data)


@pytest.mark.parametrize("budget", [32, 100_000])
async def test_what_conversations_share_is_computed_once_and_trained_by_all(
    tiny_model: Path, tmp_path: Path, budget: int
) -> None:
    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=budget) as backend:
            model = await backend.create_model(str(tiny_model), lora=replace(LORA, unembedding=True))
            spread(model)
            data = conversations()
            apart = [await model.forward_backward([datum], PPO(), entropy=True) for datum in data]
            want = lora_of(model).grad.clone()
            await model.discard_gradients()
            output = await model.forward_backward(data, PPO(), entropy=True)
            assert relative(lora_of(model).grad, want) < 1e-5
            for got, one in zip(output.logprobs, apart, strict=True):
                np.testing.assert_allclose(got, one.logprobs[0], rtol=1e-4, atol=2e-5)
            for name in ("entropy_sum", "kl_k3_sum", "loss"):
                assert output.metrics[name] == pytest.approx(sum(one.metrics[name] for one in apart), rel=1e-5)


@pytest.mark.parametrize("budget", [16, 64, 100_000])
async def test_micro_batches_change_nothing(tiny_llama: Path, tmp_path: Path, budget: int) -> None:
    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=budget) as backend:
            model = await backend.create_model(str(tiny_llama), lora=LORA)
            spread(model)
            data = groups()
            want, _ = plain_loss(model, data, PPO())
            assert relative(await gradient(model, data, PPO()), want) < 1e-5


@pytest.mark.parametrize("calls", [3, 8])
async def test_a_step_split_into_calls_is_the_same_step(model: TorchModel, calls: int) -> None:
    spread(model)
    data = token_mean(groups(4, 6))
    whole = await gradient(model, data, ImportanceSampling())
    for part in np.array_split(np.arange(len(data)), calls):
        model.forward_backward([data[i] for i in part], ImportanceSampling())
    await model.digest()
    assert relative(lora_of(model).grad, whole) < 1e-5


@pytest.mark.parametrize("layers", ["shared", "apart"])
async def test_long_rows_take_torchs_attention(model: TorchModel, layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spread(model)
    data = groups(2, 5) if layers == "shared" else groups(10, 1)
    want, _ = plain_loss(model, data, PPO())
    monkeypatch.setattr("sparring.backend.local.row_attention.LONGEST", 0)
    assert relative(await gradient(model, data, PPO()), want) < 1e-5


async def test_forward_is_forward_backward_without_the_gradient(model: TorchModel) -> None:
    spread(model)
    data = groups()
    one, two = await model.forward(data, PPO()), await model.forward_backward(data, PPO())
    assert one.metrics == two.metrics
    assert all(np.array_equal(a, b) for a, b in zip(one.logprobs, two.logprobs, strict=True))
    await model.discard_gradients()
    await model.forward(data, PPO())
    assert lora_of(model).grad.count_nonzero() == 0


async def test_steps_equal_torchs_adamw(model: TorchModel) -> None:
    adam = Adam(learning_rate=1e-2, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, grad_clip_norm=0.5)
    adapter = lora_of(model)
    theirs = torch.nn.Parameter(adapter.master.clone())
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    for seed in range(4):
        await model.forward_backward(token_mean(groups(seed=seed)), CrossEntropy())
        theirs.grad = adapter.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_([theirs], 0.5)
        optimizer.step()
        output = await model.optim_step(adam)
        assert output.metrics["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
        assert output.metrics["gradient_norm"] > 0.5
        torch.testing.assert_close(adapter.master, theirs.detach(), rtol=1e-5, atol=1e-7)
        assert torch.equal(adapter.weights.a[0], adapter.master_a[0])
    assert adapter.grad.count_nonzero() == 0


async def test_no_clipping_when_it_is_off(model: TorchModel) -> None:
    await model.forward_backward(groups(), CrossEntropy())
    before = lora_of(model).grad.clone()
    await model.optim_step(Adam(grad_clip_norm=0.0, beta1=0.0))
    torch.testing.assert_close(trainer(model).mean, before)


async def test_training_lowers_the_loss(model: TorchModel) -> None:
    data = token_mean(groups())
    losses = []
    for _ in range(20):
        output = model.forward_backward(data, CrossEntropy())
        model.optim_step(Adam(learning_rate=1e-2))
        losses.append((await output).metrics["loss"])
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("budget", [32, 4096])
async def test_equal_calls_give_equal_digests(tiny_llama: Path, tmp_path: Path, budget: int) -> None:
    digests = []
    for seed in (0, 0, 1):
        with anyio.fail_after(120):
            async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=budget) as backend:
                model = await backend.create_model(str(tiny_llama), lora=LORA, seed=seed)
                for step in range(3):
                    model.forward_backward(token_mean(groups(seed=step)), PPO())
                    model.optim_step(Adam(learning_rate=1e-3))
                digests.append(await model.digest())
    assert digests[0] == digests[1] != digests[2]


async def test_operations_run_in_the_order_of_the_calls(model: TorchModel) -> None:
    data = token_mean(groups())
    before = model.digest()
    model.forward_backward(data, CrossEntropy())
    middle = model.digest()
    model.optim_step(Adam())
    after = model.digest()
    assert await before == await middle != await after
