"""Environments with one defect each, for the checks that must see it. They stand in a module, as other processes load them."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from math import nan

import anyio
import sniffio

from sparring import MathVerifier, Outcome, Score, Seat, effect, environment, gather, reveal
from sparring.environments.games import Word
from sparring.environments.running import RUNNING


@dataclass(frozen=True)
class Sum:
    text: str
    answer: int
    hint: str = "none"


SUMS = [Sum(f"{a} + {a + 3}", a + a + 3, f"hint {a}") for a in range(21, 27)]
verify = MathVerifier(extract="whole")
random.seed(0)  # equal in every process that just began
NUMBERS, STATE = count(), {"task": ""}


def busy(seconds: float) -> None:
    """Compute without awaiting."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def gold(task: Sum) -> str:
    return str(task.answer)


# ------------------------------------------------------------------------------------------------------------------ right


@environment(hidden={"*": ("answer",), "solver": ("hint",)}, gold=gold)
async def right(task: Sum, solver: Seat, *, rng: random.Random) -> Score:
    reply = await solver.ask(f"{task.text}, {rng.random()}")
    return await verify(reply.text, task.answer)


async def weather(place: str) -> float:
    """Another answer at every call."""
    return random.random() + time.time()


@environment(hidden={"two": ("answer", "hint")}, zero_sum=("one", "two"), gold=gold)
async def talk(task: Sum, one: Seat, two: Seat) -> dict[Seat, float]:
    """What was heard first decides what is asked next; an effect differs from call to call."""
    heard: list[str] = []

    async def say(seat: Seat, text: str) -> None:
        heard.append((await seat.ask(f"{text} {await effect(weather, text)}")).text)

    one.system(f"The answer is {task.answer}.")
    await gather(say(one, "a"), say(two, "b"), say(one.fork(), "c"))
    said = await two.pick(f"{heard}", ("x", "y"))
    if reveal(said == "x" and task.answer % 2 == 0):
        await two.ask("You found it.")
    value = float(said == "x")
    return {seat: value if seat is one else -value if seat is two else 0.0 for seat in (*one.family, two)}


@environment(resumable=False)
async def live(task: Sum, solver: Seat) -> float:
    return float("a" in (await solver.ask(f"{next(NUMBERS)}")).text)


# ------------------------------------------------------------------------------------------------------------------ plays


@environment
async def raises(task: Sum, solver: Seat) -> float:
    return float(int((await solver.ask(task.text)).text) == task.answer)


@environment
async def waits(task: Sum, solver: Seat) -> float:
    await solver.ask(task.text)
    await anyio.sleep_forever()
    return 0.0


@environment
async def never_judged(task: Sum, solver: Seat) -> Score:
    await solver.ask(task.text)
    return Score(error="the judge is ill")


@environment
async def misused(task: Sum, solver: Seat) -> float:
    await solver.ask(task.text)
    await solver.ask()
    return 0.0


# ---------------------------------------------------------------------------------------------------------------- rewards


@environment
async def not_finite(task: Sum, solver: Seat) -> float:
    await solver.ask(task.text)
    return nan


@environment(zero_sum=("one", "two"))
async def generous(task: Sum, one: Seat, two: Seat) -> dict[Seat, float]:
    return {one: float(bool(await one.ask("?"))), two: 0.0}


@environment
async def for_nobody(task: Sum, solver: Seat) -> dict[Seat, float]:
    await solver.ask(task.text)
    running = RUNNING.get()
    assert running is not None
    return {solver: 1.0, Seat("stranger", running): 1.0}


@environment
async def forgets_one(task: Sum, one: Seat, two: Seat) -> dict[Seat, float]:
    await gather(one.ask("?"), two.ask("?"))
    return {one: 1.0}


@environment
async def one_for_two(task: Sum, one: Seat, two: Seat) -> float:
    await gather(one.ask("?"), two.ask("?"))
    return 1.0


# ----------------------------------------------------------------------------------------------------------------- replay


@environment
async def by_hash(task: Sum, solver: Seat) -> float:
    return float(bool(await solver.ask(", ".join({"a", "b", "c", "d", "e", "f", "g", task.text}))))


@environment
async def by_clock(task: Sum, solver: Seat) -> float:
    return float(bool(await solver.ask(f"It is the year {time.strftime('%Y')}.")))


@environment
async def by_date(task: Sum, solver: Seat) -> float:
    return float(bool(await solver.ask(f"It is {datetime.now().date()}.")))


@environment
async def by_luck(task: Sum, solver: Seat) -> float:
    return float(bool(await solver.ask(f"The die shows {random.randrange(10**6)}.")))


@environment
async def by_loop(task: Sum, solver: Seat) -> float:
    return float(bool(await solver.ask(f"We run on {sniffio.current_async_library()}.")))


@environment
async def by_count(task: Sum, solver: Seat) -> float:
    return float(bool(await solver.ask(f"You are number {next(NUMBERS)}.")))


@environment
async def worth_by_luck(task: Sum, solver: Seat) -> float:
    await solver.ask(task.text)
    return random.random()


@environment
async def shorter_later(task: Sum, solver: Seat) -> float:
    await solver.ask(task.text)
    if time.time() < STARTED + 86400 * 365:
        await solver.ask("And now?")
    return 0.0


STARTED = datetime.fromisoformat("2026-01-01").timestamp() + 86400 * 365 * 2
"""The clock of the process that plays again is three years ahead."""


@environment
async def shared(task: Sum, solver: Seat) -> float:
    """Right where it is played alone, in any order, in any process."""
    STATE["task"] = task.text
    await solver.ask(task.text)
    return float(STATE["task"] == task.text)


