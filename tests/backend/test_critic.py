"""Critics as clients: they learn, keep to themselves, save and load, refuse what they cannot take; on asyncio and trio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sparring.backend import Backend, CriticClient, ScriptedBackend
from sparring.backend.datum import Datum, ValueDatum, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.critic import TorchCritic
from sparring.backend.local.full import FullModel
from sparring.backend.local.model import TorchModel
from sparring.backend.local.packing import MicroBatch
from sparring.backend.local.value_scorer import ValueScorer
from sparring.backend.losses import PPO, ClippedValue, CrossEntropy
from sparring.backend.totals import rates
from sparring.backend.training import Adam, Lora, TrainingClient
from sparring.errors import BackendError, NonFinite, SettingError, UnsupportedError
from tests.backend.batches import LORA, groups, lora_of, relative, spread, trainer
from tests.backend.values import gradient_of, spread_critic, to_learn, trainer_of

SQUARED = ClippedValue(clip=inf)
FILES = ["adapter_config.json", "adapter_model.safetensors", "manifest.json", "optimizer.safetensors"]
HEAD = "value_head.safetensors"


@pytest.fixture
async def critic(backend: LocalBackend, tiny_llama: Path) -> TorchCritic:
    """A fresh critic on the tiny Llama."""
    return await backend.create_critic(str(tiny_llama), lora=LORA)


async def _step(critic: CriticClient, seed: int = 0) -> None:
    critic.forward_backward(token_mean(to_learn(groups(seed=seed), seed=seed)), ClippedValue())
    await critic.optim_step(Adam(learning_rate=1e-2))


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
async def test_a_small_target_is_learned(backend: LocalBackend, tiny_llama: Path, lora: Lora | None) -> None:
    """What a context is to become depends on its last token: the hidden states must tell."""
    critic = await backend.create_critic(str(tiny_llama), lora=lora)
    data = []
    for datum in groups(4, 2):
        before = np.roll(datum.tokens, 1)
        data.append(ValueDatum.of(datum, returns=(3 + np.sin(before) * datum.mask).astype(np.float32)))
    found = []
    for _ in range(60):
        output = await critic.forward_backward(token_mean(data), SQUARED)
        await critic.optim_step(Adam(learning_rate=2e-2 if lora else 5e-3))
        found.append(rates(output.metrics) | {"loss": output.metrics["loss"]})
    assert found[0]["value_mean"] == 0
    assert found[0]["explained_variance"] == pytest.approx(0)
    assert found[-1]["loss"] < found[0]["loss"] / 100
    assert found[-1]["explained_variance"] > 0.9
    assert found[-1]["value_mean"] == pytest.approx(found[-1]["return_mean"], abs=0.1)


async def test_the_way_of_a_step(critic: TorchCritic) -> None:
    """Values first; returns made of them; then an update that clips around them."""
    spread_critic(critic)
    data = groups()
    states = [ValueDatum.of(datum) for datum in data]
    output = await critic.forward(states)
    assert all(np.array_equal(value != 0, datum.mask) for value, datum in zip(output.values, data, strict=True))
    batch = [
        replace(state, returns=value + datum.advantages, old_values=value)
        for state, value, datum in zip(states, output.values, data, strict=True)
    ]
    first = await critic.forward_backward(token_mean(batch), ClippedValue(clip=0.02))
    assert first.metrics["value_clipped"] == 0
    assert first.metrics["tokens"] == sum(datum.mask.sum() for datum in data)
    stepped = await critic.optim_step(Adam(learning_rate=1e-3))
    assert stepped.metrics["gradient_norm"] > 0
    second = await critic.forward_backward(token_mean(batch), ClippedValue(clip=0.02))
    assert second.metrics["loss"] < first.metrics["loss"]
    assert 0 < rates(second.metrics)["value_clip_fraction"] < 1


async def test_policy_and_critics_share_a_base_and_nothing_else(
    backend: LocalBackend, critic: TorchCritic, tiny_llama: Path
) -> None:
    policy = await backend.create_model(str(tiny_llama), lora=LORA)
    full = await backend.create_critic(str(tiny_llama))
    spread(policy)
    spread_critic(critic)
    base = trainer(policy).base
    assert base is trainer_of(critic).base is trainer_of(full).base
    weights = [parameter.detach().clone() for parameter in base.named_parameters.values()]
    data, states = groups(2, 2), [ValueDatum.of(datum) for datum in groups(2, 2)]
    logprobs, values = await policy.forward(data, CrossEntropy()), await critic.forward(states)
    digests = await critic.digest(), await full.digest()
    await policy.forward_backward(data, CrossEntropy())
    assert not trainer_of(critic).adapter.grad.any()
    await policy.optim_step(Adam(learning_rate=0.1))
    assert (await critic.digest(), await full.digest()) == digests
    again = await critic.forward(states)
    assert all(np.array_equal(a, b) for a, b in zip(again.values, values.values, strict=True))
    moved, digest = await policy.forward(data, CrossEntropy()), await policy.digest()
    assert not all(np.array_equal(a, b) for a, b in zip(moved.logprobs, logprobs.logprobs, strict=True))
    await _step(critic)
    await _step(full)
    assert await policy.digest() == digest
    assert not lora_of(policy).grad.any()
    same = await policy.forward(data, CrossEntropy())
    assert all(np.array_equal(a, b) for a, b in zip(moved.logprobs, same.logprobs, strict=True))
    assert all(torch.equal(p, w) for p, w in zip(base.named_parameters.values(), weights, strict=True))


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
async def test_a_loaded_critic_continues_equally(backend: LocalBackend, tiny_llama: Path, lora: Lora | None) -> None:
    first, second, third = [await backend.create_critic(str(tiny_llama), lora=lora, seed=seed) for seed in (1, 2, 3)]
    await _step(first)
    path = Path(await first.save_state("s"))
    if lora is not None:
        assert sorted(file.name for file in path.iterdir()) == [*FILES, HEAD]
    head = load_file(path / HEAD)
    assert torch.equal(torch.cat([head["weight"], head["bias"]]), trainer_of(first).adapter.master[-33:])
    assert head["weight"].any() and head["bias"].any()
    await second.forward_backward(to_learn(groups()), SQUARED)  # dropped by loading
    await second.load_state("s")
    await third.load_state(str(path), optimizer=False)
    assert torch.equal(trainer_of(third).adapter.master, trainer_of(first).adapter.master)
    assert await third.digest() != await first.digest() == await second.digest()
    values = [await model.forward(to_learn(groups())) for model in (first, second, third)]
    assert all(np.array_equal(*pair) for pair in zip(values[0].values, values[1].values, strict=True))
    assert all(np.array_equal(*pair) for pair in zip(values[0].values, values[2].values, strict=True))
    await _step(first, 1)
    await _step(second, 1)
    await _step(third, 1)
    assert await third.digest() != await first.digest() == await second.digest()


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
async def test_a_policys_folder_is_no_critics_nor_the_other_way_round(
    backend: LocalBackend, tiny_llama: Path, lora: Lora | None
) -> None:
    policy, critic = [
        await backend.create_model(str(tiny_llama), lora=lora),
        await backend.create_critic(str(tiny_llama), lora=lora),
    ]
    await policy.save_state("policy")
    await critic.save_state("critic")
    before = await policy.digest(), await critic.digest()
    for optimizer in (True, False):
        with pytest.raises(SettingError, match=r"policy' has no value head, it is a policy's: .* create_model gives"):
            await critic.load_state("policy", optimizer=optimizer)
        with pytest.raises(SettingError, match=r"critic' is a critic's: .* create_critic gives"):
            await policy.load_state("critic", optimizer=optimizer)
        with pytest.raises(SettingError, match=r"critic' is a critic's"):
            await backend.create_from_state("critic", optimizer=optimizer)
    assert (await policy.digest(), await critic.digest()) == before


async def test_a_bare_adapter_is_no_critic(critic: TorchCritic, model: TorchModel) -> None:
    folder = await model.export("peft")
    with pytest.raises(SettingError, match="has no value head"):
        await critic.load_state(folder, optimizer=False)


@pytest.mark.parametrize("damage", ["gone", "cut", "changed", "wider"])
async def test_a_damaged_head_is_refused_and_changes_nothing(
    backend: LocalBackend, critic: TorchCritic, damage: str, tiny_qwen3: Path
) -> None:
    await _step(critic)
    path = Path(await critic.save_state("s"))
    content = (path / HEAD).read_bytes()
    if damage == "gone":
        (path / HEAD).unlink()
    elif damage == "wider":
        path = Path(await (await backend.create_critic(str(tiny_qwen3), lora=LORA)).save_state("other"))
    else:
        (path / HEAD).write_bytes(content[:-4] if damage == "cut" else content[:-1] + b"\x17")
    await _step(critic)
    before = await critic.digest()
    with pytest.raises(SettingError, match=r"value_head.safetensors is (missing|damaged)|another base"):
        await critic.load_state(str(path))
    assert await critic.digest() == before
    await _step(critic)


async def test_another_adapter_is_refused(backend: LocalBackend, critic: TorchCritic, tiny_llama: Path) -> None:
    await critic.save_state("s")
    for lora in (Lora(rank=8, alpha=8.0), None):
        other = await backend.create_critic(str(tiny_llama), lora=lora)
        with pytest.raises(SettingError, match=r"was saved with lora=Lora\(rank=4"):
            await other.load_state("s")


async def test_two_runs_end_in_one_digest(tiny_llama: Path, tmp_path: Path) -> None:
    found = []
    for run in range(2):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path / str(run)) as backend:
            critic = await backend.create_critic(str(tiny_llama), lora=LORA, seed=3)
            for seed in range(3):
                await _step(critic, seed)
            found.append(await critic.digest())
    assert found[0] == found[1]


def _datum(*, token: int = 5, length: int = 6) -> ValueDatum:
    mask, numbers = np.arange(length) == 3, np.zeros(length, np.float32)
    tokens = np.full(length, token, np.int32)
    return ValueDatum(tokens=tokens, mask=mask, weights=numbers, returns=numbers, old_values=numbers)


BAD_DATA: list[tuple[Callable[[], list[Any]], str]] = [
    (list, "without data"),
    (lambda: [_datum(), _datum(token=320)], r"datum 1 holds token 320; this model's are 0 to 319"),
    (lambda: [_datum(token=-1)], "datum 0 holds token -1"),
    (lambda: [_datum(length=257)], "datum 0 has 257 tokens; the model's context holds 256"),
    (lambda: [_datum(), replace(_datum(), returns=None)], r"datum 1 has returns=None, which ClippedValue\(clip=0.2\)"),
    (lambda: [replace(_datum(), old_values=None)], r"datum 0 has old_values=None, .* ClippedValue\(clip=inf\)"),
    (lambda: groups(1, 1), r"datum 0 is a Datum; this model takes ValueDatum: ValueDatum.of"),
]


@pytest.mark.parametrize(("make", "message"), BAD_DATA)
async def test_bad_data_are_refused_and_touch_nothing(
    critic: TorchCritic, make: Callable[[], list[Any]], message: str
) -> None:
    await critic.forward_backward(to_learn(groups()), ClippedValue())
    before, grad = await critic.digest(), trainer_of(critic).adapter.grad.clone()
    for call in (critic.forward, critic.forward_backward):
        with pytest.raises(SettingError, match=message):
            call(make(), ClippedValue())
    assert await critic.digest() == before
    assert torch.equal(trainer_of(critic).adapter.grad, grad)
    await critic.optim_step(Adam())


async def test_a_policy_refuses_a_critics_data(model: TorchModel) -> None:
    with pytest.raises(SettingError, match="datum 0 is a ValueDatum; this model takes Datum"):
        model.forward([_datum()], CrossEntropy())  # type: ignore[list-item]


async def test_other_losses_are_refused(critic: TorchCritic) -> None:
    for loss in (PPO(), "mse"):
        with pytest.raises(UnsupportedError, match=r"a critic computes ClippedValue"):
            critic.forward(to_learn(groups()), loss)  # type: ignore[arg-type]


def _with(name: str, value: float, place: int = 3) -> ValueDatum:
    numbers = np.zeros(6, np.float32)
    numbers[place] = value
    return _changed(name, numbers)


def _changed(name: str, field: Any) -> ValueDatum:
    return replace(_datum(), **{name: field})


@pytest.mark.parametrize("name", ["weights", "returns", "old_values"])
def test_numbers_at_scored_tokens_are_finite(name: str) -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(SettingError, match=rf"{name} holds .*{value}.* at a scored token: must be finite"):
            _with(name, value)
        _with(name, value, place=4)
    with pytest.raises(SettingError, match=rf"{name} has shape \(5,\), tokens have \(6,\)"):
        _changed(name, np.zeros(5, np.float32))


def test_what_is_no_context_is_no_datum() -> None:
    with pytest.raises(SettingError, match="a datum of 1 tokens"):
        _datum(length=1)
    with pytest.raises(SettingError, match=r"mask\[0\] is True"):
        replace(_datum(), mask=np.ones(6, np.bool_))
    with pytest.raises(SettingError, match=r"mask has shape \(3,\)"):
        replace(_datum(), mask=np.zeros(3, np.bool_))


def test_a_batch_is_divided_as_a_policys() -> None:
    policy: list[Datum] = groups()
    critic = token_mean([ValueDatum.of(datum, returns=datum.advantages) for datum in policy])
    for divided, mine, datum in zip(token_mean(policy), critic, policy, strict=True):
        assert np.array_equal(divided.weights, mine.weights)
        assert mine.returns is datum.advantages
    with pytest.raises(SettingError, match="token_mean of a batch without scored tokens"):
        token_mean([replace(_datum(), mask=np.zeros(6, np.bool_))])


async def test_a_return_that_overflows_names_the_datum(critic: TorchCritic) -> None:
    fine = to_learn(groups(1, 1))[0]
    with pytest.raises(NonFinite, match=r"the gradient of data \[1\] is not finite: .*scale returns"):
        await critic.forward_backward([fine, replace(_with("returns", 3e38), weights=np.full(6, 3.0, "f4"))], SQUARED)
    with pytest.raises(BackendError, match="optim_step refused: the gradient is incomplete"):
        await critic.optim_step(Adam())
    await critic.discard_gradients()
    output = await critic.forward([_with("returns", 3e38)], SQUARED)
    assert np.isfinite(list(output.metrics.values())).all()
    await _step(critic)


async def test_weights_that_are_not_finite_name_the_data(critic: TorchCritic) -> None:
    trainer_of(critic).adapter.master[-1] = torch.nan
    with pytest.raises(NonFinite, match=r"the values of data \[0, 1\] are not finite: the weights have diverged"):
        await critic.forward_backward(to_learn(groups(1, 2)), ClippedValue())


async def test_a_gradient_that_is_not_finite_changes_nothing(critic: TorchCritic) -> None:
    await critic.forward_backward(to_learn(groups()), ClippedValue())
    before = await critic.digest()
    trainer_of(critic).adapter.grad[-1] = torch.nan
    with pytest.raises(NonFinite, match="optim_step 1: the gradient's norm is nan"):
        await critic.optim_step(Adam())
    assert await critic.digest() == before
    await critic.discard_gradients()
    await _step(critic)


async def test_a_failure_while_computing_breaks_the_buffer_until_it_is_discarded(
    critic: TorchCritic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ValueScorer, loss: object, batch: MicroBatch, values: object) -> torch.Tensor:
        raise ZeroDivisionError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(ValueScorer, "_slopes", fail)
        failed, stepped = critic.forward_backward(to_learn(groups()), SQUARED), critic.optim_step(Adam())
        with pytest.raises(BackendError, match="forward_backward failed: planted"):
            await failed
        with pytest.raises(BackendError, match=r"optim_step refused: .*planted"):
            await stepped
    await critic.discard_gradients()
    await _step(critic)


async def test_a_failure_nobody_awaited_is_raised_by_the_next_call(critic: TorchCritic) -> None:
    critic.load_state("nothing there")
    await critic._engine.submit(lambda: None, "settle")  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(SettingError, match="no manifest"):
        critic.digest()
    await critic.digest()


async def test_an_adapter_on_the_output_layer_is_refused(backend: LocalBackend, tiny_llama: Path) -> None:
    with pytest.raises(SettingError, match="a critic has a value head in place of the output layer"):
        await backend.create_critic(str(tiny_llama), lora=Lora(rank=2, unembedding=True))


async def test_an_unloaded_critic_refuses_by_name(backend: LocalBackend, critic: TorchCritic) -> None:
    path = await critic.save_state("s")
    digest = await critic.digest()
    await critic.unload()
    for call in (
        lambda: critic.forward(to_learn(groups())),
        lambda: critic.forward_backward(to_learn(groups()), SQUARED),
        lambda: critic.optim_step(Adam()),
        critic.discard_gradients,
        critic.digest,
        critic.unload,
        lambda: critic.save_state("t"),
        lambda: critic.load_state("s"),
    ):
        with pytest.raises(BackendError, match="was unloaded"):
            call()
    assert not {"_trainer", "_scorer"} & vars(critic).keys()
    again = await backend.create_critic(critic.info.model, lora=LORA, seed=8)
    await again.load_state(path)
    assert await again.digest() == digest


async def test_info_counts_the_head(backend: LocalBackend, critic: TorchCritic, tiny_llama: Path) -> None:
    policy: TrainingClient = await backend.create_model(str(tiny_llama), lora=LORA)
    full: CriticClient = await backend.create_critic(str(tiny_llama))
    assert critic.info == replace(policy.info, trained_parameters=policy.info.trained_parameters + 33)
    assert full.info.trained_parameters == full.info.parameters + 33
    assert full.info.lora is None
    assert isinstance(trainer_of(await backend.create_critic(str(tiny_llama))).adapter, FullModel)
    assert backend.capabilities().critics


async def test_a_backend_without_critics_says_so() -> None:
    backend: Backend = ScriptedBackend()
    assert not backend.capabilities().critics
    with pytest.raises(
        UnsupportedError, match=r"create_critic\('m'\): the scripted backend has no values; LocalBackend"
    ):
        await backend.create_critic("m")


async def test_dropout_leaves_out_inputs_of_gradients_alone(backend: LocalBackend, tiny_llama: Path) -> None:
    critic = await backend.create_critic(str(tiny_llama), lora=replace(LORA, dropout=0.3))
    without = await backend.create_critic(str(tiny_llama), lora=LORA)
    for model in (critic, without):
        spread_critic(model)
    data = to_learn(groups())
    first = await gradient_of(critic, data, SQUARED)
    assert torch.equal(first, await gradient_of(critic, data, SQUARED))  # discarded: the step begins anew
    assert relative(await gradient_of(without, data, SQUARED), first) > 0.05
    await critic.forward_backward(data, SQUARED)
    second = await gradient_of(critic, data, SQUARED) - first
    assert relative(second, first) > 0.05
    one, two = [(await model.forward(data)).values for model in (critic, without)]
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
