"""One episode: its faults, its deadline, and how it ends."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sparring.agents import ScriptedAgent
from sparring.environments import Conversation, Outcome, Request, Score, Seat, effect, environment, gather
from sparring.errors import (
    BackendError,
    JournalError,
    RewardError,
    SettingError,
    SparringError,
)
from sparring.rollout.episode import Episode, run_episode
from sparring.rollout.events import Acted, Affected
from tests.rollout.stage import Voice, conduct, echo, last_message, plan_of

# -------------------------------------------------------------------------------------------------------------- faults


@environment
async def faulty(task: str, one: Seat) -> float:
    await one.ask("before")
    if task == "raises":
        raise ValueError("no \udc80 Unicode")
    if task == "unjudged":
        return float(Score(error="no verdict"))
    if task == "group":
        raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
    return float("nan")


@pytest.mark.parametrize(
    ("task", "fault", "detail"),
    [
        ("raises", "ValueError", "no \\udc80 Unicode"),
        ("unjudged", "Unjudged", "no verdict"),
        ("group", "ExceptionGroup", "two"),
    ],
)
async def test_a_fault_says_what_happened(task: str, fault: str, detail: str) -> None:
    done = await conduct(plan_of(faulty, Voice(echo), task=task))
    assert done.ended.fault == fault and detail in done.ended.detail
    assert done.ended.results == [] and len(done.events) == 1


async def test_a_wrong_reward_ends_the_run() -> None:
    with pytest.raises(RewardError, match="nan"):
        await conduct(plan_of(faulty, Voice(echo), task="nan"))


async def test_text_that_is_no_unicode_is_written_as_its_escape() -> None:
    @environment
    async def odd(task: int, one: Seat) -> Outcome:
        fork = one.fork("\udc80")
        await gather(one.ask("a"), fork.ask("b"))
        return Outcome({one: 1.0, fork: 1.0}, metrics={"m\udc81": 1.0}, notes={"n": "\udc82"})

    done = await conduct(plan_of(odd, Voice(echo)))
    assert done.ended.results[1].label == "\\udc80"
    assert done.ended.metrics == {"m\\udc81": 1.0} and done.ended.notes == {"n": "\\udc82"}


@environment
async def deaf(task: int, one: Seat) -> float:
    """Takes any failure for an answer, and its reward for the end."""
    await one.ask("first")
    try:
        await one.ask("second")
    except Exception:  # noqa: BLE001 - what users write
        return -1.0
    return 1.0


@pytest.mark.parametrize("error", [BackendError("the sampler died"), JournalError("no space left")])
async def test_what_breaks_the_run_cannot_be_swallowed(error: SparringError) -> None:
    async def breaks(conversation: Conversation, request: Request, seed: int) -> str:
        if request.turn == 1:
            raise error
        return "fine"

    with pytest.raises(type(error), match=str(error)):
        await conduct(plan_of(deaf, Voice(breaks)))


async def test_a_broken_player_is_a_fault_also_if_the_environment_swallows_it() -> None:
    async def breaks(conversation: Conversation, request: Request, seed: int) -> str:
        if request.turn == 1:
            raise ZeroDivisionError
        return "fine"

    done = await conduct(plan_of(deaf, Voice(breaks)))
    assert done.ended.fault == "ZeroDivisionError", "the replay could not tell how it went on"
    assert len(done.events) == 1


async def test_an_event_that_cannot_be_journaled_is_a_fault() -> None:
    async def odd(conversation: Conversation, request: Request, seed: int) -> str:
        return "\udc80" if request.turn == 1 else "fine"

    done = await conduct(plan_of(deaf, Voice(odd)))
    assert done.ended.fault == "UnicodeEncodeError" and len(done.events) == 1


# ------------------------------------------------------------------------------------------------ deadlines and endings


@environment
async def sleeper(task: int, one: Seat) -> float:
    await one.ask("before")
    await anyio.sleep_forever()
    return 1.0


@environment
async def waiter(task: int, one: Seat) -> float:
    await one.ask("?")
    return 1.0


FOR_EVER = 200_000
"""Turns that take far longer than any deadline here, and yet end: a test that fails should not hang."""


@environment
async def spinner(task: int, one: Seat) -> float:
    for _ in range(FOR_EVER):
        await one.ask("again")
    return 1.0


@environment
async def whirl(task: int, one: Seat) -> float:
    for _ in range(FOR_EVER):
        await effect(no_wait)
    return 1.0


async def no_wait() -> int:
    return 1


@environment
async def stubborn(task: int, one: Seat) -> float:
    with suppress(BaseException):
        await anyio.sleep_forever()
    return 1.0


@environment
async def angry(task: int, one: Seat) -> float:
    try:
        await anyio.sleep_forever()
    except BaseException as error:
        raise ValueError("interrupted") from error
    return 1.0


async def absent(conversation: Conversation, request: Request, seed: int) -> str:
    if last_message(conversation) == "?":
        await anyio.sleep_forever()
    return "here"


@pytest.mark.parametrize(
    ("game", "waited"),
    [
        (sleeper, "the environment itself"),
        (waiter, "a reply of seat 'one'"),
        (spinner, ""),
        (whirl, ""),
        (stubborn, "to start"),
        (angry, "to start"),
    ],
)
async def test_a_deadline_ends_whatever_hangs(game: Any, waited: str) -> None:
    with anyio.fail_after(5):
        done = await conduct(plan_of(game, Voice(absent), deadline=0.3))
    assert done.ended.fault == "deadline", "also where play swallows it, or makes an error of its own of it"
    assert f"play did not end within 0.3 s; it waited for {waited}" in done.ended.detail


async def test_a_deadline_ends_a_scripted_player_that_never_waits() -> None:
    with anyio.fail_after(5):
        done = await conduct(plan_of(spinner, ScriptedAgent(lambda conversation: "ok"), deadline=0.3))
    assert done.ended.fault == "deadline"


@pytest.mark.parametrize("game", [sleeper, waiter, stubborn, angry])
async def test_an_episode_that_is_cut_off_has_no_outcome(game: Any) -> None:
    """The run stops: nothing that play makes of it may enter the journal."""
    plan = plan_of(game, Voice(absent), deadline=60)
    outcomes: list[Any] = []

    async def emit(event: Acted | Affected) -> None:
        """Kept by nobody."""

    async def perform() -> None:
        outcomes.append(await run_episode(Episode(plan, emit), plan))

    async with anyio.create_task_group() as group:
        group.start_soon(perform)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert outcomes == []


async def test_nothing_of_an_episode_goes_on_after_it() -> None:
    """A branch that play started behind gather's back neither asks nor is answered once play has returned."""
    refused: list[str] = []
    async with anyio.create_task_group() as outside:

        async def later(seat: Seat, waiting: anyio.Event) -> None:
            try:
                await waiting.wait()
                await seat.ask("one more thing")
            except SettingError as error:
                refused.append(str(error))

        over, asked = anyio.Event(), anyio.Event()

        async def slow(conversation: Conversation, request: Request, seed: int) -> str:
            if conversation.place.fork:
                asked.set()
                await over.wait()
            return "fine"

        @environment
        async def leaky(task: int, one: Seat) -> float:
            now = anyio.Event()
            now.set()
            outside.start_soon(later, one.fork(), over)
            outside.start_soon(later, one.fork(), now)
            await one.ask("hello")
            await asked.wait()
            return 1.0

        done = await conduct(plan_of(leaky, Voice(slow)))
        over.set()
    assert done.ended.fault == "" and len(done.events) == 1, "the late reply is not journaled"
    assert len(refused) == 2 and all("after play had returned" in text for text in refused)
