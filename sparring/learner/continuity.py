"""What must hold of a run that was cut off and gone on with, however often: checked from its history alone.

In three tiers. A, exactly once: nothing that was on the disk changed, and nothing was done twice or left out. B, continuity:
the plans of the journal, trained once more from its units, end in the journaled weights. C, equality: a deterministic run ends
in the history and the weights of one that nothing disturbed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import anyio.to_thread

from sparring.learner.bounds import most_staleness
from sparring.learner.checked import schedule_of
from sparring.learner.described import check_settings, describe
from sparring.learner.folder import RunFolder
from sparring.learner.history import read_events
from sparring.learner.lines import Lines
from sparring.learner.replay import compare
from sparring.learner.resume import fold, redo
from sparring.learner.run import Run
from sparring.learner.take import due_versions
from sparring.learner.taught import taught
from sparring.learner.versions import Versions
from sparring.rollout import Coordinator
from sparring.rollout.events import (
    Acted,
    Admitted,
    Affected,
    AnyEvent,
    Ended,
    Evaluated,
    Opened,
    Planned,
    Stepped,
    canonical,
    encode,
    standing,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One check: its `name`, over how much it went (`figure`), and what is `wrong`, as sentences (none: it holds)."""

    name: str
    figure: str
    wrong: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.wrong


def unchanged(before: Sequence[AnyEvent], now: Sequence[AnyEvent]) -> Verdict:
    """Tier A: what was on the disk is still there, byte for byte, before anything new."""
    differing = [at for at, event in enumerate(before) if at >= len(now) or encode(now[at]) != encode(event)]
    wrong = [f"event {at} was {before[at]!r}"[:300] for at in differing[:1]]
    return Verdict(name="the journal only grew", figure=f"{len(before)} events", wrong=tuple(wrong))


def exactly_once(events: Sequence[AnyEvent], run: Run) -> list[Verdict]:
    """Tier A, of a run that is complete: every group, reply, effect, episode, evaluation, plan and step is there once."""
    admitted = [event for event in events if isinstance(event, Admitted)]
    answers = [(e.group, e.member, *e.key) for e in standing(events) if isinstance(e, Acted | Affected)]
    ends = [(event.group, event.member) for event in events if isinstance(event, Ended)]
    evaluated = [(event.name, event.version) for event in events if isinstance(event, Evaluated)]
    due = [(name, version) for name in run.named_held_out for version in due_versions(run)]
    return [
        _once("groups admitted, in order", [event.group for event in admitted], range(len(admitted)), ordered=True),
        _once("replies and effects, once each", answers, set(answers)),
        _once("episodes ended", ends, [(e.group, member) for e in admitted for member in range(run.group_size)]),
        _once("held-out evaluations", evaluated, due),
        _steps(events, run),
        _uses(events, admitted, run),
    ]


def decided_again(
    events: Sequence[AnyEvent], run: Run | None = None, snapshots: Iterable[tuple[int, bytes]] = ()
) -> Verdict:
    """Tier A: every admission, batch, advantage and deterministic metric follows from the events before it, and so does every
    snapshot."""
    compared = compare(events, run, snapshots)
    decided = f"{compared.admissions} admissions, {compared.batches} batches, {compared.steps} steps"
    figure = f"{decided}, {compared.snapshots} snapshots"
    return Verdict(name="decided again", figure=figure, wrong=compared.differences)


async def trained_again(run: Run) -> Verdict:
    """Tier B: every step of the run's journal, trained anew from version 0 on a fresh model, ends in the journaled weights. A
    policy that fell back takes the same checkpoint again.

    Needs the run's backend; a deterministic run that ends otherwise raises `ReplayDiverged`, as a resume does.
    """
    begun, coordinator = dict.fromkeys(run.named_policies, 0), Coordinator(schedule_of(run))
    _, steps = await anyio.to_thread.run_sync(
        lambda: fold(read_events(run.path), coordinator, Lines(), lambda now: begun)
    )
    wrong: list[str] = []
    async with run.backend.open(deterministic=run.deterministic) as backend, AsyncExitStack() as teachers:
        for name, policy in run.named_policies.items():
            models = await taught(backend, policy, run.seed, teachers)
            versions = Versions(models.model, keep=most_staleness(run) + 1)
            wrong += await redo(run, name, 0, steps[name], models, versions, folder=RunFolder(run.path), needed=())
    figure = f"{sum(map(len, steps.values()))} steps of {len(steps)} policies"
    return Verdict(name="trained again from the journal", figure=figure, wrong=tuple(wrong))


async def retrained(folder: Path, run: Run) -> Verdict:
    """`trained_again` for the run in a folder, which was started from the file that defines `run`. Raises `RunChanged` where
    its settings are others."""
    opened = next(iter(read_events(folder)), None)
    assert isinstance(opened, Opened), folder
    here = replace(run, folder=folder.parent, name=folder.name)
    check_settings(opened.run, describe(here, schedule_of(here), {}, {}), folder)
    return await trained_again(here)


