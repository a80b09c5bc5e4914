"""What a run does with episodes that take long: it waits for them, or drops them."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.errors import SettingError
from sparring.learner.kinds import finite, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Nothing leaves for its age: admission is paced so that every episode is trained within `max_staleness`, and a step
    waits for those that are due. What is trained on is what was played.

    ahead  nothing is admitted while as many groups are outstanding as the step that is made and `ahead` further ones take, and
           none takes the place of one that was trained before the version made of it can be played. So a large
           `max_staleness` is there for the episodes that take long, and the others are trained sooner. With too few the
           sampler idles while the slowest are waited for. None: as far ahead as `max_staleness` allows, so that where play is
           faster than learning all are nearly as old as that
    """

    ahead: float | None = None

    def __post_init__(self) -> None:
        if self.ahead is not None and not (finite(self.ahead) and self.ahead >= 0):
            raise SettingError(f"Pace(ahead={self.ahead!r}): must be None or a finite number of steps, at least 0")


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
        if self.versions is not None and not (whole(self.versions) and self.versions >= 0):
            raise SettingError(f"Drop(versions={self.versions!r}): must be a whole number, at least 0")
        if self.seconds is not None and not (finite(self.seconds) and self.seconds > 0):
            raise SettingError(f"Drop(seconds={self.seconds!r}): must be a finite number of seconds above 0")


Pacing = Pace | Drop


def most_outstanding(pacing: Pacing, groups_per_step: int) -> int | None:
    """How many groups may be admitted and not trained yet; None: as many as `max_staleness` allows."""
    ahead = pacing.ahead if isinstance(pacing, Pace) else None
    return None if ahead is None else groups_per_step + int(groups_per_step * ahead)


def check_pacing(pacing: object, *, max_staleness: int, episode_deadline: float, deterministic: bool) -> None:
    """Raises `SettingError` for what is no pacing, and for drops that could never happen or that depend on the clock."""
    if not isinstance(pacing, Pacing):
        raise SettingError(f"pacing={pacing!r}: must be Pace() or Drop(versions=..., seconds=...)")
    if isinstance(pacing, Pace):
        if pacing.ahead is not None and deterministic:
            raise SettingError(
                f"pacing={pacing!r}: with deterministic=True all that is played is as old as max_staleness says; leave out one "
                f"of both, or lower max_staleness"
            )
        if pacing.ahead is not None and pacing.ahead >= max_staleness:
            raise SettingError(
                f"pacing={pacing!r}: nothing is played further ahead than max_staleness={max_staleness}; raise that above "
                f"ahead, or leave out ahead"
            )
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
