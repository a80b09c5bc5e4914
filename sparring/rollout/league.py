"""Who plays against those who learn, and how all games went: ratings, the match matrix, and the draw from a league."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from random import Random
from statistics import fmean

from sparring.agents import League
from sparring.rollout.events import Admitted, Ended
from sparring.rollout.rating import START, Rating, played


@dataclass(frozen=True, slots=True, kw_only=True)
class Opponent:
    """A player of a training line-up that does not learn. `policy` and `version` are those of a frozen policy of the run; with
    a `league`, the version is drawn for each group. `policy` is "" for all others."""

    name: str
    policy: str = ""
    version: int = 0
    league: League | None = None

    def drawn(self, version: int) -> str:
        """Its name in a group for which that version was drawn."""
        return self.name if self.league is None else f"{self.policy}@{version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """One episode between a `policy` that learns, at this `version` or a little later, and an opponent. `score`: 1 won, 0.5
    drawn, 0 lost. `league` is the opponent's, `first` the policy whose rating the opponent begins with."""

    policy: str
    version: int
    opponent: str
    first: str
    league: League | None
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """One episode between two policies that learn. `score` is that of `one`: 1 won, 0.5 drawn, 0 lost."""

    one: str
    other: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Games:
    """Those of one group; `due` is each unit's step."""

    group: int
    due: Mapping[str, int]
    games: Sequence[Game] = ()
    meetings: Sequence[Meeting] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All that is known of games.

    ratings  {name: mean and deviation of its skill}, moved by each game (`sparring.rollout.rating`); of a policy over all its
             versions, `START` to begin with, for a version what its policy has by then, less certain
    matrix   {row: {opponent: [won, drawn, lost]}}; a row is a policy, against a league in the versions that lie
             between two of its members: 'alice@10' are alice's from 10 on. Of two policies that learn each has a row, so
             that their game stands in both
    recent   {policy: {opponent: the latest scores}}, as many as the league's window
    waiting  what is counted later, as results wait in a deterministic run
    """

    ratings: Mapping[str, Rating] = field(default_factory=dict[str, Rating])
    matrix: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict[str, Mapping[str, Sequence[int]]])
    recent: Mapping[str, Mapping[str, Sequence[float]]] = field(
        default_factory=dict[str, Mapping[str, Sequence[float]]]
    )
    waiting: Sequence[Games] = ()

    @property
    def lines(self) -> list[str]:
        """What a person reads: the ratings, best first by mean less three deviations, and the match matrix."""
        ranked = sorted(self.ratings.items(), key=lambda pair: (-pair[1].ordinal, pair[0]))
        rated = [f"rating of {name}: {rating.mu:.1f} \N{PLUS-MINUS SIGN} {rating.sigma:.1f}" for name, rating in ranked]
        return rated + [
            f"{row} against {other}: {won} won, {drawn} drawn, {lost} lost"
            for row, others in self.matrix.items()
            for other, (won, drawn, lost) in others.items()
        ]


class Standings:
    """A `Table` that goes on. `pinned`: games wait for `settle`, so that what is drawn does not depend on which episode ended
    first."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._ratings: dict[str, Rating] = {}
        self._matrix: dict[str, dict[str, list[int]]] = {}
        self._recent: dict[str, dict[str, list[float]]] = {}
        self._waiting: dict[int, Games] = {}

    def add(self, games: Games) -> None:
        """A group's episodes have all ended."""
        if self._pinned:
            self._waiting[games.group] = games
        else:
            self._count(games)

    def settle(self, versions: Mapping[str, int]) -> None:
        """A group plays with these versions: the games of the units that made them count from here on."""
        for group, games in sorted(self._waiting.items()):
            if any(games.due.get(policy, version) < version for policy, version in versions.items()):
                self._count(self._waiting.pop(group))

    def draw(self, league: League, members: Sequence[int], learners: Sequence[str], rng: Random) -> int:
        """One of the members for a group in which these policies learn."""
        if league.sampler == "latest":
            return members[-1]
        if league.sampler == "uniform":
            return rng.choice(members)
        weights = [(1 - self._beaten(learners, f"{league.policy}@{version}")) ** 2 for version in members]
        return rng.choices(members, weights)[0]

    def table(self) -> Table:
        return Table(
            ratings=self._ratings, matrix=self._matrix, recent=self._recent, waiting=list(self._waiting.values())
        )

    def restore(self, table: Table) -> None:
        """Become what `table` described."""
        self._ratings = dict(table.ratings)
        self._matrix = {row: {name: list(cell) for name, cell in cells.items()} for row, cells in table.matrix.items()}
        self._recent = {who: {name: list(one) for name, one in of.items()} for who, of in table.recent.items()}
        self._waiting = {games.group: games for games in table.waiting}

    def _beaten(self, learners: Sequence[str], opponent: str) -> float:
        """How often the learners beat it lately, one win and one defeat added."""
        scores = [score for policy in learners for score in self._recent.get(policy, {}).get(opponent, ())]
        return (sum(scores) + 1) / (len(scores) + 2)

    def _count(self, games: Games) -> None:
        for game in games.games:
            self._rate(game.policy, game.opponent, game.first, game.score)
            league = game.league
            row = game.policy if league is None else f"{game.policy}@{game.version // league.every * league.every}"
            self._enter(row, game.opponent, game.score)
            if league is not None:
                recent = self._recent.setdefault(game.policy, {}).setdefault(game.opponent, [])
                recent.append(game.score)
                del recent[: -league.window]
        for meeting in games.meetings:
            self._rate(meeting.one, meeting.other, "", meeting.score)
            self._enter(meeting.one, meeting.other, meeting.score)
            self._enter(meeting.other, meeting.one, 1 - meeting.score)

    def _rate(self, one: str, other: str, first: str, score: float) -> None:
        own, theirs = self._ratings.get(one, START), self._ratings.get(other)
        if theirs is None:
            theirs = self._ratings[first].inherited if first in self._ratings else START
        self._ratings[one], self._ratings[other] = played(own, theirs, score)

    def _enter(self, row: str, opponent: str, score: float) -> None:
        cell = self._matrix.setdefault(row, {}).setdefault(opponent, [0, 0, 0])
        cell[int(2 - 2 * score)] += 1


