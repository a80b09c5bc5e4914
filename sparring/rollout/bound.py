"""How old what one policy is trained on may be, and how much of it there may be: numbers alone. The rule that they belong to is
told in `sparring.rollout.budget`."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One trained policy's numbers: `units_per_step` is B, `max_staleness` is k, `steps` are those of the run. With
    `final_staleness` k goes there by equal amounts, rounded, from the first step to the last. Nothing is admitted while
    `most_outstanding` units, B or more, are outstanding or trained for a version that is not installed yet."""

    units_per_step: int
    max_staleness: int
    steps: int
    final_staleness: int | None = None
    most_outstanding: int | None = None

    def __post_init__(self) -> None:
        if self.units_per_step < 1:
            raise SettingError(f"units_per_step={self.units_per_step!r}: must be at least 1")
        if self.max_staleness < 0:
            raise SettingError(f"max_staleness={self.max_staleness!r}: must be at least 0 (0 is synchronous)")
        if self.final_staleness is not None and self.final_staleness < 0:
            raise SettingError(
                f"final_staleness={self.final_staleness!r}: must be None or at least 0 (0 is synchronous)"
            )
        if self.steps < 0:
            raise SettingError(f"steps={self.steps!r}: must be at least 0")
        if self.most_outstanding is not None and self.most_outstanding < self.units_per_step:
            raise SettingError(
                f"most_outstanding={self.most_outstanding!r}: must be None or at least units_per_step={self.units_per_step!r}, "
                f"or no step could be made"
            )

    @property
    def most_staleness(self) -> int:
        """The largest k of any step."""
        return max(self.max_staleness, self.max_staleness if self.final_staleness is None else self.final_staleness)

    def staleness(self, step: int) -> int:
        """k at a step."""
        if self.final_staleness is None or self.steps <= 1:
            return self.max_staleness
        last = self.steps - 1
        done = min(step, last)
        return (2 * (self.max_staleness * (last - done) + self.final_staleness * done) + last) // (2 * last)

    def oldest(self, step: int) -> int:
        """The oldest version that a unit may begin with which this step trains on: the largest d - k(d) of the steps d up to
        it, of which only the last ones can have it."""
        return max(d - self.staleness(d) for d in range(max(0, step - self.most_staleness), step + 1))

    def due(self, version: int) -> int:
        """The last step that may train on a unit that begins with this version: the one before the first that may not."""
        step = version
        while step + 1 - self.staleness(step + 1) <= version:
            step += 1
        return step
