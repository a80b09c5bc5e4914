"""The likeliest tokens and the log-probs of options: of the torch sampler, of the scripted backend, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparring.backend.local.base import BaseModel
from sparring.backend.local.draw import Shape, draw, likeliest
from sparring.backend.local.model import TorchModel
from sparring.backend.local.packing import Rows
from sparring.backend.local.scoring import option_logprobs, token_logprobs
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.backend.scripted import ScriptedBackend
from sparring.errors import BackendError, ContextFull, SettingError
from tests.backend.batches import spread
from tests.backend.drawing import VOCABULARY, adapter_of, base_of, prompt_of


@pytest.mark.parametrize(
    "shape",
    [
        Shape(temperature=1.0),
        Shape(temperature=0.3),
        Shape(temperature=2.0, top_p=0.5),
        Shape(temperature=1.0, top_k=2),
        Shape(temperature=0.0),
    ],
)
def test_the_likeliest_have_the_log_probs_of_what_is_drawn_from(shape: Shape) -> None:
    """Held against the formula: tempered, cut, renormalised."""
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(3))
    left = logits.clone()
    draw(left, [shape], np.array([0.5], np.float32))
    tokens, logprobs = likeliest(left[0], shape, 4)
    order = logits[0].argsort(descending=True)
    told = np.isfinite(logprobs).sum()
    assert tokens[:told] == order[:told].tolist()
    if shape.temperature == 0:
        assert logprobs == [0.0, *[-np.inf] * 3]
        return
    odds = torch.softmax(logits[0].double() / shape.temperature, 0)[order]
    kept = 2 if shape.top_k == 2 else 50 if shape.top_p == 1 else int((odds.cumsum(0) < shape.top_p).sum()) + 1
    odds[kept:] = 0
    wanted = (odds / odds.sum()).log()[:4].tolist()
    np.testing.assert_allclose(logprobs, wanted, atol=1e-5)


def test_options_are_scored_as_if_each_were_alone(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass, in which no option sees another; and in several, where they are too many for one."""
    base = base_of(tiny_model)
    weights, prompt = adapter_of(base, 1), prompt_of(0, 30)
    options = [prompt_of(place, length) for place, length in enumerate((1, 5, 1, 12, 3), 1)]
    options.append(options[1][:3])
    for together in (512, 14, 1):
        monkeypatch.setattr("sparring.backend.local.scoring.TOGETHER", together)
        told = option_logprobs(base, weights, prompt, options)
        for option, logprob in zip(options, told, strict=True):
            whole = token_logprobs(base, weights, np.concatenate([prompt, option]))
            np.testing.assert_allclose(logprob, whole[len(prompt) :].sum(), atol=1e-4)


def test_the_context_of_options_is_computed_once(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, shapes = base_of(tiny_llama), list[tuple[int, ...]]()
    compute = BaseModel.hidden_states

    def counted(self: BaseModel, rows: Rows, *, train: bool) -> torch.Tensor:
        shapes.append(rows.tokens.shape)
        return compute(self, rows, train=train)

    monkeypatch.setattr(BaseModel, "hidden_states", counted)
    option_logprobs(base, None, prompt_of(0, 100), [prompt_of(1, 2), prompt_of(2, 3), prompt_of(3, 4)])
    assert shapes == [(1, 109)]


async def test_the_likeliest_and_options_of_a_client(model: TorchModel) -> None:
    spread(model)
    client = await model.sampler()
    params = SamplingParams(max_tokens=5, seed=1, top_logprobs=20)
    for sample in await client.sample(prompt_of(0, 9), params, n=3):
        assert (
            sample.top_tokens is not None and sample.top_tokens.dtype == np.int32 and sample.top_tokens.shape == (5, 20)
        )
        assert sample.top_logprobs is not None and sample.top_logprobs.dtype == np.float32
    every = await client.options(prompt_of(0, 9), [[token] for token in range(VOCABULARY)])
    np.testing.assert_allclose(np.exp(every.astype(np.float64)).sum(), 1.0, atol=1e-5)
    for options, message in (
        ([], "there is nothing to choose from"),
        ([[]], "at least one token"),
        ([[5], [999]], "token 999"),
    ):
        with pytest.raises(SettingError, match=message):
            await client.options([5], options)
    with pytest.raises(ContextFull, match="250 tokens and an option of 7 do not fit into 256"):
        await client.options(prompt_of(0, 250), [[5], prompt_of(1, 7)])
    await client.aclose()
    with pytest.raises(BackendError, match="closed"):
        await client.options([5], [[6]])


@pytest.mark.parametrize("count", [-1, 21])
def test_more_of_the_likeliest_than_there_can_be_are_refused(count: int) -> None:
    with pytest.raises(SettingError, match=rf"top_logprobs={count}: must be from 0, which asks for none, to 20"):
        SamplingParams(max_tokens=1, top_logprobs=count)


def test_a_sequence_has_all_of_its_likeliest_or_none() -> None:
    tokens, logprobs = np.array([1, 2], np.int32), np.zeros(2, np.float32)
    rest = {"tokens": tokens, "logprobs": logprobs, "stop": "stop", "versions": ((0, 2),)}
    for top_tokens, top_logprobs in ((tokens[:, None], None), (tokens[:1, None], logprobs[:1, None])):
        with pytest.raises(AssertionError):
            SampledSequence(**rest, top_tokens=top_tokens, top_logprobs=top_logprobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["snapshot", "inflight"])
async def test_the_scripted_backend_tells_them_too(kind: str) -> None:
    """Options are a function of weights, context and option."""
    model = await ScriptedBackend().create_model("m")
    await model.publish(0)
    client = await model.sampler("inflight" if kind == "inflight" else "snapshot")
    (sample,) = await client.sample([5], SamplingParams(max_tokens=9, seed=1, top_logprobs=3))
    assert sample.top_tokens is not None and sample.top_logprobs is not None
    np.testing.assert_array_equal(sample.top_tokens[:, 0], sample.tokens)
    np.testing.assert_array_equal(sample.top_logprobs[:, 0], sample.logprobs)
    assert (np.diff(sample.top_logprobs) < 0).all()
    told = await client.options([5], [[6], [7, 8], [6]])
    assert told.dtype == np.float32 and (told <= 0).all() and told[0] == told[2] != told[1]
    assert (await client.options([4], [[6]]))[0] != told[0]
    with pytest.raises(SettingError, match="there is nothing to choose from"):
        await client.options([5], [])
    await client.aclose()
    with pytest.raises(BackendError, match="closed"):
        await client.options([5], [[6]])
