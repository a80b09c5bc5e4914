"""The torch sampler on tiny models: parity with a plain forward pass, seeds, versions, the engine around it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sparring.arrays import F32, I32
from sparring.backend.datum import Datum
from sparring.backend.local import LocalBackend
from sparring.backend.local.base import BaseModel
from sparring.backend.local.client import TorchSamplingClient
from sparring.backend.local.lora import AdapterWeights
from sparring.backend.local.sampler import TorchSampler
from sparring.backend.local.thread import EngineThread
from sparring.backend.losses import ImportanceSampling
from sparring.backend.models import SMOLLM2
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.backend.training import Adam, Lora
from sparring.errors import BackendError
from tests.backend.conftest import tiny_tokenizer
from tests.backend.drawing import VOCABULARY, adapter_of, all_of, assert_refused, base_of, prompt_of


@pytest.fixture
def base(tiny_model: Path) -> BaseModel:
    """A random Llama, then a random Qwen3."""
    return base_of(tiny_model)


@pytest.fixture
async def engine() -> AsyncIterator[EngineThread]:
    with anyio.fail_after(120):
        async with EngineThread() as engine:
            yield engine


def reference(folder: Path, base: BaseModel, adapter: AdapterWeights | None) -> Callable[[I32], torch.Tensor]:
    """Log-probs [T, V] by transformers alone, with the adapter multiplied into the weights."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        if adapter is not None:
            for target, a, b in zip(base.targets[:-1], adapter.a, adapter.b, strict=True):
                model.get_submodule(target.name).weight += adapter.scale * (b @ a)

    def logits(tokens: I32) -> torch.Tensor:
        with torch.no_grad():
            found = model(torch.from_numpy(tokens).long()[None]).logits[0]
        assert isinstance(found, torch.Tensor)
        return found

    return logits


def expected(logits: torch.Tensor, prompt: I32, sample: SampledSequence, temperature: float = 1.0) -> F32:
    start = len(prompt)
    logprobs = torch.log_softmax(logits / temperature, -1)[start - 1 : -1]
    return logprobs.gather(1, torch.from_numpy(sample.tokens).long()[:, None])[:, 0].numpy()


# ------------------------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("deterministic", [False, True])
async def test_sampled_log_probs_are_those_of_a_plain_forward_pass(
    engine: EngineThread, base: BaseModel, tiny_model: Path, *, deterministic: bool
) -> None:
    """2,500 tokens: prompts of 1 to 150 tokens (computed in up to 3 parts), three adapters and two temperatures at once,
    more sequences than slots."""
    sampler = TorchSampler(base, engine, slots=16, prefill_tokens=64, deterministic=deterministic)
    adapters = [None, adapter_of(base, 1), adapter_of(base, 2)]
    clients = [sampler.open(adapter, version=i) for i, adapter in enumerate(adapters)]
    prompts = [
        prompt_of(i, length) for i, length in enumerate([1, 2, 15, 16, 17, 33, 64, 65, 100, 128, 150, 7, 7, 7, 30])
    ]
    temperatures = [1.0, 0.6]

    def call(i: int, which: int) -> Callable[[], Any]:
        params = SamplingParams(max_tokens=28, temperature=temperatures[i % 2], seed=i)
        return lambda: clients[which].sample(prompts[i], params, n=2)

    jobs = [(i, which) for i in range(len(prompts)) for which in range(3)]
    found = await all_of(*[call(i, which) for i, which in jobs])
    differences = []
    references = [reference(tiny_model, base, adapter) for adapter in adapters]
    for (i, which), samples in zip(jobs, found, strict=True):
        for sample in samples:
            assert sample.versions == ((which, 28),)
            logits = references[which](np.concatenate([prompts[i], sample.tokens]))
            differences.append(np.abs(expected(logits, prompts[i], sample, temperatures[i % 2]) - sample.logprobs))
    difference = np.concatenate(differences)
    assert len(difference) == 2520
    assert difference.mean() <= 1e-5
    assert difference.max() <= 1e-4


async def test_logprobs_are_those_of_a_plain_forward_pass(
    engine: EngineThread, base: BaseModel, tiny_model: Path
) -> None:
    adapter = adapter_of(base, 1)
    client = TorchSampler(base, engine, prefill_tokens=64).open(adapter, version=0)
    logits = reference(tiny_model, base, adapter)
    for length in (1, 2, 64, 65, 66, 200):
        tokens = prompt_of(length, length)
        found = await client.logprobs(tokens)
        assert found.dtype == np.float32
        assert found.shape == (length,)
        assert np.isnan(found[0])
        logprobs = torch.log_softmax(logits(tokens), -1)
        wanted = logprobs[:-1].gather(1, torch.from_numpy(tokens).long()[1:, None])[:, 0]
        np.testing.assert_allclose(found[1:], wanted.numpy(), atol=1e-4)


