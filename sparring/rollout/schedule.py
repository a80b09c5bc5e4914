"""The part of a run that decides what is played next: pure data, so that a replay decides the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from sparring.rollout.budget import Bound
from sparring.rollout.buffer import ReuseRule
from sparring.rollout.comparable import Scope
from sparring.rollout.curriculum import Curriculum, Successes
from sparring.rollout.faults import Faults
from sparring.rollout.league import Opponent
from sparring.rollout.phases import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One `Episodes` of the run: how many tasks (None: endless) and, for each of its line-ups, {seat: policy} of those
    trained, and in `opponents` {seat: who} of all others. `curriculum`: tasks are drawn by it, else each pass over them has an
    order of its own. `faults`: what becomes of episodes that fail."""

    environment: str
    tasks: int | None
    lineups: tuple[Mapping[str, str], ...]
    curriculum: Curriculum | None = None
    faults: Faults = Faults()
    opponents: tuple[Mapping[str, Opponent], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What decides what is played and what becomes of it.

    pinned         the schedule of deterministic runs: which version a group plays with is a function of its position
    equal_rewards  {policy: {seat: what its trajectories are compared over}}, for the policies whose units are dropped
                   where all rewards that are compared are equal
    drop_after     an episode is dropped when more than so many versions were made since its group was admitted; None: never
    reuse          how trained units are used again; None: never
    phases         who makes steps when; (): all at the same time
    """

    sources: tuple[Source, ...]
    bounds: Mapping[str, Bound]
    group_size: int
    seed: int
    pinned: bool = False
    equal_rewards: Mapping[str, Mapping[str, Scope]] = field(default_factory=dict[str, Mapping[str, Scope]])
    drop_after: int | None = None
    reuse: ReuseRule | None = None
    phases: tuple[Phase, ...] = ()

    def combination(self, turn: int) -> tuple[int, int]:
        """(source, line-up) of the turn: sources alternate by group, and each source's line-ups by its groups."""
        source = turn % len(self.sources)
        return source, turn // len(self.sources) % len(self.sources[source].lineups)

    @property
    def combinations(self) -> int:
        """Turns after which every line-up of every source had its own."""
        return len(self.sources) * max(len(source.lineups) for source in self.sources)

    def opponents(self, source: int, lineup: int) -> Mapping[str, Opponent]:
        """{seat: who does not learn} of a line-up; of none that an older journal does not tell."""
        told = self.sources[source].opponents
        return told[lineup] if told else {}

    def players(self, source: int, lineup: int, drawn: Mapping[str, int]) -> dict[str, str]:
        """{seat: who plays it} in a group of a line-up: a policy by its name, another as the line-up names it, a league's with
        the version that was `drawn` for the seat."""
        others = self.opponents(source, lineup)
        named = {seat: one.drawn(drawn.get(seat, one.version)) for seat, one in others.items()}
        return dict(sorted({**self.sources[source].lineups[lineup], **named}.items()))

    def all_opponents(self) -> list[Opponent]:
        """Those of every line-up."""
        return [one for source in self.sources for lineup in source.opponents for one in lineup.values()]

    def successes(self, source: int) -> Successes | None:
        """Where the results of a source with a curriculum are kept; None for one without."""
        curriculum, tasks = self.sources[source].curriculum, self.sources[source].tasks
        if curriculum is None:
            return None
        assert tasks is not None, f"source {source}: a curriculum over endless tasks"
        return Successes(curriculum=curriculum, tasks=tasks, pinned=self.pinned)

    def task_index(self, source: int, cursor: int) -> int:
        """Which task the source's group number `cursor` plays: each pass over a finite source has an order of its own."""
        count = self.sources[source].tasks
        if count is None:
            return cursor
        epoch, offset = divmod(cursor, count)
        return _order(self.seed, source, epoch, count)[offset]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The next group: everything of `Admitted` but the task's digest, and when its units would be due."""

    group: int
    source: int
    index: int
    lineup: int
    trained: tuple[str, ...]
    pinned: Mapping[str, int]
    opponents: Mapping[str, int] = field(default_factory=dict[str, int])


@lru_cache(maxsize=8)
def _order(seed: int, source: int, epoch: int, count: int) -> list[int]:
    order = list(range(count))
    Random(f"{seed}/{source}/{epoch}").shuffle(order)
    return order
