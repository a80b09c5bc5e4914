"""An advantage estimator of one's own: OPO's optimal baseline (arXiv 2505.23585), on sums that are worked out in steps.

The baseline is the mean reward weighted by length: of all constants it is the one with the least variance of the
gradient, if a token's gradient has the same norm wherever it stands.
"""

from dataclasses import dataclass
from random import Random

from sparring import (
    Comparable,
    Episodes,
    F,
    MathVerifier,
    Policy,
    Run,
    Sampling,
    Score,
    Seat,
    advantages,
    environment,
    grpo,
    split,
)


@advantages
def opo(group: Comparable) -> F:
    return group.rewards - (group.lengths * group.rewards).sum() / group.lengths.sum()


@dataclass(frozen=True)
class Question:
    terms: tuple[int, ...]


verify = MathVerifier()


@environment(gold=lambda task: f"Answer: {sum(task.terms)}")
async def sums(task: Question, solver: Seat) -> Score:
    reply = await solver.ask(
        f"What is {' + '.join(map(str, task.terms))}? End with 'Answer: ' and the number, on its own line."
    )
    return await verify(reply.text, sum(task.terms))


rng = Random(0)
train, test = split(
    [Question((rng.randint(1, 20), rng.randint(1, 20), rng.randint(1, 20))) for _ in range(1000)], held_out=64
)

run = Run(
    name="opo",
    train=Episodes(sums, train),
    held_out=Episodes(sums, test),
    policies=Policy("smollm2-135m-instruct", grpo(advantages=opo), sampling=Sampling(max_tokens=64)),
    steps=100,
)
