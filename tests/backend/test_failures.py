"""What a training client refuses, and what a failure leaves behind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sparring.backend.datum import Datum
from sparring.backend.local.model import TorchModel
from sparring.backend.local.packing import MicroBatch
from sparring.backend.local.scorer import Scorer
from sparring.backend.losses import PPO, CrossEntropy, ImportanceSampling
from sparring.backend.training import Adam
from sparring.errors import BackendError, NonFinite, SettingError, UnsupportedError
from tests.backend.batches import diverged, groups, lora_of

BAD_DATA: list[tuple[Callable[[], list[Datum]], str]] = [
    (list, "without data"),
    (lambda: [*groups(1, 1), _with_token(320)], r"datum 1 holds token 320; this model's are 0 to 319"),
    (lambda: [_with_token(-1)], "datum 0 holds token -1"),
    (lambda: [_with_token(5, length=257)], "datum 0 has 257 tokens; the model's context holds 256"),
]


def _with_token(token: int, length: int = 6) -> Datum:
    tokens = np.full(length, token, np.int32)
    mask, zeros = np.arange(length) == 3, np.zeros(length, np.float32)
    return Datum(tokens=tokens, mask=mask, logprobs=zeros, advantages=zeros, weights=zeros)


@pytest.mark.parametrize(("make", "message"), BAD_DATA)
async def test_bad_data_are_refused_and_touch_nothing(
    model: TorchModel, make: Callable[[], list[Datum]], message: str
) -> None:
    await model.forward_backward(groups(), CrossEntropy())
    before, grad = await model.digest(), lora_of(model).grad.clone()
    for call in (model.forward, model.forward_backward):
        with pytest.raises(SettingError, match=message):
            call(make(), CrossEntropy())
    assert await model.digest() == before
    assert torch.equal(lora_of(model).grad, grad)
    await model.optim_step(Adam())


async def test_an_unknown_loss_is_refused(model: TorchModel) -> None:
    with pytest.raises(
        UnsupportedError, match=r"loss 'ppo': this backend computes CrossEntropy, ImportanceSampling, PPO"
    ):
        model.forward_backward(groups(), "ppo")  # type: ignore[arg-type]


async def test_a_failure_while_computing_breaks_the_buffer_until_it_is_discarded(
    model: TorchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Scorer, call: object, loss: object, batch: MicroBatch, output: object) -> Tensor:
        raise ZeroDivisionError("planted")

    before = await model.digest()
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "_slopes", fail)
        failed, stepped = model.forward_backward(groups(), CrossEntropy()), model.optim_step(Adam())
        with pytest.raises(BackendError, match="forward_backward failed: planted"):
            await failed
        with pytest.raises(BackendError, match=r"optim_step refused: .*planted.*discard_gradients\(\)"):
            await stepped
    await model.forward_backward(groups(), CrossEntropy())
    with pytest.raises(BackendError, match="optim_step refused"):
        await model.optim_step(Adam())
    await model.discard_gradients()
    assert await model.digest() == before
    await model.forward_backward(groups(), CrossEntropy())
    await model.optim_step(Adam())


async def test_a_failure_nobody_awaited_is_raised_by_the_next_call(model: TorchModel) -> None:
    failed = model.load_state("nothing there")
    await model._engine.submit(lambda: None, "settle")  # pyright: ignore[reportPrivateUsage]
    assert failed.settled
    with pytest.raises(SettingError, match="no manifest"):
        model.digest()
    await model.digest()


async def test_a_refused_step_is_not_raised_after_its_cause_was_seen(model: TorchModel) -> None:
    failed, _ = model.forward_backward(diverged(), ImportanceSampling()), model.optim_step(Adam())
    with pytest.raises(NonFinite):
        await failed
    await model.discard_gradients()
    await model.digest()


async def test_a_loss_that_is_not_finite_names_the_datum(model: TorchModel) -> None:
    with pytest.raises(NonFinite, match=r"the gradient of data \[1\] is not finite: .* up to exp\(\d"):
        await model.forward_backward(diverged(), ImportanceSampling())


async def test_a_ratio_that_overflows_is_no_nan_without_a_name(model: TorchModel) -> None:
    """Clipping hides the ratio from PPO's loss, not from its gradient (0 times infinity)."""
    with pytest.raises(NonFinite, match=r"data \[1\]"):
        await model.forward_backward(diverged(), PPO())


async def test_weights_that_are_not_finite_name_the_data(model: TorchModel) -> None:
    lora_of(model).master_b[0].fill_(torch.nan)
    lora_of(model).refresh()
    with pytest.raises(NonFinite, match=r"log-probs of data \[0, 1\] are not finite"):
        await model.forward_backward(groups(1, 2), CrossEntropy())


async def test_a_gradient_that_is_not_finite_changes_nothing(model: TorchModel) -> None:
    await model.forward_backward(groups(), CrossEntropy())
    before = await model.digest()
    lora_of(model).grad[3] = torch.inf
    with pytest.raises(NonFinite, match="optim_step 1: the gradient's norm is inf"):
        await model.optim_step(Adam())
    assert await model.digest() == before
    await model.discard_gradients()
    await model.forward_backward(groups(), CrossEntropy())
    await model.optim_step(Adam())
