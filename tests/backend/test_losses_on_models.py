"""Every loss through a training client: against the plain way, over micro-batches and calls, with its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch

from sparring.backend.datum import Datum, SoftTargets, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.losses import (
    GSPO,
    PPO,
    CrossEntropy,
    DecoupledPPO,
    Level,
    Loss,
    Regularized,
    Truncated,
    TruncatedImportanceSampling,
)
from sparring.backend.totals import BIN, add_up, rates
from sparring.backend.training import Adam, ForwardOutput
from tests.backend.batches import LORA, gradient, groups, plain_loss, relative, spread, trainer
from tests.backend.reference import ALL_LOSSES, SEQUENCE_LOSSES, WITH_ENTROPY, at_sampler, with_fields


@pytest.fixture
def anyio_backend() -> str:
    """What differs by loss does not differ by event loop."""
    return "asyncio"


async def _data(model: TorchModel, loss: Loss, count: int = 3, size: int = 3) -> list[Datum]:
    """Sampled near where the model is, with what the loss reads."""
    data = groups(count, size, temperature=0.8)
    output = await model.forward(data, CrossEntropy())
    return token_mean(with_fields(at_sampler(data, output.logprobs, 0.3), loss))


@pytest.mark.parametrize("loss", [*ALL_LOSSES, *WITH_ENTROPY], ids=repr)
async def test_gradients_equal_the_plain_way(model: TorchModel, loss: Loss) -> None:
    spread(model)
    data = await _data(model, loss)
    want, want_logprobs = plain_loss(model, data, loss)
    output = await model.forward_backward(data, loss)
    assert relative(trainer(model).adapter.grad, want) < 2e-5
    for got, lp in zip(output.logprobs, want_logprobs, strict=True):
        np.testing.assert_allclose(got, lp, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("loss", [*SEQUENCE_LOSSES, *WITH_ENTROPY, CrossEntropy()], ids=repr)
@pytest.mark.parametrize("rows", [2, 1000])
async def test_losses_that_couple_tokens_do_so_over_chunks_and_micro_batches(
    tiny_llama: Path, tmp_path: Path, loss: Loss, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparring.backend.local.head.CHUNK_BYTES", rows * 4 * 320)
    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=24) as backend:
            model = await backend.create_model(str(tiny_llama), lora=LORA)
            spread(model)
            data = await _data(model, loss)
            want, _ = plain_loss(model, data, loss)
            assert relative(await gradient(model, data, loss), want) < 2e-5


@pytest.mark.parametrize("loss", [*ALL_LOSSES, *WITH_ENTROPY], ids=repr)
async def test_a_step_split_into_calls_is_the_same_step(model: TorchModel, loss: Loss) -> None:
    spread(model)
    data = await _data(model, loss, 4, 4)
    whole = await model.forward_backward(data, loss)
    want = trainer(model).adapter.grad.clone()
    for calls in (1, 3, 8):
        await model.discard_gradients()
        parts: list[ForwardOutput] = []
        for place in np.array_split(np.arange(len(data)), calls):
            parts.append(await model.forward_backward([data[i] for i in place], loss))
        assert relative(trainer(model).adapter.grad, want) < 1e-5
        _assert_equal_metrics(add_up(part.metrics for part in parts), whole.metrics)


def _assert_equal_metrics(got: dict[str, float], want: object) -> None:
    """Rounding may move a token from one bin of the histogram to the next, never lose one."""
    assert isinstance(want, dict)
    plain = [{k: v for k, v in one.items() if not k.startswith(BIN)} for one in (got, want)]
    assert plain[0] == pytest.approx(plain[1], rel=1e-3, abs=1e-4)
    binned = [sum(v for k, v in one.items() if k.startswith(BIN)) for one in (got, want)]
    assert binned[0] == binned[1]


@pytest.mark.parametrize("loss", [*ALL_LOSSES, *WITH_ENTROPY], ids=repr)
async def test_forward_measures_what_forward_backward_does(model: TorchModel, loss: Loss) -> None:
    data = await _data(model, loss)
    one, two = await model.forward(data, loss), await model.forward_backward(data, loss)
    assert one.metrics == two.metrics
    await model.discard_gradients()
    await model.forward(data, loss)
    assert trainer(model).adapter.grad.count_nonzero() == 0


@pytest.mark.parametrize("level", ["token", "sequence"])
async def test_at_the_first_update_decoupling_is_truncated_importance_sampling(model: TorchModel, level: Level) -> None:
    """With what `forward` gives as proximal log-probs, u = 1: nothing is clipped, and the weight is all that is left."""
    spread(model)
    data = await _data(model, PPO())
    sampled = [replace(d, clip_low=None, clip_high=None) for d in data]
    proximal = (await model.forward(sampled, TruncatedImportanceSampling())).logprobs
    decoupled = [replace(d, proximal_logprobs=p) for d, p in zip(sampled, proximal, strict=True)]
    want = await gradient(model, sampled, TruncatedImportanceSampling(cap=1.2, level=level))
    for loss in (DecoupledPPO(cap=1.2, level=level), Truncated(loss=GSPO(), cap=1.2, level=level)):
        assert relative(await gradient(model, decoupled, loss), want) < 1e-5
        found = (await model.forward(decoupled, loss)).metrics
        assert 0 < found["truncated"] < found["tokens"]
        assert found["kl_k2_sum"] > 0, "distances are to the sampler, whatever the ratio is to"


async def test_soft_targets_of_one_are_hard_targets(model: TorchModel) -> None:
    spread(model)
    data = groups()
    soft = [
        replace(
            d,
            weights=np.full_like(d.weights, 7),  # not read where there are soft targets
            soft_targets=SoftTargets(tokens=d.tokens[:, None], weights=d.weights[:, None]),
        )
        for d in data
    ]
    hard = await model.forward(data, CrossEntropy())
    assert (await model.forward(soft, CrossEntropy())).metrics == pytest.approx(hard.metrics)
    want = await gradient(model, data, CrossEntropy())
    assert relative(await gradient(model, soft, CrossEntropy()), want) < 1e-6


async def test_soft_targets_from_a_teacher_lower_the_distance_to_it(model: TorchModel) -> None:
    """The gradient of the cross-entropy to the model's own distribution is zero: all of the vocabulary, its own shares."""
    (datum,) = groups(1, 1)
    length = len(datum.tokens)
    everything = np.broadcast_to(np.arange(320, dtype=np.int32), (length, 320)).copy()
    shares = np.zeros((length, 320), np.float32)
    base = trainer(model).base
    with torch.no_grad(), base.call.rows([(trainer(model).adapter.weights, 1)]):
        embedded = base.model.get_input_embeddings()(torch.from_numpy(datum.tokens).long()[None])
        hidden = base.body(inputs_embeds=embedded, use_cache=False).last_hidden_state[0]
        shares[1:] = torch.softmax(hidden[:-1] @ base.head.T, -1).numpy()
    own = replace(datum, soft_targets=SoftTargets(tokens=everything, weights=shares))
    away = replace(datum, soft_targets=SoftTargets(tokens=everything, weights=np.roll(shares, 1, axis=1)))
    at_rest, pulled = await gradient(model, [own], CrossEntropy()), await gradient(model, [away], CrossEntropy())
    assert at_rest.norm() < 1e-4 * pulled.norm()


