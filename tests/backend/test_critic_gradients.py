"""Values and gradients of a critic: equal to transformers, PEFT and autograd, one token at a time, however a batch is cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch

from sparring.backend.datum import Datum, ValueDatum
from sparring.backend.local import LocalBackend
from sparring.backend.local.critic import TorchCritic
from sparring.backend.local.value_head import ValueHead
from sparring.backend.losses import ClippedValue
from sparring.backend.training import Lora
from tests.backend.batches import LORA, conversations, groups, relative
from tests.backend.values import gradient_of, plain_pass, spread_critic, to_learn, trainer_of

SQUARED = ClippedValue(clip=inf)
LOSSES = [ClippedValue(), ClippedValue(clip=0.5), SQUARED]
BATCHES = {"groups": groups(2, 3), "conversations": conversations(1)}
KINDS = {"lora": LORA, "attention": Lora(rank=2, mlp=False), "full": None}


@pytest.fixture
def anyio_backend() -> str:
    """One event loop is enough: what is compared here happens on the engine thread."""
    return "asyncio"


@pytest.fixture(params=[1024, 40], ids=["one-batch", "many-batches"])
async def any_backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LocalBackend]:
    """With a token budget that a call fits into, and with one that a call needs several micro-batches for."""
    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=request.param) as backend:
            yield backend


async def _near(critic: TorchCritic, data: Sequence[Datum], *, away: float, seed: int = 0) -> list[ValueDatum]:
    """Old values so far away from the critic's; returns anywhere."""
    random = np.random.default_rng(seed)
    values = (await critic.forward([ValueDatum.of(datum) for datum in data])).values
    old = [(v + away * random.normal(size=len(v)) * (v != 0)).astype(np.float32) for v in values]
    return to_learn(data, old_values=old, seed=seed)


