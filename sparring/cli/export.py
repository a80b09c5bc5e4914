"""`sparring export RUN OUT.jsonl`: a run's training episodes as a file of lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparring.cli.load import found
from sparring.cli.usage import Parser
from sparring.learner.export import export
from sparring.learner.run import Run

ABOUT = """\
Write the training episodes of a run to a file, one JSON object a line: task, players, messages, rewards, metrics, how it ended,
and which versions of the weights spoke. sparring.rollout.read_episodes reads them back as typed records.

The journal holds what players said, and digests of what they were told. Whole conversations and the tasks themselves come from
the file that defines the run: its episodes are told again with their replies, and held against the digests.

examples:
  sparring export examples/addition.py addition.jsonl
  sparring export runs/second second.jsonl --run examples/addition.py --tokens
  sparring export runs/addition replies.jsonl       without the run's file: what players said, alone"""


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    parser = Parser("export", usage="RUN_FOLDER | FILE[:NAME] OUT.jsonl [--run FILE[:NAME]] [--tokens]", about=ABOUT)
    parser.add_argument(
        "target", metavar="RUN_FOLDER | FILE[:NAME]", help="a run's folder, or the file that defines it"
    )
    parser.add_argument("out", metavar="OUT.jsonl", type=Path, help="the file to write, which must not be there yet")
    parser.add_argument("--run", metavar="FILE[:NAME]", help="the file that defines the run of this folder")
    parser.add_argument("--tokens", action="store_true", help="token ids, masks and log-probs too")
    arguments = parser.parse_args(words)
    is_folder = Path(arguments.target).is_dir() or ".py" not in arguments.target
    named = arguments.run if arguments.run or is_folder else arguments.target
    run = found(named, Run) if named else None
    folder = Path(arguments.target) if is_folder or run is None else run.path
    done = export(folder, arguments.out, run=run, tokens=arguments.tokens)
    print(f"{arguments.out}: {done.episodes} episodes")
    if done.replies_alone:
        why = (
            "their environment cannot be told again"
            if run
            else "name the run's file for whole conversations (--run FILE)"
        )
        print(f"{done.replies_alone} of them as the players' replies alone: {why}")
    if done.under_way:
        print(f"left out: {done.under_way} episodes that have not ended")
    return 0
