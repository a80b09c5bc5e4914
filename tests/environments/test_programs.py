"""Programs of the kind that environments are for, each played by a script: a maths problem, a game of cards, a prover with a
sneaky role, and somebody else's environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import gymnasium
import pytest

from sparring.environments import (
    Conversation,
    MathVerifier,
    Message,
    Outcome,
    Request,
    Score,
    Seat,
    environment,
    gather,
    settle,
)
from sparring.errors import RewardError
from tests.environments.conftest import played, texts


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str


verify = MathVerifier()


def last_told(conversation: Conversation) -> str:
    last = conversation.entries[-1]
    assert isinstance(last, Message)
    return last.text


# -------------------------------------------------------------------------------------------------- a maths problem


@environment(hidden={"*": ("answer",)})
async def gsm8k(task: Problem, solver: Seat) -> Score:
    reply = await solver.ask(f"{task.question}\nPut the final answer in \\boxed{{}}.")
    return await verify(reply.text, task.answer)


@pytest.mark.parametrize("said, value", [("so \\boxed{4}.", 1.0), ("so \\boxed{5}.", 0.0), ("four", 0.0)])
async def test_a_maths_problem(said: str, value: float) -> None:
    returned, seats = await played(gsm8k, Problem("2+2?", "4"), lambda *_: said)
    settled = settle(returned, seats, trained=["solver"])
    assert list(settled.returns.values()) == [value]
    assert settled.metrics == {"solver/answered": float("boxed" in said)}


# -------------------------------------------------------------------------------------------------- a game of cards


@dataclass(frozen=True)
class Deal:
    first: str
    second: str


LEGAL = {"": ("check", "bet"), "check": ("check", "bet"), "bet": ("fold", "call"), "check-bet": ("fold", "call")}


@environment(hidden={"first": ("second",), "second": ("first",)}, zero_sum=("first", "second"))
async def kuhn(deal: Deal, first: Seat, second: Seat) -> dict[Seat, float]:
    for seat, card in ((first, deal.first), (second, deal.second)):
        seat.system(f"Kuhn poker with cards J, Q, K. Your card is {card}.")
    history = ""
    while history in LEGAL:
        mover, other = (second, first) if history in ("check", "bet") else (first, second)
        move = await mover.pick(f"Moves so far: {history or 'none'}.", LEGAL[history])
        if move is None:  # still illegal after one retry: forfeit
            return {mover: -1.0, other: 1.0}
        history = f"{history}-{move}".lstrip("-")
    win = 1.0 if "JQK".index(deal.first) > "JQK".index(deal.second) else -1.0
    value = {"check-check": win, "bet-fold": 1.0, "check-bet-fold": -1.0}.get(history, 2 * win)
    return {first: value, second: -value}


def moves(*said: str) -> Callable[[Conversation, Request], str]:
    rest = iter(said)
    return lambda conversation, request: next(rest)


@pytest.mark.parametrize(
    "said, value",
    [
        (("check", "check"), 1.0),
        (("bet", "fold"), 1.0),
        (("bet", "call"), 2.0),
        (("check", "bet", "fold"), -1.0),
        (("check", "bet", "call"), 2.0),
        (("Bet.", " CALL"), 2.0),
        (("what", "raise"), -1.0),
        (("what", "bet", "fold"), 1.0),
        (("check", "what", "what"), 1.0),
    ],
)
async def test_a_game_of_cards(said: tuple[str, ...], value: float) -> None:
    returned, (first, second) = await played(kuhn, Deal("K", "J"), moves(*said))
    settled = settle(returned, [first, second], trained=["first", "second"], zero_sum=kuhn.zero_sum)
    assert settled.returns == {first: value, second: -value}
    assert settled.metrics == {"illegal": float(sum(word in ("what", "raise") for word in said))}
    shown = "\n".join(texts(first.conversation))
    assert "card is K" in shown
    assert "card is J" not in shown


async def test_every_random_game_ends_and_adds_up_to_nothing() -> None:
    results: Counter[float] = Counter()
    for seed in range(200):
        chance = Random(seed)

        def say(conversation: Conversation, request: Request, chance: Random = chance) -> str:
            options = last_told(conversation).rpartition(": ")[2].removesuffix(".").split(", ")
            return chance.choice([*options, "hm"])

        returned, seats = await played(kuhn, Deal(*chance.sample("JQK", 2)), say)
        settled = settle(returned, seats, trained=["first", "second"], zero_sum=kuhn.zero_sum)
        results[settled.returns.get(seats[0], 0.0)] += 1
    assert set(results) == {-2.0, -1.0, 1.0, 2.0}


# ------------------------------------------------------------------------------------------ a prover with a sneaky role

ROLES = {"helpful": "Solve it.", "sneaky": "Give a convincing solution whose final answer is WRONG."}


@environment(hidden={"*": ("answer",)}, headline="verifier_accuracy")
async def game(task: Problem, prover: Seat, verifier: Seat) -> Outcome:
    provers, checks = [prover.fork(role) for role in ROLES], [verifier.fork(role) for role in ROLES]
    proofs = await gather(*(p.ask(f"{ROLES[p.label]}\n{task.question}\nEnd with \\boxed{{}}.") for p in provers))
    right = [float(s) == 1.0 for s in await gather(*(verify(p.text, task.answer) for p in proofs))]
    said = await gather(
        *(c.pick(f"{task.question}\n{p.text}\nCorrect?", ("yes", "no")) for c, p in zip(checks, proofs, strict=True))
    )
    yes = [s == "yes" for s in said]
    rewards = {p: float(y and r == (p.label == "helpful")) for p, y, r in zip(provers, yes, right, strict=True)}
    rewards |= {c: float(y == r) for c, y, r in zip(checks, yes, right, strict=True)}
    accuracy = sum(y == r for y, r in zip(yes, right, strict=True)) / 2
    return Outcome(rewards, metrics={"verifier_accuracy": accuracy, "fooled": float(yes[1] and not right[1])})


def prove(conversation: Conversation, request: Request) -> str:
    told = last_told(conversation)
    if conversation.place.seat == "prover":
        return "\\boxed{5}" if "WRONG" in told else "\\boxed{4}"
    return "yes"


async def test_a_prover_with_a_sneaky_role() -> None:
    for _ in range(10):
        returned, seats = await played(game, Problem("2+2?", "4"), prove)
        settled = settle(returned, seats, trained=["prover", "verifier"])
        assert {seat.key: value for seat, value in settled.returns.items()} == {
            "prover/1": 1.0,
            "prover/2": 1.0,
            "verifier/1": 1.0,
            "verifier/2": 0.0,
        }
        assert [seat.label for seat in settled.returns] == ["helpful", "sneaky"] * 2
        assert settled.metrics == {"verifier_accuracy": 0.5, "fooled": 1.0, "illegal": 0.0}


async def test_a_role_without_a_reward_is_noticed() -> None:
    returned, seats = await played(game, Problem("2+2?", "4"), prove)
    assert isinstance(returned, Outcome)
    assert isinstance(returned.rewards, dict)
    without = {seat: value for seat, value in returned.rewards.items() if seat.label != "sneaky"}
    with pytest.raises(RewardError, match=r"Seat\('prover/2'\) is trained and spoke"):
        settle(without, seats, trained=["prover"])


# ------------------------------------------------------------------------------------------ somebody else's environment


@environment
async def blackjack(seed: int, player: Seat) -> None:  # returns nothing: the turn rewards are the reward
    env: Any = gymnasium.make("Blackjack-v1")
    (total, dealer, ace), _ = env.reset(seed=seed)
    over = False
    while not over:
        question = f"Your sum {total}, usable ace {bool(ace)}, dealer shows {dealer}. Stick or hit?"
        move = await player.pick(question, ("stick", "hit"))
        if move is None:
            player.reward(-1.0)
            return
        (total, dealer, ace), reward, terminated, truncated, _ = env.step(int(move == "hit"))
        player.reward(float(reward))
        over = terminated or truncated


def careful(conversation: Conversation, request: Request) -> str:
    total = int(last_told(conversation).split("sum ")[1].split(",")[0])
    return "Hit." if total < 17 else "Stick."


async def test_somebody_elses_environment() -> None:
    values = []
    for seed in range(30):
        returned, (player,) = await played(blackjack, seed, careful)
        assert returned is None
        settled = settle(returned, [player], trained=["player"])
        values.append(settled.returns[player])
        assert len(player.turn_rewards) == player.picks
    assert set(values) == {-1.0, 0.0, 1.0}
    again, (player,) = await played(blackjack, 3, careful)
    assert settle(again, [player], trained=["player"]).returns == {player: values[3]}


async def test_who_cannot_be_understood_loses() -> None:
    returned, (player,) = await played(blackjack, 0, lambda *_: "double down")
    settled = settle(returned, [player], trained=["player"])
    assert settled.returns == {player: -1.0}
    assert settled.metrics == {"illegal": 2.0}
