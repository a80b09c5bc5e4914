"""Which trajectories may fairly be compared: those of one task, seat and label, over a group or within one episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from sparring.rollout.trajectory import Trajectory

Scope = Literal["group", "episode"]
"""What a seat's trajectories are compared over: its group, or each episode by itself."""


def comparable_sets(drawn: Sequence[Trajectory], compare: Mapping[str, Scope]) -> list[list[int]]:
    """Indices of the trajectories that are compared: one task, seat and label, over the group or within the episode.

    `compare` is {seat: scope}, "group" for seats that it leaves out. Sets, and the trajectories of each, are in the order
    in which they were drawn.
    """
    sets: dict[tuple[int, int, str, str], list[int]] = {}
    for index, trajectory in enumerate(drawn):
        within = compare.get(trajectory.seat, "group") == "episode"
        key = (trajectory.group, trajectory.episode if within else -1, trajectory.seat, trajectory.label)
        sets.setdefault(key, []).append(index)
    return list(sets.values())


def all_equal(drawn: Sequence[Trajectory], compare: Mapping[str, Scope]) -> bool:
    """Whether no two trajectories that are compared have different returns. A set of one has nothing to differ from."""
    return all(len({drawn[index].reward for index in members}) == 1 for members in comparable_sets(drawn, compare))
