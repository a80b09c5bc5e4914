"""The games: who gets what, on every path where that can be walked; what is shown; what a forfeit costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import product
from operator import xor
from random import Random
from typing import Any

import pytest

from sparring.agents import Lineup, Scripted
from sparring.environments import Conversation, Message, Seat, environment
from sparring.environments.games import (
    Heaps,
    Word,
    connect_four,
    describe,
    matching_pennies,
    nim,
    rock_paper_scissors,
    tic_tac_toe,
)
from sparring.environments.games.lines import winner
from sparring.errors import RewardError
from sparring.rollout import Finished, play

Says = Callable[[Conversation], str]


def says(*moves: str) -> Says:
    """These, one after the other, the last one again and again."""
    rest: Iterator[str] = iter(moves)
    last = [""]

    def script(conversation: Conversation) -> str:
        last[0] = next(rest, last[0])
        return last[0]

    return script


def asked(conversation: Conversation) -> str:
    entry = conversation.entries[-1]
    assert isinstance(entry, Message)
    return entry.text


def options(conversation: Conversation) -> Sequence[str]:
    return asked(conversation).rpartition("exactly one of: ")[2].removesuffix(".").split(", ")


def at_random(seed: int) -> Says:
    rng = Random(seed)
    return lambda conversation: rng.choice(options(conversation))


async def played(game: Any, task: Any, *scripts: Says) -> Finished:
    return await play(game, task, Lineup({seat: Scripted(one) for seat, one in zip(game.seats, scripts, strict=True)}))


async def values(game: Any, task: Any, *scripts: Says) -> tuple[float, ...]:
    rewards = (await played(game, task, *scripts)).rewards
    return tuple(rewards[seat] for seat in game.seats)


# ------------------------------------------------------------------------------------------------------ simultaneous moves


@pytest.mark.parametrize(("one", "other"), list(product(("heads", "tails"), repeat=2)))
async def test_matching_pennies(one: str, other: str) -> None:
    value = 1 if one == other else -1
    assert await values(matching_pennies, 0, says(one), says(other)) == (value, -value)


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        ("rock", "scissors", 1),
        ("scissors", "paper", 1),
        ("paper", "rock", 1),
        ("rock", "paper", -1),
        ("rock", "rock", 0),
    ],
)
async def test_rock_paper_scissors(one: str, other: str, value: int) -> None:
    assert await values(rock_paper_scissors, 0, says(one), says(other)) == (value, -value)
    assert await values(rock_paper_scissors, 0, says(other), says(one)) == (-value, value)


@pytest.mark.parametrize("game", [matching_pennies, rock_paper_scissors], ids=["pennies", "rock"])
async def test_nobody_sees_the_other_s_move_and_who_makes_none_loses(game: Any) -> None:
    legal = "heads" if game is matching_pennies else "rock"
    done = await played(game, 0, says("edge"), says(legal))
    assert list(done.rewards.values()) == [-1, 1] and done.metrics == {"illegal": 2}
    assert all(legal not in text for who, text in done.transcripts[game.seats[0]] if who == game.seats[0])
    assert await values(game, 0, says(legal), says("edge")) == (1, -1)
    assert await values(game, 0, says("edge"), says("edge")) == (0, 0)


# --------------------------------------------------------------------------------------------------------------- forfeits

ZERO_SUM = {
    "matching_pennies": (matching_pennies, 0),
    "rock_paper_scissors": (rock_paper_scissors, 0),
    "nim": (nim, Heaps((1, 2))),
    "tic_tac_toe": (tic_tac_toe, 0),
    "connect_four": (connect_four, 0),
}


@pytest.mark.parametrize("name", ZERO_SUM)
async def test_a_player_who_says_nonsense_gets_what_is_documented(name: str) -> None:
    """-1, the other 1; of two the one who is asked first, but where both are asked at once: 0."""
    game, task = ZERO_SUM[name]
    assert "asked twice, forfeits: -1, the other 1" in " ".join(str(game.function.__doc__).split())
    for nonsense in ("nonsense", "", "A9, heads or rock"):
        assert await values(game, task, says(nonsense), at_random(0)) == (-1, 1)
        assert await values(game, task, at_random(0), says(nonsense)) == (1, -1)
        both = await values(game, task, says(nonsense), says(nonsense))
        assert both == ((0, 0) if "pennies" in name or "rock" in name else (-1, 1))
    assert (await played(game, task, says("nonsense"), at_random(0))).metrics["illegal"] == 2


@pytest.mark.parametrize("name", ZERO_SUM)
async def test_a_forfeit_is_held_to_be_zero_sum(name: str) -> None:
    """Planted: the same game where the winner of a forfeit gets nothing."""
    game, task = ZERO_SUM[name]
    assert game.zero_sum == game.seats

    async def generous(task: Any, one: Seat, other: Seat) -> dict[Seat, float]:
        rewards: Any = await game.function(task, one, other, **game.settings)
        return {seat: min(value, 0.0) for seat, value in rewards.items()}

    broken = environment(zero_sum=("one", "other"))(generous)
    with pytest.raises(RewardError, match=r"zero_sum seats got one: -1\.0, other: 0\.0"):
        await play(broken, task, Lineup({"one": Scripted(says("nonsense")), "other": Scripted(at_random(0))}))


def test_where_nobody_competes_nobody_forfeits() -> None:
    assert describe.zero_sum == () and "Nobody forfeits" in str(describe.function.__doc__)


# ------------------------------------------------------------------------------------------------------------------- nim


def best_of_nim(conversation: Conversation) -> str:
    """A move after which the heaps' binary sum is zero, where there is one."""
    shown = asked(conversation).partition("Heaps: ")[2].partition(".\n")[0]
    heaps = {part[0]: int(part[3:]) for part in shown.split(", ")}
    for move in options(conversation):
        left = {name: count - int(move[1:]) * (name == move[0]) for name, count in heaps.items()}
        if reduce(xor, left.values()) == 0:
            return move
    return options(conversation)[0]


