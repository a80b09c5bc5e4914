"""Do hidden fields influence what a seat is asked? The same replies to the task with another value there must bring the same
requests, until a value that was marked by `reveal` is another one (a metamorphic test, T. Y. Chen et al., 1998)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import anyio.lowlevel
import msgspec

from sparring.agents.stand_in import StandIn
from sparring.environments import gold_reply
from sparring.environments.plain import canonical
from sparring.environments.signature import Hidden
from sparring.errors import SettingError
from sparring.rollout.check_plays import Asked, Heard, Job, Revealed, first_difference, heard
from sparring.rollout.check_rows import Row
from sparring.rollout.events import Acted, Affected

_TASKS = 4
_REMEDY = "do not tell it, nor go on by it; or mark what is meant to pass by reveal()"
_UNTRIED = "no other task has another value there, or none could be played to its end with it"


async def check_hidden(job: Job) -> Row:
    """Every hidden field of every seat, on the first tasks. Stand-ins say letters, the gold reply, or the hidden value."""
    hidden = hidden_from(job.environment.seats, job.environment.hidden)
    failures: list[str] = []
    tried: dict[bool, list[str]] = {True: [], False: []}
    for seat, names in hidden.items():
        for name in names:
            well, found = await _influence(job, seat, name, names)
            failures += found
            tried[well > 0 or bool(found)].append(f"{seat}: {name}")
    details = [f"another task's value for {', '.join(tried[True])}"] if tried[True] else []
    details += [f"not checked: {', '.join(tried[False])} ({_UNTRIED})"] if tried[False] else []
    detail = "; ".join(details) or "no field is declared hidden: @environment(hidden=...)"
    return Row.of("hidden", failures, detail, checked=bool(tried[True]))


def hidden_from(seats: Sequence[str], hidden: Hidden) -> dict[str, tuple[str, ...]]:
    """The fields that each seat must not see; seats that may see all are left out."""
    every = {seat: tuple(dict.fromkeys((*hidden.get("*", ()), *hidden.get(seat, ())))) for seat in seats}
    return {seat: names for seat, names in every.items() if names}


async def _influence(job: Job, seat: str, name: str, names: Sequence[str]) -> tuple[int, list[str]]:
    """How many episodes were played to their ends with another task's fields there, and the first influence that was seen."""
    tried = 0
    for index in range(min(job.count, _TASKS)):
        task = job.tasks[index]
        other = _other(job.tasks, task, name)
        if other is None:
            continue
        swapped = with_fields(task, {one: field_of(other, one) for one in names})
        for member, player in enumerate((StandIn(gold_reply(job.environment, task)), _knowing(task, name))):
            plan = job.plan(index, member, dict.fromkeys(job.environment.seats, player))
            then = await heard(plan)
            now = await heard(replace(plan, task=swapped), _Same(then.events))
            found = influence(then, now, seat)
            if found:
                return tried, [
                    f"seat {seat!r} must not see {name!r}; task {index} with another there: {found}: {_REMEDY}"
                ]
            tried += not now.failure
    return tried, []


def _knowing(task: Any, name: str) -> StandIn:
    """Who says the hidden value, so that what depends on whether somebody does is seen."""
    return StandIn(str(field_of(task, name)), sure=True)


class _Same:
    """At each place the reply that was given there before, whatever is asked now; for each effect the result that it had."""

    def __init__(self, events: Sequence[Acted | Affected]) -> None:
        self._events = {event.key: event for event in events}

    async def known(self, wanted: Acted | Affected) -> Acted | Affected | None:
        await anyio.lowlevel.checkpoint()  # as a player and an effect are waited for
        return self._events.get(wanted.key)

    def split(self, more: int) -> None:
        """Nobody waits for a turn."""

    def check_over(self, failed: Exception | None) -> None:
        """It may end when it likes."""


def influence(then: Heard, now: Heard, seat: str) -> str:
    """How what `seat` is asked differs, before any other value was revealed; "" where it does not.

    Where something else was revealed, or the second one failed, it need not have been asked as much.
    """
    number = _first_revealed_apart(then, now)
    cut = number is not None or bool(then.failure or now.failure)
    before, after = (_asked_before(one, number, seat) for one in (then, now))
    found = first_difference(before, after, more=cut)
    missing = {one.place for one in before} - {one.place for one in after}
    return found or (f"{min(missing)} is not asked any more" if missing and not cut else "")


def _first_revealed_apart(then: Heard, now: Heard) -> int | None:
    """The number of the first revealed value that differs; None where all are the same."""
    first, second = ([one.value for one in heard.log if isinstance(one, Revealed)] for heard in (then, now))
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return number
    return None if len(first) == len(second) else min(len(first), len(second))


def _asked_before(heard: Heard, number: int | None, seat: str) -> list[Asked]:
    """What the seat was asked before that value was revealed."""
    asked: list[Asked] = []
    revealed = 0
    for one in heard.log:
        if isinstance(one, Revealed):
            if revealed == number:
                break
            revealed += 1
        elif one.seat == seat:
            asked.append(one)
    return asked


def _other(tasks: Sequence[Any], task: Any, name: str) -> Any:
    """The first task with another value there."""
    own = canonical(field_of(task, name))
    return next((other for other in tasks if canonical(field_of(other, name)) != own), None)


def field_of(task: Any, name: str) -> Any:
    """A field of a task; raises `SettingError` where it has none of that name."""
    held: Mapping[str, Any] = task if isinstance(task, Mapping) else _fields(task)
    if name not in held:
        raise SettingError(f"hidden field {name!r} is none of the task {task!r}: it has {', '.join(held) or 'none'}")
    return held[name]


def _fields(task: Any) -> dict[str, Any]:
    if isinstance(task, msgspec.Struct):
        return msgspec.structs.asdict(task)
    return {item.name: getattr(task, item.name) for item in fields(task)} if is_dataclass(task) else {}


def with_fields(task: Any, values: Mapping[str, Any]) -> Any:
    """The task with other values in some fields."""
    if isinstance(task, Mapping):
        return {**task, **values}
    if isinstance(task, msgspec.Struct):
        return msgspec.structs.replace(task, **values)
    return replace(task, **values)
