"""What is decided of a planned step before it is trained: its advantages, and what is known so far.

Pure: a replay computes the same from the journal. Letter: `A` action tokens of a trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import fsum, isfinite
from typing import Any

import numpy as np

from sparring.arrays import F32, I32
from sparring.errors import SettingError
from sparring.learner.advantages import plain_state
from sparring.learner.credit import Credit, Origin, Played, credited, longest_reply
from sparring.learner.kl import KL, distance
from sparring.learner.measured import NOTHING, Measured, all_trajectories
from sparring.rollout import Batch, Trajectory, Unit
from sparring.rollout.events import LATE, SET_ASIDE

Priority = Callable[[Unit, float], float]
"""(unit, mean |advantage| over its action tokens) -> its weight in the draw of units that are used again, at least 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What a replay decides again of a step.

    values   f32[A] for each trajectory, those of fresh units first
    returns  f32[A] what a critic's values are to become; () without a critic
    metrics  deterministic
    durable  the state of the estimator, and what the penalty is multiplied with where that is adapted, after the step
    digest   over all advantages
    weights  {group: weight}, where the draw of units that are used again is weighted
    """

    values: tuple[F32, ...]
    returns: tuple[F32, ...]
    metrics: Mapping[str, float]
    durable: Mapping[str, Any]
    digest: str
    weights: Mapping[int, float]


def decide(
    batch: Batch,
    credit: Credit,
    durable: Mapping[str, Any],
    environments: Sequence[str],
    *,
    priority: Priority | None = None,
    measured: Measured = NOTHING,
) -> Decided:
    """`durable` is the policy's state before the step. `environments` are the names of the run's sources, for estimators that
    keep a baseline for each.

    Units that are used again are compared with the state after the fresh ones, and do not move it a second time. Raises
    `SettingError` for an estimator, or a `priority`, that returns what it should not.
    """
    played = _played(all_trajectories(batch), credit, beta_of(credit.kl, durable), measured)
    fresh = sum(len(unit.trajectories) for unit in batch.units)
    drawn, more = [one.trajectory for one in played[:fresh]], [one.trajectory for one in played[fresh:]]
    sources = {
        unit.group: Origin(environment=environments[unit.source], players=unit.players)
        for unit in [*batch.units, *batch.again]
    }
    first = credited(played[:fresh], credit, plain_state(credit.advantages, durable.get("advantages", {})), sources)
    later = credited(played[fresh:], credit, first.state, sources)
    values = (*first.values, *later.values)
    digest = sha256()
    for row in values:
        digest.update(row.astype("<f4").tobytes())
    metrics = _metrics(batch, drawn) | {"uncompared": float(first.uncompared)}
    if first.spreads:
        metrics["mixed"] = _mean(first.spreads)
    if credit.overlong is not None:
        metrics["overlong"] = _mean(credit.overlong.reward(longest_reply(one)) for one in drawn)
    after = {"advantages": plain_state(credit.advantages, first.state)}
    if credit.kl is not None:
        metrics |= _reference_metrics(drawn, credit.kl, durable, measured)
        if credit.kl.target is not None:
            beta = metrics["kl_coefficient"]
            after["kl"] = {"coefficient": credit.kl.adapted(beta, metrics["reference_kl"]) if drawn else beta}
    return Decided(
        values=values,
        returns=(*first.returns, *later.returns),
        metrics=metrics | _reused_metrics(batch, more),
        durable=after,
        digest=digest.hexdigest(),
        weights={} if priority is None else _weights(batch, values, priority),
    )


def beta_of(kl: KL | None, durable: Mapping[str, Any]) -> float:
    """What the penalty is multiplied with in the step after this state; 0 without one."""
    if kl is None:
        return 0.0
    return float(durable["kl"]["coefficient"]) if "kl" in durable else kl.coefficient


def _played(drawn: Sequence[Trajectory], credit: Credit, beta: float, measured: Measured) -> list[Played]:
    """The trajectories with what is added to their rewards."""
    made: list[Played] = []
    for index, one in enumerate(drawn):
        added = 0.0 if credit.overlong is None else credit.overlong.reward(longest_reply(one))
        penalties: F32 | None = None
        if credit.kl is not None and credit.kl.into == "reward":
            penalties = credit.kl.penalties(beta, _sampled(one), measured.reference[index])
            added += fsum(penalties.tolist())
        values = measured.values[index] if measured.values else None
        made.append(Played(trajectory=one, added=added, penalties=penalties, values=values))
    return made


def _sampled(trajectory: Trajectory) -> F32:
    """The sampler's log-prob of each action token, f32[A]."""
    return np.concatenate([context.logprobs[context.action_mask] for context in trajectory.contexts])


def _reference_metrics(
    drawn: Sequence[Trajectory], kl: KL, durable: Mapping[str, Any], measured: Measured
) -> dict[str, float]:
    """How far the sampler is from the reference, k3 in nats per fresh token, and the coefficient of the step."""
    rows = [distance(_sampled(one), row, "k3") for one, row in zip(drawn, measured.reference, strict=False)]
    found = _mean(value for row in rows for value in row.tolist())
    return {"reference_kl": found, "kl_coefficient": beta_of(kl, durable)}


