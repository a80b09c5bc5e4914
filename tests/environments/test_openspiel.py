"""OpenSpiel's games as ours: the same values, chance from the task, simultaneous moves, what is refused; and exploitability."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest

from examples.kuhn import LEGAL, Deal, kuhn
from sparring.agents import Scripted
from sparring.environments import Conversation, Message
from sparring.environments.openspiel import OpenSpielEnvironment, loaded, openspiel_environment
from sparring.environments.openspiel_exploitability import exploitability, information_sets, measured
from sparring.environments.openspiel_extra import pyspiel
from sparring.errors import SettingError, UnsupportedError
from sparring.rollout import Finished, play

KUHN = openspiel_environment("kuhn_poker", seats=("first", "second"))


def asked(conversation: Conversation) -> tuple[str, list[str]]:
    """What a seat knows, and its options."""
    entry = conversation.entries[-1]
    assert isinstance(entry, Message)
    told, _, options = entry.text.rpartition("\nReply with exactly one of: ")
    return told, options.removesuffix(".").split(", ")


async def played(
    environment: OpenSpielEnvironment, task: int, says: Callable[[Conversation], str], seed: int = 0
) -> Finished:
    return await play(environment, task, {seat: Scripted(says) for seat in environment.seats}, seed=seed)


def told_before(moves: Iterator[str]) -> Callable[[Conversation], str]:
    return lambda conversation: next(moves)


def at_random(seed: int) -> Callable[[Conversation], str]:
    """Each seat by a generator of its own: who of several is asked first is chance."""
    rngs = {f"player{n}": Random(f"{seed}/{n}") for n in range(4)}
    return lambda conversation: rngs[conversation.place.seat].choice(asked(conversation)[1])


# ------------------------------------------------------------------------------------------------------------- the same game


CARDS = "JQK"
OURS = {"check": "Pass", "bet": "Bet", "fold": "Pass", "call": "Bet"}


def histories(before: str = "") -> list[list[str]]:
    """All ways in which a hand of our Kuhn poker can go, as moves."""
    if before not in LEGAL:
        return [before.split("-")]
    return [one for move in LEGAL[before] for one in histories(f"{before}-{move}".lstrip("-"))]


async def test_kuhn_poker_is_worth_the_same_here_and_there() -> None:
    """Every deal and every way to play it, in `examples/kuhn.py` and in OpenSpiel."""
    ways = list(itertools.product(itertools.permutations(range(3), 2), histories()))
    assert len(ways) == 30
    for (first, second), moves in ways:
        state = loaded("kuhn_poker").new_initial_state()
        for action in (first, second, *(("Pass", "Bet").index(OURS[move]) for move in moves)):
            state.apply_action(action)
        turns = {"first": iter(moves[::2]), "second": iter(moves[1::2])}
        lineup = {seat: Scripted(told_before(turn)) for seat, turn in turns.items()}
        ours = await play(kuhn, Deal(CARDS[first], CARDS[second]), lineup)
        assert state.is_terminal() and [ours.rewards["first"], ours.rewards["second"]] == state.returns()


@pytest.mark.parametrize(
    "game",
    ["kuhn_poker", "leduc_poker", "tic_tac_toe", "liars_dice", "goofspiel(num_cards=4)", "tiny_hanabi", "backgammon"],
)
async def test_it_is_open_spiel_s_game(game: str) -> None:
    """The same moves in OpenSpiel itself, with the chance that the task decided, end in the same returns."""
    environment = openspiel_environment(game)
    for task in range(3):
        done = await played(environment, task, at_random(task))
        again = await played(environment, task, at_random(task), seed=9)
        assert done == again, "all chance is the task's"
        assert done.metrics["illegal"] == 0 and done.metrics["length"] >= 2
        utility = loaded(game).get_type().utility
        if utility == pyspiel.GameType.Utility.ZERO_SUM:
            assert environment.zero_sum == environment.seats and sum(done.rewards.values()) == 0
        else:
            assert environment.zero_sum == ()


async def test_chance_is_fair() -> None:
    """Every deal of Kuhn poker comes about as often as it should."""
    dealt: dict[str, int] = {}
    for task in range(600):
        seen: list[str] = []

        def says(conversation: Conversation, seen: list[str] = seen) -> str:
            seen.append(asked(conversation)[0][0])
            return "Pass"

        await played(KUHN, task, says)
        dealt["".join(seen)] = dealt.get("".join(seen), 0) + 1
    assert set(dealt) == {"01", "02", "10", "12", "20", "21"}
    assert all(60 <= count <= 140 for count in dealt.values()), dealt


async def test_simultaneous_moves_do_not_see_each_other() -> None:
    environment = openspiel_environment("matrix_rps", seats=("one", "other"))
    says = {"one": Scripted(lambda _: "Rock"), "other": Scripted(lambda _: "Paper")}
    done = await play(environment, 0, says)
    assert done.rewards == {"one": -1.0, "other": 1.0} and done.metrics == {"length": 2, "illegal": 0}
    assert "Rock" not in done.transcripts["other"][0][1].partition("\n")[0]


async def test_each_decision_has_a_context_of_its_own_and_the_rules_in_it() -> None:
    environment = openspiel_environment("kuhn_poker", seats=("first", "second"), rules="Kuhn poker.")
    said = {"first": iter(("Pass", "Bet")), "second": iter(("Bet",))}
    done = await play(environment, 0, {seat: Scripted(told_before(turn)) for seat, turn in said.items()})
    assert [text for _, text in done.transcripts["first"]][::2] == ["Kuhn poker.", "Bet"]
    assert done.transcripts["first"][1][1].partition("\n")[0][1:] == "pb", "what was said before is in the state alone"
    assert abs(done.rewards["first"]) == 2


async def test_names_and_observations_of_one_s_own() -> None:
    environment = openspiel_environment(
        "kuhn_poker", observe=hand, action_name=lambda state, player, action: ("check", "BET")[action]
    )
    seen: list[str] = []

    def says(conversation: Conversation) -> str:
        told, options = asked(conversation)
        seen.append(told)
        assert options == ["check", "BET"]
        return "bet"

    done = await played(environment, 1, says)
    assert seen[0].startswith("player 0 holds ") and abs(done.rewards["player0"]) == 2


def hand(state: Any, player: int) -> str:
    return f"player {player} holds {'JQK'[int(state.information_state_string(player)[0])]}"


async def test_equal_names_get_numbers() -> None:
    environment = openspiel_environment("tic_tac_toe", action_name=lambda state, player, action: "xX"[action % 2])
    options = environment.options(loaded("tic_tac_toe").new_initial_state(), 0)
    assert list(options)[:3] == ["x (0)", "X (1)", "x (2)"] and list(options.values()) == list(range(9))


# ---------------------------------------------------------------------------------------------------------------- forfeits


async def test_who_makes_no_legal_move_loses_as_much_as_can_be() -> None:
    done = await played(KUHN, 0, lambda _: "raise")
    assert done.rewards == {"first": -2.0, "second": 2.0} and done.metrics == {"length": 0, "illegal": 2}
    rps = openspiel_environment("matrix_rps", retries=0)
    both = await played(rps, 0, lambda _: "Lizard")
    assert both.rewards == {"player0": 0.0, "player1": 0.0} and both.metrics["illegal"] == 2
    hanabi = await played(openspiel_environment("tiny_hanabi"), 0, lambda _: "no")
    assert hanabi.rewards == {"player0": 0.0, "player1": 0.0}
    three = openspiel_environment("kuhn_poker(players=3)")
    lost = await played(three, 0, lambda _: "raise")
    least = loaded(three.game).min_utility()
    assert lost.rewards == {"player0": least, "player1": -least / 2, "player2": -least / 2}


async def test_a_wrong_reply_may_be_mended() -> None:
    turns: dict[str, int] = {}

    def says(conversation: Conversation) -> str:
        seat = conversation.place.seat
        turns[seat] = turns.get(seat, 0) + 1
        return "raise" if turns[seat] == 1 else "Pass"

    done = await played(KUHN, 0, says)
    assert done.metrics["illegal"] == 2 and abs(done.rewards["first"]) == 1


# ---------------------------------------------------------------------------------------------------------- exploitability


def uniform(told: str, options: Sequence[str]) -> dict[str, float]:
    return dict.fromkeys(options, 1 / len(options))


def equilibrium(told: str, options: Sequence[str]) -> dict[str, float]:
    """Kuhn's, with alpha = 1/3: how often each is bet (https://en.wikipedia.org/wiki/Kuhn_poker)."""
    bets = {"0": 1 / 3, "1": 0, "2": 1, "0pb": 0, "1pb": 2 / 3, "2pb": 1}
    bets |= {"0p": 1 / 3, "1p": 0, "2p": 1, "0b": 0, "1b": 1 / 3, "2b": 1}
    return {"Pass": 1 - bets[told], "Bet": bets[told]}


