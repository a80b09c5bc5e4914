"""Several models in one pass: the same gradients as one by one, fewer passes, and failures that stay with their model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from sparring.backend.datum import Datum
from sparring.backend.local import LocalBackend
from sparring.backend.local.base import BaseModel
from sparring.backend.local.lora import Adapter
from sparring.backend.local.model import TorchModel
from sparring.backend.local.packing import Rows, plan, stack
from sparring.backend.losses import PPO, CrossEntropy, ImportanceSampling, Loss
from sparring.backend.training import Adam, Lora
from sparring.errors import BackendError, NonFinite, SettingError
from tests.backend.batches import LORA, diverged, gradient, groups, relative, spread, trainer

Call = tuple[TorchModel, Sequence[Datum], Loss]
LORAS: Sequence[Lora | None] = (
    LORA,
    Lora(rank=2, attention=False, unembedding=True),
    Lora(rank=3, alpha=1.0, mlp=False),
)


@pytest.fixture
def anyio_backend() -> str:
    """One event loop is enough: what is compared here happens on the engine thread."""
    return "asyncio"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The rows and lengths [R, L] of every pass for training or scoring from here on."""
    seen: list[tuple[int, ...]] = []
    compute = BaseModel.hidden_states

    def watched(self: BaseModel, batch: Rows, *, train: bool) -> Tensor:
        seen.append(batch.tokens.shape)
        return compute(self, batch, train=train)

    monkeypatch.setattr(BaseModel, "hidden_states", watched)
    return seen


async def _calls(backend: LocalBackend, folder: Path, loras: Sequence[Lora | None]) -> list[Call]:
    losses: list[Loss] = [PPO(), CrossEntropy(), ImportanceSampling(), CrossEntropy()]
    calls: list[Call] = []
    for seed, (lora, loss) in enumerate(zip(loras, losses, strict=False)):
        model = await backend.create_model(str(folder), lora=lora, seed=seed)
        if isinstance(trainer(model).adapter, Adapter):
            spread(model, seed)
        calls.append((model, groups(2, 3, seed=seed), loss))
    return calls


