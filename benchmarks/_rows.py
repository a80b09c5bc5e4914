"""What every benchmark prints: one row for each target, and an exit status that says whether all were met."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparring.backend.local.dtype import Dtype


def arguments(about: str | None) -> argparse.ArgumentParser:
    """What every benchmark of a model can be told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    return parser


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What these say."""

    model: str
    rounds: int
    dtype: Dtype
    threads: int
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure and what it should be; `met` None: shown for comparison only."""

    name: str
    figure: str
    target: str = ""
    met: bool | None = None


def report(what: str, rows: Sequence[Row], device: str = "cpu") -> bool:
    """Print one line a row; whether every target is met."""
    machine = (
        torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or platform.machine()
    )
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {what}")
    width = max(len(row.name) for row in rows) + 2
    for row in rows:
        verdict = "" if row.met is None else "met" if row.met else "short"
        print(f"{row.name:{width}s} {row.figure:24s} {row.target:10s} {verdict}".rstrip())
    return all(row.met is not False for row in rows)


def at_least(name: str, value: float, target: float) -> Row:
    """A ratio that should not be smaller."""
    return Row(name=name, figure=f"{value:.3g}", target=f">= {target:g}", met=value >= target)


def at_most(name: str, value: float, target: float) -> Row:
    """A ratio that should not be larger."""
    return Row(name=name, figure=f"{value:.3g}", target=f"<= {target:g}", met=value <= target)
