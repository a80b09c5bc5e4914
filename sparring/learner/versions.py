"""One policy's weights as samplers see them: which versions can be played, and which are still needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from sparring.arrays import F32, I32
from sparring.backend import SampledSequence, SamplingClient, SamplingParams, TrainingClient
from sparring.errors import SettingError

_CLOSING = 30.0
"""Seconds that a client may take to close; what it still holds then goes with the backend."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """A version's client, and how many hold it."""

    client: SamplingClient
    holds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStatistics:
    """The newest published version, how many are open, how many of those somebody holds, and by how many holds."""

    newest: int
    open: int
    held: int
    holds: int


class Versions:
    """The published versions of a model. `trim` closes those that nothing holds, that are not named, and that are not
    among the newest `keep`.

    With `follow`, whoever plays with the newest goes on with newer weights in the middle of a reply; without, a reply is made
    by the version that it began with.
    """

    def __init__(self, model: TrainingClient, keep: int, *, follow: bool = False) -> None:
        self.model = model
        self.newest = -1
        self._keep, self._follow = keep, follow
        self._following: SamplingClient | None = None
        self._entries: dict[int, Entry] = {}
        self._named: frozenset[int] = frozenset()

    async def install(self, version: int) -> None:
        """Publish the model's current weights as `version`; whoever asks for the newest gets it from now on."""
        assert version > self.newest, f"version {version} after {self.newest}: versions never go back"
        await self.model.publish(version)
        self._entries[version] = Entry(client=await self.model.sampler(version=version))
        if self._follow and self._following is None:
            self._following = await self.model.sampler("inflight")
        self.newest = version

    def hold(self, version: int) -> None:
        """Keep a version until it is released as often as it was held."""
        self.entry(version).holds += 1

    async def release(self, version: int) -> None:
        self.entry(version).holds -= 1
        await self.trim()

    def name(self, versions: Collection[int]) -> None:
        """Keep these until others are named; those that are not installed yet, from then on."""
        self._named = frozenset(versions)

    def statistics(self) -> VersionStatistics:
        held = [entry.holds for entry in self._entries.values() if entry.holds]
        return VersionStatistics(newest=self.newest, open=len(self._entries), held=len(held), holds=sum(held))

    def player(self, version: int | None = None) -> SamplingClient:
        """A sampling client of a version, or of whichever is the newest when a sample is asked for, or follows while it is
        made. Raises `SettingError` before anything is installed that could be followed."""
        if version is None and self._follow:
            if self._following is None:
                raise SettingError("nothing is installed yet that could be followed")
            return self._following
        return _Player(self, version)

    async def trim(self) -> None:
        """Close what is no longer needed. Once a version has left the books its client is closed, even if the caller is
        cancelled: nobody else would."""
        while (version := self._idle()) is not None:
            entry = self._entries.pop(version)
            with anyio.move_on_after(_CLOSING, shield=True):
                await entry.client.aclose()

    def _idle(self) -> int | None:
        """A version that may be closed now."""
        last = self.newest - self._keep
        idle = (v for v, entry in self._entries.items() if v <= last and entry.holds == 0 and v not in self._named)
        return next(idle, None)

    def entry(self, version: int) -> Entry:
        """The books of an installed version. Raises `SettingError` for one that is not there."""
        if version not in self._entries:
            raise SettingError(f"version {version!r} is not there; installed are {sorted(self._entries)}")
        return self._entries[version]


class _Player:
    """A client that looks its version up at each call and holds it while it samples."""

    def __init__(self, versions: Versions, version: int | None) -> None:
        self._versions = versions
        self._version = version

    @property
    def version(self) -> int:
        return self._versions.newest if self._version is None else self._version

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        async with self._held() as client:
            return await client.sample(prompt, params, n)

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        async with self._held() as client:
            return await client.logprobs(tokens)

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        async with self._held() as client:
            return await client.options(prompt, options)

    async def aclose(self) -> None:
        """Holds nothing between calls."""

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[SamplingClient]:
        """The client of the version that is the right one now."""
        version = self.version
        self._versions.hold(version)
        try:
            yield self._versions.entry(version).client
        finally:
            await self._versions.release(version)
