"""Deciding again: a run's journal held against the decisions that its own state leads to.

Every admission, every batch, every advantage and every deterministic metric is computed anew from the events before it, and
every snapshot of a state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sparring.errors import SettingError
from sparring.learner.advantages import Advantages, GroupMean, LeaveOneOut, RoleBaseline
from sparring.learner.by_token import GAE, Penalty, RewardToGo, TurnMean
from sparring.learner.credit import Credit
from sparring.learner.history import note_of, read_events, read_snapshots
from sparring.learner.kl import KL
from sparring.learner.measured import unpacked
from sparring.learner.overlong import Overlong
from sparring.learner.run import Run
from sparring.learner.snapshot_check import SnapshotCheck
from sparring.learner.step import Priority, decide, mean_advantage
from sparring.rollout import Coordinator, Schedule
from sparring.rollout.events import Accepted, Admitted, AnyEvent, Ended, Opened, Planned, Retried, Stepped

P = TypeVar("P", Overlong, KL, GAE)
_KNOWN: Mapping[str, type[Any]] = {
    kind.__name__: kind for kind in (GroupMean, LeaveOneOut, RoleBaseline, RewardToGo, TurnMean, Penalty, GAE)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How many decisions were made again, and how many snapshots are what the events before them come to; each that came out
    otherwise, as a sentence.

    `drops` are the lines of the drop-bias table: what was trained and what was not, where anything was dropped; `standings`
    those of the ratings and the match matrix, where two played against each other. `accepted` says since when the
    run went on with changed code: its decisions follow from what was played, whoever's code it was.
    """

    admissions: int
    batches: int
    steps: int
    snapshots: int
    differences: tuple[str, ...]
    drops: tuple[str, ...] = ()
    standings: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return not self.differences

    @property
    def lines(self) -> list[str]:
        """What a person reads."""
        verdict = "all agree" if self.agrees else f"{len(self.differences)} differ"
        decided = f"{self.admissions} admissions, {self.batches} batches, {self.steps} steps decided again"
        folded = f"{self.snapshots} snapshot{'s' * (self.snapshots != 1)} folded again"
        counted = f"{decided}, {folded}: {verdict}"
        return [counted, *self.differences, *self.accepted, *self.drops, *self.standings]


def replay(folder: Path, run: Run | None = None) -> Comparison:
    """Replay the run in `folder`. `run` is needed where its advantages are a function of its own.

    Raises `SettingError` for a folder without a journal.
    """
    snapshots = read_snapshots(folder)  # first: the run may go on
    return compare(read_events(folder), run, snapshots)


def compare(
    events: Iterable[AnyEvent], run: Run | None = None, snapshots: Iterable[tuple[int, bytes]] = ()
) -> Comparison:
    """The same over events, and over the snapshots of what they come to. The first event must be `Opened`."""
    history = iter(events)
    opened = next(history, None)
    if not isinstance(opened, Opened):
        raise SettingError("the journal does not begin with a run's settings: nothing was started in this folder")
    coordinator = Coordinator(msgspec.convert(opened.run["schedule"], Schedule))
    check = SnapshotCheck(snapshots)
    crediting = credits_of(opened.run["settings"]["policies"], run)
    priority = _priority(opened.run["settings"].get("reuse"), run)
    counts = Counter[type]()
    made: dict[tuple[str, int], tuple[str, str]] = {}
    differences: list[str] = []
    accepted: list[str] = []
    for event in history:
        if isinstance(event, Admitted | Planned):
            differences += _left(coordinator)
        match event:
            case Admitted():
                differences += _admission(event, coordinator)
            case Planned():
                differences += _batch(event, coordinator)
            case Stepped():
                differences += _step(event, coordinator, crediting[event.policy], priority)
                differences += _fall_back(event, made)
            case Ended() | Retried():
                differences += _fault(event, coordinator)
            case Accepted():
                accepted.append(f"after {counts[Admitted]} admissions: {note_of(event).text}")
            case _:
                """What players and clocks did is given, not decided."""
        counts[type(event)] += 1
        if refused := _refused(event, coordinator, counts[type(event)]):
            differences.append(refused)  # nothing follows from what comes after it
            break
        differences += check.after(event, coordinator)
    return Comparison(
        admissions=counts[Admitted],
        batches=counts[Planned],
        steps=counts[Stepped],
        snapshots=check.agreed,
        differences=(*differences, *check.left()),
        drops=tuple(coordinator.bias.lines),
        standings=tuple(coordinator.choosing.standings.table().lines),
        accepted=tuple(accepted),
    )


def _refused(event: AnyEvent, coordinator: Coordinator, count: int) -> str:
    """Apply it; a sentence where it cannot be."""
    try:
        coordinator.apply(event)
    except AssertionError as refused:
        return f"{type(event).__name__} {count} cannot follow what is before it: {refused}"
    return ""


def _left(coordinator: Coordinator) -> list[str]:
    """Who was to be dropped by now, and was not."""
    due = [*coordinator.late(), *coordinator.quarantined()]
    return [f"episode {one.group}/{one.member} was not dropped: {one.detail}" for one in due]


