"""From the units of a planned step to training examples: comparable sets, advantages, the division, and what is known
so far.

Pure: a replay computes the same from the journal. Letters: `N` trajectories that are compared, `T` tokens of a context,
`A` action tokens of a trajectory or context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import fsum, isfinite
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32
from numpy.typing import NDArray

from sparring.arrays import F32, I32
from sparring.backend import Datum
from sparring.errors import SettingError
from sparring.learner.advantages import Advantages, Comparable, estimate, plain_state
from sparring.rollout import Batch, Context, Trajectory, Unit
from sparring.rollout.comparable import Scope, comparable_sets
from sparring.rollout.events import LATE, SET_ASIDE

Priority = Callable[[Unit, float], float]
"""(unit, mean |advantage| over its action tokens) -> its weight in the draw of units that are used again, at least 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A step's examples, ready for `forward_backward`: advantages are divided by the action tokens of all judged
    trajectories drawn for the step, those with advantage 0 and those used again included.

    data     the examples of the fresh units, `again` those of the units that are used again
    metrics  deterministic
    state    the estimator's, after the step
    digest   over all advantages
    weights  {group: weight}, where the draw of units that are used again is weighted
    """

    data: tuple[Datum, ...]
    again: tuple[Datum, ...]
    metrics: Mapping[str, float]
    state: Mapping[str, Any]
    digest: str
    weights: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Credited:
    """Advantages of drawn trajectories: one row of f32[A] for each, the estimator's next state, and for each set of more
    than one whether its rewards differ; `uncompared` sets were too small."""

    values: tuple[F32, ...]
    state: Mapping[str, Any]
    spreads: tuple[bool, ...]
    uncompared: int


def prepare(
    batch: Batch,
    estimator: Advantages,
    compare: Mapping[str, Scope],
    state: Mapping[str, Any],
    environments: Sequence[str],
    priority: Priority | None = None,
) -> Prepared:
    """`environments` are the names of the run's sources, for estimators that keep a baseline for each.

    Units that are used again are compared with the state after the fresh ones, and do not move it a second time. Raises
    `SettingError` for an estimator, or a `priority`, that returns what it should not.
    """
    drawn = [trajectory for unit in batch.units for trajectory in unit.trajectories]
    more = [trajectory for unit in batch.again for trajectory in unit.trajectories]
    tokens = sum(trajectory.action_tokens for trajectory in [*drawn, *more])
    sources = {unit.group: environments[unit.source] for unit in [*batch.units, *batch.again]}
    first = _credited(drawn, estimator, compare, plain_state(estimator, state), sources)
    later = _credited(more, estimator, compare, first.state, sources)
    digest = sha256()
    for row in [*first.values, *later.values]:
        digest.update(row.astype("<f4").tobytes())
    metrics = _metrics(batch, drawn) | {"uncompared": float(first.uncompared)}
    if first.spreads:
        metrics["mixed"] = _mean(first.spreads)
    return Prepared(
        data=tuple(datum for one, row in zip(drawn, first.values, strict=True) for datum in _data(one, row, tokens)),
        again=tuple(datum for one, row in zip(more, later.values, strict=True) for datum in _data(one, row, tokens)),
        metrics=metrics | _reused_metrics(batch, more),
        state=plain_state(estimator, first.state),
        digest=digest.hexdigest(),
        weights={} if priority is None else _weights(batch, [*first.values, *later.values], priority),
    )


def mean_advantage(unit: Unit, advantage: float) -> float:
    """The `Priority` that is |advantage| itself."""
    return advantage


def _credited(
    drawn: Sequence[Trajectory],
    estimator: Advantages,
    compare: Mapping[str, Scope],
    state: Mapping[str, Any],
    sources: Mapping[int, str],
) -> _Credited:
    values = [np.zeros(trajectory.action_tokens, np.float32) for trajectory in drawn]
    spreads: list[bool] = []
    uncompared = 0
    for members in comparable_sets(drawn, compare):
        if len(members) < estimator.minimum:
            uncompared += 1
            continue
        group = _comparable([drawn[index] for index in members], sources[drawn[members[0]].group])
        checked = estimate(estimator, group, state)
        state = checked.state
        for index, row in zip(members, checked.values, strict=True):
            values[index] = row
        if len(members) > 1:
            spreads.append(bool(group.rewards.min() < group.rewards.max()))
    return _Credited(values=tuple(values), state=state, spreads=tuple(spreads), uncompared=uncompared)


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


def _comparable(chosen: Sequence[Trajectory], environment: str) -> Comparable:
    return Comparable(
        environment=environment,
        seat=chosen[0].seat,
        label=chosen[0].label,
        rewards=_read_only(np.array([trajectory.reward for trajectory in chosen], np.float32)),
        lengths=_read_only(np.array([trajectory.action_tokens for trajectory in chosen], np.int32)),
        turn_rewards=tuple(_read_only(trajectory.turn_rewards) for trajectory in chosen),
        turns=tuple(_read_only(_action_turns(trajectory)) for trajectory in chosen),
        episodes=_read_only(np.array([trajectory.episode for trajectory in chosen], np.int32)),
    )


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The array, for reading: an estimator that computes in place would change what is logged, and what others read."""
    view = array.view()
    view.flags.writeable = False
    return view


def _action_turns(trajectory: Trajectory) -> Int32[I32, " A"]:
    turns = [context.turn[context.action_mask] for context in trajectory.contexts]
    return np.concatenate(turns).astype(np.int32)


def _data(trajectory: Trajectory, values: Float32[F32, " A"], tokens: int) -> list[Datum]:
    """One example for each context; the trajectory's values are laid over its action tokens in order."""
    data: list[Datum] = []
    start = 0
    for context in trajectory.contexts:
        end = start + context.action_tokens
        data.append(_datum(context, values[start:end], tokens))
        start = end
    return data


def _datum(context: Context, values: Float32[F32, " A"], tokens: int) -> Datum:
    scale = np.float32(1 / tokens)
    advantages = np.zeros(len(context.tokens), np.float32)
    advantages[context.action_mask] = values * scale
    return Datum(
        tokens=context.tokens,
        mask=context.action_mask,
        logprobs=context.logprobs,
        advantages=advantages,
        weights=context.action_mask.astype(np.float32) * scale,
        temperature=context.temperature,
    )


def _metrics(batch: Batch, drawn: Sequence[Trajectory]) -> dict[str, float]:
    """Every one a function of the batch's fresh units alone; means are over correctly rounded sums, so that no order
    changes them."""
    metrics = _drawn_metrics(batch, batch.units, drawn)
    metrics["truncated"] = _mean([trajectory.truncated for trajectory in drawn])
    metrics["contexts"] = float(sum(len(trajectory.contexts) for trajectory in drawn))
    return metrics | _seat_rewards(drawn) | _episode_metrics(batch)


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
