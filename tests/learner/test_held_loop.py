"""An environment that computes without awaiting: named in the log, the journal, the metrics and the report; ended where it
takes longer than a run may stand still."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from sparring import Seat, environment
from sparring.errors import Stalled
from sparring.learner import train_async
from sparring.learner.history import history
from sparring.learner.report import page
from sparring.rollout import MemorySegments
from sparring.rollout.events import Noted, Timed
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


async def test_a_run_that_was_held_for_too_long_ends_when_it_comes_back(tmp_path: Path) -> None:
    run = run_of(tmp_path, hasty(until=logging.ERROR), stall_deadline=0.5)
    with anyio.fail_after(30), pytest.raises(Stalled, match=rf"search \({__file__}:\d+\)"):
        await train_async(run, store=MemorySegments())


async def test_the_figures_of_a_run_stand_under_one_prefix(tmp_path: Path) -> None:
    events = await trained(run_of(tmp_path, WELL))
    timed = [event for event in events if isinstance(event, Timed)]
    parts = {name.split("/")[1] for name in timed[-1].timing if name.startswith("run/")}
    assert parts == {"loop", "slots", "buffer", "journal", "watchers", "budget", "versions"}
    last = timed[-1].timing
    assert (last["run/budget/version"], last["run/budget/trained"], last["run/budget/outstanding"]) == (3, 6, 0)
    assert last["run/slots/slots"] == 256 and last["run/slots/waiting"] == 0
    assert last["run/versions/newest"] == 3 and last["run/journal/appended"] >= last["run/journal/durable"] > 0


ENDLESS = """
import sys
from pathlib import Path

import anyio

from sparring import Seat, environment
from sparring.learner import train_async
from tests.learner.moods import run_of


@environment
async def endless(task: int, only: Seat) -> float:
    await only.ask(f"task {task}")
    while True:
        pass


async def main() -> None:
    await train_async(run_of(Path(sys.argv[1]), endless, stall_deadline=0.5))


anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_an_environment_that_never_ends_leaves_its_stack(tmp_path: Path, loop: str) -> None:
    """Nothing can end the run but the end of its process; what it says before is all that there will be."""
    program = tmp_path / "endless.py"
    program.write_text(ENDLESS)
    command = [sys.executable, str(program), str(tmp_path), loop]
    root = Path(__file__).parents[2]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        too_late = threading.Timer(60, process.kill)
        too_late.start()
        try:
            said = [next(process.stderr)]
            while "a thread cannot stop it" not in said[-1]:
                said.append(next(process.stderr))
            said += [next(process.stderr) for _ in range(2)]
        finally:
            too_late.cancel()
            process.kill()
    line = ENDLESS.splitlines().index("    while True:") + 1
    assert said[0].startswith(f"endless ({program}:{line}") or said[0].startswith(f"endless ({program}:{line + 1}")
    assert "holds the event loop for" in said[0] and "File" in said[-2]