@pytest.mark.parametrize("loras", [LORAS, (LORA, None, LORA, None)])
@pytest.mark.parametrize("budget", [64, 100_000])
async def test_gradients_and_outputs_are_those_of_calls_one_by_one(
    architecture: Path, loras: Sequence[Lora | None], budget: int, tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=budget) as backend:
        calls = await _calls(backend, architecture, loras)
        outputs = await backend.forward_backward(calls)
        if budget > 64 and None not in loras:
            assert len(passes) == 1
        for (model, data, loss), output in zip(calls, outputs, strict=True):
            got = trainer(model).adapter.grad.clone()
            await model.discard_gradients()
            assert relative(got, await gradient(model, data, loss)) < 1e-5
            alone = await model.forward(data, loss)
            assert output.metrics == pytest.approx(alone.metrics, rel=1e-4)
            for one, other in zip(output.logprobs, alone.logprobs, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


async def test_shared_passes_keep_to_the_budget_and_are_fewer(
    tiny_llama: Path, tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=128) as backend:
        first, second = await _calls(backend, tiny_llama, LORAS[:2])
        short = [datum for seed in range(4) for datum in groups(4, 1, seed=seed)]
        calls = [(first[0], groups(6, 4), CrossEntropy()), (second[0], short, CrossEntropy())]
        await backend.forward_backward(calls)
        together = list(passes)
        assert all(rows * length <= 128 for rows, length in together if rows > 1)
        passes.clear()
        for model, data, loss in calls:
            await model.forward_backward(data, loss)
        assert len(together) < 2 * len(passes)
        assert any(rows > 1 for rows, _ in together)


async def test_data_without_a_gradient_are_scored_beside_others(backend: LocalBackend, tiny_llama: Path) -> None:
    calls = await _calls(backend, tiny_llama, LORAS[:2])
    still = [replace(datum, advantages=np.zeros_like(datum.advantages)) for datum in calls[0][1]]
    mixed = [*still[:3], *calls[0][1][3:]]
    outputs = await backend.forward_backward([(calls[0][0], mixed, PPO()), (calls[1][0], calls[1][1], PPO())])
    for model, data, output in ((calls[0][0], mixed, outputs[0]), (calls[1][0], calls[1][1], outputs[1])):
        got = trainer(model).adapter.grad.clone()
        await model.discard_gradients()
        assert relative(got, await gradient(model, data, PPO())) < 1e-5
        assert output.metrics["tokens"] == sum(int(datum.mask.sum()) for datum in data)


async def test_a_failure_breaks_its_own_model_alone(backend: LocalBackend, tiny_llama: Path) -> None:
    first, second, third = await _calls(backend, tiny_llama, LORAS)
    failing = (second[0], diverged(), ImportanceSampling())
    with pytest.raises(NonFinite, match=r"the gradient of data \[1\] is not finite"):
        await backend.forward_backward([first, failing, third])
    for model, data, loss in (first, third):
        got = trainer(model).adapter.grad.clone()
        await model.discard_gradients()
        assert relative(got, await gradient(model, data, loss)) < 1e-5
        await model.forward_backward(data, loss)
        await model.optim_step(Adam())
    with pytest.raises(BackendError, match=r"optim_step refused: .*not finite.*discard_gradients\(\)"):
        await second[0].optim_step(Adam())
    await second[0].discard_gradients()
    await second[0].forward_backward(second[1], second[2])
    await second[0].optim_step(Adam())


async def test_a_failure_of_the_pass_breaks_all(
    backend: LocalBackend, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = await _calls(backend, tiny_llama, LORAS[:2])

    def fail(self: BaseModel, batch: Rows, *, train: bool) -> Tensor:
        raise MemoryError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(BaseModel, "hidden_states", fail)
        with pytest.raises(BackendError, match="forward_backward failed: planted"):
            await backend.forward_backward(calls)
    for model, _, _ in calls:
        with pytest.raises(BackendError, match="optim_step refused"):
            await model.optim_step(Adam())
        await model.discard_gradients()
    await backend.forward_backward(calls)


async def test_what_cannot_go_together_is_refused(backend: LocalBackend, tiny_llama: Path, tiny_qwen3: Path) -> None:
    (first,) = await _calls(backend, tiny_llama, LORAS[:1])
    (other,) = await _calls(backend, tiny_qwen3, LORAS[:1])
    with pytest.raises(SettingError, match=r"models \['.*llama', '.*qwen3'\] together: they must be of one base"):
        backend.forward_backward([first, other])
    with pytest.raises(SettingError, match="of 2 calls together: each model may have one"):
        backend.forward_backward([first, first])
    with pytest.raises(SettingError, match=r"models \[\] together"):
        backend.forward_backward([])
    with pytest.raises(SettingError, match="without data"):
        backend.forward_backward([(first[0], [], PPO())])
    await backend.forward_backward([first])


def test_stacked_rows_keep_what_each_sees() -> None:
    parts = [plan(groups(2, size, seed=size), token_budget=10_000)[0].rows for size in (1, 4)]
    assert [part.plain for part in parts] == [True, False]
    both = stack(parts)
    assert not both.plain
    start = 0
    for part in parts:
        rows, length = part.tokens.shape
        itself = np.arange(both.tokens.shape[1]) + 1
        for name, padding in (("tokens", 0 * itself), ("positions", 0 * itself), ("end", itself)):
            field = getattr(both, name)[start : start + rows]
            assert np.array_equal(field[:, :length], getattr(part, name))
            assert (field[:, length:] == padding[length:]).all()
        start += rows
    assert start == len(both.tokens)
    assert stack(parts[:1]) is parts[0]