def test_exploitability_of_what_is_known() -> None:
    assert len(information_sets(KUHN)) == 12
    assert exploitability(KUHN, uniform) == pytest.approx(11 / 24)
    assert exploitability(KUHN, equilibrium) == pytest.approx(0, abs=1e-9)
    assert exploitability(KUHN, uniform) == pytest.approx(11 / 24), "the table is copied"
    always = exploitability(KUHN, lambda told, options: {"Pass": 0.0, "Bet": 1.0})
    assert always > exploitability(KUHN, uniform) / 2


async def test_it_is_measured_by_asking_the_players() -> None:
    """A program that is certain of a reply at each information set; the seats are asked of their own alone."""
    environment = measured(KUHN)
    lineup = {
        "first": Scripted(lambda conversation: "Pass" if asked(conversation)[0][0] == "0" else "Bet"),
        "second": Scripted(lambda conversation: "Bet"),
    }
    want = exploitability(KUHN, certain)
    done = await play(environment, 0, lineup)
    assert done.metrics == {"exploitability": pytest.approx(want)} and environment.headline == "exploitability"
    assert done.rewards == {"first": pytest.approx(-want), "second": pytest.approx(-want)}
    assert want > 0 and done.transcripts == {"first": [], "second": []}, "nothing is said"


def certain(told: str, options: Sequence[str]) -> dict[str, float]:
    passes = told[0] == "0" and len(told) != 2
    return {"Pass": float(passes), "Bet": float(not passes)}


