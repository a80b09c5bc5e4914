"""What the checks of an environment found: a row each, and all of them as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

Verdict = Literal["passed", "failed", "not checked", "measured"]
_SHOWN = 3


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One check. `detail` says what was looked at, or why nothing was; `failures` what was wrong, and what to do."""

    check: str
    verdict: Verdict
    detail: str = ""
    failures: list[str] = []

    @staticmethod
    def of(check: str, failures: Sequence[str], detail: str, *, checked: bool = True) -> Row:
        """Failed where there are failures, else passed, where anything was checked."""
        verdict: Verdict = "failed" if failures else "passed" if checked else "not checked"
        return Row(check=check, verdict=verdict, detail=detail, failures=list(failures))

    def lines(self) -> Iterator[str]:
        """It as text, its first failures below it."""
        yield f"{self.check:<13} {self.verdict:<12} {self.detail}".rstrip()
        for failure in self.failures[:_SHOWN]:
            yield "  - " + failure.replace("\n", "\n    ")
        if len(self.failures) > _SHOWN:
            yield f"  - and {len(self.failures) - _SHOWN} more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What `check_environment` found of the environment of that name; `str()` is a table."""

    environment: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed. Those that do not apply do not count."""
        return not any(row.verdict == "failed" for row in self.rows)

    def row(self, check: str) -> Row:
        """The row of that check."""
        return next(row for row in self.rows if row.check == check)

    def __str__(self) -> str:
        counts = [
            f"{sum(row.verdict == verdict for row in self.rows)} {verdict}"
            for verdict in ("passed", "failed", "not checked")
        ]
        lines = [line for row in self.rows for line in row.lines()]
        return "\n".join([f"{self.environment}: {', '.join(counts)}", *lines])
