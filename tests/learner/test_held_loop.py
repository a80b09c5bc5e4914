"""An environment that computes without awaiting: named in the log, the journal, the metrics and the report; ended where it
takes longer than a run may stand still."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparring import Seat, environment
from sparring.learner.history import history, read_events
from sparring.learner.report import page
from sparring.rollout.culprit import found
from sparring.rollout.events import QUARANTINED, Died, Ended, Noted, Timed
from sparring.rollout.loop_watch import STUCK
from tests.learner.moods import WELL, run_of, trained

SEEN = {logging.WARNING: threading.Event(), logging.ERROR: threading.Event()}


class Sees(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        SEEN[record.levelno].set()


@pytest.fixture(autouse=True)
def seen() -> Iterator[None]:
    handler, logger = Sees(), logging.getLogger("sparring.rollout.loop_watch")
    for event in SEEN.values():
        event.clear()
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


def search(level: int) -> None:
    while not SEEN[level].is_set():
        pass


@environment
async def hasty(task: int, only: Seat, *, until: int = 0) -> float:
    """Computes where it should await, once, until somebody has noticed."""
    reply = await only.ask(f"task {task}")
    if until:
        search(until)
    return float(len(reply.text))


async def test_an_environment_that_computes_is_named_wherever_people_look(tmp_path: Path) -> None:
    events = await trained(run_of(tmp_path, hasty(until=logging.WARNING), stall_deadline=300.0))
    (noted,) = [event for event in events if isinstance(event, Noted) and event.text.startswith(f"search ({__file__}:")]
    assert noted.kind == "held" and "held the event loop once" in noted.text
    assert noted.text in page(history(events)).replace("&#x27;", "'")
    timed = [event for event in events if isinstance(event, Timed)]
    assert timed[-1].timing["run/loop/held"] >= 1.0
    assert timed[-1].timing["run/loop/lag_max"] >= 0.25


async def test_the_figures_of_a_run_stand_under_one_prefix(tmp_path: Path) -> None:
    events = await trained(run_of(tmp_path, WELL))
    timed = [event for event in events if isinstance(event, Timed)]
    parts = {name.split("/")[1] for name in timed[-1].timing if name.startswith("run/")}
    assert parts == {"loop", "slots", "buffer", "journal", "watchers", "budget", "versions"}
    last = timed[-1].timing
    assert (last["run/budget/version"], last["run/budget/trained"], last["run/budget/outstanding"]) == (3, 6, 0)
    assert last["run/slots/slots"] == 256 and last["run/slots/waiting"] == 0
    assert last["run/versions/newest"] == 3 and last["run/journal/appended"] >= last["run/journal/durable"] > 0


PROGRAM = """
import re
import sys
from dataclasses import replace
from pathlib import Path

import anyio

from sparring import Episodes, Policy, Seat, environment, rae
from sparring.learner import train_async
from tests.learner.moods import run_of


def spin() -> None:
    while True:
        pass


def match() -> None:
    re.match("(a+)+$", "a" * 60 + "b")


HOLD = {"spin": spin, "match": match}[sys.argv[3]]


@environment
async def endless(task: int, only: Seat) -> float:
    text = (await only.ask(f"task {task}")).text
    if task == 3:
        HOLD()
    return float(len(text))


async def main() -> None:
    run = run_of(Path(sys.argv[1]), endless, stall_deadline=0.5, steps=3, train=Episodes(endless, range(7)))
    await train_async(replace(run, group_size=1, policies=Policy("model", rae())))


anyio.run(main, backend=sys.argv[2])
"""


def held(folder: Path, loop: str, how: str) -> subprocess.CompletedProcess[str]:
    program = folder / "endless.py"
    program.write_text(PROGRAM)
    root = Path(__file__).parents[2]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)}
    command = [sys.executable, str(program), str(folder), loop, how]
    return subprocess.run(command, check=False, cwd=root, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_an_environment_that_never_ends_leaves_its_stack_and_ends_its_process(tmp_path: Path, loop: str) -> None:
    """The second time it is quarantined, and the run ends without it."""
    for _ in range(2):
        done = held(tmp_path, loop, "spin")
        assert done.returncode == STUCK, done.stderr
        first = done.stderr.splitlines()[0]
        assert first.startswith(f"spin ({tmp_path / 'endless.py'}:") and "holds the event loop for" in first
        assert "a thread cannot stop it: the process ends now" in done.stderr and "File" in done.stderr
    done = held(tmp_path, loop, "spin")
    assert (done.returncode, done.stderr) == (0, "")
    events = list(read_events(tmp_path / "run"))
    assert len([event for event in events if isinstance(event, Died)]) == 2
    faults = [event.fault for event in events if isinstance(event, Ended) and event.fault]
    assert faults == [QUARANTINED]


def test_a_call_that_no_thread_can_watch_ends_its_process_too(tmp_path: Path) -> None:
    """A regular expression that backtracks for ever keeps every Python thread from running."""
    done = held(tmp_path, "asyncio", "match")
    assert done.returncode == 1
    assert "Timeout (0:00:06" in done.stderr and "in match" in done.stderr
    assert found(tmp_path / "run" / ".running") is not None, "whose code ran is known"
