"""A model's published weights as something that can be sampled from: at one moment, or followed from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sparring.backend.local.lora import Weights
from sparring.backend.local.source import Source, Stamped
from sparring.backend.local.trainer import Trainer
from sparring.backend.sampling import SamplingClient
from sparring.errors import SettingError


class Snapshot(Protocol):
    """Weights that never change. Engine thread only, but for `open`."""

    def open(self, *, version: int, release: Callable[[], None]) -> SamplingClient:
        """A client of them; `release` is called once, when it is closed."""
        ...

    def free(self) -> None:
        """No more clients will be opened, and those that were have been closed."""
        ...


TakeSnapshot = Callable[[Trainer], Snapshot]
"""Makes a snapshot of a model's present weights, on the engine thread. Returns once it can be sampled from."""


class Follower(Protocol):
    """Lets clients follow one model from version to version. Engine thread only, but for `open`."""

    def move(self, version: int, snapshot: Snapshot) -> None:
        """A newer version was published: every token that is started from now on is started with it."""
        ...

    def open(self, *, release: Callable[[], None]) -> SamplingClient:
        """A client of whatever is the newest. Raises `SettingError` before anything was published."""
        ...


class Sampler(Protocol):
    """What snapshots in the memory of this process need of the torch sampler."""

    def open(self, weights: Weights | None, *, version: int, release: Callable[[], None]) -> SamplingClient: ...
    def follow(self, source: Source, *, release: Callable[[], None]) -> SamplingClient: ...
    def forget(self, weights: Weights) -> None: ...


@dataclass(frozen=True, slots=True)
class WeightsSnapshot:
    """A copy in the memory of this process."""

    sampler: Sampler
    weights: Weights

    def open(self, *, version: int, release: Callable[[], None]) -> SamplingClient:
        return self.sampler.open(self.weights, version=version, release=release)

    def free(self) -> None:
        """The memory goes with the last reference."""
        self.sampler.forget(self.weights)


class WeightsFollower:
    """Follows snapshots in the memory of this process."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._source: Source | None = None

    def move(self, version: int, snapshot: Snapshot) -> None:
        assert isinstance(snapshot, WeightsSnapshot), snapshot
        newest = Stamped(version=version, weights=snapshot.weights)
        if self._source is None:
            self._source = Source(newest, moving=True)
        else:
            self._source.move(newest)

    def open(self, *, release: Callable[[], None]) -> SamplingClient:
        if self._source is None:
            raise SettingError("kind='inflight': no version is published yet that could be followed; publish one first")
        return self._sampler.follow(self._source, release=release)
