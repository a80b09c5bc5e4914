"""What became of all that was played, folded from the journal's events: the ledger, how old what was trained on was, and
what was dropped beside what was trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from sparring.learner.step import lags
from sparring.rollout import Coordinator, Schedule
from sparring.rollout.bias import Fate, Tally
from sparring.rollout.events import AnyEvent, Opened, Stepped
from sparring.rollout.ledger import LedgerRow

Ages = Mapping[str, Mapping[int, int]]
"""{policy: {how many versions older than the weights they trained: so many action tokens}}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """`fresh` are the ages of tokens on their first use, `again` on later ones; `bias` is the drop-bias table."""

    ledger: tuple[LedgerRow, ...]
    fresh: Ages
    again: Ages
    bias: Mapping[tuple[str, str, Fate], Tally]


class AccountsFolding:
    """The running state of `accounts`."""

    def __init__(self) -> None:
        self._coordinator: Coordinator | None = None
        self._fresh: dict[str, Counter[int]] = {}
        self._again: dict[str, Counter[int]] = {}

    def through(self, events: Iterable[AnyEvent]) -> Iterator[AnyEvent]:
        """The same events, each folded as it passes."""
        for event in events:
            self.add(event)
            yield event

    def add(self, event: AnyEvent) -> None:
        """Fold one event, in the journal's order. The first must be `Opened`."""
        if isinstance(event, Opened):
            self._coordinator = Coordinator(msgspec.convert(event.run["schedule"], Schedule))
            return
        assert self._coordinator is not None, f"{event!r} came before the run's settings"
        if isinstance(event, Stepped):
            batch = self._coordinator.batches[event.policy]
            for counts, units in ((self._fresh, batch.units), (self._again, batch.again)):
                drawn = [trajectory for unit in units for trajectory in unit.trajectories]
                counts.setdefault(event.policy, Counter()).update(lags(batch, drawn).tolist())
        self._coordinator.apply(event)

    def result(self) -> Accounts | None:
        """None where the run never began."""
        if self._coordinator is None:
            return None
        return Accounts(
            ledger=self._coordinator.ledger.table(),
            fresh={policy: dict(sorted(counts.items())) for policy, counts in self._fresh.items()},
            again={policy: dict(sorted(counts.items())) for policy, counts in self._again.items() if counts},
            bias=self._coordinator.bias.table(),
        )


def accounts(events: Iterable[AnyEvent]) -> Accounts | None:
    """Fold a run's events; None where there are none."""
    folding = AccountsFolding()
    for event in events:
        folding.add(event)
    return folding.result()
