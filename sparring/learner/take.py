"""One step on one planned batch: what is decided of it, then its optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import anyio.lowlevel
import numpy as np

from sparring.agents import Frozen
from sparring.arrays import F32
from sparring.backend import CrossEntropy, Loss, ValueDatum
from sparring.backend.losses import required_fields
from sparring.backend.totals import add_up, rates
from sparring.errors import NonFinite
from sparring.learner.measured import NOTHING, Measured, all_trajectories, rows_of
from sparring.learner.normalization import TokenMean
from sparring.learner.run import Episodes, Run
from sparring.learner.step import Decided, beta_of, decide, lags
from sparring.learner.taught import Taught
from sparring.learner.updates import Laid, Update, updates
from sparring.rollout import Batch
from sparring.rollout.events import Stepped

ESS_BY_STALENESS = "ess/staleness_"
"""What the names of these engine figures begin with: the effective sample size of the fresh tokens of one age alone."""


async def take_step(run: Run, policy: str, batch: Batch, durable: Mapping[str, Any], models: Taught) -> Stepped:
    """Train one planned batch: ask the models what the algorithm needs of it, decide, then make its updates. Waits for the
    models alone.

    `durable` is the policy's durable state before the step. Raises `NonFinite`, naming step and units. A batch without units
    (a hole in a deterministic schedule) changes no weights.
    """
    algorithm = run.named_policies[policy].algorithm
    names = [source.environment.name for source in run.sources]
    priority = None if run.reuse is None else run.reuse.priority
    where = f"step {batch.planned.step} of {policy!r}, groups {batch.planned.groups + batch.planned.reused}"
    engine: dict[str, float] = {}
    try:
        loss = algorithm.objective(beta_of(algorithm.kl, durable))
        asked = await _asked(models, batch, loss)
        decided = decide(batch, algorithm.credit, durable, names, priority=priority, measured=asked.measured)
        await anyio.lowlevel.checkpoint()  # a large batch holds the event loop in parts
        laid = _laid(asked, decided, loss)
        made = updates(batch, laid, algorithm.normalization, minibatches=algorithm.minibatches)
        if made:
            engine = await _trained(run, policy, models, made, loss, batch)
    except NonFinite as error:
        raise NonFinite(f"{where}: {error}; lower the learning rate or look at these groups in the journal") from error
    return Stepped(
        policy=policy,
        step=batch.planned.step,
        digest=await models.model.digest(),
        advantages=decided.digest,
        metrics=dict(decided.metrics),
        engine=engine,
        durable=dict(decided.durable),
        weights=dict(decided.weights),
        critic=await models.critic_digest(),
        measured=asked.measured.packed(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the models say of a batch before it is trained; `proximal` f32[A] for each trajectory, () where the loss reads
    none."""

    measured: Measured
    proximal: tuple[F32, ...]


async def _asked(models: Taught, batch: Batch, loss: Loss) -> _Asked:
    drawn, proximal_read = all_trajectories(batch), "proximal_logprobs" in required_fields(loss)
    if not drawn or (models.reference is None and models.critic is None and not proximal_read):
        return _Asked(measured=NOTHING, proximal=())
    nothing = [Laid(advantages=np.zeros(one.action_tokens, np.float32)) for one in drawn]
    (update,) = updates(batch, nothing, TokenMean())
    data = [*update.data, *update.again]
    reference: tuple[F32, ...] = ()
    values: tuple[F32, ...] = ()
    proximal: tuple[F32, ...] = ()
    if models.reference is not None:
        reference = rows_of((await models.reference.forward(data)).logprobs, drawn)
    if models.critic is not None:
        values = rows_of((await models.critic.forward([ValueDatum.of(datum) for datum in data])).values, drawn)
    if proximal_read:
        proximal = rows_of((await models.model.forward(data, CrossEntropy())).logprobs, drawn)
    return _Asked(measured=Measured(reference=reference, values=values), proximal=proximal)


