"""Going on from the journal: fold it from its newest snapshot that is old enough, then redo the steps since the checkpoint.

A snapshot is old enough where every step that has to be redone comes after it. A redone step trains the journaled plan from
the journaled units and must reach the journaled digest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sparring.environments import task_digest
from sparring.errors import ReplayDiverged
from sparring.learner.bounds import most_staleness
from sparring.learner.described import task_at
from sparring.learner.fall_back import fall_back_again, oldest_for_fall_back
from sparring.learner.folder import RunFolder
from sparring.learner.lines import Lines
from sparring.learner.run import Run
from sparring.learner.snapshots import RunState, needed, readable
from sparring.learner.take import due_sets, due_versions, frozen_players, take_step
from sparring.learner.taught import Taught
from sparring.learner.versions import Versions
from sparring.rollout import Batch, Coordinator, Journal, Schedule
from sparring.rollout.events import CHANGED, Accepted, AnyEvent, Checkpointed, Restarted, Stepped
from sparring.rollout.journal import Snapshot
from sparring.rollout.snapshot import packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Redone:
    """A committed step: its batch, the estimator's state before it, and what was journaled of it."""

    batch: Batch
    state: Mapping[str, Any]
    stepped: Stepped


class Snapshots:
    """The snapshots beside a run's journal: one is taken at each checkpoint."""

    def __init__(self, run: Run, coordinator: Coordinator, lines: Lines, earlier: Iterable[RunState] = ()) -> None:
        self._run, self._coordinator, self._lines = run, coordinator, lines
        self._versions: dict[str, Mapping[str, int]] = {one.name: one.versions for one in earlier}

    def after(self, event: AnyEvent) -> Snapshot | None:
        """The snapshot to be written with this event, if it is a checkpoint; the coordinator has applied it. Every event that
        makes a line is told here, once and in order."""
        self._lines.of(event)
        if not isinstance(event, Checkpointed):
            return None
        coordinator = self._coordinator
        versions = {policy: coordinator.budget.version(policy) for policy in self._run.named_policies}
        state = RunState(
            policy=event.policy,
            step=event.step,
            versions=versions,
            lines=self._lines.state(),
            coordinator=msgspec.Raw(packed(coordinator.state())),
        )
        self._versions[state.name] = versions
        since = bases(self._run, coordinator, coordinator.checkpoints)
        kept = needed(self._versions, since, coordinator.checkpoints)
        self._versions = {name: self._versions[name] for name in kept}
        return Snapshot(name=state.name, blob=packed(state), beside=frozenset(kept) - {state.name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """The state where the journal ends, and the steps `since` each policy's checkpoint that bring its model there."""

    coordinator: Coordinator
    snapshots: Snapshots
    since: Mapping[str, int]
    steps: Mapping[str, Sequence[Redone]]


def folded(run: Run, schedule: Schedule, journal: Journal, folder: RunFolder) -> Folded:
    """Read the journal after its newest snapshot that is old enough; from the beginning where none is there."""
    there = {policy: folder.checkpoints(policy) for policy in run.named_policies}
    found = readable(journal.snapshots())
    earlier = [state for _, state in found]
    for segment, state in reversed(found):
        coordinator = Coordinator(schedule)
        try:
            coordinator.restore(state.unpacked())
        except msgspec.MsgspecError:  # damaged: the journal has all that it says
            continue
        lines = Lines(state.lines)
        since, steps = fold(journal.read(segment), coordinator, lines, lambda now: bases(run, now, there))
        if all(version <= since[policy] for policy, version in state.versions.items()):
            snapshots = Snapshots(run, coordinator, lines, earlier)
            return Folded(coordinator=coordinator, snapshots=snapshots, since=since, steps=steps)
    coordinator, lines = Coordinator(schedule), Lines()
    since, steps = fold(journal.read(), coordinator, lines, lambda now: bases(run, now, there))
    snapshots = Snapshots(run, coordinator, lines, earlier)
    return Folded(coordinator=coordinator, snapshots=snapshots, since=since, steps=steps)


def fold(
    events: Iterable[AnyEvent],
    coordinator: Coordinator,
    lines: Lines,
    bases_of: Callable[[Coordinator], Mapping[str, int]],
) -> tuple[Mapping[str, int], dict[str, list[Redone]]]:
    """Apply every event; returns the bases of what they come to, and each policy's committed steps since its base.

    A base never falls while events are applied, so steps before it are let go at each checkpoint.
    """
    since = bases_of(coordinator)
    steps: dict[str, list[Redone]] = {policy: [] for policy in since}
    for event in events:
        if isinstance(event, Stepped):
            batch, state = coordinator.batches[event.policy], coordinator.durable[event.policy]
            steps[event.policy].append(Redone(batch=batch, state=state, stepped=event))
        coordinator.apply(event)
        lines.of(event)
        if isinstance(event, Checkpointed):
            steps = _from(bases_of(coordinator), steps)
    since = bases_of(coordinator)
    return since, _from(since, steps)


def _from(since: Mapping[str, int], steps: Mapping[str, Sequence[Redone]]) -> dict[str, list[Redone]]:
    return {policy: [one for one in made if one.stepped.step >= since[policy]] for policy, made in steps.items()}


def needed_versions(run: Run, coordinator: Coordinator, policy: str) -> list[int]:
    """The versions of a policy that something which is not over yet plays with, once for each: groups that are pinned
    to one or play against one that was drawn, and due evaluations."""
    newest = coordinator.budget.version(policy)
    live = [
        version
        for group in coordinator.groups.values()
        if group.playing
        for name, version in coordinator.held(group.admitted)
        if name == policy
    ]
    waiting = [
        version for version in due_versions(run) if version <= newest and not evaluated(run, coordinator, version)
    ]
    return live + waiting


def named_versions(run: Run, coordinator: Coordinator, policy: str) -> set[int]:
    """The versions of a policy, made so far, that line-ups name or that leagues may yet draw."""
    newest = coordinator.budget.version(policy)
    frozen = {one.version for one in frozen_players(run) if one.policy == policy and one.version <= newest}
    return frozen | coordinator.choosing.kept(policy)


def checkpoint_due(run: Run, coordinator: Coordinator, policy: str, version: int) -> bool:
    """Whether this version, the newest, is to lie in the run folder and does not yet."""
    if version in coordinator.checkpoints[policy]:
        return False
    begun_anew = {made for made, _ in coordinator.fell_back[policy]}
    return version in {*due_versions(run), *begun_anew} or version in named_versions(run, coordinator, policy)


def kept_checkpoints(run: Run, coordinator: Coordinator, policy: str, version: int) -> set[int]:
    """Those of the policy's checkpoints that a resume may need once it is at `version`: what it would start from, the versions
    that something plays with, and those that it fell back to; and those that it may yet fall back to."""
    done = coordinator.checkpoints[policy]
    played = {*needed_versions(run, coordinator, policy), *named_versions(run, coordinator, policy)}
    oldest = min([version - most_staleness(run), *(one for one in played if one not in done)])
    base = max((step for step in done if step <= oldest), default=0)
    base = min(base, oldest_for_fall_back(run, coordinator, policy))
    again = {to for _, to in coordinator.fell_back[policy]}
    return {step for step in done if step >= base or step in played or step in again}


def evaluated(run: Run, coordinator: Coordinator, version: int) -> bool:
    """Whether every held-out set that is due was played at this version."""
    return all((name, version) in coordinator.evaluated for name in due_sets(run, version))


def bases(run: Run, coordinator: Coordinator, there: Mapping[str, Collection[int]]) -> dict[str, int]:
    """For each policy, the checkpoint to start from: the newest of those `there` that is not newer than any version still
    needed, except for those that lie `there` themselves.

    A pinned schedule needs the last k versions for groups that it has yet to admit.
    """
    chosen = {}
    for policy in run.named_policies:
        newest = coordinator.budget.version(policy)
        lately = newest - most_staleness(run) if run.deterministic else newest
        known = coordinator.checkpoints[policy].intersection(there[policy])
        played = {*needed_versions(run, coordinator, policy), *named_versions(run, coordinator, policy)}
        oldest = min([max(0, lately), *(version for version in played if version not in known)])
        chosen[policy] = max(step for step in known if step <= oldest)
    return chosen


def accepting(
    run: Run, coordinator: Coordinator, changes: Sequence[str], fingerprints: Mapping[str, Any]
) -> list[AnyEvent]:
    """What is journaled where a run goes on although its code or its data changed.

    What somebody said to other code is no answer to this one: every unfinished episode starts again. Where its group's task
    became another it ends instead: those of its group that have ended played the task that was.
    """
    events: list[AnyEvent] = [Accepted(changes=list(changes), fingerprints=dict(fingerprints))]
    for number, live in sorted(coordinator.groups.items()):
        playing = [member for member, one in enumerate(live.members) if one.ended is None]
        if not playing:
            continue
        source, index = live.admitted.source, live.admitted.index
        task = task_digest(task_at(run.sources[source], index, f"train source {source}"))
        if task != live.admitted.task:
            detail = f"task {index} of train source {source} is not the one any more that the group was admitted with"
            events += live.cut_off(CHANGED, detail)
        else:
            events += [Restarted(group=number, member=member) for member in playing if live.members[member].past]
    return events


async def redo(
    run: Run,
    policy: str,
    base: int,
    steps: Sequence[Redone],
    models: Taught,
    versions: Versions,
    *,
    folder: RunFolder,
    needed: Collection[int],
    moved: Callable[[], None] = lambda: None,
) -> list[str]:
    """Bring the policy's models to where the journal stands, installing the versions that may still be played with: the
    newest K + 1 (K the largest bound), and those `needed`, of which the ones before `base` have checkpoints of their own.
    `moved` is called after each step.

    A redone step that ends in other weights than the journaled one is a `ReplayDiverged` in a deterministic run; in any other
    the machine, its threads or a package may have changed, the journal's plans were trained all the same, and the steps are
    returned as sentences.
    """
    await versions.install(0)
    for version in sorted(one for one in set(needed) if 0 < one < base):
        await models.model.load_state(str(folder.checkpoint(policy, version)), optimizer=False)
        await versions.install(version)
    if base > 0:
        await models.load(folder.checkpoint(policy, base))
        await versions.install(base)
    newest = base + len(steps)
    differences: list[str] = []
    for redone in steps:
        again, then = await take_step(run, policy, redone.batch, redone.state, models), redone.stepped
        if (again.digest, again.critic, again.advantages) != (then.digest, then.critic, then.advantages):
            one, other = (again.digest, then.digest) if again.digest != then.digest else (again.critic, then.critic)
            whose = "weights" if again.digest != then.digest else "weights of its critic"
            difference = (
                f"step {then.step} of {policy!r}, done again from the journal, ended in other {whose} "
                f"({one[:12]} instead of {other[:12]}): the machine, its threads or a package changed"
            )
            if run.deterministic:
                raise ReplayDiverged(f"{difference}; go back to what it was, or start the run anew under another name")
            differences.append(difference)
        await fall_back_again(folder, then, models)
        version = then.step + 1
        if version in needed or version >= newest - most_staleness(run):
            await versions.install(version)
        moved()
    return differences
