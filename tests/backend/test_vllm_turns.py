"""Versions that take turns: nobody meets other weights than those asked for or waits for ever, cancelling leaves no hole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.backend.vllm.turns import Turns

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Played:
    """An engine with one version's weights; `history` is what happened to it, `holds` opens its doors one by one."""

    def __init__(self) -> None:
        self.history: list[str] = []
        self.inside: list[str] = []
        self.failing: set[str] = set()
        self.slow: asyncio.Event | None = None
        self.turns = Turns(self._install)

    async def _install(self, weights: str) -> None:
        assert not self.inside, f"{weights} installed while {self.inside} are drawn from"
        self.history.append(f"install {weights}")
        if self.slow is not None:
            await self.slow.wait()
        await asyncio.sleep(0)
        if weights in self.failing:
            raise ValueError(f"{weights} cannot be read")
        self.installed = weights

    async def draw(self, weights: str, until: asyncio.Event | None = None, steps: int = 0) -> None:
        async with self.turns.of(lambda: weights):
            assert self.installed == weights
            self.inside.append(weights)
            self.history.append(f"draw {weights}")
            try:
                for _ in range(steps):
                    await asyncio.sleep(0)
                    assert self.installed == weights
                if until is not None:
                    await until.wait()
                assert self.installed == weights
            finally:
                self.inside.remove(weights)

    def begin(self, *drawn: tuple[str, asyncio.Event | None]) -> list[asyncio.Task[None]]:
        return [asyncio.ensure_future(self.draw(weights, until)) for weights, until in drawn]


async def settled(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


@on_asyncio
async def test_one_version_is_installed_once_and_drawn_from_together() -> None:
    played, door = Played(), asyncio.Event()
    tasks = played.begin(("a", door), ("a", door), ("a", door))
    await settled(lambda: len(played.inside) == 3)
    door.set()
    await asyncio.gather(*tasks)
    await played.draw("a")
    assert played.history == ["install a", *["draw a"] * 4]


@on_asyncio
async def test_another_version_waits_for_the_end_and_those_after_it_wait_for_their_turn() -> None:
    """Whoever comes while another version waits stands in line, so that nobody waits for ever."""
    played, door = Played(), asyncio.Event()
    tasks = played.begin(("a", door))
    await settled(lambda: played.inside == ["a"])
    tasks += played.begin(("b", None), ("a", None), ("c", None), ("b", None), ("a", None))
    for _ in range(20):
        await asyncio.sleep(0)
    assert played.history == ["install a", "draw a"]
    door.set()
    await asyncio.gather(*tasks)
    turns = ["install b", "draw b", "draw b", "install a", "draw a", "draw a", "install c", "draw c"]
    assert played.history == ["install a", "draw a", *turns]


@on_asyncio
async def test_weights_that_cannot_be_installed_fail_those_that_wait_for_them_alone() -> None:
    played = Played()
    played.failing = {"b"}
    tasks = played.begin(("a", None), ("b", None), ("b", None), ("a", None))
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in done] == [type(None), ValueError, ValueError, type(None)]
    assert played.history == ["install a", "draw a", "draw a", "install b"]
    played.failing.clear()
    await played.draw("b")
    assert played.history[-2:] == ["install b", "draw b"]


@on_asyncio
async def test_one_that_is_cancelled_in_line_inside_or_just_let_in_leaves_room() -> None:
    played, door = Played(), asyncio.Event()
    inside, waiting, last = played.begin(("a", door), ("b", None), ("c", None))
    await settled(lambda: played.inside == ["a"])
    waiting.cancel()
    await settled(waiting.cancelled)
    inside.cancel()
    await last
    assert played.history == ["install a", "draw a", "install c", "draw c"]
    played.slow = asyncio.Event()
    (let_in,) = played.begin(("d", None))
    await settled(lambda: played.history[-1] == "install d")
    played.slow.set()
    await settled(lambda: played.turns._inside.total() == 1)  # pyright: ignore[reportPrivateUsage]
    let_in.cancel()  # it was let in, and has not run since
    await settled(let_in.done)
    assert let_in.cancelled() and played.turns._inside.total() == 0  # pyright: ignore[reportPrivateUsage]
    await played.draw("e")


@on_asyncio
async def test_weights_that_are_read_come_to_the_end_of_it_whoever_is_cancelled() -> None:
    played = Played()
    played.slow = asyncio.Event()
    (gone,) = played.begin(("a", None))
    await settled(lambda: played.history == ["install a"])
    gone.cancel()
    await settled(gone.cancelled)
    (next_one,) = played.begin(("b", None))
    for _ in range(20):
        await asyncio.sleep(0)
    assert played.history == ["install a"], "other weights were read into an engine that still reads"
    played.slow.set()
    await next_one
    assert played.history == ["install a", "install b", "draw b"]


