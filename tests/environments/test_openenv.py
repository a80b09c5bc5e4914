"""Environments behind a server of OpenEnv: the real one, its game played from here as by its own client."""

from __future__ import annotations

import importlib
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.to_thread
import pytest
from websockets.sync.server import ServerConnection, serve

from sparring import Episodes, Lineup, Policy, Run, ScriptedModels, check_environment, grpo
from sparring.agents import Action, Scripted
from sparring.environments import Conversation, Message, Reply, Request, openenv_session
from sparring.environments.openenv import OpenEnvEnvironment, openenv_environment
from sparring.environments.openenv_session import Session
from sparring.errors import EffectError, SettingError
from sparring.learner import train_async
from sparring.rollout import Finished, MemorySegments, play
from sparring.rollout.events import Ended
from tests.learner.worlds import events_of

pytestmark = pytest.mark.adapters


@contextmanager
def process(*given: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server's address, and the process that it is."""
    command = [sys.executable, str(Path(__file__).with_name("openenv_server.py")), *map(str, given)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(running.stdout.readline())}", running
        finally:
            running.kill()


@contextmanager
def server(places: int, *given: object) -> Iterator[str]:
    """The address of one with so many places."""
    with process(places, *given) as (address, _):
        yield address


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
    player = says if hasattr(says, "act") else Scripted(says)
    return await play(environment, task, Lineup({"player": player}))


def told(done: Finished) -> list[str]:
    return [text for who, text in done.transcripts["player"] if who == "user"]


async def until(so: Callable[[], bool]) -> None:
    """Looks in a thread of its own: nothing tells of the end of another."""

    def look() -> bool:
        return any(so() or threading.Event().wait(0.01) for _ in range(1000))

    assert await anyio.to_thread.run_sync(look), asking()


def asking() -> list[set[str]]:
    """What the threads that are within a session's connection do, and those that read one: the functions they are in."""
    frames = {one: frame for one, frame in sys._current_frames().items() if one != threading.main_thread().ident}
    stacks = [[at.f_code for at, _ in traceback.walk_stack(frame)] for frame in frames.values()]
    within = [codes for codes in stacks if openenv_session.__file__ in {code.co_filename for code in codes}]
    reading = [{one.name} for one in threading.enumerate() if "recv_events" in one.name]
    return [{code.co_name for code in codes} for codes in within] + reading


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


def by_their_client(url: str, task: Mapping[str, Any], actions: list[dict[str, Any]]) -> list[tuple[Any, Any, bool]]:
    """(observation, reward, done) of the reset and of each action."""
    from openenv.core.generic_client import GenericEnvClient

    with GenericEnvClient(base_url=url).sync() as client:
        found = [client.reset(**task), *(client.step(action) for action in actions)]
    return [(one.observation, one.reward, one.done) for one in found]


@pytest.mark.parametrize("rewarded", ["all", "last"])
@pytest.mark.parametrize("guesses", [(4, 6, 5), (1, 1, 1, 1, 1)])
async def test_it_is_played_as_by_its_own_client(url: str, rewarded: str, guesses: tuple[int, ...]) -> None:
    """The same observations and rewards, and the same end, also where it is lost."""
    wanted = next(seed for seed in range(100) if Random(seed).randint(1, 9) == 5)
    task = {"seed": wanted, "rewarded": rewarded}
    theirs = await anyio.to_thread.run_sync(by_their_client, url, task, [{"number": guess} for guess in guesses])
    seen: list[Mapping[str, Any]] = []

    def observe(observation: Mapping[str, Any]) -> str:
        seen.append(observation)
        return f"{len(seen)}. {observation['text']}"

    done = await played(
        openenv_environment(url, act=number, observe=observe), task, lambda _: str(guesses[len(seen) - 1])
    )
    assert seen == [observation for observation, _, _ in theirs]
    assert told(done) == [f"{at}. {one['text']}" for at, one in enumerate(seen[:-1], 1)]
    assert done.rewards["player"] == pytest.approx(sum(reward or 0.0 for _, reward, _ in theirs))
    assert done.metrics["length"] == [over for _, _, over in theirs].index(True) == len(guesses)


async def test_an_episode_in_which_the_server_gave_no_reward_has_no_score(url: str) -> None:
    """Not that of an episode which was worth nothing; a refused reply is still worth what was said."""
    environment = openenv_environment(url, act=number, settings={"rewarded": "none"}, retries=0)
    done = await played(environment, 0)
    assert not done.rewards and done.unjudged == {"player": "the server gave no reward"}
    assert (await played(environment, 0, lambda _: "one")).rewards == {"player": -1.0}


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
        ('{"number": 7, "seven": [1]}', "Extra inputs are not permitted"),
        ('{"number": NaN}', "Out of range"),
        ('{"number": -Infinity}', "Out of range"),
        ('{"number": 1e999}', "Out of range"),
        ('{"number": "\\ud800"}', "surrogates not allowed"),
        ('{"\\udfff": 7}', "surrogates not allowed"),
        ('{"number": ' + 60 * "[" + 60 * "]" + "}", "valid integer"),
        ('{"number": ' + 80 * "[" + 80 * "]" + "}", "it is nested deeper than 64 levels"),
        ('{"number": ' + 500_000 * "[", "it is nested too deeply"),
    ],
)
async def test_a_reply_that_is_no_action_is_said_to_be_none(url: str, reply: str, why: str) -> None:
    """By what reads it, or by the server's schema; after the last try it costs what was said."""
    done = await played(openenv_environment(url, retries=1, illegal=-3.0), 0, lambda _: reply)
    assert [text.startswith("That is not an action: ") and why in text for text in told(done)[1:]] == [True], told(done)
    assert done.rewards["player"] == -3.0
    assert done.metrics == {"length": 0.0, "refused": 2.0}


