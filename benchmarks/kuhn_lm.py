"""Kuhn poker by self-play of a small language model: how much less exploitable it becomes than it began.

    python -m benchmarks.kuhn_lm [--seeds 0 1 2] [--steps 200] [--minutes 5] [--device cuda --at_once 3] [--folder runs/kuhn_lm]

SmolLM2-135M says a legal move once in 300 replies at best, so that it first imitates both legal replies at every information
set (`--warm` epochs; 0 leaves that out). What comes of it is the start that is compared with, and the magnet that the policy is
held near (`KL`; magnetic mirror descent, arXiv 2206.05825). Then one policy on both seats, `rae()`, OpenSpiel's Kuhn poker in
the words of `examples/kuhn.py`, where what is no legal move loses. At each evaluation the log-probs of the legal replies at the
12 information sets give the strategy, and with it the exploitability, exactly: that of the policy as it is, and of the average
of all that were asked in the second half of the run so far. Each seed is a process that writes one JSON line an evaluation to
`FOLDER/SEED.jsonl`; what is there is not made again. `--minutes` ends the training of a seed early: the lines until then count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import anyio
import msgspec

from benchmarks._answers import Answer, Answers
from benchmarks._kuhn import WORDED, Asked, Point, dealt, picture, point
from benchmarks._rows import Row, report
from sparring import (
    KL,
    PPO,
    Adam,
    Episodes,
    Fit,
    ImportanceSampling,
    Lines,
    Local,
    Lora,
    Policy,
    Run,
    Sampling,
    generated,
    rae,
)
from sparring.backend import Loss
from sparring.environments.openspiel_exploitability import information_sets
from sparring.environments.seat import to_pick
from sparring.learner import fit_async, train_async

PICTURE = Path(__file__).parent.parent / "docs" / "kuhn_lm.svg"
LOSSES: Mapping[str, Loss] = {"importance": ImportanceSampling(), "ppo": PPO()}
TARGET = 0.7
"""Of the exploitability at the start, at most so much is left."""


def main() -> int:
    """Train what is missing, then the rows; 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--alone", action="store_true", help="train the one seed in this process")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--games", type=int, default=128, help="hands a step")
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--warm", type=int, default=40, help="epochs of the warm start, a step each")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--schedule", default="constant", choices=["constant", "linear", "cosine"])
    parser.add_argument("--loss", default="importance", choices=list(LOSSES))
    parser.add_argument("--kl", type=float, default=0.2, help="0: none")
    parser.add_argument("--entropy", type=float, default=0.0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--beta1", type=float, default=0.9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--at_once", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--folder", type=Path, default=Path("runs/kuhn_lm"))
    given = parser.parse_args()
    if given.alone:
        anyio.run(_trained, given, given.seeds[0])
        return 0
    missing = [seed for seed in given.seeds if not _lines(given.folder, seed).exists()]
    with ThreadPoolExecutor(given.at_once) as pool:
        list(pool.map(_in_a_process, missing))
    curves = {f"seed {seed}": read(_lines(given.folder, seed)) for seed in given.seeds}
    given.picture.write_text(picture({name: [curve] for name, curve in curves.items()}))
    rows = [row for name, curve in curves.items() for row in told(name, curve)]
    return 0 if report(f"Kuhn poker by {given.model}", rows, given.device if given.device != "auto" else "cpu") else 1


def _in_a_process(seed: int) -> None:
    """One seed, with the arguments of this process. Raises `CalledProcessError` where it ends badly."""
    command = [sys.executable, "-m", "benchmarks.kuhn_lm", *sys.argv[1:], "--alone", "--seeds", str(seed)]
    subprocess.run(command, check=True)


def _lines(folder: Path, seed: int) -> Path:
    return folder / f"{seed}.jsonl"


async def _trained(given: argparse.Namespace, seed: int) -> None:
    """One seed, until its steps are made or its time is over."""
    path = _lines(given.folder, seed)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.warm and not (given.folder / f"start-{seed}").exists():
        await _started(given, seed)
    with path.open("w") as file:

        def tell(answers: Sequence[Answer]) -> None:
            file.write(json.dumps(asdict(point(answers, given.games))) + "\n")
            file.flush()

        with anyio.move_on_after(60 * given.minutes):
            await train_async(_run(given, seed), watchers=[Answers(tell)])


async def _started(given: argparse.Namespace, seed: int) -> None:
    """Writes the model that the run begins with, after its warm start."""
    warm = _warm(given, seed)
    await fit_async(warm)
    async with warm.backend.open(deterministic=False) as backend:
        model = await backend.create_from_state(str((warm.path / "final").absolute()), model=given.model)
        await model.export(str((given.folder / f"start-{seed}").absolute()), "merged")


def _warm(given: argparse.Namespace, seed: int) -> Fit:
    """It imitates both replies at every information set."""
    path = given.folder / f"legal-{seed}.jsonl"  # seeds train at once
    path.write_text("".join(f"{json.dumps(one)}\n" for one in legal()))
    return Fit(
        name=f"warm-{seed}",
        model=given.model,
        train=Lines(path),
        held_out=0.0,
        epochs=given.warm,
        batch_size=24,
        learning_rate=2e-4,
        lora=_lora(given),
        backend=_backend(given),
        evaluate_every=given.warm,
        seed=seed,
        folder=given.folder,
    )


def legal() -> list[dict[str, Any]]:
    """What it imitates, as lines of a file."""
    rules = {"role": "system", "content": WORDED.rules}
    return [
        {
            "prompt": [rules, {"role": "user", "content": to_pick(one.text, tuple(one.actions))}],
            "completion": reply,
        }
        for one in information_sets(WORDED)
        for reply in one.actions
    ]


def _lora(given: argparse.Namespace) -> Lora:
    return Lora(rank=given.rank, alpha=2 * given.rank)


def _backend(given: argparse.Namespace) -> Local:
    return Local(device=given.device, threads=given.threads or None)


def _run(given: argparse.Namespace, seed: int) -> Run:
    """Self-play on both seats; each game is dealt anew."""
    return Run(
        name=f"run-{seed}",
        train=Episodes(WORDED, generated(dealt)),
        held_out=Episodes(Asked(game=WORDED), range(12), seen=True),
        policies=Policy(
            str(given.folder / f"start-{seed}") if given.warm else given.model,
            replace(
                rae(loss=LOSSES[given.loss]), kl=KL(coefficient=given.kl) if given.kl else None, entropy=given.entropy
            ),
            learning_rate=given.learning_rate,
            lr_schedule=given.schedule,
            lora=_lora(given),
            adam=Adam(beta1=given.beta1),
            sampling=Sampling(max_tokens=4),
        ),
        backend=_backend(given),
        group_size=1,
        groups_per_step=given.games,
        steps=given.steps,
        evaluate_every=given.every,
        seed=seed,
        folder=given.folder,
    )


def read(path: Path) -> list[Point]:
    """The lines of a seed."""
    return [msgspec.json.decode(line, type=Point) for line in path.read_bytes().splitlines()]


def told(name: str, points: Sequence[Point]) -> list[Row]:
    """The last line against the first."""
    first, last = points[0], points[-1]
    kept = last.average / first.last
    return [
        Row(name=f"{name}, hands, minutes", figure=f"{last.hands}, {last.seconds / 60:.1f}"),
        Row(name=f"{name}, exploitability, start", figure=f"{first.last:.3f}"),
        Row(name=f"{name}, exploitability, last policy", figure=f"{last.last:.3f}"),
        Row(name=f"{name}, exploitability, average policy", figure=f"{last.average:.3f}"),
        Row(
            name=f"{name}, average policy / start",
            figure=f"{kept:.2f}",
            target=f"<= {TARGET:g}",
            met=kept <= TARGET,
        ),
        Row(name=f"{name}, illegal moves a hand in the last step", figure=f"{last.illegal:.3f}"),
    ]


if __name__ == "__main__":
    sys.exit(main())
