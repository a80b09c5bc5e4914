"""`Sandbox`: runs what a model wrote where it can reach nothing, and says what came of it.

Verdicts are made outside: what is expected never enters, and nothing but plain values comes out. Where the kernel refuses a
part of the sandbox, the run is refused; nothing weaker is used in its place.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from sparring.environments.sandboxing.box import Box
from sparring.environments.sandboxing.container import contained
from sparring.environments.sandboxing.inside import pack, unpack
from sparring.environments.sandboxing.result import Ending, Limits, SandboxResult, Stopped
from sparring.environments.sandboxing.server import CannotStart, Server, fresh, standing, started
from sparring.errors import SettingError

Tier = Literal["monty", "zygote", "bubblewrap", "docker", "unsafe_subprocess_without_isolation"]
IMAGE = "python:3.12-slim"
CANDIDATE = "solution.py"
"""The name of the code in tracebacks."""
_TRIES = 5  # a server that died is noticed by those who ask it
_limiters: RunVar[dict[int, anyio.CapacityLimiter]] = RunVar("sparring_sandboxes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function of the code, and the plain values to call it with."""

    name: str
    args: Sequence[object] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Where code runs: Python's standard library, one process, no network, no files of this machine but the interpreter's.

    tier      "zygote": a process forked from a warm interpreter, in fresh user, process, mount, network, IPC and host-name
              namespaces, inside bubblewrap (some 6 ms a run). "bubblewrap": the same from a cold start (some 50 ms).
              "monty": calls of functions are tried in pydantic-monty's interpreter first (extra `monty`; 0.3 ms); what it
              cannot run, what fails in it, and programs go to the zygote.
              "docker": a container of docker or podman for every run (some 0.5 s), without network, capabilities and rights,
              for machines with a daemon and without user namespaces.
              "unsafe_subprocess_without_isolation": limits and a filter of system calls, but this user's files can be read
              and written: for machines without user namespaces, and code that you trust.
    limits    what each run may use
    at_once   so many run beside each other on an event loop; others wait. The time that they wait is not counted
    image     of the tier "docker", with Python 3.11 or later; it has to be there
    modules   what else code may import, such as ("numpy",): installed here, and there before it begins. All of the folder that
              one is installed in can be read and imported then; memory is needed for it in `limits`
    """

    tier: Tier = "zygote"
    limits: Limits = field(default_factory=Limits)
    at_once: int = 8
    image: str = IMAGE
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tier not in get_args(Tier):
            raise SettingError(
                f"Sandbox(tier={self.tier!r}): must be one of {', '.join(get_args(Tier))} (`sparring doctor` says which work "
                "here)"
            )
        if self.tier != "docker" and self.image != IMAGE:
            raise SettingError(
                f"Sandbox(image={self.image!r}): only tier='docker' has an image, and this is {self.tier!r}"
            )
        if self.tier == "docker" and self.modules:
            raise SettingError(
                f"Sandbox(tier='docker', modules={self.modules!r}): a container has the standard library of its image "
                "alone; use another tier"
            )
        if self.tier == "monty" and find_spec("pydantic_monty") is None:
            raise SettingError("Sandbox(tier='monty') needs pydantic-monty: pip install 'sparring[monty]'")
        if isinstance(self.at_once, bool) or not isinstance(self.at_once, int) or self.at_once < 1:
            raise SettingError(f"Sandbox(at_once={self.at_once!r}): must be a number of at least 1")
        for module in self.modules:
            if not module.isidentifier() or find_spec(module) is None:
                raise SettingError(f"Sandbox(modules={self.modules!r}): {module!r} is no module that is installed here")

    async def run(
        self, code: str, *, calls: Sequence[Call] | None = None, stdin: str = "", limits: Limits | None = None
    ) -> SandboxResult:
        """Run a program (`stdin` is its input), or define what `code` defines and make `calls`, one after the other.

        The first call that does not return a plain value ends the run. Plain values: None, numbers, text, bytes, and lists,
        tuples, sets and dictionaries of them, of exactly these types. Raises `SettingError` for a call whose arguments are
        not plain.
        """
        messages = [_message(call) for call in calls or ()]
        limits = limits or self.limits
        if self.tier == "monty" and calls is not None:
            result = await self._in_monty(code, calls, limits)
            if result is not None:
                return result
        for attempt in range(_TRIES):
            result = await self._run(code, None if calls is None else messages, stdin, limits)
            if result.ending is not Ending.LOST or attempt == _TRIES - 1:
                return result
        raise AssertionError

    async def _in_monty(self, code: str, calls: Sequence[Call], limits: Limits) -> SandboxResult | None:
        attempted = import_module("sparring.environments.sandboxing.monty").attempted
        given = [(call.name, list(call.args), dict(call.kwargs)) for call in calls]
        async with self.slot():
            began = anyio.current_time()
            found = await anyio.to_thread.run_sync(attempted, code, given, limits)
        if found is None:
            return None
        values, output = found
        return SandboxResult(
            ending=Ending.OK, values=tuple(values), output=output, seconds=anyio.current_time() - began
        )

    async def _run(self, code: str, calls: list[dict[str, Any]] | None, stdin: str, limits: Limits) -> SandboxResult:
        values: list[object] = []
        began, printed, ending, error = anyio.current_time(), ("", ""), Ending.OK, ""
        try:
            async with self.slot(), self.box(limits, stdin) as box:
                began = anyio.current_time()
                try:
                    await _carried_out(box, code, calls, values)
                except Stopped as stopped:
                    ending, error = stopped.ending, stopped.text
                await box.finished()
                printed = box.printed()
        except Stopped as stopped:
            ending, error = stopped.ending, stopped.text
        seconds = anyio.current_time() - began
        return SandboxResult(
            ending=ending, values=tuple(values), output=printed[0], errors=printed[1], error=error, seconds=seconds
        )

    @asynccontextmanager
    async def box(self, limits: Limits, stdin: str = "", most: int = 0) -> AsyncIterator[Box]:
        """A run to talk with, inside a `slot`, that may `go_on` so often. Raises `Stopped`, REFUSED where there can be no
        sandbox."""
        async with self._server(limits) as server:
            box = Box(server, limits, most)
            try:
                await box.begin(stdin)
                yield box
            finally:
                box.close()

    @asynccontextmanager
    async def _server(self, limits: Limits) -> AsyncIterator[Server]:
        isolated = self.tier in ("monty", "zygote", "bubblewrap")
        cold = self.tier in ("bubblewrap", "docker")
        server = None if cold else standing(isolated=isolated, modules=self.modules)
        try:
            if server is None and self.tier == "docker":
                server = await anyio.to_thread.run_sync(contained, self.image, limits)
            elif server is None:
                start = fresh if cold else started
                server = await anyio.to_thread.run_sync(lambda: start(isolated=isolated, modules=self.modules))
        except CannotStart as error:
            raise Stopped(Ending.REFUSED, str(error)) from error
        try:
            yield server
        finally:
            if cold:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(server.close)

    def slot(self) -> anyio.CapacityLimiter:
        """One of the places of `at_once`: a context in which a run, or several that talk with each other, may be."""
        limiters = _limiters.get(None)
        if limiters is None:
            limiters = {}
            _limiters.set(limiters)
        return limiters.setdefault(self.at_once, anyio.CapacityLimiter(self.at_once))


def _message(call: Call) -> dict[str, Any]:
    try:
        return {"call": call.name, "args": pack(list(call.args)), "kwargs": pack(dict(call.kwargs))}
    except ValueError as error:
        raise SettingError(f"{call!r}: an argument cannot cross into the sandbox: {error}") from error


async def _carried_out(box: Box, code: str, calls: list[dict[str, Any]] | None, values: list[object]) -> None:
    checked(await box.request({"run": code, "name": CANDIDATE, "last": calls is None}), program=calls is None)
    for message in calls or ():
        reply = checked(await box.request(message))
        try:
            values.append(unpack(reply["value"]))
        except (ValueError, RecursionError) as error:
            raise Stopped(Ending.PROTOCOL, f"{message['call']} returned what cannot be read: {error}") from error


def checked(reply: dict[str, Any], *, program: bool = False) -> dict[str, Any]:
    """`reply`, if it is a value. Raises `Stopped` otherwise; a program may leave by `exit`."""
    if "value" in reply or (program and reply.get("exit") == 0):
        return reply
    if "exit" in reply:
        raise Stopped(Ending.EXCEPTION, f"it left with code {reply['exit']}")
    kind, text = reply["error"]
    raise Stopped(Ending.MEMORY if kind == "MemoryError" else Ending.EXCEPTION, text)
