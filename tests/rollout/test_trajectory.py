"""Trajectories: exactly the tokens that were sent and sampled, whoever forked, renewed or interleaved them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest

from sparring.agents import PolicyAgent, Sampling, ScriptedAgent
from sparring.arrays import F32, I32
from sparring.backend import SampledSequence, SamplingClient, SamplingParams, ScriptedBackend
from sparring.environments import Score, Seat, environment, gather
from sparring.rollout import Trajectory, trajectories
from sparring.rollout.events import Acted, Ended, SeatResult
from tests.rollout.stage import Played, conduct, plan_of


class Recording:
    """A sampling client that writes down what it was sent and what it drew; every second token is of the version before."""

    def __init__(self, client: SamplingClient) -> None:
        self._client = client
        self.calls: list[tuple[I32, SampledSequence]] = []

    @property
    def version(self) -> int:
        return 7

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        (drawn,) = await self._client.sample(prompt, params, n)
        old = len(drawn.tokens) // 2
        mixed = SampledSequence(
            tokens=drawn.tokens,
            logprobs=drawn.logprobs,
            stop=drawn.stop,
            versions=((6, old), (7, len(drawn.tokens) - old)),
        )
        self.calls.append((np.asarray(prompt, np.int32), mixed))
        return [mixed]

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        raise AssertionError("nobody asks for this")

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        raise AssertionError("nobody asks for this")

    async def aclose(self) -> None:
        """Nothing is held."""


@environment
async def winding(task: int, one: Seat, two: Seat, *, rng: Random, unjudged: bool = False) -> dict[Seat, float | Score]:
    """Turns, contexts, forks of forks, told in pieces, with rewards on the way."""
    one.system("be brief")
    first = await one.ask(f"task {task}")
    one.reward(0.25)
    one.tell("by the way")
    fork = one.fork("side")
    await gather(one.ask("go on", max_tokens=2), fork.ask(f"{first}?"), two.ask("you too"))
    one.new_context()
    await one.ask("afresh")
    one.reward(0.5)
    deep = fork.fork()
    fork.new_context()
    await gather(deep.ask("deeper"), fork.ask("again"), one.ask("and more"))
    two.fork("silent")
    judged = Score(error="nobody knows") if unjudged else Score(2.0)
    return {one: 1.0, fork: judged, deep: 3.0, two: 4.0}


async def played(*, environment: Any = winding, scripted: bool = False) -> tuple[Played, Recording]:
    async with ScriptedBackend() as backend:
        model = await backend.create_model("model")
        client = Recording(await model.sampler())
        policy = PolicyAgent(client, model.renderer, Sampling(temperature=0.5, max_tokens=20), 10_000)
        other = ScriptedAgent(lambda conversation: "as scripted")
        done = await conduct(
            plan_of(environment, {"one": policy, "two": other if scripted else policy}, group=3, member=1)
        )
    return done, client


def made(done: Played, seats: str = "one two") -> dict[str, Trajectory]:
    acted = [event for event in done.events if isinstance(event, Acted)]
    found = trajectories(acted, done.ended, {seat: f"policy of {seat}" for seat in seats.split()})
    return {f"{one.seat}/{one.fork}": one for one in found}


async def test_the_tokens_are_those_that_were_sent_and_sampled() -> None:
    done, client = await played()
    found = made(done)
    contexts = [context for trajectory in found.values() for context in trajectory.contexts]
    actions = 0
    for context in contexts:
        ends = [
            (prompt, drawn) for prompt, drawn in client.calls if len(prompt) + len(drawn.tokens) == len(context.tokens)
        ]
        assert any(np.array_equal(np.concatenate([prompt, drawn.tokens]), context.tokens) for prompt, drawn in ends), (
            "a context is what its last sample was drawn from, and that sample"
        )
        for turn in np.unique(context.turn[context.action_mask]):
            where = np.flatnonzero(context.turn == turn)
            assert np.array_equal(where, np.arange(where[0], where[-1] + 1)), "a turn is one piece"
            _, drawn = next(
                call
                for call in client.calls
                if np.array_equal(call[0], context.tokens[: where[0]]) and len(call[1].tokens) == len(where)
            )
            assert np.array_equal(context.tokens[where], drawn.tokens)
            assert np.array_equal(context.logprobs[where], drawn.logprobs)
            assert context.versions[where].tolist() == [6] * (len(where) // 2) + [7] * (len(where) - len(where) // 2)
            actions += len(where)
        assert context.temperature == 0.5
    assert actions == sum(len(drawn.tokens) for _, drawn in client.calls), "every sampled token is an action, once"


async def test_what_is_not_an_action_is_marked_so() -> None:
    done, _ = await played()
    for trajectory in made(done).values():
        for context in trajectory.contexts:
            outside = ~context.action_mask
            assert not context.logprobs[outside].any()
            assert (context.versions[outside] == -1).all() and (context.turn[outside] == -1).all()
            shapes = {
                getattr(context, name).shape for name in ("tokens", "action_mask", "logprobs", "versions", "turn")
            }
            assert shapes == {(len(context.tokens),)}
            kinds = [getattr(context, name).dtype.str for name in ("tokens", "logprobs", "versions", "turn")]
            assert kinds == ["<i4", "<f4", "<i4", "<i2"]


async def test_forks_and_contexts() -> None:
    found = made((await played())[0])
    assert list(found) == ["one/", "one/1", "one/1.1", "two/"], "the fork that never spoke makes none"
    assert [len(found[key].contexts) for key in found] == [2, 2, 1, 1]
    turns = [[sorted({*c.turn.tolist()} - {-1}) for c in found[key].contexts] for key in found]
    assert turns == [[[0, 1], [2, 3]], [[0], [1]], [[0]], [[0]]]
    assert [found[key].label for key in found] == ["", "side", "side", ""]
    assert all((one.group, one.episode, one.policy) == (3, 1, f"policy of {one.seat}") for one in found.values())


async def test_rewards_and_their_turns() -> None:
    found = made((await played())[0])
    assert [found[key].reward for key in found] == [1.75, 2.0, 3.0, 4.0], "turn rewards are in the return"
    assert found["one/"].turn_rewards.tolist() == [0.25, 0.0, 0.5, 0.0]
    assert found["one/1"].turn_rewards.tolist() == [0.0, 0.0]


async def test_truncated_is_how_the_last_turn_ended() -> None:
    @environment
    async def cut(task: int, one: Seat, two: Seat) -> dict[Seat, float]:
        await gather(one.ask("a", max_tokens=1), two.ask("b", max_tokens=1))
        await one.ask("c")
        return {one: 0.0, two: 0.0}

    found = made((await played(environment=cut))[0])
    assert (found["one/"].truncated, found["two/"].truncated) == (False, True)


async def test_who_makes_no_trajectory() -> None:
    done, _ = await played(environment=winding(unjudged=True), scripted=True)
    assert list(made(done)) == ["one/", "one/1.1"], "neither who was not judged nor who sampled no tokens"
    assert list(made(done, "two")) == []
    acted = [event for event in done.events if isinstance(event, Acted)]
    failed = msgspec.structs.replace(done.ended, fault="deadline", results=[])
    assert trajectories(acted, failed, {"one": "p"}) == [], "what failed has results only where it was scored"
    elsewhere = Ended(group=3, member=1, results=[SeatResult(seat="one", fork="9", value=1.0)])
    assert trajectories(acted, elsewhere, {"one": "p"}) == [], "a reward for a fork that never spoke"


@pytest.mark.parametrize("seed", range(3))
async def test_the_order_of_events_does_not_matter(seed: int) -> None:
    """Branches are journaled in the order of their replies, which is chance."""
    done, _ = await played()
    shuffled = list(done.events)
    Random(seed).shuffle(shuffled)
    one, other = made(done), made(Played(done.ended, shuffled, done.seats))
    assert list(one) == list(other)
    for key, trajectory in one.items():
        for here, there in zip(trajectory.contexts, other[key].contexts, strict=True):
            assert here.tokens.tobytes() == there.tokens.tobytes() and here.turn.tobytes() == there.turn.tobytes()
