"""What is kept of contexts: the right keys and values or none, within the bound, and never those of other weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.arrays import I32
from sparring.backend.check import check_turns
from sparring.backend.local import prefixes as prefixes_module
from sparring.backend.local.base import BaseModel
from sparring.backend.local.cache import KeyValueCache
from sparring.backend.local.lora import AdapterWeights, Weights
from sparring.backend.local.model import TorchModel
from sparring.backend.local.prefixes import BLOCK, Prefixes
from sparring.backend.local.sampler import TorchSampler
from sparring.backend.local.source import Source
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.errors import CheckFailed, SettingError
from tests.backend.batches import sampler_of, trainer
from tests.backend.drawing import HandEngine, adapter_of, base_of, fixed, prompt_of

BLOCK_BYTES = BLOCK * 2 * 4


def some_cache() -> KeyValueCache:
    """One number for the key of each token, one for its value."""
    cache = KeyValueCache(
        layers=1, heads=1, width=1, slots=4, max_tokens=4096, dtype=torch.float32, device=torch.device("cpu")
    )
    cache.reserve(4, 512)
    return cache


def other_weights() -> AdapterWeights:
    return AdapterWeights(a=(), b=(), scale=1.0, places=())


def fill(cache: KeyValueCache, slot: int, tokens: I32, mark: float) -> None:
    """Keys and values that tell the token, its place and the weights."""
    told = torch.from_numpy(tokens).float() + torch.arange(len(tokens)) / 1024 + mark
    keys, values = cache.layer(0)
    keys[slot, 0, : len(tokens), 0] = told
    values[slot, 0, : len(tokens), 0] = -told


def holds(cache: KeyValueCache, slot: int, tokens: I32, mark: float) -> bool:
    told = torch.from_numpy(tokens).float() + torch.arange(len(tokens)) / 1024 + mark
    keys, values = cache.layer(0)
    return bool((keys[slot, 0, : len(tokens), 0] == told).all() and (values[slot, 0, : len(tokens), 0] == -told).all())


def branching(seed: int, shared: int, length: int) -> I32:
    """Contexts that begin alike for `shared` tokens."""
    tokens = np.zeros(length, np.int32)
    tokens[shared:] = prompt_of(seed, max(0, length - shared))
    return tokens


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 5), st.integers(1, 400), st.booleans()),
        max_size=30,
    ),
    st.integers(0, 12),
)
@settings(max_examples=150, deadline=None)
def test_what_is_found_is_what_was_kept(steps: list[tuple[int, int, int, int, bool]], most: int) -> None:
    """Contexts of three weights that branch at many places are kept and asked for in any order, in little room."""
    cache = some_cache()
    kept = Prefixes(cache, most * BLOCK_BYTES + 5)
    everybody: list[Weights | None] = [None, other_weights(), other_weights()]
    for which, seed, shared, length, keep in steps:
        weights, tokens = everybody[which], branching(seed, shared * 40, length)
        mark = 1000.0 * which
        if keep:
            fill(cache, 0, tokens, mark)
            kept.keep(weights, tokens, 0)
            names = kept.find(weights, tokens)
            assert len(names) == min(len(tokens) // BLOCK, most), "what was just kept is there, its beginning first"
        fill(cache, 1, np.full(400, 7, np.int32), -1.0)
        names = kept.find(weights, tokens)
        loaded = kept.load(names, 1)
        assert loaded == len(names) * BLOCK <= len(tokens)
        assert holds(cache, 1, tokens[:loaded], mark)
        assert kept.kept_bytes <= most * BLOCK_BYTES


def test_what_is_not_used_goes_first_and_of_a_context_its_end() -> None:
    cache = some_cache()
    kept = Prefixes(cache, 4 * BLOCK_BYTES)
    first, second, third = (prompt_of(seed, 2 * BLOCK) for seed in range(3))
    for tokens in (first, second):
        kept.keep(None, tokens, 0)
    kept.load(kept.find(None, first), 1)
    kept.keep(None, third[:BLOCK], 0)
    assert [len(kept.find(None, tokens)) for tokens in (first, second, third)] == [2, 1, 1]
    kept.keep(None, third, 0)
    assert [len(kept.find(None, tokens)) for tokens in (first, second, third)] == [2, 0, 2]


def test_weights_that_are_forgotten_leave_nothing() -> None:
    cache, one, other = some_cache(), other_weights(), other_weights()
    kept, tokens = Prefixes(cache, 2**20), prompt_of(0, 3 * BLOCK)
    for weights in (one, other, None):
        kept.keep(weights, tokens, 0)
    assert kept.kept_bytes == 9 * BLOCK_BYTES
    kept.forget(one)
    assert [len(kept.find(weights, tokens)) for weights in (one, other, None)] == [0, 3, 3]
    assert kept.kept_bytes == 6 * BLOCK_BYTES


# ------------------------------------------------------------------------------------------------------- in the sampler


def drawn_by(sampler: TorchSampler, source: Source, *prompts: I32, tokens: int = 20) -> list[SampledSequence]:
    params = SamplingParams(max_tokens=tokens, seed=1)
    requests = [sampler.request(prompt, params, 1, source=source) for prompt in prompts]
    while sampler.step():
        pass
    found = [request.result() for request in requests]
    return [sample for samples in found if samples is not None for sample in samples]


def block_bytes(base: BaseModel) -> int:
    return BLOCK * KeyValueCache.of(base, slots=1, max_tokens=1).bytes_per_token


def test_a_later_turn_computes_what_is_new_and_says_the_same(tiny_model: Path) -> None:
    base = base_of(tiny_model)
    keeps, afresh = TorchSampler(base, HandEngine()), TorchSampler(base, HandEngine(), prefix_bytes=0)
    source, context = fixed(0, adapter_of(base, 1)), prompt_of(0, 30)
    for turn in range(4):
        before = keeps.statistics()
        (one,), (other,) = drawn_by(keeps, source, context), drawn_by(afresh, source, context)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
        after = keeps.statistics()
        reused = after.reused_tokens - before.reused_tokens
        assert after.prompt_tokens - before.prompt_tokens == len(context) - reused
        assert reused == (0 if turn == 0 else (len(context) - 31) // BLOCK * BLOCK)
        context = np.concatenate([context, one.tokens, prompt_of(turn + 1, 30)])
    assert afresh.statistics().kept_bytes == afresh.statistics().reused_tokens == 0


def test_what_a_group_begins_with_is_computed_once_also_when_they_come_one_by_one(tiny_llama: Path) -> None:
    base = base_of(tiny_llama)
    sampler, source = TorchSampler(base, HandEngine()), fixed(0)
    prompt = prompt_of(0, 2 * BLOCK + 5)
    for _ in range(4):
        drawn_by(sampler, source, prompt)
    assert sampler.statistics().prompt_tokens == 2 * BLOCK + 5 + 3 * 5
    assert sampler.statistics().kept_bytes == 2 * block_bytes(base)


def test_contexts_that_go_on_from_one_place_are_computed_together(tiny_llama: Path) -> None:
    """Four turns behind one beginning, and two that have another: two steps on prompts, not six."""
    base = base_of(tiny_llama)
    sampler, source = TorchSampler(base, HandEngine()), fixed(0)
    begun, alone = TorchSampler(base, HandEngine(), prefix_bytes=0), prompt_of(0, BLOCK)
    drawn_by(sampler, source, alone, tokens=1)
    prompts = [np.concatenate([alone, prompt_of(i, 20 + i)]) for i in range(4)] + [prompt_of(i, 20) for i in (7, 8)]
    for prompt in prompts:
        sampler.request(prompt, SamplingParams(max_tokens=5, seed=1), 1, source=source)
    assert sampler.step() and sampler.statistics().running == 4
    assert sampler.step() and sampler.statistics().running == 6
    while sampler.step():
        pass
    assert len(drawn_by(begun, source, *prompts, tokens=5)) == 6


def test_a_deterministic_sampler_keeps_nothing(tiny_llama: Path) -> None:
    sampler = TorchSampler(base_of(tiny_llama), HandEngine(), slots=4, deterministic=True)
    for _ in range(2):
        drawn_by(sampler, fixed(0), prompt_of(0, 100))
    stood = sampler.statistics()
    assert (stood.prompt_tokens, stood.reused_tokens, stood.kept_bytes) == (200, 0, 0)


def test_a_bound_that_is_none_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(SettingError, match="prefix_bytes=-1"):
        TorchSampler(base_of(tiny_llama), HandEngine(), prefix_bytes=-1)


# --------------------------------------------------------------------------------------------------------- in a backend


async def test_freed_versions_leave_nothing(following: TorchModel) -> None:
    """Of a version that nobody samples from any more, neither keys and values nor the weights are held."""
    sampler = sampler_of(following)
    await following.publish(0)
    client = await following.sampler(version=0)
    await client.sample(prompt_of(0, 2 * BLOCK), SamplingParams(max_tokens=2))
    assert sampler.statistics().kept_bytes == 2 * block_bytes(trainer(following).base)
    await client.aclose()
    await following.publish(1)
    await following.digest()
    assert sampler.statistics().kept_bytes == 0


async def test_keys_and_values_of_other_weights_are_seen(
    following: TorchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted stale cache: names that leave out the weights."""
    names = prefixes_module._names  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(prefixes_module, "_names", lambda weights, tokens: names(None, tokens))
    with pytest.raises(CheckFailed, match="drawn and scored log-probs of a conversation differ"):
        await check_turns(following)
