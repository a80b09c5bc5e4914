"""What tells that a run collapses: figures of its steps that leave the bounds which it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparring.errors import SettingError
from sparring.learner.kinds import finite, whole
from sparring.rollout.events import Stepped
from sparring.rollout.fell_back import Broken


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

    `fall_back`: how often a policy may have fallen back, whichever gauge had it do so, for this one to let it do so once more
    instead of stopping the run; 0 stops it at once. A policy that falls back goes on from its newest checkpoint that is older
    than every version that played in the first of these steps: weights and optimizer are that checkpoint's, versions and
    learning rate go on as they would. Checkpoints are made at the versions that are evaluated, so that up to `evaluate_every` +
    `max_staleness` + `steps` steps are given up. What estimators keep between steps (baselines, the coefficient of a KL) stays,
    and so do the versions that were given up, for leagues and evaluations. Groups that these played are trained on within the
    staleness bound; gauges count again from the first step in which none of them did.
    """

    figure: str
    below: float | None = None
    above: float | None = None
    steps: int = 3
    policy: str | None = None
    fall_back: int = 0

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
        if not (whole(self.fall_back) and self.fall_back >= 0):
            raise SettingError(
                f"Gauge(fall_back={self.fall_back!r}) of {self.figure!r}: must be a whole number of times, at least 0"
            )

    @property
    def bounds(self) -> str:
        """What it counts, as text: where that changes it counts anew."""
        return f"{self.figure}: {self.below} to {self.above}, {self.steps} steps"

    def broken_by(self, value: float) -> str:
        """Which bound it breaks, in words; "" for none."""
        if self.below is not None and value < self.below:
            return f"below {self.below}"
        return f"above {self.above}" if self.above is not None and value > self.above else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tripped:
    """A gauge whose bound was broken once too often: `since` which step, and `why`, in words."""

    gauge: Gauge
    since: int
    why: str


def counted(
    gauges: Sequence[Gauge], stepped: Stepped, before: Mapping[str, Broken]
) -> tuple[dict[str, Broken], Tripped | None]:
    """{bounds: since when they are broken} after a step of a policy, from the same `before` it; and the gauge that trips with
    it, of several the one that lets it fall back least often."""
    figures = {**stepped.engine, **stepped.metrics}
    broken: dict[str, Broken] = {}
    tripped: list[Tripped] = []
    for gauge in (one for one in gauges if one.policy in (None, stepped.policy)):
        earlier = before.get(gauge.bounds)
        if gauge.figure not in figures:
            if earlier is not None:
                broken[gauge.bounds] = earlier
            continue
        value = figures[gauge.figure]
        if not (how := gauge.broken_by(value)):
            continue
        since = stepped.step if earlier is None else earlier.since
        now = Broken(since=since, values=[*([] if earlier is None else earlier.values), value])
        broken[gauge.bounds] = now
        if len(now.values) >= gauge.steps:
            shown = ", ".join(f"{one:.4g}" for one in now.values)
            why = f"{gauge.figure} was {shown}, {how}, in {len(now.values)} steps in a row"
            tripped.append(Tripped(gauge=gauge, since=now.since, why=why))
    return broken, min(tripped, key=lambda one: one.gauge.fall_back, default=None)


def check_gauges(gauges: object, policies: Sequence[str]) -> None:
    """Raises `SettingError` for what are no gauges, and for a policy that the run has not."""
    if isinstance(gauges, str) or not isinstance(gauges, Sequence) or not all(isinstance(one, Gauge) for one in gauges):
        raise SettingError(f"gauges={gauges!r}: must be a sequence of Gauge(figure=..., below=...)")
    for gauge in gauges:
        if gauge.policy not in (None, *policies):
            raise SettingError(f"gauges: {gauge!r} names no policy; there are {', '.join(policies)}")