async def test_the_exact_entropy_where_it_is_asked_for(model: TorchModel) -> None:
    spread(model)
    data = groups(temperature=0.7)
    plain = await model.forward(data, PPO())
    output = await model.forward_backward(data, PPO(), entropy=True)
    assert "entropy_exact" not in rates(plain.metrics)
    want, tokens = 0.0, 0
    base = trainer(model).base
    for datum in data:
        ids = torch.from_numpy(datum.tokens).long()[None]
        with torch.no_grad(), base.call.rows([(trainer(model).adapter.weights, 1)]):
            hidden = base.body(inputs_embeds=base.model.get_input_embeddings()(ids), use_cache=False).last_hidden_state
        logits = (hidden[0, :-1] @ base.head.T).double() / 0.7
        entropy = torch.distributions.Categorical(logits=logits).entropy()[torch.from_numpy(datum.mask[1:])]
        want, tokens = want + entropy.sum().item(), tokens + len(entropy)
    assert output.metrics["entropy_tokens"] == tokens
    assert rates(output.metrics)["entropy_exact"] == pytest.approx(want / tokens, rel=1e-4)


async def test_data_without_scored_tokens_change_nothing(model: TorchModel) -> None:
    spread(model)
    data = groups(2, 2)
    empty = replace(data[0], mask=np.zeros_like(data[0].mask))
    for loss in (GSPO(), PPO(), CrossEntropy()):
        want = await gradient(model, data, loss)
        assert relative(await gradient(model, [empty, *data], loss), want) < 1e-5
        assert (await model.forward([empty], loss)).metrics["tokens"] == 0


async def test_a_datum_alone_is_a_sequence_of_its_own(model: TorchModel) -> None:
    """Sequence ratios of one datum do not depend on what it is packed with."""
    spread(model)
    loss = GSPO(clip_low_threshold=0.9, clip_high_threshold=1.1)
    data = await _data(model, loss)
    whole = await gradient(model, data, loss)
    parts: Sequence[torch.Tensor] = [await gradient(model, [datum], loss) for datum in data]
    assert relative(torch.stack(list(parts)).sum(0), whole) < 1e-5


async def test_a_bonus_for_entropy_raises_it(model: TorchModel) -> None:
    """Without advantages, the optimizer follows the bonus alone; its part of the loss is told."""
    spread(model)
    still = [replace(d, advantages=np.zeros_like(d.advantages)) for d in await _data(model, GSPO())]
    loss = Regularized(loss=GSPO(), entropy=1.0)
    before = (await model.forward_backward(still, loss)).metrics
    assert before["entropy_tokens"] == before["tokens"]
    assert before["loss"] == pytest.approx(-before["entropy_sum"] / before["tokens"], rel=1e-5), "a mean over tokens"
    await model.optim_step(Adam(learning_rate=1e-3))
    after = (await model.forward(still, loss)).metrics
    assert after["entropy_sum"] > before["entropy_sum"]