async def test_the_distribution_drawn_from_is_tempered_and_sums_to_one(
    engine: EngineThread, base: BaseModel, tiny_model: Path
) -> None:
    """Every token of the vocabulary that is drawn carries the log-prob of one distribution, which sums to one."""
    client = TorchSampler(base, engine).open(None, version=0)
    prompt = prompt_of(0, 9)
    for temperature in (0.5, 2.0):
        params = SamplingParams(max_tokens=1, temperature=temperature, seed=1)
        samples = await client.sample(prompt, params, n=1000)
        wanted = torch.log_softmax(reference(tiny_model, base, None)(prompt)[-1] / temperature, -1).numpy()
        assert abs(np.exp(np.float64(wanted)).sum() - 1) < 1e-6
        drawn = {int(sample.tokens[0]): float(sample.logprobs[0]) for sample in samples}
        for token, logprob in drawn.items():
            assert abs(wanted[token] - logprob) < 1e-4
        missing = [token for token in range(VOCABULARY) if token not in drawn]
        assert np.exp(wanted[missing]).sum() < 0.1
        counts = np.bincount([int(sample.tokens[0]) for sample in samples], minlength=VOCABULARY)
        likely = np.exp(wanted) > 0.01
        assert (
            np.abs(counts[likely] / 1000 - np.exp(wanted[likely])) < 5 * np.sqrt(np.exp(wanted[likely]) / 1000)
        ).all()


async def test_greedy_top_k_and_top_p(engine: EngineThread, base: BaseModel, tiny_model: Path) -> None:
    client = TorchSampler(base, engine).open(None, version=0)
    prompt = prompt_of(3, 9)
    logits = reference(tiny_model, base, None)(prompt)[-1]
    (greedy,) = await client.sample(prompt, SamplingParams(max_tokens=6, temperature=0))
    assert greedy.logprobs.tolist() == [0.0] * 6
    assert greedy.tokens[0] == int(logits.argmax())
    for sample in await client.sample(prompt, SamplingParams(max_tokens=6, top_k=1), n=3):
        np.testing.assert_array_equal(sample.tokens, greedy.tokens)
        np.testing.assert_allclose(sample.logprobs, 0, atol=1e-6)
    top = set(logits.topk(4).indices.tolist())
    samples = await client.sample(prompt, SamplingParams(max_tokens=1, temperature=3.0, top_k=4), n=60)
    assert {int(sample.tokens[0]) for sample in samples} == top
    kept = torch.log_softmax(logits[sorted(top)] / 3, -1)
    for sample in samples:
        assert abs(float(kept[sorted(top).index(int(sample.tokens[0]))]) - sample.logprobs[0]) < 1e-4
    ordered = torch.softmax(logits, -1).sort(descending=True)
    nucleus = set(ordered.indices[: int((ordered.values.cumsum(0) < 0.5).sum()) + 1].tolist())
    samples = await client.sample(prompt, SamplingParams(max_tokens=1, top_p=0.5), n=60)
    assert {int(sample.tokens[0]) for sample in samples} <= nucleus


# ------------------------------------------------------------------------------------------- what a draw depends on


async def test_a_seed_decides_and_each_sequence_of_a_request_has_its_own_draw(
    engine: EngineThread, tiny_llama: Path
) -> None:
    client = TorchSampler(base_of(tiny_llama), engine).open(None, version=0)
    prompt = prompt_of(1, 12)

    async def tokens(seed: int | None, n: int = 3) -> list[list[int]]:
        return [s.tokens.tolist() for s in await client.sample(prompt, SamplingParams(max_tokens=12, seed=seed), n=n)]

    first = await tokens(5)
    assert first == await tokens(5)
    assert first[:2] == await tokens(5, n=2)
    assert len({tuple(row) for row in [*first, *await tokens(6), *await tokens(None), *await tokens(None)]}) == 12


@pytest.mark.parametrize("prefill_tokens", [64, 512])
async def test_deterministic_draws_do_not_depend_on_what_else_is_drawn(
    engine: EngineThread, base: BaseModel, prefill_tokens: int
) -> None:
    """Bit-equal alone and among 20 others of other lengths and adapters that come and go meanwhile."""
    sampler = TorchSampler(base, engine, slots=32, prefill_tokens=prefill_tokens, deterministic=True)
    adapters = [adapter_of(base, 1), adapter_of(base, 2), None]
    clients = [sampler.open(adapter, version=i) for i, adapter in enumerate(adapters)]

    def call(i: int) -> Callable[[], Any]:
        params = SamplingParams(
            max_tokens=5 + 13 * (i % 5), temperature=0.5 + 0.25 * (i % 3), seed=i, top_p=1 - 0.1 * (i % 2)
        )
        return lambda: clients[i % 3].sample(prompt_of(i, 3 + 17 * (i % 9)), params, n=1 + i % 2)

    alone = [await call(i)() for i in range(21)]
    together = await all_of(*[call(i) for i in range(21)])
    backwards = (await all_of(*[call(i) for i in reversed(range(21))]))[::-1]
    for i in range(21):
        for others in (together, backwards):
            for one, other in zip(alone[i], others[i], strict=True):
                np.testing.assert_array_equal(one.tokens, other.tokens)
                np.testing.assert_array_equal(one.logprobs, other.logprobs)


