"""Where a request goes: to the beginning of its prompt, within the bound; the same calls make the same choices."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from sparring.backend.vllm.routing import SLACK, Routing, blocks

SYSTEM, BOTH = list(range(32)), [0, 1]


def chain(*tokens: int, weights: str = "a") -> list[bytes]:
    return blocks([*SYSTEM, *tokens], weights, 16)


def test_a_block_is_named_by_what_it_holds_all_before_it_and_the_weights() -> None:
    plain = blocks(range(50), "a", 16)
    assert len(plain) == 3 == len(set(plain)), "the last, begun block is not cached"
    assert blocks(range(48), "a", 16) == plain
    assert blocks([*range(16), *range(16, 32)], "a", 16) == plain[:2]
    assert blocks([9, *range(1, 32)], "a", 16)[1] != plain[1], "the same block after another beginning"
    assert not set(blocks(range(50), "b", 16)) & set(plain)
    assert blocks([], "a", 16) == blocks(range(15), "a", 16) == []


def test_the_next_turn_goes_where_the_turns_before_are() -> None:
    routing = Routing(2, remembered=100)
    turns = {first: [first] * 16 for first in (500, 600, 700, 800)}
    at = {}
    for first, tokens in turns.items():
        at[first] = routing.choose(chain(*tokens), 1, BOTH)
    assert set(at.values()) == {0, 1}, "a beginning that all share draws them all to one"
    for index in at.values():
        routing.ended(index, 1)
    for first in (800, 600, 500, 700):
        turn = routing.choose(chain(*turns[first], *range(1000, 1040)), 1, BOTH)
        assert turn == at[first]
        routing.ended(turn, 1)


def test_other_weights_an_engine_that_began_anew_and_what_is_too_old_count_for_nothing() -> None:
    routing = Routing(2, remembered=4)
    assert routing.choose(chain(*[7] * 16), 1, BOTH) == 0
    assert routing.choose(chain(*[7] * 16, weights="b"), 1, BOTH) == 1, (
        "nothing of weights b is cached: the least to do"
    )
    routing.ended(0, 1)
    routing.ended(1, 1)
    routing.choose(blocks([3] * 64, "a", 16), 1, [1])
    routing.ended(1, 1)
    assert routing.choose(blocks([3] * 64, "a", 16), 1, BOTH) == 1
    routing.ended(1, 1)
    routing.choose(blocks([4] * 64, "a", 16), 1, [1])
    routing.ended(1, 1)
    assert routing.choose(blocks([3] * 64, "a", 16), 1, BOTH) == 0, "four blocks are remembered, and others came since"
    routing.ended(0, 1)
    routing.forget(1)
    assert routing.choose(blocks([4] * 64, "a", 16), 1, BOTH) == 0


def test_of_what_was_given_the_end_is_forgotten_before_the_beginning() -> None:
    routing = Routing(2, remembered=3)
    routing.choose(blocks(range(64), "a", 16), 1, [1])
    routing.ended(1, 1)
    assert routing.choose(blocks(range(48), "a", 16), 1, BOTH) == 1


CALLS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8), st.booleans()), max_size=40)


@given(CALLS, st.integers(1, 4))
def test_no_engine_has_more_to_do_than_the_bound_and_choices_repeat(
    calls: list[tuple[int, int, bool]], count: int
) -> None:
    def play() -> list[int]:
        routing, open_calls, loads, made = Routing(count, remembered=50), list[tuple[int, int]](), [0] * count, []
        for task, work, ends in calls:
            index = routing.choose(chain(*[task] * 40), work, range(count))
            assert loads[index] < math.ceil((1 + SLACK) * (sum(loads) + work) / count)
            loads[index] += work
            open_calls.append((index, work))
            made.append(index)
            if ends:
                done, less = open_calls.pop(0)
                routing.ended(done, less)
                loads[done] -= less
        return made

    assert play() == play()