@pytest.mark.parametrize("away", [0.0, 1.0], ids=["equal", "clipped"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
async def test_values_loss_and_gradient_equal_autograds(
    any_backend: LocalBackend, tiny_model: Path, kind: str, batch: str, away: float
) -> None:
    critic = await any_backend.create_critic(str(tiny_model), lora=KINDS[kind])
    spread_critic(critic)
    state = Path(await critic.save_state("s"))
    data = await _near(critic, BATCHES[batch], away=away)
    for loss in LOSSES:
        want = plain_pass(tiny_model, state, data, loss)
        output = await critic.forward_backward(data, loss)
        for datum, got, value in zip(data, output.values, want.values, strict=True):
            np.testing.assert_allclose(got, value, rtol=1e-4, atol=2e-6)
            assert not got[~datum.mask].any()
        assert output.metrics["loss"] == pytest.approx(want.loss, rel=1e-4)
        clipped = [output.metrics[f"value_clipped_{side}"] for side in ("low", "high")]
        assert all(clipped) == (away > 0 and loss.clip < inf)
        got_gradient = trainer_of(critic).adapter.grad
        assert relative(got_gradient, want.flat(critic)) <= 1e-5
        assert relative(got_gradient[-33:], want.flat(critic)[-33:]) <= 1e-5  # the head's own, which others outweigh
        await critic.discard_gradients()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["lora", "full"])
async def test_a_batch_may_be_split_over_calls(
    any_backend: LocalBackend, tiny_llama: Path, kind: str, batch: str
) -> None:
    critic = await any_backend.create_critic(str(tiny_llama), lora=KINDS[kind])
    spread_critic(critic)
    data = await _near(critic, BATCHES[batch] * 2, away=0.5)
    whole = await critic.forward_backward(data, ClippedValue())
    want = trainer_of(critic).adapter.grad.clone()
    for calls in (3, 8):
        await critic.discard_gradients()
        outputs = [await critic.forward_backward(data[i::calls], ClippedValue()) for i in range(calls)]
        assert relative(trainer_of(critic).adapter.grad, want) <= 1e-5
        for name, total in whole.metrics.items():
            assert sum(output.metrics[name] for output in outputs) == pytest.approx(total, rel=1e-4, abs=1e-6), name


async def test_forward_tells_the_same_and_adds_nothing(backend: LocalBackend, tiny_llama: Path) -> None:
    critic = await backend.create_critic(str(tiny_llama), lora=LORA)
    spread_critic(critic)
    data = to_learn(conversations(1))
    alone = await critic.forward([replace(datum, returns=None, old_values=None) for datum in data])
    scored = await critic.forward(data, ClippedValue())
    assert not trainer_of(critic).adapter.grad.any()
    trained = await critic.forward_backward(data, ClippedValue())
    for one, two, three in zip(alone.values, scored.values, trained.values, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one, three, rtol=1e-5, atol=1e-6)
    assert scored.metrics == pytest.approx(trained.metrics, rel=1e-5)
    assert alone.metrics == pytest.approx({name: scored.metrics[name] for name in ("tokens", "value_sum")})


async def test_weights_scale_gradients_and_a_datum_of_none_adds_none(backend: LocalBackend, tiny_llama: Path) -> None:
    critic = await backend.create_critic(str(tiny_llama), lora=LORA)
    spread_critic(critic)
    first, second = to_learn(groups(2, 1))
    want = await gradient_of(critic, [first], SQUARED)
    assert relative(await gradient_of(critic, [first, second.scaled(0)], SQUARED), want) <= 1e-5
    assert relative(await gradient_of(critic, [first.scaled(0.25)], SQUARED), want / 4) <= 1e-5
    assert not (await gradient_of(critic, [first.scaled(0), second.scaled(0)], SQUARED)).any()


async def test_equal_contexts_are_told_apart_by_what_they_are_to_become(
    backend: LocalBackend, tiny_llama: Path
) -> None:
    """Their states are computed once; each has a return of its own."""
    critic = await backend.create_critic(str(tiny_llama), lora=LORA)
    spread_critic(critic)
    twins = [to_learn(groups(1, 1), seed=seed)[0] for seed in (1, 2)]
    apart = [await gradient_of(critic, [twin], SQUARED) for twin in twins]
    assert relative(apart[0], apart[1]) > 0.1
    assert relative(await gradient_of(critic, twins, SQUARED), apart[0] + apart[1]) <= 1e-5


async def test_a_fresh_head_is_zero_and_learns_first(backend: LocalBackend, tiny_llama: Path) -> None:
    critic = await backend.create_critic(str(tiny_llama), lora=LORA)
    data = to_learn(groups(2, 2))
    output = await critic.forward_backward(data, SQUARED)
    assert not any(value.any() for value in output.values)
    grad = trainer_of(critic).adapter.grad
    assert not grad[:-33].any()
    pulls = [float((datum.weights * -datum.returns)[datum.mask].sum()) for datum in data if datum.returns is not None]
    assert grad[-1].item() == pytest.approx(sum(pulls), rel=1e-4)


@pytest.mark.parametrize("lora", [LORA, None])
async def test_bfloat16_is_near_float32(tiny_llama: Path, tmp_path: Path, lora: Lora | None) -> None:
    found = []
    for dtype in ("float32", "bfloat16"):
        async with LocalBackend(dtype=dtype, cache_dir=tmp_path) as backend:
            critic = await backend.create_critic(str(tiny_llama), lora=lora)
            spread_critic(critic)
            data = to_learn(groups(4, 4))
            output = await critic.forward_backward(data, SQUARED)
            found.append((torch.from_numpy(np.concatenate(output.values)), trainer_of(critic).adapter.grad.clone()))
    (exact, gradient), (rough, rough_gradient) = found
    assert 1e-4 < relative(rough, exact) < 0.05
    assert 1e-4 < relative(rough_gradient, gradient) < 0.05


async def test_the_head_computes_in_fp32(backend: LocalBackend, tiny_llama: Path) -> None:
    critic = await backend.create_critic(str(tiny_llama), lora=LORA)
    trained = trainer_of(critic).adapter
    head = ValueHead(trained)
    trained.master[-33:] = torch.arange(33.0)
    states = torch.ones(2, 32, dtype=torch.bfloat16)
    assert head.values(states).tolist() == [31 * 16 + 32.0] * 2
    back = head.backward(states, torch.tensor([1.0, 2.0**-12]))
    assert back.dtype == torch.bfloat16
    assert back[0].tolist() == list(range(32))
    assert trained.grad[-33:].tolist() == [1 + 2.0**-12] * 33


def test_a_head_needs_its_place() -> None:
    class Nothing:
        tail = 0

    with pytest.raises((AssertionError, TypeError)):
        ValueHead(Nothing())  # type: ignore[arg-type]
