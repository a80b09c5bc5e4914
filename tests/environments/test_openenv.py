"""Environments behind a server of OpenEnv: the real one, its game played from here as by its own client."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from sparring import Episodes, Lineup, Policy, Run, ScriptedModels, check_environment, grpo
from sparring.agents import Scripted
from sparring.environments import Conversation, Message
from sparring.environments.openenv import OpenEnvEnvironment, openenv_environment
from sparring.environments.openenv_session import Session
from sparring.errors import EffectError, SettingError
from sparring.learner import train_async
from sparring.rollout import Finished, MemorySegments, play
from sparring.rollout.events import Ended
from tests.learner.worlds import events_of

pytestmark = pytest.mark.adapters


@contextmanager
def server(places: int) -> Iterator[str]:
    """The address of one with so many places."""
    command = [sys.executable, str(Path(__file__).with_name("openenv_server.py")), str(places)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server(8) as address:
        yield address


def number(text: str) -> dict[str, Any]:
    return {"number": int(text)}


def halving(conversation: Conversation) -> str:
    """Guesses in the middle of what is left."""
    low, high = 1, 9
    for entry in conversation.entries:
        if isinstance(entry, Message):
            low, high = (middle(low, high) + 1, high) if entry.text == "higher" else (low, high)
            low, high = (low, middle(low, high) - 1) if entry.text == "lower" else (low, high)
    return str(middle(low, high))


def middle(low: int, high: int) -> int:
    return (low + high) // 2


async def played(environment: OpenEnvEnvironment, task: Any, says: Any = halving) -> Finished:
    return await play(environment, task, Lineup({"player": Scripted(says)}))


def told(done: Finished) -> list[str]:
    return [text for who, text in done.transcripts["player"] if who == "user"]


# ------------------------------------------------------------------------------------------------------------- episodes


@pytest.mark.parametrize("task", [0, 1, 2])
async def test_it_is_the_server_s_game(url: str, task: int) -> None:
    """Its number is that of the seed; the return is the sum of the rewards that the server gave."""
    done = await played(openenv_environment(url, act=number), task)
    wanted, low, high, guesses = Random(task).randint(1, 9), 1, 9, 1
    while (guess := middle(low, high)) != wanted:
        low, high, guesses = (guess + 1, high, guesses + 1) if guess < wanted else (low, guess - 1, guesses + 1)
    assert done.rewards["player"] == pytest.approx(1.0 - 0.1 * (guesses - 1))
    assert told(done)[0] == "Guess my number."
    assert done.metrics["length"] == guesses


async def test_a_mapping_goes_to_reset_as_it_is(url: str) -> None:
    done = await played(
        openenv_environment(url, act=number, settings={"most": 9}), {"seed": 5, "most": 1}, lambda _: "1"
    )
    assert done.rewards["player"] == 1.0


async def test_a_reply_may_be_the_action_itself(url: str) -> None:
    done = await played(openenv_environment(url, settings={"most": 1}), 0, lambda _: '{"number": 1}')
    assert done.rewards["player"] == 1.0


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("seven", "Expecting value"),
        ("[7]", "it must be a JSON object"),
        ('{"number": "x"}', "valid integer"),
        ('{"number": 2000}', "numbers end at 1000"),
    ],
)
async def test_a_reply_that_is_no_action_is_said_to_be_none(url: str, reply: str, why: str) -> None:
    """By what reads it, by the server's schema, by its game; after the last try it costs what was said."""
    done = await played(openenv_environment(url, retries=1, illegal=-3.0), 0, lambda _: reply)
    assert [text.startswith("That is not an action: ") and why in text for text in told(done)[1:]] == [True]
    assert done.rewards["player"] == -3.0
    assert done.metrics == {"length": 0.0, "refused": 2.0}


async def test_an_episode_waits_for_a_place() -> None:
    """More at once than the server has places for: none fails."""
    with server(2) as small:
        environment, done = openenv_environment(small, act=number), []

        async def one(task: int) -> None:
            done.append(await played(environment, task))

        async with anyio.create_task_group() as group:
            for task in range(6):
                group.start_soon(one, task)
    assert len(done) == 6


async def test_a_session_ends_with_its_episode() -> None:
    """Also where the episode fails: a server with one place can be played again at once."""
    with server(1) as small:
        environment = openenv_environment(small, act=number)

        def fails(_: Conversation) -> str:
            raise ArithmeticError("the player is broken")

        with pytest.raises(ArithmeticError):
            await played(environment, 0, fails)
        with anyio.fail_after(5):
            await played(environment, 0)


async def test_a_server_that_ends_is_a_fault_of_the_episode() -> None:
    with server(1) as address:
        session = Session(address)
        await session.request("reset", {"seed": 0})
    with pytest.raises(EffectError, match="the connection ended, or cannot be had"):
        await session.request("step", {"number": 1})
    await session.aclose()
    with pytest.raises(EffectError, match="cannot be had"):
        await played(openenv_environment(address, act=number), 0)


@pytest.mark.parametrize("address", ["", "localhost", "ftp://localhost", "http://"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(SettingError, match="give the server's address"):
        openenv_environment(address)


async def test_it_is_trained_like_any_other(url: str, tmp_path: Path) -> None:
    """Two steps with a scripted model; its replies are numbers that the server takes."""
    run = Run(
        name="guessing",
        train=Episodes(openenv_environment(url, act=lambda text: {"number": len(text)}), range(4)),
        policies={"player": Policy("m", grpo())},
        steps=2,
        groups_per_step=2,
        group_size=2,
        backend=ScriptedModels(),
        folder=tmp_path,
    )
    store = MemorySegments()
    assert await train_async(run, store=store)
    ends = [event for event in events_of(store) if isinstance(event, Ended)]
    assert len(ends) == 8 and all(event.metrics["length"] >= 1 for event in ends)


def test_it_keeps_the_contract(url: str) -> None:
    """In another process, beside other episodes, with hostile replies."""

    async def check() -> Any:
        return await check_environment(openenv_environment(url), range(3), count=3)

    found = anyio.run(check)
    assert found.passed, str(found)


def test_everything_that_decides_is_described(url: str) -> None:
    ours = openenv_environment(url + "/", rules="Guess.", settings={"most": 3})
    assert ours.described() | {"url": url, "rules": "Guess.", "settings": {"most": 3}} == ours.described()
    assert pickle.loads(pickle.dumps(ours)) == ours != openenv_environment(url)


def test_without_the_package_it_is_named() -> None:
    lines = "import sys; sys.modules['websockets'] = None; import sparring.environments.openenv"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert "pip install 'sparring[openenv]'" in done.stderr