async def test_rows_of_several_adapters_in_one_pass_are_those_of_each_alone(
    engine: EngineThread, base: BaseModel
) -> None:
    sampler = TorchSampler(base, engine, slots=16)
    clients = [sampler.open(adapter_of(base, seed), version=seed) for seed in (1, 2, 3)]

    def call(i: int) -> Callable[[], Any]:
        params = SamplingParams(max_tokens=20 + i, seed=i)
        return lambda: clients[i % 3].sample(prompt_of(i, 5 + i), params)

    calls = [call(i) for i in range(12)]
    alone = [await call() for call in calls]
    steps = sampler.statistics().decode_steps
    together = await all_of(*calls)
    assert sampler.statistics().decode_steps - steps < steps / 6
    for (one,), (other,) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
        assert one.versions == other.versions
    assert [samples[0].versions[0][0] for samples in together] == [1, 2, 3] * 4


async def test_a_snapshot_never_changes_while_training_goes_on(tiny_llama: Path, tmp_path: Path) -> None:
    prompt, params = prompt_of(0, 10), SamplingParams(max_tokens=30, seed=3)
    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path) as backend:
            model = await backend.create_model(str(tiny_llama), lora=Lora(rank=4, alpha=8.0))
            model.publish(0)
            zero = await model.sampler(version=0)
            before = await zero.sample(prompt, params, n=3)
            data = [Datum.completion(prompt, sample, advantage=float(i - 1)) for i, sample in enumerate(before)]
            during: list[SampledSequence] = []

            async def train() -> None:
                for version in (1, 2, 3):
                    model.forward_backward(data, ImportanceSampling())
                    model.optim_step(Adam(learning_rate=0.05))
                    await model.publish(version)

            async def sample() -> None:
                during.extend(await zero.sample(prompt, params, n=3))

            async with anyio.create_task_group() as group:
                group.start_soon(train)
                group.start_soon(sample)
            three = await model.sampler(version=3)
            after, newer = await zero.sample(prompt, params, n=3), await three.sample(prompt, params, n=3)
            await zero.aclose()
            await three.aclose()
    for one, two, three_, other in zip(before, during, after, newer, strict=True):
        for same in (two, three_):
            np.testing.assert_array_equal(one.tokens, same.tokens)
            np.testing.assert_array_equal(one.logprobs, same.logprobs)
        assert other.versions[0][0] == 3
        assert other.logprobs.tolist() != one.logprobs.tolist()


# --------------------------------------------------------------------------------------------------- where it ends


async def test_sequences_end_at_stop_tokens_stop_strings_and_max_tokens(engine: EngineThread, tiny_llama: Path) -> None:
    client = TorchSampler(base_of(tiny_llama), engine).open(None, version=0)
    prompt, tokenizer = prompt_of(4, 6), tiny_tokenizer()
    free = await client.sample(prompt, SamplingParams(max_tokens=40, seed=1), n=4)
    assert {(len(sample.tokens), sample.stop) for sample in free} == {(40, "length")}
    wanted = tuple(int(sample.tokens[7]) for sample in free)
    for sample, whole in zip(
        await client.sample(prompt, SamplingParams(max_tokens=40, seed=1, stop_ids=wanted), n=4), free, strict=True
    ):
        end = next(i for i, token in enumerate(whole.tokens) if int(token) in wanted) + 1
        np.testing.assert_array_equal(sample.tokens, whole.tokens[:end])
        np.testing.assert_allclose(sample.logprobs, whole.logprobs[:end], atol=1e-6)
        assert (sample.stop, len(sample.logprobs)) == ("stop", end)
    texts = [str(tokenizer.decode(sample.tokens[:20], skip_special_tokens=True)) for sample in free]
    strings = tuple(text[-6:] for text in texts)
    for sample, whole in zip(
        await client.sample(prompt, SamplingParams(max_tokens=40, seed=1, stop=strings), n=4), free, strict=True
    ):
        assert sample.stop == "stop"
        np.testing.assert_array_equal(sample.tokens, whole.tokens[: len(sample.tokens)])
        assert any(string in tokenizer.decode(sample.tokens, skip_special_tokens=True) for string in strings)
        assert not any(string in tokenizer.decode(sample.tokens[:-1], skip_special_tokens=True) for string in strings)


