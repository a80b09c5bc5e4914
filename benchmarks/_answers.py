"""What a policy answers when it is asked how it plays, version by version: a watcher of runs whose held-out episodes ask."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.rollout.events import AnyEvent, Evaluated, Stepped


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One evaluation: the headline value of each held-out task, seconds since the run began, and how many moves of the last
    step were none, a game."""

    step: int
    values: Sequence[float]
    seconds: float
    illegal: float


class Answers:
    """A `Watcher`: `found` grows with each evaluation, and `tell`, if given, is called then."""

    def __init__(self, tell: Callable[[Sequence[Answer]], None] | None = None) -> None:
        self.found = list[Answer]()
        self._tell, self._illegal, self._began = tell, 0.0, time.perf_counter()

    def opened(self, run: Mapping[str, Any]) -> None:
        self._began = time.perf_counter()

    def event(self, event: AnyEvent) -> None:
        if isinstance(event, Stepped):
            self._illegal = float(event.metrics.get("environment/illegal", 0.0))
        if isinstance(event, Evaluated):
            values = [float("nan") if value is None else value for value in event.values]
            seconds = time.perf_counter() - self._began
            self.found.append(Answer(step=event.version, values=values, seconds=seconds, illegal=self._illegal))
            if self._tell is not None:
                self._tell(self.found)

    def closed(self) -> None:
        """Nothing is held."""
