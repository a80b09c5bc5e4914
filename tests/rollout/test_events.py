"""Events: what is written is what is read, byte for byte, and the canonical order forgets only what ran beside what."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sparring.agents import Sample
from sparring.environments import Reply
from sparring.rollout.events import (
    SCHEMA,
    Accepted,
    Acted,
    Admitted,
    Affected,
    AnyEvent,
    Checkpointed,
    Died,
    Ended,
    Evaluated,
    Installed,
    Noted,
    Opened,
    Planned,
    Restarted,
    Retried,
    Sampled,
    SeatResult,
    Stepped,
    Timed,
    canonical,
    decode_segment,
    encode,
    segment,
)
from sparring.rollout.fell_back import Broken, FellBack

EVERY_KIND: list[AnyEvent] = [
    Opened(run={"settings": {"steps": 3}, "tasks": None}),
    Admitted(group=0, source=1, index=7, task="d" * 64, lineup=2, trained=["a", "b"], pinned={"a": 3}),
    Acted(group=0, member=1, seat="s", fork="0-1:2", context=3, turn=4, attempt=5, request=b"\x00\xff"),
    Acted(group=0, member=1, seat="s", turn=0, request=b"", error="timeout", message="too late"),
    Affected(group=0, member=1, name="m:f (branch 0-1)", arguments=b"\x01", occurrence=2, result=b"[1]"),
    Died(life="0123456789ab", group=1, member=0, held_out="held-out", version=2),
    Restarted(group=0, member=1),
    Retried(group=0, member=1, attempt=2, fault="KeyError", detail="'x'"),
    Ended(group=0, member=1, results=[SeatResult(seat="s", value=0.0), SeatResult(seat="t", unjudged="why")]),
    Ended(group=0, member=0, fault="KeyError", detail="'x'", metrics={"m": float("inf")}, notes={"n": "\u2028"}),
    Planned(policy="a", step=0, groups=[0, 2]),
    Stepped(policy="a", step=0, digest="d", advantages="e", metrics={"r": 0.1}, engine={}, durable={"advantages": {}}),
    Stepped(
        policy="a",
        step=1,
        digest="d",
        advantages="e",
        metrics={},
        engine={"x": 0.5},
        durable={},
        broken={"x: 1.0 to None, 3 steps": Broken(since=0, values=[0.25, float("inf")])},
        fell_back=FellBack(to=0, why="x was 0.25", digest="f", critic="c"),
    ),
    Installed(policy="a", version=1),
    Evaluated(
        name="h", version=1, headline="r", values=[None, 1.0], rewards=[0.0, None], transcripts=[[("u", "t")], []]
    ),
    Checkpointed(policy="a", step=1),
    Timed(policy="a", step=0, timing={"seconds": 1.5}),
    Accepted(
        changes=["tasks of train/0"], fingerprints={"tasks of train/0": "a", "environment of train/0": {"b:c": "d"}}
    ),
    Noted(kind="resumed", text=""),
]


def test_every_kind_comes_back_as_it_was() -> None:
    assert decode_segment(segment([encode(event) for event in EVERY_KIND])) == EVERY_KIND
    assert {type(event) for event in EVERY_KIND} == set(AnyEvent.__args__)


def test_the_schema_is_in_the_bytes() -> None:
    plain = msgspec.msgpack.decode(encode(Opened(run={})))
    assert plain == {"event": "opened", "schema": SCHEMA, "run": {}}


@pytest.mark.parametrize("blob", [b"", b"\x91", b"\x91\x01", b"\xc0", segment([encode(EVERY_KIND[0])])[:-1]])
def test_what_is_no_segment_is_refused(blob: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_segment(blob)


floats = st.floats(width=32, allow_nan=False)
ids = st.integers(0, 2**31 - 1)


@given(
    arrays.arrays("<i4", st.integers(0, 20), elements=ids),
    st.lists(st.tuples(ids, floats), max_size=20),
    st.booleans(),
)
def test_a_sample_comes_back_bit_for_bit(prompt: np.ndarray, drawn: list[tuple[int, float]], whole: bool) -> None:
    sample = Sample(
        prompt=prompt,
        whole=whole,
        tokens=np.array([token for token, _ in drawn], np.int32),
        logprobs=np.array([value for _, value in drawn], np.float32),
        versions=((3, len(drawn)), (4, 0)),
        temperature=0.7,
    )
    event = Acted(
        group=0, member=0, seat="s", turn=0, request=b"", reply=Reply(text="t"), sample=Sampled.packed(sample)
    )
    (again,) = decode_segment(segment([encode(event)]))
    assert isinstance(again, Acted) and again.sample is not None
    found = again.sample.unpacked()
    for name in ("prompt", "tokens", "logprobs"):
        one, other = getattr(sample, name), getattr(found, name)
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    assert (found.whole, found.versions, found.temperature) == (whole, sample.versions, 0.7)


def acted(group: int, member: int, turn: int) -> Acted:
    return Acted(group=group, member=member, seat="s", turn=turn, request=b"")


@given(st.permutations(EVERY_KIND))
def test_the_canonical_order_does_not_depend_on_the_order(events: list[AnyEvent]) -> None:
    events = [event for event in events if not isinstance(event, Restarted | Retried)]
    expected = canonical([event for event in EVERY_KIND if not isinstance(event, Restarted | Retried)])
    assert canonical(events) == expected
    assert {type(event) for event in expected} == {
        Opened,
        Admitted,
        Acted,
        Affected,
        Ended,
        Planned,
        Stepped,
        Evaluated,
    }


def test_the_canonical_order_keeps_what_differs() -> None:
    assert canonical([acted(0, 0, 0)]) != canonical([acted(0, 0, 0), acted(0, 0, 0)]), (
        "a reply twice is not a reply once"
    )
    assert canonical([acted(0, 0, 0)]) != canonical([acted(0, 0, 1)])


def test_an_attempt_that_was_made_again_is_kept_without_what_was_said_in_it() -> None:
    again = Retried(group=0, member=0, fault="KeyError")
    twice: list[AnyEvent] = [
        acted(0, 0, 0),
        acted(0, 0, 1),
        again,
        acted(0, 0, 0),
        msgspec.structs.replace(again, attempt=1),
    ]
    ended = Ended(group=0, member=0, attempt=2)
    found = canonical([*twice, acted(0, 0, 0), ended])
    assert found == [acted(0, 0, 0), again, twice[-1], ended]


def test_what_was_before_a_restart_is_forgotten() -> None:
    other = acted(0, 1, 0)
    events: list[AnyEvent] = [acted(0, 0, 0), other, acted(0, 0, 1), Restarted(group=0, member=0), acted(0, 0, 0)]
    assert canonical(events) == [acted(0, 0, 0), other]
