"""A server of the real OpenEnv, as a program: `python openenv_server.py PLACES [SECONDS]` prints the port that it listens at.
It pings its clients every so many seconds, and leaves those that do not answer within as many.

Its game: a number from 1 to 9, drawn from the seed, is to be guessed within five guesses; each is answered with "higher" or
"lower". `reset` takes `most` (instead of 9), `rewarded` ("last" or "none" of the guesses, instead of all) and `seconds` (that
each guess takes).
"""

from __future__ import annotations

import random
import socket
import sys
import threading
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
        self.wanted, self.guesses, self.rewarded, self.seconds = 0, 0, "", 0.0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **given: Any) -> Hint:
        self.wanted, self.guesses = random.Random(seed).randint(1, given.get("most", 9)), 0
        self.rewarded, self.seconds = given.get("rewarded", "all"), given.get("seconds", 0.0)
        return Hint(text="Guess my number.")

    def step(self, action: Guess, timeout_s: float | None = None, **given: Any) -> Hint:
        threading.Event().wait(self.seconds)
        if action.number > 1000:
            raise OverflowError("numbers end at 1000")
        self.guesses += 1
        right = action.number == self.wanted
        done = right or self.guesses == 5
        said = "right" if right else "higher" if action.number < self.wanted else "lower"
        told = self.rewarded == "all" or (self.rewarded == "last" and done)
        return Hint(text=said, reward=(1.0 if right else -0.1) if told else None, done=done)

    @property
    def state(self) -> State:
        return State(step_count=self.guesses)


if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    app = create_fastapi_app(Guessing, Guess, Hint, max_concurrent_envs=int(sys.argv[1]))
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    config = uvicorn.Config(app, log_level="warning", ws_ping_interval=seconds, ws_ping_timeout=seconds)
    uvicorn.Server(config).run(sockets=[listening])
