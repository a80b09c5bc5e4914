"""The training client on tiny models: gradients, steps, failures, states, versions; the same on asyncio and trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch

from sparring.backend.datum import Datum, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.head import HeadOutput
from sparring.backend.local.model import TorchModel
from sparring.backend.local.packing import MicroBatch
from sparring.backend.local.trainer import Trainer
from sparring.backend.losses import PPO, CrossEntropy, ImportanceSampling, Loss
from sparring.backend.sampling import SamplingParams
from sparring.backend.training import Adam, Lora
from sparring.errors import BackendError, NonFinite, SettingError, UnsupportedError

LORA = Lora(rank=4, alpha=8.0)


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LocalBackend]:
    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path) as backend:
            yield backend


@pytest.fixture
async def model(backend: LocalBackend, tiny_llama: Path) -> TorchModel:
    return await backend.create_model(str(tiny_llama), lora=LORA)


def groups(count: int = 3, size: int = 4, *, seed: int = 0, temperature: float = 1.0) -> list[Datum]:
    """`count` prompts with `size` completions each, of several lengths; some completions have an unscored token inside."""
    random = np.random.default_rng(seed)
    data = []
    for _ in range(count):
        prompt = random.integers(3, 320, random.integers(2, 12))
        for _ in range(size):
            length = int(random.integers(1, 9))
            tokens = np.concatenate([prompt, random.integers(3, 320, length)]).astype(np.int32)
            place = np.arange(len(tokens)) - len(prompt)
            mask = (place == 0) | ((place > 0) & (random.random(len(tokens)) < 0.8))
            data.append(
                Datum(
                    tokens=tokens,
                    mask=mask,
                    logprobs=np.where(mask, -random.exponential(4, len(tokens)), 0).astype(np.float32),
                    advantages=np.where(mask, random.normal(), 0).astype(np.float32),
                    weights=mask.astype(np.float32),
                    temperature=temperature,
                )
            )
    return data


def trainer(model: TorchModel) -> Trainer:
    return model._trainer  # pyright: ignore[reportPrivateUsage]


def spread(model: TorchModel, seed: int = 0) -> None:
    """Give the adapter weights that matter: a fresh one's B is zero, and so is the gradient of its A."""
    adapter = trainer(model).adapter
    generator = torch.Generator().manual_seed(seed)
    for b in adapter.master_b:
        b.normal_(0, 0.1, generator=generator)
    adapter.refresh()


async def gradient(model: TorchModel, data: Sequence[Datum], loss: Loss) -> torch.Tensor:
    await model.forward_backward(data, loss)
    grad = trainer(model).adapter.grad.clone()
    await model.discard_gradients()
    return grad


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def plain_loss(model: TorchModel, data: Sequence[Datum], loss: Loss) -> tuple[torch.Tensor, list[np.ndarray]]:
    """The gradient and log-probs by the plain way: one datum at a time, full logits, autograd through everything."""
    base, adapter = trainer(model).base, trainer(model).adapter
    logprobs = []
    for datum in data:
        ids = torch.from_numpy(datum.tokens).long()[None]
        embedded = base.model.get_input_embeddings()(ids).requires_grad_(True)
        with base.call.rows([(adapter.weights, 1)]):
            hidden = base.body(inputs_embeds=embedded, use_cache=False).last_hidden_state
            scores = torch.log_softmax(hidden[0, :-1] @ base.head.T / datum.temperature, dim=-1)
            lp = scores.gather(1, ids[0, 1:, None])[:, 0]
            q, advantages, weights, mask = (
                torch.from_numpy(v)[1:] for v in (datum.logprobs, datum.advantages, datum.weights, datum.mask)
            )
            ratio = torch.exp(lp - q)
            match loss:
                case CrossEntropy():
                    terms = -weights * lp
                case ImportanceSampling():
                    terms = -ratio * advantages
                case PPO(clip_low_threshold=low, clip_high_threshold=high):
                    terms = -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
            terms[mask].sum().backward()
        logprobs.append(np.concatenate([[0], np.where(datum.mask[1:], lp.detach().numpy(), 0)]).astype(np.float32))
    grad = adapter.grad.clone()
    adapter.grad.zero_()
    return grad, logprobs


