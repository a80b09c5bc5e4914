"""The off-policy buffer: finished units between play and training, and trained ones that may be used again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import fsum
from random import Random

import numpy as np

from sparring.rollout.budget import StalenessBudget, Waiting
from sparring.rollout.trajectory import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseRule:
    """How trained units are used again (rule 5): in places beyond the fresh ones of a step, never twice in one batch.

    units     at most so many of them in a step
    weighted  drawn in proportion to their weights, else each alike
    max_uses  uses of one unit in all, the first included
    max_age   how many versions older than the weights it trains a token of a further use may be
    """

    units: int
    weighted: bool
    max_uses: int
    max_age: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """A trained unit that may be used again: its oldest token's version, its uses so far, its weight as of the last."""

    unit: Unit
    oldest: int
    uses: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferStatistics:
    """Units and action tokens that wait. Bounded by admission: at most K + 1 steps' worth for each policy, K the
    largest bound.

    `kept` units were trained and may be used again: at most max_age steps' worth.
    """

    units: int
    tokens: int
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferState:
    """The units that wait, and {policy: {group: a trained one that may be used again}}."""

    units: Sequence[Unit]
    used: Mapping[str, Mapping[int, Used]]


class RolloutBuffer:
    """Units that are finished and not yet taken, under the rule of `StalenessBudget`; with `reuse`, trained ones too."""

    def __init__(self, budget: StalenessBudget, *, reuse: ReuseRule | None = None, seed: int = 0) -> None:
        self._budget = budget
        self._reuse = reuse
        self._seed = seed
        self._units: dict[tuple[str, int], Unit] = {}
        self._tokens = 0
        self._used: dict[str, dict[int, Used]] = {}

    def add(self, unit: Unit) -> None:
        """A unit is complete."""
        assert (unit.policy, unit.group) not in self._units, f"unit {unit.policy}/{unit.group} was buffered twice"
        self._budget.finish(unit.policy, str(unit.group))
        self._units[unit.policy, unit.group] = unit
        self._tokens += unit.action_tokens

    def fresh(self, policy: str) -> tuple[int, ...] | Waiting:
        """The groups of the batch that the policy's next step may take, in order of admission, or what it waits for."""
        candidate = self._budget.candidate(policy)
        return candidate if isinstance(candidate, Waiting) else tuple(int(unit) for unit in candidate)

    def reused(self, policy: str) -> tuple[int, ...]:
        """The groups whose units the policy's next step uses again, in order of admission: a seeded draw without
        replacement from those that may be; fewer where there are not enough, and none of weight 0."""
        if self._reuse is None:
            return ()
        kept = sorted(self._used.get(policy, {}).items())
        rng = Random(f"{self._seed}/reuse/{policy}/{self._budget.version(policy)}")
        weights = [used.weight if self._reuse.weighted else 1.0 for _, used in kept]
        return tuple(kept[index][0] for index in draw(weights, self._reuse.units, rng))

    def take(self, policy: str, groups: Sequence[int]) -> tuple[Unit, ...]:
        """The units of a planned step; they leave the buffer, and the budget's books when the step is committed."""
        self._budget.take(policy, [str(group) for group in groups])
        taken = tuple(self._units.pop((policy, group)) for group in groups)
        self._tokens -= sum(unit.action_tokens for unit in taken)
        return taken

    def again(self, policy: str, groups: Sequence[int]) -> tuple[Unit, ...]:
        """The units that a planned step uses again."""
        if not groups:
            return ()
        assert self._reuse is not None, f"{policy}: {groups!r} are used again in a run without reuse"
        assert len(set(groups)) == len(groups) <= self._reuse.units, f"{policy}: {groups!r} are used again in one step"
        used = [self._used.get(policy, {}).get(group) for group in groups]
        missing = [group for group, one in zip(groups, used, strict=True) if one is None]
        assert not missing, f"{policy}: {missing!r} were not trained, were used often enough, or are too old"
        return tuple(one.unit for one in used if one is not None)

    def trained(
        self, policy: str, fresh: Sequence[Unit], again: Sequence[Unit], weights: Mapping[int, float]
    ) -> tuple[Unit, ...]:
        """The step that used these units is committed, and the budget knows; returns the units that no later step may use
        as they are too old by now."""
        if self._reuse is None:
            return ()
        kept = self._used.setdefault(policy, {})
        version, expired = self._budget.version(policy), []
        for unit in fresh:
            oldest, weight = oldest_version(unit, version - 1), weights.get(unit.group, 0.0)
            kept[unit.group] = Used(unit=unit, oldest=oldest, uses=1, weight=weight)
        for unit in again:
            used = kept[unit.group]
            kept[unit.group] = replace(used, uses=used.uses + 1, weight=weights.get(unit.group, used.weight))
        for group, used in list(kept.items()):
            if used.uses >= self._reuse.max_uses:
                del kept[group]
            elif version - used.oldest > self._reuse.max_age:
                expired.append(kept.pop(group).unit)
        return tuple(expired)

    def state(self) -> BufferState:
        """All that it holds, as data."""
        return BufferState(units=list(self._units.values()), used=self._used)

    def restore(self, state: BufferState) -> None:
        """Become what `state` described; the budget is restored apart."""
        self._units = {(unit.policy, unit.group): unit for unit in state.units}
        self._tokens = sum(unit.action_tokens for unit in state.units)
        self._used = {policy: dict(kept) for policy, kept in state.used.items()}

    @property
    def groups(self) -> set[int]:
        """Whose units it holds, those that may be used again included."""
        return {group for _, group in self._units} | {group for kept in self._used.values() for group in kept}

    def statistics(self) -> BufferStatistics:
        return BufferStatistics(
            units=len(self._units),
            tokens=self._tokens,
            kept=sum(len(kept) for kept in self._used.values()),
        )


def oldest_version(unit: Unit, without: int) -> int:
    """The version of the unit's oldest action token; `without` where it has none."""
    made = [context.versions[context.action_mask] for one in unit.trajectories for context in one.contexts]
    versions = np.concatenate(made) if made else np.zeros(0, np.int32)
    return int(versions.min()) if len(versions) else without


def draw(weights: Sequence[float], count: int, rng: Random) -> list[int]:
    """Up to `count` indices without replacement, in order: each next one with a probability in proportion to its weight
    among those left. Weight 0 is never drawn."""
    left = {index: weight for index, weight in enumerate(weights) if weight > 0}
    chosen: list[int] = []
    while left and len(chosen) < count:
        point = rng.random() * fsum(left.values())
        reached = (index for index, upto in zip(left, accumulate(left.values()), strict=True) if point < upto)
        index = next(reached, max(left))  # the last one where rounding left the point beyond the sum
        chosen.append(index)
        del left[index]
    return sorted(chosen)
