"""Two games of one simultaneous move. A task is any number; chance has no part in them."""

from __future__ import annotations

from collections.abc import Sequence

from sparring.environments.environment import environment
from sparring.environments.running import gather
from sparring.environments.seat import Seat


@environment(zero_sum=("even", "odd"))
async def matching_pennies(task: int, even: Seat, odd: Seat) -> dict[Seat, float]:
    """`even` wins where both show the same, `odd` where they do not: 1, and -1 for the other. Who shows no side, asked twice,
    forfeits: -1, the other 1, and 0 for both where both do. In equilibrium each side is shown half of the time."""
    one, other = await _both(
        even, odd, "Matching pennies.", ("you want the same side", "you want the other side"), _SIDES
    )
    if one is None or other is None:
        return _forfeited(even, one, odd, other)
    value = 1.0 if one == other else -1.0
    return {even: value, odd: -value}


@environment(zero_sum=("first", "second"))
async def rock_paper_scissors(task: int, first: Seat, second: Seat) -> dict[Seat, float]:
    """The winner gets 1, the loser -1, both 0 for a tie. Who shows no hand, asked twice, forfeits: -1, the other 1, and 0 for
    both where both do. In equilibrium each is played a third of the time."""
    one, other = await _both(first, second, "Rock, paper, scissors.", ("choose", "choose"), _HANDS)
    if one is None or other is None:
        return _forfeited(first, one, second, other)
    value = (0.0, 1.0, -1.0)[(_HANDS.index(one) - _HANDS.index(other)) % 3]
    return {first: value, second: -value}


_SIDES, _HANDS = ("heads", "tails"), ("rock", "paper", "scissors")


async def _both(
    one: Seat, other: Seat, game: str, wants: Sequence[str], options: Sequence[str]
) -> tuple[str | None, str | None]:
    first, second = await gather(
        one.pick(f"{game} In this round {wants[0]}.", options), other.pick(f"{game} In this round {wants[1]}.", options)
    )
    return first, second


def _forfeited(one: Seat, said: str | None, other: Seat, answered: str | None) -> dict[Seat, float]:
    """Who moved wins; nobody where nobody did."""
    value = float(said is not None) - float(answered is not None)
    return {one: value, other: -value}
