"""Held-out play: whose reward it is, what has no verdict, and that it is the same at every version but for the weights."""

from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from sparring import Episodes, Frozen, Lineup, Outcome, Score, Scripted, ScriptedAgent, Seat, environment, generated
from sparring.errors import SettingError
from sparring.learner.evaluate import evaluate
from sparring.rollout import Slots
from sparring.rollout.events import Evaluated


@environment(zero_sum=("first", "second"))
async def duel(task: int, first: Seat, second: Seat) -> dict[Seat, float]:
    await first.ask("?")
    await second.ask("?")
    return {first: float(task), second: -float(task)}


@environment(headline="right")
async def judged(task: int, solver: Seat) -> Outcome:
    reply = await solver.ask(f"{task}")
    fork = solver.fork("again")
    await fork.ask("sure?")
    if task == 3:
        raise RuntimeError("a broken table")
    rewards: dict[Seat, float | Score] = {solver: Score(error="nobody knows") if task == 2 else Score(1.0), fork: 0.0}
    return Outcome(rewards, metrics={"right": float(len(reply.text))} if task != 1 else {})


async def held_out(episodes: Episodes, version: int = 4, seed: int = 0) -> Evaluated:
    agents = {seat: ScriptedAgent(lambda conversation: "ok") for seat in episodes.environment.seats}
    with anyio.fail_after(20):
        return await evaluate("x", version, episodes, agents, Slots(2), seed=seed, deadline=None)


@pytest.mark.parametrize(
    ("players", "rewards"),
    [
        ({"first": "alice", "second": Frozen("alice@0")}, [1, 2]),
        ({"first": Frozen("alice@0"), "second": "alice"}, [-1, -2]),
        ({"first": Scripted(lambda conversation: "x"), "second": "alice"}, [-1, -2]),
        ({"second": Frozen("alice@0")}, [1, 2]),
        ({}, [0, 0]),
        ({"first": "alice", "second": "bob"}, [0, 0]),
        ({"first": Frozen("alice@0"), "second": Frozen("alice@0")}, [0, 0]),
    ],
)
async def test_the_reward_is_that_of_the_learning_policies(players: Mapping[str, Any], rewards: list[float]) -> None:
    """The mean over both seats of a zero-sum game would be 0 whatever was learned."""
    found = await held_out(Episodes(duel, [1, 2], Lineup(players)))
    assert found.rewards == found.values == rewards
    assert (found.name, found.version, found.headline) == ("x", 4, "reward")


async def test_forks_count_and_what_has_no_verdict_does_not() -> None:
    found = await held_out(Episodes(judged, [0, 1, 2, 3]))
    assert found.rewards == [0.5, 0.5, 0.0, None], "the unjudged seat's fork was judged; the broken episode has nothing"
    assert found.headline == "right"
    assert found.values == [2.0, None, 2.0, None], "the environment's own measure, where it gave it"


async def test_transcripts_are_of_every_seat_and_fork() -> None:
    found = await held_out(Episodes(judged, [0]))
    first, fork = [["user", "0"], ["solver", "ok"]], [["user", "sure?"], ["solver", "ok"]]
    assert [list(line) for line in found.transcripts[0]] == [*first, *first, *fork]


@environment
async def chance(task: int, solver: Seat, *, rng: Any) -> float:
    await solver.ask("?")
    return float(rng.random())


async def test_versions_play_the_same_tasks_with_the_same_luck() -> None:
    episodes = Episodes(chance, range(4))
    one, other, third = await held_out(episodes), await held_out(episodes, version=9), await held_out(episodes, seed=1)
    assert one.rewards == other.rewards != third.rewards
    assert len(set(one.rewards)) == 4


async def test_endless_tasks_are_refused() -> None:
    with pytest.raises(SettingError, match="held-out 'x' is endless: give a finite list of tasks"):
        await held_out(Episodes(judged, generated(lambda rng: rng.randrange(9))))
