"""Kuhn poker by self-play: a policy learns both seats against its past selves, with a running baseline for each seat.

    python examples/kuhn.py    what `sparring fit examples/kuhn.py`, then `sparring train examples/kuhn.py` do

SmolLM2 says a legal move in 0.3 % of its replies, so that nothing could be learned: first it imitates every way a game can go.
Seed 0, 12 minutes on 2 cores: from -0.02 +- 0.22 chips a hand against the policy that it begins as to 0.42 +- 0.22.
A player antes 1 chip; who wins a bet that is called gets 2. Who says no legal move, asked twice, forfeits as if it folded: -1,
the other 1. Played perfectly, the first seat loses 1/18 chip a game.
"""

import sys
from dataclasses import dataclass, replace
from itertools import permutations

from sparring import (
    Episodes,
    Fit,
    Frozen,
    League,
    Lineup,
    Lora,
    Played,
    Policy,
    Run,
    Sampling,
    Scripted,
    Seat,
    environment,
    rae,
)
from sparring.cli.main import main
from sparring.environments import Conversation, Turn

MODEL = "smollm2-135m-instruct"
LEGAL = {"": ("check", "bet"), "check": ("check", "bet"), "bet": ("fold", "call"), "check-bet": ("fold", "call")}


@dataclass(frozen=True)
class Deal:
    first: str
    second: str


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


deals = [Deal(first, second) for first, second in permutations("JQK", 2)]
seats = [Lineup({"first": "alice", "second": League("alice")}), Lineup({"first": League("alice"), "second": "alice"})]


def say(*moves: str) -> Scripted:
    """A player who makes these moves, one after the other."""

    def script(seen: Conversation) -> str:
        return moves[sum(isinstance(entry, Turn) for entry in seen.entries)]

    return Scripted(script)


plays = ["check-check", "check-bet-fold", "check-bet-call", "bet-fold", "bet-call"]
scripts = [Lineup({"first": say(*play.split("-")[::2]), "second": say(*play.split("-")[1::2])}) for play in plays]
lora = Lora(rank=16, alpha=32)
warm = Fit(
    name="kuhn-warm",
    model=MODEL,
    train=Played(Episodes(kuhn, deals, scripts)),
    lora=lora,
    learning_rate=4e-4,
    epochs=10,
)

algorithm = replace(rae(), entropy=0.05)  # else it soon makes one move, whatever the cards
start = str(warm.path / "final")
run = Run(
    name="kuhn",
    train=Episodes(kuhn, deals, seats),
    policies={"alice": Policy(MODEL, algorithm, lora=lora, start=start, sampling=Sampling(max_tokens=8))},
    group_size=1,
    groups_per_step=64,
    steps=100,
    evaluate_every=25,
    held_out=Episodes(kuhn, deals * 32, Lineup({"first": "alice", "second": Frozen("alice@0")}), seen=True),
)

if __name__ == "__main__":  # with progress, and a page with the plots at its end
    fitted = 0 if (warm.path / "final").exists() else main(["fit", __file__])
    sys.exit(fitted or main(["train", __file__, *sys.argv[1:]]))
