"""One policy's part of the staleness budget, in its two modes. The rule and its proof are told in `sparring.rollout.budget`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice, pairwise
from typing import Any

from sparring.errors import RunChanged
from sparring.rollout.bound import Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A step cannot be taken yet: the `units` in flight that it waits for (none where it waits for something else), and why."""

    units: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatistics:
    """One policy's versions, committed and installed on every sampler, and its units: admitted = outstanding + trained +
    dropped, where outstanding = in_flight + ready + planned. `room`: how many more may be admitted now."""

    version: int
    installed: int
    outstanding: int
    in_flight: int
    ready: int
    planned: int
    admitted: int
    trained: int
    dropped: int
    room: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """An outstanding unit: its number in the order of admission, its last step, its number in the order of finishing."""

    number: int
    due: int
    finished: int | None = None


class Book(ABC):
    """What the two modes share: one policy's counters and outstanding units. Nothing is admitted for steps from `limit` on."""

    def __init__(self, policy: str, bound: Bound) -> None:
        self.policy = policy
        self.bound = bound
        self.limit = bound.steps
        self.version = 0
        self.installed = 0
        self.admitted = 0
        self.finishes = 0
        self.dropped = 0
        self.ready = 0
        self.units: dict[str, Unit] = {}
        self.planned: tuple[str, ...] | None = None

    @property
    @abstractmethod
    def place(self) -> int:
        """How much of the run is spoken for, in units: the place that the next unit takes."""

    @property
    @abstractmethod
    def next_due(self) -> int:
        """When a unit admitted now is due."""

    @abstractmethod
    def choose(self) -> tuple[str, ...] | Waiting:
        """The batch of the next step, or what it waits for."""

    @abstractmethod
    def refused(self, units: Sequence[str]) -> str | None:
        """Why these finished units are no batch of the next step; None where they are."""

    @abstractmethod
    def overdue(self) -> Iterable[str]:
        """Outstanding units due before `version`."""

    @abstractmethod
    def entered(self, name: str, unit: Unit) -> None:
        """A unit was admitted or restored."""

    @abstractmethod
    def became_ready(self, name: str, unit: Unit) -> None:
        """A unit in flight finished."""

    @abstractmethod
    def left(self, name: str, unit: Unit) -> None:
        """A unit was dropped or went into the planned batch."""

    @property
    def closed(self) -> bool:
        return self.place >= self.limit * self.bound.units_per_step

    @property
    def full(self) -> bool:
        """Whether as many units are outstanding, or trained for versions to come, as may be."""
        return self.bound.most_outstanding is not None and self.ahead >= self.bound.most_outstanding

    @property
    def ahead(self) -> int:
        """Outstanding units, and those of the steps whose versions are not installed yet: what takes the place of these would
        still begin with the version before."""
        return len(self.units) + (self.version - self.installed) * self.bound.units_per_step

    @property
    def room(self) -> int:
        """How many more units may be admitted now."""
        open_until = min(self.bound.due(self.installed) + 1, self.limit) * self.bound.units_per_step
        most = open_until if self.bound.most_outstanding is None else self.bound.most_outstanding
        return max(0, min(open_until - self.place, most - self.ahead))

    @property
    def done(self) -> bool:
        return self.version >= self.bound.steps

    def blocked(self) -> str | None:
        """What keeps rule 1 from holding; `place < (due(i) + 1)*B` is `oldest(place // B) <= i`."""
        if self.full:
            late = self.installed < self.version
            what = f"version {self.version} to be installed" if late else f"step {self.version}"
            return f"{self.policy}: waits for {what}, as {len(self.units)} units are outstanding"
        needed = self.bound.oldest(self.place // self.bound.units_per_step)
        if needed <= self.installed:
            return None
        if needed <= self.version:
            return f"{self.policy}: waits for version {needed} to be installed"
        return f"{self.policy}: waits for step {needed - 1}"

    def admit(self, name: str) -> int:
        unit = Unit(number=self.admitted, due=self.next_due)
        assert unit.due >= self.version, (self.policy, name, unit, self.version)
        self.units[name] = unit
        self.admitted += 1
        self.entered(name, unit)
        return unit.due

    def finish(self, name: str) -> None:
        unit = self.units[name]
        assert unit.finished is None, f"{self.policy}/{name} finished twice"
        self.units[name] = unit = replace(unit, finished=self.finishes)
        self.finishes += 1
        self.ready += 1
        self.became_ready(name, unit)

    def drop(self, name: str) -> None:
        assert name not in (self.planned or ()), f"{self.policy}/{name} is in a planned batch"
        unit = self.units.pop(name)
        self.ready -= unit.finished is not None
        self.dropped += 1
        self.left(name, unit)

    def candidate(self) -> tuple[str, ...] | Waiting:
        if self.planned is not None:
            return Waiting(units=(), reason=f"{self.policy}: step {self.version} is planned and not committed yet")
        if self.done:
            return Waiting(units=(), reason=f"{self.policy}: all {self.bound.steps} steps are committed")
        if self.version >= self.limit:
            return Waiting(units=(), reason=f"{self.policy}: paused after {self.version} steps, while others train")
        return self.choose()

    def take(self, units: Sequence[str]) -> None:
        assert self.planned is None, f"{self.policy}: step {self.version} is planned already"
        assert not self.done, f"{self.policy}: all {self.bound.steps} steps are committed"
        for name in units:
            assert name in self.units, f"{self.policy}/{name} is not outstanding"
            assert self.units[name].finished is not None, f"{self.policy}/{name} is not finished"
        numbers = [self.units[name].number for name in units]
        assert all(a < b for a, b in pairwise(numbers)), f"{units!r} are not in order of admission"
        refused = self.refused(units)
        assert refused is None, refused
        self.planned = tuple(units)
        self.ready -= len(units)
        for name in units:
            self.left(name, self.units[name])

    def step(self) -> int:
        assert self.planned is not None, f"{self.policy}: step {self.version} has no planned batch"
        for name in self.planned:
            del self.units[name]
        self.planned = None
        self.version += 1
        return self.version

    def statistics(self) -> BudgetStatistics:
        planned, outstanding = len(self.planned or ()), len(self.units)
        return BudgetStatistics(
            version=self.version,
            installed=self.installed,
            outstanding=outstanding,
            in_flight=outstanding - self.ready - planned,
            ready=self.ready,
            planned=planned,
            admitted=self.admitted,
            trained=self.admitted - self.dropped - outstanding,
            dropped=self.dropped,
            room=self.room,
        )

    def state(self) -> dict[str, Any]:
        return {
            "bound": {name: value for name, value in asdict(self.bound).items() if value is not None},
            "version": self.version,
            "installed": self.installed,
            "admitted": self.admitted,
            "finishes": self.finishes,
            "dropped": self.dropped,
            "units": [[name, unit.number, unit.due, unit.finished] for name, unit in self.units.items()],
            "planned": None if self.planned is None else list(self.planned),
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        then = Bound(**data["bound"])
        self.version, self.installed = data["version"], data["installed"]
        self.admitted, self.finishes, self.dropped = data["admitted"], data["finishes"], data["dropped"]
        self.planned = None if data["planned"] is None else tuple(data["planned"])
        for name, number, due, finished in data["units"]:
            self.units[name] = Unit(number=number, due=due, finished=finished)
            self.entered(name, replace(self.units[name], finished=None))
        finished_units = [(unit.finished, name) for name, unit in self.units.items() if unit.finished is not None]
        for _, name in sorted(finished_units):
            self.became_ready(name, self.units[name])
        for name in self.planned or ():
            self.left(name, self.units[name])
        self.ready = len(finished_units) - len(self.planned or ())
        if (
            then if self.bound.final_staleness is not None else replace(then, steps=self.bound.steps)
        ) != self.bound or self.place > self.bound.steps * self.bound.units_per_step:
            raise RunChanged(
                f"{self.policy}: the run was started with {then}, now it has {self.bound}: only more steps are possible"
            )


class ReadyBook(Book):
    """Batches of what is ready, as far as rule 3 allows. Units wait in one bucket for each due step."""

    def __init__(self, policy: str, bound: Bound) -> None:
        super().__init__(policy, bound)
        self._in_flight: dict[int, dict[str, None]] = {}
        self._finished: dict[int, dict[str, None]] = {}

    @property
    def place(self) -> int:
        return self.version * self.bound.units_per_step + len(self.units)

    @property
    def next_due(self) -> int:
        return self.bound.due(self.installed)

    def entered(self, name: str, unit: Unit) -> None:
        self._in_flight.setdefault(unit.due, {})[name] = None
        self._finished.setdefault(unit.due, {})

    def became_ready(self, name: str, unit: Unit) -> None:
        del self._in_flight[unit.due][name]
        self._finished[unit.due][name] = None

    def left(self, name: str, unit: Unit) -> None:
        bucket = self._in_flight if unit.finished is None else self._finished
        del bucket[unit.due][name]
        if not self._in_flight[unit.due] and not self._finished[unit.due]:
            del self._in_flight[unit.due], self._finished[unit.due]

    def overdue(self) -> Iterable[str]:
        late = [due for due in self._in_flight if due < self.version]
        return [name for due in late for name in chain(self._in_flight[due], self._finished[due])]

    def choose(self) -> tuple[str, ...] | Waiting:
        size = left = self.bound.units_per_step
        taken: dict[int, int] = {}
        for due in sorted(self._finished):
            taken[due] = min(left, len(self._finished[due]))
            left -= taken[due]
        broken = self.breaks_rule_3(taken)
        step = f"{self.policy}: step {self.version}"
        if broken is not None:
            due, more = broken
            return Waiting(
                units=self._awaited(due), reason=f"{step} needs {more} more of the units due at or before step {due}"
            )
        if left:
            waited = self._awaited(max(self._in_flight, default=0))
            missing = "of them in flight" if waited else "to be admitted"
            return Waiting(
                units=waited, reason=f"{step} has {size - left} of {size} units and waits for more {missing}"
            )
        chosen = [name for due, count in taken.items() for name in islice(self._finished[due], count)]
        return tuple(sorted(chosen, key=lambda name: self.units[name].number))

    def refused(self, units: Sequence[str]) -> str | None:
        if len(units) != self.bound.units_per_step:
            return f"{self.policy}: a batch of {len(units)} units, a step takes {self.bound.units_per_step}"
        broken = self.breaks_rule_3(Counter(self.units[name].due for name in units))
        if broken is not None:
            return f"{self.policy}: step {self.version} leaves {broken[1]} units too many due at or before step {broken[0]}"
        return None

    def breaks_rule_3(self, taken: Mapping[int, int]) -> tuple[int, int] | None:
        """The first due step at which too many units would be left, and how many too many; None where rule 3 holds. `taken`
        is {due: how many of the finished units with that due step are taken}."""
        left = 0
        for j in range(self.bound.most_staleness + 1):
            due = self.version + j
            left += len(self._in_flight.get(due, ())) + len(self._finished.get(due, ())) - taken.get(due, 0)
            if left > j * self.bound.units_per_step:
                return due, left - j * self.bound.units_per_step
        return None

    def _awaited(self, due: int) -> tuple[str, ...]:
        return tuple(chain.from_iterable(self._in_flight[at] for at in sorted(self._in_flight) if at <= due))


class PinnedBook(Book):
    """Batches by position: what is trained when is fixed by the order of admission alone."""

    def __init__(self, policy: str, bound: Bound) -> None:
        super().__init__(policy, bound)
        self._at: dict[int, str] = {}

    @property
    def place(self) -> int:
        return self.admitted

    @property
    def next_due(self) -> int:
        return self.admitted // self.bound.units_per_step

    def entered(self, name: str, unit: Unit) -> None:
        self._at[unit.number] = name

    def became_ready(self, name: str, unit: Unit) -> None:
        assert self._at[unit.number] == name, (name, unit)

    def left(self, name: str, unit: Unit) -> None:
        del self._at[unit.number]

    def overdue(self) -> Iterable[str]:
        first = self.version * self.bound.units_per_step
        earliest = min(self._at, default=first)
        return [self._at[number] for number in range(earliest, first) if number in self._at]

    def choose(self) -> tuple[str, ...] | Waiting:
        size, step = self.bound.units_per_step, f"{self.policy}: step {self.version}"
        first = self.version * size
        units = tuple(self._at[number] for number in range(first, first + size) if number in self._at)
        waited = tuple(name for name in units if self.units[name].finished is None)
        if waited:
            return Waiting(units=waited, reason=f"{step} waits for {len(waited)} of its {size} positions")
        if self.admitted < first + size:
            return Waiting(
                units=(), reason=f"{step} waits for {first + size - self.admitted} more units to be admitted"
            )
        return units

    def refused(self, units: Sequence[str]) -> str | None:
        chosen = self.choose()
        if isinstance(chosen, Waiting):
            return chosen.reason
        return (
            None
            if chosen == tuple(units)
            else f"{self.policy}: step {self.version} trains {chosen!r}, not {tuple(units)!r}"
        )
