"""GSM8K (arXiv 2110.14168): school mathematics in words, with a verifier that compares the boxed number.

The data are not shipped: put train.jsonl and test.jsonl of https://github.com/openai/grade-school-math into a folder
`gsm8k` beside this file; `math_tasks` also reads those of MATH. Without it the few problems below are all there is, enough to
see it run.
"""

from pathlib import Path

from sparring import Episodes, MathTask, MathVerifier, Policy, Run, Score, Seat, environment, math_tasks, split

MODEL = "smollm2-135m-instruct"  # small enough for any machine, and too small to be good at this
DATA = Path(__file__).with_name("gsm8k")

verify = MathVerifier()


@environment(hidden={"*": ("answer",)}, gold=lambda task: f"\\boxed{{{task.answer}}}")
async def gsm8k(task: MathTask, solver: Seat) -> Score:
    reply = await solver.ask(f"{task.question}\nPut the final answer in \\boxed{{}}.")
    return await verify(reply.text, task.answer)


few = [
    MathTask("A baker makes 12 rolls an hour and works 7 hours. He sells 59 rolls. How many are left?", "25"),
    MathTask("A ticket costs $8, and half of that for a child. What do 2 adults and 3 children pay in dollars?", "28"),
    MathTask("Nora reads 15 pages a day. Her book has 180 pages. After how many days is she through?", "12"),
    MathTask("A tank holds 90 litres and is a third full. How many litres are missing?", "60"),
    MathTask("Ken saves $250 a month for 4 months and then spends $375. How many dollars has he left?", "625"),
    MathTask("A train goes 80 km in the first hour and 65 km in each of the next 3. How many km is that?", "275"),
    MathTask("Three friends share 48 cherries equally; one of them gives away 5 of hers. How many has she now?", "11"),
    MathTask("A shirt of $40 is sold at 25% off. What does it cost in dollars?", "30"),
    MathTask("A farmer has 6 rows of 14 trees and fells 9 trees. How many trees stand?", "75"),
    MathTask("Lia is 4 years older than Tom, who is twice as old as Max. Max is 7. How old is Lia?", "18"),
]
train, test = (
    (math_tasks(DATA / "train.jsonl"), math_tasks(DATA / "test.jsonl")) if DATA.is_dir() else split(few, held_out=2)
)

run = Run(name="gsm8k", train=Episodes(gsm8k, train), held_out=Episodes(gsm8k, test), policies=Policy(MODEL), steps=200)
