"""The conformance suite on the torch sampler, and that each of its checks fails where a backend breaks the contract."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import anyio
import numpy as np
import pytest

from sparring.arrays import F32, I32
from sparring.backend.check import (
    BF16,
    check_backend,
    check_cancelled,
    check_closing,
    check_distribution,
    check_ends,
    check_likely,
    check_parity,
    check_seeds,
    check_versions,
)
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.models import SMOLLM2
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.backend.training import Lora, TrainingClient
from sparring.errors import CheckFailed
from tests.backend.batches import LORA


def drawing(backend: LocalBackend) -> Callable[[], int]:
    """How many sequences the torch sampler has."""

    def count() -> int:
        (loaded,) = backend._loaded.values()  # pyright: ignore[reportPrivateUsage]
        stands = loaded.sampler.statistics()
        return stands.waiting + stands.filling + stands.running

    return count


@pytest.mark.parametrize("deterministic", [True, False])
async def test_the_torch_sampler_keeps_the_contract(tiny_llama: Path, tmp_path: Path, *, deterministic: bool) -> None:
    with anyio.fail_after(120):
        async with LocalBackend(dtype="float32", deterministic=deterministic, cache_dir=tmp_path) as backend:
            await check_backend(backend, str(tiny_llama), lora=LORA, busy=drawing(backend))


@pytest.mark.model
async def test_the_torch_sampler_keeps_the_contract_on_smollm2() -> None:
    with anyio.fail_after(300):
        async with LocalBackend(dtype="bfloat16", threads=2) as backend:
            model = await backend.create_model(SMOLLM2, lora=Lora(rank=8))
            await check_parity(model, bounds=BF16, tokens=250)
            await check_ends(model)


async def test_the_torch_backend_leaves_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    async def use() -> None:
        async with LocalBackend(deterministic=True, cache_dir=tmp_path) as backend:
            model = await backend.create_model(str(tiny_llama), lora=LORA)
            await (await model.sampler()).sample([5, 6], SamplingParams(max_tokens=2))

    with anyio.fail_after(120):
        await check_closing(use, folders=[tmp_path])


async def test_what_is_left_is_named(tmp_path: Path) -> None:
    gate = threading.Event()

    async def use() -> None:
        (tmp_path / "forgotten").touch()
        threading.Thread(target=gate.wait, args=(60,), name="abandoned", daemon=True).start()

    with pytest.raises(CheckFailed, match=r"file .*forgotten, thread \d+ abandoned"):
        await check_closing(use, folders=[tmp_path])
    gate.set()


class Broken:
    """A sampling client with a planted defect: `of` changes what is asked, `then` what comes back, `among` the options."""

    def __init__(
        self,
        inner: SamplingClient,
        of: Callable[[SamplingParams], SamplingParams] = lambda params: params,
        then: Callable[[SampledSequence], SampledSequence] = lambda sample: sample,
        among: Callable[[Sequence[Any]], Sequence[Any]] = lambda options: options,
    ) -> None:
        self._inner, self._of, self._then, self._among = inner, of, then, among

    @property
    def version(self) -> int:
        return self._inner.version

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        return [self._then(sample) for sample in await self._inner.sample(prompt, self._of(params), n)]

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        return await self._inner.logprobs(tokens)

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        return await self._inner.options(prompt, self._among(options))

    async def aclose(self) -> None:
        await self._inner.aclose()


class Planted:
    """A model whose samplers go through `wrap`; all else is the model's own."""

    def __init__(self, model: TorchModel, wrap: Callable[[SamplingClient], SamplingClient]) -> None:
        self._model, self._wrap = model, wrap

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    async def sampler(
        self, kind: Literal["snapshot", "inflight"] = "snapshot", *, version: int | None = None
    ) -> SamplingClient:
        return self._wrap(await self._model.sampler(kind, version=version))


def planted(model: TorchModel, wrap: Callable[[SamplingClient], SamplingClient]) -> TrainingClient:
    made: Any = Planted(model, wrap)
    checked: TrainingClient = made
    return checked


def longer(sample: SampledSequence) -> SampledSequence:
    """The token after the one that ended it is given too."""
    return SampledSequence(
        tokens=np.append(sample.tokens, sample.tokens[-1]),
        logprobs=np.append(sample.logprobs, sample.logprobs[-1]),
        stop=sample.stop,
        versions=((sample.versions[0][0], len(sample.tokens) + 1),),
    )


def likely(sample: SampledSequence, change: Callable[[I32, F32], tuple[I32, F32]]) -> SampledSequence:
    """Other likeliest tokens, where any are told."""
    if sample.top_tokens is None or sample.top_logprobs is None:
        return sample
    tokens, logprobs = change(sample.top_tokens, sample.top_logprobs)
    return replace(sample, top_tokens=tokens, top_logprobs=logprobs)


