"""Small policies: what a backend promises, gradients against closed forms, states, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparring.backend import (
    Adam,
    CrossEntropy,
    Custom,
    Datum,
    ImportanceSampling,
    Regularized,
    SamplingParams,
    SmallModels,
    reply_tokens,
)
from sparring.backend.check import check_distribution, check_ends, check_likely, check_seeds
from sparring.backend.renderer import ParsedCall
from sparring.backend.small import SmallBackend
from sparring.backend.small.model import SmallModel
from sparring.backend.small.policies import Network
from sparring.backend.small.renderer import ReplyRenderer
from sparring.errors import BackendError, SettingError, UnsupportedError

MODELS = ("table", "network")
MOVES = ("Pass", "Bet")
MANY = ("aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh")


async def made(model: str, replies: tuple[str, ...] = MOVES, seed: int = 0) -> SmallModel:
    return await SmallBackend(replies=replies).create_model(model, seed=seed)


def prompt(model: SmallModel, text: str = "your card is J") -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return model.renderer.start([{"role": "user", "content": text}])


def said(
    model: SmallModel, reply: str, advantage: float = 1.0, text: str = "your card is J", q: float = -0.6931472
) -> Datum:
    tokens = np.concatenate([prompt(model, text), reply_tokens(model.renderer, reply)])
    mask = np.arange(len(tokens)) == len(tokens) - 1
    row = mask.astype(np.float32)
    return Datum(
        tokens=tokens, mask=mask, logprobs=row * np.float32(q), advantages=row * np.float32(advantage), weights=row
    )


async def odds(model: SmallModel, text: str = "your card is J") -> list[float]:
    client = await model.sampler()
    replies = [reply_tokens(model.renderer, reply) for reply in model.renderer.replies]
    return [float(one) for one in np.exp(await client.options(prompt(model, text), replies))]


@pytest.mark.parametrize("model", MODELS)
async def test_the_sampler_keeps_its_contract(model: str) -> None:
    small = await made(model, MANY)
    for check in (check_distribution, check_ends, check_seeds, check_likely):
        await check(small)


def test_a_reply_is_one_token_that_ends_the_turn() -> None:
    renderer = ReplyRenderer(MOVES)
    (token,) = reply_tokens(renderer, "Bet").tolist()
    assert token in renderer.stop_ids and renderer.parse(np.array([token], np.int32)).text == "Bet"
    first = renderer.start([{"role": "user", "content": "?"}])
    whole = renderer.start(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Bet"}, {"role": "user", "content": "!"}]
    )
    extended = renderer.extend([{"role": "user", "content": "!"}], np.array([token], np.int32))
    assert np.array_equal(np.concatenate([first, [token], extended]), whole), "prefix-stable"
    assert renderer.text(whole) == "?Bet!"
    assert renderer.fingerprint != ReplyRenderer(("Bet", "Pass")).fingerprint
    with pytest.raises(SettingError, match=r"'Raise' is none of this model's"):
        reply_tokens(renderer, "Raise")


@pytest.mark.parametrize("model", MODELS)
async def test_it_begins_uniform_and_learns_what_is_rewarded(model: str) -> None:
    small = await made(model)
    assert await odds(small) == pytest.approx([0.5, 0.5])
    for _ in range(60):
        await small.forward_backward(
            [said(small, "Bet"), said(small, "Pass", text="your card is K")], ImportanceSampling()
        )
        await small.optim_step(Adam(learning_rate=0.01))
    assert (await odds(small))[1] > 0.7 and (await odds(small, "your card is K"))[0] > 0.7
    output = await small.forward([said(small, "Bet")], ImportanceSampling())
    assert np.exp(output.logprobs[0][-1]) == pytest.approx((await odds(small))[1], abs=1e-5)


async def test_the_gradient_of_a_table_is_the_closed_form() -> None:
    """Of -r A at a uniform row of two: +-A / 2; of the entropy there, none; of the cross-entropy p - 1."""
    small = await made("table")
    for loss, want in (
        (ImportanceSampling(), 3.0 * np.sqrt(0.5)),
        (CrossEntropy(), np.sqrt(0.5)),
        (Regularized(loss=ImportanceSampling(), entropy=10.0), 3.0 * np.sqrt(0.5)),
    ):
        await small.forward_backward([said(small, "Bet", 3.0)], loss)
        stepped = await small.optim_step(Adam(learning_rate=0.0))
        assert stepped.metrics["gradient_norm"] == pytest.approx(want, rel=1e-5)


async def test_entropy_is_exact_and_pulls_to_uniform() -> None:
    small = await made("table")
    for _ in range(10):
        await small.forward_backward([said(small, "Bet")], ImportanceSampling())
        await small.optim_step(Adam(learning_rate=0.1))
    p = np.array(await odds(small))
    told = await small.forward([said(small, "Bet")], ImportanceSampling(), entropy=True)
    assert told.metrics["entropy_sum"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-4)
    await small.forward_backward([said(small, "Bet", 0.0)], Regularized(loss=ImportanceSampling(), entropy=1.0))
    await small.optim_step(Adam(learning_rate=0.1, beta1=0.0))
    assert max(await odds(small)) < p.max()


def test_a_model_of_few_replies_refuses_tools() -> None:
    renderer = ReplyRenderer(MOVES)
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
    with pytest.raises(UnsupportedError, match=r"\('Pass', 'Bet'\) cannot call tools; leave seat.tools out"):
        renderer.start([{"role": "user", "content": "your card is J"}], [tool])
    with pytest.raises(UnsupportedError, match=r"cannot call tools: .*look"):
        renderer.calling("Pass", [ParsedCall(name="look", arguments="{}")])
    assert renderer.calling("Pass", []) == "Pass"


@pytest.mark.parametrize("model", MODELS)
async def test_versions_stay_as_they_are_and_never_go_back(model: str) -> None:
    small = await made(model)
    await small.publish(0)
    old = await small.sampler(version=0)
    before = await old.options(prompt(small), [reply_tokens(small.renderer, "Bet")])
    await small.forward_backward([said(small, "Bet")], ImportanceSampling())
    await small.optim_step(Adam(learning_rate=0.5))
    await small.publish(1)
    again = await small.sampler(version=0)
    assert (await again.options(prompt(small), [reply_tokens(small.renderer, "Bet")])).tolist() == before.tolist()
    new = await small.sampler(version=1)
    assert (await new.options(prompt(small), [reply_tokens(small.renderer, "Bet")]))[0] > before[0]
    (drawn,) = await new.sample(prompt(small), SamplingParams(max_tokens=1, seed=1))
    assert drawn.versions == ((1, 1),)
    with pytest.raises(SettingError, match="versions never go back"):
        small.publish(1)
    with pytest.raises(SettingError, match=r"published are \[0, 1\]"):
        await small.sampler(version=2)
    await new.aclose()
    with pytest.raises(BackendError, match="was closed"):
        await new.logprobs([1, 2])


@pytest.mark.parametrize("model", MODELS)
async def test_a_saved_state_goes_on_as_if_nothing_had_been(model: str, tmp_path: Path) -> None:
    small = await made(model, seed=3)

    async def step(of: SmallModel) -> None:
        await of.forward_backward([said(of, "Bet")], ImportanceSampling())
        await of.optim_step(Adam(learning_rate=0.1))

    await step(small)
    path = await small.save_state(str(tmp_path / "state"))
    other = await SmallBackend(replies=MOVES).create_from_state(path)
    assert await other.digest() == await small.digest() and other.info == small.info
    await step(small)
    assert await other.digest() != await small.digest()
    await step(other)
    assert await other.digest() == await small.digest()
    fresh = await SmallBackend(replies=MOVES).create_from_state(path, optimizer=False)
    assert await odds(fresh) != [0.5, 0.5] and await fresh.digest() != await other.digest()
    with pytest.raises(SettingError, match="another size or with other replies"):
        await SmallBackend(replies=MANY).create_from_state(path)
    (tmp_path / "state" / "state.safetensors").write_bytes(b"x")
    with pytest.raises(SettingError, match="is damaged"):
        await SmallBackend(replies=MOVES).create_from_state(path)
    with pytest.raises(SettingError, match="give an absolute path"):
        small.save_state("here")


async def test_how_large_a_network_is() -> None:
    small = await made("network")
    assert 90_000 < small.info.parameters < 110_000
    policy = Network(replies=2, features=8, hidden=3)
    weights = policy.begin(0)
    assert len(weights) == policy.parameters == (8 + 1) * 3 + (3 + 1) * 2
    assert torch.equal(policy.begin(0), weights) and not torch.equal(policy.begin(1), weights)


async def test_what_cannot_be_is_refused() -> None:
    small = await made("table")
    with pytest.raises(SettingError, match="small models are 'table', 'network'"):
        await SmallBackend(replies=MOVES).create_model("smollm2-135m-instruct")
    for replies in ("Bet", ("Bet",), ("Bet", "Bet"), ("Bet", "")):
        with pytest.raises(SettingError, match="replies="):
            SmallModels(replies=replies).open(deterministic=False)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="rows=0"):
        SmallModels(replies=MOVES, rows=0).open(deterministic=False)
    tokens = prompt(small)
    ones = np.ones(len(tokens), np.float32)
    bytes_ = Datum(tokens=tokens, mask=np.arange(len(tokens)) > 0, logprobs=ones, advantages=ones, weights=ones)
    with pytest.raises(SettingError, match="is no reply"):
        small.forward([bytes_], CrossEntropy())
    with pytest.raises(UnsupportedError, match="compute every other loss"):
        small.forward([said(small, "Bet")], Custom(function=lambda data, lps: (lps[0].sum(), {})))
    with pytest.raises(UnsupportedError, match="nothing is in flight"):
        await small.sampler("inflight")
    with pytest.raises(UnsupportedError, match="no critics"):
        await SmallBackend(replies=MOVES).create_critic("table")
    with pytest.raises(UnsupportedError, match="use save_state"):
        small.export("there")
    client = await small.sampler()
    with pytest.raises(SettingError, match="has 2 replies"):
        await client.sample(tokens, SamplingParams(max_tokens=1, top_logprobs=3))
    await small.unload()
    with pytest.raises(BackendError, match="was unloaded"):
        small.digest()
