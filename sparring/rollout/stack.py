"""What a thread is doing, read from another one: its stack, and which call in it to name.

A stack is a list of frames, the outermost first. Reading it stops nothing: the thread may go on meanwhile.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from traceback import StackSummary
from types import FrameType

_SCHEDULERS = ("asyncio.base_events", "asyncio.events", "asyncio.runners", "trio._core._run")
"""The modules whose frames step tasks: what they call is a task, or a callback."""

_POLLERS = ("selectors", "trio._core._io_epoll", "trio._core._io_kqueue", "trio._core._io_windows")
"""Those whose frames wait for something to happen, where a scheduler calls them itself."""

_INSTALLED = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
_LIBRARIES = (*_INSTALLED, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "<frozen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A line of a function."""

    function: str
    file: str
    line: int

    @property
    def key(self) -> tuple[str, str]:
        """What it is the same place by, whatever the line."""
        return self.function, self.file

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


def stack_of(thread: int) -> list[FrameType]:
    """The frames of the thread with that identifier; none where it has ended."""
    frames: list[FrameType] = []
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def still_running(before: Sequence[FrameType], now: Sequence[FrameType]) -> list[FrameType]:
    """The calls of one task that were under way when both stacks of an event loop's thread were taken, and so in between.

    None where the loop was in no task (it waits for the processor) or went from one task to another (it is busy, and nobody
    holds it).
    """
    both = [pair[1] for pair in takewhile(lambda pair: pair[0] is pair[1], zip(before, now, strict=False))]
    first = _first_of_task(now)
    inside = both[first:]
    return [] if not first or (inside and _module(inside[0]) in _POLLERS) else inside


def culprit(frames: Sequence[FrameType]) -> Place:
    """Which of these calls to name: the innermost that is the user's own; where there is none, what sparring called of an
    installed package, or else the innermost of sparring's own."""
    ours = max((index for index, frame in enumerate(frames) if _module(frame).startswith("sparring.")), default=-1)
    called = frames[ours + 1 :]
    own = [frame for frame in called if not frame.f_code.co_filename.startswith(_LIBRARIES)]
    if own:
        return _place(own[-1])
    if called and called[0].f_code.co_filename.startswith(_INSTALLED):
        return _place(called[0])
    return _place(frames[ours])


def told(frames: Sequence[FrameType]) -> str:
    """The stack as a traceback shows it, from where the task begins."""
    inside = frames[_first_of_task(frames) :]
    return "".join(StackSummary.extract((frame, frame.f_lineno) for frame in inside).format()).rstrip()


def _first_of_task(frames: Sequence[FrameType]) -> int:
    return max((index for index, frame in enumerate(frames) if _module(frame) in _SCHEDULERS), default=-1) + 1


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _place(frame: FrameType) -> Place:
    return Place(function=frame.f_code.co_qualname, file=frame.f_code.co_filename, line=frame.f_lineno)
