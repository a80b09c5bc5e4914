"""Kuhn poker by self-play: a policy learns both seats against its past selves, with a running baseline for each seat.

A player antes 1 chip; who wins a bet that is called gets 2. Played perfectly, the first seat loses 1/18 chip a game.
"""

import sys
from dataclasses import dataclass
from itertools import permutations

from sparring import Episodes, Frozen, League, Lineup, Policy, Run, Sampling, Seat, environment, rae
from sparring.cli.main import main

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

run = Run(
    name="kuhn",
    train=Episodes(kuhn, deals, seats),
    policies={"alice": Policy(MODEL, rae(), sampling=Sampling(max_tokens=8))},
    group_size=1,
    steps=300,
    held_out=Episodes(kuhn, deals, Lineup({"first": "alice", "second": Frozen("alice@0")}), seen=True),
)

if __name__ == "__main__":  # the same as `sparring train`: with progress, and a page with the plots at its end
    sys.exit(main(["train", __file__, *sys.argv[1:]]))
