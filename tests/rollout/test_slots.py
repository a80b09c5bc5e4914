"""Episode slots: never more than there are, the most urgent first, none lost to a waiter that gave up."""

from __future__ import annotations

from random import Random

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from sparring.rollout import Slots


class Player:
    """Somebody who wants a slot, holds it until told, and can be called off."""

    def __init__(self, slots: Slots, name: str, priority: tuple[int, ...], order: list[str]) -> None:
        self.slots, self.name, self.priority, self.order = slots, name, priority, order
        self.scope = anyio.CancelScope()
        self.enough = anyio.Event()
        self.playing = False

    async def play(self) -> None:
        with self.scope:
            async with self.slots.at(self.priority):
                self.order.append(self.name)
                self.playing = True
                await self.enough.wait()
        self.playing = False


async def started(group: TaskGroup, players: list[Player]) -> None:
    """Start them one after the other."""
    for player in players:
        group.start_soon(player.play)
        await anyio.wait_all_tasks_blocked()


async def test_the_most_urgent_goes_first_then_who_came_first() -> None:
    slots, order = Slots(1), list[str]()
    wanted = [
        ("holds", (5,)),
        ("late", (9,)),
        ("first", (2, 0)),
        ("second", (2, 1)),
        ("tie", (2, 1)),
        ("held out", (-1,)),
    ]
    players = [Player(slots, name, priority, order) for name, priority in wanted]
    async with anyio.create_task_group() as group:
        await started(group, players)
        counted = slots.statistics()
        assert (counted.slots, counted.used, counted.waiting) == (1, 1, 5)
        for player in players:
            player.enough.set()
    assert order == ["holds", "held out", "first", "second", "tie", "late"]
    assert slots.statistics().used == slots.statistics().waiting == 0


async def test_nobody_overtakes_who_waits() -> None:
    slots, order = Slots(2), list[str]()
    one, two, three, four = (Player(slots, name, (0,), order) for name in ("one", "two", "three", "four"))
    async with anyio.create_task_group() as group:
        await started(group, [one, two, three])
        assert order == ["one", "two"]
        one.enough.set()
        group.start_soon(four.play)
        await anyio.wait_all_tasks_blocked()
        assert order == ["one", "two", "three"], "the slot went to who waited, not to who came just then"
        for player in (two, three, four):
            player.enough.set()


async def test_a_waiter_that_gives_up_leaves_the_line() -> None:
    slots, order = Slots(1), list[str]()
    one, two, three = (Player(slots, name, (0,), order) for name in ("one", "two", "three"))
    async with anyio.create_task_group() as group:
        await started(group, [one, two, three])
        two.scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert slots.statistics().waiting == 1
        one.enough.set()
        await anyio.wait_all_tasks_blocked()
        assert order == ["one", "three"]
        three.enough.set()
    assert slots.statistics().used == 0


async def test_a_slot_that_was_handed_to_a_cancelled_waiter_goes_on() -> None:
    """The slot is given and the waiter cancelled in the same breath: between its waking and its running."""
    slots, order = Slots(1), list[str]()
    one, two, three = (Player(slots, name, (0,), order) for name in ("one", "two", "three"))
    async with anyio.create_task_group() as group:
        await started(group, [one, two, three])
        slots._give()
        two.scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert order[0] == "one" and order[-1] == "three"
        slots._used += 1  # what was given by hand above
        one.enough.set()
        three.enough.set()
    assert slots.statistics().used == 0


async def test_an_episode_that_fails_gives_its_slot_back() -> None:
    slots = Slots(1)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with slots.at((0,)):
                raise RuntimeError
    assert slots.statistics().used == 0


@pytest.mark.parametrize("seed", range(5))
async def test_any_order_of_arrivals_ends_and_cancellations(seed: int) -> None:
    rng, slots, order = Random(seed), Slots(3), list[str]()
    players = [Player(slots, str(number), (rng.randrange(4),), order) for number in range(60)]
    async with anyio.create_task_group() as group:
        for player in players:
            group.start_soon(player.play)
            for other in rng.sample(players, 2):
                if rng.random() < 0.7:
                    (other.scope.cancel if rng.random() < 0.5 else other.enough.set)()
            if rng.random() < 0.5:
                await anyio.lowlevel.checkpoint()
            counted = slots.statistics()
            assert sum(one.playing for one in players) <= counted.used <= 3
        await anyio.wait_all_tasks_blocked()
        waiting = slots.statistics().waiting
        assert waiting == 0 or slots.statistics().used == 3, "a slot is free and somebody waits"
        for player in players:
            player.enough.set()
    assert slots.statistics().used == slots.statistics().waiting == 0, "a slot was lost"


class Forgetful(Slots):
    """A planted defect: a slot that was handed to a waiter which was cancelled is lost."""

    async def _take(self, priority: tuple[int, ...]) -> None:
        if self._used < self._slots and not self._waiting:
            self._used += 1
            return
        event = anyio.Event()
        self._waiting.append((priority, self._arrivals, event))
        self._arrivals += 1
        await event.wait()


async def test_the_planted_defect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slots, "_take", Forgetful._take)
    with pytest.RaisesGroup(AssertionError):
        await test_a_waiter_that_gives_up_leaves_the_line()
