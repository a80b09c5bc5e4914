"""The reference: a base as it is, whatever is trained on it; equal to transformers; on asyncio and trio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparring.backend import ReferenceClient
from sparring.backend.datum import SoftTargets
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.losses import PPO, CrossEntropy
from sparring.backend.totals import rates
from sparring.backend.training import Adam, Lora
from sparring.errors import BackendError, NonFinite, SettingError, UnsupportedError
from tests.backend.architectures import assert_same_logprobs, full_pass, plain
from tests.backend.batches import LORA, conversations, diverged, groups, spread, trainer


@pytest.fixture
async def reference(backend: LocalBackend, tiny_llama: Path) -> ReferenceClient:
    return await backend.reference(str(tiny_llama))


async def test_its_log_probs_are_transformers(backend: LocalBackend, architecture: Path) -> None:
    reference = await backend.reference(str(architecture))
    data = groups(2, 3)
    output = await reference.forward(data)
    assert_same_logprobs(data, output, plain(architecture), atol=2e-5)
    assert not any(logprobs[~datum.mask].any() for logprobs, datum in zip(output.logprobs, data, strict=True))


async def test_shared_beginnings_and_temperatures(reference: ReferenceClient, tiny_llama: Path) -> None:
    data = conversations(1)
    output, theirs = await reference.forward(data), plain(tiny_llama)
    for datum, got in zip(data, output.logprobs, strict=True):
        want = full_pass(theirs, datum.tokens, temperature=datum.temperature).detach().numpy()
        np.testing.assert_allclose(got[datum.mask], want[datum.mask[1:]], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("lora", [LORA, Lora(rank=2, unembedding=True), None], ids=["lora", "head", "full"])
async def test_what_is_trained_on_its_base_does_not_touch_it(
    backend: LocalBackend, reference: ReferenceClient, tiny_llama: Path, lora: Lora | None
) -> None:
    policy = await backend.create_model(str(tiny_llama), lora=lora)
    data = groups(2, 2)
    before, same = await reference.forward(data), await policy.forward(data, CrossEntropy())
    for mine, theirs in zip(before.logprobs, same.logprobs, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)  # a fresh policy is its reference
    for _ in range(2):
        policy.forward_backward(data, CrossEntropy())
        await policy.optim_step(Adam(learning_rate=0.05))
    after, moved = await reference.forward(data), await policy.forward(data, CrossEntropy())
    for mine, once in zip(after.logprobs, before.logprobs, strict=True):
        np.testing.assert_array_equal(mine, once)
    assert max(np.abs(a - b).max() for a, b in zip(after.logprobs, moved.logprobs, strict=True)) > 0.1
    assert_same_logprobs(data, after, plain(tiny_llama), atol=2e-5)


async def test_a_call_between_two_of_a_policy_takes_nothing_from_its_gradient(
    backend: LocalBackend, reference: ReferenceClient, model: TorchModel
) -> None:
    spread(model)
    await model.forward_backward(groups(), CrossEntropy())
    grad, digest = trainer(model).adapter.grad.clone(), await model.digest()
    await reference.forward(groups())
    assert grad.equal(trainer(model).adapter.grad)
    assert grad.any()
    assert await model.digest() == digest
    parameters = trainer(model).base.named_parameters.values()
    assert not any(p.requires_grad or p.grad is not None for p in parameters)


async def test_another_base_may_be_the_reference(backend: LocalBackend, model: TorchModel, tiny_qwen3: Path) -> None:
    other = await backend.reference(str(tiny_qwen3))
    assert (other.info.model, other.info.architecture) == (str(tiny_qwen3), "Qwen3ForCausalLM")
    assert other.info.fingerprint != model.info.fingerprint
    data = groups(1, 3)
    assert_same_logprobs(data, await other.forward(data), plain(tiny_qwen3), atol=2e-5)


async def test_metrics_losses_and_entropy_are_those_of_a_fresh_policy(
    reference: ReferenceClient, model: TorchModel
) -> None:
    data = groups()
    soft = SoftTargets(
        tokens=np.full((len(data[0].tokens), 2), 7, np.int32), weights=np.full((len(data[0].tokens), 2), 0.5, "f4")
    )
    for batch, loss in ((data, PPO()), (data, CrossEntropy()), ([replace(data[0], soft_targets=soft)], CrossEntropy())):
        mine = await reference.forward(batch, loss, entropy=True)
        theirs = await model.forward(batch, loss, entropy=True)
        assert mine.metrics == pytest.approx(theirs.metrics, rel=1e-5)
    assert rates(mine.metrics)["entropy_exact"] > 0


async def test_info_has_nothing_trained(backend: LocalBackend, reference: ReferenceClient, model: TorchModel) -> None:
    assert reference.info == replace(model.info, trained_parameters=0, lora=None)
    assert backend.capabilities().references


async def test_bad_data_are_refused(reference: ReferenceClient) -> None:
    (datum,) = groups(1, 1)
    with pytest.raises(SettingError, match="without data"):
        reference.forward([])
    with pytest.raises(SettingError, match="datum 1 holds token 320"):
        reference.forward([datum, replace(datum, tokens=np.full_like(datum.tokens, 320))])
    with pytest.raises(SettingError, match="datum 0 has clip_low, which CrossEntropy"):
        reference.forward([replace(datum, clip_low=np.ones(len(datum.tokens), np.float32))])
    with pytest.raises(UnsupportedError, match="loss 'kl'"):
        reference.forward([datum], "kl")  # type: ignore[arg-type]
    soft = SoftTargets(
        tokens=np.full((len(datum.tokens), 1), -2, np.int32), weights=np.ones((len(datum.tokens), 1), "f4")
    )
    with pytest.raises(SettingError, match="datum 0 has soft target -2"):
        reference.forward([replace(datum, soft_targets=soft)])
    await reference.forward([datum])


async def test_a_failure_is_awaited_or_raised_by_the_next_call(
    backend: LocalBackend, reference: ReferenceClient, model: TorchModel
) -> None:
    with pytest.raises(NonFinite, match=r"the gradient of data \[1\] is not finite"):
        await reference.forward(diverged(), PPO())
    reference.forward(diverged(), PPO())
    await model.digest()
    with pytest.raises(NonFinite, match=r"data \[1\]"):
        reference.forward(groups())
    await reference.forward(groups())


async def test_an_unloaded_reference_refuses_and_the_base_stays(
    backend: LocalBackend, reference: ReferenceClient, model: TorchModel
) -> None:
    await reference.unload()
    for call in (lambda: reference.forward(groups()), reference.unload):
        with pytest.raises(BackendError, match="was unloaded"):
            call()
    await model.forward(groups(), CrossEntropy())
    again = await backend.reference(reference.info.model)
    assert (await again.forward(groups())).metrics["tokens"] > 0


async def test_what_is_no_model_is_refused(backend: LocalBackend) -> None:
    for create in (backend.reference, backend.create_critic):
        with pytest.raises(SettingError, match="no such folder"):
            await create("./nowhere")
