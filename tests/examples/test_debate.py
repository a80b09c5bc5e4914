"""examples/debate.py: who sees what, what a quote is worth, both orders of the answers, and a short run."""

from pathlib import Path
from random import Random

import pytest

from sparring import Lineup, Scripted, play
from sparring.environments import Conversation, Message
from sparring.rollout.events import Acted, Affected
from tests.examples.short import evaluations_of, example, shortened, steps_of, trained

debate = example("debate")
CASE = debate.Case("Which town has more people?", ("Arden", "Brill"), 1, "Arden: 10 people\nBrill: 90 people")


def saying(text: str) -> Scripted:
    return Scripted(lambda conversation: text)


def first_named(conversation: Conversation) -> str:
    """A judge who prefers what is named first."""
    asked = conversation.entries[-1]
    assert isinstance(asked, Message)
    return asked.text.removeprefix(f"{CASE.question} ").partition(" or ")[0]


async def test_who_sees_what_and_what_a_quote_is_worth() -> None:
    said = {"pro": "<q>Arden: 99 people</q>, I say", "con": "it is <q>Brill: 90 people</q>"}
    lineup = Lineup({"pro": saying(said["pro"]), "con": saying(said["con"]), "judge": saying("Brill")})
    done = await play(debate.debate(rounds=2), CASE, lineup)
    assert done.rewards == {"pro": -1.0, "con": 1.0}
    assert done.metrics == {"judge_correct": 1.0}
    pro, judge = (done.transcripts[seat] for seat in ("pro", "judge"))
    assert CASE.table in pro[0][1] and "Argue for Arden" in pro[0][1]
    assert pro[3] == ("user", "Opponent: it is <q>Brill: 90 people</q>"), "the second round answers the first"
    heard = ("user", "For Arden: [no such line], I say\nFor Brill: it is <q>Brill: 90 people</q>")
    assert judge == [heard, heard], "and the question leaves no trace"


async def test_a_judge_who_prefers_the_first_decides_nothing() -> None:
    lineup = Lineup({"pro": saying("a"), "con": saying("b"), "judge": Scripted(first_named)})
    done = await play(debate.debate, CASE, lineup)
    assert done.rewards == {"pro": 0.0, "con": 0.0}


@pytest.mark.parametrize("seed", range(5))
def test_the_truth_stands_in_the_table(seed: int) -> None:
    made = debate.case(seed)
    people = [int(line.split()[1]) for line in made.table.splitlines()]
    assert people[made.truth] == max(people)
    assert [line.partition(":")[0] for line in made.table.splitlines()] == list(made.answers)


async def test_a_short_run(tmp_path: Path) -> None:
    def reply(prompt: str, rng: Random) -> str:
        return f"<q>{rng.choice(('Arden', 'Brill'))}: 12 people</q>"

    events = await trained(shortened(debate.run, reply, tmp_path, groups_per_step=2, group_size=2))
    assert debate.who.players["judge"].model == debate.JUDGE
    assert [step.metrics["trajectories"] for step in steps_of(events)] == [8, 8], "both sides learn, the judge does not"
    asked = [event for event in events if isinstance(event, Affected)]
    assert all(event.player and event.name.startswith("choose judge (branch ") for event in asked)
    acted = [event for event in events if isinstance(event, Acted)]
    assert {event.seat for event in acted} == {"pro", "con"} and 2 * len(asked) == len(acted)
    for name in ("debate", "judge alone"):
        assert set(evaluations_of(events)[name, 0].values) <= {0.0, 1.0}
