"""How much of the time that a slow verifier takes is hidden, and what that costs.

    python -m benchmarks.asynchrony [--steps 12] [--learning_steps 100] [--seeds 3] [--staleness 1 2 3 4]

SmolLM2 on the sums of examples/addition.py. A judgement takes as long as a log-normal of mean 1 s with p99 at 8 s says, and the
n-th one of a question takes as long in every run. With max_staleness 0 a step takes compute + tail: the seconds in which the
engine's thread works, and those in which it waits for the slowest of 64. So nothing is faster than (compute + tail) / compute.
Play goes no further ahead of learning than that takes (`Pace(ahead=2)`, where the bound allows as much): a high bound is for
the long judgements alone. The best bound is the least that hides the tail, or where none does the fastest one; it and 0 are
measured with all seeds. Steps per hour and the idle time of the engine are taken from the end of the first step to that of the
last one that still had sampling beside it, in runs whose learning rate is as good as 0: everything is computed, the weights
stay as they are, and so all runs of a seed draw replies that are as long.

What is learnt is taken from runs that learn for so many steps that k of them matter little; a synchronous one learns the same
however long its verifier takes, so that there it takes no time. All have one recipe, that of the example with half its learning
rate and `cispo()`, no token of which weighs more than 1: with PPO's bounds, those to the policy that played, or with weights
without one, k = 4 learns less (`benchmarks/README.md`). Each run is a process of its own; those that learn, whose time says
nothing, are made as many at once as there are cores, with a thread each. Beside these rows: which of the replies that were
played are trained on, where a run waits for the long ones (`Pace`) and where it drops them (`Drop`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean

import anyio
import msgspec

from benchmarks._rows import Row, at_least, at_most, report
from examples.addition import Question, addition, held_out, negative, run, train, verify
from sparring import (
    CISPO,
    Drop,
    Episodes,
    Local,
    Pace,
    Policy,
    Run,
    Score,
    ScriptedModels,
    Seat,
    cispo,
    effect,
    environment,
    grpo,
)
from sparring.learner import train_async
from sparring.learner.history import estimate_mean, read_events
from sparring.learner.pacing import Pacing
from sparring.learner.run_statistics import PREFIX
from sparring.rollout import Coordinator, Schedule
from sparring.rollout.events import Acted, Ended, Evaluated, Opened, Planned, Stepped, Timed

SIGMA = 1.2075
MU = -(SIGMA**2) / 2
"""Of the logarithm: the mean is exp(MU + SIGMA^2 / 2) = 1 s, the 99th percentile exp(MU + 2.326 SIGMA) = 8 s."""
GROUPS = SIZE = 8
STILL = 1e-30
"""A learning rate that moves no weight."""
AHEAD = 2.0
"""Steps' worth of groups that are played beyond those of the step that is made, where the bound allows as many."""
HIDDEN = 0.9
"""Of the speed that could be, and of the time in which the engine works: from here on a tail counts as hidden."""
RECIPE = replace(cispo(), loss=CISPO(clip_high_threshold=1.0))
SECONDS_A_LETTER, PATIENCE = 0.002, 0.1

_judgements: Counter[str] = Counter()


async def wait_for_judge(question: str) -> float:
    """How many seconds it took."""
    seconds = Random(f"{question}/{_judgements[question]}").lognormvariate(MU, SIGMA)
    _judgements[question] += 1
    await anyio.sleep(seconds)
    return seconds


@environment(hidden={"*": ("answer",)})
async def slowly_judged(task: Question, solver: Seat, *, slowly: bool = True) -> Score:
    """`addition`, with a verifier that takes its time."""
    solver.system("You are a calculator. Reply with the equation and nothing else, as in 12 - 15 = -3.")
    reply = await solver.ask(f"Calculate {task.text}.")
    if slowly:
        await effect(wait_for_judge, task.text, timeout=600.0)
    return await verify(reply.text, task.answer)


