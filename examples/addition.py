"""Small sums with a strict verifier: what `sparring demo` trains. All 242 distinct questions of two terms from 0 to 10; 64
of them are never trained on. The rarest, those with a negative answer, are asked twice as often."""

from dataclasses import dataclass

from sparring import Episodes, Lora, MathVerifier, Policy, Run, Sampling, Score, Seat, environment, grpo, split


@dataclass(frozen=True)
class Question:
    text: str
    answer: int


verify = MathVerifier(extract="last")


@environment(hidden={"*": ("answer",)}, gold=lambda task: str(task.answer))
async def addition(task: Question, solver: Seat) -> Score:
    solver.system("You are a calculator. Negative numbers are written with a minus sign, for example -4.")
    reply = await solver.ask(f"State the final answer to the following arithmetic problem: {task.text} =")
    return await verify(reply.text, task.answer)


questions = [
    Question(f"{a} {sign} {b}", a + b if sign == "+" else a - b) for a in range(11) for sign in "+-" for b in range(11)
]
train, held_out = split(questions, held_out=64)
negative = [question for question in train if question.answer < 0]

run = Run(
    name="addition",
    train=Episodes(addition, [*train, *negative]),
    held_out=Episodes(addition, held_out, greedy=True),
    policies=Policy(
        "smollm2-135m-instruct",
        grpo(deviation=True),
        learning_rate=4e-4,
        lr_schedule="linear",
        lora=Lora(rank=16, alpha=32),
        sampling=Sampling(max_tokens=16, temperature=1.2),
    ),
    steps=100,
    groups_per_step=8,
    group_size=8,
    evaluate_every=20,
)
