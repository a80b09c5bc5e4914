"""Where a sampling client's weights come from: one version for good, or whichever is the newest that was published."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.backend.local.lora import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamped:
    """Weights (None: the base alone), and the version that tokens made with them are stamped with."""

    version: int
    weights: Weights | None


class Source:
    """The weights that the next token is made with, `now`. Read on any thread.

    `moving` sources go on to newer versions: on the engine thread, between two steps of the sampler.
    """

    __slots__ = ("moving", "now")

    def __init__(self, now: Stamped, *, moving: bool = False) -> None:
        self.now, self.moving = now, moving

    def move(self, newer: Stamped) -> None:
        """Go on to a newer version."""
        assert self.moving, f"a snapshot of version {self.now.version} never changes"
        assert newer.version > self.now.version, (newer.version, self.now.version)
        self.now = newer
