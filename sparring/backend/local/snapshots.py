"""Where a model's weights go to be sampled from: as they are at one moment, or followed from one version to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sparring.backend.local.lora import Weights
from sparring.backend.local.source import Source, Stamped
from sparring.backend.local.trainer import Trainer
from sparring.backend.sampling import SamplingClient
from sparring.errors import SettingError, UnsupportedError


class Snapshot(Protocol):
    """Weights that never change. Engine thread only, but for `open`."""

    def open(self, *, release: Callable[[], None]) -> SamplingClient:
        """A client of them; `release` is called once, when it is closed."""
        ...

    def free(self) -> None:
        """No more clients will be opened, and those that were have been closed."""
        ...


class Outlet(Protocol):
    """What one model's weights go through on their way to a sampler. Engine thread only."""

    def take(self, trainer: Trainer, version: int) -> Snapshot:
        """The present weights under a number. Returns once they can be sampled from."""
        ...

    def publish(self, trainer: Trainer, version: int) -> Snapshot:
        """The same, and whoever follows the model goes on with them: every token that is started from now on is started with
        them."""
        ...

    def follow(self, *, release: Callable[[], None]) -> SamplingClient:
        """A client of whatever is the newest that was published; `release` is called once, when it is closed. Raises
        `SettingError` before anything was, `UnsupportedError` where that cannot be."""
        ...

    def unfollow(self) -> None:
        """A client that follows was closed."""
        ...


def refuse_unpublished() -> SettingError:
    """What is said of following a model of which nothing was published."""
    return SettingError("kind='inflight': no version is published yet that could be followed; publish one first")


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
    version: int

    def open(self, *, release: Callable[[], None]) -> SamplingClient:
        return self.sampler.open(self.weights, version=self.version, release=release)

    def free(self) -> None:
        """The memory goes with the last reference."""
        self.sampler.forget(self.weights)


class Canary(Protocol):
    """What compares sampler and trainer after each publication."""

    def ask(self, trained: Weights, published: Stamped) -> None: ...
    def check(self) -> None: ...


class WeightsOutlet:
    """Into the memory of this process. `follows` is whether the sampler may change weights in the middle. What the canary finds
    fault with, where there is one, stops the next publication."""

    def __init__(self, sampler: Sampler, *, follows: bool, canary: Canary | None = None) -> None:
        self.sampler, self._follows, self._canary = sampler, follows, canary
        self._source: Source | None = None

    def take(self, trainer: Trainer, version: int) -> WeightsSnapshot:
        return WeightsSnapshot(self.sampler, trainer.adapter.snapshot(), version)

    def publish(self, trainer: Trainer, version: int) -> WeightsSnapshot:
        if self._canary is not None:
            self._canary.check()
        snapshot = self.take(trainer, version)
        newest = Stamped(version=version, weights=snapshot.weights)
        if self._canary is not None:
            self._canary.ask(trainer.adapter.weights, newest)
        if self._source is None:
            self._source = Source(newest, moving=True)
        else:
            self._source.move(newest)
        return snapshot

    def follow(self, *, release: Callable[[], None]) -> SamplingClient:
        if not self._follows:
            raise UnsupportedError("kind='inflight': a deterministic backend samples from snapshots only")
        if self._source is None:
            raise refuse_unpublished()
        return self.sampler.follow(self._source, release=release)

    def unfollow(self) -> None:
        """Nothing was taken."""
