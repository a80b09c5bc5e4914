"""Phases: which policies make steps now, while the others are paused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import cycle

from sparring.errors import SettingError


@dataclass(frozen=True, slots=True)
class Phase:
    """So many `steps` of each of these policies (one name, or several that train at the same time), while all others are
    paused: nothing is reserved for them, and where they sit in a line-up they play, untrained, with the version that they
    have. It ends when the last of its steps is committed. Phases follow each other, the first again after the last, until
    every policy has made the steps of the run. A version is evaluated when every policy has made it."""

    policies: str | Sequence[str]
    steps: int = field(kw_only=True)

    def __post_init__(self) -> None:
        names = self.policies if isinstance(self.policies, Sequence) else None
        if (
            not names
            or not all(isinstance(name, str) and name for name in names)
            or len(set(self.names)) < len(self.names)
        ):
            raise SettingError(
                f"Phase({self.policies!r}): must be the name of a policy, or a sequence of different names"
            )
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise SettingError(f"Phase({self.policies!r}, steps={self.steps!r}): must be a whole number, at least 1")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.policies,) if isinstance(self.policies, str) else tuple(self.policies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a run: it lasts until each policy has made `until` steps in all; `moving` are those that make some in it."""

    until: Mapping[str, int]
    moving: frozenset[str]


def stages(phases: Sequence[Phase], steps: Mapping[str, int]) -> tuple[Stage, ...]:
    """A whole run of so many steps of each policy, phase by phase: the last ones end with the policies' steps, and one in which
    nobody has any left is skipped. Without phases it is one stage. Every policy must be in a phase."""
    if not phases:
        return (Stage(until=steps, moving=frozenset(steps)),)
    assert {name for phase in phases for name in phase.names} == set(steps), (phases, steps)
    found: list[Stage] = []
    made: Mapping[str, int] = dict.fromkeys(steps, 0)
    for phase in cycle(phases):
        if made == steps:
            break
        until = {**made, **{name: min(made[name] + phase.steps, steps[name]) for name in phase.names}}
        moving = frozenset(name for name in phase.names if until[name] > made[name])
        if moving:
            found.append(Stage(until=until, moving=moving))
        made = until
    return tuple(found) or (Stage(until=steps, moving=frozenset()),)


def check_phases(phases: object, policies: Collection[str], *, steps: int) -> None:
    """Raises `SettingError` for phases that a run of these policies, of so many steps each, cannot have."""
    if not isinstance(phases, Sequence) or not all(isinstance(phase, Phase) for phase in phases):
        raise SettingError(
            f"phases={phases!r}: must be a sequence of phases, as in phases=[Phase('prover', steps=10), Phase(...)]"
        )
    named = [name for phase in phases for name in phase.names]
    for phase in phases:
        for name in phase.names:
            if name not in policies:
                near = get_close_matches(name, policies, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"the policies are {', '.join(policies)}"
                raise SettingError(f"phases: {phase!r} names no policy of the run; {meant}")
        if phase.steps > steps:
            raise SettingError(f"phases: {phase!r} is longer than the run, of steps={steps!r}: make it at most that")
    for name in policies:
        if phases and name not in named:
            raise SettingError(
                f"phases: policy {name!r} is in none of them, and would never be trained: name it in one, or seat Frozen(...)"
            )
    if phases and all(set(phase.names) == set(policies) for phase in phases):
        raise SettingError(
            f"phases={phases!r}: all policies are in each of them, so that nobody is ever paused; leave out phases"
        )