async def one_run(folder: Path, staleness: int, seed: int, steps: int, learns: bool) -> dict[str, float]:
    """What a run took for each step, and the reward on what is held out, at its end."""
    assert isinstance(run.policies, Policy)
    recipe = replace(run.policies, algorithm=RECIPE, learning_rate=2e-4)
    given = Run(
        name="late",
        train=Episodes(slowly_judged(slowly=staleness > 0 or not learns), [*train, *negative]),
        held_out=Episodes(addition, held_out, greedy=True),
        policies=recipe if learns else replace(recipe, learning_rate=STILL),
        backend=Local(threads=1 if learns else None),
        steps=steps,
        groups_per_step=GROUPS,
        group_size=SIZE,
        evaluate_every=steps,
        max_staleness=staleness,
        pacing=Pace(ahead=AHEAD) if staleness > AHEAD else Pace(),
        max_concurrent=GROUPS * SIZE * (staleness + 2),
        seed=seed,
        folder=folder,
    )
    await train_async(given)
    events = list(read_events(given.path))
    timed = [event.timing for event in events if isinstance(event, Timed)]
    first, last = timed[0], timed[steps - staleness - 1]
    seconds = sum(timing["seconds"] for timing in timed[1 : steps - staleness])
    count = steps - staleness - 1
    training, sampling = (
        last[name] - first[name]
        for name in (f"{PREFIX}backend/engine/{kind}_seconds" for kind in ("operation", "background"))
    )
    rewards = {event.version: estimate_mean(event.values) for event in events if isinstance(event, Evaluated)}
    final = rewards[steps]
    assert final is not None, "held-out questions are always judged"
    return {
        "wall": seconds / count,
        "training": training / count,
        "sampling": sampling / count,
        "tokens": fmean(event.metrics["action_tokens"] for event in events if isinstance(event, Stepped)),
        "reward": final.mean,
    }


def letters(prompt: str, rng: Random) -> str:
    """Most are short, some are very long."""
    return "".join(rng.choices("abcdefgh", k=1 + int(rng.lognormvariate(2.5, 1.0))))


@environment
async def talking(task: int, only: Seat) -> float:
    """Takes as long as its reply is long."""
    reply = await only.ask(f"task {task}")
    await anyio.sleep(SECONDS_A_LETTER * len(reply.text))
    return float(len(reply.text) % 2)


async def lengths(folder: Path, name: str, pacing: Pacing) -> tuple[list[int], list[int], list[str]]:
    """The lengths of all replies and of those that were trained on, and what the drop-bias table says."""
    given = Run(
        name=name,
        train=Episodes(talking, range(1000)),
        policies=Policy("scripted", grpo()),
        steps=20,
        groups_per_step=GROUPS,
        group_size=SIZE,
        max_staleness=2,
        pacing=pacing,
        backend=ScriptedModels(reply=letters),
        folder=folder,
    )
    await train_async(given)
    played: Counter[tuple[int, int]] = Counter()
    dropped: set[tuple[int, int]] = set()
    planned: set[int] = set()
    coordinator: Coordinator | None = None
    for event in read_events(given.path):
        match event:
            case Opened():
                coordinator = Coordinator(msgspec.convert(event.run["schedule"], Schedule))
            case Acted() if event.sample is not None:
                played[event.group, event.member] += event.sample.count
            case Ended() if event.fault:
                dropped.add((event.group, event.member))
            case Planned():
                planned.update(event.groups)
            case _:
                """Nothing of a length."""
        if coordinator is not None:
            coordinator.apply(event)
    assert coordinator is not None
    trained = [
        count for (group, member), count in played.items() if group in planned and (group, member) not in dropped
    ]
    return sorted(played.values()), sorted(trained), coordinator.bias.lines


def pacing_rows() -> list[Row]:
    """What waiting and dropping do to the lengths that are trained on."""
    with tempfile.TemporaryDirectory() as folder:
        played, trained, _ = anyio.run(lengths, Path(folder), "pace", Pace())
        all_played, kept, lines = anyio.run(lengths, Path(folder), "drop", Drop(seconds=PATIENCE))
    print(*lines, sep="\n", file=sys.stderr)
    return [
        Row(
            name="Pace(): mean length trained / played",
            figure=f"{fmean(trained):.2f} / {fmean(played):.2f} ({len(played)})",
            target="all equal",
            met=trained == played,
        ),
        Row(
            name=f"Drop(seconds={PATIENCE}): the same",
            figure=f"{fmean(kept):.2f} / {fmean(all_played):.2f} ({len(kept)} of {len(all_played)})",
        ),
    ]


