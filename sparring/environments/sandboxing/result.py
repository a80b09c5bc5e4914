"""What a run in a sandbox may use, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from math import isfinite

from sparring.errors import SettingError

MIB = 1 << 20


class Ending(StrEnum):
    """How a run ended. REFUSED and LOST say nothing about the code: it did not run, or nobody knows what became of it."""

    OK = "ok"
    WRONG = "wrong output"
    EXCEPTION = "exception"
    TIME = "time"
    MEMORY = "memory"
    OUTPUT = "output limit"
    KILLED = "killed"
    PROTOCOL = "protocol violation"
    REFUSED = "refused"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use.

    seconds   wall time, from when the code begins
    memory    bytes of address space; a run is one process, so that this is all it gets, besides `disk`
    disk      bytes in /tmp, the one place where it may write; it is gone after the run
    output    bytes that it may print
    value     bytes of one call's arguments or result, as JSON
    threads   beside the first
    """

    seconds: float = 10.0
    memory: int = 512 * MIB
    disk: int = 16 * MIB
    output: int = 64 * 1024
    value: int = 256 * 1024
    threads: int = 16

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            kind = (int, float) if item.name == "seconds" else int
            if isinstance(value, bool) or not isinstance(value, kind) or not (isfinite(value) and value > 0):
                raise SettingError(f"Limits({item.name}={value!r}): must be a finite number above 0")
        if self.memory < 64 * MIB:
            raise SettingError(f"Limits(memory={self.memory!r}): the interpreter alone needs {64 * MIB} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    """`values` of the calls that were answered, in order; what was printed, as `output` and as `errors`; `error` tells why
    it did not end well.

    Nothing in it is a verdict: `Ending.OK` says that the code ran, not that it is right.
    """

    ending: Ending
    values: tuple[object, ...] = ()
    output: str = ""
    errors: str = ""
    error: str = ""
    seconds: float = 0.0


class Stopped(Exception):
    """A run cannot go on; how it ended, and why."""

    def __init__(self, ending: Ending, text: str) -> None:
        super().__init__(text)
        self.ending, self.text = ending, text
