"""Groups from their admission until none of their units is left, and what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparring.rollout.bias import DropBias, Fate
from sparring.rollout.events import CHANGED, DEADLINE, LATE, SET_ASIDE, Acted, Admitted, Affected, Ended
from sparring.rollout.ledger import DropReason, Ledger
from sparring.rollout.trajectory import Trajectory, trajectories


@dataclass(slots=True, kw_only=True)
class LiveEpisode:
    """What the journal holds of an episode whose group is not done: of its `attempt` that is under way, and its end."""

    attempt: int = 0
    past: list[Acted | Affected] = field(default_factory=list)
    ended: Ended | None = None


@dataclass(slots=True, kw_only=True)
class LiveGroup:
    """An admitted group, until none of its units is left; `left` are the policies that still have one.

    `due` is each unit's last step, `since` the version that its policy had made when the group was admitted, `meant` the step
    that a unit of each policy of the run would have trained then.
    """

    admitted: Admitted
    due: Mapping[str, int]
    since: Mapping[str, int]
    meant: Mapping[str, int]
    members: list[LiveEpisode]
    left: list[str]

    @property
    def playing(self) -> bool:
        return any(member.ended is None for member in self.members)

    def cut_off(self, fault: str, detail: str) -> list[Ended]:
        """The ends of the episodes that are playing, if they end now and for this."""
        return [
            Ended(group=self.admitted.group, member=member, fault=fault, detail=detail, attempt=one.attempt)
            for member, one in enumerate(self.members)
            if one.ended is None
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One seat's part in an episode that makes no trajectory: the tokens that it sampled, and what became of it."""

    seat: str
    fate: Fate
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """All that a group's episodes came to: the judged trajectories of every policy, and the parts that made none."""

    trajectories: tuple[Trajectory, ...]
    lost: tuple[Part, ...]
    episodes: tuple[Ended, ...]

    @property
    def reason(self) -> DropReason:
        """Why there is nothing to train on for a policy without trajectories."""
        faults = {ended.fault for ended in self.episodes if ended.fault}
        if faults and faults <= SET_ASIDE:
            return "late" if LATE in faults else "changed"
        return "fault" if faults else "empty"

    def tokens(self, seats: Sequence[str]) -> dict[str, int]:
        """The tokens that each of the seats sampled in vain."""
        return {seat: sum(part.tokens for part in self.lost if part.seat == seat) for seat in seats}


def completed(members: Sequence[LiveEpisode], seats: Mapping[str, str]) -> Completed:
    """What came of episodes that have all ended; `seats` are those trained, {seat: policy}."""
    made: list[Trajectory] = []
    lost: list[Part] = []
    episodes: list[Ended] = []
    for member in members:
        assert member.ended is not None
        episodes.append(member.ended)
        acted = [event for event in member.past if isinstance(event, Acted)]
        mine = trajectories(acted, member.ended, seats)
        made += mine
        lost += _lost(acted, member.ended, mine, seats)
    return Completed(trajectories=tuple(made), lost=tuple(lost), episodes=tuple(episodes))


def _lost(acted: Sequence[Acted], ended: Ended, made: Sequence[Trajectory], seats: Mapping[str, str]) -> list[Part]:
    """What the seats sampled that is in none of the episode's trajectories: one part for each seat or fork."""
    judged = {(one.seat, one.fork) for one in made}
    sampled: Counter[tuple[str, str]] = Counter()
    for event in acted:
        if event.sample is not None and event.seat in seats and (event.seat, event.fork) not in judged:
            sampled[event.seat, event.fork] += event.sample.count
    fate: Fate = "empty"
    if ended.fault:
        fate = _FATES.get(ended.fault, "fault")
        for seat in seats:
            if (seat, "") not in judged:
                sampled.setdefault((seat, ""), 0)
    return [Part(seat=seat, fate=fate, tokens=count) for (seat, _), count in sampled.items()]


_FATES: Mapping[str, Fate] = {DEADLINE: "deadline", LATE: "late", CHANGED: "changed"}


def count_lost(bias: DropBias, done: Completed, seats: Mapping[str, str], task: tuple[int, int]) -> None:
    """Count the parts that made no trajectory; `seats` are those trained, {seat: policy}."""
    for part in done.lost:
        bias.add(seats[part.seat], part.seat, part.fate, tokens=part.tokens, reward=None, task=task)


def count_retried(
    bias: DropBias, ledger: Ledger, past: Sequence[Acted | Affected], seats: Mapping[str, str], task: tuple[int, int]
) -> None:
    """Count an attempt that is made again, in each of the seats that are trained, {seat: policy}."""
    for seat, policy in seats.items():
        acted = [event for event in past if isinstance(event, Acted) and event.seat == seat]
        tokens = sum(event.sample.count for event in acted if event.sample is not None)
        bias.add(policy, seat, "retried", tokens=tokens, reward=None, task=task)
        ledger.retried(policy, {seat: tokens})


def count_frozen(ledger: Ledger, members: Sequence[LiveEpisode], seats: Mapping[str, str]) -> None:
    """Count what policies of the run sampled in a group that they are not trained on; `seats` are those, {seat: policy}."""
    for seat, policy in seats.items():
        acted = [
            event for member in members for event in member.past if isinstance(event, Acted) and event.seat == seat
        ]
        ledger.frozen(policy, seat, sum(event.sample.count for event in acted if event.sample is not None))


def count_made(bias: DropBias, made: Sequence[Trajectory], fate: Fate, task: tuple[int, int]) -> None:
    """Count the trajectories of a unit that was trained, or dropped whole."""
    for one in made:
        bias.add(one.policy, one.seat, fate, tokens=one.action_tokens, reward=one.reward, task=task)
