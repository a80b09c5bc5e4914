"""vLLM's processes: killed, stopped, closed; each test starts engines of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import anyio
import numpy as np
import pytest

from sparring.backend.check import check_closing
from sparring.backend.local import LocalBackend
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.backend.training import Lora
from sparring.backend.vllm import VllmSampler
from sparring.backend.vllm.files import usual_parent
from sparring.errors import BackendError
from tests.backend.drawing import prompt_of

pytestmark = [pytest.mark.vllm, pytest.mark.parametrize("anyio_backend", ["trio"])]
LORA = Lora(rank=8, alpha=16.0)
PARAMS = SamplingParams(max_tokens=200, seed=3)


def sampler_of(backend: LocalBackend) -> VllmSampler:
    (sampler,) = backend._served.values()  # pyright: ignore[reportPrivateUsage]
    return sampler


async def test_a_dead_and_a_stuck_engine_are_replaced_and_nothing_is_lost(
    served: VllmSampler, tiny_wide: Path, backend: LocalBackend
) -> None:
    """Requests under way when every process is killed, then when they are stopped, end as they would have."""
    model = await backend.create_model(str(tiny_wide), lora=LORA)
    client = await model.sampler()
    wanted = await client.sample(prompt_of(0, 9), PARAMS, n=4)
    for number, deadly in enumerate((signal.SIGKILL, signal.SIGSTOP), 1):
        found: list[list[SampledSequence]] = []
        died = served.statistics().died

        async def sample(into: list[list[SampledSequence]]) -> None:
            into.append(await client.sample(prompt_of(0, 9), PARAMS, n=4))

        async with anyio.create_task_group() as group:
            group.start_soon(sample, found)
            await anyio.wait_all_tasks_blocked()
            for process in served.replicas.processes:
                os.kill(process, deadly)
        assert served.statistics().died == died + 1, number
        for one, other in zip(wanted, found[0], strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def counts(sampler: VllmSampler) -> tuple[int, int]:
    """Tokens that were drawn, and those of what is under way."""
    found = sampler.statistics()
    return found.drawn, found.drawing


async def test_tokens_are_counted_while_they_are_drawn_and_not_while_the_engine_is_stopped(
    served: VllmSampler, tiny_wide: Path, backend: LocalBackend
) -> None:
    model = await backend.create_model(str(tiny_wide), lora=LORA)
    client = await model.sampler()
    before, stood = counts(served)
    assert stood == 0
    seen: set[int] = set()
    async with anyio.create_task_group() as group:
        group.start_soon(client.sample, prompt_of(0, 9), PARAMS, 4)
        with anyio.fail_after(60):
            while len(seen) < 4:
                seen.add(counts(served)[1])
                await anyio.sleep(0.01)
        for process in served.replicas.processes:
            os.kill(process, signal.SIGSTOP)
        await anyio.sleep(0.5)
        stopped = counts(served)
        await anyio.sleep(1)
        assert counts(served) == stopped and 0 < stopped[1] < 4 * 200
        for process in served.replicas.processes:
            os.kill(process, signal.SIGCONT)
    assert counts(served) == (before + 4 * 200, 0)


@pytest.mark.slow
async def test_closing_leaves_nothing_and_fails_what_runs(tiny_wide: Path, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    async def sample(client: SamplingClient) -> None:
        try:
            await client.sample(prompt_of(0, 5), SamplingParams(max_tokens=250), n=64)
        except BackendError as error:
            failures.append(error)

    async def use() -> None:
        settings = LocalBackend(dtype="float32", threads=1, cache_dir=tmp_path, sampler="vllm")
        async with anyio.create_task_group() as group, settings as backend:
            model = await backend.create_model(str(tiny_wide), lora=LORA)
            await model.publish(0)
            client = await model.sampler(version=0)
            group.start_soon(sample, client)
            await anyio.wait_all_tasks_blocked()
            files = sampler_of(backend)._files  # pyright: ignore[reportPrivateUsage]
            assert files is not None and files.path.stat().st_mode & 0o777 == 0o700

    with anyio.fail_after(200):
        environment = inherited()
        await check_closing(use, folders=[usual_parent()])
    assert len(failures) == 1 and "closed" in str(failures[0])
    assert inherited() == environment


def inherited() -> list[str]:
    """The environment of a process that is started now, without what the readline library sets where it is loaded."""
    lines = subprocess.run(["env"], check=True, capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if not line.startswith(("LINES=", "COLUMNS="))]
