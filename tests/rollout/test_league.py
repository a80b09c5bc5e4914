"""Ratings, match matrix and draws: by hand, and by the library that rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from random import Random

import msgspec
import pytest
from openskill.models import BradleyTerryPart
from openskill.models.weng_lin.bradley_terry_part import BradleyTerryPartRating

from sparring.agents import League
from sparring.rollout.events import Admitted, Ended, SeatResult
from sparring.rollout.league import Game, Games, Meeting, Opponent, Standings, Table, games_of, meetings_of
from sparring.rollout.rating import START, Rating
from tests.rollout.told import ONE_POLICY, TWO_SEATS, Story, schedule

PAST = League("alice", sampler="prioritised", every=5, window=4)


def game(score: float, *, opponent: str = "alice@0", version: int = 7, league: League | None = PAST) -> Game:
    return Game(policy="alice", version=version, opponent=opponent, first="alice", league=league, score=score)


def group(number: int, *games: Game, due: int = 0, meetings: Sequence[Meeting] = ()) -> Games:
    return Games(group=number, due={"alice": due}, games=games, meetings=meetings)


def met(score: float) -> Meeting:
    return Meeting(one="alice", other="bob", score=score)


class Library:
    """The ratings by openskill alone."""

    def __init__(self, *names: str) -> None:
        self.model = BradleyTerryPart()
        self.of = {name: self.model.rating() for name in names}

    def inherit(self, name: str, policy: str) -> None:
        known = self.of[policy]
        self.of[name] = self.model.rating(mu=known.mu, sigma=min(2 * known.sigma, self.model.sigma))

    def play(self, one: str, other: str, *scores: float) -> None:
        for score in scores:
            teams: list[list[BradleyTerryPartRating]] = [[self.of[one]], [self.of[other]]]
            (self.of[one],), (self.of[other],) = self.model.rate(teams, scores=[score, 1 - score])

    @property
    def ratings(self) -> dict[str, tuple[float, float]]:
        return {name: (of.mu, of.sigma) for name, of in self.of.items()}


def test_ratings_are_the_librarys_and_the_matrix_counts() -> None:
    standings, library = Standings(pinned=False), Library("alice", "alice@0", "x")
    assert standings.table().ratings == {}
    standings.add(group(0, game(1.0), game(0.5), game(0.0)))
    library.play("alice", "alice@0", 1.0, 0.5, 0.0)
    assert standings.table().matrix == {"alice@5": {"alice@0": [1, 1, 1]}}
    standings.add(group(1, Game(policy="alice", version=3, opponent="x", first="", league=None, score=1.0)))
    library.play("alice", "x", 1.0)
    assert standings.table().ratings == library.ratings
    assert standings.table().matrix["alice"] == {"x": [1, 0, 0]}


@pytest.mark.parametrize(("before", "certain"), [(1, False), (60, True)])
def test_a_version_begins_with_what_its_policy_has_by_then(before: int, certain: bool) -> None:
    """Twice as uncertain, but never more than a player of whom nothing is known."""
    standings, library = Standings(pinned=False), Library("alice", "alice@0")
    standings.add(group(0, *[game(1.0), game(0.5)] * before))
    library.play("alice", "alice@0", *[1.0, 0.5] * before)
    known = standings.table().ratings["alice"]
    assert (2 * known.sigma < START.sigma) == certain and known.mu > START.mu
    standings.add(group(1, game(1.0, opponent="alice@5", version=11)))
    library.inherit("alice@5", "alice")
    library.play("alice", "alice@5", 1.0)
    assert standings.table().ratings == library.ratings
    assert standings.table().matrix["alice@10"] == {"alice@5": [1, 0, 0]}


def test_what_is_rated_first_begins_alike() -> None:
    """Nothing is known of the policy whose version is met, nor of one who is no version."""
    for first in ("bob", ""):
        standings, library = Standings(pinned=False), Library("alice", "bob@3")
        standings.add(group(0, Game(policy="alice", version=0, opponent="bob@3", first=first, league=None, score=0.0)))
        library.play("alice", "bob@3", 0.0)
        assert standings.table().ratings == library.ratings


def test_the_table_as_a_person_reads_it() -> None:
    """Who has few games comes after who has many, though their mean be higher; the same rating in order of names."""
    table = Table(
        ratings={"new": Rating(30.0, 5.0), "old": Rating(26.04, 1.26), "b": START, "a": START},
        matrix={"old": {"new": [3, 2, 1]}},
    )
    assert table.lines == [
        "rating of old: 26.0 ± 1.3",
        "rating of new: 30.0 ± 5.0",
        "rating of a: 25.0 ± 8.3",
        "rating of b: 25.0 ± 8.3",
        "old against new: 3 won, 2 drawn, 1 lost",
    ]


def test_two_that_learn_have_a_row_each_and_one_rating() -> None:
    standings, library = Standings(pinned=False), Library("alice", "bob")
    standings.add(group(0, meetings=[met(1.0), met(1.0), met(0.5), met(0.0)]))
    library.play("alice", "bob", 1.0, 1.0, 0.5, 0.0)
    table = standings.table()
    assert table.ratings == library.ratings
    assert table.matrix == {"alice": {"bob": [2, 1, 1]}, "bob": {"alice": [1, 1, 2]}}
    assert table.lines[2:] == [
        "alice against bob: 2 won, 1 drawn, 1 lost",
        "bob against alice: 1 won, 1 drawn, 2 lost",
    ]


def test_whom_a_league_sends_does_not_depend_on_who_learns_beside() -> None:
    alone, beside = Standings(pinned=False), Standings(pinned=False)
    alone.add(group(0, *[game(0.0)] * 4))
    beside.add(group(0, *[game(0.0)] * 4, meetings=[met(1.0)] * 9))
    assert alone.table().recent == beside.table().recent == {"alice": {"alice@0": [0.0] * 4}}
    assert drawn(alone, PAST) == drawn(beside, PAST)


def test_in_a_pinned_schedule_games_count_when_their_step_is_played_with() -> None:
    standings = Standings(pinned=True)
    standings.add(group(1, game(0.0), due=1))
    standings.add(group(0, game(1.0), due=0))
    standings.settle({"alice": 0})
    assert standings.table().matrix == {} and len(standings.table().waiting) == 2
    standings.settle({"alice": 1})
    assert standings.table().matrix == {"alice@5": {"alice@0": [1, 0, 0]}}


def test_no_order_in_which_groups_end_changes_a_pinned_table() -> None:
    """And without a pinned schedule it does, so that this could be seen."""
    groups = [
        group(0, game(1.0), due=0, meetings=[met(0.0), met(0.5)]),
        group(1, game(0.0), due=0),
        group(2, game(0.0, opponent="alice@5"), due=1, meetings=[met(1.0)]),
    ]
    for pinned, tables in ((True, 1), (False, 6)):
        found = set[bytes]()
        for order in permutations(groups):
            standings = Standings(pinned=pinned)
            for one in order:
                standings.add(one)
            standings.settle({"alice": 2})
            assert standings.table().waiting == []
            found.add(msgspec.json.encode(standings.table().ratings, order="sorted"))
        assert len(found) == tables


@pytest.mark.parametrize("pinned", [True, False])
def test_what_is_restored_goes_on_bit_for_bit(pinned: bool) -> None:
    standings, again = Standings(pinned=pinned), Standings(pinned=pinned)
    for number, score in enumerate((1.0, 0.5, 0.0, 1.0)):
        opponent = f"alice@{5 * (number // 2)}"
        standings.add(group(number, game(score, opponent=opponent), due=number, meetings=[met(score)]))
    standings.settle({"alice": 2})
    assert len(standings.table().waiting) == (2 if pinned else 0)
    state = msgspec.json.encode(standings.table())
    again.restore(msgspec.json.decode(state, type=Table))
    assert msgspec.json.encode(again.table()) == state
    for one in (standings, again):
        one.add(group(4, game(0.5, opponent="alice@10"), due=4, meetings=[met(0.0)]))
        one.settle({"alice": 9})
    assert again.table() == standings.table() and again.table().waiting == []
    assert len(again.table().ratings) == 5 and sum(again.table().matrix["bob"]["alice"]) == 5


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


def ended(
    one: float | None, two: float | None, three: float | None = None, *, fork: float | None = None, fault: str = ""
) -> Ended:
    """What the seats got; `fork` is the first one's."""
    results = [SeatResult(seat=seat, value=value) for seat, value in (("one", one), ("two", two), ("three", three))]
    results += [SeatResult(seat="one", fork="1", value=fork)] * (fork is not None)
    return Ended(group=0, member=0, results=results, fault=fault)


