"""What a player would choose, in an episode: journaled like everything that `play` learns from outside, and heard again."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random
from typing import Any

import anyio.lowlevel
import pytest

from sparring.agents import Action, ScriptedAgent
from sparring.environments import Conversation, Outcome, Reply, Request, Seat, environment, gather
from sparring.errors import BackendError, ContextFull, ReplayDiverged, SettingError, UnsupportedError
from sparring.rollout.again import Stage, again
from sparring.rollout.events import Acted, Admitted, Affected
from sparring.rollout.retold import retold
from tests.rollout.stage import Played, Voice, conduct, echo, plan_of

CLOCK = Random(0)
"""How long things take, and what is thought: other from call to call, whatever the seeds."""
OPTIONS = ("left", "right")


class Moody:
    """A player whose mind changes from call to call."""

    calls = 0

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        return await Voice(echo).act(conversation, request, seed)

    async def choose(self, conversation: Conversation, options: Sequence[str]) -> Sequence[float]:
        self.calls += 1
        for _ in range(CLOCK.randrange(6)):
            await anyio.lowlevel.checkpoint()
        return [-CLOCK.random() for _ in options]

    def context_left(self, conversation: Conversation) -> int:
        return 100


@environment
async def judged(task: int, one: Seat) -> Outcome:
    """Two branches ask the same, one of them twice."""

    async def twice() -> list[float]:
        return [(await one.choose("where?", OPTIONS))["left"] for _ in range(2)]

    one.tell("look")
    once, (first, second) = await gather(one.choose("where?", OPTIONS), twice())
    reply = await one.ask()
    assert reply.text == "re: look", "what was asked before left no trace"
    return Outcome({one: once["left"]}, metrics={"first": first, "second": second})


async def test_what_is_journaled_is_heard_again_and_the_rest_is_asked() -> None:
    done = await conduct(plan_of(judged, Moody()))
    assert [event.player for event in done.events if isinstance(event, Affected)] == [True] * 3
    assert len({done.value, *done.ended.metrics.values()}) == 3
    for kept in range(len(done.events) + 1):
        player = Moody()
        anew = await conduct(plan_of(judged, player, past=done.events[:kept]))
        assert player.calls == max(0, 3 - kept) and len(anew.events) == len(done.events) - kept
        if kept == len(done.events):
            assert anew.ended == done.ended


async def test_another_question_than_in_the_journal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.rollout.past.REPLAY_DEADLINE", 0.02)

    @environment
    async def other(task: int, one: Seat) -> float:
        one.tell("look elsewhere")
        return (await one.choose("where?", OPTIONS))["left"]

    done = await conduct(plan_of(judged, Moody()))
    with pytest.raises(ReplayDiverged, match="did not ask again"):
        await conduct(plan_of(other, Moody(), past=done.events))


async def test_a_told_episode_chooses_what_it_chose() -> None:
    done = await conduct(plan_of(judged, Moody()))
    seats = await retold(plan_of(judged, Moody(), past=done.events), done.ended)
    assert seats[0].spoke
    with pytest.raises(ReplayDiverged, match="asked to choose more often"):
        await retold(plan_of(twice_more, Moody(), past=done.events), done.ended)


@environment
async def twice_more(task: int, one: Seat) -> Outcome:
    outcome = await judged.begin(task, [one], Random(0))
    assert isinstance(outcome, Outcome)
    await one.choose("and now?", OPTIONS)
    return outcome


async def scored(changed: Any, then: Played, past: Sequence[Acted | Affected]) -> Any:
    admitted = Admitted(group=0, source=0, index=0, task=plan_of(changed, {}).task_digest, lineup=0, trained=["policy"])
    stage = Stage(environment=changed, seed=0, deadline=30.0)
    return await again(stage, 0, admitted, then.ended, past, {"one": "policy"})


async def test_stored_choices_are_scored_again_and_none_are_made_up() -> None:
    """Effects are computed anew there; no player is there to be asked."""
    done = await conduct(plan_of(judged, Moody()))
    assert (await scored(judged, done, done.events)).ended == done.ended
    lacking = [event for event in done.events if not (isinstance(event, Affected) and event.occurrence == 1)]
    found = (await scored(judged, done, lacking)).ended
    assert found.fault == "ReplayDiverged" and "does not hold what it would have chosen" in found.detail


async def test_what_is_never_said_is_journaled_too() -> None:
    done = await conduct(plan_of(certain, ScriptedAgent(lambda conversation: "left")))
    assert done.value == 1.0
    again_ = await conduct(plan_of(certain, ScriptedAgent(lambda conversation: "right"), past=done.events))
    assert again_.ended == done.ended


@environment
async def certain(task: int, one: Seat) -> float:
    likely = await one.choose("where?", OPTIONS)
    await one.ask("?")
    assert likely["right"] in (0.0, 1.0)
    return likely["left"]


class Failing(Moody):
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def choose(self, conversation: Conversation, options: Sequence[str]) -> Sequence[float]:
        raise self.error


@environment
async def careful(task: int, one: Seat) -> float:
    try:
        await one.choose("where?", OPTIONS)
    except ContextFull as error:
        await one.ask(f"then not: {error}")
        return -1.0
    return 1.0


async def test_what_does_not_fit_is_an_answer_and_what_breaks_ends_the_run() -> None:
    done = await conduct(plan_of(careful, Failing(ContextFull("no room"))))
    assert done.value == -1.0
    assert isinstance(done.events[1], Acted) and done.events[1].reply == Reply(text="re: then not: no room")
    assert (await conduct(plan_of(careful, Moody(), past=done.events))).ended == done.ended
    with pytest.raises(BackendError, match="gone"):
        await conduct(plan_of(careful, Failing(BackendError("gone"))))


async def test_who_cannot_say_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="played by Voice, which has no probabilities: use pick"):
        await conduct(plan_of(certain, Voice(echo)))
    with pytest.raises(SettingError, match="says 'up' where it has to choose"):
        await conduct(plan_of(certain, ScriptedAgent(lambda conversation: "up")))


async def test_a_script_s_choice_is_certain() -> None:
    agent = ScriptedAgent(lambda conversation: "right")
    assert await agent.choose(Seat("one", None).conversation, OPTIONS) == [-inf, 0.0]  # type: ignore[arg-type]
