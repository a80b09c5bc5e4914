"""What happens in a run, as the journal keeps it: the one history that everything else is derived from.

Events are written before anything that depends on them, in one order. Each is a msgspec struct with a tag, so that a segment is
self-describing; `Opened.schema` is the version of this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from sparring.agents import Sample
from sparring.environments import Reply
from sparring.rollout.fell_back import Broken, FellBack

SCHEMA = 6


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """The base of all events."""


class Opened(Event, frozen=True, kw_only=True, tag="opened"):
    """The run began: everything resolved, as `run.json` shows it. Always the first event, once."""

    schema: int = msgspec.field(default_factory=lambda: SCHEMA)  # by a factory, as a plain default would not be written
    run: dict[str, Any]


class Admitted(Event, frozen=True, kw_only=True, tag="admitted"):
    """A group was admitted: `group_size` episodes of one task.

    source, index   which `Episodes` of the run, and which task of it
    lineup          which of its line-ups
    trained         the policies that have a unit in it
    pinned          the versions that policies play with throughout, where they are fixed
    opponents       {seat: the version that was drawn from its league}
    """

    group: int
    source: int
    index: int
    task: str
    lineup: int
    trained: list[str]
    pinned: dict[str, int] = {}
    opponents: dict[str, int] = {}


class Sampled(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`Sample` as little-endian bytes: i32 prompt and tokens, f32 log-probs."""

    prompt: bytes
    whole: bool
    tokens: bytes
    logprobs: bytes
    versions: list[tuple[int, int]]
    temperature: float

    @property
    def count(self) -> int:
        """Sampled tokens."""
        return len(self.tokens) // 4

    @staticmethod
    def packed(sample: Sample) -> Sampled:
        return Sampled(
            prompt=sample.prompt.astype("<i4").tobytes(),
            whole=sample.whole,
            tokens=sample.tokens.astype("<i4").tobytes(),
            logprobs=sample.logprobs.astype("<f4").tobytes(),
            versions=list(sample.versions),
            temperature=sample.temperature,
        )

    def unpacked(self) -> Sample:
        return Sample(
            prompt=np.frombuffer(self.prompt, "<i4"),
            whole=self.whole,
            tokens=np.frombuffer(self.tokens, "<i4"),
            logprobs=np.frombuffer(self.logprobs, "<f4"),
            versions=tuple((int(version), int(count)) for version, count in self.versions),
            temperature=self.temperature,
        )


class Acted(Event, frozen=True, kw_only=True, tag="acted"):
    """A seat's player replied, or failed to (`error`: "timeout" or "context_full", with a `message`).

    (seat, fork, context, turn, attempt) is the key within the episode; `request` digests what was asked for.
    """

    group: int
    member: int
    seat: str
    fork: str = ""
    context: int = 0
    turn: int
    attempt: int = 0
    request: bytes
    reply: Reply | None = None
    sample: Sampled | None = None
    error: str = ""
    message: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        return ("act", self.seat, self.fork, self.context, self.turn, self.attempt)


class Affected(Event, frozen=True, kw_only=True, tag="affected"):
    """An effect answered with JSON, or failed (`error`). (name, arguments, occurrence) is the key within the episode.

    What a player says of options (`Seat.choose`) is one too, with `player`: its log-probs, or why they do not fit.
    """

    group: int
    member: int
    name: str
    arguments: bytes
    occurrence: int = 0
    result: bytes = b""
    error: str = ""
    player: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        return ("effect", self.name, self.arguments, self.occurrence)


class Restarted(Event, frozen=True, kw_only=True, tag="restarted"):
    """An episode that holds something live (`resumable=False`) starts again: what it said and did before counts no more."""

    group: int
    member: int


class Retried(Event, frozen=True, kw_only=True, tag="retried"):
    """An attempt at an episode failed, and the episode starts again, as it was told to: what it said and did before counts no
    more. `attempt` is the number of the one that failed."""

    group: int
    member: int
    attempt: int = 0
    fault: str
    detail: str = ""


class Died(Event, frozen=True, kw_only=True, tag="died"):
    """The process ended while this episode's own code ran; `life` names that process, so that it counts once.

    held_out, version   for an episode of a held-out set, of which `group` is the task's index; else empty
    """

    life: str
    group: int
    member: int
    held_out: str = ""
    version: int = 0


class SeatResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One seat or fork at the end: its return or why it has none, and the rewards of its turns."""

    seat: str
    fork: str = ""
    label: str = ""
    value: float | None = None
    unjudged: str = ""
    turn_rewards: dict[int, float] = {}


DEADLINE = "deadline"
LATE = "late"
QUARANTINED = "quarantined"
CHANGED = "changed"
SET_ASIDE = frozenset({LATE, CHANGED})
"""The faults that are nobody's failure."""


class Ended(Event, frozen=True, kw_only=True, tag="ended"):
    """An episode ended, in its attempt number `attempt`. `fault` is empty, or says how it failed (an exception, a deadline):
    then it has results only where failed episodes are scored, and without them nothing of it is trained.

    `LATE` is the fault of an episode that was dropped for its age because the run was told to, `CHANGED` of one whose task
    became another, which was accepted: nobody's failure. `QUARANTINED` is that of one that ended the process as often as it
    may: it is not played again.
    """

    group: int
    member: int
    results: list[SeatResult] = []
    metrics: dict[str, float] = {}
    notes: dict[str, str] = {}
    fault: str = ""
    detail: str = ""
    attempt: int = 0


