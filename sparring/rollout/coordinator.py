"""The coordinator: what a run has done, folded from its events, and what it may do next, as a function of that alone.

It decides (`next_group`, `next_batch`); whoever runs the run writes the decision into the journal and applies it. Resuming is
applying the journal, from its beginning or from a `state`; replaying is deciding again and comparing. No I/O, no clock, no
chance but seeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparring.rollout.bias import DropBias
from sparring.rollout.budget import StalenessBudget, Waiting
from sparring.rollout.buffer import RolloutBuffer, oldest_version
from sparring.rollout.choosing import Choosing
from sparring.rollout.comparable import all_equal
from sparring.rollout.events import (
    LATE,
    QUARANTINED,
    Accepted,
    Acted,
    Admitted,
    Affected,
    AnyEvent,
    Checkpointed,
    Died,
    Ended,
    Evaluated,
    Installed,
    Planned,
    Restarted,
    Retried,
    Stepped,
)
from sparring.rollout.faults import FaultCounts, Faults
from sparring.rollout.fell_back import Broken, FellBack
from sparring.rollout.ledger import DropReason, Ledger
from sparring.rollout.live import (
    Completed,
    LiveEpisode,
    LiveGroup,
    completed,
    count_frozen,
    count_lost,
    count_made,
    count_retried,
)
from sparring.rollout.refill import Barren, nothing_left
from sparring.rollout.schedule import Choice, Schedule
from sparring.rollout.snapshot import CoordinatorState
from sparring.rollout.trajectory import Batch, Trajectory, Unit, tokens_by_seat

_FATAL = 2
"""Processes that an episode may end; then it is quarantined."""

ENDED_IT = f"the process ended {_FATAL} times while its code ran"


class Coordinator:
    """State and decisions of one run. `apply` every event in the journal's order, each exactly once."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.budget = StalenessBudget(schedule.bounds, pinned=schedule.pinned, phases=schedule.phases)
        self.ledger = Ledger()
        self.bias = DropBias()
        self.buffer = RolloutBuffer(self.budget, reuse=schedule.reuse, seed=schedule.seed)
        self.groups: dict[int, LiveGroup] = {}
        self.batches: dict[str, Batch] = {}
        self.durable: dict[str, Mapping[str, Any]] = {policy: {} for policy in schedule.bounds}
        self.evaluated: set[tuple[str, int]] = set()
        self.checkpoints: dict[str, set[int]] = {policy: {0} for policy in schedule.bounds}
        self.broken: dict[str, Mapping[str, Broken]] = {policy: {} for policy in schedule.bounds}
        self.fell_back: dict[str, list[tuple[int, int]]] = {policy: [] for policy in schedule.bounds}
        self.episodes = 0
        self.faults = FaultCounts()
        self.restarts = 0
        self._deaths: dict[tuple[str, int, int, int], list[str]] = {}
        self.fingerprints: Mapping[str, Any] = {}
        """Those that were accepted last; empty where none were: then those hold that the run was started with."""
        self.barren = {policy: Barren() for policy in schedule.bounds}
        self.choosing = Choosing(schedule, self.budget)

    def next_group(self) -> Choice | str | None:
        """The group to admit now; a sentence that says what its admission waits for; None when admission has ended."""
        return self.choosing.next()

    def next_batch(self, policy: str) -> Planned | Waiting:
        """The batch that the policy's next step takes now, or what it waits for."""
        groups = self.buffer.fresh(policy)
        if isinstance(groups, Waiting):
            return groups
        reused = list(self.buffer.reused(policy))
        return Planned(policy=policy, step=self.budget.version(policy), groups=list(groups), reused=reused)

    def late(self) -> tuple[Ended, ...]:
        """The ends of the episodes that are to be dropped now, as more than `schedule.drop_after` versions of a policy that
        trains in their group were made since it was admitted."""
        after = self.schedule.drop_after
        if after is None:
            return ()
        ends: list[Ended] = []
        for live in self.groups.values():
            ages = [self.budget.version(policy) - live.since[policy] for policy in sorted(live.left)]
            if max(ages) > after:
                detail = f"under way while {max(ages)} versions were made; pacing drops after {after}"
                ends += live.cut_off(LATE, detail)
        return tuple(ends)

    def quarantined(self) -> tuple[Ended, ...]:
        """The ends of the episodes that are not to be played again: their own code ran when the process ended, twice."""
        fatal = {(group, member) for held_out, _, group, member in self._fatal() if not held_out}
        live = [self.groups[group] for group in sorted({group for group, _ in fatal}) if group in self.groups]
        ends = [ended for group in live for ended in group.cut_off(QUARANTINED, ENDED_IT)]
        return tuple(ended for ended in ends if (ended.group, ended.member) in fatal)

    def quarantined_tasks(self, held_out: str, version: int) -> frozenset[int]:
        """Likewise, the tasks of a held-out set at a version."""
        return frozenset(task for name, at, task, _ in self._fatal() if (name, at) == (held_out, version))

    @property
    def finished(self) -> bool:
        """Whether every policy has made all its steps; then nothing is outstanding."""
        return all(self.budget.done(policy) for policy in self.schedule.bounds)

    def apply(self, event: AnyEvent) -> None:
        """Fold one event into the state."""
        match event:
            case Admitted():
                self._admit(event)
            case Acted() | Affected() | Restarted():
                self._go_on(event)
            case Retried():
                self._retry(event)
            case Died():
                which = (event.held_out, event.version, event.group, event.member)
                lives = self._deaths.setdefault(which, [])
                lives += [] if event.life in lives else [event.life]
            case Ended():
                self._finish(event)
            case Planned():
                self._plan(event)
            case Stepped():
                self._step(event)
            case Installed():
                self.budget.install(event.policy, event.version)
            case Evaluated() | Checkpointed() | Accepted():
                self._remember(event)
            case _:
                """Opened, Timed and Noted change nothing that is decided."""

    def state(self) -> CoordinatorState:
        """All that was folded. It holds what goes on changing: pack it before anything else is applied."""
        cursors, successes = self.choosing.state()
        return CoordinatorState(
            budget=self.budget.state(),
            ledger=self.ledger.state(),
            tallies=self.bias.state(),
            buffer=self.buffer.state(),
            groups=self.groups,
            batches=self.batches,
            durable=self.durable,
            evaluated=sorted(self.evaluated),
            checkpoints={policy: sorted(steps) for policy, steps in self.checkpoints.items()},
            broken=self.broken,
            fell_back=self.fell_back,
            episodes=self.episodes,
            faults=self.faults,
            restarts=self.restarts,
            deaths=self._deaths,
            fingerprints=self.fingerprints,
            barren=self.barren,
            cursors=cursors,
            successes=successes,
            standings=self.choosing.standings.table(),
        )

    def restore(self, state: CoordinatorState) -> None:
        """Become what `state` describes, which nobody else may go on using. Raises `RunChanged` for other bounds."""
        self.budget.restore(state.budget)
        self.ledger.restore(state.ledger)
        self.bias.restore(state.tallies)
        self.buffer.restore(state.buffer)
        self.groups, self.batches, self.durable = state.groups, state.batches, dict(state.durable)
        self.evaluated = set(state.evaluated)
        self.checkpoints = {policy: set(steps) for policy, steps in state.checkpoints.items()}
        self.broken, self.fell_back = state.broken, state.fell_back
        self.episodes, self.faults = state.episodes, state.faults
        self.restarts = state.restarts
        self._deaths, self.fingerprints, self.barren = state.deaths, state.fingerprints, state.barren
        self.choosing.restore(state.cursors, state.successes)
        self.choosing.standings.restore(state.standings)

    def trained_seats(self, group: Admitted) -> dict[str, str]:
        """{seat: policy} of the seats whose play in this group is trained on."""
        lineup = self.schedule.sources[group.source].lineups[group.lineup]
        return {seat: policy for seat, policy in lineup.items() if policy in group.trained}

    def _frozen_seats(self, group: Admitted) -> dict[str, str]:
        """{seat: policy} of the seats that train in other groups and not in this one."""
        lineup = self.schedule.sources[group.source].lineups[group.lineup]
        return {seat: policy for seat, policy in lineup.items() if policy not in group.trained}

    def held(self, group: Admitted) -> list[tuple[str, int]]:
        """(policy, version) of all that the group plays with throughout: those pinned, and opponents from leagues."""
        opponents = self.schedule.opponents(group.source, group.lineup)
        return [*group.pinned.items(), *((opponents[seat].policy, one) for seat, one in group.opponents.items())]

    def faults_of(self, group: int) -> Faults:
        """What becomes of the group's episodes that fail."""
        return self.schedule.sources[self.groups[group].admitted.source].faults

    def waits(self) -> list[str]:
        """What everything that cannot go on waits for, as sentences."""
        lines = []
        choice = self.next_group()
        if isinstance(choice, str):
            lines.append(f"admission: {choice}")
        for policy in self.schedule.bounds:
            batch = self.next_batch(policy)
            if isinstance(batch, Waiting) and not self.budget.done(policy):
                lines.append(f"learner of {policy}: {batch.reason}")
        return lines

    def _fatal(self) -> list[tuple[str, int, int, int]]:
        return sorted(which for which, lives in self._deaths.items() if len(lives) >= _FATAL)

    def _admit(self, event: Admitted) -> None:
        self.choosing.admit(event)
        meant = {policy: self.budget.meant(policy) for policy in self.schedule.bounds}
        due = self.budget.admit(str(event.group), event.trained)
        members = [LiveEpisode() for _ in range(self.schedule.group_size)]
        since = {policy: self.budget.version(policy) for policy in event.trained}
        group = LiveGroup(admitted=event, due=due, since=since, meant=meant, members=members, left=list(event.trained))
        self.groups[event.group] = group
        seats = self.trained_seats(event)
        for policy in event.trained:
            self.ledger.admitted(policy, str(event.group), [seat for seat, name in seats.items() if name == policy])

    def _go_on(self, event: Acted | Affected | Restarted) -> None:
        past = self.groups[event.group].members[event.member].past
        if isinstance(event, Restarted):
            past.clear()
            self.restarts += 1
        else:
            past.append(event)

    def _retry(self, event: Retried) -> None:
        group = self.groups[event.group]
        member = group.members[event.member]
        assert member.ended is None and member.attempt == event.attempt, (event, member.attempt)
        self.faults.add(event)
        count_retried(self.bias, self.ledger, member.past, self.trained_seats(group.admitted), self._task(group))
        member.past.clear()
        member.attempt += 1

    def _remember(self, event: Evaluated | Checkpointed | Accepted) -> None:
        match event:
            case Evaluated():
                self.evaluated.add((event.name, event.version))
            case Checkpointed():
                self.checkpoints[event.policy].add(event.step)
            case Accepted():
                self.fingerprints = event.fingerprints

    def _finish(self, event: Ended) -> None:
        group = self.groups[event.group]
        member = group.members[event.member]
        assert member.ended is None, f"group {event.group}, episode {event.member} ended twice"
        member.ended = event
        self.episodes += 1
        self.faults.add(event)
        if not group.playing:
            self._complete(group)

    def _complete(self, group: LiveGroup) -> None:
        """All episodes of the group have ended: each of its units is buffered, or dropped if nothing of it is to be
        trained on."""
        seats = self.trained_seats(group.admitted)
        done = completed(group.members, seats)
        count_frozen(self.ledger, group.members, self._frozen_seats(group.admitted))
        for member in group.members:
            member.past = []
        count_lost(self.bias, done, seats, self._task(group))
        games = self.choosing.complete(group, done, seats)
        for policy in group.admitted.trained:
            mine = tuple(trajectory for trajectory in done.trajectories if trajectory.policy == policy)
            if not mine:
                tokens = done.tokens([seat for seat, named in seats.items() if named == policy])
                self._drop(group, policy, done.reason, tokens, nothing_left(done.episodes))
            elif self._filtered(policy, mine):
                count_made(self.bias, mine, "filter", self._task(group))
                self._drop(group, policy, "filter", tokens_by_seat(mine), "all rewards that are compared are equal")
            else:
                mine_of = [one for one in games if one.policy == policy]
                scores = tuple(("" if one.league else one.opponent, one.score) for one in mine_of)
                self._keep(group, policy, mine, done, scores)

    def _filtered(self, policy: str, made: Sequence[Trajectory]) -> bool:
        compare = self.schedule.equal_rewards.get(policy)
        return compare is not None and all_equal(made, compare)

    def _keep(
        self,
        group: LiveGroup,
        policy: str,
        made: tuple[Trajectory, ...],
        done: Completed,
        scores: tuple[tuple[str, float], ...],
    ) -> None:
        admitted = group.admitted
        self.barren[policy] = Barren()
        self.buffer.add(
            Unit(
                policy=policy,
                group=admitted.group,
                source=admitted.source,
                trajectories=made,
                episodes=done.episodes,
                scores=scores,
                players=self.schedule.players(admitted.source, admitted.lineup, admitted.opponents),
            )
        )
        self.ledger.finished(policy, str(admitted.group), tokens_by_seat(made))

    def _drop(self, group: LiveGroup, policy: str, reason: DropReason, tokens: Mapping[str, int], detail: str) -> None:
        """The unit leaves the books; its place is free for another."""
        name = str(group.admitted.group)
        self.barren[policy].add(group.admitted, reason, detail)
        self.budget.drop(policy, name)
        self.ledger.dropped(policy, name, reason, tokens)
        self._leave(group, policy)

    def _task(self, group: LiveGroup) -> tuple[int, int]:
        """(source, index) of the group's task for the drop-bias table, where an endless source is one task."""
        source = group.admitted.source
        return source, -1 if self.schedule.sources[source].tasks is None else group.admitted.index

    def _plan(self, event: Planned) -> None:
        again = self.buffer.again(event.policy, event.reused)
        batch = Batch(planned=event, units=self.buffer.take(event.policy, event.groups), again=again)
        self._assert_young(batch)
        self.batches[event.policy] = batch

    def _step(self, event: Stepped) -> None:
        batch = self.batches.pop(event.policy)
        assert batch.planned.step == event.step, (batch.planned, event.step)
        self.budget.step(event.policy)
        for unit in batch.units:
            self.ledger.trained(event.policy, str(unit.group))
            count_made(self.bias, unit.trajectories, "trained", self._task(self.groups[unit.group]))
            self._leave(self.groups[unit.group], event.policy)
        for unit in batch.again:
            self.ledger.reused(event.policy, tokens_by_seat(unit.trajectories))
        for unit in self.buffer.trained(event.policy, batch.units, batch.again, event.weights):
            self.ledger.expired(event.policy, tokens_by_seat(unit.trajectories))
        self.durable[event.policy] = event.durable
        self.broken[event.policy] = event.broken
        if event.fell_back is not None:
            self._fall_back(event, event.fell_back)
        self.ledger.assert_balanced(self.budget.statistics())
        assert not self.budget.overdue(), f"units that no step may train any more: {self.budget.overdue()}"

    def _fall_back(self, event: Stepped, fell_back: FellBack) -> None:
        known, to = self.checkpoints[event.policy], fell_back.to
        assert to in known and to <= event.step, f"step {event.step} of {event.policy} cannot go back to version {to}"
        self.fell_back[event.policy].append((event.step + 1, to))

    def _assert_young(self, batch: Batch) -> None:
        """Invariant 1: on its first use, no token is older than the bound; on a later one, none is older than `max_age`."""
        step, policy = batch.planned.step, batch.planned.policy
        reuse = self.schedule.reuse
        for units, most in (
            (batch.units, self.schedule.bounds[policy].staleness(step)),
            (batch.again, reuse.max_age if reuse else 0),
        ):
            for unit in units:
                oldest = oldest_version(unit, step)
                assert oldest >= step - most, (
                    f"step {step} of {policy}: group {unit.group} holds a token of version {oldest}, older than {step - most}"
                )

    def _leave(self, group: LiveGroup, policy: str) -> None:
        group.left.remove(policy)
        if not group.left:
            del self.groups[group.admitted.group]
