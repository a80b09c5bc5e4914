"""Python for a model that calls tools, in a sandbox: each call a program of its own, or one interpreter for all of them.

The model is told what its code printed, and how it failed. That there is no sandbox is a fault of the episode.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import msgspec

from sparring.environments.running import effect
from sparring.environments.sandbox import CANDIDATE, Sandbox
from sparring.environments.sandboxing.box import Box
from sparring.environments.sandboxing.result import Ending, Stopped
from sparring.environments.tools import Tool
from sparring.errors import EffectError, SettingError

_PATIENCE = 600.0  # seconds, most of which pass in the queue for a place
_MOST_CALLS = 1000
_NOBODYS = (Ending.REFUSED, Ending.LOST)
_ALONE = "Run a Python program. You see what it prints. Nothing is kept from one call to the next."
_KEPT = "Run Python. You see what it prints. Names are kept from one call to the next."


class _Arguments(msgspec.Struct, forbid_unknown_fields=True):
    code: str


def python_tool(sandbox: Sandbox | None = None, *, shown: int = 2000) -> Tool:
    """The tool `python`: each call is a program of its own. The model sees at most so many characters (`shown`) of what it
    prints."""
    box = _usable(sandbox, shown)

    async def answer(code: str) -> str:
        return _cut(await effect(_ran, box, code, timeout=_PATIENCE), shown)

    return _tool(_ALONE, answer)


@asynccontextmanager
async def python_session(sandbox: Sandbox | None = None, *, shown: int = 2000) -> AsyncIterator[Tool]:
    """The tool `python` with one interpreter for all its calls, for as long as this is open: `async with` in `play`.

    An episode that goes on after a crash runs what was called before once more, in a fresh interpreter: code that depends on
    the clock may end otherwise then, and `@environment(resumable=False)` starts such an episode from its beginning.
    """
    session = _Session(_usable(sandbox, shown))
    try:
        yield _tool(_KEPT, lambda code: session.answer(code, shown))
    finally:
        with anyio.CancelScope(shield=True):
            await session.end()


def _usable(sandbox: Sandbox | None, shown: int) -> Sandbox:
    if shown < 1:
        raise SettingError(f"shown={shown!r}: must be a number of characters, at least 1")
    return sandbox or Sandbox()


def _tool(description: str, answer: Callable[[str], Awaitable[str]]) -> Tool:
    async def called(arguments: str) -> str:
        try:
            code = msgspec.json.decode(arguments, type=_Arguments).code
        except (msgspec.MsgspecError, RecursionError) as error:
            return f"python was called with arguments that do not fit: {error}"
        return await answer(code)

    parameters = {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python, which prints what you want to see"}},
        "required": ["code"],
    }
    return Tool(name="python", description=description, parameters=parameters, answer=called)


async def _ran(sandbox: Sandbox, code: str) -> str:
    result = await sandbox.run(code)
    if result.ending in _NOBODYS:
        raise EffectError(f"python could not be run ({result.ending}): {result.error}")
    return _said(result.output, result.errors, _failed(result.ending, result.error))


class _Session:
    """One interpreter, and what it was told so far. What was journaled is known here without having been run: it is run before
    the first code that is not."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._told: list[str] = []
        self._ran = 0
        self._number = 0
        self._open: tuple[Box, AsyncExitStack] | None = None

    async def answer(self, code: str, shown: int) -> str:
        self._number += 1
        said = await effect(self.run, self._number, code, timeout=_PATIENCE)
        self._told.append(code)
        if said["lost"]:
            self._told.clear()
            self._ran = 0
        return _cut(said["text"], shown)

    async def run(self, number: int, code: str) -> dict[str, Any]:
        """What to tell, and whether the interpreter is `lost` with all that it held. The `number` of the call names it in the
        journal."""
        try:
            async with self._sandbox.slot():
                box = await self._begun()
                for earlier in self._told[self._ran :]:
                    await _carried_out(box, earlier)
                    self._ran += 1
                text = await _carried_out(box, code)
        except Stopped as stopped:
            await self.end()
            if stopped.ending in _NOBODYS:
                raise EffectError(f"python could not be run ({stopped.ending}): {stopped.text}") from stopped
            text = f"{_failed(stopped.ending, stopped.text)}\nAll names are lost: the next call begins anew."
            return {"text": text, "lost": True}
        self._ran += 1
        return {"text": text, "lost": False}

    async def end(self) -> None:
        """End the interpreter, if there is one."""
        if self._open is not None:
            _, stack = self._open
            self._open = None
            self._ran = 0
            await stack.aclose()

    async def _begun(self) -> Box:
        if self._open is None:
            async with AsyncExitStack() as stack:
                box = await stack.enter_async_context(self._sandbox.box(self._sandbox.limits, most=_MOST_CALLS))
                self._open = (box, stack.pop_all())
        return self._open[0]


async def _carried_out(box: Box, code: str) -> str:
    box.go_on()
    reply = await box.request({"run": code, "name": CANDIDATE})
    failed = reply["error"][1] if "error" in reply else ""
    return _said(*box.printed(), failed or (f"it left with code {reply['exit']}" if reply.get("exit") else ""))


def _failed(ending: Ending, error: str) -> str:
    if ending is Ending.OK:
        return ""
    return error if ending is Ending.EXCEPTION else f"{ending}: {error}"


def _said(*parts: str) -> str:
    return "\n".join(part.rstrip() for part in parts if part.strip()) or "It printed nothing."


def _cut(text: str, shown: int) -> str:
    """At most so many characters, of the beginning and the end."""
    if len(text) <= shown:
        return text
    half = shown // 2
    return f"{text[:half]}\n... ({len(text) - 2 * half} characters are left out) ...\n{text[len(text) - half :]}"
