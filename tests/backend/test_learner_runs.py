"""Short runs on the torch engine of what asks more than one model: a critic, a reference; cut off and gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from sparring import KL, Critic, Episodes, Local, Lora, Policy, Run, Sampling, Seat, environment, grpo, ppo
from sparring.learner import Algorithm, train_async
from sparring.learner.replay import compare
from sparring.rollout import MemorySegments
from sparring.rollout.events import AnyEvent, Checkpointed, Stepped
from tests.learner.worlds import Crash, CrashingSegments, events_of

SMALL = Lora(rank=4, alpha=8)


@environment
async def short(task: int, only: Seat) -> float:
    """Whether the reply is of an even number of characters."""
    return float(len((await only.ask(f"task {task}")).text) % 2 == 0)


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
