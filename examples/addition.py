"""Small arithmetic, trained in minutes on a laptop's processor: `sparring train examples/addition.py`."""

from dataclasses import dataclass
from itertools import product

from sparring.agents import Sampling
from sparring.backend import Lora
from sparring.environments import MathVerifier, Score, Seat, environment, split
from sparring.learner import Episodes, Policy, Run, grpo


@dataclass(frozen=True)
class Sum:
    question: str
    answer: int


verify = MathVerifier(extract="whole")


@environment(hidden={"*": ("answer",)}, gold=lambda task: str(task.answer))
async def addition(task: Sum, solver: Seat) -> Score:
    reply = await solver.ask(f"What is {task.question}? Reply with the number only.")
    return await verify(reply.text, task.answer)


SUMS = [Sum(f"{a} + {b}", a + b) for a, b in product(range(10), repeat=2)]
DIFFERENCES = [Sum(f"{a} - {b}", a - b) for a, b in product(range(10), repeat=2)]
TRAIN, HELD_OUT = split(SUMS + DIFFERENCES, held_out=64)

run = Run(
    name="addition",
    train=Episodes(addition, TRAIN),
    held_out=Episodes(addition, HELD_OUT, greedy=True),
    policies=Policy(
        "smollm2-135m-instruct",
        grpo(deviation=True),
        learning_rate=3e-4,
        lora=Lora(rank=16, alpha=32),
        sampling=Sampling(max_tokens=24),
    ),
    steps=40,
    groups_per_step=8,
    group_size=8,
)
