"""Going on from the journal: fold it, then redo the steps since the newest checkpoint that is old enough.

A redone step trains the journaled plan from the journaled units and must reach the journaled digest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.environments import task_digest
from sparring.errors import ReplayDiverged
from sparring.learner.described import task_at
from sparring.learner.folder import RunFolder
from sparring.learner.run import Run
from sparring.learner.take import due_versions, take_step
from sparring.learner.taught import Taught
from sparring.learner.versions import Versions
from sparring.rollout import Batch, Coordinator
from sparring.rollout.events import CHANGED, Accepted, AnyEvent, Ended, Restarted, Stepped


@dataclass(frozen=True, slots=True, kw_only=True)
class Redone:
    """A committed step: its batch, the estimator's state before it, and what was journaled of it."""

    batch: Batch
    state: Mapping[str, Any]
    stepped: Stepped


def fold(events: Iterable[AnyEvent], coordinator: Coordinator, since: Mapping[str, int]) -> dict[str, list[Redone]]:
    """Apply every event; returns each policy's committed steps from `since` on."""
    steps: dict[str, list[Redone]] = {policy: [] for policy in since}
    for event in events:
        if isinstance(event, Stepped) and event.step >= since[event.policy]:
            batch, state = coordinator.batches[event.policy], coordinator.durable[event.policy]
            steps[event.policy].append(Redone(batch=batch, state=state, stepped=event))
        coordinator.apply(event)
    return steps


def needed_versions(run: Run, coordinator: Coordinator, policy: str) -> list[int]:
    """The versions of a policy that something which is not over yet plays with, once for each: groups that are pinned
    to one, and due evaluations."""
    newest = coordinator.budget.version(policy)
    live = [
        group.admitted.pinned[policy]
        for group in coordinator.groups.values()
        if group.playing and policy in group.admitted.pinned
    ]
    waiting = [
        version for version in due_versions(run) if version <= newest and not evaluated(run, coordinator, version)
    ]
    return live + waiting


def evaluated(run: Run, coordinator: Coordinator, version: int) -> bool:
    """Whether every held-out set was played at this version."""
    return all((name, version) in coordinator.evaluated for name in run.named_held_out)


def bases(run: Run, events: Iterable[AnyEvent], coordinator: Coordinator, folder: RunFolder) -> dict[str, int]:
    """For each policy, the checkpoint to start from: the newest on the disk that is not newer than any version still needed.

    A pinned schedule needs the last k versions for groups that it has yet to admit.
    """
    for event in events:
        coordinator.apply(event)
    chosen = {}
    for policy in run.named_policies:
        newest = coordinator.budget.version(policy)
        lately = newest - run.max_staleness if run.deterministic else newest
        oldest = min(
            [max(0, lately), *(version for version in needed_versions(run, coordinator, policy) if version > 0)]
        )
        there = [
            step for step in coordinator.checkpoints[policy] if step == 0 or folder.checkpoint(policy, step).exists()
        ]
        chosen[policy] = max(step for step in there if step <= oldest)
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
            events += [Ended(group=number, member=member, fault=CHANGED, detail=detail) for member in playing]
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
) -> list[str]:
    """Bring the policy's models to where the journal stands, installing the versions that may still be played with: the
    newest `max_staleness + 1`, and those that something `needed` waits for.

    A redone step that ends in other weights than the journaled one is a `ReplayDiverged` in a deterministic run; in any other
    the machine, its threads or a package may have changed, the journal's plans were trained all the same, and the steps are
    returned as sentences.
    """
    await versions.install(0)
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
        version = redone.stepped.step + 1
        if version in needed or version >= newest - run.max_staleness:
            await versions.install(version)
    return differences
