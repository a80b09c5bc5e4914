"""An adversary against `StalenessBudget`, with books of its own that judge every answer by the rule as it is written down."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import floor
from random import Random

from sparring.rollout.budget import Bound, BudgetStatistics, StalenessBudget, Waiting

ENDLESS = 10**9
BOUNDS = {
    "alice": Bound(units_per_step=4, max_staleness=2, steps=ENDLESS),
    "bob": Bound(units_per_step=3, max_staleness=1, steps=ENDLESS),
    "carol": Bound(units_per_step=5, max_staleness=0, steps=ENDLESS),
}
CHANGING = {
    "rising": Bound(units_per_step=4, max_staleness=0, steps=9, final_staleness=5),
    "falling": Bound(units_per_step=3, max_staleness=6, steps=6, final_staleness=0),
    "jumping": Bound(units_per_step=2, max_staleness=0, steps=3, final_staleness=9),
}
LITTLE_AHEAD = {
    "alice": Bound(units_per_step=4, max_staleness=3, steps=ENDLESS, most_outstanding=5),
    "bob": Bound(units_per_step=3, max_staleness=4, steps=ENDLESS, most_outstanding=7),
    "carol": Bound(units_per_step=2, max_staleness=1, steps=ENDLESS, most_outstanding=2),
}


def bound(
    size: int = 2, staleness: int = 1, steps: int = 10, final: int | None = None, ahead: int | None = None
) -> Bound:
    """`ahead`: so many units beyond those of a step may be outstanding."""
    most = None if ahead is None else size + ahead
    return Bound(
        units_per_step=size, max_staleness=staleness, steps=steps, final_staleness=final, most_outstanding=most
    )


def may_enter(bound: Bound, outstanding: int, lag: int) -> int:
    """How many units may be admitted before as many are outstanding as may be; `lag` versions are made and not installed."""
    ahead = outstanding + lag * bound.units_per_step
    return ENDLESS if bound.most_outstanding is None else max(0, bound.most_outstanding - ahead)


def staleness(bound: Bound, step: int) -> int:
    """The bound of a step, on a line from the first to the last, halves rounded up."""
    if bound.final_staleness is None or bound.steps <= 1:
        return bound.max_staleness
    way = Fraction(min(step, bound.steps - 1), bound.steps - 1)
    return floor(bound.max_staleness + way * (bound.final_staleness - bound.max_staleness) + Fraction(1, 2))


def may_train(bound: Bound, version: int, step: int) -> bool:
    """Whether tokens of a version are young enough for this step and for every one before it, each looked at."""
    return all(earlier - staleness(bound, earlier) <= version for earlier in range(version, step + 1))


class Broken(AssertionError):
    """The budget broke the rule; the first word says which part of it."""


def demand(holds: bool, part: str, *seen: object) -> None:
    if not holds:
        raise Broken(f"{part}: {seen!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Born:
    """A unit as it was admitted: its position, the oldest version that a token of it may have, when it is due."""

    number: int
    oldest: int
    due: int


class Player:
    """One policy's truth, kept without the budget's help."""

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.version = self.installed = self.admitted = self.trained = self.dropped = 0
        self.born: dict[str, Born] = {}
        self.flying: dict[str, None] = {}
        self.finished: dict[str, None] = {}
        self.planned: tuple[str, ...] | None = None


class World:
    """Every move goes to the budget and to the books; `demand` compares them."""

    def __init__(self, bounds: Mapping[str, Bound], budget: StalenessBudget, *, pinned: bool = False) -> None:
        self.budget = budget
        self.pinned = pinned
        self.players = {policy: Player(bound) for policy, bound in bounds.items()}
        self.groups = 0
        self.ages: Counter[tuple[str, int]] = Counter()
        self.reasons: Counter[str] = Counter()

    def place(self, player: Player) -> int:
        return player.admitted if self.pinned else player.version * player.bound.units_per_step + len(player.born)

    def reach(self, player: Player) -> int:
        """The first step that what begins now may not be trained at."""
        step = player.installed
        while may_train(player.bound, player.installed, step):
            step += 1
        return step

    def is_open(self, policy: str) -> bool:
        player = self.players[policy]
        ended = self.place(player) == player.bound.steps * player.bound.units_per_step
        demand(self.budget.closed(policy) == ended, "rule 6", policy, self.budget.statistics())
        return not ended

    def admit(self, policies: Sequence[str]) -> bool:
        """All or nothing, and exactly when rule 1 allows it."""
        answer = self.budget.may_admit(policies)
        fits = {
            policy: may_enter(p.bound, len(p.born), p.version - p.installed) > 0
            and may_train(p.bound, p.installed, self.place(p) // p.bound.units_per_step)
            for policy, p in self.players.items()
        }
        demand((answer is None) == all(fits[policy] for policy in policies), "rule 1", policies, fits, answer)
        if answer is not None:
            demand(not fits[answer.partition(":")[0]], "rule 1 blames", answer)
            return False
        name = f"g{self.groups}"
        self.groups += 1
        due = self.budget.admit(name, policies)
        demand(set(due) == set(policies), "rule 1 forgets", due)
        for policy in policies:
            self._entered(policy, name, due[policy])
        return True

    def _entered(self, policy: str, name: str, due: int) -> None:
        player = self.players[policy]
        oldest = player.installed
        if self.pinned:
            step = player.admitted // player.bound.units_per_step
            first = step - max(player.bound.max_staleness, player.bound.final_staleness or 0)
            oldest = next(v for v in range(max(0, first), step + 1) if may_train(player.bound, v, step))
            demand(due == step and oldest <= player.installed, "pinned", due, step)
        else:
            self.judge_due(player, oldest, due)
        demand(due == self.budget.due(policy, name), "due", policy, name, due)
        player.born[name] = Born(number=player.admitted, oldest=oldest, due=due)
        player.flying[name] = None
        player.admitted += 1

    def judge_due(self, player: Player, oldest: int, due: int) -> None:
        demand(may_train(player.bound, oldest, due), "due too late", player.bound, oldest, due)
        demand(not may_train(player.bound, oldest, due + 1), "due too early", player.bound, oldest, due)

    def finish(self, policy: str, name: str) -> None:
        self.budget.finish(policy, name)
        del self.players[policy].flying[name]
        self.players[policy].finished[name] = None

    def drop(self, policy: str, name: str) -> None:
        self.budget.drop(policy, name)
        player = self.players[policy]
        player.flying.pop(name, None)
        player.finished.pop(name, None)
        del player.born[name]
        player.dropped += 1

    def plan(self, policy: str, *, exhaustive: bool = False) -> Waiting | None:
        """Take the candidate batch if there is one; judge the batch, or the reason for waiting."""
        player, chosen = self.players[policy], self.budget.candidate(policy)
        if isinstance(chosen, Waiting):
            demand(set(chosen.units) <= set(player.flying), "waits for what is not in flight", chosen)
            self.reasons["needs" if "needs" in chosen.reason else "waits"] += 1
            if exhaustive and player.planned is None and player.version < player.bound.steps and not self.pinned:
                size = player.bound.units_per_step
                possible = any(self.keeps_rule_3(player, batch) for batch in combinations(player.finished, size))
                demand(not possible, "rule 3 could be kept", policy, chosen)
            return chosen
        numbers = [player.born[name].number for name in chosen]
        demand(player.planned is None and player.version < player.bound.steps, "planned out of turn", chosen)
        demand(numbers == sorted(numbers) and set(chosen) <= set(player.finished), "canonical order", chosen)
        size, first = player.bound.units_per_step, player.version * player.bound.units_per_step
        if self.pinned:
            demand(all(first <= number < first + size for number in numbers), "pinned", chosen, numbers)
            rest = [born.number for name, born in player.born.items() if name not in chosen]
            demand(all(number >= first + size for number in rest), "pinned leaves", chosen, rest)
            demand(player.admitted >= first + size, "pinned too early", chosen)
        else:
            demand(len(set(chosen)) == size, "batch size", chosen)
            demand(self.keeps_rule_3(player, chosen), "rule 3", policy, chosen, player.born)
        for name in chosen:
            born = player.born[name]
            age = player.version - born.oldest
            demand(age <= staleness(player.bound, player.version), "stale", policy, name, age)
            demand(born.due >= player.version, "late", policy, name, born)
            self.ages[policy, age] += 1
            del player.finished[name]
        self.budget.take(policy, chosen)
        player.planned = chosen
        return None

    def keeps_rule_3(self, player: Player, batch: Sequence[str]) -> bool:
        dues = [born.due for name, born in player.born.items() if name not in batch]
        return all(
            sum(due <= player.version + j for due in dues) <= j * player.bound.units_per_step
            for j in range(max(dues, default=player.version) - player.version + 1)
        )

    def commit(self, policy: str) -> None:
        player = self.players[policy]
        assert player.planned is not None
        for name in player.planned:
            del player.born[name]
        player.trained += len(player.planned)
        player.planned = None
        player.version += 1
        demand(self.budget.step(policy) == player.version, "version", policy)

    def install(self, policy: str, version: int) -> None:
        self.budget.install(policy, version)
        self.players[policy].installed = version

    def check(self) -> None:
        """What must hold after every move: nothing overdue, and the same numbers in both books."""
        demand(self.budget.overdue() == (), "overdue", self.budget.overdue())
        for policy, numbers in self.budget.statistics().items():
            player = self.players[policy]
            reach = min(self.reach(player), player.bound.steps)
            truth = BudgetStatistics(
                version=player.version,
                installed=player.installed,
                outstanding=len(player.born),
                in_flight=len(player.flying),
                ready=len(player.finished),
                planned=len(player.planned or ()),
                admitted=player.admitted,
                trained=player.trained,
                dropped=player.dropped,
                room=numbers.room,
            )
            demand(numbers == truth, "conservation", policy, numbers, truth)
            room = max(0, reach * player.bound.units_per_step - self.place(player))
            room = min(room, may_enter(player.bound, len(player.born), player.version - player.installed))
            demand(numbers.room == room, "rule 1", policy, numbers, room)

    def relieve(self) -> None:
        """Finish and install everything: then some policy can step, or all that are not done can be admitted together."""
        for policy, player in self.players.items():
            if player.planned is not None:
                self.commit(policy)
            for name in tuple(player.flying):
                self.finish(policy, name)
            self.install(policy, player.version)
        if any(not isinstance(self.budget.candidate(policy), Waiting) for policy in self.players):
            return
        unfinished = [policy for policy, player in self.players.items() if not self.budget.done(policy)]
        demand(all(self.is_open(policy) for policy in unfinished), "deadlock", self.budget.statistics())
        demand(not unfinished or self.budget.may_admit(unfinished) is None, "deadlock", self.budget.statistics())

    def reload(self) -> None:
        """Go on with a budget restored from JSON, and see that it describes itself alike."""
        text = json.dumps(self.budget.state())
        bounds = {policy: player.bound for policy, player in self.players.items()}
        fresh = type(self.budget)(bounds, pinned=self.pinned)
        fresh.restore(json.loads(text))
        demand(json.dumps(fresh.state()) == text, "state", text)
        self.budget = fresh


def spar(world: World, chance: Random, *, moves: int, drops: float = 0.02, every: int = 1) -> int:
    """Seeded play against the budget: youngest finish first, publications come late, units drop.

    Stops when every policy is done; returns the steps committed. `every` is how often the whole of the books is compared.
    """
    for move in range(moves):
        _move(world, chance, drops)
        if move % every == 0:
            world.check()
            if all(world.budget.done(name) for name in world.players):
                break
    world.check()
    return sum(player.version for player in world.players.values())


def _move(world: World, chance: Random, drops: float) -> None:
    policy = chance.choice(list(world.players))
    player = world.players[policy]
    kind = chance.random()
    if kind < 0.35:
        _admit(world, chance, fill=kind < 0.25)
    elif kind < 0.6:
        _end(world, chance, policy, drops)
    elif kind < 0.9:
        if player.planned is not None:
            world.commit(policy)
        else:
            world.plan(policy)
    elif kind < 0.93:
        world.install(policy, chance.randint(player.installed, player.version))
    elif kind < 0.94:
        world.relieve()
    elif player.finished and chance.random() < drops:
        world.drop(policy, chance.choice(list(player.finished)))


def _admit(world: World, chance: Random, *, fill: bool) -> None:
    wanted = [name for name in world.players if chance.random() < 0.7 and world.is_open(name)]
    while wanted and world.admit(wanted) and fill:
        wanted = [name for name in wanted if world.is_open(name)]


def _end(world: World, chance: Random, policy: str, drops: float) -> None:
    flying = world.players[policy].flying
    if not flying:
        return
    name = next(reversed(flying)) if chance.random() < 0.8 else chance.choice(list(flying))
    if chance.random() < drops:
        world.drop(policy, name)
    else:
        world.finish(policy, name)