def _admission(event: Admitted, coordinator: Coordinator) -> list[str]:
    choice = coordinator.next_group()
    given = (event.group, event.source, event.index, event.lineup, tuple(event.trained))
    expected = (*given, event.pinned, event.opponents)
    if choice is None or isinstance(choice, str):
        return [f"group {event.group} was admitted, but admission waits: {choice or 'it has ended'}"]
    given = (choice.group, choice.source, choice.index, choice.lineup, choice.trained)
    again = (*given, dict(choice.pinned), dict(choice.opponents))
    return [] if again == expected else [f"group {event.group} was admitted as {expected}, decided again it is {again}"]


def _batch(event: Planned, coordinator: Coordinator) -> list[str]:
    again = coordinator.next_batch(event.policy)
    return (
        []
        if again == event
        else [
            f"step {event.step} of {event.policy!r} took {event.groups}, reused {event.reused}, decided again: {again}"
        ]
    )


def _fault(event: Ended | Retried, coordinator: Coordinator) -> list[str]:
    """Whether what became of the episode is what was to become of it."""
    broken = coordinator.faults_of(event.group).broken_by(event)
    return [f"episode {event.group}/{event.member} {broken}"] if broken else []


def _step(event: Stepped, coordinator: Coordinator, credit: Credit, priority: Priority | None) -> list[str]:
    names = [source.environment for source in coordinator.schedule.sources]
    batch, durable = coordinator.batches[event.policy], coordinator.durable[event.policy]
    measured = unpacked(event.measured, batch)
    decided = decide(batch, credit, durable, names, priority=priority, measured=measured)
    where = f"step {event.step} of {event.policy!r}"
    found = []
    if decided.digest != event.advantages:
        found.append(f"{where}: other advantages ({decided.digest[:12]} instead of {event.advantages[:12]})")
    for name in sorted(decided.metrics.keys() | event.metrics.keys()):
        if decided.metrics.get(name) != event.metrics.get(name):
            found.append(f"{where}: {name} = {decided.metrics.get(name)!r} instead of {event.metrics.get(name)!r}")
    if dict(decided.durable) != event.durable:
        found.append(f"{where}: the estimator's state differs")
    if dict(decided.weights) != event.weights:
        found.append(f"{where}: other weights of units that may be used again")
    return found


def _fall_back(event: Stepped, made: dict[tuple[str, int], tuple[str, str]]) -> list[str]:
    """Whether a policy that fell back has the weights of the version that it says; `made` is {(policy, version): digests of its
    weights and of its critic's}, to which the step's is added. When it does so its gauges say, which may change."""
    back = event.fell_back
    now = (event.digest, event.critic) if back is None else (back.digest, back.critic)
    made[event.policy, event.step + 1] = now
    if back is None or made.get((event.policy, back.to), now) == now:  # of version 0 the journal has none
        return []
    return [f"step {event.step} of {event.policy!r}: it fell back to other weights than those of version {back.to}"]


def credits_of(policies: Mapping[str, Any], run: Run | None) -> dict[str, Credit]:
    """What decides the advantages of each policy: of those that the journal describes, or of the run's where one is given."""
    if run is None:
        return {name: _credit(name, described["algorithm"]) for name, described in policies.items()}
    algorithms = {name: policy.algorithm for name, policy in run.named_policies.items()}
    if algorithms.keys() != policies.keys():
        raise SettingError(
            f"run {run.name!r} has the policies {sorted(algorithms)}, the journal those of {sorted(policies)}: "
            f"name the file that the run was started with"
        )
    return {name: algorithm.credit for name, algorithm in algorithms.items()}


def _priority(described: Mapping[str, Any] | None, run: Run | None) -> Priority | None:
    """How the run weighs units that may be used again."""
    if run is not None:
        return None if run.reuse is None else run.reuse.priority
    how = "uniform" if described is None else described["how"]
    if how not in ("uniform", "prioritized"):
        raise SettingError(f"reuse: how is {how!r}, which is not part of sparring: name the run's file too")
    return mean_advantage if how == "prioritized" else None


def _credit(policy: str, described: Mapping[str, Any]) -> Credit:
    advantages = described["advantages"]
    settings = dict(advantages) if isinstance(advantages, Mapping) else {"is": advantages}
    kind = settings.pop("is")
    if kind not in _KNOWN:
        raise SettingError(
            f"the advantages of policy {policy!r} are {advantages!r}, which is not part of sparring: "
            f"name the run's file too"
        )
    estimator: Advantages = msgspec.convert(settings, _KNOWN[kind])
    critic = described.get("critic")  # this and what is asked for like this came later: older journals do not have it
    return Credit(
        advantages=estimator,
        compare=described["compare"],
        whiten=described.get("whiten", False),
        overlong=_part(described.get("overlong"), Overlong),
        kl=_part(described.get("kl"), KL),
        returns=None if critic is None else _part(critic["returns"], GAE),
    )


def _part(described: Mapping[str, Any] | None, kind: type[P]) -> P | None:
    """A part of an algorithm from how it is described; None for none."""
    return None if described is None else msgspec.convert({k: v for k, v in described.items() if k != "is"}, kind)
