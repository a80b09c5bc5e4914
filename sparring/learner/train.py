"""Training a run from wherever its folder stands to its end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from sparring.backend import Backend, Lora
from sparring.errors import JournalError, SparringError
from sparring.learner.bounds import most_staleness
from sparring.learner.called import called
from sparring.learner.checked import Checked, check_capabilities, checked
from sparring.learner.described import check_code, check_settings, describe
from sparring.learner.fall_back import may_fall_back
from sparring.learner.folder import RunFolder
from sparring.learner.parts import Parts
from sparring.learner.report import ReportFile
from sparring.learner.resume import Redone, accepting, folded, named_versions, needed_versions, redo
from sparring.learner.run import Run
from sparring.learner.stall import never_still
from sparring.learner.take import frozen_players
from sparring.learner.taught import Taught, taught
from sparring.learner.tracker import MetricsFile, Watcher
from sparring.learner.trainer import Trainer
from sparring.learner.versions import Versions
from sparring.rollout import Journal, Schedule, SegmentStore, SqliteSegments
from sparring.rollout.culprit import Page, found
from sparring.rollout.events import AnyEvent, Died, Installed, Noted, Opened

_log = logging.getLogger(__name__)


def train(run: Run, *, watchers: Sequence[Watcher] = (), accept_changed_code: bool = False) -> bool:
    """Train until the run's end, or until Ctrl-C ended it early. Blocks; returns whether the run is complete.

    A run folder that is already there is gone on with. Where the environment, the tasks, the renderer, the model or other code
    of the run changed meanwhile, this raises `RunChanged`, naming it; with `accept_changed_code` the run goes on, the journal
    says so, and unfinished episodes start again. Raises a `SparringError` where the run cannot start or go on.
    """

    async def main() -> bool:
        return await train_async(run, watchers=watchers, accept_changed_code=accept_changed_code)

    return anyio.run(main)


async def train_async(
    run: Run, *, watchers: Sequence[Watcher] = (), accept_changed_code: bool = False, store: SegmentStore | None = None
) -> bool:
    """The same, on a running event loop. `store` is where the journal lies, if not in the run folder; then nothing is written
    there that is made from the journal: metrics.jsonl and report.html."""
    watchers = [*watchers, MetricsFile(run.path), ReportFile(run.path)] if store is None else watchers
    with _unwrapped():
        ready = checked(run)
        async with (
            RunFolder.held(run.path) as folder,
            run.backend.open(deterministic=run.deterministic) as backend,
            AsyncExitStack() as teachers,
        ):
            check_capabilities(run, backend)
            models = await _created(run, backend, teachers)
            others = await _others(run, backend)
            segments = store if store is not None else await anyio.to_thread.run_sync(SqliteSegments, folder.journal)
            async with Journal.open(segments) as journal:
                begun = await _begun(run, ready.schedule, models, others, journal)
                resumed = await _ready(run, ready, models, journal, folder, watchers, others=others, backend=backend)
                changes = await _changed_code(begun, resumed.parts, accept=accept_changed_code)
                await _blamed(resumed.parts)
                await anyio.to_thread.run_sync(folder.write_settings, begun.described)
                await anyio.to_thread.run_sync(folder.sweep)
                async with Page.kept(folder.page) as page, _told(watchers, begun.described, run.stall_deadline):
                    parts = replace(resumed.parts, page=page)
                    if changes:
                        await _accepted(parts, changes, begun.described["fingerprints"])
                    for policy in models:
                        await _brought_up(parts, policy, resumed.since[policy], resumed.steps[policy])
                    trainer = Trainer(parts)
                    async with _interruptible(trainer), _heap_set_aside():
                        await trainer.train()
            return trainer.complete


async def _created(run: Run, backend: Backend, teachers: AsyncExitStack) -> dict[str, Taught]:
    """The models of each policy. Waits for the backend, which may download one."""
    models: dict[str, Taught] = {}
    for name, policy in run.named_policies.items():
        late = (
            f"model {policy.model!r} of {name!r} was not there after {run.stall_deadline} s, and its backend does nothing: "
            f"if it needs longer (a download), raise stall_deadline"
        )
        async with never_still(run.stall_deadline, lambda: dict(backend.statistics()), partial(str, late)):
            models[name] = await taught(backend, policy, run.seed, teachers)
    return models


async def _others(run: Run, backend: Backend) -> dict[str, Versions]:
    """The models that only play, each as it is: with an adapter that changes nothing. Waits for the backend."""
    found: dict[str, Versions] = {}
    for name in dict.fromkeys(one.model for one in frozen_players(run) if one.model):
        late = f"model {name!r} of a line-up was not there after {run.stall_deadline} s: raise stall_deadline"
        async with never_still(run.stall_deadline, lambda: dict(backend.statistics()), partial(str, late)):
            found[name] = Versions(await backend.create_model(name, lora=Lora(rank=1), seed=run.seed), keep=1)
            await found[name].install(0)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """The run as it is `described` now, and the fingerprints of its code and data when it was started; None for a new run."""

    described: dict[str, Any]
    started: Mapping[str, Any] | None


async def _begun(
    run: Run, schedule: Schedule, models: Mapping[str, Taught], others: Mapping[str, Versions], journal: Journal
) -> _Begun:
    """Begin the journal with the run's settings, or hold them against those that it begins with, before anything is made of
    the rest."""
    infos = {
        f"{name}/{part}" if part else name: info for name, one in models.items() for part, info in one.infos.items()
    }
    renderers = {name: one.model.renderer.fingerprint for name, one in models.items()}
    infos |= {f"frozen {name}": one.model.info for name, one in others.items()}
    renderers |= {f"frozen {name}": one.model.renderer.fingerprint for name, one in others.items()}
    described = await anyio.to_thread.run_sync(describe, run, schedule, infos, renderers)
    described["fingerprints"] |= {
        f"start of {name}": await one.model.digest() for name, one in models.items() if run.named_policies[name].start
    }
    opened = await anyio.to_thread.run_sync(lambda: next(journal.read(), None))
    if opened is None:
        await journal.commit(Opened(run=described))
        return _Begun(described=described, started=None)
    if not isinstance(opened, Opened):
        raise JournalError("the journal does not begin with the run's settings: it is damaged; start a new run")
    check_settings(opened.run, described, run.path)
    return _Begun(described=described, started=opened.run["fingerprints"])


async def _changed_code(begun: _Begun, parts: Parts, *, accept: bool) -> list[str]:
    """What of the code and data changed since the run was started, or since a change was last accepted, before anything of
    the run goes on. Raises `RunChanged` where that is not accepted."""
    if begun.started is None:
        return []
    before = parts.coordinator.fingerprints or begun.started
    changes = check_code(before, begun.described["fingerprints"], parts.run.path, accept=accept)
    await parts.journal.commit(Noted(kind="resumed", text="the run goes on"))
    return changes


async def _blamed(parts: Parts) -> None:
    """Journal whose code ran when the process before this one died, and end what ended processes as often as it may."""
    died = await anyio.to_thread.run_sync(found, parts.folder.page)
    if died is not None:
        await parts.journal.commit(Noted(kind="died", text=_died(died)))
        await parts.journal.commit(died)
        parts.coordinator.apply(died)
    for ended in parts.coordinator.quarantined():
        parts.journal.append(ended)
        parts.coordinator.apply(ended)


def _died(died: Died) -> str:
    where = f"task {died.group} of held-out {died.held_out!r}, version {died.version}"
    episode = where if died.held_out else f"episode {died.member} of group {died.group}"
    return f"the process ended while the code of {episode} ran"


async def _accepted(parts: Parts, changes: Sequence[str], fingerprints: Mapping[str, Any]) -> None:
    """Journal that the change is accepted, with what it does to those who were playing: at once, in one segment."""
    events = await anyio.to_thread.run_sync(accepting, parts.run, parts.coordinator, changes, fingerprints)
    numbers = [parts.journal.append(event) for event in events]
    for event in events:
        parts.coordinator.apply(event)
    await parts.journal.durable(numbers[-1])
    for event in events:
        await _tell(parts, event)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """The parts where the journal ends, and the steps `since` each policy's checkpoint that bring its model there."""

    parts: Parts
    since: Mapping[str, int]
    steps: Mapping[str, Sequence[Redone]]


