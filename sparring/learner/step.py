"""From the units of a planned step to training examples: comparable sets, advantages, the division, and what is known so far.

Pure: a replay computes the same from the journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from sparring.arrays import F32
from sparring.backend import Datum
from sparring.learner.advantages import Advantages, Comparable, estimate
from sparring.learner.algorithm import Scope
from sparring.rollout import Batch, Context, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A step's examples, ready for `forward_backward`: advantages are divided by the action tokens of all judged
    trajectories drawn for the step. `metrics` are deterministic; `state` is the estimator's, after the step; `digest`
    is over all advantages."""

    data: tuple[Datum, ...]
    metrics: Mapping[str, float]
    state: Mapping[str, Any]
    digest: str


def prepare(
    batch: Batch,
    estimator: Advantages,
    compare: Mapping[str, Scope],
    state: Mapping[str, Any],
    environments: Sequence[str],
) -> Prepared:
    """`environments` are the names of the run's sources, for estimators that keep a baseline for each."""
    drawn = [trajectory for unit in batch.units for trajectory in unit.trajectories]
    tokens = sum(trajectory.action_tokens for trajectory in drawn)
    sources = {unit.group: environments[unit.source] for unit in batch.units}
    values: dict[int, F32] = {}
    mixed = compared = uncompared = 0
    for members in _comparable_sets(drawn, compare):
        chosen = [drawn[index] for index in members]
        if len(chosen) < estimator.minimum:
            uncompared += 1
            values |= {index: np.zeros(drawn[index].action_tokens, np.float32) for index in members}
            continue
        group = _comparable(chosen, sources[chosen[0].group])
        checked = estimate(estimator, group, state)
        state = checked.state
        values |= dict(zip(members, checked.values, strict=True))
        compared += 1
        mixed += bool(np.ptp(group.rewards) > 0)
    digest = sha256()
    data: list[Datum] = []
    for index, trajectory in enumerate(drawn):
        digest.update(values[index].tobytes())
        data += _data(trajectory, values[index], tokens)
    metrics = _metrics(batch, drawn, tokens)
    metrics |= {"mixed": mixed / compared if compared else 0.0, "uncompared": float(uncompared)}
    return Prepared(data=tuple(data), metrics=metrics, state=state, digest=digest.hexdigest())


def _comparable_sets(drawn: Sequence[Trajectory], compare: Mapping[str, Scope]) -> list[list[int]]:
    """Indices of the trajectories that are compared: one task, seat and label, over the group or within the episode."""
    sets: dict[tuple[int, int, str, str], list[int]] = {}
    for index, trajectory in enumerate(drawn):
        within = compare.get(trajectory.seat, "group") == "episode"
        key = (trajectory.group, trajectory.episode if within else -1, trajectory.seat, trajectory.label)
        sets.setdefault(key, []).append(index)
    return list(sets.values())


def _comparable(chosen: Sequence[Trajectory], environment: str) -> Comparable:
    return Comparable(
        environment=environment,
        seat=chosen[0].seat,
        label=chosen[0].label,
        rewards=np.array([trajectory.reward for trajectory in chosen], np.float32),
        lengths=np.array([trajectory.action_tokens for trajectory in chosen], np.int32),
        turn_rewards=tuple(trajectory.turn_rewards for trajectory in chosen),
        turns=tuple(_action_turns(trajectory) for trajectory in chosen),
        episodes=np.array([trajectory.episode for trajectory in chosen], np.int32),
    )


def _action_turns(trajectory: Trajectory) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.concatenate([context.turn[context.action_mask] for context in trajectory.contexts]).astype(np.int32)


def _data(trajectory: Trajectory, values: F32, tokens: int) -> list[Datum]:
    """One example for each context; the trajectory's values are laid over its action tokens in order."""
    data: list[Datum] = []
    start = 0
    for context in trajectory.contexts:
        end = start + int(context.action_mask.sum())
        data.append(_datum(context, values[start:end], tokens))
        start = end
    return data


def _datum(context: Context, values: F32, tokens: int) -> Datum:
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


def _metrics(batch: Batch, drawn: Sequence[Trajectory], tokens: int) -> dict[str, float]:
    seats: dict[str, list[float]] = {}
    for trajectory in drawn:
        seats.setdefault(trajectory.seat, []).append(trajectory.reward)
    rewards = [trajectory.reward for trajectory in drawn]
    lags = _lags(batch, drawn)
    metrics = {
        "reward": _mean(rewards),
        "length": _mean([trajectory.action_tokens for trajectory in drawn]),
        "truncated": _mean([trajectory.truncated for trajectory in drawn]),
        "staleness": _mean(lags),
        "staleness_max": float(max(lags, default=0)),
        "units": float(len(batch.units)),
        "trajectories": float(len(drawn)),
        "contexts": float(sum(len(trajectory.contexts) for trajectory in drawn)),
        "action_tokens": float(tokens),
        "episodes": float(batch.episodes),
        "faults": float(batch.faults),
        "dropped": float(batch.dropped),
    }
    if len(seats) > 1:
        metrics |= {f"reward/{seat}": _mean(values) for seat, values in sorted(seats.items())}
    return metrics


def _lags(batch: Batch, drawn: Sequence[Trajectory]) -> list[int]:
    lags: list[int] = []
    for trajectory in drawn:
        for context in trajectory.contexts:
            lags += (batch.planned.step - context.versions[context.action_mask]).tolist()
    return lags


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else 0.0