EPISODES = [
    ended(1.0, 0.0),
    ended(0.0, 1.0),
    ended(2.0, 2.0),
    ended(0.0, 1.0, fork=3.0),
    ended(1.0, None),
    ended(1.0, 0.0, fault="deadline"),
]


def test_who_won_a_game() -> None:
    admitted = Admitted(
        group=0, source=0, index=0, task="", lineup=0, trained=["alice"], pinned={"alice": 6}, opponents={"two": 5}
    )
    opponents = {"two": Opponent(name="League(alice)", policy="alice", league=PAST)}
    games = games_of(admitted, {"alice": 9}, EPISODES, {"one": "alice"}, opponents)
    assert [one.score for one in games] == [1.0, 0.0, 0.5, 1.0]
    assert {(one.policy, one.version, one.opponent) for one in games} == {("alice", 6, "alice@5")}


def test_who_won_between_two_that_learn() -> None:
    meetings = meetings_of(EPISODES, TWO_SEATS)
    assert [one.score for one in meetings] == [1.0, 0.0, 0.5, 1.0]
    assert {(one.one, one.other) for one in meetings} == {("alice", "bob")}


def test_a_policy_plays_no_game_against_itself() -> None:
    """With two seats its mean counts against another; of three policies each pair meets."""
    assert meetings_of([ended(1.0, 0.0)], ONE_POLICY) == []
    assert meetings_of([ended(1.0, 0.0)], {"one": "alice"}) == []
    twice = {"one": "alice", "two": "bob", "three": "alice"}
    assert meetings_of([ended(4.0, 1.5, 0.0), ended(2.0, 1.5, 0.0)], twice) == [met(1.0), met(0.0)]
    three = {"one": "alice", "two": "bob", "three": "carol"}
    assert meetings_of([ended(1.0, 0.0, 0.5)], three) == [
        met(1.0),
        Meeting(one="alice", other="carol", score=1.0),
        Meeting(one="bob", other="carol", score=0.0),
    ]


