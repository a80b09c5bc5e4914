"""Which group is played next: whose turn it is, which task, against whom. A function of what was admitted and how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from sparring.rollout.budget import StalenessBudget
from sparring.rollout.curriculum import Recent
from sparring.rollout.events import Admitted
from sparring.rollout.league import Game, Games, Standings, games_of, meetings_of
from sparring.rollout.live import Completed, LiveGroup
from sparring.rollout.schedule import Choice, Schedule

Cursors = tuple[int, int, list[int]]
"""Groups admitted, the next turn, each source's cursor."""


class Choosing:
    """Cursors over sources and line-ups, results by task, and standings of opponents."""

    def __init__(self, schedule: Schedule, budget: StalenessBudget) -> None:
        self._schedule, self._budget = schedule, budget
        self.admitted = 0
        self._turn = 0
        self._cursors = [0] * len(schedule.sources)
        self.successes = [schedule.successes(source) for source in range(len(schedule.sources))]
        self.standings = Standings(pinned=schedule.pinned)

    def next(self) -> Choice | str | None:
        """The group to admit now; a sentence that says what its admission waits for; None when admission has ended."""
        turns = self._open_turns()
        if not turns:
            return self._budget.phase_left()
        turn = self._first_playable(turns)
        if turn is None:
            return self._missing(*self._schedule.combination(turns[0]))
        source, lineup = self._schedule.combination(turn)
        trained = self._open_policies(source, lineup)
        waits = self._budget.may_admit(trained)
        if waits is not None:
            return waits
        pinned = self._pinned(source, lineup)
        drawn = self._drawn(source, lineup, trained)
        opponents = self._schedule.opponents(source, lineup)
        frozen = [(one.policy, drawn.get(seat, one.version)) for seat, one in opponents.items() if one.policy]
        for policy, version in [*pinned.items(), *frozen]:
            if self._budget.installed(policy) < version:
                return f"{policy}: waits for version {version} to be installed, which group {self.admitted} plays with"
        return Choice(
            group=self.admitted,
            source=source,
            index=self._next_index(source),
            lineup=lineup,
            trained=trained,
            pinned=pinned,
            opponents=drawn,
        )

    def admit(self, event: Admitted) -> None:
        """The group that was chosen is admitted."""
        turn = self._first_playable(self._open_turns())
        assert turn is not None and event.group == self.admitted, (event, turn, self.admitted)
        self._turn = turn + 1
        self.admitted += 1
        self._cursors[event.source] += 1
        for successes in self.successes:
            if successes is not None:
                successes.settle(event.pinned)
        self.standings.settle(event.pinned)

    def complete(self, group: LiveGroup, done: Completed, seats: Mapping[str, str]) -> list[Game]:
        """All episodes of the group have ended; returns its games against opponents."""
        admitted = group.admitted
        successes = self.successes[admitted.source]
        if successes is not None:
            successes.add(admitted, group.due, done.episodes, seats)
        opponents = self._schedule.opponents(admitted.source, admitted.lineup)
        games = games_of(admitted, group.since, done.episodes, seats, opponents)
        lineup = self._schedule.sources[admitted.source].lineups[admitted.lineup]
        meetings = meetings_of(done.episodes, lineup)
        if games or meetings:
            self.standings.add(Games(group=admitted.group, due=group.due, games=games, meetings=meetings))
        return games

    def kept(self, policy: str) -> set[int]:
        """The versions of the policy, made so far, that leagues may yet draw."""
        newest, found = self._budget.version(policy), set[int]()
        for one in self._schedule.all_opponents():
            if one.league is not None and one.policy == policy:
                oldest = one.league.members(self._ceiling(policy))[0]
                found.update(range(oldest, newest + 1, one.league.every))
        return found

    def state(self) -> tuple[Cursors, list[Recent | None]]:
        return (self.admitted, self._turn, self._cursors), [
            None if one is None else one.state() for one in self.successes
        ]

    def restore(self, cursors: Cursors, recents: Sequence[Recent | None]) -> None:
        """Become what `state` described."""
        self.admitted, self._turn, self._cursors = cursors
        for successes, recent in zip(self.successes, recents, strict=True):
            if successes is not None and recent is not None:
                successes.restore(recent)

    def _next_index(self, source: int) -> int:
        cursor, successes = self._cursors[source], self.successes[source]
        if successes is None:
            return self._schedule.task_index(source, cursor)
        return successes.draw(Random(f"{self._schedule.seed}/curriculum/{source}/{cursor}"))

    def _open_turns(self) -> list[int]:
        """The turns in which somebody still trains, up to the one after which all had theirs."""
        turns = range(self._turn, self._turn + self._schedule.combinations)
        return [turn for turn in turns if self._open_policies(*self._schedule.combination(turn))]

    def _first_playable(self, turns: Sequence[int]) -> int | None:
        """The first of them whose frozen versions are there."""
        return next((turn for turn in turns if not self._missing(*self._schedule.combination(turn))), None)

    def _open_policies(self, source: int, lineup: int) -> tuple[str, ...]:
        policies = dict.fromkeys(self._schedule.sources[source].lineups[lineup].values())
        return tuple(policy for policy in policies if not self._budget.closed(policy))

    def _missing(self, source: int, lineup: int) -> str:
        """Which frozen version this line-up waits for, that is not made yet; others play until then."""
        for one in self._schedule.opponents(source, lineup).values():
            if one.policy and one.version > self._ceiling(one.policy):
                return f"{one.policy}: waits for version {one.version}, which a line-up names"
        return ""

    def _drawn(self, source: int, lineup: int, trained: Sequence[str]) -> dict[str, int]:
        """{seat: version} of the members that leagues send into the next group."""
        drawn: dict[str, int] = {}
        for seat, one in self._schedule.opponents(source, lineup).items():
            if one.league is not None:
                rng = Random(f"{self._schedule.seed}/league/{self.admitted}/{seat}")
                members = one.league.members(self._ceiling(one.policy))
                drawn[seat] = self.standings.draw(one.league, members, trained, rng)
        return drawn

    def _ceiling(self, policy: str) -> int:
        """The newest version that may be an opponent now: what is installed; in a pinned schedule what a group of the policy
        would play with, so that it does not depend on the clock. All units of the steps up to it are admitted."""
        if not self._schedule.pinned:
            return self._budget.installed(policy)
        bound = self._schedule.bounds[policy]
        if self._budget.closed(policy):
            return self._budget.limit(policy)
        return max(0, bound.oldest(self._budget.meant(policy)))

    def _pinned(self, source: int, lineup: int) -> dict[str, int]:
        """{policy: version} of those that play with one throughout: who is paused, with the last that it made, and in a pinned
        schedule everyone."""
        pinned = {}
        for policy in dict.fromkeys(self._schedule.sources[source].lineups[lineup].values()):
            if self._budget.paused(policy):
                pinned[policy] = self._budget.version(policy)
            elif self._schedule.pinned:
                pinned[policy] = max(0, self._schedule.bounds[policy].oldest(self._budget.meant(policy)))
        return pinned
