"""GSM8K (arXiv 2110.14168): school mathematics in words, with a verifier that compares the boxed number.

The data are not shipped: put train.jsonl and test.jsonl of https://github.com/openai/grade-school-math into a folder
`gsm8k` beside this file. Without it the few problems below are all there is, enough to see it run.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from sparring import Episodes, MathVerifier, Policy, Run, Score, Seat, environment, jsonl, split

MODEL = "smollm2-135m-instruct"  # small enough for any machine, and too small to be good at this
DATA = Path(__file__).with_name("gsm8k")


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str


verify = MathVerifier()


@environment(hidden={"*": ("answer",)}, gold=lambda task: f"\\boxed{{{task.answer}}}")
async def gsm8k(task: Problem, solver: Seat) -> Score:
    reply = await solver.ask(f"{task.question}\nPut the final answer in \\boxed{{}}.")
    return await verify(reply.text, task.answer)


def problems(file: Path) -> list[Problem]:
    """The problems of a file; what stands after #### in a solution is its answer."""
    return [replace(problem, answer=problem.answer.rpartition("####")[2].strip()) for problem in jsonl(file, Problem)]


few = [
    Problem("A baker makes 12 rolls an hour and works 7 hours. He sells 59 rolls. How many are left?", "25"),
    Problem("A ticket costs $8, and half of that for a child. What do 2 adults and 3 children pay in dollars?", "28"),
    Problem("Nora reads 15 pages a day. Her book has 180 pages. After how many days is she through?", "12"),
    Problem("A tank holds 90 litres and is a third full. How many litres are missing?", "60"),
    Problem("Ken saves $250 a month for 4 months and then spends $375. How many dollars has he left?", "625"),
    Problem("A train goes 80 km in the first hour and 65 km in each of the next 3. How many km is that?", "275"),
    Problem("Three friends share 48 cherries equally; one of them gives away 5 of hers. How many has she now?", "11"),
    Problem("A shirt of $40 is sold at 25% off. What does it cost in dollars?", "30"),
    Problem("A farmer has 6 rows of 14 trees and fells 9 trees. How many trees stand?", "75"),
    Problem("Lia is 4 years older than Tom, who is twice as old as Max. Max is 7. How old is Lia?", "18"),
]
train, test = (
    (problems(DATA / "train.jsonl"), problems(DATA / "test.jsonl")) if DATA.is_dir() else split(few, held_out=2)
)

run = Run(name="gsm8k", train=Episodes(gsm8k, train), held_out=Episodes(gsm8k, test), policies=Policy(MODEL), steps=200)
