"""What a run does with episodes that take long: it waits for them, or drops them."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from sparring.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Nothing leaves for its age: admission is paced so that every episode is trained within `max_staleness`, and a step
    waits for those that are due. What is trained on is what was played."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Episodes that take long are dropped, so that steps do not wait for them; the rest of their group is trained.

    versions  an episode is dropped when a policy that trains in it has made more than so many versions since its group was
              admitted; `max_staleness - 1` is when a step would begin to wait for it
    seconds   an episode is dropped when it plays for longer

    Drops take the long episodes, not any: `sparring replay` shows the trained and the dropped ones by length, reward and
    task. They are no faults (`max_faults`). While a step lacks units no version is made, so `versions` alone does not end
    what hangs: `seconds` or the run's `episode_deadline` does.
    """

    versions: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.versions is None and self.seconds is None:
            raise SettingError("Drop(): drops nothing; give versions or seconds, or leave it at Pace()")
        if self.versions is not None and (not isinstance(self.versions, int) or isinstance(self.versions, bool)):
            raise SettingError(f"Drop(versions={self.versions!r}): must be a whole number, at least 0")
        if self.versions is not None and self.versions < 0:
            raise SettingError(f"Drop(versions={self.versions!r}): must be a whole number, at least 0")
        if self.seconds is not None and not (
            isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool) and isfinite(self.seconds)
        ):
            raise SettingError(f"Drop(seconds={self.seconds!r}): must be a finite number of seconds above 0")
        if self.seconds is not None and self.seconds <= 0:
            raise SettingError(f"Drop(seconds={self.seconds!r}): must be a finite number of seconds above 0")


Pacing = Pace | Drop


def check_pacing(pacing: object, *, max_staleness: int, episode_deadline: float, deterministic: bool) -> None:
    """Raises `SettingError` for what is no pacing, and for drops that could never happen or that depend on the clock."""
    if not isinstance(pacing, Pacing):
        raise SettingError(f"pacing={pacing!r}: must be Pace() or Drop(versions=..., seconds=...)")
    if isinstance(pacing, Pace):
        return
    if deterministic:
        raise SettingError(
            f"pacing={pacing!r}: what is dropped depends on the clock; leave out deterministic=True, or drop"
        )
    if pacing.versions is not None and pacing.versions >= max_staleness:
        raise SettingError(
            f"pacing={pacing!r}: nothing gets older than max_staleness={max_staleness}; "
            f"raise max_staleness above versions, or leave out versions"
        )
    if pacing.seconds is not None and pacing.seconds >= episode_deadline:
        raise SettingError(
            f"pacing={pacing!r}: episode_deadline={episode_deadline!r} ends episodes before; make seconds less than it"
        )