async def _ready(
    run: Run,
    ready: Checked,
    models: Mapping[str, Taught],
    journal: Journal,
    folder: RunFolder,
    watchers: Sequence[Watcher],
    *,
    others: Mapping[str, Versions],
    backend: Backend,
) -> _Ready:
    """Nothing is journaled here, and no model is touched."""
    policies = tuple(run.named_policies)
    found = await anyio.to_thread.run_sync(folded, run, ready.schedule, journal, folder)
    coordinator = found.coordinator
    for ended in coordinator.quarantined():
        journal.append(ended)
        coordinator.apply(ended)
    parts = Parts(
        run=run,
        backend=backend,
        journal=journal,
        coordinator=coordinator,
        snapshots=found.snapshots,
        folder=folder,
        versions={
            name: Versions(one.model, keep=most_staleness(run) + 1, follow=run.weights == "inflight")
            for name, one in models.items()
        },
        others=others,
        models=models,
        lineups=[[lineup.resolved(s.environment.seats, policies) for lineup in s.lineups] for s in run.sources],
        held_out=ready.held_out,
        held_out_digests=ready.held_out_digests,
        watchers=watchers,
    )
    return _Ready(parts=parts, since=found.since, steps=found.steps)


async def _brought_up(parts: Parts, policy: str, base: int, steps: Sequence[Redone]) -> None:
    """The policy's model where the journal stands, with every version that something still plays with."""
    versions, coordinator = parts.versions[policy], parts.coordinator
    needed, named = (of(parts.run, coordinator, policy) for of in (needed_versions, named_versions))
    models, played = parts.models[policy], {*needed, *named}
    again = partial(redo, parts.run, policy, base, steps, models, versions, folder=parts.folder, needed=played)
    for difference in await _watched(parts, policy, base, again):
        noted = Noted(kind="diverged", text=difference)
        await parts.journal.commit(noted)
        await _tell(parts, noted)
    versions.name(named)
    for version in needed:
        versions.hold(version)
    await versions.trim()
    newest = coordinator.budget.version(policy)
    if newest == 0 and may_fall_back(parts.run, coordinator, policy):  # else what a run begins with needs no file
        await models.save(await anyio.to_thread.run_sync(parts.folder.fresh_checkpoint, policy, 0))
    if coordinator.budget.installed(policy) < newest:
        event = Installed(policy=policy, version=newest)
        parts.journal.append(event)
        coordinator.apply(event)


