"""KL to a reference, in rewards and in losses, and critics: what a step asks of which model, and runs that are crashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest

from sparring import (
    GAE,
    KL,
    PPO,
    Critic,
    Datum,
    Regularized,
    Reuse,
    RewardToGo,
    Run,
    ScriptedBackend,
    ValueDatum,
    grpo,
    ppo,
    rae,
)
from sparring.backend import Capabilities, ClippedValue, ForwardOutput, Loss, ValueOutput
from sparring.backend.pending import PendingResult
from sparring.backend.scripted_weights import ScriptedCritic, ScriptedReference
from sparring.backend.training import PLAIN
from sparring.errors import ReplayDiverged, SettingError, UnsupportedError
from sparring.learner import Algorithm, GroupMean, train_async
from sparring.learner.checked import check_capabilities
from sparring.learner.continuity import decided_again, exactly_once, unchanged
from sparring.learner.kl import distance
from sparring.learner.measured import Measured, moved, unpacked
from sparring.learner.replay import compare
from sparring.learner.step import decide
from sparring.learner.take import take_step
from sparring.learner.taught import Taught
from sparring.rollout import Batch, MemorySegments
from sparring.rollout.events import AnyEvent, Checkpointed, Opened, Stepped
from tests.learner.moods import trained
from tests.learner.sets import batch, context, f32, prepare, trajectory
from tests.learner.test_preset_runs import Watched, a_batch, spelling, steps_of
from tests.learner.worlds import Crash, CrashingSegments, crash_at_every_commit, events_of

IN_REWARD = KL(coefficient=0.1, into="reward")
IN_LOSS = KL(coefficient=0.1)
NAMES = ("game",)


# ------------------------------------------------------------------------------------------------------------------ penalties


def test_the_three_estimates_by_hand() -> None:
    """Where the policy is twice and half as likely as the reference."""
    policy, reference = f32(np.log(0.5), np.log(0.25)), f32(np.log(0.25), np.log(0.5))
    two = float(np.log(2))
    assert distance(policy, reference, "k1").tolist() == pytest.approx([two, -two])
    assert distance(policy, reference, "k2").tolist() == pytest.approx([two**2 / 2] * 2)
    assert distance(policy, reference, "k3").tolist() == pytest.approx([0.5 - 1 + two, 2 - 1 - two])
    assert IN_REWARD.penalties(0.5, policy, reference).tolist() == pytest.approx([-two / 2, two / 2])


def test_which_estimate_is_taken() -> None:
    assert (IN_REWARD.kind, IN_LOSS.kind) == ("k1", "k3")
    assert KL(coefficient=1, estimator="k2").kind == KL(coefficient=1, into="reward", estimator="k2").kind == "k2"


def test_a_penalty_lowers_the_reward_that_is_compared() -> None:
    """The sampler's log-probs are -1; the reference finds the first's tokens twice as unlikely."""
    made = [trajectory(1), trajectory(1, episode=1)]
    measured = Measured(reference=(f32(-2, -2, -2), f32(-1, -1, -1)))
    done = prepare(batch(*made), replace(grpo(), kl=IN_REWARD), {}, NAMES, measured=measured)
    assert [float(row[0]) for row in done.decided.values] == pytest.approx([-0.15, 0.15])
    assert done.metrics["reward"] == 1, "what the environment gave"
    assert done.metrics["reference_kl"] == pytest.approx((3 * float(np.exp(-1)) + 0) / 6)
    assert done.metrics["kl_coefficient"] == 0.1


def test_estimators_by_token_see_where() -> None:
    measured = Measured(reference=(f32(-1, -2, -1),))
    algorithm = replace(rae(), advantages=RewardToGo(), kl=IN_REWARD)
    done = prepare(batch(trajectory(1)), algorithm, {}, NAMES, measured=measured)
    assert done.decided.values[0].tolist() == pytest.approx([0.9, 0.9, 1.0])


def test_in_the_loss_it_changes_no_advantage() -> None:
    made = [trajectory(1), trajectory(0, episode=1)]
    measured = Measured(reference=(f32(-9, -9, -9), f32(-1, -1, -1)))
    done = prepare(batch(*made), replace(grpo(), kl=IN_LOSS), {}, NAMES, measured=measured)
    assert done.digest == prepare(batch(*made), grpo(), {}, NAMES).digest
    assert done.metrics["reference_kl"] > 0


def test_the_coefficient_is_adapted_by_hand() -> None:
    kl = KL(coefficient=1.0, target=0.1, rate=0.5)
    assert kl.adapted(1.0, 0.1) == 1
    assert kl.adapted(1.0, 0.11) == pytest.approx(1.05)
    assert kl.adapted(2.0, 9.0) == pytest.approx(2.2), "by a fifth of the rate at most"
    assert kl.adapted(2.0, 0.0) == pytest.approx(1.8)
    assert IN_LOSS.adapted(2.0, 9.0) == 2, "without a target it stays"


def test_a_rate_without_a_target_is_refused() -> None:
    with pytest.raises(SettingError, match=r"KL\(rate=0.5\) without a target: nothing is adapted; give a target"):
        KL(coefficient=1.0, rate=0.5)


@pytest.mark.parametrize("seed", range(3))
def test_adapted_it_finds_the_coefficient_that_keeps_the_target(seed: int) -> None:
    """A policy whose distance is 1 / (1 + 10 beta)."""
    kl, beta = KL(coefficient=0.01 * 10**seed, target=0.2), 0.01 * 10**seed
    for _ in range(800):
        beta = kl.adapted(beta, 1 / (1 + 10 * beta))
    assert beta == pytest.approx(0.4, rel=1e-2)


def test_what_was_measured_comes_back_from_the_journal() -> None:
    made = [trajectory(1, context([2]), context([1])), trajectory(0, episode=1)]
    of, measured = batch(*made), Measured(reference=(f32(1, 2, 3), f32(4, 5, 6)), values=())
    back = unpacked(msgspec.msgpack.decode(msgspec.msgpack.encode(measured.packed()), type=dict[str, bytes]), of)
    assert [row.tolist() for row in back.reference] == [[1, 2, 3], [4, 5, 6]] and back.values == ()
    with pytest.raises(AssertionError, match="reference: 5 numbers for 6 action tokens"):
        unpacked({"reference": measured.packed()["reference"][:-4]}, of)


# ------------------------------------------------------------------------------------------------- what a step asks of whom


class WatchedCritic(ScriptedCritic):
    """Keeps what it was trained on, and says how many steps it made as its values."""

    def __init__(self) -> None:
        super().__init__("model", 0)
        self.steps = 0
        self.data: list[Sequence[ValueDatum]] = []

    def forward(self, data: Sequence[ValueDatum], loss: ClippedValue | None = None) -> PendingResult[ValueOutput]:
        found: PendingResult[ValueOutput] = PendingResult("forward")
        values = tuple((0.25 * (1 + self.steps) * datum.mask).astype(np.float32) for datum in data)
        found.succeed(ValueOutput(values=values, metrics={"loss": 0.5, "tokens": 1.0}))
        return found

    def forward_backward(self, data: Sequence[ValueDatum], loss: ClippedValue) -> PendingResult[ValueOutput]:
        self.data.append(data)
        self.steps += 1
        return super().forward_backward(data, loss)


async def test_a_critic_learns_the_returns_of_what_it_said_before_the_step(tmp_path: Path) -> None:
    run = spelling(tmp_path, ppo(minibatches=2))
    of, critic, model = await a_batch(run), WatchedCritic(), Watched()
    stepped = await take_step(run, "policy", of, {}, Taught(model=model, critic=critic))
    assert len(critic.data) == 2 and [len(data) for data in critic.data] == [8, 8]
    rewards = [one.reward for unit in of.units for one in unit.trajectories]
    for datum, reward in zip([datum for data in critic.data for datum in data], rewards, strict=True):
        assert datum.returns is not None and datum.old_values is not None
        assert set(datum.returns[datum.mask].tolist()) == {reward}, "lambda 1: what is still to come"
        assert set(datum.old_values[datum.mask].tolist()) == {0.25}, "also in the second update"
        assert not datum.returns[~datum.mask].any()
    for data in critic.data:
        assert sum(float(datum.weights.sum()) for datum in data) == pytest.approx(1), "weighed as the policy's are"
    assert [kind for kind, _, _ in model.calls] == ["backward", "backward"], "its own log-probs are not asked for"
    assert {"critic/loss", "critic/gradient_norm", "loss", "gradient_norm"} <= stepped.engine.keys()
    assert stepped.critic == await critic.digest() != ""
    assert set(unpacked(stepped.measured, of).values[0].tolist()) == {0.25}


async def test_at_first_the_critic_may_learn_alone(tmp_path: Path) -> None:
    run = spelling(tmp_path, ppo(minibatches=1, critic=Critic(pretraining=2)))
    steps = steps_of(await trained(run))
    assert len({step.critic for step in steps}) == 3
    assert steps[0].digest == steps[1].digest != steps[2].digest
    assert "loss" not in steps[0].engine and "learning_rate" not in steps[1].engine and "critic/loss" in steps[0].engine
    assert "loss" in steps[2].engine


class WatchedReference(ScriptedReference):
    def __init__(self) -> None:
        super().__init__("model")
        self.asked: list[Sequence[Datum]] = []

    def forward(self, data: Sequence[Datum], loss: Loss = PLAIN, *, entropy: bool = False) -> Any:
        self.asked.append(data)
        found: PendingResult[ForwardOutput] = PendingResult("forward")
        found.succeed(ForwardOutput(logprobs=tuple(-3 * d.mask.astype("f4") for d in data), metrics={}))
        return found


class Keeping(Watched):
    """Keeps the losses it was given too."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Loss] = []

    def forward_backward(self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False) -> Any:
        self.losses.append(loss)
        return super().forward_backward(data, loss, entropy=entropy)


