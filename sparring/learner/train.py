"""Training a run from wherever its folder stands to its end."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from sparring.agents import Frozen, Player
from sparring.backend import Backend, TrainingClient
from sparring.environments import size
from sparring.errors import JournalError, SettingError, SparringError, UnsupportedError
from sparring.learner.described import check_same, describe, digests
from sparring.learner.folder import RunFolder
from sparring.learner.pacing import Drop
from sparring.learner.parts import Parts
from sparring.learner.players import check_players
from sparring.learner.report import ReportFile
from sparring.learner.resume import Redone, bases, fold, needed_versions, redo
from sparring.learner.run import Episodes, Run
from sparring.learner.tracker import MetricsFile, Watcher
from sparring.learner.trainer import Trainer
from sparring.learner.versions import Versions
from sparring.rollout import Bound, Coordinator, Journal, Schedule, SegmentStore, Source, SqliteSegments
from sparring.rollout.culprit import Page, found
from sparring.rollout.events import Died, Installed, Noted, Opened


def train(run: Run, *, watchers: Sequence[Watcher] = (), accept_changed_code: bool = False) -> bool:
    """Train until the run's end, or until Ctrl-C ended it early. Blocks; returns whether the run is complete.

    A run folder that is already there is gone on with. Raises a `SparringError` where the run cannot start or go on.
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
        checked = _checked(run)
        async with RunFolder.held(run.path) as folder, run.backend.open(deterministic=run.deterministic) as backend:
            check_capabilities(run, backend)
            models = {
                name: await backend.create_model(policy.model, lora=policy.lora, seed=run.seed)
                for name, policy in run.named_policies.items()
            }
            segments = store if store is not None else await anyio.to_thread.run_sync(SqliteSegments, folder.journal)
            async with Journal.open(segments) as journal:
                described = await _begun(run, checked.schedule, models, journal, folder, accept_changed_code)
                await anyio.to_thread.run_sync(folder.write_settings, described)
                await anyio.to_thread.run_sync(folder.sweep)
                async with Page.kept(folder.page) as page, _told(watchers, described):
                    trainer = Trainer(
                        await _assembled(run, checked, models, journal, folder, watchers, backend=backend, page=page)
                    )
                    async with _interruptible(trainer):
                        await trainer.train()
            return trainer.complete


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What can be refused before anything is made: the schedule, who plays held-out, the tasks that must not be trained on."""

    schedule: Schedule
    held_out: Mapping[str, Mapping[str, Player]]
    held_out_digests: frozenset[str]


def _checked(run: Run) -> _Checked:
    policies = tuple(run.named_policies)
    return _Checked(
        schedule=schedule_of(run),
        held_out={name: _held_out_players(name, one, policies) for name, one in run.named_held_out.items()},
        held_out_digests=_kept_apart(run),
    )


def schedule_of(run: Run) -> Schedule:
    """What decides what is played. Raises `SettingError` for line-ups that do not fit."""
    policies = tuple(run.named_policies)
    sources = []
    for number, episodes in enumerate(run.sources):
        lineups = []
        for lineup in episodes.lineups:
            players = lineup.resolved(episodes.environment.seats, policies)
            check_players(players, f"train source {number}")
            trained = {seat: player for seat, player in players.items() if isinstance(player, str)}
            if not trained:
                raise SettingError(
                    f"train source {number} has a line-up in which nobody learns: name a policy for a seat"
                )
            lineups.append(trained)
        sources.append(
            Source(
                environment=episodes.environment.name,
                tasks=size(episodes.tasks),
                lineups=tuple(lineups),
                curriculum=episodes.curriculum,
            )
        )
    learning = {policy for source in sources for lineup in source.lineups for policy in lineup.values()}
    for policy in policies:
        if policy not in learning:
            raise SettingError(f"policy {policy!r} plays no training seat: name it in a line-up, or leave it out")
    bound = Bound(units_per_step=run.groups_per_step, max_staleness=run.max_staleness, steps=run.steps)
    return Schedule(
        sources=tuple(sources),
        bounds=dict.fromkeys(policies, bound),
        group_size=run.group_size,
        seed=run.seed,
        pinned=run.deterministic,
        equal_rewards={
            name: dict(policy.algorithm.compare)
            for name, policy in run.named_policies.items()
            if policy.algorithm.filters
        },
        drop_after=run.pacing.versions if isinstance(run.pacing, Drop) else None,
        reuse=None if run.reuse is None else run.reuse.rule,
    )


def check_capabilities(run: Run, backend: Backend) -> None:
    """Raises `UnsupportedError` for what the backend cannot do, `SettingError` for more versions than it can sample from."""
    able = backend.capabilities()
    for name, policy in run.named_policies.items():
        if type(policy.algorithm.loss) not in able.losses:
            known = ", ".join(sorted(loss.__name__ for loss in able.losses))
            raise UnsupportedError(
                f"policy {name!r}: {policy.algorithm.loss!r} is not computed by this backend; it has {known}"
            )
    if run.deterministic and not able.deterministic:
        raise UnsupportedError("deterministic=True: this backend cannot repeat a run bit for bit; leave it out")
    if run.weights not in able.kinds:
        raise UnsupportedError(
            f"weights={run.weights!r}: this backend samples from {', '.join(sorted(able.kinds))} only"
        )
    needed = versions_at_once(run)
    if able.versions is not None and needed > able.versions:
        raise SettingError(
            f"backend.max_loras={able.versions}: this run plays up to {needed} versions at once; set it to {needed}"
        )


def versions_at_once(run: Run) -> int:
    """How many versions may be played at the same time, of all policies on one base: of each policy the newest
    `max_staleness + 1`, the one that is being published, one that held-out tasks are played with, and version 0 where it is an
    opponent."""
    frozen = {
        player.policy
        for episodes in (*run.sources, *run.named_held_out.values())
        for lineup in episodes.lineups
        for player in lineup.resolved(episodes.environment.seats, tuple(run.named_policies)).values()
        if isinstance(player, Frozen)
    }
    each = run.max_staleness + 2 + bool(run.named_held_out)
    needed = Counter[str]()
    for name, policy in run.named_policies.items():
        needed[policy.model] += each + (name in frozen)
    return max(needed.values())


async def _begun(
    run: Run,
    schedule: Schedule,
    models: Mapping[str, TrainingClient],
    journal: Journal,
    folder: RunFolder,
    accept: bool,
) -> dict[str, Any]:
    """Begin the journal with the run's settings, or hold them against those that it begins with, before anything is made of
    the rest; returns them."""
    infos = {name: model.info for name, model in models.items()}
    renderers = {name: model.renderer.fingerprint for name, model in models.items()}
    described = await anyio.to_thread.run_sync(describe, run, schedule, infos, renderers)
    opened = await anyio.to_thread.run_sync(lambda: next(journal.read(), None))
    if opened is None:
        await journal.commit(Opened(run=described))
        return described
    if not isinstance(opened, Opened):
        raise JournalError("the journal does not begin with the run's settings: it is damaged; start a new run")
    for change in check_same(opened.run, described, run.path, accept_changed_code=accept):
        await journal.commit(Noted(kind="changed", text=change))
    await journal.commit(Noted(kind="resumed", text="the run goes on"))
    died = await anyio.to_thread.run_sync(found, folder.page)
    if died is not None:
        await journal.commit(Noted(kind="died", text=_died(died)))
        await journal.commit(died)
    return described


def _died(died: Died) -> str:
    where = f"task {died.group} of held-out {died.held_out!r}, version {died.version}"
    episode = where if died.held_out else f"episode {died.member} of group {died.group}"
    return f"the process ended while the code of {episode} ran"


async def _assembled(
    run: Run,
    checked: _Checked,
    models: Mapping[str, TrainingClient],
    journal: Journal,
    folder: RunFolder,
    watchers: Sequence[Watcher],
    *,
    backend: Backend,
    page: Page,
) -> Parts:
    """The state folded, the models where the journal stands."""
    policies = tuple(run.named_policies)
    coordinator = Coordinator(checked.schedule)
    since = await anyio.to_thread.run_sync(lambda: bases(run, journal.read(), Coordinator(checked.schedule), folder))
    steps = await anyio.to_thread.run_sync(lambda: fold(journal.read(), coordinator, since))
    for ended in coordinator.quarantined():
        journal.append(ended)
        coordinator.apply(ended)
    parts = Parts(
        run=run,
        backend=backend,
        journal=journal,
        coordinator=coordinator,
        folder=folder,
        versions={
            name: Versions(model, keep=run.max_staleness + 1, follow=run.weights == "inflight")
            for name, model in models.items()
        },
        lineups=[[lineup.resolved(s.environment.seats, policies) for lineup in s.lineups] for s in run.sources],
        held_out=checked.held_out,
        held_out_digests=checked.held_out_digests,
        watchers=watchers,
        page=page,
    )
    for policy in policies:
        await _brought_up(parts, policy, since[policy], steps[policy])
    return parts


async def _brought_up(parts: Parts, policy: str, base: int, steps: Sequence[Redone]) -> None:
    """The policy's model where the journal stands, with every version that something still plays with."""
    versions, coordinator = parts.versions[policy], parts.coordinator
    needed = needed_versions(parts.run, coordinator, policy)
    for difference in await redo(parts.run, policy, base, steps, versions, parts.folder, needed=needed):
        noted = Noted(kind="diverged", text=difference)
        await parts.journal.commit(noted)
        for watcher in parts.watchers:
            await anyio.to_thread.run_sync(watcher.event, noted)
    rows = [*parts.held_out.values(), *(row for source in parts.lineups for row in source)]
    frozen = any(isinstance(player, Frozen) and player.policy == policy for row in rows for player in row.values())
    for version in needed + [0] * frozen:
        versions.hold(version)
    await versions.trim()
    newest = coordinator.budget.version(policy)
    if coordinator.budget.installed(policy) < newest:
        event = Installed(policy=policy, version=newest)
        parts.journal.append(event)
        coordinator.apply(event)


