"""What the engine computes on each device that is here, against the plain way on a CPU."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sparring.backend.datum import Datum
from sparring.backend.local import LocalBackend, row_attention
from sparring.backend.local.base import load_base
from sparring.backend.local.device import CPU_TOKENS, CUDA_TOKENS, choose_device, choose_token_budget, token_budget
from sparring.backend.local.draw import Shape, draw
from sparring.backend.local.dropout import Dropout
from sparring.backend.local.dtype import Dtype
from sparring.backend.local.head import HeadInput, at_once, score
from sparring.backend.local.linear import Term, base_first, base_last
from sparring.backend.local.measures import measures
from sparring.backend.local.model import TorchModel
from sparring.backend.local.norms import RootMeanSquareNorm
from sparring.backend.local.objectives import Objective
from sparring.backend.losses import PPO, ClippedValue, CrossEntropy, Custom, Loss
from sparring.backend.sampling import SamplingParams
from sparring.backend.training import Adam, Lora
from sparring.errors import NonFinite, SettingError, UnsupportedError
from tests.backend.batches import (
    LORA,
    conversations,
    diverged,
    gradient,
    groups,
    lora_of,
    plain_loss,
    relative,
    spread,
    trainer,
)
from tests.backend.devices import DEVICES
from tests.backend.reference import ALL_LOSSES, at_sampler, with_fields
from tests.backend.values import gradient_of, to_learn, trainer_of

TOLERANCE = 1e-4
"""Of gradients in fp32 on two devices, relative to their norm."""


@pytest.fixture
def anyio_backend() -> str:
    """What differs by device does not differ by event loop."""
    return "asyncio"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def there(device: str, tmp_path: Path) -> AsyncIterator[LocalBackend]:
    """A backend in fp32 on the device."""
    with anyio.fail_after(120):
        async with LocalBackend(dtype="float32", device=device, cache_dir=tmp_path) as backend:
            yield backend


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[LocalBackend]:
    """The same on the CPU."""
    with anyio.fail_after(120):
        async with LocalBackend(dtype="float32", device="cpu", cache_dir=tmp_path / "here") as backend:
            yield backend


async def _both(here: LocalBackend, there: LocalBackend, folder: Path, tmp_path: Path) -> tuple[TorchModel, TorchModel]:
    """A model on either device with the same weights, which matter: saved here, loaded there."""
    one = await here.create_model(str(folder), lora=LORA)
    spread(one)
    state = await one.save_state(str(tmp_path / "state"))
    return one, await there.create_from_state(state)


@pytest.mark.parametrize("attention", ["products", "kernel"])
async def test_gradients_of_every_architecture_equal_the_plain_way(
    here: LocalBackend,
    there: LocalBackend,
    architecture: Path,
    attention: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of rows with branches, and of rows without."""
    one, other = await _both(here, there, architecture, tmp_path)
    if attention == "kernel":
        monkeypatch.setattr(row_attention, "LONGEST", 0)
    for data in (groups() + conversations(), groups(6, 1)):
        want, logprobs = plain_loss(one, data, PPO())
        output = await other.forward(data, PPO())
        for got, lp in zip(output.logprobs, logprobs, strict=True):
            np.testing.assert_allclose(got, lp, rtol=1e-4, atol=1e-4)
        assert relative((await gradient(other, data, PPO())).cpu(), want) <= TOLERANCE


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=repr)
async def test_gradients_of_every_loss_equal_the_plain_way(
    here: LocalBackend, there: LocalBackend, tiny_llama: Path, loss: Loss, tmp_path: Path
) -> None:
    one, other = await _both(here, there, tiny_llama, tmp_path)
    data = groups(3, 3, temperature=0.8)
    output = await one.forward(data, CrossEntropy())
    data = with_fields(at_sampler(data, output.logprobs, 0.3), loss)
    want, _ = plain_loss(one, data, loss)
    assert relative((await gradient(other, data, loss)).cpu(), want) <= TOLERANCE


