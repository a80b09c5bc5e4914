"""Slots: in order, within the bound, never two for one, and moved only together with what they hold."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sparring.backend.local.cache import STEP, KeyValueCache
from sparring.backend.local.request import Drawn, Group, Request
from sparring.backend.local.scheduler import Scheduler
from sparring.backend.sampling import SamplingParams
from tests.backend.drawing import fixed

SLOTS, MAX_TOKENS = 6, 6 * STEP


def cache_of(slots: int, tokens: int) -> KeyValueCache:
    return KeyValueCache(
        layers=1, heads=1, width=1, slots=slots, max_tokens=tokens, dtype=torch.float32, device=torch.device("cpu")
    )


def request_of(prompt: int, n: int, tokens: int) -> Request:
    params = SamplingParams(max_tokens=tokens)
    return Request(np.full(3, prompt, np.int32), params, n, source=fixed(0), decode=lambda _: "")


def test_who_waits_behind_many_is_admitted_with_others() -> None:
    schedule = Scheduler(cache_of(32, 32 * STEP))
    schedule.add(request_of(0, 32, 5))
    schedule.add(request_of(1, 8, 5))
    schedule.admit()
    schedule.start(schedule.filling[0])
    assert (len(schedule.running), len(schedule.waiting)) == (32, 8)
    admitted: list[int] = []
    while schedule.waiting:
        schedule.finish(schedule.running[0])
        schedule.admit()
        if schedule.filling:
            (group,) = schedule.filling
            admitted.append(len(group.members))
            schedule.start(group)
    assert admitted == [4, 4], "an eighth of the others each time, not one by one"


def test_who_waits_alone_is_admitted_at_once() -> None:
    schedule = Scheduler(cache_of(32, 32 * STEP))
    schedule.add(request_of(0, 31, 5))
    schedule.admit()
    schedule.start(schedule.filling[0])
    schedule.add(request_of(1, 1, 5))
    schedule.admit()
    assert len(schedule.filling) == 1 and not schedule.waiting


class Scheduling(RuleBasedStateMachine):
    """Requests come, are cancelled and finish in any order; each running sequence's memory carries its mark."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = cache_of(SLOTS, MAX_TOKENS)
        self.schedule = Scheduler(self.cache)
        self.order: list[Drawn] = []
        self.admitted: set[Drawn] = set()
        self.marks: dict[Drawn, int] = {}

    @rule(prompt=st.integers(0, 2), n=st.integers(1, 4), tokens=st.sampled_from([5, STEP, 3 * STEP, 9 * STEP]))
    def add(self, prompt: int, n: int, tokens: int) -> None:
        request = request_of(prompt, n, tokens)
        self.schedule.add(request)
        self.order += request.drawn

    @rule(n=st.integers(1, 3))
    def run(self, n: int) -> None:
        """The common case in one go."""
        self.add(0, n, 5)
        self.admit()
        while self.schedule.filling:
            self.begin(self.schedule.filling[-1])

    @rule()
    def admit(self) -> None:
        self.schedule.admit()
        now = {drawn for group in self.schedule.filling for drawn in group.members} | set(self.schedule.running)
        waiting = [drawn for drawn in self.order if drawn not in now and drawn not in self.admitted]
        assert waiting == list(self.schedule.waiting), "those who came first are admitted first"
        self.admitted |= now
        if waiting:  # the first who waits has a reason to
            needs = max(drawn.request.needs for drawn in [*now, waiting[0]])
            assert len(now) + 1 > SLOTS or not self.cache.fits(len(now) + 1, needs)
            assert now

    @precondition(lambda self: self.schedule.filling)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.begin(data.draw(st.sampled_from(self.schedule.filling)))

    def begin(self, group: Group) -> None:
        assert len({drawn.request.prompt.tobytes() for drawn in group.members}) == 1
        self.cache.reserve(self.schedule.rows, 3)
        self.mark(group.members[0])
        self.cache.copy(group.slot, [drawn.slot for drawn in group.members[1:]], 3)
        for drawn in group.members:
            drawn.length = 3
            self.marks[drawn] = self.marks[group.members[0]]
        self.schedule.start(group)

    def mark(self, drawn: Drawn) -> None:
        self.marks[drawn] = len(self.marks) + 1
        self.cache.layer(0)[0][drawn.slot, :, :3] = self.marks[drawn]

    @precondition(lambda self: self.schedule.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.schedule.finish(data.draw(st.sampled_from(self.schedule.running)))

    @precondition(lambda self: self.schedule.requests())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.schedule.requests()))
        request.cancelled = True
        self.schedule.remove(lambda other: other.cancelled)
        self.order = [drawn for drawn in self.order if drawn.request is not request]

    @precondition(lambda self: self.schedule.requests())
    @rule(data=st.data())
    def refill(self, data: st.DataObject) -> None:
        """New weights: what ran or was half computed is computed again where it is; the rest is left alone."""
        request = data.draw(st.sampled_from(self.schedule.requests()))
        slots = {drawn: drawn.slot for drawn in request.drawn}
        others = [drawn for drawn in self.schedule.running if drawn.request is not request]
        for group in self.schedule.filling:
            group.done = 1
        self.schedule.refill(request)
        assert self.schedule.running == others
        assert {drawn: drawn.slot for drawn in request.drawn} == slots
        for group in self.schedule.filling:
            assert (group.done == 0) == any(drawn.request is request for drawn in group.members)

    @precondition(lambda self: self.schedule.running)
    @rule()
    def compact(self) -> None:
        in_order = self.schedule.compact()
        slots = [drawn.slot for drawn in self.schedule.running]
        assert slots == sorted(slots)
        assert in_order == (slots == list(range(len(slots))))
        assert in_order or self.schedule.filling

    @invariant()
    def slots_are_held_once(self) -> None:
        held = [*self.schedule.running, *(drawn for group in self.schedule.filling for drawn in group.members)]
        slots = sorted([drawn.slot for drawn in held] + self.schedule._free)
        assert slots == list(range(SLOTS))
        assert all(drawn.slot == -1 for drawn in self.schedule.waiting)
        assert self.schedule.rows == 1 + max((drawn.slot for drawn in held), default=-1)
        assert self.schedule.idle == (not held and not self.schedule.waiting)

    @invariant()
    def memory_moves_with_its_sequence(self) -> None:
        for drawn in self.schedule.running:
            assert (self.cache.layer(0)[0][drawn.slot, :, :3] == self.marks[drawn]).all()


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=200, stateful_step_count=30)