@asynccontextmanager
async def _told(watchers: Sequence[Watcher], described: Mapping[str, Any]) -> AsyncIterator[None]:
    """The watchers, told that the run begins; each that was is told of its end, whatever ends it."""
    async with AsyncExitStack() as stack:
        for watcher in watchers:
            await anyio.to_thread.run_sync(watcher.opened, described)
            stack.push_async_callback(_close, watcher)
        yield


async def _close(watcher: Watcher) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(watcher.closed)


def _held_out_players(name: str, episodes: Episodes, policies: Sequence[str]) -> Mapping[str, Player]:
    if len(episodes.lineups) != 1:
        raise SettingError(f"held-out {name!r} has {len(episodes.lineups)} line-ups: give each a name of its own")
    if size(episodes.tasks) is None:
        raise SettingError(f"held-out {name!r} is endless: give a finite list of tasks")
    players = episodes.lineups[0].resolved(episodes.environment.seats, policies)
    check_players(players, f"held-out {name!r}")
    return players


def _kept_apart(run: Run) -> frozenset[str]:
    """The digests of held-out tasks that must not be trained on. Raises `SettingError` where a finite training source
    has one."""
    apart: dict[str, str] = {}
    for name, episodes in run.named_held_out.items():
        if not episodes.seen:
            apart |= {
                digest: f"task {index} of held-out {name!r}"
                for index, digest in enumerate(digests(episodes, f"held-out {name!r}"))
            }
    for number, episodes in enumerate(run.sources):
        for index, digest in enumerate(
            digests(episodes, f"train source {number}", most=run.steps * run.groups_per_step)
        ):
            if digest in apart:
                raise SettingError(
                    f"{apart[digest]} is task {index} of train source {number} too: keep them apart (split()), or say seen=True"
                )
    return frozenset(apart)


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