@pytest.mark.parametrize("lora", [LORA, Lora(rank=4, alpha=8.0, unembedding=True), None], ids=repr)
async def test_steps_move_the_weights_as_on_a_cpu(
    here: LocalBackend, there: LocalBackend, tiny_qwen3: Path, lora: Lora | None
) -> None:
    """An adapter, one on the output layer too, and all weights; the gradient norm and what it comes to."""
    data, adam, found = groups(), Adam(learning_rate=1e-2), []
    for backend in (here, there):
        model = await backend.create_model(str(tiny_qwen3), lora=lora)
        norms = []
        for _ in range(2):
            await model.forward_backward(data, CrossEntropy())
            norms.append((await model.optim_step(adam)).metrics["gradient_norm"])
        output = await model.forward(data, CrossEntropy(), entropy=True)
        found.append((norms, output))
    (norms, output), (other_norms, other) = found
    assert other_norms == pytest.approx(norms, rel=1e-3)
    for got, want in zip(other.logprobs, output.logprobs, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    assert other.metrics["entropy_sum"] == pytest.approx(output.metrics["entropy_sum"], rel=1e-3)


async def test_a_critics_gradients_are_those_on_a_cpu(
    here: LocalBackend, there: LocalBackend, tiny_llama: Path
) -> None:
    data, found = to_learn(groups()), list[Tensor]()
    for backend in (here, there):
        critic = await backend.create_critic(str(tiny_llama), lora=LORA)
        generator = torch.Generator().manual_seed(0)
        trained = trainer_of(critic).adapter
        trained.master.add_(
            torch.randn(trained.master.shape, generator=generator).to(trained.master.device), alpha=0.05
        )
        trained.refresh()
        found.append((await gradient_of(critic, data, ClippedValue())).cpu())
    assert relative(found[1], found[0]) <= TOLERANCE


async def test_a_custom_loss_sees_log_probs_on_the_cpu(there: LocalBackend, tiny_llama: Path) -> None:
    def squares(data: Sequence[Datum], logprobs: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        return torch.cat(list(logprobs)).square().sum(), {"calls": 1.0}

    model = await there.create_model(str(tiny_llama), lora=LORA)
    output = await model.forward_backward(groups(), Custom(function=squares))
    want = sum(float(np.square(lp).sum()) for lp in output.logprobs)
    assert output.metrics["loss"] == pytest.approx(want, rel=1e-5)
    assert trainer(model).adapter.grad.count_nonzero() > 0


async def test_two_models_in_one_pass_have_their_own_gradients(there: LocalBackend, tiny_llama: Path) -> None:
    models = [await there.create_model(str(tiny_llama), lora=LORA, seed=seed) for seed in (1, 2)]
    calls = [groups(2, 2, seed=1), groups(3, 2, seed=2)]
    want = [await gradient(model, data, CrossEntropy()) for model, data in zip(models, calls, strict=True)]
    await there.forward_backward([(m, data, CrossEntropy()) for m, data in zip(models, calls, strict=True)])
    for model, one in zip(models, want, strict=True):
        assert relative(trainer(model).adapter.grad, one) <= TOLERANCE


async def test_what_is_not_finite_is_named_and_leaves_the_device_usable(there: LocalBackend, tiny_llama: Path) -> None:
    model = await there.create_model(str(tiny_llama), lora=LORA)
    with pytest.raises(NonFinite, match=r"gradient of data \[1\] is not finite"):
        await model.forward_backward(diverged(), PPO())
    await model.discard_gradients()
    lora_of(model).weights.b[0].fill_(torch.nan)
    with pytest.raises(NonFinite, match="log-probs of data"):
        await model.forward_backward(groups(2, 1), PPO())
    await model.discard_gradients()
    trainer(model).adapter.refresh()
    await model.forward_backward(groups(2, 1), PPO())
    assert (await model.optim_step(Adam())).metrics["gradient_norm"] > 0


async def test_drawn_logprobs_are_the_trainers_and_seeds_give_the_same_tokens(
    there: LocalBackend, tiny_model: Path
) -> None:
    """Requests of several lengths and adapters at once, some of them cut; prompts longer than a block."""
    models = [await there.create_model(str(tiny_model), lora=LORA, seed=seed) for seed in (1, 2)]
    for model in models:
        await model.forward_backward(groups(), CrossEntropy())
        await model.optim_step(Adam(learning_rate=1e-2))
    for temperature, top_k in ((1.0, -1), (0.7, -1), (1.0, 5), (0.0, -1)):
        for length, model in zip((3, 90), models, strict=True):
            prompt = np.arange(3, 3 + length, dtype=np.int32)
            client = await model.sampler()
            params = SamplingParams(max_tokens=20, seed=7, temperature=temperature, top_k=top_k)
            samples, again = [await client.sample(prompt, params, n=4) for _ in range(2)]
            assert [one.tokens.tolist() for one in samples] == [one.tokens.tolist() for one in again]
            assert all(np.isfinite(one.logprobs).all() for one in samples)
            if temperature and top_k < 0:
                data = [
                    replace(Datum.completion(prompt, one, advantage=1.0), temperature=temperature) for one in samples
                ]
                output = await model.forward(data, PPO())
                for datum, lp in zip(data, output.logprobs, strict=True):
                    np.testing.assert_allclose(lp, datum.logprobs, atol=1e-4)
            await client.aclose()


async def test_states_and_exports_are_those_of_a_cpu(
    here: LocalBackend, there: LocalBackend, tiny_llama: Path, tmp_path: Path
) -> None:
    one, other = await _both(here, there, tiny_llama, tmp_path)
    assert await other.digest() == await one.digest()
    files = []
    for name, model in (("one", one), ("other", other)):
        folder = Path(await model.export(str(tmp_path / name), "merged"))
        files.append({path.name: path.stat().st_size for path in folder.iterdir()})
    assert files[0] == files[1]


@pytest.mark.parametrize("hot", [False, True])
def test_scores_equal_the_plain_way(device: str, hot: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(50, 8, generator=generator)
    given = HeadInput(
        hidden=torch.randn(30, 8, generator=generator),
        targets=torch.randint(0, 50, (30, 2), generator=generator),
        weights=torch.rand(30, 2, generator=generator),
        temperature=torch.rand(30, generator=generator) + 0.5 if hot else torch.ones(30),
        tempered=hot,
    )
    leaf = given.hidden.double().requires_grad_(True)
    scores = torch.log_softmax(leaf @ head.double().T / given.temperature.double()[:, None], -1)
    values = (scores.gather(1, given.targets) * given.weights.double()).sum(-1)
    (want,) = torch.autograd.grad(values.sum(), leaf)
    moved = HeadInput(
        hidden=given.hidden.to(device),
        targets=given.targets.to(device),
        weights=given.weights.to(device),
        temperature=given.temperature.to(device),
        tempered=hot,
    )
    output = score(head.to(device), moved, gradient=True, entropy=True)
    assert output.gradient is not None and output.entropy is not None
    torch.testing.assert_close(output.values.cpu().double(), values.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.gradient.cpu().double(), want, rtol=1e-4, atol=1e-5)
    entropy = -(scores.exp() * scores).sum(-1).detach()
    torch.testing.assert_close(output.entropy.cpu().double(), entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_in_few_passes_equal_the_plain_way(device: str, dtype: torch.dtype) -> None:
    """Also where a token is all but certain: the gradient at it is exact before it is rounded."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 50, generator=generator).to(device, dtype)
    targets = torch.randint(0, 50, (20, 1), generator=generator).to(device)
    logits[:5].scatter_(1, targets[:5], 12.0)
    weights = (torch.arange(20, device=device)[:, None] % 3 - 1).float()
    leaf = logits.double().requires_grad_(True)
    want = torch.log_softmax(leaf, -1).gather(1, targets)
    (slopes,) = torch.autograd.grad((want * weights).sum(), leaf)
    kept = logits.clone()
    torch.testing.assert_close(
        at_once(kept, targets, weights, gradient=False).double(), want.detach(), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(kept, logits)
    at_once(kept, targets, weights, gradient=True)
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(kept.double(), slopes, rtol=rounding, atol=1e-9 if dtype == torch.bfloat16 else 1e-7)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("parts", [[(0, 9)], [(0, 4), (4, 9)], [(1, 3), (5, 9)], []], ids=str)
def test_products_with_the_base_last_equal_those_with_it_first(
    device: str, parts: list[tuple[int, int]], with_bias: bool
) -> None:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    generator = torch.Generator().manual_seed(0)
    flat, matrix, bias = random(9, 6), random(6, 5), random(5) if with_bias else None
    terms = [Term(start, end, random(end - start, 2), random(2, 5), 0.5 + start) for start, end in parts]
    found = [product(flat, matrix, bias, terms) for product in (base_first, base_last)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_norms_equal_transformers(device: str, dtype: torch.dtype, tolerance: float) -> None:
    theirs = LlamaRMSNorm(48, 1e-3).to(device, dtype)
    theirs.weight.data.normal_(1, 0.3)
    ours = RootMeanSquareNorm(theirs.weight.detach().clone(), 1e-3)
    ours.weight.requires_grad_(True)
    x, direction = (torch.randn(5, 7, 48, device=device).to(dtype) for _ in range(2))
    found = []
    for norm in (theirs, ours):
        leaf = x.clone().requires_grad_(True)
        y = norm(leaf)
        assert y.dtype == dtype
        y.backward(direction)
        assert leaf.grad is not None and norm.weight.grad is not None
        found.append((y.detach(), leaf.grad, norm.weight.grad))
    for want, got in zip(*found, strict=True):
        assert relative(got.float(), want.float()) < tolerance


def test_tokens_without_mass_are_never_drawn(device: str) -> None:
    """All mass on a few tokens that stand far apart; the points drawn are where running sums meet."""
    count, vocabulary = 512, 50_000
    logits = torch.full((count, vocabulary), -torch.inf)
    places = torch.tensor([0, 1023, 1024, 4096, 20_000, 49_999])
    logits[:, places] = torch.randn(count, len(places), generator=torch.Generator().manual_seed(0))
    uniform = np.concatenate([np.linspace(0, 1, count - 2, endpoint=False), [0.0, 1 - 2**-24]]).astype(np.float32)
    tokens, logprobs = draw(logits.to(device), [Shape(temperature=1.0)] * count, uniform)
    assert set(tokens) == set(places.tolist())
    want = torch.log_softmax(logits, -1)[torch.arange(count), tokens]
    np.testing.assert_allclose(logprobs, want.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="not finite"):
        draw(torch.full((1, 4), torch.nan, device=device), [Shape(temperature=1.0)], np.zeros(1, np.float32))


def test_dropout_is_a_function_of_seed_step_and_micro_batch(device: str) -> None:
    x, masks = torch.ones(200, 50, device=device), list[Tensor]()
    for step in (3, 3, 4):
        dropout = Dropout(0.25, 1, torch.device(device))
        dropout.begin(step, 0)
        mask = dropout.mask(x)
        assert mask is not None and mask.device == x.device
        masks.append(mask)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert float((masks[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.02)


def test_metrics_of_what_is_not_finite_touch_nothing_else(device: str) -> None:
    lp, q = torch.tensor([-1.0, torch.nan, -2.0], device=device), torch.tensor([-1.0, -1.0, torch.inf], device=device)
    found = measures(PPO(), lp, q, Objective(loss=torch.tensor(0.0, device=device))).fetched()
    assert found["tokens"] == 3 and np.isnan(found["nll_sum"])


async def test_bfloat16_is_near_fp32(device: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Through the attention that the device has for it; both samplers and trainers."""
    found = []
    precisions: tuple[Dtype, ...] = ("float32", "bfloat16")
    for dtype in precisions:
        async with LocalBackend(dtype=dtype, device=device, cache_dir=tmp_path) as backend:
            model = await backend.create_model(str(tiny_llama), lora=LORA)
            data = groups() + conversations()
            found.append((await gradient(model, data, CrossEntropy())).cpu())
            client = await model.sampler()
            samples = await client.sample([5, 6, 7], SamplingParams(max_tokens=20, seed=1), n=8)
            output = await model.forward(
                [Datum.completion([5, 6, 7], one, advantage=1.0) for one in samples], CrossEntropy()
            )
            difference = np.concatenate(
                [np.abs(lp[3:] - one.logprobs) for lp, one in zip(output.logprobs, samples, strict=True)]
            )
            assert difference.mean() <= (0.05 if dtype == "bfloat16" else 1e-5)
    assert relative(found[1], found[0]) < 0.1


def test_micro_batches_fit_the_device(device: str, tiny_llama: Path) -> None:
    """The larger the memory the more tokens, in powers of 2, up to a bound."""
    base = load_base(tiny_llama, dtype=torch.float32, device=torch.device(device))
    assert choose_token_budget(base) == (CPU_TOKENS if device == "cpu" else CUDA_TOKENS)
    weights = 4 * base.parameters
    sizes = [token_budget(base, weights + memory) for memory in (1, 10**6, 10**7, 10**8, 10**12)]
    assert sizes == sorted(sizes) and sizes[0] == 1 and sizes[-1] == CUDA_TOKENS and sizes[1] < sizes[2] < CUDA_TOKENS
    assert all(size & (size - 1) == 0 for size in sizes)


def test_devices_that_are_not_there_are_refused() -> None:
    assert choose_device("auto", deterministic=True) == torch.device("cpu")
    assert choose_device("auto", deterministic=False).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wanted, said in (("abacus", "no such device"), ("meta", "'cpu' or 'cuda'"), ("cuda:77", "CUDA devices here")):
        with pytest.raises(SettingError, match=f"device='{wanted}'.*{said}"):
            choose_device(wanted, deterministic=False)
    with pytest.raises(UnsupportedError, match="device='cuda' with deterministic=True"):
        choose_device("cuda", deterministic=True)
