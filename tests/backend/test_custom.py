"""Custom losses: the same as the built-in ones where they say the same, in one pass and in two, and what they must not do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from torch import Tensor

from sparring.backend.datum import Datum
from sparring.backend.local import LocalBackend
from sparring.backend.local.custom import decide, slopes_at
from sparring.backend.local.model import TorchModel
from sparring.backend.local.packing import plan
from sparring.backend.losses import CrossEntropy, Custom, ImportanceSampling
from sparring.backend.training import Adam
from sparring.errors import BackendError, NonFinite, SettingError
from tests.backend.batches import LORA, gradient, groups, relative, spread, trainer
from tests.backend.reference import at_sampler

Returned = tuple[Tensor, Mapping[str, float]]


@pytest.fixture
def anyio_backend() -> str:
    """What differs by loss does not differ by event loop."""
    return "asyncio"


def _importance_sampling(data: Sequence[Datum], logprobs: Sequence[Tensor]) -> Returned:
    loss = torch.zeros(())
    for datum, lp in zip(data, logprobs, strict=True):
        ratio = torch.exp(lp - torch.from_numpy(datum.logprobs))
        loss = loss - (ratio * torch.from_numpy(datum.advantages)).sum()
    return loss, {"data": len(data)}


def _contrast(data: Sequence[Datum], logprobs: Sequence[Tensor]) -> Returned:
    """Couples every datum with every other: minus the log of the first one's share."""
    totals = torch.stack([lp.sum() for lp in logprobs])
    return -torch.log_softmax(totals / 10, 0)[0], {"best": float(totals.argmax())}


class _Weighted:
    def __call__(self, data: Sequence[Datum], logprobs: Sequence[Tensor]) -> Returned:
        return _contrast(data, logprobs)


def test_a_custom_loss_is_called_the_same_in_every_process() -> None:
    """Its text goes into scripted weights, which a resumed run must find again: no address may be in it."""
    assert repr(Custom(function=_contrast)) == f"Custom(function={__name__}:_contrast)"
    assert repr(Custom(function=_Weighted())) == f"Custom(function={__name__}:_Weighted)"


async def _near(model: TorchModel, data: Sequence[Datum]) -> list[Datum]:
    output = await model.forward(data, CrossEntropy())
    return at_sampler(data, output.logprobs, 0.3)


async def test_a_custom_loss_equals_the_loss_that_it_writes_out(model: TorchModel) -> None:
    spread(model)
    data = await _near(model, groups())
    want = await model.forward_backward(data, ImportanceSampling())
    grad = trainer(model).adapter.grad.clone()
    await model.discard_gradients()
    got = await model.forward_backward(data, Custom(function=_importance_sampling))
    assert relative(trainer(model).adapter.grad, grad) < 1e-5
    assert got.metrics == pytest.approx({**want.metrics, "data": len(data)}, rel=1e-4, abs=1e-5)
    for one, other in zip(got.logprobs, want.logprobs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [_importance_sampling, _contrast])