def equal(events: Sequence[AnyEvent], undisturbed: Sequence[AnyEvent]) -> list[Verdict]:
    """Tier C: weights, deterministic metrics and canonical history are those of the undisturbed run."""
    mine, theirs = _by_step(events), _by_step(undisturbed)
    wrong: dict[str, list[str]] = {"weights": [], "metrics": []}
    for policy, step in sorted(mine.keys() | theirs.keys()):
        one, other = mine.get((policy, step)), theirs.get((policy, step))
        where = f"step {step} of {policy!r}"
        if one is None or other is None:
            wrong["weights"].append(f"{where} is in one of the two alone")
            continue
        if one.digest != other.digest:
            wrong["weights"].append(f"{where}: weights {one.digest[:12]} instead of {other.digest[:12]}")
        if (one.metrics, one.advantages, one.engine) != (other.metrics, other.advantages, other.engine):
            wrong["metrics"].append(f"{where}: {one.metrics} {one.engine} instead of {other.metrics} {other.engine}")
    return [
        Verdict(name="weights as undisturbed", figure=f"{len(mine)} digests", wrong=tuple(wrong["weights"])),
        Verdict(name="metrics as undisturbed", figure=f"{len(mine)} steps", wrong=tuple(wrong["metrics"])),
        _same_history(canonical(list(events)), canonical(list(undisturbed))),
    ]


def _same_history(mine: Sequence[AnyEvent], theirs: Sequence[AnyEvent]) -> Verdict:
    wrong = [f"{len(mine)} events instead of {len(theirs)}"] if len(mine) != len(theirs) else []
    for one, other in zip(mine, theirs, strict=False):
        if encode(one) != encode(other):
            wrong.append(f"{one!r}"[:300] + " instead of " + f"{other!r}"[:300])
            break
    return Verdict(name="canonical journal as undisturbed", figure=f"{len(mine)} events", wrong=tuple(wrong))


def _once(name: str, found: Sequence[Hashable], wanted: Iterable[Hashable], *, ordered: bool = False) -> Verdict:
    """`found` is exactly `wanted`, in any order unless it is `ordered`."""
    wanted = list(wanted)
    there, due = Counter(found), Counter(wanted)
    wrong = [
        f"{one!r} is there {there[one]} times instead of {due[one]}" for one in there | due if there[one] != due[one]
    ]
    if not wrong and ordered and list(found) != wanted:
        wrong.append(f"in the order {list(found)}")
    return Verdict(name=name, figure=f"{len(found)}", wrong=tuple(wrong))


def _steps(events: Sequence[AnyEvent], run: Run) -> Verdict:
    """Each policy's steps, in order, each planned and then made as planned, once."""
    wrong, count = [], 0
    for policy in run.named_policies:
        told = [(type(e), e.step) for e in events if isinstance(e, Planned | Stepped) and e.policy == policy]
        wanted = [(kind, step) for step in range(run.steps) for kind in (Planned, Stepped)]
        count += len(told) // 2
        if told != wanted:
            wrong.append(f"{policy!r}: {[f'{kind.__name__} {step}' for kind, step in told]}")
    return Verdict(name="steps planned, then made", figure=f"{count}", wrong=tuple(wrong))


def _uses(events: Sequence[AnyEvent], admitted: Sequence[Admitted], run: Run) -> Verdict:
    """Every unit is trained at most once as a fresh one; it is used again after that, never twice in a step, as often as is
    allowed."""
    wrong: list[str] = []
    first = 0
    most = run.reuse.max_uses if run.reuse else 1
    for policy in run.named_policies:
        known = {event.group for event in admitted if policy in event.trained}
        uses: Counter[int] = Counter()
        for plan in (event for event in events if isinstance(event, Planned) and event.policy == policy):
            where, taken = f"step {plan.step} of {policy!r}", Counter([*plan.groups, *plan.reused])
            wrong += [f"{where}: group {group} is not its own" for group in plan.groups if group not in known]
            wrong += [f"{where}: group {group} was trained before" for group in plan.groups if group in uses]
            wrong += [f"{where}: group {group} was not trained before" for group in plan.reused if group not in uses]
            wrong += [f"{where}: group {group} is in it {count} times" for group, count in taken.items() if count > 1]
            uses.update(taken)
            wrong += [f"{where}: group {group} is used too often" for group in taken if uses[group] > most]
            if len(plan.reused) > (run.reuse.units if run.reuse else 0):
                wrong.append(f"{where}: {len(plan.reused)} groups are used again, more than there are places")
            first += len(plan.groups)
    return Verdict(name="units trained, once each", figure=f"{first}", wrong=tuple(wrong))


def _by_step(events: Iterable[AnyEvent]) -> dict[tuple[str, int], Stepped]:
    return {(event.policy, event.step): event for event in events if isinstance(event, Stepped)}