@pytest.mark.parametrize("loss", [CrossEntropy(), ImportanceSampling(), PPO()])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_gradients_and_logprobs_equal_the_plain_way(
    backend: LocalBackend, tiny_model: Path, loss: Loss, temperature: float
) -> None:
    """Prompts shared, micro-batches packed, chunks of the head: against one datum at a time with full logits."""
    model = await backend.create_model(str(tiny_model), lora=LORA)
    spread(model)
    data = groups(temperature=temperature)
    want, want_logprobs = plain_loss(model, data, loss)
    output = await model.forward_backward(data, loss)
    assert relative(trainer(model).adapter.grad, want) < 1e-5
    for got, lp in zip(output.logprobs, want_logprobs, strict=True):
        np.testing.assert_allclose(got, lp, rtol=1e-4, atol=2e-5)
    assert output.metrics["tokens"] == sum(int(datum.mask.sum()) for datum in data)


@pytest.mark.parametrize("budget", [16, 64, 100_000])
async def test_micro_batches_change_nothing(tiny_llama: Path, tmp_path: Path, budget: int) -> None:
    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=budget) as backend:
            model = await backend.create_model(str(tiny_llama), lora=LORA)
            spread(model)
            data = groups()
            want, _ = plain_loss(model, data, PPO())
            assert relative(await gradient(model, data, PPO()), want) < 1e-5


@pytest.mark.parametrize("calls", [3, 8])
async def test_a_step_split_into_calls_is_the_same_step(model: TorchModel, calls: int) -> None:
    spread(model)
    data = token_mean(groups(4, 6))
    whole = await gradient(model, data, ImportanceSampling())
    for part in np.array_split(np.arange(len(data)), calls):
        model.forward_backward([data[i] for i in part], ImportanceSampling())
    await model.digest()
    assert relative(trainer(model).adapter.grad, whole) < 1e-5