class Planned(Event, frozen=True, kw_only=True, tag="planned"):
    """A learner is about to train `groups`' units of its policy as step `step`, in this order, and those of `reused`, which
    it trained before, once more."""

    policy: str
    step: int
    groups: list[int]
    reused: list[int] = []


class Stepped(Event, frozen=True, kw_only=True, tag="stepped"):
    """The step is in the weights. `digest` is theirs; `durable` holds the state of everything that changes between steps.

    metrics     derived from the units alone: recomputed, byte for byte, by a replay
    advantages  sha256 over the advantages, likewise
    engine      what the backend measured: equal where the backend is deterministic
    weights     {group: its weight in the draw of units that are used again}, where that draw is weighted
    critic      digest of the critic's weights; "" without one
    measured    what other models said of the batch before the step, f32 for each action token (see `learner.measured`)
    broken      {a gauge's bounds: since when they are broken}
    fell_back   where a gauge had the policy's models go back: then the version that follows is not what the step made
    """

    policy: str
    step: int
    digest: str
    advantages: str
    metrics: dict[str, float]
    engine: dict[str, float]
    durable: dict[str, Any]
    weights: dict[int, float] = {}
    critic: str = ""
    measured: dict[str, bytes] = {}
    broken: dict[str, Broken] = {}
    fell_back: FellBack | None = None


class Installed(Event, frozen=True, kw_only=True, tag="installed"):
    """Every request to the policy's samplers is made with `version` or a newer one from here on.

    A request that still waits in a sampler may start older tokens: it belongs to a group that was admitted before.
    """

    policy: str
    version: int


class Evaluated(Event, frozen=True, kw_only=True, tag="evaluated"):
    """Held-out play at one version: per task, its index, headline value, and transcript."""

    name: str
    version: int
    headline: str
    values: list[float | None]
    rewards: list[float | None]
    transcripts: list[list[tuple[str, str]]]


class Checkpointed(Event, frozen=True, kw_only=True, tag="checkpointed"):
    """Weights and optimizer of `policy` after `step` steps lie in the run folder."""

    policy: str
    step: int


class Timed(Event, frozen=True, kw_only=True, tag="timed"):
    """Figures of one step that depend on the clock."""

    policy: str
    step: int
    timing: dict[str, float]


class Accepted(Event, frozen=True, kw_only=True, tag="accepted"):
    """The run goes on although its code or its data changed, as it was told to. `fingerprints` are those of now, all of them:
    from here on the run is held against these; `changes` names what changed. Whoever was playing starts again."""

    changes: list[str]
    fingerprints: dict[str, Any]


class Noted(Event, frozen=True, kw_only=True, tag="noted"):
    """Something a reader of the run should know: a resume, a divergence, an ending."""

    kind: str
    text: str


AnyEvent = (
    Opened
    | Admitted
    | Acted
    | Affected
    | Restarted
    | Retried
    | Died
    | Ended
    | Planned
    | Stepped
    | Installed
    | Evaluated
    | Checkpointed
    | Timed
    | Accepted
    | Noted
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[AnyEvent])


def encode(event: AnyEvent) -> bytes:
    return _encoder.encode(event)


def decode_segment(blob: bytes) -> list[AnyEvent]:
    """The events of one segment. Raises `msgspec.MsgspecError` for anything else."""
    return _decoder.decode(blob)


def segment(encoded: list[bytes]) -> bytes:
    """Encoded events as one msgpack array."""
    count = len(encoded)
    if count < 16:
        head = bytes([0x90 | count])
    elif count < 1 << 16:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        head = b"\xdd" + count.to_bytes(4, "big")
    return head + b"".join(encoded)


def standing(events: Sequence[AnyEvent]) -> list[AnyEvent]:
    """The events without what episodes said and did before they started again."""
    again = {(one.group, one.member): place for place, one in enumerate(events) if isinstance(one, Restarted | Retried)}
    return [
        event
        for place, event in enumerate(events)
        if not (isinstance(event, Acted | Affected) and place < again.get((event.group, event.member), -1))
    ]


def canonical(events: Sequence[AnyEvent]) -> list[AnyEvent]:
    """The same history in one order that does not depend on what ran beside what: two deterministic runs are equal in it.

    Figures of the clock and of this process (timing, notes, checkpoints, installations) are left out, and what an episode
    did before it started again; episodes follow one another, and within one its replies and effects are ordered by key.
    """
    kept = [event for event in standing(events) if type(event) in _CANONICAL]
    return sorted(kept, key=_place)


_CANONICAL: dict[type, int] = {
    Opened: 0,
    Admitted: 1,
    Acted: 2,
    Affected: 2,
    Retried: 2,
    Ended: 2,
    Planned: 3,
    Stepped: 4,
    Evaluated: 5,
}


def _place(event: AnyEvent) -> tuple[Any, ...]:
    rank = _CANONICAL[type(event)]
    match event:
        case Acted() | Affected():
            return (rank, event.group, event.member, 0, *event.key)
        case Retried():
            return (rank, event.group, event.member, 1, event.attempt)
        case Ended():
            return (rank, event.group, event.member, 2)
        case Planned() | Stepped():
            return (rank, event.policy, event.step)
        case Evaluated():
            return (rank, event.name, event.version)
        case Admitted():
            return (rank, event.group)
        case _:
            return (rank,)
