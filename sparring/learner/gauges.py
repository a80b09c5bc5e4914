"""What stops a run that collapses: figures of its steps that leave the bounds which it was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparring.errors import Collapsed, SettingError
from sparring.learner.kinds import finite, whole
from sparring.rollout.events import Stepped


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A figure of each step, deterministic or the engine's, that stops the run where it is `below` or `above` a bound in
    `steps` steps in a row; None: no bound. A step that does not have the figure does not count. Those that tell of a collapse:

    length               action tokens of a trajectory, mean
    distinct             different replies of the step, as a share of all its replies
    entropy              nats per token, estimated from the sampled tokens, where the backend tells it
    environment/illegal  illegal replies of an episode, mean
    won                  share of the games won against players that do not learn (a draw is half)
    won/alice@0          the same against one of them that no league draws, by its name

    `policy`: of which; None: of each.
    """

    figure: str
    below: float | None = None
    above: float | None = None
    steps: int = 3
    policy: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.figure, str) or not self.figure:
            raise SettingError(f"Gauge(figure={self.figure!r}): must be the name of a step's figure, as in 'distinct'")
        for name in ("below", "above"):
            value = getattr(self, name)
            if value is not None and not finite(value):
                raise SettingError(f"Gauge({name}={value!r}) of {self.figure!r}: must be None or a finite number")
        if self.below is None and self.above is None:
            raise SettingError(f"Gauge({self.figure!r}) has no bound: set below, above or both")
        if not (whole(self.steps) and self.steps >= 1):
            raise SettingError(f"Gauge(steps={self.steps!r}) of {self.figure!r}: must be a whole number, at least 1")

    def broken_by(self, value: float) -> str:
        """Which bound it breaks, in words; "" for none."""
        if self.below is not None and value < self.below:
            return f"below {self.below}"
        return f"above {self.above}" if self.above is not None and value > self.above else ""


class Gauges:
    """Counts from where it was made: a run that is resumed after a stop goes on, and is stopped again by as many steps."""

    def __init__(self, gauges: Sequence[Gauge]) -> None:
        self._gauges = gauges
        self._seen: dict[tuple[int, str], list[float]] = {}

    def check(self, stepped: Stepped) -> None:
        """Raises `Collapsed` where a figure of the step, which is journaled, is out of bounds once too often."""
        figures = {**stepped.engine, **stepped.metrics}
        for number, gauge in enumerate(self._gauges):
            if gauge.figure not in figures or gauge.policy not in (None, stepped.policy):
                continue
            value, seen = figures[gauge.figure], self._seen.setdefault((number, stepped.policy), [])
            broken = gauge.broken_by(value)
            if not broken:
                seen.clear()
                continue
            seen.append(value)
            if len(seen) >= gauge.steps:
                shown = ", ".join(f"{one:.4g}" for one in seen)
                raise Collapsed(
                    f"step {stepped.step} of {stepped.policy!r}: {gauge.figure} was {shown}, {broken}, in {len(seen)} steps in "
                    f"a row: look at the newest episodes, then lower the learning rate or start from an earlier checkpoint; "
                    f"to go on all the same, change gauges"
                )


def check_gauges(gauges: object, policies: Sequence[str]) -> None:
    """Raises `SettingError` for what are no gauges, and for a policy that the run has not."""
    if isinstance(gauges, str) or not isinstance(gauges, Sequence) or not all(isinstance(one, Gauge) for one in gauges):
        raise SettingError(f"gauges={gauges!r}: must be a sequence of Gauge(figure=..., below=...)")
    for gauge in gauges:
        if gauge.policy not in (None, *policies):
            raise SettingError(f"gauges: {gauge!r} names no policy; there are {', '.join(policies)}")
