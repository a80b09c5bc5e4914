"""Problems with Python as a tool: ten turns, and a fresh context with the results so far before the old one is full.

    sparring train examples/research.py --steps 20

The sandbox needs bubblewrap (`sparring doctor`). A model as small as the default one hardly ever calls a tool rightly; name a
larger one as `--policies.model`.
"""

from dataclasses import dataclass

from sparring import Episodes, MathVerifier, Policy, Run, Sampling, Score, Seat, environment, python_tool, split


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str


verify = MathVerifier()
python = python_tool()


@environment(hidden={"agent": ("answer",)})
async def research(task: Problem, agent: Seat, *, turns: int = 10) -> Score:
    agent.tools(python)  # rendered by the model's own template; kept across new_context()
    notes: list[str] = []
    reply = await agent.ask(task.question)
    for _ in range(turns):
        for call in reply.tool_calls:
            notes.append(await call.run())  # bad arguments come back as text for the model; journaled
            agent.answer(call, notes[-1])
        if not reply.tool_calls:
            break
        if agent.context_left < 1000:
            agent.new_context()  # same trajectory, same reward, a second training sample
            agent.tell(f"{task.question}\nResults so far:\n" + "\n".join(notes))
        reply = await agent.ask()
    return await verify(reply.text, task.answer)


def sum_of_digits(n: int) -> Problem:
    question = f"What is the sum of the decimal digits of 2 to the power of {n}? Put the final answer in \\boxed{{}}."
    return Problem(question, str(sum(map(int, str(2**n)))))


train, held_out = split([sum_of_digits(n) for n in range(50, 250)], held_out=20)
run = Run(
    name="research",
    train=Episodes(research, train),
    held_out=Episodes(research, held_out),
    policies=Policy("smollm2-135m-instruct", sampling=Sampling(max_tokens=256)),
    steps=20,
)
