"""The benchmark of CUDA devices, run small on a CPU: every part of it works, and it says where there is no device. What
the study of algorithms makes of runs, and that of Kuhn poker with a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.backend import needed
from benchmarks.cuda import CudaSettings, guarded
from benchmarks.kuhn_lm import read
from benchmarks.study import found, picture, table
from tests.backend.architectures import ARCHITECTURES, tiny

ROOT = Path(__file__).parents[2]
SMALL = "--rounds 1 --shapes 8/4 12/6 --prompts 2 --sequences 4 --drawn 6 --parity 30 --product 64"
NAMES = (
    "gradients in fp32, against a CPU",
    "float32 parity, mean of",
    "float32 parity with a full pass, max",
    "drawing, sparring / generate",
    "one GRPO step, 6 tokens",
    "a large product",
    "tiny-llama 8/4 plain",
    "tiny-llama 12/6 shared / plain",
    "tiny-llama 12/6, 2 prompts, tok/s",
    "tiny-llama best mfu",
    "8/4 two adapters in one pass / one",
)


def _run(*given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.cuda", *given]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)


def test_every_part_runs(tiny_llama: Path) -> None:
    given = f"--device cpu --architectures none --dtype float32 --threads 1 {SMALL} --model {tiny_llama}"
    done = _run(*given.split())
    assert [name for name in NAMES if name not in done.stdout] == [], done.stdout + done.stderr
    assert "no error" not in done.stdout, done.stdout
    exact = [line for line in done.stdout.splitlines() if "parity" in line or "against a CPU" in line]
    assert len(exact) == 8 and all(line.endswith("met") for line in exact), done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_device_it_says_so_and_fails() -> None:
    done = _run()
    assert done.returncode == 1 and "no CUDA device" in done.stderr


async def test_a_part_that_fails_is_a_row_that_is_not_met(capsys: pytest.CaptureFixture[str]) -> None:
    async def broken(settings: CudaSettings) -> list[object]:
        raise RuntimeError("CUDA error: out of luck\nand more")

    settings = CudaSettings(
        model="m", rounds=1, dtype="float32", threads=1, architectures=[], parts=[], shapes=[], prompts=1, sequences=1,
        drawn=1, parity=1, product=1,
    )  # fmt: skip
    (row,) = await guarded("part", broken, settings)  # type: ignore[arg-type]
    assert (row.name, row.figure, row.met) == ("part", "RuntimeError: CUDA error: out of luck", False)
    assert "out of luck" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["llama", "llama-untied", "qwen3"])
def test_what_a_step_needs_by_hand(name: str) -> None:
    """Of 320 x 32 numbers in the head and two layers' matrices, tied or not."""
    from benchmarks._training import Shape

    config = ARCHITECTURES[name]
    width = config.num_attention_heads * getattr(config, "head_dim", 8)
    layer = 32 * (2 * width + 2 * width // 2) + 3 * 32 * 64
    shape = Shape(prompt=10, completion=5, prompts=2)
    assert needed(tiny(config), shape) == 4 * (2 * layer * (2 * 10 + 16 * 5) + 320 * 32 * 16 * 5)


def _told(path: Path, rewards: dict[int, float], tokens: float) -> Path:
    lines: list[dict[str, object]] = [{"kind": "step", "deterministic": {"action_tokens": tokens}}] * 2
    lines += [{"kind": "evaluation", "version": at, "deterministic": {"reward": one}} for at, one in rewards.items()]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_the_study_tells_of_each_seed_and_of_their_mean(tmp_path: Path) -> None:
    """0.8, 0.9, 1.0: a deviation of 0.1, and 4.303 of that over the root of 3 is 0.248."""
    seeds = [found(_told(tmp_path / str(one), {0: 0.2, 20: 0.6, 40: one}, 500.0)) for one in (0.8, 0.9, 1.0)]
    *_, row = table({"grpo": seeds})
    assert row == "| `grpo` | 0.800, 0.900, 1.000 | 0.900 ± 0.248 | 0.750 | 1000 |"
    drawn = picture({"grpo": seeds, "ppo": seeds[:1]})
    assert drawn.count("<svg") == drawn.count("</svg>") == 3
    assert "grpo: held-out reward" in drawn and "at 40: 0.9<" in drawn and "at 40: 0.8<" in drawn


@pytest.mark.slow
def test_kuhn_poker_by_a_language_model_runs_and_is_not_made_again(tiny_llama: Path, tmp_path: Path) -> None:
    """A random model of two layers, two seeds at once: warm start, one step, lines, rows and picture."""
    given = (
        f"--model {tiny_llama} --seeds 0 1 --at_once 2 --steps 1 --games 2 --every 1 --warm 1 --device cpu --threads 1"
    )
    command = [sys.executable, "-m", "benchmarks.kuhn_lm", *given.split(), "--folder", str(tmp_path)]
    command += ["--picture", str(tmp_path / "kuhn.svg")]
    told = [
        subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False) for _ in range(2)
    ]
    assert told[0].stdout == told[1].stdout and "seed 1, average policy / start" in told[0].stdout, told[0].stderr
    for seed in (0, 1):
        first, last = read(tmp_path / f"{seed}.jsonl")
        assert (first.hands, last.hands, len(last.strategy)) == (0, 2, 12) and 0 < first.last < 2
        assert (tmp_path / f"start-{seed}" / "model.safetensors").exists()
    assert (tmp_path / "kuhn.svg").read_text().count("<svg") == 3
