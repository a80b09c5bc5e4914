"""A server of the real OpenEnv, as a program: `python openenv_server.py PLACES` prints the port that it listens at.

Its game: a number from 1 to 9, drawn from the seed, is to be guessed within five guesses; each is answered with "higher" or
"lower".
"""

from __future__ import annotations

import random
import socket
import sys
from typing import Any

import uvicorn
from openenv.core.env_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Guess(Action):
    number: int


class Hint(Observation):
    text: str = ""


class Guessing(Environment[Guess, Hint, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.wanted, self.guesses = 0, 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **given: Any) -> Hint:
        self.wanted, self.guesses = random.Random(seed).randint(1, given.get("most", 9)), 0
        return Hint(text="Guess my number.")

    def step(self, action: Guess, timeout_s: float | None = None, **given: Any) -> Hint:
        if action.number > 1000:
            raise OverflowError("numbers end at 1000")
        self.guesses += 1
        right = action.number == self.wanted
        said = "right" if right else "higher" if action.number < self.wanted else "lower"
        return Hint(text=said, reward=1.0 if right else -0.1, done=right or self.guesses == 5)

    @property
    def state(self) -> State:
        return State(step_count=self.guesses)


if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    app = create_fastapi_app(Guessing, Guess, Hint, max_concurrent_envs=int(sys.argv[1]))
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