@pytest.mark.parametrize("layers", ["shared", "apart"])
async def test_long_rows_take_torchs_attention(model: TorchModel, layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spread(model)
    data = groups(2, 5) if layers == "shared" else groups(10, 1)
    want, _ = plain_loss(model, data, PPO())
    monkeypatch.setattr("sparring.backend.local.row_attention.LONGEST", 0)
    assert relative(await gradient(model, data, PPO()), want) < 1e-5


async def test_forward_is_forward_backward_without_the_gradient(model: TorchModel) -> None:
    spread(model)
    data = groups()
    one, two = await model.forward(data, PPO()), await model.forward_backward(data, PPO())
    assert one.metrics == two.metrics
    assert all(np.array_equal(a, b) for a, b in zip(one.logprobs, two.logprobs, strict=True))
    await model.discard_gradients()
    await model.forward(data, PPO())
    assert trainer(model).adapter.grad.count_nonzero() == 0


async def test_steps_equal_torchs_adamw(model: TorchModel) -> None:
    adam = Adam(learning_rate=1e-2, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, grad_clip_norm=0.5)
    adapter = trainer(model).adapter
    theirs = torch.nn.Parameter(adapter.master.clone())
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    for seed in range(4):
        await model.forward_backward(token_mean(groups(seed=seed)), CrossEntropy())
        theirs.grad = adapter.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_([theirs], 0.5)
        optimizer.step()
        output = await model.optim_step(adam)
        assert output.metrics["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
        assert output.metrics["gradient_norm"] > 0.5
        torch.testing.assert_close(adapter.master, theirs.detach(), rtol=1e-5, atol=1e-7)
        assert torch.equal(adapter.weights.a[0], adapter.master_a[0])
    assert adapter.grad.count_nonzero() == 0


async def test_no_clipping_when_it_is_off(model: TorchModel) -> None:
    await model.forward_backward(groups(), CrossEntropy())
    before = trainer(model).adapter.grad.clone()
    await model.optim_step(Adam(grad_clip_norm=0.0, beta1=0.0))
    torch.testing.assert_close(trainer(model).mean, before)


async def test_training_lowers_the_loss(model: TorchModel) -> None:
    data = token_mean(groups())
    losses = []
    for _ in range(20):
        output = model.forward_backward(data, CrossEntropy())
        model.optim_step(Adam(learning_rate=1e-2))
        losses.append((await output).metrics["loss"])
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("budget", [32, 4096])
async def test_equal_calls_give_equal_digests(tiny_llama: Path, tmp_path: Path, budget: int) -> None:
    digests = []
    for seed in (0, 0, 1):
        with anyio.fail_after(120):
            async with LocalBackend(deterministic=True, cache_dir=tmp_path, token_budget=budget) as backend:
                model = await backend.create_model(str(tiny_llama), lora=LORA, seed=seed)
                for step in range(3):
                    model.forward_backward(token_mean(groups(seed=step)), PPO())
                    model.optim_step(Adam(learning_rate=1e-3))
                digests.append(await model.digest())
    assert digests[0] == digests[1] != digests[2]


async def test_operations_run_in_the_order_of_the_calls(model: TorchModel) -> None:
    data = token_mean(groups())
    before = model.digest()
    model.forward_backward(data, CrossEntropy())
    middle = model.digest()
    model.optim_step(Adam())
    after = model.digest()
    assert await before == await middle != await after


BAD_DATA: list[tuple[Callable[[], list[Datum]], str]] = [
    (list, "without data"),
    (lambda: [*groups(1, 1), _with_token(320)], r"datum 1 holds token 320; this model's are 0 to 319"),
    (lambda: [_with_token(-1)], "datum 0 holds token -1"),
    (lambda: [_with_token(5, length=257)], "datum 0 has 257 tokens; the model's context holds 256"),
]


def _with_token(token: int, length: int = 6) -> Datum:
    tokens = np.full(length, token, np.int32)
    mask, zeros = np.arange(length) == 3, np.zeros(length, np.float32)
    return Datum(tokens=tokens, mask=mask, logprobs=zeros, advantages=zeros, weights=zeros)


@pytest.mark.parametrize(("make", "message"), BAD_DATA)
async def test_bad_data_are_refused_and_touch_nothing(
    model: TorchModel, make: Callable[[], list[Datum]], message: str
) -> None:
    await model.forward_backward(groups(), CrossEntropy())
    before, grad = await model.digest(), trainer(model).adapter.grad.clone()
    for call in (model.forward, model.forward_backward):
        with pytest.raises(SettingError, match=message):
            call(make(), CrossEntropy())
    assert await model.digest() == before
    assert torch.equal(trainer(model).adapter.grad, grad)
    await model.optim_step(Adam())


async def test_an_unknown_loss_is_refused(model: TorchModel) -> None:
    with pytest.raises(
        UnsupportedError, match=r"loss 'ppo': this backend computes CrossEntropy, ImportanceSampling, PPO"
    ):
        model.forward_backward(groups(), "ppo")  # type: ignore[arg-type]


async def test_a_failure_while_computing_breaks_the_buffer_until_it_is_discarded(
    model: TorchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Trainer, batch: MicroBatch, loss: Loss, *, train: bool) -> HeadOutput:
        raise ZeroDivisionError("planted")

    before = await model.digest()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_micro_batch", fail)
        failed, stepped = model.forward_backward(groups(), CrossEntropy()), model.optim_step(Adam())
        with pytest.raises(BackendError, match="forward_backward failed: planted"):
            await failed
        with pytest.raises(BackendError, match=r"optim_step refused: .*planted.*discard_gradients\(\)"):
            await stepped
    await model.forward_backward(groups(), CrossEntropy())
    with pytest.raises(BackendError, match="optim_step refused"):
        await model.optim_step(Adam())
    await model.discard_gradients()
    assert await model.digest() == before
    await model.forward_backward(groups(), CrossEntropy())
    await model.optim_step(Adam())


async def test_a_failure_nobody_awaited_is_raised_by_the_next_call(model: TorchModel) -> None:
    failed = model.load_state("nothing there")
    await model._engine.submit(lambda: None, "settle")  # pyright: ignore[reportPrivateUsage]
    assert failed.settled
    with pytest.raises(SettingError, match="no manifest"):
        model.digest()
    await model.digest()


async def test_a_refused_step_is_not_raised_after_its_cause_was_seen(model: TorchModel) -> None:
    failed, _ = model.forward_backward(_diverged(), ImportanceSampling()), model.optim_step(Adam())
    with pytest.raises(NonFinite):
        await failed
    await model.discard_gradients()
    await model.digest()


def _diverged() -> list[Datum]:
    """The second datum's sampler log-prob is so low that the ratio is infinite in fp32."""
    good, bad = groups(2, 1)
    return [
        good,
        Datum(
            tokens=bad.tokens,
            mask=bad.mask,
            logprobs=bad.logprobs - 200 * bad.mask.astype(np.float32),
            advantages=bad.advantages,
            weights=bad.weights,
        ),
    ]


async def test_a_loss_that_is_not_finite_names_the_datum(model: TorchModel) -> None:
    with pytest.raises(NonFinite, match=r"the gradient of data \[1\] is not finite: .* up to exp\(\d"):
        await model.forward_backward(_diverged(), ImportanceSampling())


async def test_a_ratio_that_overflows_is_no_nan_without_a_name(model: TorchModel) -> None:
    """Clipping hides the ratio from PPO's loss, not from its gradient (0 times infinity)."""
    with pytest.raises(NonFinite, match=r"data \[1\]"):
        await model.forward_backward(_diverged(), PPO())


async def test_weights_that_are_not_finite_name_the_data(model: TorchModel) -> None:
    trainer(model).adapter.master_b[0].fill_(torch.nan)
    trainer(model).adapter.refresh()
    with pytest.raises(NonFinite, match=r"log-probs of data \[0, 1\] are not finite"):
        await model.forward_backward(groups(1, 2), CrossEntropy())


async def test_a_gradient_that_is_not_finite_changes_nothing(model: TorchModel) -> None:
    await model.forward_backward(groups(), CrossEntropy())
    before = await model.digest()
    trainer(model).adapter.grad[3] = torch.inf
    with pytest.raises(NonFinite, match="optim_step 1: the gradient's norm is inf"):
        await model.optim_step(Adam())
    assert await model.digest() == before
    await model.discard_gradients()
    await model.forward_backward(groups(), CrossEntropy())
    await model.optim_step(Adam())


async def test_a_loaded_state_continues_equally(backend: LocalBackend, tiny_llama: Path, tmp_path: Path) -> None:
    first = await backend.create_model(str(tiny_llama), lora=LORA, seed=1)
    second = await backend.create_model(str(tiny_llama), lora=LORA, seed=2)

    async def step(model: TorchModel, seed: int) -> None:
        model.forward_backward(token_mean(groups(seed=seed)), CrossEntropy())
        await model.optim_step(Adam(learning_rate=1e-2))

    await step(first, 0)
    path = await first.save_state("after one")
    assert Path(path) == tmp_path / "states" / "after one"
    await step(first, 1)
    await second.forward_backward(groups(), CrossEntropy())  # dropped by loading
    await second.load_state("after one")
    await step(second, 1)
    assert await first.digest() == await second.digest()


async def test_a_state_goes_to_an_absolute_path(model: TorchModel, tmp_path: Path) -> None:
    want = await model.digest()
    path = str(tmp_path / "elsewhere" / "s")
    assert await model.save_state(path) == path
    model.forward_backward(groups(), CrossEntropy())
    await model.optim_step(Adam())
    await model.load_state(path)
    assert await model.digest() == want


@pytest.mark.parametrize("name", ["", "../up", "a/../../b"])
async def test_a_state_name_that_leads_elsewhere_is_refused(model: TorchModel, name: str) -> None:
    with pytest.raises(SettingError, match="state name"):
        model.save_state(name)


async def test_a_state_that_does_not_fit_changes_nothing(
    backend: LocalBackend, model: TorchModel, tiny_qwen3: Path
) -> None:
    other = await backend.create_model(str(tiny_qwen3), lora=LORA)
    path = await other.save_state("other")
    before = await model.digest()
    with pytest.raises(SettingError, match="another base model"):
        await model.load_state(path)
    assert await model.digest() == before


async def test_two_models_share_a_base_and_nothing_else(backend: LocalBackend, tiny_llama: Path) -> None:
    first = await backend.create_model(str(tiny_llama), lora=LORA, seed=1)
    second = await backend.create_model(str(tiny_llama), lora=Lora(rank=2), seed=2)
    assert trainer(first).base is trainer(second).base
    before = await second.digest()
    first.forward_backward(groups(), CrossEntropy())
    await first.optim_step(Adam())
    assert await second.digest() == before
    assert trainer(second).adapter.grad.count_nonzero() == 0


async def test_versions_never_go_back(model: TorchModel) -> None:
    await model.publish(3)
    for version in (3, 2, -1):
        with pytest.raises(SettingError, match=f"version={version}: 3 is published"):
            model.publish(version)
    with pytest.raises(SettingError, match="version=2 is not published"):
        await model.sampler(version=2)


async def test_old_versions_are_freed_when_nobody_samples_from_them(model: TorchModel) -> None:
    versions = model._versions  # pyright: ignore[reportPrivateUsage]
    await model.publish(0)
    first, again = await model.sampler(version=0), await model.sampler(version=0)
    await model.publish(1)
    await model.publish(2)
    assert list(versions.numbers) == [0, 2]
    await first.aclose()
    await model.digest()
    assert list(versions.numbers) == [0, 2]
    await again.aclose()
    await again.aclose()
    await model.digest()
    assert list(versions.numbers) == [2]


async def test_a_published_version_keeps_its_weights(model: TorchModel) -> None:
    spread(model)
    data = groups(1, 1)[0]
    await model.publish(0)
    sampler = await model.sampler(version=0)
    before = await sampler.logprobs(data.tokens)
    model.forward_backward([data], CrossEntropy())
    await model.optim_step(Adam(learning_rate=0.1))
    assert np.array_equal(await sampler.logprobs(data.tokens), before, equal_nan=True)
    now = await model.sampler()
    assert now.version == 1
    assert np.abs(await now.logprobs(data.tokens) - before)[1:].max() > 1e-3


async def test_the_trainer_scores_what_the_sampler_drew_as_the_sampler_did(model: TorchModel) -> None:
    spread(model)
    sampler = await model.sampler()
    prompts = [np.array([5, 6, 7 + i], np.int32) for i in range(4)]
    data = []
    for prompt in prompts:
        samples = await sampler.sample(prompt, SamplingParams(max_tokens=20, temperature=0.8, seed=1), n=4)
        data += [Datum.completion(prompt, s, advantage=1.0, temperature=0.8) for s in samples]
    output = await model.forward(data, ImportanceSampling())
    for datum, logprobs in zip(data, output.logprobs, strict=True):
        np.testing.assert_allclose(logprobs, datum.logprobs, atol=1e-4)


async def test_inflight_samplers_are_refused(model: TorchModel) -> None:
    with pytest.raises(UnsupportedError, match="kind='inflight'"):
        await model.sampler("inflight")


async def test_a_closed_backend_refuses(tiny_llama: Path, tmp_path: Path) -> None:
    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path) as backend:
            model = await backend.create_model(str(tiny_llama), lora=LORA)
            await model.publish(0)
            sampler = await model.sampler(version=0)
    with pytest.raises(BackendError, match="forward_backward: the backend is closed"):
        model.forward_backward(groups(), CrossEntropy())
    with pytest.raises(BackendError, match="closed"):
        await model.sampler()
    with pytest.raises(BackendError, match="closed"):
        await backend.create_model(str(tiny_llama), lora=LORA)
    await sampler.aclose()


async def test_info_and_capabilities(backend: LocalBackend, model: TorchModel, tiny_llama: Path) -> None:
    info = model.info
    assert (info.model, info.context_length, info.dtype) == (str(tiny_llama), 256, "float32")
    assert info.trained_parameters == trainer(model).adapter.master.numel()
    assert info.parameters > 0 and len(info.fingerprint) == 64
    assert backend.capabilities().deterministic
    assert PPO in backend.capabilities().losses


async def test_without_lora_is_refused(backend: LocalBackend, tiny_llama: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"lora=None: .*lora=Lora\(rank=32"):
        await backend.create_model(str(tiny_llama))


BAD_SETTINGS: list[tuple[dict[str, object], str]] = [
    ({"threads": 0}, "threads=0: must be at least 1"),
    ({"slots": 0}, "slots=0: must be at least 1"),
    ({"token_budget": 0}, "token_budget=0"),
    ({"decode_share": -1}, "decode_share=-1: must be at least 0"),
    ({"dtype": "float16"}, "dtype='float16': must be"),
    ({"dtype": "bfloat16", "deterministic": True}, "deterministic run computes in 'float32'"),
    ({"device": "abacus"}, "device='abacus'"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_bad_settings_are_refused_at_start(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        LocalBackend(**settings)  # type: ignore[arg-type]