async def test_two_passes_equal_one(
    tiny_llama: Path, tmp_path: Path, function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One micro-batch is gone through once, forward and backward; three are scored first."""
    gradients, outputs = [], []
    for budget in (100_000, 60):
        with anyio.fail_after(120):
            async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=budget) as backend:
                model = await backend.create_model(str(tiny_llama), lora=LORA)
                spread(model)
                data = await _near(model, groups())
                number = len(plan(data, token_budget=budget))
                passes: list[bool] = []
                _count_passes(model, passes, monkeypatch)
                outputs.append(await model.forward_backward(data, Custom(function=function), entropy=True))
                assert passes == ([True] if number == 1 else [False] * number + [True] * number)
                gradients.append(trainer(model).adapter.grad.clone())
    assert relative(gradients[1], gradients[0]) < 1e-5
    first, second = ({k: v for k, v in o.metrics.items() if "bin" not in k} for o in outputs)
    assert second == pytest.approx(first, rel=1e-4, abs=1e-4)
    for one, other in zip(outputs[0].logprobs, outputs[1].logprobs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def _count_passes(model: TorchModel, passes: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    base = trainer(model).base
    compute = base.hidden_states

    def counted(batch: Any, *, train: bool) -> Tensor:
        passes.append(train)
        return compute(batch, train=train)

    monkeypatch.setattr(base, "hidden_states", counted)


async def test_the_coupled_gradient_equals_autograd_through_the_whole_model(model: TorchModel) -> None:
    spread(model)
    data = groups(2, 2)
    base, adapter = trainer(model).base, trainer(model).adapter
    logprobs = []
    with base.call.rows([(adapter.weights, 1)]):
        for datum in data:
            ids = torch.from_numpy(datum.tokens).long()[None]
            embedded = base.model.get_input_embeddings()(ids).requires_grad_(True)
            hidden = base.body(inputs_embeds=embedded, use_cache=False).last_hidden_state
            lp = torch.log_softmax(hidden[0, :-1] @ base.head.T, -1).gather(1, ids[0, 1:, None])[:, 0]
            logprobs.append(torch.cat([torch.zeros(1), lp * torch.from_numpy(datum.mask[1:])]))
        _contrast(data, logprobs)[0].backward()
    want = adapter.grad.clone()
    await model.discard_gradients()
    assert relative(await gradient(model, data, Custom(function=_contrast)), want) < 1e-5


async def test_data_without_a_slope_are_not_gone_through_again(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_alone(data: Sequence[Datum], logprobs: Sequence[Tensor]) -> Returned:
        return logprobs[0].sum(), {}

    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=1) as backend:
            model = await backend.create_model(str(tiny_llama), lora=LORA)
            spread(model)
            data, passes = groups(4, 1), list[bool]()
            want = await gradient(model, data[:1], Custom(function=first_alone))
            _count_passes(model, passes, monkeypatch)
            assert relative(await gradient(model, data, Custom(function=first_alone)), want) < 1e-5
            assert passes == [False] * 4 + [True]


async def test_forward_calls_the_function_and_leaves_no_gradient(model: TorchModel) -> None:
    output = await model.forward(groups(), Custom(function=_contrast))
    assert output.metrics["loss"] > 0
    assert "best" in output.metrics
    assert trainer(model).adapter.grad.count_nonzero() == 0
    await model.optim_step(Adam())


def _returns(value: Any) -> Callable[..., Any]:
    return lambda data, logprobs: value


def _named(metrics: Mapping[str, Any]) -> Callable[..., Any]:
    return lambda data, logprobs: (logprobs[0].sum(), metrics)


def _raises(data: Sequence[Datum], logprobs: Sequence[Tensor]) -> Returned:
    raise KeyError("planted")


WRONG: list[tuple[Callable[..., Any], type[Exception], str]] = [
    (_raises, BackendError, r"the custom loss .*_raises.* raised KeyError\('planted'\)"),
    (_returns(1.0), SettingError, r"returned 1.0: must be \(loss, metrics\)"),
    (_returns((torch.zeros(()), None)), SettingError, "must be .*metrics a mapping"),
    (_returns((0.0, {})), SettingError, "returned 0.0 as its loss: must be a tensor without dimensions"),
    (lambda data, logprobs: (logprobs[0], {}), SettingError, "must be a tensor without dimensions"),
    (_returns((torch.zeros(()), {})), SettingError, "does not depend on the log-probs"),
    (lambda data, logprobs: (logprobs[0].sum() * torch.inf, {}), NonFinite, "the custom loss .* is -inf"),
    (lambda data, logprobs: ((logprobs[1] * 0).sqrt().sum(), {}), NonFinite, "the log-probs of datum 1 is not finite"),
    (_named({"tokens": 1.0}), SettingError, "metric 'tokens' has the name of one of the backend's"),
    (_named({"mine": "many"}), SettingError, "metric 'mine' is 'many': must be a number"),
]


@pytest.mark.parametrize(("function", "error", "said"), WRONG)
@pytest.mark.parametrize("budget", [1, 10_000])
async def test_what_a_custom_loss_must_not_do(
    tiny_llama: Path, tmp_path: Path, function: Any, error: type[Exception], said: str, budget: int
) -> None:
    """Named in one pass and in two; the step is refused until the gradient is discarded, and then the model is as before."""
    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=budget) as backend:
            model = await backend.create_model(str(tiny_llama), lora=LORA)
            before = await model.digest()
            with pytest.raises(error, match=said):
                await model.forward_backward(groups(1, 2), Custom(function=function))
            with pytest.raises(BackendError, match="optim_step refused"):
                await model.optim_step(Adam())
            await model.discard_gradients()
            assert await model.digest() == before
            await model.forward_backward(groups(), CrossEntropy())
            await model.optim_step(Adam())


def test_slopes_are_zero_where_nothing_is_scored() -> None:
    data = groups(1, 3)
    lps = [np.where(d.mask, -1, 0).astype(np.float32) for d in data]

    def squares(data: Sequence[Datum], logprobs: Sequence[Tensor]) -> Returned:
        return (logprobs[0] - 1).square().sum() + 2 * logprobs[2].sum(), {}

    decided = decide(Custom(function=squares), data, lps)
    for slope, datum, each in zip(decided.slopes, data, (-4, 0, 2), strict=True):
        np.testing.assert_array_equal(slope, each * datum.mask)
    (batch,) = plan(data, token_budget=1000)
    want = [decided.slopes[d][t] for d, t in zip(batch.datum, batch.token, strict=True)]
    assert slopes_at(decided.slopes, batch).tolist() == want
