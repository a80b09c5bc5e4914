"""Our environments as PettingZoo's: its own tests, who acts and what each is told and given, chance, failures, the end."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest

from examples.kuhn import Deal, kuhn
from sparring.environments import Environment, Outcome, Score, Seat, environment, gather
from sparring.environments.as_pettingzoo import SeatsEnv, as_pettingzoo
from sparring.environments.games import rock_paper_scissors
from sparring.errors import SettingError

zoo = pytest.importorskip("pettingzoo.test", reason="needs the extra pettingzoo")
conversions = pytest.importorskip("pettingzoo.utils", reason="needs the extra pettingzoo")

DEALS = [Deal(first="J", second="K"), Deal(first="Q", second="J")]


@environment
async def auction(task: int, one: Seat, two: Seat, judge: Seat, *, rng: Random) -> Outcome:
    """Both bid at once; then the first may raise; the judge only listens. Turns are paid at once, the price at the end."""
    luck = rng.randrange(10)
    bids = await gather(one.ask(f"Lot {task}?"), two.ask(f"Lot {task}, luck {luck}?"))
    one.reward(0.5)
    judge.tell("Bids are in.")
    aside = one.fork("aside")
    more = await aside.ask(f"Against {bids[1].text}?")
    return Outcome({one: 1.0, two: -1.0, aside: float(len(more.text)), judge: 0.25}, metrics={"luck": float(luck)})


@contextmanager
def opened(environment: Environment[Any], tasks: Any = range(3)) -> Iterator[SeatsEnv]:
    env = as_pettingzoo(environment, tasks)
    try:
        yield env
    finally:
        env.close()


@pytest.mark.parametrize(
    ("environment", "tasks"), [(kuhn, DEALS), (auction, range(3)), (rock_paper_scissors, range(2))]
)
def test_pettingzoo_s_own_tests_pass(environment: Environment[Any], tasks: Any) -> None:
    with opened(environment, tasks) as env, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # observations are no arrays, seats are not numbered, nothing is rendered
        zoo.api_test(env, num_cycles=40)
        zoo.parallel_api_test(conversions.turn_based_aec_to_parallel(env), num_cycles=40)


def test_the_api_test_can_fail() -> None:
    class Forgetful(SeatsEnv):
        def _next(self) -> None:
            super()._next()
            self._cumulative_rewards = {agent: value + 1 for agent, value in self._cumulative_rewards.items()}

    env = Forgetful(auction, range(3))
    with pytest.raises(AssertionError, match="accumulated rewards"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zoo.api_test(env, num_cycles=10)
    env.close()


def test_an_episode_step_by_step() -> None:
    """Of those who are asked at once the second is not told what the first bid; forks are paid to their seat."""
    with opened(auction) as env:
        env.reset(seed=4, options={"task": 2})
        assert env.agents == ["one", "two", "judge"] and env.infos["two"] == {"task": 2}
        assert env.agent_selection == "one" and env.last()[0] == {"text": "Lot 2?"}
        env.step("5")
        luck = env.last()[0]["text"]
        assert env.agent_selection == "two" and luck.startswith("Lot 2, luck ")
        assert env.rewards == {"one": 0.0, "two": 0.0, "judge": 0.0}
        env.step("7")
        assert env.agent_selection == "one" and env.last()[:2] == ({"text": "Against 7?"}, 0.5)
        env.step("more")
        assert env.rewards == {"one": 1.0 + 4.0, "two": -1.0, "judge": 0.25}
        assert all(env.terminations.values()) and not any(env.truncations.values())
        ends = []
        for agent in env.agent_iter():
            ends.append((agent, env.last()[1]))
            assert env.infos[agent]["metrics"] == {"luck": float(luck[-2])} and env.infos[agent]["unjudged"] == {}
            env.step(None)
        assert ends == [("one", 5.0), ("two", -1.0), ("judge", 0.25)] and env.agents == []
        with pytest.raises(SettingError, match="call reset"):
            env.step("again")


def test_a_game_against_pettingzoo_s_loop() -> None:
    """Bet and call with a king against a jack: two chips."""
    with opened(kuhn, DEALS) as env:
        env.reset(options={"task": 0})
        got = dict.fromkeys(env.possible_agents, 0.0)
        for agent in env.agent_iter():
            _, reward, terminated, _, _ = env.last()
            got[agent] += reward
            env.step(None if terminated else "bet" if agent == "first" else "call")
        assert got == {"first": -2.0, "second": 2.0}


def test_tasks_and_chance_are_those_of_the_seed() -> None:
    def start(env: SeatsEnv, seed: int | None) -> tuple[int, str]:
        env.reset(seed=seed)
        task = env.infos["one"]["task"]
        env.step("1")
        return task, env.last()[0]["text"]

    with opened(auction, range(1000)) as env, opened(auction, range(1000)) as other:
        first, again, different = (start(env, seed) for seed in (1, 1, 2))
        assert first == again != different
        assert start(env, None) == (start(other, 2), start(other, None))[1], "it goes on from the seed"


def test_an_action_that_is_no_text() -> None:
    with opened(auction) as env:
        env.reset(seed=0)
        with pytest.raises(SettingError, match=r"step\(3\): must be text, the reply of seat 'one'"):
            env.step(3)  # type: ignore[arg-type]


@environment
async def broken(task: int, one: Seat, two: Seat) -> dict[Seat, float | Score]:
    reply = await one.ask("Hm?")
    if reply.text == "crash":
        raise ZeroDivisionError("it broke")
    return {one: 1.0, two: Score(error="nobody looked")}


def test_what_play_raises_is_raised_and_what_is_unjudged_is_said() -> None:
    with opened(broken) as env:
        env.reset(seed=0)
        with pytest.raises(ZeroDivisionError, match="it broke"):
            env.step("crash")
        env.reset(seed=0)
        env.step("well")
        assert env.infos["two"]["unjudged"] == {"two": "nobody looked"}
        assert env.rewards == {"one": 1.0, "two": 0.0}


def test_close_ends_what_runs() -> None:
    before = threading.active_count()
    env = as_pettingzoo(auction, range(3))
    env.reset(seed=0)
    assert threading.active_count() > before
    env.close()
    assert threading.active_count() == before
    with pytest.raises(SettingError, match="give at least one task"):
        as_pettingzoo(auction, [])
