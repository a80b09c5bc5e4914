"""An engine in vLLM's place, and answers as vLLM's are: it answers, dies, hangs or refuses as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio

from sparring.backend.vllm.engine import Engine
from sparring.backend.vllm.errors import EngineDied
from sparring.backend.vllm.files import WeightsFile
from sparring.backend.vllm.following import Followed, label
from sparring.errors import BackendError


def file(version: int) -> WeightsFile:
    """A version that nobody reads."""
    return WeightsFile(name=f"v{version}", number=version + 1, version=version, folder=Path("/nowhere"))


WEIGHTS = file(0)


@dataclass(frozen=True, slots=True)
class Span:
    """vLLM's `WeightVersionSpan`."""

    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Flat:
    """vLLM's `FlatLogprobs`: what stands at each place lies one after the other."""

    start_indices: list[int]
    end_indices: list[int]
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class Completion:
    index: int
    token_ids: list[int]
    logprobs: Flat
    finish_reason: str
    weight_versions: list[Span] = field(default_factory=list[Span])


@dataclass(frozen=True, slots=True)
class Output:
    outputs: list[Completion] = field(default_factory=list[Completion])
    prompt_logprobs: Flat | None = None


def completion(index: int, tokens: list[int], logprobs: list[float], reason: str = "length") -> Completion:
    places = list(range(len(tokens)))
    return Completion(index, tokens, Flat(places, [place + 1 for place in places], logprobs), reason)


class Scripted:
    """Answers a prompt with its sum, or what `answer` makes of it. `dies`, `hangs` and `waits` (until `go_on`) say at which
    token, `refuses`, `stalls` which version it does not load, at once or ever; `warms` is whether it comes through its first
    step. What follows a model is stamped with what it has when it ends; `moves` are the versions that it was given, `dies_of`
    the one that it dies of, `stays` the one that it does not go on from, though it says so. `computes` is whether it looks as
    if it did while it does not answer."""

    def __init__(
        self,
        *,
        dies: int = -1,
        hangs: int = -1,
        answers: bool = True,
        refuses: int = -1,
        stalls: int = -1,
        warms: bool = True,
        waits: int = -1,
        dies_of: int = -1,
        stays: int = -1,
        computes: bool = False,
        answer: Callable[[Sequence[int]], Any] = sum,
    ) -> None:
        self._answer = answer
        self._dies, self._hangs, self._answers = dies, hangs, answers
        self._refuses, self._stalls, self._warms = refuses, stalls, warms
        self._waits, self._dies_of, self._stays = waits, dies_of, stays
        self._computes, self._seconds = computes, 0.0
        self.moves: list[WeightsFile] = []
        self.followed: dict[int, WeightsFile] = {}
        self.asked_for: list[list[int]] = []
        self.answered: list[list[int]] = []
        self.loaded: set[int] = set()
        self.dead = self.was_shut = False
        self.processes: tuple[int, ...] = (1,)
        self.running = self.drawing = 0
        self._killed, self._goes_on = anyio.Event(), anyio.Event()
        self.asked, self.begun = threading.Event(), threading.Event()

    @property
    def computed(self) -> float:
        self._seconds += self._computes
        return self._seconds

    async def generate(self, tokens: Sequence[int], params: Mapping[str, Any], weights: WeightsFile) -> Any:
        self.running += 1
        self.asked_for.append(list(tokens))
        self.asked.set()
        try:
            if self.dead or self._dies in tokens:
                self.dead = True
                raise EngineDied
            if self._hangs in tokens:
                await self._killed.wait()
                raise EngineDied
            if self._waits in tokens:
                await self._goes_on.wait()
            self.answered.append(list(tokens))
            return self._answer(tokens)
        finally:
            self.running -= 1

    async def follow(self, tokens: Sequence[int], params: Mapping[str, Any], source: Followed) -> Any:
        await self.move(source, source.now)
        output = await self.generate(tokens, params, source.now)
        stamp = label({source.number: self.followed[source.number].version})
        return Output([replace(one, weight_versions=[Span(stamp, 0, len(one.token_ids))]) for one in output.outputs])

    async def move(self, source: Followed, weights: WeightsFile) -> None:
        known = self.followed.get(source.number)
        if known is None or (known.number < weights.number and known.version != self._stays):
            self.dead = self.dead or weights.version == self._dies_of
            if self.dead:
                raise EngineDied
            self.moves.append(weights)
            self.followed[source.number] = weights

    async def go_on(self, engine: Engine) -> None:
        """What waits is answered."""
        self._goes_on.set()

    async def warm_up(self) -> None:
        self.begun.set()
        if not self._warms:
            await anyio.sleep_forever()

    async def load(self, weights: WeightsFile) -> None:
        if weights.number == self._refuses:
            raise BackendError(f"version {weights.number} cannot be read")
        if weights.number == self._stalls:
            await anyio.sleep_forever()
        self.loaded.add(weights.number)

    async def unload(self, weights: WeightsFile | Followed) -> None:
        self.loaded.discard(weights.number)
        self.followed.pop(weights.number, None)

    async def answer(self) -> None:
        if not self._answers:
            await anyio.sleep_forever()

    def kill(self) -> None:
        self.dead = True
        self._killed.set()

    def shut(self) -> None:
        self.was_shut = True


def ask(tokens: Sequence[int]) -> Callable[[Engine], Any]:
    """The question for a prompt's sum."""
    return lambda engine: engine.generate(tokens, {}, WEIGHTS)
