"""Ctrl-C and kill -9, on real processes over real journals."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from threading import Event, Timer

import anyio
import pytest

from sparring.learner import train_async
from sparring.learner.continuity import decided_again, equal, exactly_once, unchanged
from sparring.learner.history import read_events
from sparring.rollout import MemorySegments
from sparring.rollout.events import AnyEvent, Checkpointed, Evaluated, Planned, Stepped
from tests.learner.slow_run import slow_run
from tests.learner.worlds import events_of

ROOT = Path(__file__).parents[2]
PATIENCE = 60
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@contextmanager
def training(folder: Path, loop: str, *fields: str) -> Iterator[subprocess.Popen[str]]:
    """A process that trains; it is dead when the block is left, and after a minute in any case."""
    program = "from tests.learner.slow_run import main; main()"
    command = [sys.executable, "-c", program, str(folder), loop, *fields]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    limit = Timer(PATIENCE, process.kill)
    limit.start()
    try:
        yield process
    finally:
        limit.cancel()
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], *lines: str) -> None:
    """Until the process has said all of these."""
    assert process.stdout is not None
    wanted = set(lines)
    while wanted:
        line = process.stdout.readline()
        assert line, (wanted, process.communicate())
        wanted.discard(line.strip())


def journal(folder: Path) -> list[AnyEvent]:
    return list(read_events(folder / "duel"))


def undisturbed(folder: Path) -> list[AnyEvent]:
    store = MemorySegments()
    anyio.run(partial(train_async, slow_run(folder / "undisturbed", play=0.03), store=store))
    return events_of(store)


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """Its exit code, the lines that it still said, and its errors."""
    out, errors = process.communicate()
    return process.returncode, out.split("\n")[:-1], errors


@LOOPS
def test_one_interrupt_finishes_the_step_and_the_run_goes_on(tmp_path: Path, loop: str) -> None:
    with training(tmp_path, loop, "step=0.25") as process:
        wait_for(process, "Stepped alice 0", "Planned alice 1")
        process.send_signal(signal.SIGINT)
        code, said, errors = ended(process)
    assert (code, errors) == (0, "")
    assert "Stepped alice 1" in said, "the step under way is finished"
    assert "Planned alice 2" not in said, "and no other is begun"
    assert said[-2:] == ["closed", "stopped"]
    events = journal(tmp_path)
    for policy in ("alice", "bob"):
        planned = [event.step for event in events if isinstance(event, Planned) and event.policy == policy]
        stepped = [event.step for event in events if isinstance(event, Stepped) and event.policy == policy]
        assert planned == stepped
        assert Checkpointed(policy=policy, step=len(stepped)) in events or not stepped
        assert (tmp_path / "duel" / "checkpoints" / policy / f"{len(stepped)}").is_dir() or not stepped
    with training(tmp_path, loop, "step=0.25") as process:
        code, said, errors = ended(process)
    assert (code, said[-1], errors) == (0, "complete", "")


@LOOPS
def test_two_interrupts_end_it_at_once(tmp_path: Path, loop: str) -> None:
    with training(tmp_path, loop, "step=1000") as process:
        wait_for(process, "Planned alice 0")
        pause = Event()
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            pause.wait(0.2)
        code, said, errors = ended(process)
    assert (code, errors) == (130, "") and "closed" not in said
    assert not any(
        isinstance(event, Stepped)
        for event in journal(tmp_path)
        if isinstance(event, Stepped) and event.policy == "alice"
    )


@LOOPS
def test_an_interrupt_cuts_off_a_last_evaluation(tmp_path: Path, loop: str) -> None:
    """All steps are made; what is left is held-out play that takes for ever. The run is not complete, and says so."""
    with training(tmp_path, loop, "held_out=1000", "steps=2", "play=0") as process:
        wait_for(process, "Stepped alice 1", "Stepped bob 1")
        process.send_signal(signal.SIGINT)
        code, said, errors = ended(process)
    assert (code, said[-1], errors) == (0, "stopped", "")
    events = journal(tmp_path)
    assert not any(isinstance(event, Evaluated) for event in events)
    assert Checkpointed(policy="alice", step=2) in events and Checkpointed(policy="bob", step=2) in events


@LOOPS
def test_kill_9_again_and_again(tmp_path: Path, loop: str) -> None:
    rng, expected, pause = Random(loop), undisturbed(tmp_path), Event()
    before: list[AnyEvent] = []
    lives = 0
    while lives < 3 or sum(isinstance(event, Stepped) for event in before) < 9:
        with training(tmp_path / "run", loop, "play=0.03") as process:
            assert process.stdout is not None
            for _ in range(rng.randint(2, 5)):
                process.stdout.readline()
            pause.wait(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            ended(process)
        now = journal(tmp_path / "run")
        assert unchanged(before, now).holds
        before, lives = now, lives + 1
    run = slow_run(tmp_path / "run", play=0.03)
    assert anyio.run(partial(train_async, run))
    events = journal(tmp_path / "run")
    verdicts = [*exactly_once(events, run), decided_again(events), *equal(events, expected)]
    assert all(verdict.holds for verdict in verdicts), verdicts
