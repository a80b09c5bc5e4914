"""A made-up run's events, as a journal holds them: what display, report, metrics and tracker are shown in tests."""

from __future__ import annotations

from math import exp
from random import Random
from typing import Any

import msgspec
import numpy as np

from sparring.agents import Lineup, Sample
from sparring.backend import ModelInfo, ScriptedModels
from sparring.environments import Reply, Seat, environment
from sparring.learner.checked import schedule_of
from sparring.learner.described import describe
from sparring.learner.run import Episodes, Policy, Run
from sparring.rollout.events import (
    Acted,
    Admitted,
    AnyEvent,
    Checkpointed,
    Ended,
    Evaluated,
    Installed,
    Opened,
    Planned,
    Sampled,
    SeatResult,
    Stepped,
    Timed,
)


@environment
async def sums(task: int, solver: Seat, *, rounds: int = 1) -> float:
    """Never played here."""
    return float(len((await solver.ask(f"{task} x {rounds}")).text))


def run(steps: int, policies: tuple[str, ...] = ("policy",), held_out: tuple[str, ...] = ("held-out",)) -> Run:
    """A run whose settings the story opens with."""
    named = {name: Policy("smollm2-135m-instruct", learning_rate=3e-4) for name in policies}
    return Run(
        name="story",
        train=Episodes(sums, range(100), [Lineup({"solver": name}) for name in policies]),
        policies=named if len(named) > 1 else named["policy"],
        held_out={
            name: Episodes(sums, range(100, 120), Lineup({"solver": policies[0]}), greedy=True) for name in held_out
        },
        steps=steps,
        groups_per_step=2,
        backend=ScriptedModels(),
    )


def settings(chosen: Run) -> dict[str, Any]:
    """The run as `run.json` would show it."""
    info = ModelInfo(
        model="smollm2-135m-instruct",
        parameters=134515008,
        trained_parameters=4884480,
        context_length=8192,
        dtype="bfloat16",
        fingerprint="f" * 64,
    )
    names = list(chosen.named_policies)
    described = describe(chosen, schedule_of(chosen), dict.fromkeys(names, info), dict.fromkeys(names, "e" * 64))
    return dict(msgspec.json.decode(msgspec.json.encode(described)))


def story(
    steps: int = 12,
    *,
    policies: tuple[str, ...] = ("policy",),
    held_out: tuple[str, ...] = ("held-out",),
    late: bool = False,
    seed: int = 0,
) -> list[AnyEvent]:
    """Every event of a run that a coordinator folds. `late`: an evaluation comes after the step that follows its version."""
    chosen, rng = run(steps, policies, held_out), Random(seed)
    events: list[AnyEvent] = [Opened(run=settings(chosen))]
    waiting = [evaluated(name, 0, rng) for name in held_out]
    group = 0
    for step in range(steps):
        for policy in policies:
            events += [] if late and step == 0 else waiting
            waiting = waiting if late and step == 0 else []
            for number in range(group, group + 2):
                events += admitted(number, policy, rng, lineup=policies.index(policy), step=step, fault=number == 5)
            events += [Planned(policy=policy, step=step, groups=[group, group + 1]), stepped(policy, step, steps, rng)]
            group += 2
            events += [Installed(policy=policy, version=step + 1), timed(policy, step, steps)]
            if late:
                events += waiting
                waiting = []
        if step + 1 == steps or (step + 1) % 10 == 0:
            waiting = [evaluated(name, step + 1, rng) for name in held_out]
            events += [Checkpointed(policy=policy, step=step + 1) for policy in policies]
    return events + waiting


def learned(version: int) -> float:
    """A curve that rises from 0.2 to 0.95."""
    return 0.2 + 0.75 * (1 - exp(-version / 12))


def admitted(number: int, policy: str, rng: Random, *, lineup: int, step: int, fault: bool) -> list[AnyEvent]:
    """A group, what its players said (every second group with the version before), and the ends of its episodes."""
    begun = Admitted(group=number, source=0, index=number, task=f"{number:064x}", lineup=lineup, trained=[policy])
    version = max(0, step - number % 2)
    said: list[AnyEvent] = [acted(number, member, version) for member in range(8)]
    ends: list[AnyEvent] = []
    for member in range(8):
        if fault and member == 0:
            detail = "Traceback (most recent call last):\n  ...\nKeyError: 'x'"
            ends.append(Ended(group=number, member=member, fault="KeyError", detail=detail))
        elif member == 1 and number == 6:
            unjudged = SeatResult(seat="solver", unjudged="verifier gave up <soon>")
            ends.append(Ended(group=number, member=member, results=[unjudged]))
        else:
            judged = SeatResult(seat="solver", value=float(rng.random() < 0.5))
            ends.append(Ended(group=number, member=member, results=[judged]))
    return [begun, *said, *ends]


def acted(group: int, member: int, version: int) -> Acted:
    """A reply of as many tokens as the member's number, and one."""
    count = member + 1
    sample = Sample(
        prompt=np.arange(3, dtype=np.int32),
        whole=True,
        tokens=np.arange(count, dtype=np.int32),
        logprobs=np.full(count, -0.5, np.float32),
        versions=((version, count),),
        temperature=1.0,
    )
    return Acted(
        group=group,
        member=member,
        seat="solver",
        turn=0,
        request=b"",
        reply=Reply(text=f"{count}"),
        sample=Sampled.packed(sample),
    )


def stepped(policy: str, step: int, steps: int, rng: Random) -> Stepped:
    metrics = {
        "reward": learned(step) + rng.uniform(-0.05, 0.05),
        "length": 9.0 - 5 * step / steps + rng.uniform(-0.5, 0.5),
        "truncated": max(0.0, 0.2 - step / 100),
        "mixed": 0.8,
        "staleness": 0.5,
        "staleness_max": 1.0,
        "action_tokens": 400.0,
    }
    engine = {
        "loss": rng.uniform(-0.1, 0.1),
        "kl": 1e-4 * rng.uniform(0.5, 3),
        "ess": rng.uniform(0.95, 1.0),
        "clip_fraction": 0.01,
        "gradient_norm": rng.uniform(0.1, 0.6),
    }
    digest = f"{step:064x}"
    return Stepped(
        policy=policy, step=step, digest=digest, advantages=digest, metrics=metrics, engine=engine, durable={}
    )


def timed(policy: str, step: int, steps: int) -> Timed:
    left = (steps - step - 1) * 7.5
    timing = {
        "seconds": 7.5,
        "train_seconds": 4.0,
        "tokens_per_second": 812.4,
        "idle": 0.31,
        "left_seconds": left,
    }
    return Timed(policy=policy, step=step, timing=timing)


def evaluated(name: str, version: int, rng: Random) -> Evaluated:
    values: list[float | None] = [float(rng.random() < learned(version)) for _ in range(20)]
    values[7] = None if version == 0 else values[7]
    said = [
        [
            ("user", f"What is {number} + 3? Answer with the number <only> & nothing else."),
            ("solver", answer(number, value)),
        ]
        for number, value in enumerate(values)
    ]
    return Evaluated(name=name, version=version, headline="reward", values=values, rewards=values, transcripts=said)


def answer(number: int, value: float | None) -> str:
    return str(number + 3) if value == 1.0 else f"The answer is probably {number + 4}."