async def test_what_does_not_fit_or_is_no_prompt_is_refused(engine: EngineThread, tiny_llama: Path) -> None:
    client = TorchSampler(base_of(tiny_llama), engine).open(None, version=0)
    await assert_refused(client)


# --------------------------------------------------------------------------------------------- the engine around it


async def test_a_failure_reaches_its_caller_alone(engine: EngineThread, tiny_llama: Path) -> None:
    base = base_of(tiny_llama)
    sampler = TorchSampler(base, engine)
    broken = adapter_of(base, 1)
    broken.a[0].fill_(float("inf"))
    bad, good = sampler.open(broken, version=0), sampler.open(adapter_of(base, 1), version=0)
    with pytest.raises(BackendError, match="not finite"):
        await bad.sample(prompt_of(0, 5), SamplingParams(max_tokens=3))
    assert len((await good.sample(prompt_of(0, 5), SamplingParams(max_tokens=3)))[0].tokens) == 3


async def test_cancelling_a_caller_lets_the_others_in(engine: EngineThread, tiny_llama: Path) -> None:
    """Two callers that would take both slots are cancelled before the engine gets to them: nothing is drawn for them."""
    sampler = TorchSampler(base_of(tiny_llama), engine, slots=2)
    client = sampler.open(None, version=0)
    gate = threading.Event()
    held = engine.submit(lambda: gate.wait(60), "hold the engine")
    async with anyio.create_task_group() as group:
        for i in range(2):
            group.start_soon(client.sample, prompt_of(i, 5), SamplingParams(max_tokens=200))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    gate.set()
    assert await held
    (sample,) = await client.sample(prompt_of(3, 5), SamplingParams(max_tokens=3))
    assert len(sample.tokens) == 3
    assert sampler.statistics().drawn_tokens == 3


async def test_a_closed_client_refuses_and_lets_go_once(engine: EngineThread, tiny_llama: Path) -> None:
    released: list[int] = []
    client = TorchSampler(base_of(tiny_llama), engine).open(None, version=4, release=lambda: released.append(1))
    assert client.version == 4
    await client.aclose()
    await client.aclose()
    assert released == [1]
    for call in (lambda: client.sample([5], SamplingParams(max_tokens=1)), lambda: client.logprobs([5, 6])):
        with pytest.raises(BackendError, match="closed"):
            await call()


async def test_leaving_the_engine_fails_what_runs_and_leaves_no_thread(tiny_llama: Path) -> None:
    threads = threading.active_count()
    failures: list[BaseException] = []
    clients: list[TorchSamplingClient] = []

    async def sample(client: TorchSamplingClient, *, started: anyio.Event) -> None:
        started.set()
        try:
            await client.sample(prompt_of(0, 5), SamplingParams(max_tokens=250), n=500)
        except BackendError as error:
            failures.append(error)

    with anyio.fail_after(120):
        async with anyio.create_task_group() as group, EngineThread() as engine:
            clients.append(TorchSampler(base_of(tiny_llama), engine, slots=4).open(None, version=0))
            started = anyio.Event()
            group.start_soon(lambda: sample(clients[0], started=started))
            await started.wait()
            await anyio.wait_all_tasks_blocked()
    assert len(failures) == 1
    with pytest.raises(BackendError):
        await clients[0].sample([5], SamplingParams(max_tokens=1))
    assert threading.active_count() <= threads + 1  # anyio keeps one idle worker for later


@pytest.mark.model
async def test_smollm2_in_bf16_agrees_with_its_full_forward_pass() -> None:
    """Invariant 5 for bf16: mean <= 0.05, max <= 0.5 per token, on answers to plain questions."""
    questions = ("What is 7 + 5?", "Name three rivers.", "Why is the sky blue?", "Write two lines about a fox.")
    with anyio.fail_after(300):
        async with LocalBackend(dtype="bfloat16", threads=2) as backend:
            model = await backend.create_model(SMOLLM2, lora=Lora(rank=8, alpha=8.0))
            client = await model.sampler()
            prompts = [model.renderer.prompt([{"role": "user", "content": question}]) for question in questions]
            params = SamplingParams(max_tokens=24, seed=0, stop_ids=model.renderer.stop_ids)
            found = await all_of(*[lambda prompt=prompt: client.sample(prompt, params, n=4) for prompt in prompts])
            differences = []
            for prompt, samples in zip(prompts, found, strict=True):
                for sample in samples:
                    full = await client.logprobs(np.concatenate([prompt, sample.tokens]))
                    differences.append(np.abs(full[len(prompt) :] - sample.logprobs))
    difference = np.concatenate(differences)
    assert len(difference) > 200
    assert difference.mean() <= 0.05
    assert difference.max() <= 0.5
