"""What can be refused of a run before anything of it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sparring.agents import Frozen, Player
from sparring.backend import Backend, Capabilities
from sparring.environments import size
from sparring.errors import SettingError, UnsupportedError
from sparring.learner.described import digests
from sparring.learner.pacing import Drop
from sparring.learner.players import check_players
from sparring.learner.run import Episodes, Policy, Run
from sparring.rollout import Schedule, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What can be refused before anything is made: the schedule, who plays held-out, the tasks that must not be trained on."""

    schedule: Schedule
    held_out: Mapping[str, Mapping[str, Player]]
    held_out_digests: frozenset[str]


def checked(run: Run) -> Checked:
    """Raises `SettingError` for a run that cannot begin."""
    return Checked(
        schedule=schedule_of(run),
        held_out={name: _held_out_players(run, name, one) for name, one in run.named_held_out.items()},
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
            check_players(players, f"train source {number}", deterministic=run.deterministic)
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
                faults=episodes.faults,
            )
        )
    learning = {policy for source in sources for lineup in source.lineups for policy in lineup.values()}
    for policy in policies:
        if policy not in learning:
            raise SettingError(f"policy {policy!r} plays no training seat: name it in a line-up, or leave it out")
    return Schedule(
        sources=tuple(sources),
        bounds=dict.fromkeys(policies, run.bound),
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
        _check_models(name, policy, able)
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


def _check_models(name: str, policy: Policy, able: Capabilities) -> None:
    algorithm = policy.algorithm
    if algorithm.critic is not None and not able.critics:
        raise UnsupportedError(
            f"policy {name!r}: {algorithm.critic!r}: this backend has no critics; use an algorithm without, as grpo()"
        )
    if algorithm.kl is not None and algorithm.teacher is None and not able.references:
        raise UnsupportedError(f"policy {name!r}: {algorithm.kl!r}: this backend has no references; leave out the KL")
    whole = algorithm.objective(1.0)
    if type(whole) not in able.losses:
        raise UnsupportedError(f"policy {name!r}: {whole!r} is not computed by this backend; leave out KL and entropy")


def versions_at_once(run: Run) -> int:
    """How many versions may be played at the same time, of all policies on one base: of each policy the newest
    K + 1 (K the largest bound), the one that is being published, one that held-out tasks are played with, version 0 where it is
    an opponent, and with weights in flight the name that goes on from version to version."""
    frozen = {
        player.policy
        for episodes in (*run.sources, *run.named_held_out.values())
        for lineup in episodes.lineups
        for player in lineup.resolved(episodes.environment.seats, tuple(run.named_policies)).values()
        if isinstance(player, Frozen)
    }
    each = run.bound.most_staleness + 2 + bool(run.named_held_out) + (run.weights == "inflight")
    needed = Counter[str]()
    for name, policy in run.named_policies.items():
        needed[policy.model] += each + (name in frozen)
    return max(needed.values())


def _held_out_players(run: Run, name: str, episodes: Episodes) -> Mapping[str, Player]:
    if len(episodes.lineups) != 1:
        raise SettingError(f"held-out {name!r} has {len(episodes.lineups)} line-ups: give each a name of its own")
    if size(episodes.tasks) is None:
        raise SettingError(f"held-out {name!r} is endless: give a finite list of tasks")
    players = episodes.lineups[0].resolved(episodes.environment.seats, tuple(run.named_policies))
    check_players(players, f"held-out {name!r}", deterministic=run.deterministic)
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
