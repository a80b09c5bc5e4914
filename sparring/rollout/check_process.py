"""The processes that check an environment: one plays, the other plays again, under another event loop, clock and chance.

    python -c ... play FOLDER      reads FOLDER/job, writes FOLDER/rows, FOLDER/recorded and FOLDER/doing
    python -c ... again FOLDER     reads FOLDER/job and FOLDER/recorded, writes FOLDER/rows

What came of a check is written when it is done: a process that dies leaves what it had, and what it was doing.
"""

from __future__ import annotations

import pickle
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np

from sparring.errors import RewardError, Unjudged
from sparring.rollout.check_hidden import check_hidden
from sparring.rollout.check_plays import MEMBERS, Job, Recorded, heard, interleaved, played_again
from sparring.rollout.check_replies import check_gold, check_hostile, watched
from sparring.rollout.check_rows import Row
from sparring.rollout.events import Ended

UNIMPORTABLE = 76
"""The exit code of a process that cannot import what it is to check."""

_YEARS = 3 * 366 * 86400.0
"""Seconds by which the clock of the second process is ahead."""


class Folder:
    """The files between the process that checks and those that play."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_job(self, job: Job) -> None:
        (self.path / "job").write_bytes(pickle.dumps(job))

    def job(self) -> Job:
        job: object = pickle.loads((self.path / "job").read_bytes())
        assert isinstance(job, Job)
        return job

    def add(self, row: Row) -> None:
        with (self.path / "rows").open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")

    def rows(self) -> list[Row]:
        path = self.path / "rows"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [msgspec.json.decode(line, type=Row) for line in lines]

    def keep(self, recorded: list[Recorded]) -> None:
        (self.path / "recorded").write_bytes(msgspec.msgpack.encode(recorded))

    def recorded(self) -> list[Recorded]:
        path = self.path / "recorded"
        return msgspec.msgpack.decode(path.read_bytes(), type=list[Recorded]) if path.exists() else []

    def doing(self, what: str) -> None:
        (self.path / "doing").write_text(what, encoding="utf-8", errors="backslashreplace")

    def was_doing(self) -> str:
        path = self.path / "doing"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def log(self) -> Path:
        """What the processes print."""
        return self.path / "log"


def main() -> None:
    """What a process does."""
    kind, folder = sys.argv[1], Folder(Path(sys.argv[2]))
    if kind == "again":
        shift_clock(_YEARS)
    try:
        job = folder.job()
    except (ImportError, AttributeError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(UNIMPORTABLE)
    if kind == "again":
        anyio.run(_play_again, folder, job, backend=second_loop())
    else:
        anyio.run(_play, folder, job)


def second_loop() -> str:
    """The event loop of the process that plays again."""
    return "trio" if find_spec("trio") is not None else "asyncio"


def shift_clock(seconds: float) -> None:
    """Let `time` tell a later time of day. Monotonic clocks stay, and `datetime` does: for that the zone is another one."""
    real, strftime, local = time.time, time.strftime, time.localtime

    def later(function: Callable[[float], Any]) -> Callable[..., Any]:
        return lambda given=None: function(real() + seconds if given is None else given)

    shifted = {
        "time": lambda: real() + seconds,
        "time_ns": lambda: int((real() + seconds) * 1e9),
        "localtime": later(time.localtime),
        "gmtime": later(time.gmtime),
        "ctime": later(time.ctime),
        "strftime": lambda form, given=None: strftime(form, local(real() + seconds) if given is None else given),
    }
    for name, function in shifted.items():
        setattr(time, name, function)


async def _play(folder: Folder, job: Job) -> None:
    """Every check that one process can make, those last that may end it."""
    async with watched(job.deadline):
        recorded = await _record(job, folder)
        folder.keep(recorded)
        folder.doing("")
        folder.add(await _interleaving(job, recorded))
        folder.add(await check_hidden(job))
        folder.add(await check_gold(job))
    for row in await check_hostile(job, folder.doing):
        folder.add(row)


async def _record(job: Job, folder: Folder) -> list[Recorded]:
    """Play episodes of stand-ins, one after the other; returns those that ended, for others to play again."""
    recorded: list[Recorded] = []
    failures: dict[bool, list[str]] = {True: [], False: []}
    unjudged = Counter[str]()
    began = time.perf_counter()
    for index in range(job.count):
        for member in range(MEMBERS):
            where = f"task {index}, episode {member}"
            folder.doing(where)
            played = await heard(job.plan(index, member))
            if played.failure:
                failures[isinstance(played.error, RewardError)].append(f"{where}: {played.failure}")
            if played.ended is not None:
                kept = Recorded(
                    index=index, member=member, events=played.events, asked=played.asked, ended=played.ended
                )
                recorded.append(kept)
                unjudged.update(_unjudged(played.ended))
    seconds = time.perf_counter() - began
    if unjudged.total() >= len(recorded) > 0:
        failures[False].append(f"no episode was judged: {unjudged.most_common(1)[0][0]}")
    turns = sum(len(one.asked) for one in recorded)
    folder.add(Row.of("plays", failures[False], f"{len(recorded)} episodes of {job.count} tasks, {turns} turns"))
    folder.add(Row.of("rewards", failures[True], _rules(job)))
    folder.add(
        Row(check="speed", verdict="measured", detail=f"{turns / seconds:.0f} turns a second, one after the other")
    )
    return recorded


def _unjudged(ended: Ended) -> list[str]:
    """Why an episode has no reward at all; empty where it has one."""
    reasons = [result.unjudged for result in ended.results if result.value is None]
    reasons += [ended.detail.strip().splitlines()[-1]] if ended.fault == Unjudged.__name__ else []
    return reasons[:1] if len(reasons) >= max(len(ended.results), 1) else []


def _rules(job: Job) -> str:
    zero_sum = f"; {', '.join(job.environment.zero_sum)} add up to 0" if job.environment.zero_sum else ""
    return (
        f"finite, for seats that exist, for every trained seat that spoke ({', '.join(sorted(job.trained))}){zero_sum}"
    )


_NOT_RESUMABLE = "resumable=False: an episode starts anew instead"
_NOTHING = "no episode ended that could be played again"


def _not_again(job: Job, recorded: list[Recorded]) -> str:
    """Why nothing is played again; "" where something is."""
    return _NOT_RESUMABLE if not job.environment.resumable else "" if recorded else _NOTHING


async def _interleaving(job: Job, recorded: list[Recorded]) -> Row:
    why = _not_again(job, recorded)
    if why:
        return Row(check="interleaving", verdict="not checked", detail=why)
    found = [f"{one}: {_REMEDY}" for one in await interleaved(job, recorded)]
    return Row.of("interleaving", found, f"{len(recorded)} episodes at once ask and are worth the same as alone")


_REMEDY = "keep what an episode needs in play's locals; take chance from rng, and the rest of the world from effect()"


async def _play_again(folder: Folder, job: Job) -> None:
    """Play all that was recorded again, the last first."""
    recorded = folder.recorded()
    why = _not_again(job, recorded)
    if why:
        folder.add(Row(check="replay", verdict="not checked", detail=why))
        return
    found: list[str] = []
    async with watched(job.deadline):
        for number, one in enumerate(reversed(recorded)):
            folder.doing(f"task {one.index}, episode {one.member}")
            random.seed(number)
            np.random.seed(number)
            difference = await played_again(job, one)
            found += [f"{difference}: {_REMEDY}"] if difference else []
    where = f"another process ({second_loop()}, other hash seed, clock, time zone and global random state)"
    folder.add(Row.of("replay", found, f"{len(recorded)} episodes ask and are worth the same in {where}"))
