"""The run in motion: admission, episodes, one learner for each policy, held-out play beside them.

Each task of the group waits for one thing, named where it waits: admission for room under the staleness rule (a step, a
drop or an installed version), an episode for a slot and then its players, a learner for the units of its next step, the
evaluation for a published version, the teller for the disk. Everything decided is journaled before anything that depends
on it; a step goes plan, commit, publish.
"""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from sparring.environments import task_digest
from sparring.errors import RunChanged, SettingError
from sparring.learner.ceilings import Ceilings
from sparring.learner.described import task_at
from sparring.learner.evaluate import evaluate
from sparring.learner.fall_back import FallBacks
from sparring.learner.holds import Holds
from sparring.learner.pacing import Drop
from sparring.learner.parts import Parts
from sparring.learner.players import Players, seated
from sparring.learner.resume import checkpoint_due, evaluated, kept_checkpoints, named_versions
from sparring.learner.run_statistics import RunStatistics, timed
from sparring.learner.stall import Waits, never_still, stall_report
from sparring.learner.take import due_sets, due_versions, take_step
from sparring.learner.teller import Teller
from sparring.rollout import Choice, Slots, Waiting
from sparring.rollout.episode import Episode, EpisodePlan, run_episode, scored
from sparring.rollout.events import (
    DEADLINE,
    LATE,
    Acted,
    Admitted,
    Affected,
    AnyEvent,
    Checkpointed,
    Ended,
    Installed,
    Noted,
    Planned,
    Restarted,
    Retried,
    Stepped,
)
from sparring.rollout.live import LiveGroup
from sparring.rollout.loop_watch import Held, LoopWatch
from sparring.rollout.signal import Signal

_STARTED_AT_ONCE = 8
"""Episodes after whose start the event loop comes round: it does not while all those of a step begin."""


