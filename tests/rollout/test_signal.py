"""A wake-up that cannot be missed between looking and waiting."""

from __future__ import annotations

import anyio

from sparring.rollout.signal import Signal


async def test_it_wakes_everyone_who_waits_and_nobody_who_comes_later() -> None:
    signal, woken = Signal(), list[str]()

    async def waits(name: str) -> None:
        await signal.wait()
        woken.append(name)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            signal.notify()
            for name in ("a", "b"):
                group.start_soon(waits, name)
            await anyio.wait_all_tasks_blocked()
            assert not woken, "what was notified before they waited is over"
            signal.notify()
            group.start_soon(waits, "c")
            await anyio.wait_all_tasks_blocked()
            assert sorted(woken) == ["a", "b"]
            signal.notify()
    assert woken[-1] == "c"


async def test_one_that_was_cancelled_leaves_the_others() -> None:
    signal, woken = Signal(), list[str]()

    async def waits(name: str) -> None:
        await signal.wait()
        woken.append(name)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(waits, "stays")
            with anyio.move_on_after(0):
                await signal.wait()
            await anyio.wait_all_tasks_blocked()
            signal.notify()
    assert woken == ["stays"]