class Followed(Played):
    """Beside fixed versions, models that are followed: model number 1 has "1.0", then "1.1" and so on."""

    def __init__(self) -> None:
        super().__init__()
        self.newest = {1: 0, 2: 0}
        self.followers: list[int] = []

    async def _install(self, weights: str) -> None:
        assert not [model for model in self.followers if not weights.startswith(f"{model}.")], (
            f"{weights} installed under {self.followers}"
        )
        await super()._install(weights)

    def named(self, model: int) -> str:
        return f"{model}.{self.newest[model]}"

    async def follow(self, model: int, until: asyncio.Event | None = None, steps: int = 0) -> None:
        begun = self.newest[model]
        async with self.turns.of(lambda: self.named(model), follower=model):
            self.followers.append(model)
            seen = [self.version(model)]
            self.history.append(f"follow {self.installed}")
            try:
                for _ in range(steps):
                    await asyncio.sleep(0)
                    seen.append(self.version(model))
                if until is not None:
                    await until.wait()
                seen.append(self.version(model))
            finally:
                self.followers.remove(model)
        assert seen == sorted(seen) and seen[0] >= begun, f"begun when {begun} was there, it met {seen}"

    def version(self, model: int) -> int:
        of, _, version = self.installed.partition(".")
        assert of == str(model), f"a follower of {model} met {self.installed}"
        return int(version)

    async def asked(self, kind: str, steps: int) -> None:
        """One of `KINDS`."""
        what, _, model = kind.rpartition(" ")
        if what == "follow":
            await self.follow(int(model), steps=steps)
        elif what == "go on":
            await self.go_on(int(model))
        else:
            await self.draw(kind, steps=steps)

    async def go_on(self, model: int) -> None:
        self.newest[model] += 1
        await self.turns.move(lambda: self.named(model), follower=model)


@on_asyncio
async def test_what_follows_goes_on_in_the_middle() -> None:
    played, door = Followed(), asyncio.Event()
    task = asyncio.ensure_future(played.follow(1, door))
    await settled(lambda: played.followers == [1])
    await played.go_on(1)
    assert played.installed == "1.1" and played.followers == [1]
    await played.follow(1)
    await played.go_on(1)
    door.set()
    await task
    assert played.history == ["install 1.0", "follow 1.0", "install 1.1", "follow 1.1", "install 1.2"]


@on_asyncio
async def test_a_newer_version_waits_for_others_but_not_for_those_who_follow_it() -> None:
    """Neither a snapshot of the weights that are installed nor another model's follower meets the newer ones."""
    played, door, last = Followed(), asyncio.Event(), asyncio.Event()
    follower = asyncio.ensure_future(played.follow(1, last))
    await settled(lambda: played.followers == [1])
    (fixed,) = played.begin(("1.0", door))
    await settled(lambda: played.inside == ["1.0"])
    moving, later = asyncio.ensure_future(played.go_on(1)), asyncio.ensure_future(played.follow(1))
    other = asyncio.ensure_future(played.follow(2))
    for _ in range(20):
        await asyncio.sleep(0)
    assert played.installed == "1.0" and not moving.done()
    door.set()
    await asyncio.gather(fixed, moving, later)
    assert played.installed == "1.1" and not follower.done() and not other.done()
    last.set()
    await asyncio.gather(follower, other)
    assert played.history[2:] == ["draw 1.0", "install 1.1", "follow 1.1", "install 2.0", "follow 2.0"]


@on_asyncio
async def test_whoever_waits_behind_a_newer_version_has_a_turn_though_nobody_follows_it() -> None:
    played, door = Followed(), asyncio.Event()
    (fixed,) = played.begin(("a", door))
    await settled(lambda: played.inside == ["a"])
    moving = asyncio.ensure_future(played.go_on(1))
    await asyncio.sleep(0)
    tasks = played.begin(("b", None))
    door.set()
    async with asyncio.timeout(5):
        await asyncio.gather(fixed, moving, *tasks)
    assert played.history == ["install a", "draw a", "install 1.1", "install b", "draw b"]


@on_asyncio
async def test_a_newer_version_that_is_cancelled_or_cannot_be_read_leaves_room() -> None:
    played, door = Followed(), asyncio.Event()
    (fixed,) = played.begin(("a", door))
    await settled(lambda: played.inside == ["a"])
    moving = asyncio.ensure_future(played.go_on(1))
    await asyncio.sleep(0)
    moving.cancel()
    door.set()
    await asyncio.gather(fixed, moving, return_exceptions=True)
    await played.draw("b")
    played.failing = {"1.2"}
    with pytest.raises(ValueError, match=r"1\.2 cannot be read"):
        await played.go_on(1)
    await played.go_on(1)
    await played.follow(1)
    assert played.installed == "1.3"
    assert played.turns._inside.total() == 0  # pyright: ignore[reportPrivateUsage]


KINDS = st.sampled_from(["a", "b", "follow 1", "follow 2", "go on 1", "go on 2"])
REQUESTS = st.lists(st.tuples(KINDS, st.integers(0, 3), st.integers(0, 6), st.booleans()), max_size=16)


@given(REQUESTS)
@settings(max_examples=200, deadline=None)
def test_any_requests_end_and_meet_their_own_weights(requests: list[tuple[str, int, int, bool]]) -> None:
    """Each comes after some steps, takes some, and may be cancelled in the middle; whoever draws looks what is installed."""

    async def play() -> None:
        played, tasks = Followed(), list[asyncio.Task[None]]()
        for kind, after, steps, cancelled in requests:
            for _ in range(after):
                await asyncio.sleep(0)
            tasks.append(asyncio.ensure_future(played.asked(kind, steps)))
            if cancelled and len(tasks) > 1:
                tasks[len(tasks) // 2].cancel()
        async with asyncio.timeout(10):
            done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in done), done
        await played.draw("a")

    asyncio.run(play())
