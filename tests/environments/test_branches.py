"""What happens in the branches of a `gather` is named by where it stands in `play`, never by which branch ran first."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import anyio
import pytest

from sparring.environments import Seat, gather
from sparring.errors import SettingError
from tests.environments.conftest import Scripted, episode, saying


async def forked_in_branches(running: Scripted) -> list[str]:
    root = Seat("solver", running)

    async def line(turns: int) -> Seat:
        fork = root.fork()
        for turn in range(turns):
            await fork.ask(f"{turn}")
        await fork.fork("again").ask("once more")
        return fork

    await gather(*(line(3 - index) for index in range(3)))
    await gather(line(1))
    await root.fork().ask("at the end")
    return [seat.key for seat in root.family]


async def test_forks_made_in_branches_have_the_same_names_in_every_run() -> None:
    """Event loops differ in the order in which they start tasks (trio's is random): the names must not."""
    expected = [
        "solver",
        "solver/1",
        *("solver/0:1", "solver/0:1.1", "solver/0:2", "solver/0:2.1"),
        *("solver/1:1", "solver/1:1.1", "solver/2:1", "solver/2:1.1"),
    ]
    for _ in range(30):
        running = Scripted(script=lambda conversation, request: "yes")
        with episode(running):
            assert await forked_in_branches(running) == expected
        asked = {(place.fork, request.turn) for place, request in running.requests}
        assert len(asked) == len(running.requests)
        assert {("0:1", 0), ("0:1", 1), ("0:1", 2), ("1:1", 1), ("2:1", 0), ("2:1.1", 0)} <= asked
        assert ("2:1", 1) not in asked


@pytest.mark.parametrize("first", [0, 1])
async def test_one_seat_is_not_used_in_two_branches(first: int) -> None:
    """Refused whichever of them comes first, and although they never overlap in time."""
    judge = Seat("judge", saying("a", "b"))
    turns = [anyio.Event(), anyio.Event()]
    turns[first].set()

    async def report(index: int) -> None:
        await turns[index].wait()
        try:
            judge.tell(f"{index}")
        finally:
            turns[1 - index].set()

    with pytest.raises(SettingError, match=r"Seat\('judge'\) was told something in one branch of gather\(\) after"):
        await gather(report(0), report(1))


async def used_twice(uses: tuple[Awaitable[Any], ...]) -> None:
    with pytest.raises(SettingError, match=r"which came first would be chance|while it was still answering"):
        await gather(*uses)


async def test_every_use_counts() -> None:
    solver = Seat("solver", saying("a", "b", "c", "d"))
    await solver.ask("hello")

    async def use(what: str) -> None:
        if what == "ask":
            await solver.ask("x")
        elif what == "reward":
            solver.reward(1.0)
        elif what == "new_context":
            solver.new_context()
        else:
            solver.fork()

    for what in ("ask", "reward", "new_context", "fork"):
        await used_twice((use("reward"), use(what)))
    await used_twice((use("reward"), gather(use("reward"))))


async def test_a_seat_may_be_used_in_one_branch_after_another_gather() -> None:
    solver, other = Seat("solver", saying("a", "b", "c")), Seat("other", saying("d", "e"))
    await gather(solver.ask("1"), other.ask("1"))
    await gather(other.ask("2"), solver.ask("2"))
    solver.tell("between")
    await gather(gather(solver.ask("3")))
    assert len(solver.conversation.entries) == 7


async def test_forking_one_seat_in_many_branches_is_fine() -> None:
    solver = Seat("solver", saying("a", "b"))
    solver.tell("shared")

    async def line() -> str:
        return (await solver.fork().ask()).text

    assert sorted(await gather(line(), line())) == ["a", "b"]
