"""What every task of a run waits for: told when nothing has happened for too long."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from time import monotonic

import anyio

from sparring.errors import Stalled
from sparring.learner.run_statistics import RunStatistics
from sparring.rollout.episode import Episode

_MOST_EPISODES = 20


class Waits:
    """Who waits for what, and since when. A task that is not here runs, or waits for what a decision of the run names."""

    def __init__(self) -> None:
        self._now: dict[str, tuple[object, float]] = {}

    @contextmanager
    def on(self, who: str, what: object) -> Iterator[None]:
        """While inside, `who` waits for `what`, as its text says when it is asked for; inside of that, for something more
        particular."""
        before = self._now.get(who)
        self._now[who] = (what, monotonic())
        try:
            yield
        finally:
            if before is None:
                del self._now[who]
            else:
                self._now[who] = before

    @property
    def lines(self) -> list[str]:
        return [f"{who}: waits for {what}, for {monotonic() - since:.0f} s" for who, (what, since) in self._now.items()]


@asynccontextmanager
async def never_still(
    deadline: float, progress: Callable[[], object], report: Callable[[], str]
) -> AsyncIterator[None]:
    """Raises `Stalled`, with what `report()` says then, when `progress()` has been the same for `deadline` seconds."""

    async def watch() -> None:
        last, now = None, progress()
        while now != last:
            await anyio.sleep(deadline)
            last, now = now, progress()
        raise Stalled(report())

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        yield
        group.cancel_scope.cancel()


def stall_report(
    deadline: float,
    decisions: Sequence[str],
    waits: Waits,
    episodes: Mapping[str, Episode],
    standing: RunStatistics,
) -> str:
    """`decisions` are the sentences of what admission and learners wait for, `episodes` those under way, by name."""
    playing = [f"{name} waits for {episode.waits_for}" for name, episode in episodes.items()]
    more = len(playing) - _MOST_EPISODES
    lines = [*decisions, *waits.lines, *playing[:_MOST_EPISODES]]
    lines += [f"and {more} more episodes"] if more > 0 else []
    return "\n".join([f"nothing happened for {deadline} s:", *lines, *standing.lines])
