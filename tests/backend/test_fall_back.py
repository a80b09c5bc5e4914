"""A policy of the torch engine falls back: weights, optimizer and critic; cut off there, and trained again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from sparring import Gauge, Run
from sparring.learner import train, train_async
from sparring.learner.continuity import trained_again
from sparring.learner.history import read_events
from sparring.learner.replay import replay
from sparring.rollout import MemorySegments
from sparring.rollout.events import canonical
from tests.backend.test_learner_runs import ALGORITHMS, run_of, steps_of
from tests.learner.test_fall_back import stepped_at
from tests.learner.test_going_on import KilledBy
from tests.learner.worlds import Crash, events_of


def falling(model: Path, folder: Path) -> Run:
    """The learning rate is out of bounds from step 3 on, in which versions from 2 on play."""
    run = run_of(model, folder, ALGORITHMS["ppo"])
    (policy,) = run.named_policies.values()
    gauge = Gauge(figure="learning_rate", below=5e-4, steps=1, fall_back=1)
    return replace(run, policies=replace(policy, lr_schedule="linear"), steps=5, gauges=[gauge])


def test_weights_optimizer_and_critic_go_back(tiny_llama: Path, tmp_path: Path) -> None:
    run = falling(tiny_llama, tmp_path / "whole")
    assert train(run)
    steps = steps_of(list(read_events(run.path)))
    (at,) = [one.step for one in steps if one.fell_back is not None]
    fell_back = steps[at].fell_back
    assert fell_back is not None and (at, fell_back.to) == (3, 1)
    assert (fell_back.digest, fell_back.critic) == (steps[0].digest, steps[0].critic), "of weights and optimizer"
    assert len({one.digest for one in steps}) == 5 and replay(run.path).agrees


@pytest.mark.slow
def test_it_ends_in_the_same_weights_however_often_it_is_trained(tiny_llama: Path, tmp_path: Path) -> None:
    """Cut off where it fell back, and from its journal alone."""
    run = falling(tiny_llama, tmp_path / "whole")
    assert train(run)
    verdict = anyio.run(trained_again, run)
    assert verdict.holds, verdict
    cut, kept = falling(tiny_llama, tmp_path / "cut"), MemorySegments()
    with pytest.raises(Crash):
        anyio.run(partial(train_async, cut, store=KilledBy(kept, stepped_at(3))))
    assert anyio.run(partial(train_async, cut, store=kept))
    assert canonical(events_of(kept)) == canonical(list(read_events(run.path)))