def measured(staleness: int, seed: int, steps: int, *, learns: bool = False) -> dict[str, float]:
    """What a run says, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.asynchrony", "--run", f"{staleness},{seed},{steps},{int(learns)}"]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    name = "learns" if learns else "timed"
    print(f"max_staleness {staleness}, seed {seed}, {name}: {said}", file=sys.stderr, flush=True)
    found: dict[str, float] = json.loads(said)
    return found


def mean(runs: Sequence[Mapping[str, float]], name: str) -> float:
    """Over the runs of one staleness."""
    return fmean(one[name] for one in runs)


def compute(runs: Sequence[Mapping[str, float]]) -> float:
    """Seconds of a step in which the engine works."""
    return mean(runs, "training") + mean(runs, "sampling")


def hidden(waits: Sequence[Mapping[str, float]], runs: Sequence[Mapping[str, float]]) -> float:
    """The speed as a share of what hiding all of the tail would give, computing as with max_staleness 0."""
    return compute(waits) / mean(runs, "wall")


def idle(runs: Sequence[Mapping[str, float]]) -> float:
    """The share of the time in which the engine does nothing."""
    return 1 - compute(runs) / mean(runs, "wall")


def told(staleness: int, runs: Sequence[Mapping[str, float]]) -> Row:
    """One staleness, for comparison."""
    wall = mean(runs, "wall")
    figure = f"{3600 / wall:.0f} steps/h, {wall:.2f} s = {compute(runs):.2f} s compute + {wall - compute(runs):.2f} s"
    return Row(name=f"max_staleness {staleness}", figure=f"{figure}; {mean(runs, 'tokens'):.0f} tokens a step")


def learnt(steps: int, seeds: int, best: int) -> Row:
    """Of runs that learn for so many steps, with no staleness and with the best."""
    runs = [(bound, seed) for bound in (0, best) for seed in range(seeds)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rewards = list(pool.map(lambda one: measured(one[0], one[1], steps, learns=True)["reward"], runs))
    waits, others = rewards[:seeds], rewards[seeds:]
    print(f"rewards with max_staleness 0: {waits}; {best}: {others}", file=sys.stderr, flush=True)
    return at_least(f"held-out reward after {steps} steps at {best}, mean", fmean(others), round(min(waits), 4))


def main(
    steps: int = 12, learning_steps: int = 100, seeds: int = 3, staleness: Sequence[int] = (1, 2, 3, 4)
) -> list[Row]:
    """All rows."""
    waits = [measured(0, seed, steps) for seed in range(seeds)]
    others = {bound: [measured(bound, 0, steps)] for bound in sorted(staleness)}
    fastest = min(others, key=lambda bound: others[bound][0]["wall"])
    best = next(
        (bound for bound, runs in others.items() if min(hidden(waits, runs), 1 - idle(runs)) >= HIDDEN), fastest
    )
    others[best] += [measured(best, seed, steps) for seed in range(1, seeds)]
    return [
        told(0, waits),
        *(told(one, runs) for one, runs in others.items()),
        Row(name="bound: (compute + tail) / compute at 0", figure=f"{mean(waits, 'wall') / compute(waits):.2f}"),
        at_least(f"steps/h at {best} / at 0, of the bound", hidden(waits, others[best]), HIDDEN),
        at_most(f"compute idle at {best}, share of the time", idle(others[best]), 1 - HIDDEN),
        learnt(learning_steps, seeds, best),
        *pacing_rows(),
    ]


async def _run(staleness: int, seed: int, steps: int, learns: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return await one_run(Path(folder), staleness, seed, steps, bool(learns))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--learning_steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--staleness", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--run", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        bound, seed, steps, learns = map(int, chosen.run.split(","))
        print(json.dumps(anyio.run(_run, bound, seed, steps, learns)))
        sys.exit(0)
    rows = main(chosen.steps, chosen.learning_steps, chosen.seeds, chosen.staleness)
    sys.exit(0 if report("smollm2-135m-instruct", rows) else 1)
