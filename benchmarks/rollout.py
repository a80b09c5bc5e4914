"""What everything around the model costs: episodes, journal, buffer and learner, with a backend that takes no time.

    python -m benchmarks.rollout [--episodes 1000000] [--without-model]

Replies have 8 tokens, 256 episodes are in flight, and the journal is written to disk; each part is measured in a process of its
own (Linux only). The rows: single-turn episodes and Kuhn hands (two seats) per second; how late the event loop comes back to a
task that asked to be woken; the last tenth of a long run against its first; the memory of 10,000 episodes at once; what the
journal takes for each token, on top of the text of the transcripts; and, of a run that crashed, the seconds until its first new
step, early and late in the run, five steps after a checkpoint each time. Then the rows of `benchmarks.asynchrony`, which has a
real model and takes three quarters of an hour, unless they are to be left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import anyio
import numpy as np

from benchmarks import asynchrony
from benchmarks._rows import Row, at_least, at_most, report
from examples.kuhn import deals, kuhn
from sparring import Episodes, Lineup, Policy, Run, ScriptedModels, Seat, environment, grpo, rae
from sparring.learner import train_async
from sparring.rollout.events import AnyEvent, Stepped

LETTERS = "abcdefghijklmnopqrstuvwxyz"
IN_FLIGHT, UNITS, GROUP, TICK = 256, 32, 8, 0.005
AT_ONCE = 10_000


def letters(count: int) -> Callable[[str, Random], str]:
    """Replies of so many tokens, the end of the turn included."""
    return lambda prompt, rng: "".join(rng.choices(LETTERS, k=count - 1))


@environment
async def single(task: int, only: Seat) -> float:
    """One question, one reply."""
    return float((await only.ask(f"task {task}")).text < "n")


@environment
async def waiting(task: int, only: Seat) -> float:
    """All of them wait at the same time."""
    reply = await only.ask(f"task {task}")
    await anyio.sleep(30)
    return float(reply.text < "n")


def run_of(folder: Path, episodes: int, **fields: Any) -> Run:
    """A run of about so many single-turn episodes."""
    given: dict[str, Any] = {
        "name": "cost",
        "train": Episodes(single, range(100_000)),
        "policies": Policy("scripted", grpo()),
        "steps": max(1, episodes // (UNITS * GROUP)),
        "groups_per_step": UNITS,
        "group_size": GROUP,
        "evaluate_every": 10**6,
        "max_concurrent": IN_FLIGHT,
        "backend": ScriptedModels(reply=letters(8)),
        "folder": folder,
    }
    return Run(**(given | fields))


class StopHere(Exception):
    """The run is to end as if it had crashed."""


class Clock:
    """Notes when each step was told; raises at the step `stop`."""

    def __init__(self, stop: int = -1) -> None:
        self.seconds: list[float] = []
        self._started, self._stop = time.perf_counter(), stop

    def opened(self, run: Mapping[str, Any]) -> None:
        """Nothing to note."""

    def event(self, event: AnyEvent) -> None:
        """Note a step."""
        if isinstance(event, Stepped):
            self.seconds.append(time.perf_counter() - self._started)
            if event.step == self._stop:
                raise StopHere

    def closed(self) -> None:
        """Nothing to end."""


async def _late(lags: list[float]) -> None:
    while True:
        start = time.perf_counter()
        await anyio.sleep(TICK)
        lags.append(time.perf_counter() - start - TICK)


async def _rate(run: Run, episodes: int) -> dict[str, float]:
    """Episodes per second over the whole run, how late the loop was, and the last tenth against the first."""
    clock, lags = Clock(), list[float]()
    async with anyio.create_task_group() as group:
        group.start_soon(_late, lags)
        await train_async(run, watchers=[clock])
        group.cancel_scope.cancel()
    tenth = max(1, len(clock.seconds) // 10)
    first, last = (clock.seconds[i + tenth] - clock.seconds[i] for i in (0, len(clock.seconds) - 1 - tenth))
    return {
        "rate": episodes / clock.seconds[-1],
        "late": 1000 * float(np.quantile(lags, 0.99)),
        "slower": last / first,
    }


async def single_turn(folder: Path, episodes: int) -> dict[str, float]:
    """The plain case, as long as asked for."""
    run = run_of(folder, episodes)
    return await _rate(run, run.steps * UNITS * GROUP)


async def kuhn_hands(folder: Path, episodes: int) -> dict[str, float]:
    """Two seats, both learn; a word of eight letters is no legal move, so the hands are as long as retries make them."""
    run = run_of(
        folder,
        0,
        train=Episodes(kuhn, deals, Lineup({"first": "policy", "second": "policy"})),
        policies=Policy("scripted", rae()),
        backend=ScriptedModels(reply=lambda prompt, rng: rng.choice(("check", "bet", "fold", "call"))),
        groups_per_step=IN_FLIGHT,
        group_size=1,
        steps=max(2, episodes // IN_FLIGHT),
    )
    return await _rate(run, run.steps * IN_FLIGHT)


async def many_at_once(folder: Path, episodes: int) -> dict[str, float]:
    """The most memory that the process ever had."""
    fields = {"groups_per_step": AT_ONCE // GROUP, "steps": 1, "max_staleness": 0, "max_concurrent": AT_ONCE}
    await train_async(run_of(folder, 0, train=Episodes(waiting, range(100_000)), **fields))
    return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


async def journal_bytes(folder: Path, episodes: int) -> dict[str, float]:
    """Bytes for each further token of a reply, without those of the text itself: long replies against short ones."""
    found = []
    for tokens in (64, 512):
        run = run_of(folder, 5120, name=f"of{tokens}", backend=ScriptedModels(reply=letters(tokens)))
        await train_async(run)
        found.append(sum(path.stat().st_size for path in run.path.glob("journal*")) / (run.steps * UNITS * GROUP))
    text = 512 - 64  # a letter is a byte of the transcript, and a token
    return {"short": found[0], "more": (found[1] - found[0] - text) / text}


async def resumed(folder: Path, episodes: int) -> dict[str, float]:
    """Seconds from the start of a resumed run to its first new step."""
    found = {}
    for name, stop in (("early", 14), ("late", 394)):
        run = run_of(folder, 400 * UNITS * GROUP, name=name, evaluate_every=10)
        with suppress(StopHere):
            await train_async(run, watchers=[Clock(stop)])
        again = Clock(stop + 1)
        with suppress(StopHere):
            await train_async(run, watchers=[again])
        found[name] = again.seconds[0]
    return found


PARTS: dict[str, Callable[[Path, int], Awaitable[dict[str, float]]]] = {
    part.__name__: part for part in (single_turn, kuhn_hands, many_at_once, journal_bytes, resumed)
}


def measured(part: str, episodes: int) -> dict[str, float]:
    """What a part says, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.rollout", "--part", part, "--episodes", str(episodes)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    print(f"{part}: {said}", file=sys.stderr, flush=True)
    found: dict[str, float] = json.loads(said)
    return found


