"""vLLM through this library's client, against the same engine driven directly; for an environment that has vLLM.

    .venv-vllm/bin/python -m benchmarks._vllm_pairs MODEL DTYPE THREADS      prints the seconds of each pair as JSON

64 concurrent requests of 45 prompt tokens and 32 drawn ones, each with a prompt of its own, through an adapter. The ways take
turns on one engine, and begin in turn; prompts are never asked twice, so that no cache of prompts helps.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
from vllm import SamplingParams as Theirs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from benchmarks._rows import Settings
from sparring.arrays import I32
from sparring.backend import Lora
from sparring.backend.local import LocalBackend
from sparring.backend.sampling import SamplingClient, SamplingParams
from sparring.backend.vllm.client import VllmSamplingClient
from sparring.backend.vllm.convert import vllm_params
from sparring.backend.vllm.files import WeightsFile

PAIRS, REQUESTS, PROMPT_TOKENS, DRAWN, RANK, VOCABULARY = 5, 64, 45, 32, 16, 49000
PARAMS = SamplingParams(max_tokens=DRAWN)


async def _through_client(client: SamplingClient, prompts: list[I32]) -> None:
    async with anyio.create_task_group() as group:
        for prompt in prompts:
            group.start_soon(client.sample, prompt, PARAMS)


def _directly(client: VllmSamplingClient, prompts: list[I32]) -> None:
    """On the engine's own loop, without anything of ours around vLLM's generator."""
    adapter = client._source  # pyright: ignore[reportPrivateUsage]
    assert isinstance(adapter, WeightsFile)
    request = LoRARequest(lora_name=adapter.name, lora_int_id=adapter.number, lora_path=str(adapter.folder))
    params = Theirs(**vllm_params(PARAMS, 1), output_kind=RequestOutputKind.FINAL_ONLY)

    async def one(llm: Any, name: str, prompt: I32) -> None:
        async for _ in llm.generate({"prompt_token_ids": prompt.tolist()}, params, name, lora_request=request):
            pass

    async def ask(engine: Any) -> None:
        async with anyio.create_task_group() as group:
            for index, prompt in enumerate(prompts):
                group.start_soon(one, engine._llm, f"direct {time.monotonic_ns()} {index}", prompt)

    client._sampler.replicas.threads[0].submit(ask).result()  # type: ignore[attr-defined]  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


async def _pairs(settings: Settings) -> list[tuple[float, float]]:
    random = np.random.default_rng(0)
    found: list[tuple[float, float]] = []
    async with LocalBackend(dtype=settings.dtype, threads=settings.threads, sampler="vllm", max_loras=2) as backend:
        model = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))
        client = await model.sampler()
        assert isinstance(client, VllmSamplingClient)
        for number in range(PAIRS + 1):
            seconds = {"direct": 0.0, "client": 0.0}
            for name in list(seconds) if number % 2 else list(seconds)[::-1]:
                prompts = [random.integers(3, VOCABULARY, PROMPT_TOKENS).astype(np.int32) for _ in range(REQUESTS)]
                start = time.perf_counter()
                if name == "client":
                    await _through_client(client, prompts)
                else:
                    await anyio.to_thread.run_sync(_directly, client, prompts)
                seconds[name] = time.perf_counter() - start
            print(f"pair {number} of {PAIRS}, {seconds}", file=sys.stderr, flush=True)
            found.append((seconds["direct"], seconds["client"]))
        await client.aclose()
    return found[1:]  # the first warms up


if __name__ == "__main__":
    model, dtype, threads = sys.argv[1:]
    assert dtype in ("bfloat16", "float32"), dtype
    found = anyio.run(_pairs, Settings(model=model, rounds=PAIRS, dtype=dtype, threads=int(threads)))
    print(json.dumps({"tokens": REQUESTS * DRAWN, "pairs": found}))
