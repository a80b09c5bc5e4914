"""The torch sampler one step at a time: who joins, who leaves, who is cancelled, what a failure takes with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparring.arrays import I32
from sparring.backend.local import sampler as sampler_module
from sparring.backend.local.base import load_base
from sparring.backend.local.lora import AdapterWeights
from sparring.backend.local.request import Request
from sparring.backend.local.sampler import TorchSampler
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.errors import BackendError, SettingError
from tests.backend.drawing import HandEngine, adapter_of, base_of, fixed, prompt_of


def requests(
    sampler: TorchSampler, prompts: Sequence[I32], *, adapter: AdapterWeights | None = None, **params: Any
) -> list[Any]:
    settings = {"max_tokens": 3, "seed": 1} | params
    return [sampler.request(p, SamplingParams(**settings), 1, source=fixed(0, adapter)) for p in prompts]


def sample_of(request: Request) -> SampledSequence:
    found = request.result()
    assert found is not None
    return found[0]


def test_equal_prompts_that_wait_together_are_computed_once(tiny_llama: Path) -> None:
    base = base_of(tiny_llama)
    sampler = TorchSampler(base, HandEngine())
    shared, other = prompt_of(0, 40), prompt_of(1, 40)
    adapter = adapter_of(base, 1)
    waiting = requests(sampler, [shared, other, shared, shared]) + requests(sampler, [shared], adapter=adapter)
    while sampler.step():
        pass
    assert sampler.statistics().prompt_tokens == 3 * 40
    results = [sample_of(request) for request in waiting]
    np.testing.assert_array_equal(results[0].tokens, results[2].tokens)
    assert results[0].logprobs.tolist() != results[4].logprobs.tolist()


def test_requests_join_and_leave_between_steps(tiny_llama: Path) -> None:
    """A request that comes later runs beside the others at once; one that is done makes room for one that waits."""
    sampler = TorchSampler(base_of(tiny_llama), HandEngine(), slots=2)
    (first,) = requests(sampler, [prompt_of(0, 5)], max_tokens=6)
    assert sampler.step()
    assert sampler.step()
    second, third = requests(sampler, [prompt_of(1, 5), prompt_of(2, 5)], max_tokens=2)
    assert sampler.step()  # the second's prompt, and its first token
    found = sampler.statistics()
    assert (found.waiting, found.running, found.slots) == (1, 2, 2)
    assert sampler.step()
    assert second.pending.settled
    assert not first.pending.settled
    assert sampler.step()
    found = sampler.statistics()
    assert (found.waiting, found.running) == (0, 2)
    while sampler.step():
        pass
    assert first.pending.settled
    assert third.pending.settled
    found = sampler.statistics()
    assert (found.waiting, found.filling, found.running, found.drawn_tokens) == (0, 0, 0, 10)


def test_running_sequences_get_a_turn_while_long_prompts_are_computed(tiny_llama: Path) -> None:
    sampler = TorchSampler(base_of(tiny_llama), HandEngine(), prefill_tokens=64)
    (short,) = requests(sampler, [prompt_of(0, 5)], max_tokens=3)
    sampler.step()
    long = requests(sampler, [prompt_of(i, 200) for i in range(20)], max_tokens=1)
    for _ in range(2 * (sampler_module.PREFILL_RUN + 1)):
        sampler.step()
    assert short.pending.settled
    assert not long[-1].pending.settled


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_cancelled_request_frees_its_slot_wherever_it_stands(tiny_llama: Path, *, deterministic: bool) -> None:
    """Cancelled while running, while the prompt it shares is computed, and while waiting; the rest go on undisturbed."""
    base = base_of(tiny_llama)
    free = TorchSampler(base, HandEngine(), slots=4, prefill_tokens=64, deterministic=deterministic)
    prompts = [prompt_of(0, 9), prompt_of(1, 9), prompt_of(2, 150), prompt_of(2, 150), prompt_of(3, 9), prompt_of(4, 9)]
    undisturbed = requests(free, prompts, max_tokens=12)
    while free.step():
        pass
    sampler = TorchSampler(base, HandEngine(), slots=4, prefill_tokens=64, deterministic=deterministic)
    disturbed = requests(sampler, prompts, max_tokens=12)
    while sampler.statistics().running < 2:
        sampler.step()
    sampler.step()
    assert sampler.statistics().filling == 2
    for cancelled in (0, 2, 4):  # running; the one whose slot the shared prompt is computed in; waiting
        disturbed[cancelled].cancelled = True
    sampler.step()
    found = sampler.statistics()
    assert (found.running, found.filling, found.waiting) in {(1, 1, 1), (1, 2, 0)}
    while sampler.step():
        pass
    for i in (1, 3, 5):
        one, other = sample_of(undisturbed[i]), sample_of(disturbed[i])
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-6)
    assert not any(disturbed[i].pending.settled for i in (0, 2, 4))
    assert sampler.statistics().running == sampler.statistics().waiting == 0


def test_a_failing_step_fails_its_requests_and_the_sampler_goes_on(tiny_llama: Path) -> None:
    base = base_of(tiny_llama)
    sampler = TorchSampler(base, HandEngine(), slots=2)
    broken = adapter_of(base, 1)
    broken.b[0].fill_(float("nan"))
    (bad,) = requests(sampler, [prompt_of(0, 5)], adapter=broken)
    with pytest.raises(ValueError, match="not finite") as caught:
        sampler.step()
    (good,) = requests(sampler, [prompt_of(1, 5)])
    sampler.fail(caught.value)
    assert isinstance(bad.pending.error, BackendError)
    assert bad.pending.error.__cause__ is caught.value
    assert not good.pending.settled
    while sampler.step():
        pass
    assert len(sample_of(good).tokens) == 3
    waiting = requests(sampler, [prompt_of(i, 5) for i in range(3)])
    sampler.step()
    sampler.fail(BackendError("closed"))
    assert {str(request.pending.error) for request in waiting} == {"closed"}
    assert not sampler.step()


def test_memory_goes_back_when_nothing_is_drawn(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = TorchSampler(base_of(tiny_llama), HandEngine())
    for kept, left in ((2**28, True), (0, False)):
        monkeypatch.setattr(sampler_module, "KEPT_BYTES", kept)
        requests(sampler, [prompt_of(0, 5)])
        while sampler.step():
            assert sampler.statistics().cache_bytes > 0
        assert (sampler.statistics().cache_bytes > 0) is left


def test_long_sequences_take_turns_within_the_bound_on_memory(tiny_llama: Path) -> None:
    sampler = TorchSampler(base_of(tiny_llama), HandEngine(), slots=8, cache_tokens=512)
    waiting = requests(sampler, [prompt_of(i, 100) for i in range(6)], max_tokens=100)
    widest = 0
    while sampler.step():
        widest = max(widest, sampler.statistics().running)
        assert sampler._cache.capacity[0] * sampler._cache.capacity[1] <= 512
    assert widest == 2
    assert all(len(sample_of(request).tokens) == 100 for request in waiting)


def test_settings_it_cannot_serve_are_refused(tiny_llama: Path) -> None:
    half = load_base(tiny_llama, dtype=torch.bfloat16, device=torch.device("cpu"))
    with pytest.raises(SettingError, match="float32"):
        TorchSampler(half, HandEngine(), deterministic=True)
    with pytest.raises(SettingError, match="slots=0"):
        TorchSampler(half, HandEngine(), slots=0)
