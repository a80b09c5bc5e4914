"""What a run in motion is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparring.agents import Player
from sparring.backend import Backend
from sparring.learner.folder import RunFolder
from sparring.learner.resume import Snapshots
from sparring.learner.run import Run
from sparring.learner.taught import Taught
from sparring.learner.tracker import Watcher
from sparring.learner.versions import Versions
from sparring.rollout import Coordinator, Journal
from sparring.rollout.culprit import Page


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a trainer works with. `lineups[source][lineup]` are the players of every seat; `models` learn, `versions` are
    played, and so are `others`: models by their names that nobody trains."""

    run: Run
    backend: Backend
    journal: Journal
    coordinator: Coordinator
    snapshots: Snapshots
    folder: RunFolder
    versions: Mapping[str, Versions]
    others: Mapping[str, Versions]
    models: Mapping[str, Taught]
    lineups: Sequence[Sequence[Mapping[str, Player]]]
    held_out: Mapping[str, Mapping[str, Player]]
    held_out_digests: frozenset[str]
    watchers: Sequence[Watcher] = field(default=())
    page: Page = field(default_factory=Page)
