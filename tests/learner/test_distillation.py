"""On-policy distillation in a run: what each token is credited with, teachers behind sampling clients, what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring import KL, PPO, Constant, Datum, EqualRewards, Overlong, Policy, Run, Sampling, distillation, grpo
from sparring.arrays import F32, I32
from sparring.backend import SampledSequence, SamplingClient, SamplingParams, Teacher, TeacherReference
from sparring.backend.losses import ImportanceSampling
from sparring.errors import BackendError, SettingError, UnsupportedError
from sparring.learner.by_token import Penalty
from sparring.learner.measured import Measured
from sparring.rollout.events import Stepped
from tests.learner.moods import WELL, run_of, trained
from tests.learner.sets import batch, prepare, trajectory
from tests.learner.worlds import crash_at_every_commit

LOG: list[str] = []


class Strict:
    """A `SamplingClient` that tells log-probs alone: -0.01 times the token, so that nothing depends on a model."""

    version = 0

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        raise BackendError("a teacher is not drawn from")

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        row = -0.01 * np.asarray(tokens, np.float32)
        row[0] = np.nan
        return row

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        raise BackendError("nor are options asked for")

    async def aclose(self) -> None:
        LOG.append("closed")


@dataclass(frozen=True, slots=True)
class Behind:
    """The teacher, behind a client of its own."""

    model: str = "strict"

    def opened(self) -> AbstractAsyncContextManager[SamplingClient]:
        return _opened()


@asynccontextmanager
async def _opened() -> AsyncIterator[SamplingClient]:
    LOG.append("opened")
    client = Strict()
    try:
        yield client
    finally:
        await client.aclose()


def f32(*values: float) -> F32:
    return np.array(values, np.float32)


def distilled(folder: Path) -> Run:
    return run_of(folder, WELL, policies=Policy("model", distillation(Behind())), group_size=1, deterministic=True)


def test_each_token_has_its_own_advantage_whatever_the_reward() -> None:
    """The sampler's log-probs are -1."""
    for reward in (0, 1):
        measured = Measured(reference=(f32(-1, -3, -0.5),))
        done = prepare(
            batch(trajectory(reward)), distillation("teacher", coefficient=2.0), {}, ["game"], measured=measured
        )
        assert done.decided.values[0].tolist() == pytest.approx([0, -4, 1])
        assert done.metrics["reward"] == reward


def test_its_parts() -> None:
    named = distillation("bigger")
    assert (named.kl, named.teacher) == (KL(coefficient=1.0, into="reward", reference="bigger"), None)
    assert (named.loss, named.advantages, named.advantages.minimum) == (ImportanceSampling(), Penalty(), 1)
    assert distillation(Behind(), loss=PPO()).loss == PPO()
    assert isinstance(Behind(), Teacher)


async def test_a_run_asks_the_teacher_for_what_was_sampled(tmp_path: Path) -> None:
    LOG.clear()
    events = await trained(distilled(tmp_path))
    assert LOG == ["opened", "closed"]
    steps = [event for event in events if isinstance(event, Stepped)]
    assert len(steps) == 3
    for step in steps:
        told = np.frombuffer(step.measured["reference"], "<f4")
        assert ((told <= -0.01 * ord("a") + 1e-6) & (told >= -0.01 * 260 - 1e-6)).all() and len(told)
        assert step.metrics["reference_kl"] > 0


async def test_a_crash_at_every_commit_changes_nothing(tmp_path: Path) -> None:
    assert await crash_at_every_commit(distilled, tmp_path, after=True, every=3) > 6


async def test_a_teacher_tells_log_probs_alone() -> None:
    teacher = TeacherReference(Strict(), "strict")
    mask = np.array([False, True, True])
    datum = Datum(
        tokens=np.array([7, 10, 20], np.int32),
        mask=mask,
        logprobs=f32(0, 0, 0),
        advantages=f32(0, 0, 0),
        weights=f32(0, 1, 2),
    )
    output = await teacher.forward([datum])
    assert output.logprobs[0].tolist() == pytest.approx([0, -0.1, -0.2])
    assert output.metrics == {"loss": pytest.approx(0.5), "tokens": 2.0}
    with pytest.raises(UnsupportedError, match=r"temperature=0\.5: a teacher's log-probs"):
        teacher.forward([replace(datum, temperature=0.5)])
    with pytest.raises(UnsupportedError, match="tells log-probs alone"):
        teacher.forward([datum], PPO())
    with pytest.raises(UnsupportedError, match="tells log-probs alone"):
        teacher.forward([datum], entropy=True)
    await teacher.unload()
    with pytest.raises(BackendError, match="teacher 'strict' was unloaded"):
        teacher.forward([datum])


def test_what_does_not_fit_together() -> None:
    with pytest.raises(
        SettingError, match=r"reads how far each token is from a teacher, and there is none; use distillation"
    ):
        grpo(advantages=Penalty())
    with pytest.raises(SettingError, match=r"reads how far each token is from a teacher"):
        replace(distillation("t"), kl=KL(coefficient=1.0, reference="t"))
    parts: dict[str, Any] = {"overlong": Overlong(), "filters": [EqualRewards()], "whiten": True}
    for name, part in parts.items():
        with pytest.raises(
            SettingError, match=rf"distillation\({name}=.*rewards are not learned from.*leave out {name}"
        ):
            replace(distillation("t"), **{name: part})
    with pytest.raises(SettingError, match="it is the reference of a KL that names none"):
        replace(grpo(), teacher=Behind())
    with pytest.raises(SettingError, match="it is the reference of a KL that names none"):
        replace(distillation("t"), teacher=Behind())
    with pytest.raises(SettingError, match=r"teacher=3\): must have a model's name and opened\(\)"):
        replace(distillation(Behind()), teacher=3)  # type: ignore[arg-type]
    for sampling, final in ((Sampling(temperature=0.7), None), (Sampling(), 0.5)):
        with pytest.raises(SettingError, match="a teacher's log-probs are those at temperature 1; sample at 1"):
            Policy("m", distillation(Behind()), sampling=sampling, final_temperature=final)
    assert Policy("m", distillation("t"), sampling=Sampling(temperature=0.7)).sampling.temperature == 0.7
    assert Policy("m", distillation(Behind()), start="s").start == "s", "a teacher is not what the policy began as"
    assert replace(distillation("t"), normalization=Constant(tokens=3)).name == "distillation"