@pytest.mark.parametrize("pinned", [True, False])
def test_games_of_two_that_learn_are_counted_and_are_no_scores_of_units(pinned: bool) -> None:
    """Those are of games against players that do not learn."""
    story = Story(schedule([TWO_SEATS], pinned=pinned))
    drew = {"alice": {"bob": [0, 4, 0]}, "bob": {"alice": [0, 4, 0]}}
    for number in story.admit_all():
        story.end(number)
    assert story.state.choosing.standings.table().matrix == ({} if pinned else drew)
    for policy in ("alice", "bob"):
        story.plan(policy)
        assert [unit.scores for unit in story.state.batches[policy].units] == [(), ()]
        story.step(policy)
    story.admit()
    assert story.state.choosing.standings.table().matrix == drew


def test_who_is_done_is_met_yet() -> None:
    story = Story(schedule([TWO_SEATS, {"one": "alice"}], steps=1))
    last = [story.admit() for _ in range(3)][-1]
    assert last.trained == ["bob"]
    for member in range(2):
        story.act(last.group, member, "two")
        story.tell(msgspec.structs.replace(ended(0.0, 1.0), group=last.group, member=member))
    table = story.state.choosing.standings.table()
    assert table.matrix == {"alice": {"bob": [0, 0, 2]}, "bob": {"alice": [2, 0, 0]}}
    assert table.ratings["bob"].mu > START.mu > table.ratings["alice"].mu
