"""A model's weights at one moment, as something that can be sampled from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sparring.backend.local.lora import Weights
from sparring.backend.local.trainer import Trainer
from sparring.backend.sampling import SamplingClient


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


class OpenSampler(Protocol):
    """Makes a sampling client of an adapter's weights; `release` is called once, when the client is closed."""

    def __call__(self, weights: Weights, *, version: int, release: Callable[[], None]) -> SamplingClient: ...


@dataclass(frozen=True, slots=True)
class WeightsSnapshot:
    """A copy in the memory of this process."""

    open_sampler: OpenSampler
    weights: Weights

    def open(self, *, version: int, release: Callable[[], None]) -> SamplingClient:
        return self.open_sampler(self.weights, version=version, release=release)

    def free(self) -> None:
        """The memory goes with the last reference."""