@pytest.mark.parametrize("kl", [IN_REWARD, IN_LOSS, replace(IN_LOSS, target=0.5)])
async def test_the_reference_is_asked_once_and_read_where_it_belongs(tmp_path: Path, kl: KL) -> None:
    run = spelling(tmp_path, replace(grpo(), kl=kl, entropy=0.01))
    of, model, reference = await a_batch(run), Keeping(), WatchedReference()
    before: Mapping[str, Any] = {"kl": {"coefficient": 0.7}} if kl.target else {}
    stepped = await take_step(run, "policy", of, before, Taught(model=model, reference=reference))
    assert len(reference.asked) == 1 and len(reference.asked[0]) == 16
    in_loss = kl.into == "loss"
    beta = 0.7 if kl.target else 0.1
    assert model.losses == [Regularized(loss=PPO(), kl=beta if in_loss else 0.0, entropy=0.01)]
    for datum in model.calls[0][2]:
        if in_loss:
            assert datum.reference_logprobs is not None
            assert set(datum.reference_logprobs[datum.mask].tolist()) == {-3}
        else:
            assert datum.reference_logprobs is None
    assert stepped.metrics["kl_coefficient"] == beta
    assert ("kl" in stepped.durable) == (kl.target is not None)
    if kl.target:
        assert stepped.durable["kl"]["coefficient"] == kl.adapted(0.7, stepped.metrics["reference_kl"]) != 0.7


