"""Does an environment keep its contract? `check_environment` plays it with stand-ins, in processes of its own, and says what it
saw. No model is needed.

plays         episodes end, in time, without an exception, and are judged
rewards       finite, for seats that exist, for every trained seat that spoke, adding up to 0 where that is declared
replay        with the same replies another process asks the same and comes to the same: other event loop, hash seed, clock,
              time zone, global random state
interleaving  so it does in the same process, where all episodes are played at once
hidden        what a seat must not see changes nothing that it is asked, before a value passes through `reveal`
gold          the gold reply of a task scores 1
hostile       nothing, garbage and hostile replies do not; they end the episode in time, without an exception
event loop    meanwhile it is late by 50 ms at most, at the 99th percentile
speed         turns a second of the environment alone

They see what is played: an environment that keeps them on a few tasks may break its contract on another.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Collection, Sequence
from math import isfinite
from pathlib import Path
from signal import Signals
from typing import Any

import anyio
import anyio.to_thread

from sparring.environments import Environment, Tasks, size
from sparring.errors import SettingError
from sparring.rollout.check_plays import Job
from sparring.rollout.check_process import UNIMPORTABLE, Folder
from sparring.rollout.check_rows import Checked, Row
from sparring.rollout.loop_watch import STUCK

__all__ = ["CHECKS", "Checked", "Row", "check_environment"]

CHECKS = ("plays", "rewards", "replay", "interleaving", "hidden", "gold", "hostile", "event loop", "speed")
_PLAYED = ("plays", "rewards", "speed", "interleaving", "hidden", "gold", "hostile", "event loop")
"""Those of the first process, in the order in which they are done."""

_START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from sparring.rollout.check_process import main; main()"
_DONORS = 64
_PATIENCE = 900.0
_HELD = " holds the event loop for "


async def check_environment(
    environment: Environment[Any],
    tasks: Tasks[Any],
    *,
    count: int = 8,
    trained: Collection[str] | None = None,
    deadline: float = 30.0,
    seed: int = 0,
) -> Checked:
    """Every check. `str()` of what is returned is a table, `.passed` says whether no check failed.

    tasks      of which the first `count` are played
    trained    the seats that must be rewarded if they spoke; all of them where it is None
    deadline   seconds for an episode, and for a call that holds the event loop
    seed       of the stand-ins' replies and of `rng`

    Environment and tasks are loaded in other processes: they must be defined at the top of a module that can be imported.
    Raises `SettingError` where they are not, and for settings that cannot be.
    """
    if not (isfinite(deadline) and deadline > 0):
        raise SettingError(f"check_environment(deadline={deadline!r}): must be a finite number of seconds above 0")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise SettingError(f"check_environment(count={count!r}): must be a whole number of at least 1")
    for seat in trained or ():
        if seat not in environment.seats:
            raise SettingError(
                f"check_environment(trained={trained!r}): {seat!r} is no seat of it; its seats are "
                f"{', '.join(environment.seats)}"
            )
    known = size(tasks)
    first = [tasks[index] for index in range(_DONORS if known is None else min(known, max(_DONORS, count)))]
    if not first:
        raise SettingError(f"{environment.name}: there are no tasks to check it with; give at least one")
    job = Job(
        environment=environment,
        tasks=first,
        count=min(count, len(first)),
        trained=frozenset(environment.seats if trained is None else trained),
        deadline=deadline,
        seed=seed,
    )
    async with anyio.TemporaryDirectory(prefix="sparring-check-", ignore_cleanup_errors=True) as name:
        return Checked(environment=_titled(environment), rows=tuple(await _rows(job, Folder(Path(name)))))


def _titled(environment: Environment[Any]) -> str:
    settings = ", ".join(f"{key}={value!r}" for key, value in environment.described().get("settings", {}).items())
    return f"{environment.name}({settings})" if settings else environment.name


async def _rows(job: Job, folder: Folder) -> list[Row]:
    try:
        await anyio.to_thread.run_sync(folder.write_job, job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SettingError(_NOT_IMPORTABLE.format(job.environment.name, error)) from error
    played = await _process(folder, "play")
    again = await _process(folder, "again")
    found = {row.check: row for row in await anyio.to_thread.run_sync(folder.rows)}
    for checks, ended in ((_PLAYED, played), (("replay",), again)):
        missing = [check for check in checks if check not in found]
        found |= {check: Row(check=check, verdict="not checked", detail=_UNREACHED) for check in missing[1:]}
        found |= {check: Row.of(check, [ended], "") for check in missing[:1]}
    return [found[check] for check in CHECKS]


async def _process(folder: Folder, kind: str) -> str:
    """Run a process to its end; returns how it ended, and what it was doing. Waits 15 minutes at most."""
    await anyio.to_thread.run_sync(folder.doing, "")
    command = [*_OTHERWISE[kind], sys.executable, "-c", _START, json.dumps(sys.path), kind, str(folder.path)]
    with await anyio.to_thread.run_sync(folder.log.open, "wb") as log:
        process = await anyio.open_process(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        async with process:
            with anyio.move_on_after(_PATIENCE):
                await process.wait()
            late = process.returncode is None
            if late:
                process.kill()
    code = process.returncode
    assert code is not None
    lines = (await anyio.Path(folder.log).read_text("utf-8", "backslashreplace")).splitlines()
    if code == UNIMPORTABLE:
        raise SettingError(_NOT_IMPORTABLE.format("the environment", lines[-1]))
    how = f"the process was killed after {_PATIENCE:.0f} s" if late else ended(code, lines)
    doing = await anyio.to_thread.run_sync(folder.was_doing)
    return f"{doing}: {how}" if doing else how


def ended(code: int, log: Sequence[str]) -> str:
    """How a process ended, by its exit code and by what it printed last."""
    held = [line for line in log if _HELD in line]
    if code == STUCK and held:
        return held[-1].partition(", longer")[0]
    stack = (
        [line.strip() for line in log if line.startswith("  File ")]
        if any(line.startswith("Timeout (") for line in log)
        else []
    )
    if stack:
        return f"a call holds the event loop, and every thread: {stack[0]}"
    how = f"it was ended by {Signals(-code).name}" if code < 0 else f"the process ended itself with exit code {code}"
    said = next((line for line in reversed(log) if any(map(str.isalpha, line))), "")
    return f"{how}: {said.strip(' |')}" if said else how


_OTHERWISE = {
    "play": ("env", "PYTHONHASHSEED=1", "TZ=west+12"),
    "again": ("env", "PYTHONHASHSEED=2", "TZ=east-14"),
}
"""What the two processes see otherwise: the order of sets, and the date, at every hour."""

_NOT_IMPORTABLE = (
    "{} cannot be loaded in another process ({}): define the environment and the type of its tasks at the top of a module that "
    "can be imported, or use sparring check FILE"
)
_UNREACHED = "not reached: the process ended before"
