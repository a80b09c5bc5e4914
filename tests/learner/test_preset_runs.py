"""Runs of every preset over the scripted backend: trained, replayed, crashed and resumed; and what is refused at start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sparring import Correction, Episodes, Overlong, Policy, Run, ScriptedModels, Seat, dapo, decoupled_ppo, environment
from sparring.backend import Adam, Datum, ForwardOutput, Loss, OptimOutput
from sparring.backend.pending import PendingResult
from sparring.backend.scripted import ScriptedModel, babble
from sparring.errors import SettingError
from sparring.learner import PRESETS, Algorithm
from sparring.learner.checked import schedule_of
from sparring.learner.display import settings_lines
from sparring.learner.replay import compare
from sparring.learner.take import take_step
from sparring.learner.taught import Taught
from sparring.rollout import Batch, Coordinator
from sparring.rollout.events import AnyEvent, Opened, Planned, Stepped
from tests.learner.moods import trained
from tests.learner.worlds import crash_at_every_commit


@environment
async def spell(task: int, only: Seat) -> float:
    """Rewards of 0 and 1."""
    return float((await only.ask(f"task {task}")).text < "d")


def spelling(folder: Path, algorithm: Algorithm, **settings: Any) -> Run:
    plain: dict[str, Any] = {
        "steps": 3,
        "groups_per_step": 4,
        "group_size": 4,
        "deterministic": True,
        "max_refill": 200,
    }
    return Run(
        name="spelling",
        train=Episodes(spell, range(50)),
        policies=Policy("model", algorithm),
        backend=ScriptedModels(),
        folder=folder,
        **plain | settings,
    )


@pytest.mark.parametrize("name", PRESETS)
async def test_a_run_trains_and_is_decided_again_from_its_journal_alone(tmp_path: Path, name: str) -> None:
    events = await trained(spelling(tmp_path, PRESETS[name]()))
    assert len([event for event in events if isinstance(event, Stepped)]) == 3
    assert compare(events).differences == ()
    opened = events[0]
    assert isinstance(opened, Opened)
    divisor = opened.run["settings"]["policies"]["policy"]["loss_divided_by"]
    wanted = {"gspo": "trajectories of the update x action tokens of the trajectory"}
    wanted["dr_grpo"] = "trajectories of the update x 512"
    assert divisor == wanted.get(name, "action tokens of the update")
    assert f"loss_divided_by={divisor}" in settings_lines(opened.run)[0]
    assert f"algorithm=Algorithm(name={name}, " in settings_lines(opened.run)[0]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_at_every_commit_changes_nothing(tmp_path: Path, after: bool) -> None:
    """With several optimizer steps a step, and log-probs of the weights that it began with."""
    algorithm = decoupled_ppo(minibatches=2, correction=Correction())
    commits = await crash_at_every_commit(lambda folder: spelling(folder, algorithm), tmp_path, after=after)
    assert commits > 6


# --------------------------------------------------------------------------------------------------- several optimizer steps


class Watched(ScriptedModel):
    """Log-probs that say how many optimizer steps were made; keeps what each call was given."""

    def __init__(self) -> None:
        super().__init__("model", 0, babble)
        self.steps = 0
        self.calls: list[tuple[str, int, Sequence[Datum]]] = []

    def _scored(self, data: Sequence[Datum], metrics: dict[str, float]) -> ForwardOutput:
        return ForwardOutput(logprobs=tuple(d.logprobs + self.steps * d.mask for d in data), metrics=metrics)

    def forward(self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False) -> PendingResult[ForwardOutput]:
        self.calls.append(("forward", self.steps, data))
        done: PendingResult[ForwardOutput] = PendingResult("forward")
        done.succeed(self._scored(data, {"loss": 0.0, "tokens": 1.0}))
        return done

    def forward_backward(
        self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False
    ) -> PendingResult[ForwardOutput]:
        self.calls.append(("backward", self.steps, data))
        done: PendingResult[ForwardOutput] = PendingResult("forward_backward")
        done.succeed(self._scored(data, {"loss": 1.0 + self.steps, "tokens": 10.0, "nll_sum": 5.0}))
        return done

    def optim_step(self, adam: Adam) -> PendingResult[OptimOutput]:
        self.steps += 1
        return super().optim_step(adam)


async def a_batch(run: Run) -> Batch:
    """The first batch of a run."""
    state = Coordinator(schedule_of(run))
    for event in await trained(run):
        state.apply(event)
        if isinstance(event, Planned):
            return state.batches["policy"]
    raise AssertionError("nothing was planned")


async def test_the_proximal_log_probs_are_those_of_the_weights_that_the_step_began_with(tmp_path: Path) -> None:
    run = spelling(tmp_path, decoupled_ppo(minibatches=2))
    batch, model = await a_batch(run), Watched()
    stepped = await take_step(run, "policy", batch, {}, Taught(model=model))
    kinds = [(kind, steps) for kind, steps, _ in model.calls]
    assert kinds == [("forward", 0), ("backward", 0), ("backward", 1)]
    assert len(model.calls[0][2]) == 16 and [len(data) for _, _, data in model.calls[1:]] == [8, 8]
    for _, _, data in model.calls[1:]:
        for datum in data:
            assert datum.proximal_logprobs is not None
            assert datum.proximal_logprobs.tolist() == datum.logprobs.tolist(), "before any step was made"
    assert stepped.engine["loss"] == 1.5, "the mean over the updates"
    assert stepped.engine["entropy"] == 0.5, "rates are over the tokens of all of them"


async def test_who_does_not_read_them_pays_nothing(tmp_path: Path) -> None:
    run = spelling(tmp_path, PRESETS["grpo"]())
    batch, model = await a_batch(run), Watched()
    await take_step(run, "policy", batch, {}, Taught(model=model))
    assert [kind for kind, _, _ in model.calls] == ["backward"]
    assert all(datum.proximal_logprobs is None for datum in model.calls[0][2])


# --------------------------------------------------------------------------------------------------------- refused at start


def refused(folder: Path, algorithm: Algorithm, said: str, **settings: Any) -> None:
    with pytest.raises(SettingError, match=said):
        spelling(folder, algorithm, **settings)


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    refused(
        tmp_path,
        decoupled_ppo(),
        r"minibatches=4 of decoupled_ppo: a step has groups_per_step=2 units to divide among them; use at most as many",
        groups_per_step=2,
    )
    refused(tmp_path, dapo(overlong=Overlong(limit=513)), r"no reply is longer than sampling.max_tokens=512")
    refused(
        tmp_path, PRESETS["rloo"](), r"group_size=1: leave-one-out mean of 'policy' compares at least 2", group_size=1
    )
    assert spelling(tmp_path, PRESETS["reinforce_pp"](), group_size=1), "its baseline is that of the step"


def test_what_is_left_open_is_told(tmp_path: Path) -> None:
    """The policy keeps what was written; what the run obeys, and describes, is resolved."""
    run = spelling(tmp_path, dapo())
    assert isinstance(run.policies, Policy) and run.policies.algorithm.overlong == Overlong()
    assert run.named_policies["policy"].algorithm.overlong == Overlong(limit=512)


def test_events_of_presets_are_told_apart(tmp_path: Path) -> None:
    """No two presets describe themselves alike."""
    described = {repr(preset().resolved(16)) for preset in PRESETS.values()}
    assert len(described) == len(PRESETS)


def steps_of(events: Sequence[AnyEvent]) -> list[Stepped]:
    return [event for event in events if isinstance(event, Stepped)]


async def test_presets_train_otherwise(tmp_path: Path) -> None:
    """On the same episodes: what differs is the first step's advantages, loss or division, and so its weights."""
    first = {
        name: steps_of(await trained(spelling(tmp_path / name, preset(), steps=1)))[0]
        for name, preset in PRESETS.items()
        if name != "dapo"  # it plays others in place of groups that are equal
    }
    assert len({step.digest for step in first.values()}) == len(first)
