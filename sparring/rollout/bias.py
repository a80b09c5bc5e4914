"""Whom drops hit: trained and dropped play beside each other, by length, reward and task, for each policy and seat.

Whatever is dropped is not dropped at random: deadlines and ages take the long episodes, filters the easy and the hard
tasks. This table shows how far what is trained on differs from what was played.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sparring.rollout.ledger import DropReason

Fate = Literal["trained", "deadline", "retried"] | DropReason
"""What became of one seat's part in one episode. `deadline` is a fault in the ledger, and a column of its own here; `retried`
is a failed attempt at an episode that was played again."""

_MOST_REWARDS = 64
OTHER = "other"


@dataclass(slots=True, kw_only=True)
class Tally:
    """One policy in one seat, for one fate.

    count    conversations (a fork is one of its own), `tokens` their action tokens
    lengths  {n: how many had at least n and less than 2n action tokens}; n is 0 or a power of two
    judged   how many had a reward, `reward` their sum
    rewards  {reward, to three digits: how many}; of very many different ones, the later ones are "other"
    tasks    {(source, index): how many}; an endless source is one task, with index -1
    """

    count: int = 0
    tokens: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    judged: int = 0
    reward: float = 0.0
    rewards: Counter[str] = field(default_factory=Counter)
    tasks: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def mean_length(self) -> float:
        return self.tokens / self.count if self.count else 0.0

    @property
    def mean_reward(self) -> float | None:
        """None where nothing was judged."""
        return self.reward / self.judged if self.judged else None


class DropBias:
    """The table."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str, Fate], Tally] = {}

    def add(
        self, policy: str, seat: str, fate: Fate, *, tokens: int, reward: float | None, task: tuple[int, int]
    ) -> None:
        """One seat's part in one episode; `reward` is None where it has none."""
        tally = self._tallies.setdefault((policy, seat, fate), Tally())
        tally.count += 1
        tally.tokens += tokens
        tally.lengths[1 << tokens.bit_length() - 1 if tokens else 0] += 1
        tally.tasks[task] += 1
        if reward is not None:
            tally.judged += 1
            tally.reward += reward
            name = f"{reward:.3g}"
            known = name in tally.rewards or len(tally.rewards) < _MOST_REWARDS
            tally.rewards[name if known else OTHER] += 1

    def state(self) -> Mapping[tuple[str, str, Fate], Tally]:
        """The table as data, in the order in which it came to be."""
        return self._tallies

    def restore(self, tallies: Mapping[tuple[str, str, Fate], Tally]) -> None:
        """Become what `state` described."""
        self._tallies = dict(tallies)

    def table(self) -> Mapping[tuple[str, str, Fate], Tally]:
        """{(policy, seat, fate): tally}, by name."""
        return dict(sorted(self._tallies.items()))

    @property
    def lines(self) -> list[str]:
        """What a person reads: for each policy and seat that lost something, what was trained and what was dropped."""
        dropped = {(policy, seat) for policy, seat, fate in self._tallies if fate != "trained"}
        lines = []
        for (policy, seat, fate), tally in self.table().items():
            if (policy, seat) in dropped:
                reward = "" if tally.mean_reward is None else f", mean reward {tally.mean_reward:.3g}"
                what = {"trained": "trained", "retried": "failed and played again"}.get(fate, f"dropped ({fate})")
                tasks = f"{len(tally.tasks)} task{'s' * (len(tally.tasks) > 1)}"
                lines.append(
                    f"{policy} in seat {seat}: {what} {tally.count}, of {tasks}, "
                    f"mean length {tally.mean_length:.1f}{reward}"
                )
        return lines
