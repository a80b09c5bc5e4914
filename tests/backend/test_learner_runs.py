"""Short runs on the torch engine of what asks more than one model: a critic, a reference; cut off and gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from sparring import (
    KL,
    Critic,
    Episodes,
    Lineup,
    Local,
    Lora,
    Phase,
    Policy,
    Run,
    Sampling,
    Seat,
    environment,
    grpo,
    ppo,
    rae,
)
from sparring.learner import Algorithm, train_async
from sparring.learner.replay import compare
from sparring.rollout import MemorySegments
from sparring.rollout.events import Acted, Admitted, AnyEvent, Checkpointed, Stepped
from tests.learner.worlds import Crash, CrashingSegments, events_of

SMALL = Lora(rank=4, alpha=8)


@environment
async def short(task: int, only: Seat) -> float:
    """Whether the reply is of an even number of characters."""
    return float(len((await only.ask(f"task {task}")).text) % 2 == 0)


@environment
async def persuade(task: int, prover: Seat, verifier: Seat) -> dict[Seat, float]:
    """The verifier is right where it says as much as the prover did, in whether that is even."""
    proof = (await prover.ask(f"task {task}")).text
    right = float(len((await verifier.ask(proof or "nothing")).text) % 2 == len(proof) % 2)
    return {prover: 1.0 - right, verifier: right}


def run_of(model: Path, folder: Path, algorithm: Algorithm) -> Run:
    return Run(
        name="short",
        train=Episodes(short, range(50)),
        policies=Policy(str(model), algorithm, lora=SMALL, learning_rate=1e-3, sampling=Sampling(max_tokens=4)),
        steps=3,
        groups_per_step=2,
        group_size=2,
        evaluate_every=1,
        backend=Local(dtype="float32"),
        deterministic=True,
        folder=folder,
    )


ALGORITHMS = {
    "ppo": replace(
        ppo(minibatches=2, critic=Critic(lora=SMALL, learning_rate=1e-2)), kl=KL(coefficient=0.1, into="reward")
    ),
    "grpo": replace(grpo(), kl=KL(coefficient=0.1, target=0.01), entropy=0.01),
}


def steps_of(events: Sequence[AnyEvent]) -> list[Stepped]:
    return [event for event in events if isinstance(event, Stepped)]


async def trained(run: Run) -> list[AnyEvent]:
    store = MemorySegments()
    with anyio.fail_after(120):
        assert await train_async(run, store=store)
    events = events_of(store)
    assert compare(events).differences == (), "decided again from what the journal says the models said"
    return events


@pytest.mark.parametrize("name", ALGORITHMS)
async def test_a_run_that_is_cut_off_ends_in_the_same_weights(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    undisturbed = steps_of(await trained(run_of(tiny_llama, tmp_path / "whole", ALGORITHMS[name])))
    run, kept = run_of(tiny_llama, tmp_path / "cut", ALGORITHMS[name]), MemorySegments()
    left = 15  # commits of each life
    while not [event for event in events_of(kept) if isinstance(event, Checkpointed) and event.step == 2]:
        with anyio.fail_after(120), suppress(Crash):
            await train_async(run, store=CrashingSegments(kept, left, after=True))
    with anyio.fail_after(120):
        assert await train_async(run, store=kept)
    again = steps_of(events_of(kept))
    for one, other in zip(again, undisturbed, strict=True):
        assert (one.digest, one.critic, one.measured) == (other.digest, other.critic, other.measured)
    assert len({step.digest for step in again}) == 3


async def test_a_critic_learns_in_a_run(tiny_llama: Path, tmp_path: Path) -> None:
    steps = steps_of(await trained(run_of(tiny_llama, tmp_path, ALGORITHMS["ppo"])))
    assert {step.critic for step in steps} != {""} and len({step.critic for step in steps}) == 3
    for step in steps:
        assert {"critic/loss", "critic/value_error", "critic/gradient_norm"} <= step.engine.keys()
        assert step.engine["critic/gradient_norm"] > 0
    assert steps[0].engine["critic/value_mean"] != 0, "of both updates: after the first it says something"


async def test_what_a_run_says_of_its_reference(tiny_llama: Path, tmp_path: Path) -> None:
    """A fresh adapter changes nothing: at first the policy is its reference."""
    steps = steps_of(await trained(run_of(tiny_llama, tmp_path, ALGORITHMS["grpo"])))
    assert steps[0].metrics["reference_kl"] == pytest.approx(0, abs=1e-6)
    assert steps[-1].metrics["reference_kl"] > 1e-6
    assert steps[0].metrics["kl_coefficient"] == 0.1 > steps[1].metrics["kl_coefficient"], "below the target: less"
    assert all("entropy_exact" in step.engine for step in steps)


def phases_of(model: Path, folder: Path, *, deterministic: bool) -> Run:
    """Two policies on one base: two steps of the prover, three of the verifier, over and over."""
    who = Lineup({"prover": "prover", "verifier": "verifier"})
    policy = Policy(str(model), rae(), lora=SMALL, learning_rate=1e-3, sampling=Sampling(max_tokens=4))
    return replace(
        run_of(model, folder, rae()),
        train=Episodes(persuade, range(50), who),
        policies={"prover": policy, "verifier": policy},
        steps=5,
        phases=[Phase("prover", steps=2), Phase("verifier", steps=3)],
        deterministic=deterministic,
    )


@pytest.mark.parametrize("deterministic", [True, False])
async def test_two_policies_in_phases(tiny_llama: Path, tmp_path: Path, deterministic: bool) -> None:
    """The one that is paused keeps its weights, and plays with the last that it had."""
    events = await trained(phases_of(tiny_llama, tmp_path, deterministic=deterministic))
    order = "".join(step.policy[0] for step in steps_of(events))
    assert order == "pp" + "vvv" + "pp" + "vv" + "p"
    assert len({step.digest for step in steps_of(events)}) == 10, "each step made other weights"
    groups = {event.group: event for event in events if isinstance(event, Admitted)}
    frozen = [e for e in events if isinstance(e, Acted) and e.seat not in groups[e.group].trained]
    for event in frozen:
        assert event.sample is not None
        assert {version for version, _ in event.sample.versions} == {groups[event.group].pinned[event.seat]}
    assert {groups[event.group].pinned[event.seat] for event in frozen} == {0, 2, 3, 4, 5}


async def test_phases_that_are_cut_off_end_in_the_same_weights(tiny_llama: Path, tmp_path: Path) -> None:
    undisturbed = steps_of(await trained(phases_of(tiny_llama, tmp_path / "whole", deterministic=True)))
    run, kept = phases_of(tiny_llama, tmp_path / "cut", deterministic=True), MemorySegments()
    lives = 0
    while len(steps_of(events_of(kept))) < len(undisturbed):
        lives += 1
        with anyio.fail_after(120), suppress(Crash):
            await train_async(run, store=CrashingSegments(kept, 15, after=True))
    with anyio.fail_after(120):
        assert await train_async(run, store=kept)
    assert lives > 2
    assert [one.digest for one in steps_of(events_of(kept))] == [one.digest for one in undisturbed]
