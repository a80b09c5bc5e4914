"""One optimizer step on one planned batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import anyio.lowlevel
import numpy as np

from sparring.arrays import F32
from sparring.backend import ForwardOutput, OptimOutput, TrainingClient
from sparring.backend.totals import rates
from sparring.errors import NonFinite
from sparring.learner.run import Run
from sparring.learner.step import lags, prepare
from sparring.rollout import Batch
from sparring.rollout.events import Stepped

ESS_BY_STALENESS = "ess/staleness_"
"""What the names of these engine figures begin with: the effective sample size of the fresh tokens of one age alone."""


async def take_step(run: Run, policy: str, batch: Batch, durable: Mapping[str, Any], model: TrainingClient) -> Stepped:
    """Train one planned batch: prepare, `forward_backward`, `optim_step`. Waits for the model alone. What is used again goes
    through in a call of its own, so that its figures stand apart; the gradient is the same.

    `durable` is the policy's durable state before the step.

    Raises `NonFinite`, naming step and units. A batch without units (a hole in a deterministic schedule) changes no weights.
    """
    settings = run.named_policies[policy]
    state: Mapping[str, Any] = durable.get("advantages", {})
    prepared = prepare(
        batch,
        settings.algorithm.advantages,
        settings.algorithm.compare,
        state,
        [source.environment.name for source in run.sources],
        None if run.reuse is None else run.reuse.priority,
    )
    await anyio.lowlevel.checkpoint()  # a large batch holds the event loop in parts
    engine: dict[str, float] = {}
    if prepared.data or prepared.again:
        rate = settings.rate_at(batch.planned.step, run.steps)
        parts = [(name, data) for name, data in (("", prepared.data), ("reused/", prepared.again)) if data]
        try:
            trained = [(name, model.forward_backward(data, settings.algorithm.loss)) for name, data in parts]
            stepped = model.optim_step(replace(settings.adam, learning_rate=rate))
            for name, pending in trained:
                forward: ForwardOutput = await pending
                measured = {"loss": forward.metrics["loss"], **rates(forward.metrics)}
                engine |= {f"{name}{key}": value for key, value in measured.items()}
                if not name:
                    engine |= _ess_by_staleness(batch, forward.logprobs)
            optim: OptimOutput = await stepped
        except NonFinite as error:
            where = f"step {batch.planned.step} of {policy!r}, groups {batch.planned.groups + batch.planned.reused}"
            raise NonFinite(
                f"{where}: {error}; lower the learning rate or look at these groups in the journal"
            ) from error
        engine |= {"learning_rate": rate, **optim.metrics}
    return Stepped(
        policy=policy,
        step=batch.planned.step,
        digest=await model.digest(),
        advantages=prepared.digest,
        metrics=dict(prepared.metrics),
        engine=engine,
        durable={"advantages": dict(prepared.state)},
        weights=dict(prepared.weights),
    )


def _ess_by_staleness(batch: Batch, logprobs: Sequence[F32]) -> dict[str, float]:
    """(sum r)^2 / (n sum r^2) over the n tokens of each age, r = exp(trainer's log-prob - sampler's); `logprobs` f32[T] are
    the trainer's, one for each context of the batch's fresh units. Left out where a ratio is not finite."""
    drawn = [trajectory for unit in batch.units for trajectory in unit.trajectories]
    contexts = [context for trajectory in drawn for context in trajectory.contexts]
    apart = [
        (scored - context.logprobs)[context.action_mask] for scored, context in zip(logprobs, contexts, strict=True)
    ]
    ages = lags(batch, drawn)
    with np.errstate(over="ignore"):
        ratios = np.exp(np.concatenate(apart).astype(np.float64))
        squares = np.square(ratios)
    found: dict[str, float] = {}
    for age in np.unique(ages).tolist():
        mine = ages == age
        below = float(mine.sum() * squares[mine].sum())
        if isfinite(below) and below > 0:
            found[f"{ESS_BY_STALENESS}{age}"] = float(ratios[mine].sum()) ** 2 / below
    return found


def due_versions(run: Run) -> list[int]:
    """The versions that are evaluated and checkpointed: the first, every `evaluate_every`th, the last."""
    return sorted({*range(0, run.steps + 1, run.evaluate_every), run.steps})