class Trainer:
    """Runs a run to its end, or to the end of the steps under way once `stop()` was called."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._run = parts.run
        self._journal = parts.journal
        self._coordinator = parts.coordinator
        self._players = Players(parts.run.named_policies, parts.versions, parts.others, parts.run.steps)
        self._holds = Holds(parts.versions, parts.coordinator)
        self._slots = Slots(parts.run.max_concurrent)
        self._changed = Signal()
        self._episodes: dict[tuple[int, int], Episode] = {}
        self._playing: dict[tuple[int, int], anyio.CancelScope] = {}
        self._evaluation = anyio.CancelScope()
        self._waits = Waits()
        self._teller = Teller(
            parts.watchers, parts.journal, self._waits, self._changed.notify, patience=parts.run.stall_deadline
        )
        self._held_out: dict[str, Episode] = {}
        self._held_out_replies = 0
        self._ceilings = Ceilings(parts.run, parts.coordinator)
        self._fall_backs = FallBacks(parts.run, parts.coordinator, parts.folder)
        self._loop = LoopWatch(deadline=parts.run.stall_deadline, on_held=self._note_held)
        self._stopping = False
        self._started = monotonic()
        self._first_step = dict.fromkeys(parts.versions, -1)

    async def train(self) -> None:
        """Waits until every policy has made its steps and every due version is evaluated, or `stop()` took effect."""
        still = never_still(self._run.stall_deadline, self._progress, self._stalled)
        async with self._loop.watching(), still, anyio.create_task_group() as group:
            group.start_soon(self._teller.run)
            async with anyio.create_task_group() as work:
                self._drop_late()
                for number in self._holds.groups:  # of those that were dropped just now
                    await self._holds.let_go(number)
                self._go_on(work)
                work.start_soon(self._admit, work)
                async with anyio.create_task_group() as learners:
                    for policy in self._parts.versions:
                        learners.start_soon(self._learn, policy)
                    learners.start_soon(self._evaluate)
                work.cancel_scope.cancel()
            self._teller.close()

    def stop(self) -> None:
        """Let the steps under way finish, write checkpoints, end `train`. A resumed run makes up for evaluations cut off."""
        self._stopping = True
        self._evaluation.cancel()
        self._changed.notify()

    @property
    def stopping(self) -> bool:
        """Whether `stop()` was called."""
        return self._stopping

    @property
    def complete(self) -> bool:
        """Whether every step is made and every due version evaluated."""
        return self._coordinator.finished and all(self._evaluated(version) for version in due_versions(self._run))

    def _go_on(self, work: TaskGroup) -> None:
        """Play on what was being played when the run was last cut off."""
        for number, live in sorted(self._coordinator.groups.items()):
            resumable = self._run.sources[live.admitted.source].environment.resumable
            for member, episode in enumerate(live.members):
                if episode.ended is None:
                    if episode.past and not resumable:
                        self._record(Restarted(group=number, member=member))
                    work.start_soon(self._play, number, member)

    def _record(self, event: AnyEvent) -> int:
        """Into the state, which refuses what breaks an invariant, then into the journal's queue."""
        self._coordinator.apply(event)
        number = self._journal.append(event, self._parts.snapshots.after(event))
        self._teller.add(number, event)
        if not self._unblocks_nobody(event):
            self._changed.notify()
        if isinstance(event, Stepped):
            self._drop_late()
        return number

    def _unblocks_nobody(self, event: AnyEvent) -> bool:
        """Most events: an admission, and the end of an episode whose group still plays."""
        if isinstance(event, Ended):
            live = self._coordinator.groups.get(event.group)
            return live is not None and live.playing
        return isinstance(event, Admitted | Retried)

    def _drop_late(self) -> None:
        """End the episodes that are too old by now, at once with the step that made them so."""
        for ended in self._coordinator.late():
            self._record(ended)
            if scope := self._playing.get((ended.group, ended.member)):
                scope.cancel()
            self._ceilings.check()

    async def _commit(self, event: Planned | Stepped | Checkpointed) -> None:
        """The same, and wait for the disk."""
        with self._waits.on(f"learner of {event.policy}", f"the disk: {type(event).__name__} {event.step}"):
            await self._journal.durable(self._record(event))

    async def _admit(self, work: TaskGroup) -> None:
        """Waits for room under the staleness rule, and for watchers that are far behind; unblocked by steps, drops and
        installed versions, and by the teller."""
        started = 0
        while True:
            choice = None if self._stopping or self._teller.behind else self._coordinator.next_group()
            if not isinstance(choice, Choice):
                await self._changed.wait()
                continue
            _, digest = self._task(choice.source, choice.index)
            if digest in self._parts.held_out_digests:
                where = f"task {choice.index} of {self._named(choice.source)}"
                raise SettingError(f"{where} is held out too: keep them apart, or say seen=True")
            self._record(
                Admitted(
                    group=choice.group,
                    source=choice.source,
                    index=choice.index,
                    task=digest,
                    lineup=choice.lineup,
                    trained=list(choice.trained),
                    pinned=dict(choice.pinned),
                    opponents=dict(choice.opponents),
                )
            )
            for ended in self._coordinator.quarantined():  # it ended processes before its admission was on the disk
                self._record(ended)
            self._holds.take(choice.group)
            for member in range(self._run.group_size):
                work.start_soon(self._play, choice.group, member)
            started += self._run.group_size
            if started >= _STARTED_AT_ONCE:
                started = 0
                await anyio.lowlevel.checkpoint()

    async def _play(self, number: int, member: int) -> None:
        """Waits for a slot, then for the episode; cut off by `_drop_late`, which may come before it began."""
        if (live := self._coordinator.groups.get(number)) is not None:
            with anyio.CancelScope() as scope:
                self._playing[number, member] = scope
                try:
                    await self._played(number, member, live)
                finally:
                    del self._playing[number, member]
                    self._episodes.pop((number, member), None)
        if not any((number, other) in self._playing for other in range(self._run.group_size)):
            await self._holds.let_go(number)

    async def _played(self, number: int, member: int, live: LiveGroup) -> None:
        players = seated(self._parts.lineups[live.admitted.source][live.admitted.lineup], live.admitted.opponents)
        patience = self._run.pacing.seconds if isinstance(self._run.pacing, Drop) else None
        async with self._slots.at((min(live.due.values()), number, member)):
            if live.members[member].ended is not None:  # dropped while it waited
                return
            task, digest = self._task(live.admitted.source, live.admitted.index)
            if digest != live.admitted.task:
                raise RunChanged(
                    f"task {live.admitted.index} of {self._named(live.admitted.source)} is not the one that group {number} was "
                    f"admitted with: a source answers the same for the same index, and an environment leaves its task as it "
                    f"is; restore it, or start a new run"
                )
            plan = EpisodePlan(
                environment=self._run.sources[live.admitted.source].environment,
                task=task,
                task_digest=live.admitted.task,
                agents=self._players.agents(players, live.admitted.pinned, steps=live.meant),
                trained=frozenset(self._coordinator.trained_seats(live.admitted)),
                seed=self._run.seed,
                group=number,
                member=member,
                deadline=self._run.episode_deadline if patience is None else patience,
                clock=not self._run.deterministic,
                past=tuple(live.members[member].past),
                page=self._parts.page,
            )
            while (ended := await self._attempted(plan, live.members[member].attempt)) is None:
                plan = replace(plan, past=())
        self._record(ended)
        self._ceilings.check()

    async def _attempted(self, plan: EpisodePlan, attempt: int) -> Ended | None:
        """How the episode ended; None where it failed and is to be played again. Waits for the episode."""
        at, faults = (plan.group, plan.member), self._coordinator.faults_of(plan.group)
        episode = self._episodes[at] = Episode(plan, self._emit)
        ended, seats = await run_episode(episode, plan)
        del self._episodes[at]
        ended = msgspec.structs.replace(ended, attempt=attempt)
        if ended.fault == DEADLINE and isinstance(self._run.pacing, Drop) and self._run.pacing.seconds is not None:
            return msgspec.structs.replace(ended, fault=LATE)
        if faults.retries_after(ended):
            group, member = at
            self._record(Retried(group=group, member=member, attempt=attempt, fault=ended.fault, detail=ended.detail))
            self._ceilings.check()
            return None
        if ended.fault and faults.score is not None:
            return scored(ended, seats, plan.trained, faults.score)
        return ended

    def _task(self, source: int, index: int) -> tuple[Any, str]:
        """A training task, and the digest of its content."""
        task = task_at(self._run.sources[source], index, self._named(source))
        return task, task_digest(task)

    def _named(self, source: int) -> str:
        return f"train source {source} ({self._run.sources[source].environment.name})"

    async def _emit(self, event: Acted | Affected) -> None:
        await self._journal.room()
        await anyio.lowlevel.checkpoint_if_cancelled()  # of an episode that was dropped nothing more is told
        self._journal.append(event)
        self._coordinator.apply(event)

    async def _learn(self, policy: str) -> None:
        """Waits for the units of the policy's next step; unblocked by episodes that end and by drops."""
        self._first_step[policy] = version = self._coordinator.budget.version(policy)
        if checkpoint_due(self._run, self._coordinator, policy, version):  # a process ended before it was written
            await self._checkpoint(policy, version)
        began = monotonic()
        while not self._coordinator.budget.done(policy) and not self._stopping:
            batch = self._coordinator.batches.get(policy)
            if batch is None:
                planned = self._coordinator.next_batch(policy)
                if isinstance(planned, Waiting):
                    await self._changed.wait()
                    continue
                await self._commit(planned)
                batch = self._coordinator.batches[policy]
            ready = monotonic()
            with self._waits.on(f"learner of {policy}", f"the model: step {batch.planned.step}"):
                models, durable = self._parts.models[policy], self._coordinator.durable[policy]
                made = await take_step(self._run, policy, batch, durable, models)
                stepped, collapsed = await self._fall_backs.after(made, models)
            await self._commit(stepped)
            if collapsed is not None:
                raise collapsed
            with self._waits.on(f"learner of {policy}", f"the samplers: version {stepped.step + 1}"):
                await self._publish(policy, stepped.step + 1)
            done = stepped.step + 1 - self._first_step[policy]
            left = (self._run.steps - stepped.step - 1) * (monotonic() - self._started) / done
            self._record(timed(stepped, began, ready, left, self.statistics()))
            began = monotonic()
        await self._checkpoint(policy, self._coordinator.budget.version(policy))

    async def _publish(self, policy: str, version: int) -> None:
        versions = self._parts.versions[policy]
        await versions.install(version)
        if version in due_versions(self._run) and not self._evaluated(version):
            versions.hold(version)
        versions.name(named_versions(self._run, self._coordinator, policy))
        await versions.trim()
        self._record(Installed(policy=policy, version=version))
        if checkpoint_due(self._run, self._coordinator, policy, version):
            await self._checkpoint(policy, version)

    async def _checkpoint(self, policy: str, version: int) -> None:
        """Weights and optimizer into the run folder, then into the journal; older ones go that no resume can need."""
        if version == 0:  # what every run begins with lies nowhere
            return
        if version not in self._coordinator.checkpoints[policy]:
            with self._waits.on(f"learner of {policy}", f"the model: checkpoint {version}"):
                path = await anyio.to_thread.run_sync(self._parts.folder.fresh_checkpoint, policy, version)
                await self._parts.models[policy].save(path)
            await self._commit(Checkpointed(policy=policy, step=version))
        kept = kept_checkpoints(self._run, self._coordinator, policy, version)
        await anyio.to_thread.run_sync(self._parts.folder.prune, policy, kept)

    def _evaluated(self, version: int) -> bool:
        return evaluated(self._run, self._coordinator, version)

    async def _evaluate(self) -> None:
        """Waits for each due version to be published by all policies; unblocked by `_publish`, cut off by `stop()`."""
        with self._evaluation:
            for version in [one for one in due_versions(self._run) if not self._evaluated(one)]:
                while any(self._coordinator.budget.installed(policy) < version for policy in self._parts.versions):
                    await self._changed.wait()
                for name in due_sets(self._run, version):
                    if (name, version) not in self._coordinator.evaluated:
                        await self._evaluate_one(name, version)
                for versions in self._parts.versions.values():
                    await versions.release(version)

    async def _evaluate_one(self, name: str, version: int) -> None:
        """Waits for slots and players."""
        episodes = self._run.named_held_out[name]
        pinned = dict.fromkeys(self._parts.versions, version)
        agents = self._players.agents(self._parts.held_out[name], pinned, steps=pinned, greedy=episodes.greedy)
        with self._waits.on(f"evaluation of version {version} on {name!r}", "held-out episodes"):
            done = await evaluate(
                name,
                version,
                episodes,
                agents,
                self._slots,
                seed=self._run.seed,
                deadline=None if self._run.deterministic else self._run.episode_deadline,
                emit=self._held_out_reply,
                playing=self._held_out,
                page=self._parts.page,
                quarantined=self._coordinator.quarantined_tasks(name, version),
            )
        self._record(done)

    async def _held_out_reply(self, event: Acted | Affected) -> None:
        self._held_out_replies += 1

    def _progress(self) -> tuple[object, ...]:
        """What stays the same where nothing happens: no event is appended, no held-out player replies, no watcher takes
        anything, and the backend computes nothing that it counts."""
        told, computed = self._teller.statistics(), dict(self._parts.backend.statistics())
        return self._journal.statistics().appended, self._held_out_replies, told, computed

    def _stalled(self) -> str:
        """Who waits for what."""
        training = {f"episode {number}/{member}": one for (number, member), one in self._episodes.items()}
        episodes, decisions = {**self._held_out, **training}, self._coordinator.waits()
        if self._teller.behind:
            decisions.append(f"admission: watchers are {self._teller.statistics().untold} events behind")
        return stall_report(self._run.stall_deadline, decisions, self._waits, episodes, self.statistics())

    def statistics(self) -> RunStatistics:
        """How everything that holds or waits stands now."""
        return RunStatistics(
            loop=self._loop.statistics(),
            slots=self._slots.statistics(),
            buffer=self._coordinator.buffer.statistics(),
            journal=self._journal.statistics(),
            watchers=self._teller.statistics(),
            budget=self._coordinator.budget.statistics(),
            versions={policy: versions.statistics() for policy, versions in self._parts.versions.items()},
            backend=self._parts.backend.statistics(),
        )

    def _note_held(self, held: Held) -> None:
        self._record(Noted(kind="held", text=str(held)))
