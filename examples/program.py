"""An agent program that knows nothing of sparring, trained unchanged through an address that speaks OpenAI's API.

    sparring train examples/program.py --steps 20

It needs OpenAI's client (pip install openai). The program asks for two attempts at once, and then for one answer in sight of
both: three contexts, one reward.
"""

from dataclasses import dataclass

import anyio
from openai import AsyncOpenAI

from sparring import Episodes, MathVerifier, Policy, Run, Sampling, Score, Seat, environment, split


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str


verify = MathVerifier()


async def solve(client: AsyncOpenAI, question: str) -> str:
    """The program: it would work as well with any other model behind the client."""
    attempts: dict[str, str] = {}

    async def attempt(how: str) -> None:
        system = {"role": "system", "content": f"You solve problems {how}."}
        attempts[how] = await said(client, [system, {"role": "user", "content": question}])

    async with anyio.create_task_group() as group:
        for how in ("step by step", "by estimating first"):
            group.start_soon(attempt, how)
    shown = "\n\n".join(f"Attempt {how}:\n{text}" for how, text in sorted(attempts.items()))
    final = f"{question}\n\n{shown}\n\nPut the final answer in \\boxed{{}}."
    messages = [{"role": "user", "content": final}]
    answer = await said(client, messages)
    if "\\boxed" not in answer:  # the same conversation goes on
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Put it in \\boxed{}."}]
        answer = await said(client, messages)
    return answer


async def said(client: AsyncOpenAI, messages: list[dict[str, str]]) -> str:
    completion = await client.chat.completions.create(model="any", messages=messages)
    return completion.choices[0].message.content or ""


@environment(hidden={"agent": ("answer",)})
async def program(task: Problem, agent: Seat) -> Score:
    async with agent.endpoint() as url:  # chat completions here are this seat's replies, token for token
        answer = await solve(AsyncOpenAI(base_url=url, api_key="-"), task.question)  # the program, unchanged
    return await verify(answer, task.answer)


train, held_out = split(
    [Problem(f"What is {a} * {b}?", str(a * b)) for a in range(3, 20) for b in range(3, 20)], held_out=30
)
run = Run(
    name="program",
    train=Episodes(program, train),
    held_out=Episodes(program, held_out),
    policies=Policy("smollm2-135m-instruct", sampling=Sampling(max_tokens=128)),
    steps=20,
)
