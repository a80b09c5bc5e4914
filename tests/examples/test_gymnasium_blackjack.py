"""examples/gymnasium_blackjack.py: Gymnasium's rewards become those of the turns, a task is a deal, and a short run."""

from pathlib import Path

import pytest

from sparring import Episodes, Lineup, Scripted, play
from sparring.rollout import Finished
from sparring.rollout.events import Ended
from tests.examples.short import evaluations_of, example, legal, shortened, steps_of, trained

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra games")
blackjack = example("gymnasium_blackjack")


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


async def test_a_short_run(tmp_path: Path) -> None:
    held_out = Episodes(blackjack.blackjack, range(100_000, 100_005))
    run = shortened(blackjack.run, legal, tmp_path, groups_per_step=3, group_size=4, held_out=held_out)
    events = await trained(run)
    for step in steps_of(events):
        assert -1 <= step.metrics["reward"] <= 1
        assert step.metrics["trajectories"] == 12
    ended = [event for event in events if isinstance(event, Ended)]
    assert all(not event.fault for event in ended)
    assert all(result.turn_rewards for event in ended for result in event.results), "the reward came turn by turn"
    assert len(evaluations_of(events)) == 3
