"""What the gauges of a run make of a step, as it is journaled with it."""

from __future__ import annotations

import msgspec


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """A bound that a figure breaks in each of the policy's newest steps that have it: since which, and its `values` there, but
    none from before the run was last stopped for one."""

    since: int
    values: list[float]


class FellBack(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """After the step the policy's models went back: its next version is version `to` once more, weights and optimizer.

    why             which figure was out of bounds, in words
    digest, critic  of what they went back to; "" without a critic
    """

    to: int
    why: str
    digest: str
    critic: str = ""