async def _watched(parts: Parts, policy: str, base: int, again: Callable[..., Awaitable[list[str]]]) -> list[str]:
    """What `again` returns, which does steps of the policy again. Raises `Stalled` where the model does nothing for long."""
    deadline, step = parts.run.stall_deadline, base

    def moved() -> None:
        nonlocal step
        step += 1

    def said() -> str:
        return f"step {step} of {policy!r} is done again from the journal, and its model did nothing for {deadline} s"

    async with never_still(deadline, lambda: (step, dict(parts.backend.statistics())), said):
        return await again(moved=moved)


async def _tell(parts: Parts, event: AnyEvent) -> None:
    for watcher in parts.watchers:
        what = f"{type(watcher).__name__}.event"
        await called(partial(watcher.event, event), what, patience=parts.run.stall_deadline)


@asynccontextmanager
async def _told(watchers: Sequence[Watcher], described: Mapping[str, Any], patience: float) -> AsyncIterator[None]:
    """The watchers, told that the run begins; each that was is told of its end, whatever ends it. None may take longer than
    `patience` seconds for either."""
    async with AsyncExitStack() as stack:
        for watcher in watchers:
            await called(partial(watcher.opened, described), f"{type(watcher).__name__}.opened", patience=patience)
            stack.push_async_exit(partial(_close, watcher, patience))
        yield


async def _close(watcher: Watcher, patience: float, kind: object, error: BaseException | None, trace: object) -> bool:
    """What a watcher raises here is raised, unless the run failed before: then that is what people have to know."""
    what = f"{type(watcher).__name__}.closed"
    try:
        with anyio.CancelScope(shield=True):
            await called(watcher.closed, what, patience=patience)
    except Exception as failure:
        if error is None:
            raise
        _log.error("%s failed too, after what ended the run: %r", what, failure)
    return False


@asynccontextmanager
async def _interruptible(trainer: Trainer) -> AsyncIterator[None]:
    """The first Ctrl-C stops the run after the step under way, the second ends the process at once (the journal bears it)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    async def listen(*, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT) as interrupts:
            task_status.started()
            async for _ in interrupts:
                if trainer.stopping:
                    os._exit(130)
                trainer.stop()

    async with anyio.create_task_group() as group:
        await group.start(listen)
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def _heap_set_aside() -> AsyncIterator[None]:
    """Python's collector leaves alone what is there now: with torch loaded it would hold the event loop for a tenth of a second
    each time that it went through all of it."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise what failed, not the groups of the tasks around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure in the group, one that sparring names before any other."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return min(leaves, key=lambda error: not isinstance(error, SparringError))
