"""Which layers have an adapter: attention, MLP, the output layer (tied or not), each as PEFT has it; seeds and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from sparring.backend.local import LocalBackend
from sparring.backend.local.checkpoint import adapter_files, write_folder
from sparring.backend.local.model import TorchModel
from sparring.backend.local.readout import add_matrix_gradient
from sparring.backend.losses import CrossEntropy
from sparring.backend.sampling import SamplingClient, SamplingParams
from sparring.backend.training import Adam, Lora
from sparring.errors import SettingError
from tests.backend.architectures import assert_equals_peft, full_pass, plain
from tests.backend.batches import groups, lora_of, spread
from tests.backend.drawing import all_of

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer")
CHOICES = {
    "attention": Lora(rank=4, alpha=8.0, mlp=False),
    "mlp": Lora(rank=4, alpha=8.0, attention=False),
    "unembedding": Lora(rank=4, alpha=8.0, attention=False, mlp=False, unembedding=True),
    "everything": Lora(rank=4, alpha=8.0, unembedding=True),
}


@pytest.fixture
def anyio_backend() -> str:
    """One event loop is enough: what is compared here happens on the engine thread."""
    return "asyncio"


@pytest.fixture(params=sorted(CHOICES))
def lora(request: pytest.FixtureRequest) -> Lora:
    return CHOICES[request.param]


def _peft(model: TorchModel, folder: Path, scratch: Path) -> torch.nn.Module:
    write_folder(scratch, adapter_files(lora_of(model), "tiny"))
    return PeftModel.from_pretrained(plain(folder), str(scratch), is_trainable=True)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_outputs_and_gradients_equal_pefts(
    backend: LocalBackend, tiny_model: Path, lora: Lora, temperature: float, tmp_path: Path
) -> None:
    model = await backend.create_model(str(tiny_model), lora=lora)
    spread(model)
    peft, data = _peft(model, tiny_model, tmp_path / "adapter"), groups(2, 3, temperature=temperature)
    assert_equals_peft(lora_of(model), peft, data, await model.forward_backward(data, CrossEntropy()), temperature)


async def test_steps_reach_the_sampler(backend: LocalBackend, tiny_model: Path, lora: Lora, tmp_path: Path) -> None:
    """After optimizer steps the trainer, the sampler and PEFT agree: nothing that is derived from the weights is stale."""
    model = await backend.create_model(str(tiny_model), lora=lora)
    for _ in range(3):
        model.forward_backward(groups(), CrossEntropy())
        await model.optim_step(Adam(learning_rate=3e-2))
    peft = _peft(model, tiny_model, tmp_path / "adapter")
    sampler = await model.sampler()
    prompt = np.arange(5, 12, dtype=np.int32)
    for drawn in await sampler.sample(prompt, SamplingParams(max_tokens=9, seed=1), n=2):
        whole = np.concatenate([prompt, drawn.tokens])
        want = full_pass(peft, whole).detach().numpy()
        np.testing.assert_allclose(drawn.logprobs, want[len(prompt) - 1 :], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose((await sampler.logprobs(whole))[1:], want, rtol=1e-4, atol=1e-4)


async def test_sequences_of_several_choices_are_drawn_in_one_pass(tiny_llama: Path, tmp_path: Path) -> None:
    prompt = np.arange(5, 12, dtype=np.int32)
    async with LocalBackend(dtype="float32", cache_dir=tmp_path) as backend:
        samplers = []
        for seed, lora in enumerate(CHOICES.values()):
            model = await backend.create_model(str(tiny_llama), lora=lora, seed=seed)
            spread(model, seed)
            samplers.append(await model.sampler())

        def draw(sampler: SamplingClient, seed: int) -> Callable[[], Any]:
            return lambda: sampler.sample(prompt, SamplingParams(max_tokens=20, seed=seed), n=2)

        for sampler, drawn in zip(samplers, await all_of(*map(draw, samplers, range(4))), strict=True):
            for one in drawn:
                scored = await sampler.logprobs(np.concatenate([prompt, one.tokens]))
                np.testing.assert_allclose(one.logprobs, scored[len(prompt) :], rtol=1e-4, atol=1e-4)


def test_the_matrix_gradient_equals_autograds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several weighted targets a row, in chunks of two rows, of the last columns only."""
    generator = torch.Generator().manual_seed(0)
    matrix, states = torch.randn(11, 5, generator=generator), torch.randn(7, 5, generator=generator)
    targets = torch.randint(0, 11, (7, 2), generator=generator)
    scale, temperature = torch.randn(7, 2, generator=generator), torch.rand(7, generator=generator) + 0.5
    leaf = matrix.clone().requires_grad_(True)
    logprobs = torch.log_softmax(states @ leaf.T / temperature[:, None], dim=-1).gather(1, targets)
    (logprobs * scale * temperature[:, None]).sum().backward()
    assert leaf.grad is not None
    monkeypatch.setattr("sparring.backend.local.head.CHUNK_BYTES", 4 * 11 * 2)
    buffer = torch.ones(11, 3)
    add_matrix_gradient(buffer, matrix, states, targets=targets, scale=scale, temperature=temperature)
    torch.testing.assert_close(buffer - 1, leaf.grad[:, 2:], rtol=1e-4, atol=1e-5)


async def test_the_adapters_seed_goes_before_the_models(backend: LocalBackend, tiny_llama: Path) -> None:
    digests = []
    for seed, own in ((1, 5), (2, 5), (5, None), (1, None)):
        model = await backend.create_model(str(tiny_llama), lora=Lora(rank=2, seed=own), seed=seed)
        digests.append(await model.digest())
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_an_adapter_on_nothing_is_refused() -> None:
    with pytest.raises(SettingError, match="an adapter on no layer; set attention"):
        Lora(attention=False, mlp=False)
    with pytest.raises(SettingError, match=r"lora.alpha=inf"):
        Lora(alpha=float("inf"))