def _laid(asked: _Asked, decided: Decided, loss: Loss) -> list[Laid]:
    """What the examples of each trajectory have: what was decided, and what was asked where the loss reads it."""
    reference = asked.measured.reference if "reference_logprobs" in required_fields(loss) else ()
    columns = (asked.proximal, reference, decided.returns, asked.measured.values)
    rows = [column or (None,) * len(decided.values) for column in columns]
    return [
        Laid(advantages=advantages, proximal=proximal, reference=ref, returns=returns, old_values=old)
        for advantages, proximal, ref, returns, old in zip(decided.values, *rows, strict=True)
    ]


async def _trained(
    run: Run, policy: str, models: Taught, made: Sequence[Update], loss: Loss, batch: Batch
) -> dict[str, float]:
    """Make the updates, one after the other; returns their engine figures: losses and norms are means over the updates. What
    is used again goes through in calls of its own, so that its figures stand apart; the gradient is the same."""
    settings, step = run.named_policies[policy], batch.planned.step
    critic = settings.algorithm.critic
    alone = critic is not None and step < critic.pretraining
    rate = settings.rate_at(step, run.steps)
    adam = replace(settings.adam, learning_rate=rate)
    figures = _Figures()
    for update in made:
        if not alone:
            parts = [(name, data) for name, data in (("", update.data), ("reused/", update.again)) if data]
            submitted = [(name, models.model.forward_backward(data, loss)) for name, data in parts]
            stepped = models.model.optim_step(adam)
            for name, pending in submitted:
                output = await pending
                figures.forward(name, output.metrics)
                if not name:
                    figures.logprobs += output.logprobs
            figures.optim("", (await stepped).metrics)
        if critic is not None and models.critic is not None:
            valued = models.critic.forward_backward(update.critic, critic.loss)
            stepped = models.critic.optim_step(replace(critic.adam, learning_rate=critic.learning_rate))
            figures.forward("critic/", (await valued).metrics)
            figures.optim("critic/", (await stepped).metrics)
    engine = figures.rates() | ({} if alone else {"learning_rate": rate})
    return engine | (_ess_by_staleness(batch, figures.logprobs) if figures.logprobs else {})


class _Figures:
    """The engine figures of several updates, by prefix."""

    def __init__(self) -> None:
        self.logprobs: list[F32] = []
        self._calls: dict[str, list[Mapping[str, float]]] = {}
        self._optims: dict[str, list[Mapping[str, float]]] = {}

    def forward(self, prefix: str, metrics: Mapping[str, float]) -> None:
        self._calls.setdefault(prefix, []).append(metrics)

    def optim(self, prefix: str, metrics: Mapping[str, float]) -> None:
        self._optims.setdefault(prefix, []).append(metrics)

    def rates(self) -> dict[str, float]:
        """Rates over the tokens of all calls; losses and norms are means over the updates."""
        found: dict[str, float] = {}
        for prefix, calls in self._calls.items():
            totals = add_up(calls)
            measured = {"loss": totals["loss"] / len(calls), **rates(totals)}
            found |= {f"{prefix}{name}": value for name, value in measured.items()}
        for prefix, optims in self._optims.items():
            totals = add_up(optims)
            found |= {f"{prefix}{name}": value / len(optims) for name, value in totals.items()}
        return found


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


def frozen_players(run: Run) -> list[Frozen]:
    """Those of all its line-ups."""
    return [player for episodes in (*run.sources, *run.named_held_out.values()) for player in _frozen(episodes)]


def _frozen(episodes: Episodes) -> list[Frozen]:
    everyone = [player for lineup in episodes.lineups for player in lineup.players.values()]
    return [player for player in everyone if isinstance(player, Frozen)]


def due_sets(run: Run, version: int) -> list[str]:
    """The held-out sets that are played at this version: those whose frozen players are there by then."""
    return [
        name
        for name, episodes in run.named_held_out.items()
        if all(one.version <= version for one in _frozen(episodes))
    ]


def due_versions(run: Run) -> list[int]:
    """The versions that are evaluated and checkpointed: the first, every `evaluate_every`th, the last."""
    return sorted({*range(0, run.steps + 1, run.evaluate_every), run.steps})
