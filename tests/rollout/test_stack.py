"""Which call holds the loop: the one that is under way in both stacks, named as its user would look for it."""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from random import Random
from threading import get_ident
from types import FrameType, FunctionType
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sparring.environments import Environment, Seat
from sparring.rollout.stack import culprit, stack_of, still_running, told

HERE = __file__


def names(frames: list[FrameType]) -> list[str]:
    return [frame.f_code.co_name for frame in frames]


def seen() -> list[FrameType]:
    """The stack of whoever asks."""
    return stack_of(get_ident())[:-2]


def twice() -> tuple[list[FrameType], list[FrameType]]:
    """Two looks at one call, a helper deep in each."""

    def look() -> list[FrameType]:
        return seen()

    return look(), look()


def test_a_stack_is_outermost_first_and_nobodys_is_empty() -> None:
    def inner() -> list[FrameType]:
        return stack_of(get_ident())

    frames = inner()
    assert names(frames)[-3:] == ["test_a_stack_is_outermost_first_and_nobodys_is_empty", "inner", "stack_of"]
    assert stack_of(-1) == []


async def test_a_call_that_goes_on_is_in_both_stacks_and_what_it_calls_is_not() -> None:
    async def part() -> tuple[list[FrameType], list[FrameType]]:
        return twice()

    before, now = await part()
    assert names(now)[-1] == "look"
    running = still_running(before, now)
    assert names(running)[-2:] == ["part", "twice"], "two calls of the helper are two calls"
    assert "_run_once" not in names(running) and "unrolled_run" not in names(running), (
        "the event loop itself is no task"
    )
    place = culprit(running)
    assert (place.function, place.file) == ("twice", HERE)
    assert str(place) == f"twice ({HERE}:{place.line})"
    assert told(now).splitlines()[-2].startswith(f'  File "{HERE}"') and "in look" in told(now)


async def test_tasks_that_take_turns_hold_nothing() -> None:
    stacks: list[list[FrameType]] = []

    async def one() -> None:
        stacks.append(seen())

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        group.start_soon(one)
    assert still_running(*stacks) == []


async def test_a_loop_that_waits_for_something_to_happen_holds_nothing() -> None:
    """Its own thread cannot look at it then."""
    loop = get_ident()

    def look() -> list[FrameType]:
        while True:
            stack = stack_of(loop)
            if not any(frame.f_code.co_filename == HERE for frame in stack):
                return stack

    before = await anyio.to_thread.run_sync(look)
    stacks: list[list[FrameType]] = []

    def look_again() -> None:
        stacks.append(look())

    await anyio.to_thread.run_sync(look_again)
    assert still_running(before, stacks[0]) == []


class Called(Environment[int]):
    """Runs what it is given when it is played."""

    seats = ("only",)

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    async def play(self, task: int, *players: Seat) -> float:
        return float(self.call())


async def frames_of(call: Callable[[Callable[[], int]], Any]) -> list[FrameType]:
    """The stack where `call` calls what it was given, below sparring's own frames."""
    stacks: list[list[FrameType]] = []

    def deepest() -> int:
        stacks.append(stack_of(get_ident())[:-2])
        return 0

    await Called(lambda: call(deepest)).begin(1, [], Random(0))
    return still_running(stacks[0], stacks[0])


async def test_the_users_own_line_is_named_not_the_library_that_it_calls() -> None:
    class Odd:
        def __init__(self, look: Callable[[], int]) -> None:
            self.look = look

        def __int__(self) -> int:
            return self.look()

    def through_json(look: Callable[[], int]) -> int:
        json.dumps(Odd(look), default=int)
        return 0

    frames = await frames_of(through_json)
    assert frames[-1].f_code.co_filename == HERE, "the user's own __int__ stands innermost"

    def only_json(look: Callable[[], int]) -> int:
        json.dumps(object(), default=lambda _: look())
        return 0

    frames = await frames_of(only_json)
    inside = [frame.f_code.co_filename for frame in frames]
    last = max(index for index, name in enumerate(inside) if name.endswith("encoder.py"))
    place = culprit(frames[: last + 1])
    assert (place.function, place.file) == (only_json.__qualname__, HERE)


def planted(function: Callable[..., Any], module: str) -> Callable[..., Any]:
    """The function as if it were one of an installed module."""
    path = Path(sysconfig.get_path("purelib")) / f"{module.replace('.', '/')}.py"
    assert isinstance(function, FunctionType)
    return FunctionType(function.__code__.replace(co_filename=str(path)), {"__name__": module})


def helper(look: Callable[[], None]) -> None:
    look()


def play(inside: Callable[..., None], look: Callable[[], None]) -> None:
    inside(look)


def test_an_installed_environment_is_named_by_what_sparring_called() -> None:
    stacks: list[list[FrameType]] = []

    def look() -> None:
        stacks.append(stack_of(get_ident())[:-2])

    begin = planted(play, "sparring.rollout.planted")
    environment = planted(play, "games.chess")
    solver = planted(helper, "games.solver")
    begin(lambda inner: environment(solver, inner), look)
    frames = [frame for frame in stacks[0] if frame.f_code.co_name != "<lambda>"]
    assert names(frames)[-3:] == ["play", "play", "helper"]
    assert culprit(frames).file.endswith("games/chess.py")
    assert culprit(frames[:-2]).file.endswith("sparring/rollout/planted.py"), (
        "where it called nothing, it is named itself"
    )


@pytest.mark.parametrize("count", [1, 3])
def test_the_innermost_of_the_users_functions_is_named(count: int) -> None:
    def down(left: int) -> list[FrameType]:
        return down(left - 1) if left else seen()

    frames = down(count)
    assert culprit(frames).function == down.__qualname__
    assert culprit(frames).line == sys._getframe().f_lineno - 4