# ----------------------------------------------------------------------------------------------------------------------- runs


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": ppo(minibatches=2),
    "ppo, penalty": replace(ppo(minibatches=1, critic=Critic(pretraining=1)), kl=IN_REWARD),
    "adaptive": replace(grpo(), kl=replace(IN_LOSS, target=0.01), entropy=0.1),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ALGORITHMS)
async def test_a_crash_at_every_commit_changes_nothing(tmp_path: Path, name: str, after: bool) -> None:
    def run_in(folder: Path) -> Run:
        return spelling(folder, ALGORITHMS[name], evaluate_every=1, groups_per_step=2, group_size=2)

    assert await crash_at_every_commit(run_in, tmp_path, after=after) > 6


@pytest.mark.parametrize("name", ALGORITHMS)
async def test_a_run_that_crashes_again_and_again_goes_on_from_its_critic(tmp_path: Path, name: str) -> None:
    """Tiers A and B: from checkpoints, in which the critic is."""
    run = spelling(tmp_path, ALGORITHMS[name], deterministic=False, steps=6, groups_per_step=2, evaluate_every=2)
    kept, finished = MemorySegments(), False
    while not finished:
        before = events_of(kept)
        with anyio.fail_after(20), suppress(Crash):
            finished = await train_async(run, store=CrashingSegments(kept, 3, after=len(kept.blobs) % 2 == 0))
        assert unchanged(before, events_of(kept)).holds
    events = events_of(kept)
    verdicts = [*exactly_once(events, run), decided_again(events)]
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert [event for event in events if isinstance(event, Checkpointed)]
    assert not [event for event in events if getattr(event, "kind", "") == "diverged"]
    saved = list((run.path / "checkpoints").rglob("critic"))
    assert bool(saved) == name.startswith("ppo")


async def test_a_critic_that_is_not_what_it_was_is_found_out(tmp_path: Path) -> None:
    """The planted defect: another critic in the checkpoint that a step is done again from. The policy is as it was."""
    run = spelling(tmp_path, ppo(minibatches=1, critic=Critic(pretraining=3)), steps=4, evaluate_every=2)
    kept, commit = MemorySegments(), 0
    while not [event for event in events_of(kept) if isinstance(event, Stepped) and event.step == 2]:
        kept, commit, folder = MemorySegments(), commit + 1, tmp_path / f"{commit}"
        with suppress(Crash):
            await train_async(replace(run, folder=folder), store=CrashingSegments(kept, commit, after=True))
    await ScriptedCritic("model", 99).save_state(str(folder / "spelling" / "checkpoints" / "policy" / "2" / "critic"))
    with pytest.raises(ReplayDiverged, match=r"step 2 of 'policy'.*ended in other weights of its critic"):
        await train_async(replace(run, folder=folder), store=kept)


async def test_used_again_units_are_valued_too(tmp_path: Path) -> None:
    run = spelling(tmp_path, ppo(minibatches=2), steps=4, reuse=Reuse(units=2))
    events = await trained(run)
    assert any(step.metrics.get("reused/units") for step in steps_of(events))


