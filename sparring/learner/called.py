"""A watcher's call, in a thread that the end of the process does not wait for: one that hangs holds up neither."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from math import inf

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token

from sparring.errors import Stalled

_GRACE = 30.0
"""Seconds that a call may still take when who waits for it is cancelled, at most."""


async def called(
    call: Callable[[], object],
    what: str,
    *,
    patience: float,
    limited: bool = True,
    when_cancelled: Callable[[], None] = lambda: None,
) -> None:
    """Waits for the call, and raises what it raises. Raises `Stalled`, naming `what`, for one that takes longer than
    `patience` seconds where it is `limited`; one whose waiter is cancelled is told `when_cancelled`, and given up after some
    seconds. What is given up runs on by itself."""
    done, failed, token = anyio.Event(), list[BaseException](), current_token()

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - crosses threads: the waiter gets it
            failed.append(error)
        with suppress(anyio.RunFinishedError):
            anyio.from_thread.run_sync(done.set, token=token)

    threading.Thread(target=run, name=f"sparring {what}", daemon=True).start()
    try:
        with anyio.move_on_after(patience if limited else inf):
            await done.wait()
    except anyio.get_cancelled_exc_class():
        when_cancelled()
        with anyio.move_on_after(min(_GRACE, patience), shield=True):
            await done.wait()
        raise
    if not done.is_set():
        raise Stalled(f"{what} did not return within {patience} s, and was given up: mend it, or leave it out")
    if failed:
        raise failed[0]