async def test_an_error_in_the_server_s_step_is_a_fault(url: str) -> None:
    """Its player is not to blame for it."""
    with pytest.raises(EffectError, match="EXECUTION_ERROR: numbers end at 1000"):
        await played(openenv_environment(url), 0, lambda _: '{"number": 2000}')


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


# ------------------------------------------------------------------------------------------------------------- sessions


class Thinking:
    """A player that takes its time."""

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        await anyio.sleep(1.5)
        return Action(reply=Reply(text="1"))

    def context_left(self, conversation: Conversation) -> int:
        return 100_000


async def test_a_session_outlives_a_player_that_thinks() -> None:
    """The server leaves whoever does not answer its pings within a fifth of a second."""
    with server(1, 0.2) as impatient:
        environment = openenv_environment(impatient, act=number, settings={"most": 1})
        assert (await played(environment, 0, Thinking())).rewards == {"player": 1.0}


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
        await until(lambda: not asking())


async def cancelled(session: Session, kind: str, data: dict[str, Any], *, at: str) -> None:
    """A request that is given up when its thread is in a function of `websockets`."""
    async with anyio.create_task_group() as group:
        group.start_soon(session.request, kind, data)
        await until(lambda: any({"exchange", at} <= one for one in asking()))
        group.cancel_scope.cancel()


async def test_a_request_that_is_cancelled_leaves_no_thread() -> None:
    with server(1) as slow:
        session = Session(slow)
        await session.request("reset", {"seed": 0, "seconds": 60})
        await cancelled(session, "step", {"number": 1}, at="recv")
        with anyio.fail_after(5):
            await session.aclose()
        await until(lambda: not asking())


async def test_a_server_that_stands_still_holds_up_nobody() -> None:
    """It neither takes what it is sent nor answers a goodbye."""
    with process(1) as (address, running):
        session = Session(address)
        await session.request("reset", {"seed": 0})
        running.send_signal(signal.SIGSTOP)
        await cancelled(session, "step", {"number": Random(0).randbytes(16 << 20).hex()}, at="send_data")
        with anyio.fail_after(5):
            await session.aclose()
        await until(lambda: not asking())


async def test_a_session_that_is_closed_while_it_connects_takes_no_place() -> None:
    """The server answers when nobody waits any more, and has its only place again."""
    with process(1) as (address, running):
        running.send_signal(signal.SIGSTOP)
        session = Session(address)
        await cancelled(session, "reset", {"seed": 0}, at="handshake")
        with anyio.fail_after(5):
            await session.aclose()
        assert asking()
        running.send_signal(signal.SIGCONT)
        await until(lambda: not asking())
        with anyio.fail_after(5):
            await played(openenv_environment(address, act=number), 0)


async def test_a_session_says_goodbye() -> None:
    heard: list[str] = []

    def answers(connection: ServerConnection) -> None:
        for message in connection:
            if not heard:
                connection.send('{"type": "observation", "data": {"done": true}}')
            heard.append(str(message))
        heard.append("the end")

    with serve(answers, "127.0.0.1", 0) as plain, ThreadPoolExecutor() as threads:
        threads.submit(plain.serve_forever)
        session = Session(f"http://127.0.0.1:{plain.socket.getsockname()[1]}")
        assert await session.request("reset", {}) == {"done": True}
        await session.aclose()
        plain.shutdown()
        await until(lambda: not asking())
    assert heard == ['{"type": "reset", "data": {}}', '{"type": "close"}', "the end"]


async def test_a_server_that_ends_is_a_fault_of_the_episode() -> None:
    with server(1) as address:
        session = Session(address)
        await session.request("reset", {"seed": 0})
    with pytest.raises(EffectError, match="the connection ended, or cannot be had"):
        await session.request("step", {"number": 1})
    await session.aclose()
    with pytest.raises(EffectError, match="cannot be had"):
        await played(openenv_environment(address, act=number), 0)


@pytest.mark.parametrize(
    "address",
    ["", "localhost", "ftp://localhost", "http://", "http://localhost:99999", "http://localhost:abc", "http://[::1"],
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(SettingError, match="give the server's address"):
        openenv_environment(address)


# ---------------------------------------------------------------------------------------------------------- description


def plainly(observation: Mapping[str, Any]) -> str:
    return str(observation)


def test_everything_that_decides_is_described(url: str) -> None:
    ours = openenv_environment(url + "/", act="number", observe=partial(plainly), rules="Guess.", settings={"most": 3})
    given = {"url": url, "rules": "Guess.", "settings": {"most": 3}, "act": "number", "observe": f"{__name__}:plainly"}
    assert ours.described() | given == ours.described()
    assert openenv_environment(url, act=number).described()["act"] == f"{__name__}:number"
    plain = openenv_environment(url)
    assert plain.described()["act"] is None and pickle.loads(pickle.dumps(plain)) == plain != ours


@pytest.mark.parametrize("what", ["act", "observe"])
def test_what_is_written_around_it_is_part_of_the_fingerprint(
    what: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "written_around_a_server.py"
    file.write_text("def function(given):\n    return {'number': 1}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    given: Any = {what: importlib.import_module(file.stem).function}
    before = openenv_environment(url, **given).fingerprint()
    assert openenv_environment(url).fingerprint().keys() == before.keys() - {f"{file.stem}:function"}
    file.write_text("def function(given):\n    return {'number': 2}\n")
    after = openenv_environment(url, **given).fingerprint()
    del sys.modules[file.stem]
    assert {one for one in before if before[one] != after[one]} == {f"{file.stem}:function"}


def test_without_the_package_it_is_named() -> None:
    lines = "import sys; sys.modules['websockets'] = None; import sparring.environments.openenv"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert "pip install 'sparring[openenv]'" in done.stderr
