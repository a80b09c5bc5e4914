"""Clients that follow a model: new weights in the middle of a sequence, and each token made by the one it is stamped with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from sparring import Episodes, Local, Policy, Run, Sampling, Seat, environment
from sparring.arrays import I32
from sparring.backend.check import check_inflight
from sparring.backend.local import LocalBackend
from sparring.backend.local.lora import AdapterWeights
from sparring.backend.local.model import TorchModel
from sparring.backend.local.request import Request
from sparring.backend.local.sampler import TorchSampler
from sparring.backend.local.scheduler import Scheduler
from sparring.backend.local.source import Source, Stamped
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams, runs
from sparring.backend.scripted import ScriptedBackend
from sparring.backend.training import Adam
from sparring.errors import CheckFailed, SettingError, UnsupportedError
from sparring.learner import train_async
from sparring.learner.replay import compare
from sparring.rollout import MemorySegments
from sparring.rollout.events import Acted, Stepped, decode_segment
from tests.backend.batches import LORA
from tests.backend.drawing import HandEngine, adapter_of, base_of, fixed, prompt_of
from tests.backend.test_check import Broken, Planted, planted


def moving(version: int, weights: AdapterWeights) -> Source:
    return Source(Stamped(version=version, weights=weights), moving=True)


def ask(sampler: TorchSampler, source: Source, prompt: I32, *, tokens: int = 12, n: int = 1, seed: int = 1) -> Request:
    return sampler.request(prompt, SamplingParams(max_tokens=tokens, seed=seed), n, source=source)


def finish(sampler: TorchSampler) -> None:
    while sampler.step():
        pass


def samples_of(request: Request) -> list[SampledSequence]:
    found = request.result()
    assert found is not None
    return found


def assert_made_by(
    sampler: TorchSampler, adapters: dict[int, AdapterWeights], prompt: I32, sample: SampledSequence
) -> None:
    """Each token's log-prob is that of the version it is stamped with, after the whole context."""
    tokens = np.concatenate([prompt, sample.tokens])
    start = 0
    for version, count in sample.versions:
        scored = sampler.logprobs(adapters[version], tokens)[len(prompt) + start :][:count]
        np.testing.assert_allclose(sample.logprobs[start : start + count], scored, atol=1e-4)
        start += count


# ------------------------------------------------------------------------------------------------------ step by step


@pytest.mark.parametrize("reply", [1, 3])
def test_sequences_go_on_with_new_weights_wherever_they_stand(tiny_model: Path, reply: int) -> None:
    """Running, with half of the prompt computed, and waiting for a slot."""
    base = base_of(tiny_model)
    sampler = TorchSampler(base, HandEngine(), slots=2 * reply, prefill_tokens=64)
    adapters = {version: adapter_of(base, version) for version in (1, 2, 3)}
    source = moving(1, adapters[1])
    prompts = [prompt_of(0, 9), prompt_of(1, 150), prompt_of(2, 70)]
    requests = [ask(sampler, source, prompt, n=reply) for prompt in prompts]
    while sampler.statistics().running < reply:
        sampler.step()
    sampler.step()
    source.move(Stamped(version=2, weights=adapters[2]))
    stood = sampler.statistics()
    assert (stood.running, stood.filling, stood.waiting) == (reply, reply, reply)
    while requests[0].drawn[0].versions.count(2) < 3:
        sampler.step()
    source.move(Stamped(version=3, weights=adapters[3]))
    finish(sampler)
    for prompt, request in zip(prompts, requests, strict=True):
        for sample in samples_of(request):
            assert_made_by(sampler, adapters, prompt, sample)
    for sample in samples_of(requests[0]):
        assert [version for version, _ in sample.versions] == [1, 2, 3]
        assert sample.versions[1] == (2, 3)
    assert all(sample.versions[0][0] > 1 for request in requests[1:] for sample in samples_of(request)), (
        "what is not computed to the end is computed with the new weights alone"
    )
    assert sampler.statistics().running == sampler.statistics().filling == 0


