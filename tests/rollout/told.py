"""A run told by hand: the coordinator's events, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sparring.agents import Sample
from sparring.environments import Reply
from sparring.rollout import Bound, Choice, Coordinator, Schedule, Source
from sparring.rollout.events import (
    Acted,
    Admitted,
    AnyEvent,
    Ended,
    Installed,
    Planned,
    Sampled,
    SeatResult,
    Stepped,
)
from sparring.rollout.fell_back import Broken, FellBack

TWO_SEATS = {"one": "alice", "two": "bob"}
ONE_POLICY = {"one": "alice", "two": "alice"}


def schedule(
    *lineups: Sequence[Mapping[str, str]],
    steps: int = 2,
    batch: int = 2,
    k: int = 0,
    members: int = 2,
    pinned: bool = False,
) -> Schedule:
    """A source for each sequence of line-ups."""
    policies = {policy for source in lineups for lineup in source for policy in lineup.values()}
    bound = Bound(units_per_step=batch, max_staleness=k, steps=steps)
    return Schedule(
        sources=tuple(Source(environment="game", tasks=9, lineups=tuple(source)) for source in lineups),
        bounds=dict.fromkeys(sorted(policies), bound),
        group_size=members,
        seed=0,
        pinned=pinned,
    )


class Story:
    """A run told by hand."""

    def __init__(self, plan: Schedule) -> None:
        self.state = Coordinator(plan)
        self.events: list[AnyEvent] = []

    def tell(self, event: AnyEvent) -> None:
        self.state.apply(event)
        self.events.append(event)

    def admit(self) -> Admitted:
        choice = self.state.next_group()
        assert isinstance(choice, Choice), choice
        event = Admitted(
            group=choice.group,
            source=choice.source,
            index=choice.index,
            task="",
            lineup=choice.lineup,
            trained=list(choice.trained),
            pinned=dict(choice.pinned),
            opponents=dict(choice.opponents),
        )
        self.tell(event)
        return event

    def admit_all(self) -> list[int]:
        groups = []
        while isinstance(self.state.next_group(), Choice):
            groups.append(self.admit().group)
        return groups

    def act(self, group: int, member: int, seat: str, version: int = 0, turn: int = 0) -> None:
        sample = Sample(
            prompt=np.arange(3, dtype=np.int32),
            whole=True,
            tokens=np.arange(4, dtype=np.int32),
            logprobs=np.zeros(4, np.float32),
            versions=((version, 4),),
            temperature=1.0,
        )
        self.tell(
            Acted(
                group=group,
                member=member,
                seat=seat,
                turn=turn,
                request=b"",
                reply=Reply(text="x"),
                sample=Sampled.packed(sample),
            )
        )

    def end(
        self,
        group: int,
        *,
        fault: str = "",
        silent: Sequence[str] = (),
        unjudged: str = "",
        version: int = 0,
        rewards: Sequence[float] = (),
    ) -> None:
        """All episodes of the group, the last of them with the fault. `rewards`: of each member, 1 where there are none."""
        seats = [seat for seat in self.state.trained_seats(self.state.groups[group].admitted) if seat not in silent]
        members = range(self.state.schedule.group_size)
        for member in members:
            for seat in seats:
                self.act(group, member, seat, version)
            value = rewards[member] if rewards else 1.0
            results = [SeatResult(seat=seat, value=None if unjudged else value, unjudged=unjudged) for seat in seats]
            drawn = self.state.groups[group].admitted.opponents
            results += [SeatResult(seat=seat, value=0.75) for seat in drawn]
            failed = fault if member == members[-1] or fault == "all" else ""
            self.tell(
                Ended(group=group, member=member, results=[] if failed else results, fault=failed, detail="because")
            )

    def plan(self, policy: str) -> list[int]:
        planned = self.state.next_batch(policy)
        assert isinstance(planned, Planned), planned
        self.tell(planned)
        return planned.groups

    def step(
        self, policy: str, *, install: bool = True, weights: Mapping[int, float] | None = None, to: int | None = None
    ) -> None:
        """`to`: the policy falls back to this version, and a figure stays out of its bounds."""
        step = self.state.budget.version(policy)
        self.tell(
            Stepped(
                policy=policy,
                step=step,
                digest="",
                advantages="",
                metrics={},
                engine={},
                durable={"at": step},
                weights=dict(weights or {}),
                broken={} if to is None else {"won: 0.1 to None, 3 steps": Broken(since=step, values=[0.0])},
                fell_back=None if to is None else FellBack(to=to, why="", digest=""),
            )
        )
        if install:
            self.tell(Installed(policy=policy, version=step + 1))
