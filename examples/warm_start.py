"""A warm start: a script plays addition, a model imitates it, and a run goes on from there.

sparring fit examples/warm_start.py && sparring train examples/warm_start.py
"""

from dataclasses import dataclass

from sparring import (
    Episodes,
    Fit,
    Lineup,
    Lora,
    MathVerifier,
    Played,
    Policy,
    Run,
    Sampling,
    Score,
    Scripted,
    Seat,
    environment,
    split,
)


@dataclass(frozen=True)
class Question:
    a: int
    b: int


verify = MathVerifier(extract="last")


@environment(gold=lambda task: str(task.a + task.b))
async def addition(task: Question, solver: Seat) -> Score:
    reply = await solver.ask(f"Calculate {task.a} + {task.b}.")
    return await verify(reply.text, task.a + task.b)


def worked_out(conversation: object) -> str:
    """What the script answers: the equation."""
    asked = conversation.entries[-1].text
    a, b = asked.removeprefix("Calculate ").removesuffix(".").split(" + ")
    return f"{a} + {b} = {int(a) + int(b)}"


train, held_out = split([Question(a, b) for a in range(20) for b in range(20)], held_out=64)
model, lora = "smollm2-135m-instruct", Lora(rank=16, alpha=32)

warm = Fit(
    name="warm",
    model=model,
    train=Played(Episodes(addition, train[:128], Lineup({"solver": Scripted(worked_out)})), at_least=1.0),
    lora=lora,
    learning_rate=4e-4,
    epochs=2,
)

run = Run(
    name="after-warm",
    train=Episodes(addition, train),
    held_out=Episodes(addition, held_out, greedy=True),
    policies=Policy(model, start="runs/warm/final", lora=lora, learning_rate=2e-4, sampling=Sampling(max_tokens=16)),
    steps=40,
    groups_per_step=8,
)