def test_snapshots_beside_one_that_follows_are_not_disturbed(tiny_llama: Path) -> None:
    """The same weights and the same prompt, in one admission: only the one that follows goes on with others."""
    base = base_of(tiny_llama)
    adapters = {version: adapter_of(base, version) for version in (1, 2)}
    alone = TorchSampler(base, HandEngine())
    undisturbed = ask(alone, fixed(1, adapters[1]), prompt_of(0, 40))
    finish(alone)
    sampler = TorchSampler(base, HandEngine(), prefill_tokens=64)
    source = moving(1, adapters[1])
    still = ask(sampler, fixed(1, adapters[1]), prompt_of(0, 40))
    follows = ask(sampler, source, prompt_of(0, 40))
    for _ in range(4):
        sampler.step()
    source.move(Stamped(version=2, weights=adapters[2]))
    finish(sampler)
    (one,), (other,) = samples_of(undisturbed), samples_of(still)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert other.versions == ((1, 12),)
    (mixed,) = samples_of(follows)
    assert [version for version, _ in mixed.versions] == [1, 2]
    assert_made_by(sampler, adapters, prompt_of(0, 40), mixed)


def test_one_that_is_cancelled_while_it_is_computed_again_frees_its_slot(tiny_llama: Path) -> None:
    base = base_of(tiny_llama)
    sampler = TorchSampler(base, HandEngine(), slots=2)
    source = moving(1, adapter_of(base, 1))
    gone, left = ask(sampler, source, prompt_of(0, 9), tokens=90), ask(sampler, source, prompt_of(1, 9))
    for _ in range(5):
        sampler.step()
    source.move(Stamped(version=2, weights=adapter_of(base, 2)))
    gone.cancelled = True
    finish(sampler)
    assert left.pending.settled and not gone.pending.settled
    stood = sampler.statistics()
    assert (stood.running, stood.filling, stood.waiting) == (0, 0, 0)
    again = ask(sampler, source, prompt_of(2, 9), n=2)
    finish(sampler)
    assert again.pending.settled


def test_a_source_goes_one_way(tiny_llama: Path) -> None:
    base = base_of(tiny_llama)
    weights = adapter_of(base, 1)
    source = moving(4, weights)
    for version in (4, 3):
        with pytest.raises(AssertionError):
            source.move(Stamped(version=version, weights=weights))
    with pytest.raises(AssertionError, match="a snapshot of version 2 never changes"):
        fixed(2, weights).move(Stamped(version=3, weights=weights))
    sampler = TorchSampler(base, HandEngine(), deterministic=True)
    with pytest.raises(UnsupportedError, match="not deterministic; sample from snapshots"):
        sampler.follow(source)


def test_versions_become_runs() -> None:
    assert runs([3, 3, 5, 5, 5, 7]) == ((3, 2), (5, 3), (7, 1))
    assert runs([]) == ()


# ----------------------------------------------------------------------------------------------------- whole backends


@pytest.mark.parametrize("lora", [LORA, None])
async def test_a_model_is_followed(free: LocalBackend, tiny_llama: Path, lora: Any) -> None:
    """With an adapter, and with all weights."""
    await check_inflight(await free.create_model(str(tiny_llama), lora=lora, seed=1))


async def test_the_scripted_backend_is_followed() -> None:
    """Weights change after every few tokens of a reply, whose letters are then those of the new weights."""
    backend = ScriptedBackend(lambda prompt, rng: "".join(rng.choices("abcdefgh", k=40)))
    model = await backend.create_model("m")
    await model.publish(3)
    client = await model.sampler("inflight")
    found: list[SampledSequence] = []
    params = SamplingParams(max_tokens=60, seed=1)

    async def sample() -> None:
        found.extend(await client.sample([5], params, n=2))

    async with anyio.create_task_group() as group:
        group.start_soon(sample)
        for version in (4, 5, 6):
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            await model.optim_step(Adam())
            await model.publish(version)
    first = found[0]
    assert [version for version, _ in first.versions] == [3, 4, 5, 6]
    assert (len(first.tokens), first.stop) == (41, "stop")
    newest, _ = await (await model.sampler(version=6)).sample([5], params, n=2)
    start = 41 - first.versions[-1][1]
    assert first.tokens[start:].tolist() == newest.tokens[start:].tolist()
    assert first.tokens[:start].tolist() != newest.tokens[:start].tolist()
    assert client.version == 6
    await client.aclose()


async def test_what_cannot_be_followed_is_refused(free: LocalBackend, tiny_llama: Path, model: TorchModel) -> None:
    one = await free.create_model(str(tiny_llama), lora=LORA)
    with pytest.raises(SettingError, match="no version is published yet"):
        await one.sampler("inflight")
    await one.publish(0)
    with pytest.raises(SettingError, match="version=0 with kind='inflight'"):
        await one.sampler("inflight", version=0)
    wrong: Any = "fast"
    with pytest.raises(SettingError, match="kind='fast': must be 'snapshot' or 'inflight'"):
        await one.sampler(wrong)
    with pytest.raises(UnsupportedError, match="kind='inflight': a deterministic backend"):
        await model.sampler("inflight")
    assert free.capabilities().kinds == {"snapshot", "inflight"}


