"""Scoring a run's stored episodes again, with a changed verifier, environment or task file: what would have changed.

Episodes are played again from the replies in the journal; no model is loaded and nobody is asked. The steps' batches are those
that were trained: what other rewards would have led the run to play or to drop is not followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from sparring.environments import task_digest
from sparring.errors import SettingError
from sparring.learner.described import task_at
from sparring.learner.history import note_of, read_events
from sparring.learner.replay import Credit, credits_of
from sparring.learner.rescored import Outcome, Rescoring, Row, StepChange, rows_of
from sparring.learner.run import Episodes, Run
from sparring.learner.step import prepare
from sparring.rollout import Batch, Coordinator, Schedule, Trajectory, Unit
from sparring.rollout.again import Again, Stage, again
from sparring.rollout.events import Accepted, Admitted, AnyEvent, Opened, Stepped
from sparring.rollout.finished import Finished, Gathering
from sparring.rollout.past import Effects

_CHUNK = 8192
"""Events that are read at once; the episodes that end among them are played beside each other."""


def rescore(folder: Path, changed: Run | Episodes, *, effects: Effects = "anew") -> Rescoring:
    """Score the episodes in the journal of `folder` with the environments and tasks of `changed`. Blocks.

    Effects are computed anew, or taken from the "journal" where it holds them. Raises `SettingError` for a folder without a
    journal, and for a `changed` that has not the run's training sources.
    """

    async def main() -> Rescoring:
        return await rescore_events(read_events(folder), changed, effects=effects)

    return anyio.run(main)


async def rescore_events(
    events: Iterable[AnyEvent], changed: Run | Episodes, *, effects: Effects = "anew"
) -> Rescoring:
    """The same over events, on a running event loop. The first must be `Opened`."""
    history = iter(events)
    opened = await anyio.to_thread.run_sync(next, history, None)
    if not isinstance(opened, Opened):
        raise SettingError("the journal does not begin with a run's settings: nothing was started in this folder")
    rescorer = _Rescorer(opened, changed, effects)
    while chunk := await anyio.to_thread.run_sync(_taken, history):
        await rescorer.add(chunk)
    return rescorer.result()


def _taken(history: Iterator[AnyEvent]) -> list[AnyEvent]:
    return list(islice(history, _CHUNK))


class _Rescorer:
    """Folds the journal as it was, and beside it keeps what its episodes come to now."""

    def __init__(self, opened: Opened, changed: Run | Episodes, effects: Effects) -> None:
        settings = opened.run["settings"]
        self._sources = changed.sources if isinstance(changed, Run) else (changed,)
        self._coordinator = Coordinator(msgspec.convert(opened.run["schedule"], Schedule))
        self._check_sources()
        self._stages = [
            Stage(
                environment=source.environment,
                seed=self._coordinator.schedule.seed,
                deadline=settings["episode_deadline"],
                effects=effects,
                score=stored.faults.score,
            )
            for source, stored in zip(self._sources, self._coordinator.schedule.sources, strict=True)
        ]
        self._credits = _credits(settings["policies"], changed)
        self._limit = anyio.CapacityLimiter(settings["max_concurrent"])
        self._gathering = Gathering(self._coordinator.schedule.group_size)
        self._again: dict[tuple[int, int], Again] = {}
        self._states: dict[str, Mapping[str, Any]] = {}
        self._guessed: set[str] = set()
        self._rows: list[Row] = []
        self._steps: list[StepChange] = []
        self._accepted: list[str] = []
        self._episodes = self._unasked = self._new_tasks = self._admissions = 0

    async def add(self, chunk: Sequence[AnyEvent]) -> None:
        """Play what ends in the chunk, then fold it."""
        for event in chunk:
            self._noted(event)
        jobs = [job for event in chunk if (job := self._gathering.add(event)) is not None]
        tasks = [(job, self._task(job.admitted)) for job in jobs]
        async with anyio.create_task_group() as group:
            for job, task in tasks:
                group.start_soon(self._play, job, task)
        for job in jobs:
            self._rows += self._rows_of(job)
        for event in chunk:
            if isinstance(event, Stepped):
                self._steps.append(self._compared(event))
            self._coordinator.apply(event)
        held = self._coordinator.groups.keys() | self._coordinator.buffer.groups | self._gathering.groups
        self._again = {key: one for key, one in self._again.items() if key[0] in held}

    def result(self) -> Rescoring:
        return Rescoring(
            rows=tuple(sorted(self._rows, key=lambda row: (row.group, row.member))),
            steps=tuple(self._steps),
            episodes=self._episodes,
            unfinished=self._gathering.under_way,
            unasked=self._unasked,
            new_tasks=self._new_tasks,
            accepted=tuple(self._accepted),
        )

    def _check_sources(self) -> None:
        stored = self._coordinator.schedule.sources
        if len(stored) != len(self._sources):
            raise SettingError(
                f"the run has {len(stored)} training sources, the file {len(self._sources)}: name one that defines as many"
            )
        for number, (source, episodes) in enumerate(zip(stored, self._sources, strict=True)):
            seats = {seat for lineup in source.lineups for seat in lineup}
            if not seats <= set(episodes.environment.seats):
                raise SettingError(
                    f"train source {number} trained the seats {sorted(seats)}, {episodes.environment.name} of the file has "
                    f"{list(episodes.environment.seats)}: a seat cannot be renamed"
                )

    def _noted(self, event: AnyEvent) -> None:
        """What is told of the run as a whole."""
        if isinstance(event, Admitted):
            self._admissions += 1
        elif isinstance(event, Accepted):
            self._accepted.append(f"after {self._admissions} admissions: {note_of(event).text}")

    def _task(self, admitted: Admitted) -> Any:
        task = task_at(self._sources[admitted.source], admitted.index, f"train source {admitted.source} of the file")
        self._new_tasks += task_digest(task) != admitted.task
        return task

    async def _play(self, job: Finished, task: Any) -> None:
        """Waits for a slot, then for the environment and its effects."""
        seats = self._coordinator.trained_seats(job.admitted)
        async with self._limit:
            done = await again(self._stages[job.admitted.source], task, job.admitted, job.ended, job.past, seats)
        self._again[job.admitted.group, job.ended.member] = done

    def _rows_of(self, job: Finished) -> list[Row]:
        done = self._again[job.admitted.group, job.ended.member]
        self._episodes += 1
        self._unasked += done.unasked > 0
        outcome: Outcome | None = "cut" if done.cut else "asks" if done.no_reply else None
        if outcome is None and done.ended.fault:
            outcome = "fault"
        return rows_of(job.admitted, job.ended, done.ended, outcome)

    def _compared(self, event: Stepped) -> StepChange:
        """Whether the batch that the step trained would have had the advantages that it had."""
        batch = self._coordinator.batches[event.policy]
        units = [*batch.units, *batch.again]
        guessed = any(self._again[unit.group, member].unknown for unit in units for member in self._members())
        if guessed:
            self._guessed.add(event.policy)
        elif event.policy in self._guessed:  # an estimator's state may come from what nobody knows
            guessed = bool(self._states[event.policy])
        names = [source.environment for source in self._coordinator.schedule.sources]
        now = Batch(
            planned=batch.planned,
            units=tuple(self._unit(unit) for unit in batch.units),
            again=tuple(self._unit(unit) for unit in batch.again),
        )
        prepared = prepare(now, *self._credits[event.policy], self._states.get(event.policy, {}), names)
        self._states[event.policy] = prepared.state
        same = prepared.digest == event.advantages
        return StepChange(
            policy=event.policy, step=event.step, advantages="unknown" if guessed else "same" if same else "other"
        )

    def _members(self) -> range:
        return range(self._coordinator.schedule.group_size)

    def _unit(self, unit: Unit) -> Unit:
        """The unit with the rewards of now; an episode that could not be played to its end keeps those of then."""
        made: list[Trajectory] = []
        for member in self._members():
            done = self._again[unit.group, member]
            if done.no_reply is not None:
                made += [one for one in unit.trajectories if one.episode == member]
            else:
                made += [one for one in done.trajectories if one.policy == unit.policy]
        return replace(unit, trajectories=tuple(made))


def _credits(policies: Mapping[str, Any], changed: Run | Episodes) -> dict[str, Credit]:
    """What decided the advantages then. Of an estimator of the user's own the journal holds the name alone: that one is taken
    from the run as it is now."""
    found: dict[str, Credit] = {}
    for name, described in policies.items():
        try:
            found |= credits_of({name: described}, None)
        except SettingError:
            if isinstance(changed, Episodes):
                raise
            found[name] = credits_of(policies, changed)[name]
    return found
