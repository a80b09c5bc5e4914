"""What can be refused of a run before anything of it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from sparring.agents import Frozen, League, Player, name_of
from sparring.backend import Backend, Capabilities
from sparring.environments import size
from sparring.errors import SettingError, UnsupportedError
from sparring.learner.advantages import RoleBaseline
from sparring.learner.bounds import bounds, most_staleness
from sparring.learner.described import digests
from sparring.learner.pacing import Drop
from sparring.learner.players import check_players
from sparring.learner.run import Episodes, Policy, Run
from sparring.learner.take import frozen_players
from sparring.rollout import Schedule, Source
from sparring.rollout.league import Opponent
from sparring.rollout.phases import Stage, stages


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
        lineups, others = [], []
        for lineup in episodes.lineups:
            players = lineup.resolved(episodes.environment.seats, policies)
            check_players(players, f"train source {number}", steps=run.steps, deterministic=run.deterministic)
            trained = {seat: player for seat, player in players.items() if isinstance(player, str)}
            if not trained:
                raise SettingError(
                    f"train source {number} has a line-up in which nobody learns: name a policy for a seat"
                )
            lineups.append(trained)
            others.append({seat: _opponent(player) for seat, player in players.items() if not isinstance(player, str)})
        sources.append(
            Source(
                environment=episodes.environment.name,
                tasks=size(episodes.tasks),
                lineups=tuple(lineups),
                curriculum=episodes.curriculum,
                faults=episodes.faults,
                opponents=tuple(others),
            )
        )
    learning = {policy for source in sources for lineup in source.lineups for policy in lineup.values()}
    for policy in policies:
        if policy not in learning:
            raise SettingError(f"policy {policy!r} plays no training seat: name it in a line-up, or leave it out")
    _check_given(run)
    _check_reachable(sources, stages(run.phases, dict.fromkeys(policies, run.steps)))
    return Schedule(
        sources=tuple(sources),
        bounds=bounds(run),
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
        phases=tuple(run.phases),
    )


def _check_given(run: Run) -> None:
    """Raises `SettingError` where a policy's baselines are kept for each player at a seat that no environment has, or at which
    two players go by one name."""
    seats = list(dict.fromkeys(seat for source in run.sources for seat in source.environment.seats))
    for name, policy in run.named_policies.items():
        estimator = policy.algorithm.advantages
        for seat in estimator.given if isinstance(estimator, RoleBaseline) else ():
            if seat not in seats:
                near = get_close_matches(seat, seats, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"the seats are {', '.join(seats)}"
                raise SettingError(f"policy {name!r}: given={seat!r} is no seat of the training environments; {meant}")
            if twice := _one_name(run, seat):
                raise SettingError(
                    f"policy {name!r}: given={seat!r}: two players there are called {twice!r} and would share a baseline; give "
                    f"their functions or classes names of their own"
                )


def _one_name(run: Run, seat: str) -> str:
    """What two different players at the seat are called in one environment; "" where all names differ. A league's versions go
    by the names that they have everywhere."""
    known: dict[tuple[str, str], Player] = {}
    for source in run.sources:
        for lineup in source.lineups if seat in source.environment.seats else ():
            player = lineup.resolved(source.environment.seats, tuple(run.named_policies))[seat]
            key = source.environment.name, name_of(player)
            if not isinstance(player, League) and known.setdefault(key, player) != player:
                return name_of(player)
    return ""


def _opponent(player: Player) -> Opponent:
    if isinstance(player, League):
        return Opponent(name=name_of(player), policy=player.policy, league=player)
    if isinstance(player, Frozen):
        return Opponent(name=player.name, policy=player.policy, version=player.version)
    return Opponent(name=name_of(player))


def _check_reachable(sources: Sequence[Source], run: Sequence[Stage]) -> None:
    """Raises `SettingError` where in some stage of the run the line-ups of a policy that is to learn in it wait for versions
    that nobody can make before they are played."""
    pairs = [pair for source in sources for pair in zip(source.lineups, source.opponents, strict=True)]
    made: Mapping[str, int] = {}
    for stage in run:
        there: dict[str, int] = {**made}
        learning: set[str] = set()
        while new := _learning(pairs, there) & stage.moving - learning:
            learning |= new
            there |= {policy: stage.until[policy] for policy in new}
        if stuck := stage.moving - learning:
            waiting = [others for lineup, others in pairs if stuck & set(lineup.values())]
            names = sorted({one.name for others in waiting for one in others.values() if one.version})
            raise SettingError(
                f"line-ups wait for {', '.join(names)}, and nobody learns before they are there: give each policy a line-up "
                f"that can be played from the start{' of its first phase' if len(run) > 1 else ''}"
            )
        made = stage.until


def _learning(pairs: Sequence[tuple[Mapping[str, str], Mapping[str, Opponent]]], there: Mapping[str, int]) -> set[str]:
    """The policies of the line-ups whose opponents are there, {policy: its newest version}."""
    return {
        policy
        for lineup, others in pairs
        if all(one.version <= there.get(one.policy, 0) for one in others.values())
        for policy in lineup.values()
    }


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
    K + 1 (K the largest bound), the one that is being published, one that held-out tasks are played with (in phases also those
    that wait for whoever is paused), those that line-ups name or leagues may draw, and with weights in flight the name that
    goes on from version to version."""
    named = {(one.policy, one.version) for one in frozen_players(run) if one.policy} | {
        (player.policy, version)
        for source in run.sources
        for lineup in source.lineups
        for player in lineup.players.values()
        if isinstance(player, League)
        for version in range(player.size)
    }
    others = {one.model for one in frozen_players(run) if one.model}
    each = most_staleness(run) + 2 + bool(run.named_held_out) + (run.weights == "inflight")
    needed = Counter[str]()
    for name, policy in run.named_policies.items():
        needed[policy.model] += each + sum(policy_named == name for policy_named, _ in named)
        if run.named_held_out:
            needed[policy.model] += _lead(run, name) // run.evaluate_every
    needed.update(others)
    return max(needed.values())


def _lead(run: Run, policy: str) -> int:
    """By how many versions phases let a policy get ahead of the one that has made fewest."""
    if not run.phases:
        return 0
    made = [stage.until for stage in stages(run.phases, dict.fromkeys(run.named_policies, run.steps))]
    return max(until[policy] - min(until.values()) for until in made)


def _held_out_players(run: Run, name: str, episodes: Episodes) -> Mapping[str, Player]:
    if len(episodes.lineups) != 1:
        raise SettingError(f"held-out {name!r} has {len(episodes.lineups)} line-ups: give each a name of its own")
    if size(episodes.tasks) is None:
        raise SettingError(f"held-out {name!r} is endless: give a finite list of tasks")
    players = episodes.lineups[0].resolved(episodes.environment.seats, tuple(run.named_policies))
    check_players(players, f"held-out {name!r}", steps=run.steps, deterministic=run.deterministic)
    for seat, player in players.items():
        if isinstance(player, League):
            raise SettingError(
                f"held-out {name!r}: seat {seat!r} is played by a League, whose members change, so that versions could not be "
                f"compared: name one, as in Frozen('{player.policy}@0')"
            )
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
