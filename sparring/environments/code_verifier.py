"""`CodeVerifier`: judges a program or function that a model wrote by tests, with the verdict outside of where it runs.

Two sandboxes: one runs the code, the other the tests, which call the code through the host. Nothing but plain values cross, so
the code neither sees what is expected nor touches what decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio

from sparring.environments.running import effect
from sparring.environments.sandbox import CANDIDATE, IMAGE, Sandbox, Tier, checked
from sparring.environments.sandboxing.box import Box
from sparring.environments.sandboxing.result import Ending, Limits, Stopped
from sparring.environments.score import Score
from sparring.errors import SettingError

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_PATIENCE = 600.0  # seconds, most of which pass in the queue for a place
_SHOWN = 2000
_UNJUDGED = (Ending.REFUSED, Ending.LOST)


@dataclass(frozen=True, slots=True)
class Example:
    """What a program prints for an input; spaces at the ends of lines and empty lines at the end do not count."""

    input: str
    output: str


Tests = str | Sequence[str] | Sequence[Example]
"""Python that raises where the function is wrong (several texts are run in turn), or inputs and outputs of a program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`text` tells a model what went wrong, with the test that found it: show it for public tests alone.

    `score` is 1.0 or 0.0, or an error where nobody could judge, or there were no tests; its parts: the share of tests passed
    before the first that did not, and `tampered`, 1.0 where the code left, or said what no code says, instead of answering.
    """

    ending: Ending
    text: str
    score: Score

    @property
    def passed(self) -> bool:
        """Whether no test failed."""
        return self.ending is Ending.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeVerifier:
    """Runs the code of a reply (its last block in ``` marks, or all of it where there is none) against tests.

    tier           of its sandboxes (see `Sandbox`; "monty" is the zygote here, as tests and function talk with each other)
    image          of the tier "docker"
    deadline       seconds for all tests together
    test_deadline  seconds for each of them; None: one may take them all
    memory         bytes
    at_once        so many replies are judged at once on an event loop
    """

    tier: Tier = "zygote"
    image: str = IMAGE
    deadline: float = 10.0
    test_deadline: float | None = None
    memory: int = 512 << 20
    at_once: int = 4

    def __post_init__(self) -> None:
        _sandbox(self.tier, self.image, self.deadline, self.memory, self.at_once)
        each = self.test_deadline
        if each is not None and (isinstance(each, bool) or not 0 < each <= self.deadline):
            raise SettingError(
                f"CodeVerifier(test_deadline={each!r}): must be above 0 and at most deadline={self.deadline!r}, or None"
            )

    async def __call__(self, text: str, entry: str, tests: Tests) -> Report:
        """Judge the function `entry` (a program where `tests` are `Example`s). An episode journals the verdict."""
        cases = _written(tests)
        settings = (self.tier, self.image, self.deadline, self.memory, self.at_once)
        each = self.test_deadline or self.deadline
        said = await effect(judged, settings, each, code_of(text), entry, cases, timeout=_PATIENCE)
        return _report(Ending(said["ending"]), said["text"], said["passed"], len(cases))


def _sandbox(tier: Tier, image: str, deadline: float, memory: int, at_once: int) -> Sandbox:
    return Sandbox(tier=tier, image=image, limits=Limits(seconds=deadline, memory=memory), at_once=at_once)


def _written(tests: Tests) -> list[Any]:
    """As JSON data: texts, or pairs of input and output."""
    cases: list[object] = [tests] if isinstance(tests, str) else list(tests)
    if all(isinstance(case, str) for case in cases):
        return cases
    if not all(isinstance(case, Example) for case in cases):
        raise SettingError(f"tests={tests!r}: must be Python as text, a list of such texts, or a list of `Example`s")
    return [[case.input, case.output] for case in cases if isinstance(case, Example)]


def code_of(reply: str) -> str:
    """The last block in ``` marks; the whole reply where there is none."""
    blocks = _FENCED.findall(reply)
    return blocks[-1] if blocks else reply


async def judged(
    settings: tuple[Tier, str, float, int, int], each: float, code: str, entry: str, cases: list[Any]
) -> dict[str, Any]:
    """How it ended, what to tell, and how many cases passed."""
    judge = _Judge(_sandbox(*settings), each, code, entry)
    ending, text = Ending.OK, ""
    try:
        await (judge.program(cases) if cases and not isinstance(cases[0], str) else judge.function(cases))
    except Stopped as stopped:
        ending, text = stopped.ending, stopped.text
    return {"ending": ending.value, "text": text[-_SHOWN:], "passed": judge.passed}


class _Judge:
    """One judgement; `passed` counts the cases."""

    def __init__(self, sandbox: Sandbox, each: float, code: str, entry: str) -> None:
        self._sandbox, self._each, self._code, self._entry = sandbox, each, code, entry
        self.passed = 0
        self._asked = 0
        self._failure = ""

    async def program(self, cases: list[tuple[str, str]]) -> None:
        """Raises `Stopped` at the first case that fails, or where the runs took too long together."""
        limits, left = self._sandbox.limits, self._sandbox.limits.seconds
        for given, expected in cases:
            seconds = min(max(left, 0.001), self._each)
            result = await self._sandbox.run(self._code, stdin=given, limits=replace(limits, seconds=seconds))
            left -= result.seconds
            if result.ending is not Ending.OK:
                raise Stopped(result.ending, f"With the input\n{given}\n{result.error}")
            if _lines(result.output) != _lines(expected):
                raise Stopped(
                    Ending.WRONG, f"With the input\n{given}\nit printed\n{result.output}\ninstead of\n{expected}"
                )
            self.passed += 1

    async def function(self, cases: list[str]) -> None:
        """The same."""
        limits = self._sandbox.limits
        async with self._sandbox.slot(), self._sandbox.box(limits) as code:
            checked(await code.request({"run": self._code, "name": CANDIDATE}))
            async with self._sandbox.box(limits) as tests:
                await tests.request({"offer": self._entry})
                for case in cases:
                    with anyio.move_on_after(self._each):
                        await self._case(code, tests, case)
                        self.passed += 1
                        continue
                    raise Stopped(Ending.TIME, f"This test took longer than {self._each:g} s:\n{case}")

    async def _case(self, code: Box, tests: Box, case: str) -> None:
        async def answer(asked: Any) -> dict[str, Any]:
            self._asked += 1
            reply = await code.request({"call": self._entry, "args": asked[0], "kwargs": asked[1]})
            if "value" in reply:
                return {"answer": reply["value"]}
            try:
                checked(reply)
            except Stopped as stopped:
                self._failure = stopped.text
                return {"failed": "the function that is tested failed"}
            raise AssertionError

        reply = await tests.request({"run": case, "name": "test.py"}, answer)
        if not self._asked:
            raise Stopped(Ending.REFUSED, f"these tests do not call {self._entry}: {reply.get('error', case)}")
        if self._failure and "value" not in reply:
            raise Stopped(Ending.EXCEPTION, f"This test failed:\n{case}\n{self._failure}")
        if "value" not in reply:
            raise Stopped(Ending.WRONG, f"This test failed:\n{case}\n{reply.get('error', ['', ''])[1]}")


def _report(ending: Ending, text: str, passed: int, cases: int) -> Report:
    parts = {"passed": passed / max(cases, 1), "tampered": float(ending is Ending.PROTOCOL)}
    if ending in _UNJUDGED:
        return Report(ending=ending, text=text, score=Score(error=f"CodeVerifier: {ending}: {text}", parts=parts))
    told = f"{ending}: {text}" if text else f"All tests passed ({cases})."
    if not cases:
        return Report(ending=ending, text=told, score=Score(error="CodeVerifier: there are no tests"))
    return Report(ending=ending, text=told, score=Score(float(ending is Ending.OK), parts=parts))


def _lines(output: str) -> list[str]:
    return [line.rstrip() for line in output.rstrip().splitlines()]
