"""Six algorithms, three seeds each, on the demo's task: what differs and what does not.

    python -m benchmarks.study [--algorithms grpo ppo ...] [--seeds 0 1 2] [--steps 100] [--folder runs/study] [--device cpu]

Each run is `sparring train examples/addition.py --algorithm A --seed S`, 64 completions a step, so that all have equally many;
a run that is there already is not made again. A run takes some 7 minutes on 2 cores and 3 on a GPU; `--at_once` starts several,
each with a thread of its own. Then one line for each algorithm: held-out reward of each seed after the last step; the mean over
seeds with its 95 % interval (Student's t, so that three seeds give a wide one); the mean over the evaluations after the first,
which says how early it learnt; and the tokens that were trained on. `docs/study.svg` shows the curves: the mean over seeds, and
the range.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks import _pictures as pictures

ALGORITHMS = ("grpo", "dr_grpo", "rloo", "reinforce_pp", "cispo", "ppo")
PICTURE = Path(__file__).parent.parent / "docs" / "study.svg"
START = "import sys; from sparring.cli.main import main; sys.exit(main())"
COLUMNS = 3
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The 97.5 % quantile of Student's t, by the number of seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One run: held-out reward by step, and all tokens that were trained on."""

    held_out: dict[int, float]
    tokens: float


def train(algorithm: str, seed: int, given: argparse.Namespace) -> None:
    """One run in a process of its own. Raises `CalledProcessError` where it ends badly."""
    name = f"{algorithm}-{seed}"
    words = ["examples/addition.py", "--algorithm", algorithm, "--seed", str(seed), "--steps", str(given.steps)]
    words += ["--name", name, "--folder", str(given.folder), "--backend.device", given.device]
    words += ["--backend.threads", "1"] if given.at_once > 1 else []
    given.folder.mkdir(parents=True, exist_ok=True)
    with (given.folder / f"{name}.log").open("w") as log:
        command = [sys.executable, "-c", START, "train", *words]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)


def found(path: Path) -> Found:
    """What a run's `metrics.jsonl` says."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    held_out = {line["version"]: line["deterministic"]["reward"] for line in lines if line["kind"] == "evaluation"}
    tokens = sum(line["deterministic"]["action_tokens"] for line in lines if line["kind"] == "step")
    return Found(held_out=held_out, tokens=tokens)


def table(all_found: Mapping[str, Sequence[Found]]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| algorithm | after the last step, each seed | mean, 95 % | mean of all evaluations but the first | tokens |"
    yield "|---|---|---|---|---|"
    for name, seeds in all_found.items():
        last = [one.held_out[max(one.held_out)] for one in seeds]
        early = mean(mean(value for step, value in one.held_out.items() if step > 0) for one in seeds)
        wide = STUDENT[len(last)] * stdev(last) / len(last) ** 0.5
        each, tokens = ", ".join(f"{value:.3f}" for value in last), mean(one.tokens for one in seeds)
        yield f"| `{name}` | {each} | {mean(last):.3f} ± {wide:.3f} | {early:.3f} | {tokens:.0f} |"


def picture(all_found: Mapping[str, Sequence[Found]]) -> str:
    """A panel for each algorithm, all with the same axes."""
    panels: list[str] = []
    for name, seeds in all_found.items():
        steps = sorted(set[int].intersection(*(set(one.held_out) for one in seeds)))
        rewards = [[one.held_out[step] for step in steps] for one in seeds]
        curve = pictures.over_seeds("mean and range over seeds", steps, rewards, dots=True)
        panels.append(pictures.panel(f"{name}: held-out reward", [curve], (0.0, 1.0)))
    return pictures.picture([panels[at : at + COLUMNS] for at in range(0, len(panels), COLUMNS)])


def main() -> int:
    """Train what is missing, then tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="two to ten of them")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--at_once", type=int, default=1)
    given = parser.parse_args()
    if len(given.seeds) not in STUDENT:
        parser.error(f"--seeds {given.seeds}: an interval needs two to ten of them")
    algorithms: list[str] = given.algorithms
    paths = {(a, s): given.folder / f"{a}-{s}" / "metrics.jsonl" for s in given.seeds for a in algorithms}
    missing = [key for key, path in paths.items() if not path.exists() or given.steps not in found(path).held_out]
    with ThreadPoolExecutor(given.at_once) as pool:
        list(pool.map(lambda key: train(key[0], key[1], given), missing))
    all_found = {a: [found(paths[a, s]) for s in given.seeds] for a in algorithms}
    print("\n".join(table(all_found)))
    given.picture.write_text(picture(all_found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
