"""examples/gymnasium_blackjack.py: Gymnasium's rewards become those of the turns, a task is a deal, and a short run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean

import anyio
import pytest

from sparring import Episodes, Lineup, Scripted, ScriptedModels, play
from sparring.learner import fit_async
from sparring.rollout import Finished
from sparring.rollout.events import Ended
from tests.examples.short import evaluations_of, example, legal, shortened, steps_of, trained

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra games")
blackjack = example("gymnasium_blackjack")

Strategy = Callable[[int, int, bool], bool]
"""(sum, what the dealer shows, whether there is a usable ace) -> whether it hits."""


def basic(total: int, dealer: int, ace: bool) -> bool:
    """The best that can be done with two moves and a fresh card each time (E. O. Thorp, Beat the Dealer, 1962)."""
    if ace:
        return total < 18 or (total == 18 and dealer in (1, 9, 10))
    if total in range(12, 17):
        return dealer in (1, 7, 8, 9, 10) or (total == 12 and dealer in (2, 3))
    return total < 12


def worth(strategy: Strategy, seeds: range) -> float:
    """Its mean return in Gymnasium itself."""
    env, returns = gymnasium.make("Blackjack-v1"), list[float]()
    for seed in seeds:
        (total, dealer, ace), _ = env.reset(seed=seed)
        over, reward = False, 0.0
        while not over:
            (total, dealer, ace), reward, over, _, _ = env.step(int(strategy(total, dealer, bool(ace))))
        returns.append(float(reward))
    return fmean(returns)


def test_what_play_is_worth() -> None:
    """What the example compares its figures with: on 10,000 hands, with a standard error of 0.01, and on the held-out ones."""
    coin = Random(0)
    held_out = blackjack.run.held_out.tasks
    strategies: dict[str, Strategy] = {
        "coin": lambda total, dealer, ace: coin.random() < 0.5,
        "stick": lambda total, dealer, ace: False,
        "as the dealer": lambda total, dealer, ace: total < 17,
        "basic": basic,
    }
    many = {name: worth(strategy, range(10_000)) for name, strategy in strategies.items()}
    expected = {"coin": -0.40, "stick": -0.18, "as the dealer": -0.07, "basic": -0.04}
    assert many == pytest.approx(expected, abs=0.03)
    few = {name: worth(strategy, held_out) for name, strategy in strategies.items()}
    assert few == pytest.approx(expected, abs=0.1), "the held-out hands are ordinary ones"


async def game(seed: int, move: str) -> Finished:
    return await play(blackjack.blackjack, seed, Lineup({"player": Scripted(lambda conversation: move)}))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("move", ["stick", "hit"])
async def test_it_is_gymnasium_s_game(seed: int, move: str) -> None:
    """The same moves in the environment itself give the same reward after the same number of them."""
    env = gymnasium.make("Blackjack-v1")
    env.reset(seed=seed)
    total, over, turns = 0.0, False, 0
    while not over:
        _, reward, terminated, truncated, _ = env.step(int(move == "hit"))
        total, over, turns = total + float(reward), terminated or truncated, turns + 1
    finished = await game(seed, move)
    assert finished.rewards == {"player": total}
    assert len(finished.transcripts["player"]) == 2 * turns


async def test_a_task_is_a_deal() -> None:
    one, again, other = [(await game(seed, "stick")).transcripts["player"][0] for seed in (3, 3, 4)]
    assert one == again != other
    assert one[1].startswith("Your sum ")


async def test_who_makes_no_legal_move_loses() -> None:
    finished = await game(3, "double")
    assert finished.rewards == {"player": -1}
    assert finished.metrics == {"illegal": 2}


async def test_the_warm_start_teaches_both_words_and_nothing_of_the_game() -> None:
    """What it imitates: each word half of the time, with a low sum and with a high one."""
    said: dict[bool, list[str]] = {True: [], False: []}
    (lineup,) = blackjack.warm.train.episodes.lineups
    for seed in blackjack.warm.train.episodes.tasks:
        finished = await play(blackjack.blackjack, seed, lineup)
        assert finished.metrics["illegal"] == 0
        lines = [text for _, text in finished.transcripts["player"]]
        for told, word in zip(lines[::2], lines[1::2], strict=True):
            total = int(told.partition(",")[0].removeprefix("Your sum "))
            said[total > 14].append(word)
    for words in said.values():
        assert len(words) > 60
        assert 0.35 < words.count("hit") / len(words) < 0.65


async def test_a_fit_then_a_run(tmp_path: Path) -> None:
    fit = replace(blackjack.warm, backend=ScriptedModels(), folder=tmp_path)
    with anyio.fail_after(60):
        done = await fit_async(fit)
    assert blackjack.run.policies.start == str(blackjack.warm.path / "final")
    policy = replace(blackjack.run.policies, start=str(done.final))
    held_out = Episodes(blackjack.blackjack, range(100_000, 100_005))
    run = shortened(blackjack.run, legal, tmp_path, policies=policy, groups_per_step=3, group_size=4, held_out=held_out)
    events = await trained(run)
    for step in steps_of(events):
        assert -1 <= step.metrics["reward"] <= 1
        assert step.metrics["trajectories"] == 12
    ended = [event for event in events if isinstance(event, Ended)]
    assert all(not event.fault for event in ended)
    assert all(result.turn_rewards for event in ended for result in event.results), "the reward came turn by turn"
    assert len(evaluations_of(events)) == 3