def mean_advantage(unit: Unit, advantage: float) -> float:
    """The `Priority` that is |advantage| itself."""
    return advantage


def _weights(batch: Batch, values: Sequence[F32], priority: Priority) -> dict[int, float]:
    """The weight of every unit of the batch, from the advantages that it has now."""
    weights: dict[int, float] = {}
    rows = iter(values)
    for unit in [*batch.units, *batch.again]:
        mine = [abs(value) for _ in unit.trajectories for value in next(rows).tolist()]
        weight: object = priority(unit, _mean(mine))
        if isinstance(weight, bool) or not (isinstance(weight, int | float) and isfinite(weight) and weight >= 0):
            raise SettingError(
                f"reuse: the priority of group {unit.group} is {weight!r}: must be a finite number, at least 0"
            )
        weights[unit.group] = float(weight)
    return weights


def _metrics(batch: Batch, drawn: Sequence[Trajectory]) -> dict[str, float]:
    """Every one a function of the batch's fresh units alone; means are over correctly rounded sums, so that no order
    changes them."""
    metrics = _drawn_metrics(batch, batch.units, drawn)
    metrics["distinct"] = _distinct(drawn)
    if games := [game for unit in batch.units for game in unit.scores]:
        metrics["won"] = _mean([score for _, score in games])
        fixed = sorted({name for name, _ in games if name})
        metrics |= {f"won/{one}": _mean([score for name, score in games if name == one]) for one in fixed}
    metrics["truncated"] = _mean([trajectory.truncated for trajectory in drawn])
    metrics["contexts"] = float(sum(len(trajectory.contexts) for trajectory in drawn))
    return metrics | _seat_rewards(drawn) | _episode_metrics(batch)


def _distinct(drawn: Sequence[Trajectory]) -> float:
    """Different replies of all turns, token for token, as a share of all."""
    replies = [
        context.tokens[context.action_mask & (context.turn == turn)].tobytes()
        for one in drawn
        for context in one.contexts
        for turn in np.unique(context.turn[context.action_mask])
    ]
    return len(set(replies)) / len(replies) if replies else 0.0


def _reused_metrics(batch: Batch, drawn: Sequence[Trajectory]) -> dict[str, float]:
    """Those of the units that are used again; none where there are none."""
    if not batch.again:
        return {}
    return {f"reused/{name}": value for name, value in _drawn_metrics(batch, batch.again, drawn).items()}


def _drawn_metrics(batch: Batch, units: Sequence[Unit], drawn: Sequence[Trajectory]) -> dict[str, float]:
    """What is said of fresh units and of those that are used again alike."""
    ages = lags(batch, drawn)
    return {
        "reward": _mean([trajectory.reward for trajectory in drawn]),
        "length": _mean([trajectory.action_tokens for trajectory in drawn]),
        "staleness": float(ages.mean(dtype=np.float64)) if len(ages) else 0.0,
        "staleness_max": float(ages.max(initial=0)),
        "units": float(len(units)),
        "trajectories": float(len(drawn)),
        "action_tokens": float(sum(trajectory.action_tokens for trajectory in drawn)),
    }


def _seat_rewards(drawn: Sequence[Trajectory]) -> dict[str, float]:
    """The mean reward of each seat and of each label, where there is more than one."""
    seats: dict[str, list[float]] = {}
    labels: dict[str, list[float]] = {}
    for trajectory in drawn:
        seats.setdefault(trajectory.seat, []).append(trajectory.reward)
        if trajectory.label:
            labels.setdefault(f"{trajectory.seat}/{trajectory.label}", []).append(trajectory.reward)
    several = (seats if len(seats) > 1 else {}) | labels
    return {f"reward/{name}": _mean(values) for name, values in sorted(several.items())}


def _episode_metrics(batch: Batch) -> dict[str, float]:
    """Counts of the batch's episodes, and the mean of each metric that the environment gave, over the episodes that
    have it."""
    episodes = [ended for unit in batch.units for ended in unit.episodes]
    given: dict[str, list[float]] = {}
    for ended in episodes:
        for name, value in ended.metrics.items():
            given.setdefault(name, []).append(value)
    counts = {
        "episodes": float(len(episodes)),
        "faults": float(sum(bool(ended.fault) and ended.fault not in SET_ASIDE for ended in episodes)),
        "unjudged": float(sum(bool(result.unjudged) for ended in episodes for result in ended.results)),
    }
    if late := sum(ended.fault == LATE for ended in episodes):
        counts["late"] = float(late)
    if retried := sum(ended.attempt for ended in episodes):
        counts["retried"] = float(retried)
    return counts | {f"environment/{name}": _mean(values) for name, values in sorted(given.items())}


def lags(batch: Batch, drawn: Sequence[Trajectory]) -> I32:
    """For each action token of the batch, how many versions older than the weights it trains were those that made
    it."""
    versions = [context.versions[context.action_mask] for trajectory in drawn for context in trajectory.contexts]
    return batch.planned.step - np.concatenate([*versions, np.zeros(0, np.int32)])


def _mean(values: Iterable[int | float]) -> float:
    found = list(values)
    return fsum(found) / len(found) if found else 0.0
