"""Ratings, match matrix and draws, by hand."""

from __future__ import annotations

from collections import Counter
from random import Random

import msgspec
import pytest

from sparring.agents import League
from sparring.rollout.events import Admitted, Ended, SeatResult
from sparring.rollout.league import Game, Games, Opponent, Standings, Table, games_of

PAST = League("alice", sampler="prioritised", every=5, window=4)


def game(score: float, *, opponent: str = "alice@0", version: int = 7, league: League | None = PAST) -> Game:
    return Game(policy="alice", version=version, opponent=opponent, first="alice", league=league, score=score)


def group(number: int, *games: Game, due: int = 0) -> Games:
    return Games(group=number, due={"alice": due}, games=games)


def test_ratings_and_matrix_by_hand() -> None:
    standings = Standings(pinned=False)
    standings.add(group(0, game(1.0), game(0.5), game(0.0)))
    first = 8.0  # 16 * (1 - 1 / 2)
    second = first + 16 * (0.5 - 1 / (1 + 10 ** (-16 / 400)))
    third = second + 16 * (0.0 - 1 / (1 + 10 ** (-2 * second / 400)))
    table = standings.table()
    assert table.ratings == pytest.approx({"alice": third, "alice@0": -third})
    assert table.matrix == {"alice@5": {"alice@0": [1, 1, 1]}}
    standings.add(group(1, game(1.0, opponent="alice@5", version=11)))
    assert standings.table().ratings["alice@5"] == pytest.approx(third - 8.0), "it begins with what alice has by then"
    standings.add(group(2, Game(policy="alice", version=3, opponent="x", first="", league=None, score=1.0)))
    assert standings.table().matrix["alice"] == {"x": [1, 0, 0]}
    assert "alice@10 against alice@5: 1 won, 0 drawn, 0 lost" in standings.table().lines


def test_in_a_pinned_schedule_games_count_when_their_step_is_played_with() -> None:
    standings = Standings(pinned=True)
    standings.add(group(1, game(0.0), due=1))
    standings.add(group(0, game(1.0), due=0))
    standings.settle({"alice": 0})
    assert standings.table().matrix == {} and len(standings.table().waiting) == 2
    standings.settle({"alice": 1})
    assert standings.table().matrix == {"alice@5": {"alice@0": [1, 0, 0]}}
    again = Standings(pinned=True)
    again.restore(msgspec.json.decode(msgspec.json.encode(standings.table()), type=Table))
    for one in (standings, again):
        one.settle({"alice": 2})
    assert again.table() == standings.table() and again.table().matrix == {"alice@5": {"alice@0": [1, 0, 1]}}


def drawn(standings: Standings, league: League) -> Counter[int]:
    return Counter(standings.draw(league, [0, 5], ["alice"], Random(seed)) for seed in range(3000))


def test_whom_one_loses_against_is_met_more_often() -> None:
    """After four wins and four defeats: (1 - 5/6)^2 to (1 - 1/6)^2, 1 to 25; older games are forgotten."""
    standings = Standings(pinned=False)
    standings.add(group(0, *[game(0.0)] * 9, *[game(1.0)] * 4, *[game(0.0, opponent="alice@5")] * 4))
    assert drawn(standings, PAST)[0] / 3000 == pytest.approx(1 / 26, abs=0.015)
    assert drawn(standings, League("alice", every=5))[0] / 3000 == pytest.approx(1 / 2, abs=0.03)
    assert drawn(standings, League("alice", every=5, sampler="latest")) == {5: 3000}
    assert drawn(Standings(pinned=False), PAST)[0] / 3000 == pytest.approx(1 / 2, abs=0.03)


def test_who_won_a_game() -> None:
    admitted = Admitted(
        group=0, source=0, index=0, task="", lineup=0, trained=["alice"], pinned={"alice": 6}, opponents={"two": 5}
    )

    def ended(one: float | None, two: float | None, *, fork: float | None = None, fault: str = "") -> Ended:
        results = [SeatResult(seat="one", value=one), SeatResult(seat="two", value=two)]
        results += [SeatResult(seat="one", fork="1", value=fork)] * (fork is not None)
        return Ended(group=0, member=0, results=results, fault=fault)

    episodes = [
        ended(1.0, 0.0),
        ended(0.0, 1.0),
        ended(2.0, 2.0),
        ended(0.0, 1.0, fork=3.0),
        ended(1.0, None),
        ended(1.0, 0.0, fault="deadline"),
    ]
    opponents = {"two": Opponent(name="League(alice)", policy="alice", league=PAST)}
    games = games_of(admitted, {"alice": 9}, episodes, {"one": "alice"}, opponents)
    assert [one.score for one in games] == [1.0, 0.0, 0.5, 1.0]
    assert {(one.policy, one.version, one.opponent) for one in games} == {("alice", 6, "alice@5")}
