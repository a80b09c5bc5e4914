"""Blackjack from Gymnasium, played in words: the environment's rewards are the rewards of the turns.

Needs the extra `games`. A task is a seed: the episodes of a group are dealt the same cards, and are compared.
"""

import sys

import gymnasium

from sparring import Episodes, Policy, Run, Sampling, Seat, environment
from sparring.cli.main import main


@environment
async def blackjack(seed: int, player: Seat) -> None:  # returns nothing: the turn rewards are the reward
    env = gymnasium.make("Blackjack-v1")
    (total, dealer, ace), _ = env.reset(seed=seed)
    over = False
    while not over:
        move = await player.pick(
            f"Your sum {total}, usable ace {bool(ace)}, dealer shows {dealer}. Stick or hit?", ("stick", "hit")
        )
        if move is None:  # still illegal after one retry
            player.reward(-1.0)
            return
        (total, dealer, ace), reward, terminated, truncated, _ = env.step(int(move == "hit"))
        player.reward(float(reward))
        over = terminated or truncated


run = Run(
    name="blackjack",
    train=Episodes(blackjack, range(100_000)),
    held_out=Episodes(blackjack, range(100_000, 100_200)),
    policies=Policy("smollm2-135m-instruct", sampling=Sampling(max_tokens=8)),
    steps=100,
)

if __name__ == "__main__":  # the same as `sparring train`: with progress, and a page with the plots at its end
    sys.exit(main(["train", __file__, *sys.argv[1:]]))
