"""How everything in a run that holds or waits stands, in one place: for the metrics, and for the report of a stall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

from sparring.learner.versions import VersionStatistics
from sparring.rollout.budget import BudgetStatistics
from sparring.rollout.buffer import BufferStatistics
from sparring.rollout.events import Stepped, Timed
from sparring.rollout.journal import JournalStatistics
from sparring.rollout.loop_watch import LoopStatistics
from sparring.rollout.slots import SlotStatistics

PREFIX = "run/"
"""What the names of these figures begin with among a step's figures of the clock, as in `run/slots/waiting`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherStatistics:
    """Events that the watchers have still to be told of, and how many hold up admission."""

    untold: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """One moment of a run. `budget` and `versions` are by policy; `backend` is what `Backend.statistics` says."""

    loop: LoopStatistics
    slots: SlotStatistics
    buffer: BufferStatistics
    journal: JournalStatistics
    watchers: WatcherStatistics
    budget: Mapping[str, BudgetStatistics]
    versions: Mapping[str, VersionStatistics]
    backend: Mapping[str, float]

    def figures(self, policy: str) -> dict[str, float]:
        """Every number by its name, `run/PART/NAME`; of budget and versions, those of the policy."""
        parts = self._shared() | {"budget": asdict(self.budget[policy]), "versions": asdict(self.versions[policy])}
        return {
            f"{PREFIX}{part}/{name}": float(value)
            for part, values in parts.items()
            for name, value in values.items()
            if isinstance(value, int | float)
        }

    @property
    def lines(self) -> list[str]:
        """What a person reads: a line for each part and policy, and one for each call that held the event loop."""
        parts = self._shared()
        for policy in self.budget:
            parts[f"budget of {policy}"] = asdict(self.budget[policy])
            parts[f"versions of {policy}"] = asdict(self.versions[policy])
        return [
            *(
                f"{part}: {', '.join(f'{name} {_text(value)}' for name, value in of.items())}"
                for part, of in parts.items()
            ),
            *map(str, self.loop.held),
        ]

    def _shared(self) -> dict[str, dict[str, Any]]:
        loop = {name: value for name, value in asdict(self.loop).items() if name != "held"}
        return {
            "loop": loop | {"held": len(self.loop.held)},
            "slots": asdict(self.slots),
            "buffer": asdict(self.buffer),
            "journal": asdict(self.journal),
            "watchers": asdict(self.watchers),
            **({"backend": dict(self.backend)} if self.backend else {}),
        }


def timed(stepped: Stepped, began: float, ready: float, left: float, standing: RunStatistics) -> Timed:
    """The clock's figures of a step that is published now: it `began` to wait for its units, and was `ready` to train them, at
    these times of the monotonic clock; `left` seconds are left of the run. With them, how everything stands."""
    now = monotonic()
    seconds = now - began
    tokens = stepped.metrics["action_tokens"] + stepped.metrics.get("reused/action_tokens", 0.0)
    timing = {
        "seconds": seconds,
        "train_seconds": now - ready,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "idle": (ready - began) / seconds if seconds else 0.0,
        "left_seconds": left,
        **standing.figures(stepped.policy),
    }
    return Timed(policy=stepped.policy, step=stepped.step, timing=timing)


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"