async def test_a_client_opened_right_after_a_publication_has_it(free: LocalBackend, tiny_llama: Path) -> None:
    model = await free.create_model(str(tiny_llama), lora=LORA)
    publishing = model.publish(5)
    client = await model.sampler("inflight")
    assert client.version == 5
    await publishing
    await model.unload()
    (sample,) = await client.sample([5, 6], SamplingParams(max_tokens=2))
    assert sample.versions == ((5, 2),), "what is open goes on after the model was unloaded"


# ------------------------------------------------------------------------------------------------------ the suite fails


class Stuck(Planted):
    """What it calls in flight is a snapshot."""

    async def sampler(
        self, kind: Literal["snapshot", "inflight"] = "snapshot", *, version: int | None = None
    ) -> SamplingClient:
        if kind == "inflight":
            version = self._model._published  # pyright: ignore[reportPrivateUsage]
        return await self._model.sampler(version=version)


async def test_one_that_stays_behind_is_seen(free: LocalBackend, tiny_llama: Path) -> None:
    stuck: Any = Stuck(await free.create_model(str(tiny_llama), lora=LORA), lambda inner: inner)
    with pytest.raises(CheckFailed, match=r"asked after version 1 was published, in flight stamped \(\(0, 12\),\)"):
        await check_inflight(stuck)


async def test_keys_and_values_of_older_weights_are_seen(
    free: LocalBackend, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scheduler, "refill", lambda *_: None)
    with pytest.raises(CheckFailed, match="log-probs in flight and of the stamped versions differ"):
        await check_inflight(await free.create_model(str(tiny_llama), lora=LORA, seed=1))


def stamped(first: int, second: int) -> Callable[[SampledSequence], SampledSequence]:
    """Other stamps on sequences that are longer than twelve tokens."""

    def stamp(sample: SampledSequence) -> SampledSequence:
        if len(sample.tokens) <= 12:
            return sample
        half = len(sample.tokens) // 2
        forged = ((first, half), (second, len(sample.tokens) - half))
        return SampledSequence(tokens=sample.tokens, logprobs=sample.logprobs, stop=sample.stop, versions=forged)

    return stamp


@pytest.mark.parametrize("versions", [(1, 0), (0, 9)])
async def test_versions_that_go_back_are_seen(free: LocalBackend, tiny_llama: Path, versions: tuple[int, int]) -> None:
    model = await free.create_model(str(tiny_llama), lora=LORA)
    with pytest.raises(CheckFailed, match="versions go on from one to a newer one, between 0 and"):
        await check_inflight(planted(model, lambda inner: Broken(inner, then=stamped(*versions))))


@environment
async def count(task: int, player: Seat) -> float:
    """Even replies are better."""
    reply = await player.ask(f"What is {task} + 1?")
    return float(len(reply.text) % 2 == 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_run_trains_on_what_was_drawn_in_flight(tiny_llama: Path, tmp_path: Path) -> None:
    run = Run(
        name="count",
        train=Episodes(count, range(64)),
        policies=Policy(str(tiny_llama), lora=LORA, sampling=Sampling(max_tokens=48), learning_rate=1e-2),
        steps=4,
        groups_per_step=2,
        group_size=4,
        max_staleness=2,
        weights="inflight",
        backend=Local(dtype="float32"),
        folder=tmp_path,
    )
    store = MemorySegments()
    with anyio.fail_after(120):
        assert await train_async(run, store=store)
    events = [event for blob in store.blobs for event in decode_segment(blob)]
    assert compare(events).agrees
    stepped = [event for event in events if isinstance(event, Stepped)]
    assert [event.step for event in stepped] == [0, 1, 2, 3]
    assert all(event.metrics["staleness_max"] <= 2 for event in stepped)
    samples = [event.sample.unpacked() for event in events if isinstance(event, Acted) and event.sample]
    assert len(samples) >= 4 * 2 * 4
    for sample in samples:
        versions = [version for version, _ in sample.versions]
        assert versions == sorted(set(versions))
        assert sum(tokens for _, tokens in sample.versions) == len(sample.tokens)
