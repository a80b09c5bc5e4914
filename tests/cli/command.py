"""Running the command line as its users do: in a process of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ENTRY = [sys.executable, "-P", "-c", "import sys; from sparring.cli.main import main; sys.exit(main())"]
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

RUN = '''
"""A run without a model, for the command line's tests."""

from dataclasses import dataclass

from sparring import Episodes, Policy, Run, ScriptedModels, Seat, environment


@dataclass(frozen=True)
class Word:
    text: str


@environment(gold=lambda task: "a" + task.text)
async def letters(task: Word, writer: Seat, *, need: str = "a", fail: bool = False) -> float:
    reply = await writer.ask(f"Say {need} and {task.text}.")
    if fail:
        raise KeyError("planted")
    return float(need in reply.text)


run = Run(
    name="letters",
    train=Episodes(letters, [Word(f"word {n}") for n in range(50)]),
    held_out=Episodes(letters, [Word(f"unseen {n}") for n in range(20)], greedy=True),
    policies=Policy("none"),
    steps=6,
    groups_per_step=2,
    group_size=4,
    evaluate_every=3,
    backend=ScriptedModels(),
)
'''


def write_run(folder: Path, more: str = "", name: str = "words.py") -> Path:
    """The run's file in a folder, with more statements at its end."""
    path = folder / name
    path.write_text(RUN + more)
    return path


def sparring(*words: object, folder: Path, typed: str = "") -> "subprocess.CompletedProcess[str]":
    """`sparring WORDS` in a folder."""
    command = [*ENTRY, *map(str, words)]
    return subprocess.run(
        command, check=False, cwd=folder, input=typed, capture_output=True, text=True, timeout=120, env=ENVIRONMENT
    )