def main(episodes: int) -> list[Row]:
    """All rows."""
    single, hands = measured("single_turn", episodes), measured("kuhn_hands", 20_000)
    at_once, journal, crashed = (measured(name, 0) for name in ("many_at_once", "journal_bytes", "resumed"))
    return [
        at_least("single-turn episodes/s", single["rate"], 2000),
        at_most("event loop, late by, p99, ms", single["late"], 20),
        at_most(f"the last tenth of {episodes} episodes / the first, seconds", single["slower"], 1.1),
        at_least("Kuhn hands/s", hands["rate"], 1000),
        at_most(f"{AT_ONCE} episodes at once, MiB of the process", at_once["memory"], 1024),
        Row(name="journal, bytes of an episode of 64 tokens", figure=f"{journal['short']:.0f}"),
        at_most("journal, bytes of a further token, beside its text", journal["more"], 12),
        Row(name="resumed at step 15, s until the next", figure=f"{crashed['early']:.2f}"),
        at_most("resumed at step 395 / at step 15", crashed["late"] / crashed["early"], 1.5),
    ]


async def _part(name: str, episodes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return await PARTS[name](Path(folder), episodes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1_000_000)
    parser.add_argument("--without-model", action="store_true")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        print(json.dumps(anyio.run(_part, chosen.part, chosen.episodes)))
        sys.exit(0)
    met = report("the scripted backend", main(chosen.episodes))
    if not chosen.without_model:
        met = report("smollm2-135m-instruct, slowly judged", asynchrony.main()) and met
    sys.exit(0 if met else 1)
