"""A program that trains the league of the tests in the folder that it is given, and prints a line for each step on the disk."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from sparring.learner import train_async
from tests.learner.slow_run import Printer
from tests.learner.test_league import league_run


def main() -> None:
    async def trained() -> bool:
        return await train_async(league_run(Path(sys.argv[1]), steps=9), watchers=[Printer()])

    anyio.run(trained)


if __name__ == "__main__":
    main()
