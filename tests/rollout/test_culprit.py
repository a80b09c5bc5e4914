"""The page that names whose code runs: written before each step of an environment's own code, wiped after it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from sparring.environments import Conversation, Request, Seat, effect, environment, gather
from sparring.errors import JournalError
from sparring.rollout.culprit import Own, Page, asking, found
from sparring.rollout.events import Died
from tests.rollout.stage import Voice, conduct, plan_of

NAME = b"somebody"


class Watched:
    """A page whose content can be read."""

    def __init__(self) -> None:
        self.memory = bytearray(4096)
        self.page = Page(self.memory)

    @property
    def name(self) -> bytes:
        length = int.from_bytes(self.memory[:4], "little")
        return bytes(self.memory[4 : 4 + length])


async def test_each_step_is_named_and_nothing_between_them() -> None:
    seen: list[bytes] = []
    watched = Watched()

    async def code() -> str:
        for _ in range(3):
            seen.append(watched.name)
            await anyio.lowlevel.checkpoint()
        return "done"

    async def others() -> None:
        for _ in range(6):
            assert watched.name == b""
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(others)
        assert await Own(code(), watched.page, NAME) == "done"
    assert seen == [NAME] * 3 and watched.name == b""


async def test_what_it_asks_for_is_not_its_own() -> None:
    watched = Watched()

    async def answer() -> None:
        for _ in range(2):
            assert watched.name == b""
            await anyio.lowlevel.checkpoint()

    async def code() -> None:
        with asking():
            await answer()
            with asking():
                await answer()
            await answer()
            await Own(inner(), watched.page, b"inner")
            await answer()
        assert watched.name == NAME

    async def inner() -> None:
        assert watched.name == b"inner"
        await anyio.lowlevel.checkpoint()
        assert watched.name == b"inner"

    await Own(code(), watched.page, NAME)
    with asking():
        """Outside an episode nothing is named."""
    assert watched.name == b""


async def test_errors_and_cancellation_pass_through() -> None:
    watched, left = Watched(), []

    async def fails() -> None:
        await anyio.lowlevel.checkpoint()
        raise KeyError("x")

    async def waits() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            left.append(watched.name)

    async def catches() -> str:
        try:
            with anyio.fail_after(0.01):
                await anyio.sleep_forever()
        except TimeoutError:
            await anyio.lowlevel.checkpoint()
            return "late"
        return "early"

    with pytest.raises(KeyError):
        await Own(fails(), watched.page, NAME)
    with anyio.move_on_after(0.01) as scope:
        await Own(waits(), watched.page, NAME)
    assert scope.cancelled_caught and left == [NAME] and watched.name == b""
    assert await Own(catches(), watched.page, NAME) == "late"


async def test_what_is_awaited_may_be_any_awaitable() -> None:
    class Answer:
        def __await__(self) -> Any:
            return iter(())

    assert await Own(Answer(), Watched().page, NAME) is None


# ------------------------------------------------------------------------------------------------------------- episodes


SEEN: dict[str, bytes] = {}
HERE: list[Watched] = []


def look(where: str) -> None:
    SEEN[where] = HERE[0].name


async def outside() -> int:
    look("effect")
    await anyio.lowlevel.checkpoint()
    look("effect, later")
    return 1


async def asks(seat: Seat) -> None:
    look(f"branch {seat.name}")
    await seat.ask("hello")
    look(f"branch {seat.name}, answered")


@environment
async def talk(task: int, one: Seat, two: Seat) -> dict[Seat, float]:
    look("begin")
    await one.ask("hi")
    look("answered")
    await gather(asks(one), asks(two))
    look("gathered")
    await effect(outside)
    look("affected")
    return {one: 1.0, two: 1.0}


async def unseen(conversation: Conversation, request: Request, seed: int) -> str:
    assert HERE[0].name == b"", "a player's turn is not the environment's own code"
    await anyio.lowlevel.checkpoint()
    assert HERE[0].name == b""
    return "yes"


async def test_an_episode_is_named_wherever_its_own_code_runs() -> None:
    watched = Watched()
    HERE[:] = [watched]
    SEEN.clear()
    plan = plan_of(talk, Voice(unseen), group=7, member=3, trained=frozenset())
    done = await conduct(replace(plan, page=watched.page))
    assert not done.ended.fault, done.ended.detail
    assert len(SEEN) == 10
    named = watched.page.named(7, 3)
    assert {where: name for where, name in SEEN.items() if name != named} == {}
    assert watched.name == b""


async def test_a_replayed_episode_is_named_too() -> None:
    HERE[:] = [Watched()]
    plan = plan_of(talk, Voice(unseen), trained=frozenset())
    first = await conduct(plan)
    SEEN.clear()
    await conduct(replace(plan, page=HERE[0].page, past=first.events))
    assert {name for where, name in SEEN.items() if not where.startswith("effect")} == {HERE[0].page.named(0, 0)}


# ----------------------------------------------------------------------------------------------------------------- files


async def there(path: Path) -> Died | None:
    return await anyio.to_thread.run_sync(found, path)


async def test_a_page_is_gone_when_it_is_left(tmp_path: Path) -> None:
    path = tmp_path / "page"
    assert await there(path) is None
    async with Page.kept(path) as page:
        assert path.exists() and await there(path) is None
        page.write(page.named(3, 1))
        assert await there(path) == Died(life=page.life, group=3, member=1)
        page.write(page.named(2, 0, "held-out", 4))
        assert await there(path) == Died(life=page.life, group=2, member=0, held_out="held-out", version=4)
        page.write(bytes(10**6))
        assert await there(path) is None, "a name that does not fit is none"
        page.write(page.named(3, 1))
        page.wipe()
        assert await there(path) is None
    assert not path.exists()
    with pytest.raises(ZeroDivisionError):
        async with Page.kept(path) as page:
            page.write(page.named(0, 0))
            raise ZeroDivisionError
    assert not path.exists()


async def test_every_process_has_a_life_of_its_own(tmp_path: Path) -> None:
    assert Page().life != Page().life


async def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be written"):
        async with Page.kept(tmp_path / "nowhere" / "page"):
            raise AssertionError("nothing is kept")


KILLS_ITSELF = """
import os, signal, sys
from pathlib import Path
import anyio
from sparring.rollout.culprit import Own, Page

async def fatal():
    os.kill(os.getpid(), signal.SIGKILL)

async def harmless():
    pass

async def main():
    async with Page.kept(Path(sys.argv[1])) as page:
        await Own(harmless(), page, page.named(1, 1))
        if sys.argv[2] == "outside":
            await fatal()
        await Own(fatal(), page, page.named(5, 2))

anyio.run(main)
"""


@pytest.mark.parametrize(("where", "named"), [("inside", (5, 2)), ("outside", None)])
def test_the_page_outlives_the_process(tmp_path: Path, where: str, named: tuple[int, int] | None) -> None:
    path, root = tmp_path / "page", Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLS_ITSELF, path, where], check=False, cwd=root, timeout=60)
    died = found(path)
    assert done.returncode == -9
    assert (died and (died.group, died.member)) == named