async def test_a_journal_with_other_values_is_found_out(tmp_path: Path) -> None:
    """A replay decides from what was measured: what is altered there leads to other advantages."""
    events = await trained(spelling(tmp_path, ppo(minibatches=1)))

    def altered(event: AnyEvent) -> AnyEvent:
        if not isinstance(event, Stepped) or event.step != 1:
            return event
        values = np.frombuffer(event.measured["values"], "<f4") * np.float32(2)
        return msgspec.structs.replace(event, measured={"values": values.tobytes()})

    found = compare([altered(event) for event in events]).differences
    assert len(found) == 1 and "step 1 of 'policy': other advantages" in found[0]


async def test_the_models_of_a_run_are_described(tmp_path: Path) -> None:
    algorithm = replace(ppo(minibatches=1, critic=Critic(model="large")), kl=replace(IN_REWARD, reference="wise"))
    opened = (await trained(spelling(tmp_path, algorithm, steps=1)))[0]
    assert isinstance(opened, Opened)
    assert {name: info["model"] for name, info in opened.run["models"].items()} == {
        "policy": "model", "policy/critic": "critic of large", "policy/reference": "wise"
    }  # fmt: skip
    assert {"model of policy/critic", "model of policy/reference"} <= opened.run["fingerprints"].keys()


# ------------------------------------------------------------------------------------------------------- refused at start


class Bare(ScriptedBackend):
    """It has neither critics nor references."""

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), critics=False, references=False)


class Plain(ScriptedBackend):
    """It computes no regularizers."""

    def capabilities(self) -> Capabilities:
        able = super().capabilities()
        return replace(able, losses=able.losses - {Regularized})


@pytest.mark.parametrize(
    ("algorithm", "backend", "said"),
    [
        (ppo(minibatches=1), Bare(), "this backend has no critics; use an algorithm without, as grpo"),
        (replace(grpo(), kl=IN_REWARD), Bare(), "this backend has no references; leave out the KL"),
        (replace(grpo(), kl=IN_LOSS), Plain(), "is not computed by this backend; leave out KL and entropy"),
        (replace(grpo(), entropy=0.1), Plain(), "leave out KL and entropy"),
    ],
)
def test_what_a_backend_cannot_do(tmp_path: Path, algorithm: Algorithm, backend: ScriptedBackend, said: str) -> None:
    run = spelling(tmp_path, algorithm)
    with pytest.raises(UnsupportedError, match=said):
        check_capabilities(run, backend)
    check_capabilities(run, ScriptedBackend())


def test_groups_of_one_are_enough_for_a_critic(tmp_path: Path) -> None:
    assert spelling(tmp_path, ppo(minibatches=1), group_size=1)
    assert GroupMean().minimum == 2 > GAE().minimum


def test_a_policy_that_would_never_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"pretraining=3 of its critic: in steps=3 the policy would never be trained"
    ):
        spelling(tmp_path, ppo(minibatches=1, critic=Critic(pretraining=3)))
    assert spelling(tmp_path, ppo(minibatches=1, critic=Critic(pretraining=2)))


def test_what_was_measured_follows_the_replies() -> None:
    """Scored anew, an episode may be missing, or be there for the first time."""
    one, other, third = (trajectory(0, context([2]), episode=number) for number in range(3))
    before, measured = batch(one, other), Measured(reference=(f32(1, 2), f32(3, 4)), values=(f32(5, 6), f32(7, 8)))
    found = moved(measured, before, batch(replace(other, reward=1.0)))
    assert found is not None
    assert [row.tolist() for row in (*found.reference, *found.values)] == [[3, 4], [7, 8]]
    assert moved(measured, before, batch(one, third)) is None
    assert moved(Measured(), before, batch(third)) == Measured()


async def test_a_hole_in_a_schedule_asks_nobody(tmp_path: Path) -> None:
    run = spelling(tmp_path, replace(ppo(minibatches=2), kl=IN_REWARD))
    hole = Batch(planned=(await a_batch(run)).planned, units=())
    critic, reference = WatchedCritic(), WatchedReference()
    models = Taught(model=Watched(), critic=critic, reference=reference)
    stepped = await take_step(run, "policy", hole, {}, models)
    assert (critic.data, reference.asked, stepped.engine, stepped.measured) == ([], [], {}, {})


def test_a_hole_leaves_an_adapted_coefficient_where_it_is() -> None:
    """Nothing was measured: it neither moves nor begins anew."""
    credit = replace(grpo(), kl=replace(IN_LOSS, target=0.01)).credit
    for before, wanted in (({"kl": {"coefficient": 0.7}}, 0.7), ({}, 0.1)):
        assert decide(batch(), credit, before, NAMES).durable["kl"] == {"coefficient": wanted}
