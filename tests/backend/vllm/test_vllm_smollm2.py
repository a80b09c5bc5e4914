"""vLLM with a real model: parity in bf16, and the demo's job trained from it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import anyio
import pytest

from sparring.backend.check import BF16, check_cancelled, check_distribution, check_ends, check_parity, check_turns
from sparring.backend.local import LocalBackend
from sparring.backend.models import SMOLLM2
from sparring.backend.training import Lora
from sparring.backend.vllm.files import usual_parent
from tests.cli.command import ENTRY, ENVIRONMENT

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_smollm2_in_bf16_agrees_with_the_trainer() -> None:
    """Invariant 5 for bf16: mean <= 0.05, max <= 0.5 per token."""
    with anyio.fail_after(300):
        async with LocalBackend(dtype="bfloat16", threads=2, sampler="vllm", max_loras=3) as backend:
            model = await backend.create_model(SMOLLM2, lora=Lora(rank=8))
            await check_parity(model, bounds=BF16, tokens=250)
            await check_ends(model)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_smollm2_in_bf16_passes_what_does_not_depend_on_the_last_bit() -> None:
    """Two tokens may be equally likely there, which `check_likely` forbids; and a seed may draw others where log-probs were
    computed in another order, which `check_seeds`, `check_versions` and `check_inflight` forbid."""
    with anyio.fail_after(900):
        async with LocalBackend(dtype="bfloat16", threads=2, sampler="vllm", max_loras=4) as backend:
            model = await backend.create_model(SMOLLM2, lora=Lora(rank=8))
            await check_distribution(model)
            await check_turns(model, bounds=BF16)
            await check_cancelled(model, lambda: int(backend.statistics()["sampler/requests"]))


def test_five_steps_of_the_demo(tmp_path: Path) -> None:
    """Every step is trained on what vLLM drew with weights that are at most one step older; nothing is left behind."""
    before = set(usual_parent().iterdir())
    fields = ("--steps", "5", "--groups_per_step", "4", "--evaluate_every", "5", "--folder", str(tmp_path))
    done = subprocess.run(
        [*ENTRY, "demo", "--sampler", "vllm", *fields],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        env=ENVIRONMENT | {"HOME": str(Path.home())},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in (tmp_path / "addition" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["version"] for line in steps] == [1, 2, 3, 4, 5]
    for line in steps:
        assert line["deterministic"]["staleness_max"] <= 1, line
        assert line["engine"]["ess"] > 0.8, "what was drawn and what is trained are far apart"
    assert steps[0]["engine"]["kl"] < 0.01, "at the first step sampler and trainer have the same weights"
    assert set(usual_parent().iterdir()) == before