def games_of(
    admitted: Admitted,
    since: Mapping[str, int],
    episodes: Iterable[Ended],
    seats: Mapping[str, str],
    opponents: Mapping[str, Opponent],
) -> list[Game]:
    """The games of a group; `seats` are those trained, {seat: policy}, `opponents` who sits at others.

    A policy won where the mean return of its seats, forks included, is greater than the opponent's. Failed episodes, and those
    that reward only one of the two, are no games.
    """
    found: list[Game] = []
    for ended in episodes:
        for policy in dict.fromkeys(seats.values()):
            own = _return(ended, [seat for seat, named in seats.items() if named == policy])
            for seat, opponent in opponents.items():
                other = _return(ended, [seat])
                if own is None or other is None:
                    continue
                version = admitted.pinned.get(policy, since[policy])
                found.append(
                    Game(
                        policy=policy,
                        version=version,
                        opponent=opponent.drawn(admitted.opponents.get(seat, 0)),
                        first=opponent.policy,
                        league=opponent.league,
                        score=_score(own, other),
                    )
                )
    return found


def meetings_of(episodes: Iterable[Ended], lineup: Mapping[str, str]) -> list[Meeting]:
    """The games of a group between policies of the run, each pair's in each episode; `lineup` is {seat: policy}.

    A policy counts as one that learns where it is paused or done, too. Who won is as in `games_of`; a policy in two seats plays
    no game against itself.
    """
    found: list[Meeting] = []
    for ended in episodes:
        for one, other in combinations(dict.fromkeys(lineup.values()), 2):
            mine, theirs = (
                _return(ended, [seat for seat, named in lineup.items() if named == who]) for who in (one, other)
            )
            if mine is not None and theirs is not None:
                found.append(Meeting(one=one, other=other, score=_score(mine, theirs)))
    return found


def _return(ended: Ended, seats: Sequence[str]) -> float | None:
    """The mean return of the seats, forks included; None where none was rewarded, and of an episode that failed."""
    values = [one.value for one in ended.results if one.seat in seats and one.value is not None]
    return fmean(values) if values and not ended.fault else None


def _score(own: float, other: float) -> float:
    return 0.5 if own == other else float(own > other)
