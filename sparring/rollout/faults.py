"""What becomes of an episode that fails: it is played again, scored, or dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import isfinite

from sparring.errors import SettingError
from sparring.rollout.events import QUARANTINED, SET_ASIDE, Ended, Retried

UNJUDGED = "NotJudged"
"""The kind of an episode that did not fail, but for a verdict that is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What becomes of an episode that fails: its environment or a player raises, or it runs past `episode_deadline`.

    retries  how often it is played again, from its beginning and with the same seeds: what failed by what was said fails
             again, so that nothing is selected by luck; what failed by a service that was away does not
    score    the return of every trained seat that spoke, where no retry is left; None: nothing of it is trained on

    Every failed attempt counts for the run's `max_faults`, and so does an episode of which a seat could not be judged
    (`Score(error=...)`): that seat is not trained on. An episode that ended the process as often as it may is dropped.
    """

    retries: int = 0
    score: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.retries, int) or isinstance(self.retries, bool) or self.retries < 0:
            raise SettingError(f"Faults(retries={self.retries!r}): must be a whole number, at least 0")
        number = isinstance(self.score, int | float) and not isinstance(self.score, bool) and isfinite(self.score)
        if self.score is not None and not number:
            raise SettingError(f"Faults(score={self.score!r}): must be None (it is dropped) or a finite number")

    def retries_after(self, ended: Ended) -> bool:
        """Whether the attempt that ended like this is not the last."""
        return is_fault(ended) and ended.fault != QUARANTINED and ended.attempt < self.retries

    def broken_by(self, event: Ended | Retried) -> str:
        """How a journaled end differs from what was to become of it, as the end of a sentence; '' where it does not."""
        if isinstance(event, Retried):
            return "" if event.attempt < self.retries else f"was played again after attempt {event.attempt}"
        if self.retries_after(event):
            return f"was not played again after attempt {event.attempt}"
        wanted = self.score if is_fault(event) and event.fault != QUARANTINED else None
        if event.fault and any(result.value != wanted for result in event.results):
            return f"failed and got {[result.value for result in event.results]!r}"
        return ""


def is_fault(ended: Ended) -> bool:
    """Whether it failed; what was set aside did not."""
    return bool(ended.fault) and ended.fault not in SET_ASIDE


@dataclass(slots=True, kw_only=True)
class FaultCounts:
    """Attempts at episodes, those of them that failed or could not be judged, by kind, and what the first of each kind said.
    `retried` were played again."""

    attempts: int = 0
    retried: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, event: Ended | Retried) -> None:
        self.attempts += 1
        self.retried += isinstance(event, Retried)
        if isinstance(event, Retried) or is_fault(event):
            self.kinds[event.fault] += 1
            self.details.setdefault(event.fault, event.detail)
        elif reasons := [result.unjudged for result in event.results if result.unjudged]:
            self.kinds[UNJUDGED] += 1
            self.details.setdefault(UNJUDGED, reasons[0])