@pytest.mark.parametrize("heaps", [(1,), (2, 2), (1, 2, 3), (1, 2, 4), (3, 4, 5), (1, 1, 1)])
async def test_nim_is_won_as_bouton_says(heaps: tuple[int, ...]) -> None:
    for seed in range(5):
        if reduce(xor, heaps):
            assert await values(nim, Heaps(heaps), best_of_nim, at_random(seed)) == (1, -1)
        else:
            assert await values(nim, Heaps(heaps), at_random(seed), best_of_nim) == (-1, 1)


async def test_nim_shows_the_heaps_and_a_forfeit_loses() -> None:
    done = await played(nim, Heaps((2, 1)), says("A1"), says("C1"))
    assert done.rewards == {"first": 1, "second": -1}
    question = "Nim. Who takes the last one wins. Heaps: A: 1, B: 1.\nReply with exactly one of: A1, B1."
    assert done.transcripts["second"][0] == ("user", question)


# ----------------------------------------------------------------------------------------------------------------- boards


@pytest.mark.parametrize(
    ("rows", "length", "mark"),
    [
        (["xxx", "...", "..."], 3, "x"),
        (["o..", "o..", "o.."], 3, "o"),
        (["x..", ".x.", "..x"], 3, "x"),
        (["..o", ".o.", "o.."], 3, "o"),
        (["xxo", "oox", "xox"], 3, ""),
        (["...", "...", "..."], 3, ""),
        ([".....", ".xxx.", "....."], 4, ""),
        (["o....", ".o...", "..o..", "...o."], 4, "o"),
        ([".xxo.", ".xo..", ".o...", "....."], 3, "o"),
    ],
)
def test_rows_of_equal_marks(rows: list[str], length: int, mark: str) -> None:
    assert winner(rows, length) == mark


async def test_tic_tac_toe() -> None:
    assert await values(tic_tac_toe, 0, says("1", "2", "3"), says("4", "5")) == (1, -1)
    assert await values(tic_tac_toe, 0, says("1", "2", "9"), says("4", "5", "6")) == (-1, 1)
    assert await values(tic_tac_toe, 0, says("1", "2", "6", "7", "9"), says("3", "4", "5", "8")) == (0, 0)
    done = await played(tic_tac_toe, 0, says("5"), says("5"))
    assert done.rewards == {"x": 1, "o": -1}, "the place is taken"
    board = "Tic-tac-toe, you are o.\n1 2 3\n4 x 6\n7 8 9\nReply with exactly one of: 1, 2, 3, 4, 6, 7, 8, 9."
    assert done.transcripts["o"][0] == ("user", board)


@pytest.mark.parametrize("game", [tic_tac_toe, connect_four, connect_four(rows=5, columns=4, line=3)])
async def test_random_games_end_as_the_board_says(game: Any) -> None:
    """Held against a count of marks: who wins has moved last, and whoever moves has as many marks as the other, or one less."""
    found = set[float]()
    for seed in range(30):
        done = await played(game, seed, at_random(seed), at_random(seed + 1000))
        turns = sum(who in ("x", "o") for seat in ("x", "o") for who, _ in done.transcripts[seat])
        if done.rewards["x"]:
            assert done.rewards["x"] == (1 if turns % 2 else -1)
        found.add(done.rewards["x"])
    assert found >= {1.0, -1.0}


async def test_connect_four() -> None:
    assert await values(connect_four, 0, says("1", "1", "1", "1"), says("2")) == (1, -1)
    assert await values(connect_four(rows=6), 0, says("1", "2", "3", "4"), says("5")) == (1, -1)
    done = await played(connect_four(rows=2, columns=2, line=2), 0, says("1"), says("3"))
    assert done.rewards == {"x": 1, "o": -1}
    assert done.transcripts["o"][0][1].startswith("Connect 2, you are o.\n. .\nx .\nReply with exactly one of: 1, 2.")
    full = await values(connect_four(rows=2, columns=2, line=3), 0, says("1", "2"), says("1", "2"))
    assert full == (0, 0)


# --------------------------------------------------------------------------------------------------------------- together


async def test_the_word_is_described_and_guessed() -> None:
    task = Word("river", ("water", "flow"))
    done = await played(describe, task, says("It runs to the sea."), says("The lake", "River."))
    assert done.rewards == {"describer": 1, "guesser": 1} and done.metrics["guessed"] == 1
    assert all("river" not in text for who, text in done.transcripts["guesser"] if who == "user")
    assert await values(describe, task, says("A stream"), says("lake")) == (0, 0)
    assert (await played(describe, task, says("Riverside"), says("river"))).rewards["guesser"] == 1, "another word"


@pytest.mark.parametrize("said", ["A RIVER is one.", "It has water.", "flow, flow"])
async def test_a_description_with_a_forbidden_word_is_none(said: str) -> None:
    done = await played(describe, Word("river", ("water", "flow")), says(said), says("river"))
    assert done.rewards == {"describer": -1} and done.metrics == {"guessed": 0, "forbidden": 1}
    assert done.transcripts["guesser"] == []
