"""The critic and the reference without a model: what their numbers depend on, what is in the weights, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring import PPO, Adam, ClippedValue, Datum, ScriptedBackend, ValueDatum
from sparring.errors import BackendError, SettingError, UnsupportedError

LOSS = ClippedValue()


def value_datum(*, tokens: int = 5, **fields: Any) -> ValueDatum:
    mask = np.arange(tokens) > 1
    whole = np.where(mask, np.float32(0.5), np.float32(0))
    plain = ValueDatum(
        tokens=np.arange(tokens, dtype=np.int32),
        mask=mask,
        weights=mask.astype(np.float32),
        returns=whole,
        old_values=whole,
    )
    return replace(plain, **fields)


def datum(first: int = 0) -> Datum:
    mask = np.array([False, True, True])
    zeros = np.zeros(3, np.float32)
    return Datum(
        tokens=np.arange(first, first + 3, dtype=np.int32), mask=mask, logprobs=zeros, advantages=zeros, weights=zeros
    )


async def test_values_are_of_the_weights_and_the_context() -> None:
    critic = await ScriptedBackend().create_critic("m", seed=3)
    one, other = value_datum(), value_datum(tokens=6)
    first = (await critic.forward([one, other])).values
    assert [values.dtype for values in first] == [np.float32, np.float32]
    for values, given in zip(first, (one, other), strict=True):
        assert not values[~given.mask].any() and (np.abs(values[given.mask]) <= 1).all() and values.any()
    assert (await critic.forward([one])).values[0].tolist() == first[0].tolist(), "whatever else is in the call"
    await critic.forward_backward([one], LOSS)
    await critic.optim_step(Adam())
    assert (await critic.forward([one])).values[0].tolist() != first[0].tolist()
    again = await ScriptedBackend().create_critic("m", seed=4)
    assert (await again.forward([one])).values[0].tolist() != first[0].tolist()


@pytest.mark.parametrize("field", ["returns", "old_values", "weights", "tokens"])
async def test_whatever_a_critic_learns_from_is_in_its_weights(field: str) -> None:
    plain = value_datum()
    changed = replace(plain, **{field: getattr(plain, field) + plain.mask.astype(getattr(plain, field).dtype)})
    digests = set()
    for one in (plain, changed):
        critic = await ScriptedBackend().create_critic("m")
        await critic.forward_backward([one], LOSS)
        await critic.optim_step(Adam())
        digests.add(await critic.digest())
    assert len(digests) == 2


async def test_a_critic_s_state_is_saved_and_a_policy_s_refused(tmp_path: Path) -> None:
    backend = ScriptedBackend()
    critic, policy = await backend.create_critic("m"), await backend.create_model("m")
    await critic.forward_backward([value_datum()], LOSS)
    await critic.optim_step(Adam())
    await critic.save_state(str(tmp_path / "critic"))
    await policy.save_state(str(tmp_path / "policy"))
    other = await backend.create_critic("m", seed=9)
    await other.load_state(str(tmp_path / "critic"))
    assert await other.digest() == await critic.digest()
    for one, folder in ((other, "policy"), (policy, "critic")):
        with pytest.raises(SettingError, match=r"checkpoint .* is of model"):
            await one.load_state(str(tmp_path / folder))


async def test_discarded_gradients_of_a_critic_leave_no_trace() -> None:
    digests = set()
    for trained in (True, False):
        critic = await ScriptedBackend().create_critic("m")
        if trained:
            await critic.forward_backward([value_datum()], LOSS)
            await critic.discard_gradients()
        await critic.optim_step(Adam())
        digests.add(await critic.digest())
    assert len(digests) == 1


async def test_what_a_critic_cannot_take_is_refused() -> None:
    critic = await ScriptedBackend().create_critic("m")
    with pytest.raises(SettingError, match="datum 0 has returns=None"):
        await critic.forward_backward([value_datum(returns=None)], LOSS)
    with pytest.raises(SettingError, match="datum 0 is a Datum; this model takes ValueDatum"):
        await critic.forward([datum()])  # type: ignore[list-item]
    await critic.unload()
    with pytest.raises(BackendError, match="was unloaded"):
        await critic.forward([value_datum()])


async def test_a_reference_never_changes() -> None:
    backend = ScriptedBackend()
    reference, other = await backend.reference("m"), await backend.reference("n")
    first = (await reference.forward([datum(), datum(7)])).logprobs
    assert (first[0] <= 0).all() and first[0][0] == 0 and first[0].any()
    assert first[0].tolist() != first[1].tolist() != (await other.forward([datum(7)])).logprobs[0].tolist()
    model = await backend.create_model("m")
    await model.forward_backward([datum()], PPO())
    await model.optim_step(Adam())
    assert (await reference.forward([datum()], PPO())).logprobs[0].tolist() == first[0].tolist()
    assert reference.info.model == "m"
    with pytest.raises(UnsupportedError, match="no distribution"):
        await reference.forward([datum()], entropy=True)
    await reference.unload()
    with pytest.raises(BackendError, match="reference 'm' was unloaded"):
        await reference.forward([datum()])


def test_it_says_what_it_has() -> None:
    able = ScriptedBackend().capabilities()
    assert able.critics and able.references
