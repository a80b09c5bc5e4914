"""examples/kuhn.py: the rules of the game down to its known value, what each player sees, and a short run in both seats."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import pytest

from sparring import Lineup, Policy, Scripted, play, rae
from sparring.environments import Conversation, Turn
from sparring.errors import RewardError
from sparring.rollout import Finished
from sparring.rollout.events import Acted, Admitted
from tests.examples.short import evaluations_of, example, legal, shortened, steps_of, trained

kuhn = example("kuhn")
ALICE = kuhn.run.policies["alice"]
untaught = replace(kuhn.run, policies={"alice": replace(ALICE, start=None)})
PLAYS = {"check-check": 1, "check-bet-fold": 0, "check-bet-call": 2, "bet-fold": 0, "bet-call": 2}
"""Every way a game can go, with what the better card wins where the cards are shown."""


def moves(*said: str) -> Scripted:
    """A player who says these things in turn, the last one again and again."""

    def script(conversation: Conversation) -> str:
        turn = sum(isinstance(entry, Turn) for entry in conversation.entries)
        return said[min(turn, len(said) - 1)]

    return Scripted(script)


async def game(first: str, second: str, history: str) -> Finished:
    said = history.split("-")
    lineup = Lineup({"first": moves(*said[::2]), "second": moves(*said[1::2])})
    return await play(kuhn.kuhn, kuhn.Deal(first, second), lineup)


async def payoff(first: str, second: str, history: str) -> int:
    """What the first player gets; the second gets the opposite, or the rules would be refused."""
    rewards = (await game(first, second, history)).rewards
    assert rewards["first"] == -rewards["second"]
    return int(rewards["first"])


@pytest.mark.parametrize("history", PLAYS)
async def test_who_gets_what(history: str) -> None:
    for first, second in permutations("JQK", 2):
        better = 1 if "JQK".index(first) > "JQK".index(second) else -1
        folded = {"check-bet-fold": -1, "bet-fold": 1}
        assert await payoff(first, second, history) == folded.get(history, PLAYS[history] * better)


async def test_the_value_of_the_game() -> None:
    """Against each other, optimal players lose 1/18 chip in the first seat (H. W. Kuhn, 1950): the whole tree, exactly."""
    third = Fraction(1, 3)
    never, always = Fraction(0), Fraction(1)
    first_calls = {"J": never, "Q": third, "K": always}  # it checks with every card
    second_bets = {"J": third, "Q": never, "K": always}
    total = Fraction(0)
    for first, second in permutations("JQK", 2):
        bets, calls = second_bets[second], first_calls[first]
        total += (1 - bets) * await payoff(first, second, "check-check")
        total += bets * calls * await payoff(first, second, "check-bet-call")
        total += bets * (1 - calls) * await payoff(first, second, "check-bet-fold")
    assert total / 6 == Fraction(-1, 18)


async def test_a_player_sees_its_own_card_and_the_moves() -> None:
    finished = await game("K", "J", "check-bet-call")
    first, second = ([text for who, text in finished.transcripts[seat]] for seat in ("first", "second"))
    assert first[0] == "Kuhn poker with cards J, Q, K. Your card is K."
    assert second[0] == "Kuhn poker with cards J, Q, K. Your card is J."
    assert first[1] == "Moves so far: none.\nReply with exactly one of: check, bet."
    assert second[1] == "Moves so far: check.\nReply with exactly one of: check, bet."
    assert first[3] == "Moves so far: check-bet.\nReply with exactly one of: fold, call."


async def test_who_makes_no_legal_move_loses_its_ante() -> None:
    for seats, rewards in (
        ({"first": moves("raise"), "second": moves("check")}, {"first": -1, "second": 1}),
        ({"first": moves("bet"), "second": moves("raise", "raise")}, {"first": 1, "second": -1}),
    ):
        finished = await play(kuhn.kuhn, kuhn.Deal("J", "K"), Lineup(seats))
        assert finished.rewards == rewards
        assert finished.metrics == {"illegal": 2}
    late = Lineup({"first": moves("raise", "bet"), "second": moves("fold")})
    assert (await play(kuhn.kuhn, kuhn.Deal("J", "K"), late)).rewards["first"] == 1, "the retry is in time"


async def test_the_rules_are_held_to_be_zero_sum() -> None:
    """Planted: a game in which something is won that nobody lost."""
    broken = kuhn.environment(zero_sum=("first", "second"))(generous)
    with pytest.raises(RewardError, match=r"zero_sum seats got first: 1\.0, second: 0\.0"):
        await play(broken, kuhn.Deal("J", "K"), Lineup({"first": moves("x"), "second": moves("x")}))


async def generous(deal: object, first: object, second: object) -> dict[object, float]:
    return {first: 1.0, second: 0.0}


async def test_a_short_run(tmp_path: Path) -> None:
    events = await trained(shortened(untaught, legal, tmp_path))
    steps = steps_of(events)
    assert [step.step for step in steps] == [0, 1]
    for step in steps:
        assert step.metrics["trajectories"] == 64, "one learner in each game"
        assert {"reward/first", "reward/second"} <= step.metrics.keys(), "in both seats"
        assert step.metrics["environment/illegal"] == 0
        assert step.durable["advantages"].keys() == {"kuhn/first/", "kuhn/second/"}
    assert steps[0].durable != steps[1].durable, "the baselines go on"
    lineups = [event.lineup for event in events if isinstance(event, Admitted)]
    assert lineups == [number % 2 for number in range(len(lineups))], "the line-ups take turns"
    for version in (0, 1, 2):
        assert any(evaluations_of(events)["held-out", version].values), "its own score, not the sum, which is 0"


async def test_who_plays_against_whom(tmp_path: Path) -> None:
    events = await trained(shortened(untaught, legal, tmp_path, steps=12, groups_per_step=2, deterministic=True))
    admitted = {event.group: event for event in events if isinstance(event, Admitted)}
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    for event in events:
        if isinstance(event, Acted) and event.sample is not None:
            learner = (event.seat == "first") == (admitted[event.group].lineup == 0)
            seen[learner] |= {version for version, _ in event.sample.versions}
    assert seen[False] == {0, 10}, "its past: every tenth version"
    assert seen[True] == set(range(11)), "twelve steps, at most one version behind"
    assert {seat for event in admitted.values() for seat in event.opponents} == {"first", "second"}


async def test_the_warm_start_shows_every_move_with_every_card() -> None:
    """And is what the run begins with."""
    assert ALICE.start == str(kuhn.warm.path / "final")
    given = kuhn.warm.train.episodes
    said: Counter[tuple[str, str, str]] = Counter()
    for deal in given.tasks:
        for lineup in given.lineups:
            finished = await play(kuhn.kuhn, deal, lineup)
            assert finished.metrics["illegal"] == 0
            for seat, card in (("first", deal.first), ("second", deal.second)):
                lines = [text for _, text in finished.transcripts[seat]][1:]
                for asked, move in zip(lines[::2], lines[1::2], strict=True):
                    said[card, asked.partition(".")[0].removeprefix("Moves so far: "), move] += 1
    legal_moves = {
        (card, seen or "none", move) for card in "JQK" for seen, moves in kuhn.LEGAL.items() for move in moves
    }
    assert said.keys() == legal_moves


async def test_the_program_as_it_was_designed(tmp_path: Path) -> None:
    """With the policy that has nothing but a model and an algorithm."""
    run = replace(kuhn.run, policies={"alice": Policy(kuhn.MODEL, rae())})
    assert len(steps_of(await trained(shortened(run, legal, tmp_path)))) == 2