@pytest.mark.parametrize(
    "says",
    [{"Pass": 0.5, "Bet": 0.6}, {"Pass": 1.0}, {"Pass": 1.5, "Bet": -0.5}, {"Pass": 0.5, "Bet": 0.25, "x": 0.25}],
)
def test_what_is_no_distribution_is_refused(says: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="a probability for each of"):
        exploitability(KUHN, lambda told, options: says)


@pytest.mark.parametrize("game", ["matrix_rps", "tiny_hanabi", "kuhn_poker(players=3)"])
def test_where_exploitability_is_not_known(game: str) -> None:
    with pytest.raises(UnsupportedError, match="zero-sum games of two who move in turn"):
        measured(openspiel_environment(game))


# ------------------------------------------------------------------------------------------------------------------ refused


def test_what_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(SettingError, match=r"'nothing'.*no such game; it has .*kuhn_poker"):
        openspiel_environment("nothing")
    with pytest.raises(SettingError, match="Unknown parameter 'cards'"):
        openspiel_environment("goofspiel(cards=3)")
    with pytest.raises(SettingError, match="has 2 players; give 2 different names"):
        openspiel_environment("kuhn_poker", seats=("one",))
    with pytest.raises(SettingError, match="give 2 different names"):
        openspiel_environment("kuhn_poker", seats=("one", "one"))
    with pytest.raises(SettingError, match="retries=-1"):
        openspiel_environment("kuhn_poker", retries=-1)
    with pytest.raises(UnsupportedError, match="mean-field"):
        openspiel_environment("mfg_crowd_modelling")
    with pytest.raises(UnsupportedError, match="draws its chance itself"):
        openspiel_environment(SAMPLED)


SAMPLED = next(
    game.short_name
    for game in pyspiel.registered_games()
    if game.chance_mode == pyspiel.GameType.ChanceMode.SAMPLED_STOCHASTIC and game.default_loadable
)


def test_equal_settings_are_equal_environments_and_written_down() -> None:
    assert openspiel_environment("kuhn_poker") == openspiel_environment("kuhn_poker()")
    assert openspiel_environment("kuhn_poker") != KUHN and hash(KUHN) == hash(
        openspiel_environment("kuhn_poker", seats=KUHN.seats)
    )
    ours = openspiel_environment("kuhn_poker", observe=hand)
    assert ours.described()["observe"] == f"{hand.__module__}:hand" and ours.described()["game"] == "kuhn_poker()"
    assert f"{hand.__module__}:hand" in ours.fingerprint() and "open_spiel" in ours.fingerprint()
    assert measured(ours).described()["game"] == ours.described()
