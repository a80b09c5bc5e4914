"""Our environments as Gymnasium's: its own checker, the rewards of each step, chance, failures, and the end of what runs."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest

from sparring.environments import Environment, Outcome, Score, Seat, effect, environment, gather
from sparring.environments.as_gymnasium import SeatEnv, as_gymnasium
from sparring.errors import SettingError, UnsupportedError

checker = pytest.importorskip("gymnasium.utils.env_checker", reason="needs the extra games")


@environment
async def guess(task: int, player: Seat, *, rng: Random, tries: int = 3) -> Outcome:
    """A number from chance and the task; warmer is better."""
    player.system("Guess.")
    secret = task * 10 + rng.randrange(10)
    said = "How much?"
    for _ in range(tries):
        reply = await player.ask(said)
        far = abs(int(reply.text) - secret) if reply.text.isdigit() else 100
        player.reward(-far / 100)
        if far == 0:
            break
        said = f"{await effect(described, far)} off"
    return Outcome({player: 1.0 if far == 0 else 0.0}, metrics={"far": float(far)})


async def described(far: int) -> str:
    return str(far)


@contextmanager
def opened(environment: Environment[Any], tasks: Any = range(3)) -> Iterator[SeatEnv]:
    env = as_gymnasium(environment, tasks)
    try:
        yield env
    finally:
        env.close()


def test_gymnasium_s_checker_has_nothing_to_say() -> None:
    with opened(guess) as env, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not registered, and that its spaces are its own
        checker.check_env(env, skip_render_check=True)


def test_an_episode_step_by_step() -> None:
    with opened(guess(tries=2)) as env:
        told, info = env.reset(seed=4)
        assert told == "Guess.\nHow much?" and set(info) == {"task"}
        first = env.step("nothing")
        assert first == ("100 off", -1.0, False, False, {})
        far = 0
        for secret in range(info["task"] * 10, info["task"] * 10 + 10):
            env.reset(seed=4)
            told, reward, over, truncated, end = env.step(str(secret))
            far += not over
            if over:
                assert (told, reward, truncated) == ("", 1.0, False)
                assert end == {"metrics": {"far": 0.0}, "unjudged": {}}
        assert far == 9, "chance is that of the seed"
        assert env.step("1") is not None


def test_tasks_and_chance_are_those_of_the_seed() -> None:
    with opened(guess, range(1000)) as env:
        tasks = [env.reset(seed=seed)[1]["task"] for seed in (1, 1, 2)]
        assert tasks[0] == tasks[1] != tasks[2]
        assert env.reset(seed=1, options={"task": 7})[1]["task"] == 7


@environment
async def fails(task: int, player: Seat) -> Any:
    forks = [player.fork() for _ in range(2)]
    replies = await gather(*(fork.ask(str(number)) for number, fork in enumerate(forks)))
    if task == 1:
        raise ValueError("broken")
    if task == 2:
        await player.choose("which?", ("a", "b"))
    return {
        fork: Score(error="nobody") if reply.text == "?" else 1.0 for fork, reply in zip(forks, replies, strict=True)
    }


def test_forks_failures_and_what_is_not_judged() -> None:
    with opened(fails) as env:
        told = [env.reset(options={"task": 0})[0]]
        observation, reward, over, _, _ = env.step("!")
        told.append(observation)
        assert (sorted(told), reward, over) == (["0", "1"], 0.0, False)
        _, reward, over, _, info = env.step("?")
        assert (reward, over) == (1.0, True) and list(info["unjudged"].values()) == ["nobody"]
        for task, error in ((1, ValueError), (2, UnsupportedError)):
            env.reset(options={"task": task})
            env.step("a")
            with pytest.raises(error):
                env.step("b")


def test_what_is_wrong_says_so() -> None:
    with opened(guess(tries=1)) as env:
        with pytest.raises(SettingError, match=r"call reset\(\) first"):
            env.step("1")
        env.reset(seed=0)
        with pytest.raises(SettingError, match=r"step\(3\): must be text"):
            env.step(3)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="at least one task"):
        as_gymnasium(guess, [])
    with pytest.raises(SettingError, match="seats one, two: Gymnasium knows one player"):
        as_gymnasium(two_seats, range(3))


@environment
async def two_seats(task: int, one: Seat, two: Seat) -> dict[Seat, float]:
    return {one: 0.0, two: 0.0}


def test_closing_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        with opened(guess) as env:
            env.reset(seed=0)
            env.reset(seed=1)
            env.close()
    assert set(threading.enumerate()) == before