DEFECTS: dict[
    str, tuple[Callable[[TrainingClient], Awaitable[None]], Callable[[SamplingClient], SamplingClient], str]
] = {
    "log-probs of temperature 1": (
        check_parity,
        lambda inner: Broken(inner, of=lambda p: replace(p, temperature=1.0)),
        "drawn and trained log-probs differ",
    ),
    "log-probs a little off": (
        check_parity,
        lambda inner: Broken(inner, then=lambda s: replace(s, logprobs=s.logprobs + np.float32(1e-3))),
        "differ by 0.001",
    ),
    "top-k ignored": (
        check_distribution,
        lambda inner: Broken(inner, of=lambda p: replace(p, top_k=-1)),
        "top_k",
    ),
    "log-probs before top-p": (
        check_distribution,
        lambda inner: Broken(inner, then=lambda s: replace(s, logprobs=s.logprobs * np.float32(0.5))),
        "sum to",
    ),
    "stop tokens ignored": (check_ends, lambda inner: Broken(inner, of=lambda p: replace(p, stop_ids=())), "stop_ids"),
    "stop strings ignored": (check_ends, lambda inner: Broken(inner, of=lambda p: replace(p, stop=())), "stop='"),
    "one token too many": (check_ends, lambda inner: Broken(inner, then=longer), "max_tokens=24"),
    "seed ignored": (check_seeds, lambda inner: Broken(inner, of=lambda p: replace(p, seed=None)), "other tokens"),
    "one seed for all": (check_seeds, lambda inner: Broken(inner, of=lambda p: replace(p, seed=1)), "are alike"),
    "likeliest tokens unasked": (
        check_likely,
        lambda inner: Broken(inner, of=lambda p: replace(p, top_logprobs=p.top_logprobs or 1)),
        "without top_logprobs",
    ),
    "too few of the likeliest": (
        check_likely,
        lambda inner: Broken(inner, of=lambda p: replace(p, top_logprobs=min(p.top_logprobs, 2))),
        r"in the shape \(16, 2\), not \(16, 5\)",
    ),
    "likeliest last": (
        check_likely,
        lambda inner: Broken(inner, then=lambda s: likely(s, lambda t, lp: (t[:, ::-1], lp[:, ::-1]))),
        "are not in order",
    ),
    "likeliest of another distribution": (
        check_likely,
        lambda inner: Broken(inner, then=lambda s: likely(s, lambda t, lp: (t, lp + np.float32(0.5)))),
        "drawn and of the same among the likeliest differ by 0.5",
    ),
    "likeliest that were left out": (
        check_likely,
        lambda inner: Broken(inner, then=lambda s: likely(s, lambda t, lp: (t, np.maximum(lp, np.float32(-40))))),
        "leaves all but 3 tokens out",
    ),
    "likeliest tokens of another place": (
        check_likely,
        lambda inner: Broken(inner, then=lambda s: likely(s, lambda t, lp: (t + 1, lp))),
        "likelier than the likeliest was drawn|differ by",
    ),
    "options by their first token": (
        check_likely,
        lambda inner: Broken(inner, among=lambda options: [option[:1] for option in options]),
        "log-probs of options and of their tokens differ",
    ),
    "options in another order": (
        check_likely,
        lambda inner: Broken(inner, among=lambda options: options[::-1]),
        "log-probs of options and of their tokens differ",
    ),
    "stamps of another version": (
        check_versions,
        lambda inner: Broken(inner, then=lambda s: replace(s, versions=((7, len(s.tokens)),))),
        "stamped",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
async def test_a_planted_defect_is_seen(model: TorchModel, defect: str) -> None:
    check, wrap, message = DEFECTS[defect]
    with pytest.raises(CheckFailed, match=message):
        await check(planted(model, wrap))


async def test_a_sampler_that_stays_behind_or_follows_is_seen(model: TorchModel) -> None:
    """A stale one hands out its first version for ever; one without snapshots draws everything from the newest."""
    first: list[SamplingClient] = []
    newest: list[SamplingClient] = []

    def stale(inner: SamplingClient) -> SamplingClient:
        first.append(inner)
        return first[0]

    class Following(Broken):
        async def sample(
            self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1
        ) -> list[SampledSequence]:
            return await newest[-1].sample(prompt, params, n)

    def following(inner: SamplingClient) -> SamplingClient:
        newest.append(inner)
        return Following(inner)

    with pytest.raises(CheckFailed, match="drawn and trained log-probs differ"):
        await check_parity(planted(model, stale))
    with pytest.raises(CheckFailed, match="a snapshot must not change"):
        await check_versions(planted(model, following), first=2)


async def test_a_request_that_goes_on_is_seen(model: TorchModel, backend: LocalBackend) -> None:
    await check_cancelled(model, drawing(backend))
    with pytest.raises(CheckFailed, match="3 sequences are still drawn"):
        await check_cancelled(model, lambda: 3)
