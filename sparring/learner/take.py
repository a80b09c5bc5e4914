"""One step on one planned batch: what is decided of it, then its optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import fsum, isfinite
from typing import Any

import numpy as np

from sparring.arrays import F32
from sparring.backend import Adam, CrossEntropy, ForwardOutput, Loss, OptimOutput, TrainingClient
from sparring.backend.losses import required_fields
from sparring.backend.totals import add_up, rates
from sparring.errors import NonFinite
from sparring.learner.run import Run
from sparring.learner.step import decide, lags
from sparring.learner.updates import Update, updates
from sparring.rollout import Batch
from sparring.rollout.events import Stepped

ESS_BY_STALENESS = "ess/staleness_"
"""What the names of these engine figures begin with: the effective sample size of the fresh tokens of one age alone."""


async def take_step(run: Run, policy: str, batch: Batch, durable: Mapping[str, Any], model: TrainingClient) -> Stepped:
    """Train one planned batch: decide, then `forward_backward` and `optim_step` for each update. Waits for the model alone.

    `durable` is the policy's durable state before the step. Raises `NonFinite`, naming step and units. A batch without units
    (a hole in a deterministic schedule) changes no weights.
    """
    settings = run.named_policies[policy]
    algorithm = settings.algorithm
    state: Mapping[str, Any] = durable.get("advantages", {})
    names = [source.environment.name for source in run.sources]
    priority = None if run.reuse is None else run.reuse.priority
    decided = decide(batch, algorithm.credit, state, names, priority)
    made = updates(batch, decided.values, algorithm.normalization, minibatches=algorithm.minibatches)
    engine: dict[str, float] = {}
    if made:
        rate = settings.rate_at(batch.planned.step, run.steps)
        try:
            made = await _with_proximal(model, made, algorithm.loss)
            adam = replace(settings.adam, learning_rate=rate)
            engine = await _trained(model, made, algorithm.loss, adam, batch)
        except NonFinite as error:
            where = f"step {batch.planned.step} of {policy!r}, groups {batch.planned.groups + batch.planned.reused}"
            raise NonFinite(
                f"{where}: {error}; lower the learning rate or look at these groups in the journal"
            ) from error
        engine |= {"learning_rate": rate}
    return Stepped(
        policy=policy,
        step=batch.planned.step,
        digest=await model.digest(),
        advantages=decided.digest,
        metrics=dict(decided.metrics),
        engine=engine,
        durable={"advantages": dict(decided.state)},
        weights=dict(decided.weights),
    )


async def _with_proximal(model: TrainingClient, made: Sequence[Update], loss: Loss) -> list[Update]:
    """The updates with the log-probs of the weights as they are now, where the loss reads them."""
    if "proximal_logprobs" not in required_fields(loss):
        return list(made)
    every = [datum for update in made for datum in (*update.data, *update.again)]
    scored = await model.forward(every, CrossEntropy())
    data = [replace(one, proximal_logprobs=lp) for one, lp in zip(every, scored.logprobs, strict=True)]
    ends = [0, *accumulate(len(part) for update in made for part in (update.data, update.again))]
    parts = [tuple(data[start:end]) for start, end in pairwise(ends)]
    return [Update(data=fresh, again=again) for fresh, again in zip(parts[::2], parts[1::2], strict=True)]


async def _trained(
    model: TrainingClient, made: Sequence[Update], loss: Loss, adam: Adam, batch: Batch
) -> dict[str, float]:
    """Make the updates, one after the other; returns their engine figures: losses and norms are means over the updates. What
    is used again goes through in calls of its own, so that its figures stand apart; the gradient is the same."""
    outputs: dict[str, list[ForwardOutput]] = {"": [], "reused/": []}
    optims: list[OptimOutput] = []
    for update in made:
        parts = [(name, data) for name, data in (("", update.data), ("reused/", update.again)) if data]
        submitted = [(name, model.forward_backward(data, loss)) for name, data in parts]
        stepped = model.optim_step(adam)
        for name, pending in submitted:
            outputs[name].append(await pending)
        optims.append(await stepped)
    engine: dict[str, float] = {}
    for name, several in outputs.items():
        if several:
            totals = add_up(output.metrics for output in several)
            measured = {"loss": totals["loss"] / len(several), **rates(totals)}
            engine |= {f"{name}{key}": value for key, value in measured.items()}
    engine |= _ess_by_staleness(batch, [lp for output in outputs[""] for lp in output.logprobs])
    norms = {name for optim in optims for name in optim.metrics}
    return engine | {name: fsum(optim.metrics[name] for optim in optims) / len(optims) for name in sorted(norms)}


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
