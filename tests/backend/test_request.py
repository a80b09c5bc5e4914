"""Requests: where a sequence ends, and what comes back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.backend.bytes_renderer import ByteRenderer
from sparring.backend.local.request import Request, StopStrings
from sparring.backend.sampling import SamplingParams
from tests.backend.drawing import fixed

decode = ByteRenderer().text
PROMPT = np.array([1, 2, 3], np.int32)


def request(params: SamplingParams, n: int = 1) -> Request:
    return Request(PROMPT, params, n, source=fixed(7), decode=decode)


def test_the_stop_token_is_part_of_the_sample() -> None:
    (drawn,) = request(SamplingParams(max_tokens=9, stop_ids=(50, 51))).drawn
    for token in (10, 11, 51):
        assert drawn.stop is None
        drawn.append(token, -0.5)
    result = drawn.result()
    assert result is not None
    assert result.stop == "stop"
    assert result.tokens.tolist() == [10, 11, 51]
    assert result.logprobs.tolist() == [-0.5] * 3
    assert result.versions == ((7, 3),)


def test_the_last_token_may_still_be_a_stop_token() -> None:
    stopped, cut = request(SamplingParams(max_tokens=2, stop_ids=(50,)), n=2).drawn
    for drawn, last in ((stopped, 50), (cut, 49)):
        drawn.append(10, -1.0)
        drawn.append(last, -1.0)
    assert (stopped.stop, cut.stop) == ("stop", "length")


def test_a_request_is_done_when_all_its_sequences_are() -> None:
    two = request(SamplingParams(max_tokens=1), n=2)
    two.drawn[1].append(5, -1.0)
    assert two.result() is None
    two.drawn[0].append(6, -2.0)
    found = two.result()
    assert found is not None
    assert [sequence.tokens.tolist() for sequence in found] == [[6], [5]]


def test_seeds_make_keys() -> None:
    def keys(seed: int | None) -> list[int]:
        return [drawn.key for drawn in request(SamplingParams(max_tokens=1, seed=seed), n=3).drawn]

    assert keys(3) == keys(3)
    assert len({*keys(3), *keys(4), *keys(-3), *keys(2**80), *keys(None), *keys(None)}) == 18


def test_prompts_are_the_same_for_one_adapter_only() -> None:
    first, second = request(SamplingParams(max_tokens=1)), request(SamplingParams(max_tokens=5))
    assert first.same_prompt == second.same_prompt
    assert (first.needs, second.needs) == (4, 8)


FILLER = st.text(st.sampled_from("xy\u00e4\u6f22\U0001f600 "), max_size=80)
STRINGS = st.lists(st.text(st.sampled_from("ab\u00e9x"), min_size=1, max_size=6), min_size=1, max_size=3)


@given(before=FILLER, strings=STRINGS, after=FILLER)
def test_a_stop_string_is_found_with_the_token_that_completes_it(before: str, strings: list[str], after: str) -> None:
    """Bytes as tokens: a string and even a character spans several of them."""
    tokens = [int(byte) for byte in (before + strings[0] + after).encode()]
    watch = StopStrings(strings, decode)
    for end in range(1, len(tokens) + 1):
        expected = any(string in decode(tokens[:end]) for string in strings)
        assert watch.found(tokens[:end]) == expected
        if expected:
            return
    raise AssertionError("the string is in the text")


def test_a_long_sequence_is_not_decoded_again_and_again() -> None:
    lengths: list[int] = []

    def counting(tokens: object) -> str:
        assert isinstance(tokens, list)
        lengths.append(len(tokens))
        return decode(tokens)

    watch = StopStrings(["xyz"], counting)
    tokens: list[int] = []
    for _ in range(2000):
        tokens.append(97)
        assert not watch.found(tokens)
    assert max(lengths) < 40


@pytest.mark.parametrize("noise", [b"\xff", b"\xe2\x82"])
def test_bytes_that_are_no_text_do_not_hide_a_stop_string(noise: bytes) -> None:
    watch = StopStrings(["END"], decode)
    tokens: list[int] = []
    for byte in noise * 20 + b"aENDb":
        tokens.append(byte)
        if watch.found(tokens):
            break
    assert tokens[-3:] == list(b"END")
