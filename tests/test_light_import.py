"""Importing sparring costs nothing that a user did not ask for; the pure rooms never bring in torch."""

import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "vllm",
    "ray",
    "wandb",
    "gymnasium",
    "pettingzoo",
    "pyspiel",
    "textarena",
    "tinker",
}
ADAPTED = {"gymnasium", "pettingzoo", "pyspiel", "textarena"}
FACADES = (
    "sparring",
    *(f"sparring.{room}" for room in ("environments", "agents", "rollout", "learner", "backend", "cli")),
)


def loaded_by(statements: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `statements`."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", f"{statements}\n{report}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("facade", FACADES)
def test_a_facade_loads_nothing_heavy(facade: str) -> None:
    assert loaded_by(f"import {facade}") & HEAVY == set()


@pytest.mark.parametrize("room", ["environments", "agents", "rollout"])
def test_no_module_of_a_pure_room_loads_torch(room: str) -> None:
    """An adapter loads the package that it is for, and nothing else."""
    every_module = (
        f"import importlib, pkgutil, sparring.{room} as room\n"
        "for found in pkgutil.walk_packages(room.__path__, room.__name__ + '.'): importlib.import_module(found.name)"
    )
    assert loaded_by(every_module) & HEAVY == (ADAPTED if room == "environments" else set())


def test_the_check_sees_a_heavy_import() -> None:
    assert "wandb" in loaded_by("import sys, types; sys.modules['wandb'] = types.ModuleType('wandb')") & HEAVY