# ----------------------------------------------------------------------------------------------------------------- hidden


@environment(hidden={"*": ("answer",)})
async def tells(task: Sum, solver: Seat) -> float:
    return float(bool(await solver.ask(f"{task.text}, which is {task.answer}")))


@environment(hidden={"two": ("hint",)})
async def tells_its_rules(task: Sum, one: Seat, two: Seat) -> dict[Seat, float]:
    one.system(task.hint)
    two.system(f"rules {task.hint}")
    await gather(one.ask("?"), two.ask("?"))
    return {one: 1.0, two: 0.0}


@environment(hidden={"*": ("answer",)})
async def goes_on(task: Sum, solver: Seat) -> float:
    """Tells by asking again: seen only where somebody says the answer."""
    if int((await solver.ask("?")).text == str(task.answer)):
        return 1.0
    await solver.ask("No. Once more.")
    return 0.0


@environment(hidden={"*": ("answer",)})
async def goes_on_revealed(task: Sum, solver: Seat) -> float:
    if reveal((await solver.ask("?")).text == str(task.answer)):
        return 1.0
    await solver.ask("No. Once more.")
    return 0.0


@environment(hidden={"*": ("answer",)})
async def stops_short(task: Sum, solver: Seat) -> float:
    if task.answer % 4 == 1:
        await solver.ask("?")
    return float(bool(await solver.ask("Last.")))


@environment(hidden={"judge": ("hint",)})
async def offers(task: Sum, solver: Seat, judge: Seat) -> dict[Seat, float]:
    await solver.ask(task.hint)
    chances = await judge.choose("Which?", ("none", task.hint))
    return {solver: chances["none"]}


@environment(hidden={"*": ("answer",)})
async def limits(task: Sum, solver: Seat) -> float:
    return float(bool(await solver.ask("?", max_tokens=task.answer)))


@environment(hidden={"*": ("answer",)})
async def reveals_too_late(task: Sum, solver: Seat) -> float:
    await solver.ask(f"{task.answer}?")
    return float(bool(await solver.ask(f"{reveal(task.answer)}")))


@environment(hidden={"*": ("answer",)})
async def reveals_another(task: Sum, solver: Seat) -> float:
    return float(bool(await solver.ask(f"{reveal(task.text)} {task.answer}")))


@environment(hidden={"guesser": ("word",)})
async def describe_unmarked(task: Word, guesser: Seat) -> float:
    question = "Which word?"
    for _ in range(2):
        if (await guesser.ask(question)).text == task.word:
            return 1.0
        question = "That is not it. Guess again."
    return 0.0


# -------------------------------------------------------------------------------------------------------- gold and hostile


@environment(gold=lambda task: str(task.answer + 1))
async def wrong_gold(task: Sum, solver: Seat) -> Score:
    return await verify((await solver.ask(task.text)).text, task.answer)


@environment(gold=gold)
async def gold_unjudged(task: Sum, solver: Seat) -> Score:
    said = (await solver.ask(task.text)).text
    return Score(error="too hard to say") if said == str(task.answer) else Score(0.0)


@environment(gold=gold)
async def anywhere(task: Sum, solver: Seat) -> float:
    """Takes an answer among many."""
    return float(str(task.answer) in (await solver.ask(task.text)).text)


@environment(gold=gold)
async def any_digits(task: Sum, solver: Seat) -> float:
    said = (await solver.ask(task.text)).text
    return float(len(said) < 9 and said.isdecimal() and int(said) == task.answer)


@environment(gold=gold)
async def beginning(task: Sum, solver: Seat) -> float:
    """An empty reply is the beginning of any."""
    return float(str(task.answer).startswith((await solver.ask(task.text)).text))


@environment(gold=gold)
async def as_template(task: Sum, solver: Seat) -> float:
    said = (await solver.ask(task.text)).text
    return float(said == str(task.answer) or "The reply is right" in said.rpartition("system")[2])


@environment(gold=gold)
async def small_numbers(task: Sum, solver: Seat) -> float:
    """Python does not read numbers of so many digits."""
    said = (await solver.ask(task.text)).text
    return float(said.isascii() and said.isdecimal() and int(said) == task.answer)


@environment(gold=gold)
async def executes(task: Sum, solver: Seat) -> float:
    """As `exec` does with what it is given."""
    said = (await solver.ask(task.text)).text
    if said == "raise SystemExit":
        raise SystemExit
    return float(said == str(task.answer))


@environment(gold=gold)
async def waits_for_long(task: Sum, solver: Seat) -> float:
    said = (await solver.ask(task.text)).text
    if len(said) > 50_000:
        await anyio.sleep_forever()
    return float(said == str(task.answer))


@environment(gold=gold)
async def slow(task: Sum, solver: Seat) -> float:
    said = (await solver.ask(task.text)).text
    if len(said) > 50_000:
        busy(0.4)
    return float(said == str(task.answer))


@environment(gold=gold)
async def hangs(task: Sum, solver: Seat) -> float:
    said = (await solver.ask(task.text)).text
    while said.startswith("\\boxed{\\boxed{"):
        pass
    return float(said == str(task.answer))


@environment(zero_sum=("one", "two"))
async def unfair_forfeit(task: Sum, one: Seat, two: Seat) -> Outcome:
    """Breaks its rules for a reply that only a hostile player gives."""
    a, b = await gather(one.ask("?"), two.ask("?"))
    value = float("\x00" in a.text + b.text)
    return Outcome({one: value, two: 0.0})
