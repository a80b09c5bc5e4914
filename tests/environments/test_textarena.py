"""TextArena's games as ours: of one, two and more players, each with chance of its own whoever plays beside it."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from sparring import Episodes, Lineup, Policy, Run, ScriptedModels, check_environment, rae
from sparring.agents import Action, Scripted
from sparring.environments import Conversation, Reply, Request, Turn
from sparring.environments.textarena import Chance, TextArenaEnvironment, textarena_environment
from sparring.environments.textarena_extra import textarena
from sparring.errors import SettingError
from sparring.learner import train_async
from sparring.rollout import Finished, MemorySegments, play
from sparring.rollout.events import Ended
from tests.learner.worlds import events_of

Says = Callable[[Conversation], str]


def turn(conversation: Conversation) -> int:
    return sum(isinstance(entry, Turn) for entry in conversation.entries)


def hit_then_stand(conversation: Conversation) -> str:
    return "[stand]" if turn(conversation) % 2 else "[hit]"


def roll_twice(conversation: Conversation) -> str:
    return "[hold]" if turn(conversation) % 3 == 2 else "[roll]"


def call_or_bid(conversation: Conversation) -> str:
    return "[Call]" if turn(conversation) else "[Bid: 1, 3]"


def game(name: str, players: int, **settings: Any) -> TextArenaEnvironment:
    return textarena_environment(name, seats=[f"player{n}" for n in range(players)], settings=settings)


BLACKJACK, PIG, LIARS = game("Blackjack-v0", 1), game("PigDice-v0", 2), game("LiarsDice-v0", 3)
GAMES = [(BLACKJACK, hit_then_stand), (PIG, roll_twice), (LIARS, call_or_bid)]


async def played(environment: TextArenaEnvironment, task: int, says: Says) -> Finished:
    return await play(environment, task, Lineup({seat: Scripted(says) for seat in environment.seats}))


def told(done: Finished, seat: str) -> list[str]:
    return [text for who, text in done.transcripts[seat] if who == "user"]


# ------------------------------------------------------------------------------------------------------- the same game


@pytest.mark.parametrize(("environment", "says"), GAMES, ids=["one player", "two players", "three players"])
@pytest.mark.parametrize("task", range(2))
async def test_it_is_textarena_s_game(environment: TextArenaEnvironment, says: Says, task: int) -> None:
    """The same replies in the game itself, from the same chance: the same rewards, as often asked."""
    names = dict(enumerate(environment.seats))
    turns = dict.fromkeys(names, 0)
    with Chance(task).put_in():
        theirs: Any = textarena.make(environment.id)
        theirs.reset(num_players=len(names), seed=task)
        over = False
        while not over:
            mover, _ = theirs.get_observation()
            over, _ = theirs.step(action=_said(says, turns[mover]))
            turns[mover] += 1
        rewards, _ = theirs.close()
    done = await played(environment, task, says)
    assert done.rewards == {names[number]: pytest.approx(reward) for number, reward in rewards.items()}
    assert done.metrics["length"] == sum(turns.values()) > len(names)


def _said(says: Says, turns: int) -> str:
    """What a script says after so many turns."""
    known: dict[Says, str] = {
        hit_then_stand: ("[hit]", "[stand]")[turns % 2],
        roll_twice: ("[roll]", "[roll]", "[hold]")[turns % 3],
        call_or_bid: ("[Bid: 1, 3]", "[Call]")[min(turns, 1)],
    }
    return known[says]


async def test_each_seat_is_told_what_is_new_and_not_its_own_replies() -> None:
    ours = textarena_environment("TicTacToe-v0", seats=("nought", "cross"))
    done = await played(
        ours, 0, lambda conversation: f"[{3 * turn(conversation) + (conversation.place.seat == 'cross')}]"
    )
    assert done.rewards == {"nought": 1.0, "cross": -1.0}
    assert done.metrics == {"length": 5.0, "forfeited": 0.0}
    first, second, third = told(done, "nought")
    assert first.startswith("[GAME] You are Player 0 in Tic Tac Toe.") and "[Player 1] [1]" in second
    assert "Your goal" not in second + third and "[Player 0] [0]" not in second + third
    assert len(told(done, "cross")) == 2


async def test_what_is_no_move_is_the_game_s_to_judge() -> None:
    """One more try is allowed, and said; after that the other wins."""
    ours = textarena_environment("TicTacToe-v0", seats=("nought", "cross"))
    done = await played(ours, 0, lambda conversation: "well")
    assert done.rewards == {"nought": -1.0, "cross": 1.0} and done.metrics == {"length": 2.0, "forfeited": 1.0}
    assert "attempted an invalid move" in told(done, "nought")[1]


# ----------------------------------------------------------------------------------------------------------- chance


class Slow:
    """Replies as a script does, when others have had their turn."""

    def __init__(self, says: Says, waits: int) -> None:
        self._says, self._waits = says, waits

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        for _ in range(self._waits):
            await anyio.lowlevel.checkpoint()
        random.random()  # somebody else draws too
        np.random.random()
        return Action(reply=Reply(text=self._says(conversation)))

    def context_left(self, conversation: Conversation) -> int:
        return 100_000


async def beside_each_other(games: Sequence[tuple[TextArenaEnvironment, Says]], task: int) -> list[Finished]:
    """All at once, each with its own pace."""
    found: dict[int, Finished] = {}

    async def one(number: int, environment: TextArenaEnvironment, says: Says) -> None:
        lineup = Lineup({seat: Slow(says, number + 1) for seat in environment.seats})
        found[number] = await play(environment, task, lineup)

    async with anyio.create_task_group() as group:
        for number, (environment, says) in enumerate(games):
            group.start_soon(one, number, environment, says)
    return [found[number] for number in range(len(games))]


PAIRS = [GAMES[:2], [GAMES[1], GAMES[1]], [GAMES[2], GAMES[0]]]


@pytest.mark.parametrize("pair", PAIRS)
async def test_games_beside_each_other_are_the_games_alone(pair: list[tuple[TextArenaEnvironment, Says]]) -> None:
    alone = [await played(environment, 3, says) for environment, says in pair]
    assert await beside_each_other(pair, 3) == alone
    assert await beside_each_other(pair[::-1], 3) == alone[::-1]
    other = [await played(environment, 4, says) for environment, says in pair]
    assert all(one.transcripts != different.transcripts for one, different in zip(alone, other, strict=True))


class Shared(Chance):
    """The planted defect: a game draws from the generators that everyone has."""

    @contextmanager
    def put_in(self) -> Iterator[None]:
        yield


class Careless(TextArenaEnvironment):
    def chance(self, task: int) -> Chance:
        random.seed(task)
        return Shared(task)


async def test_without_chance_of_their_own_they_would_not_be() -> None:
    games = [(Careless(id=one.id, seats=one.seats), says) for one, says in GAMES[:2]]
    alone = [await played(environment, 3, says) for environment, says in games]
    assert alone == [await played(environment, 3, says) for environment, says in games], "alone they repeat"
    assert await beside_each_other(games, 3) != alone


async def test_nobody_else_s_chance_is_touched() -> None:
    random.seed(1)
    np.random.seed(1)
    want = [random.random() for _ in range(3)], np.random.random(3).tolist()
    random.seed(1)
    np.random.seed(1)
    found: tuple[list[float], list[float]] = ([], [])
    for environment, says in GAMES:
        found[0].append(random.random())
        found[1].append(float(np.random.random()))
        await played(environment, 0, says)
        game("Blackjack-v0", 1)
    assert found == want


def test_chance_is_given_back_where_a_game_breaks() -> None:
    before = random.getstate()
    chance = Chance(0)
    with pytest.raises(ZeroDivisionError), chance.put_in():
        first = random.random()
        raise ZeroDivisionError
    assert random.getstate() == before
    with chance.put_in():
        assert random.random() != first, "it goes on from where it was"


# -------------------------------------------------------------------------------------------------- runs, the contract


async def test_policies_train_in_it(tmp_path: Any) -> None:
    crossing = Scripted(lambda conversation: f"[{turn(conversation)}]")
    run = Run(
        name="arena",
        train=Episodes(
            textarena_environment("TicTacToe-v0", seats=("nought", "cross")),
            range(9),
            Lineup({"nought": "one", "cross": crossing}),
        ),
        policies={"one": Policy("m", rae())},
        steps=2,
        groups_per_step=2,
        group_size=2,
        backend=ScriptedModels(),
        folder=tmp_path,
    )
    store = MemorySegments()
    assert await train_async(run, store=store)
    ends = [event for event in events_of(store) if isinstance(event, Ended)]
    assert len(ends) == 8 and all(event.metrics["forfeited"] == 1.0 for event in ends), "its replies are no moves"


@pytest.mark.parametrize("environment", [BLACKJACK, LIARS, game("KuhnPoker-v0", 2)])
def test_it_keeps_the_contract(environment: TextArenaEnvironment) -> None:
    """In another process, beside other episodes, with hostile replies."""

    async def check() -> Any:
        return await check_environment(environment, range(3), count=3)

    found = anyio.run(check)
    assert found.passed, str(found)


@pytest.mark.parametrize(
    ("name", "seats", "settings", "said"),
    [
        ("Nothing-v0", ("a",), {}, r"textarena.make\('Nothing-v0'.*not found in registry"),
        ("TicTacToe-v0", ("a", "b", "c"), {}, "with 3 players: The number of players has to be 2, received 3"),
        ("Blackjack-v0", ("a",), {"speed": 3}, "'speed'"),
        ("Debate-v0", ("a", "b"), {}, "OPENROUTER_API_KEY"),
        ("Blackjack-v0", (), {}, "give a different name to each player"),
        ("PigDice-v0", ("a", "a"), {}, "give a different name to each player"),
    ],
)
def test_what_cannot_be_is_refused_at_once(name: str, seats: tuple[str, ...], settings: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        textarena_environment(name, seats=seats, settings=settings)


def test_everything_that_decides_is_described() -> None:
    ours = game("Bandit-v0", 1, num_turns=3)
    assert ours.described()["settings"] == {"num_turns": 3} and ours.described()["id"] == "Bandit-v0"
    assert ours.fingerprint()["textarena"] == textarena.__version__
    again = pickle.loads(pickle.dumps(ours))
    assert again == ours and hash(again) == hash(ours) and ours != game("Bandit-v0", 1)


def test_without_the_package_it_is_named() -> None:
    lines = "import sys; sys.modules['textarena'] = None; import sparring.environments.textarena"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert "pip install 'sparring[textarena]'" in done.stderr
