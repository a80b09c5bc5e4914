"""Blackjack from Gymnasium, played in words: the environment's rewards are the rewards of the turns.

    python examples/gymnasium_blackjack.py    what `sparring fit` and then `sparring train` do with this file

Needs the extra `games`. A task is a seed: the episodes of a group are dealt the same cards, and are compared. SmolLM2 says
neither word, so first it imitates a coin. Seed 0, 2 minutes on 2 cores: from -0.47 +- 0.08 a hand, as a coin plays (-0.40), to
-0.18 +- 0.09: within ten steps it learns always to stick (-0.18), and no more; the best strategy has -0.04.
"""

import sys
from random import Random

import gymnasium

from sparring import Episodes, Fit, Lineup, Lora, Played, Policy, Run, Sampling, Scripted, Seat, environment
from sparring.cli.main import main
from sparring.environments import Conversation


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


def coin(conversation: Conversation) -> str:
    """What the script of the warm start says: one of both words, whatever the cards."""
    return Random(conversation.entries[-1].text).choice(("stick", "hit"))


model, lora = "smollm2-135m-instruct", Lora(rank=16, alpha=32)

warm = Fit(
    name="blackjack-warm",
    model=model,
    train=Played(Episodes(blackjack, range(128), Lineup({"player": Scripted(coin)}))),
    lora=lora,
    learning_rate=4e-4,
    epochs=2,
)

run = Run(
    name="blackjack",
    train=Episodes(blackjack, range(100_000)),
    held_out=Episodes(blackjack, range(100_000, 100_400)),
    policies=Policy(
        model,
        start=str(warm.path / "final"),
        lora=lora,
        learning_rate=2e-4,
        sampling=Sampling(max_tokens=8),
    ),
    steps=20,
    group_size=4,
    evaluate_every=20,
)

if __name__ == "__main__":  # with progress, and a page with the plots at its end
    fitted = 0 if (warm.path / "final").exists() else main(["fit", __file__])
    sys.exit(fitted or main(["train", __file__, *sys.argv[1:]]))
