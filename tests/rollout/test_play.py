"""`play`: one episode without a run."""

from __future__ import annotations

from random import Random

import pytest

from sparring.agents import Frozen, Human, Lineup, Scripted, ScriptedAgent
from sparring.environments import Conversation, Message, Outcome, Score, Seat, effect, environment, gather
from sparring.errors import RewardError, SettingError
from sparring.rollout import play


@environment(zero_sum=("one", "two"))
async def game(task: str, one: Seat, two: Seat, *, rng: Random, bet: float = 1.0) -> Outcome:
    one.system("play fair")
    first, second = await gather(one.ask(f"{task}?"), two.ask("?"))
    side = two.fork()
    await side.ask(f"it said {first}")
    seen = await effect(outside, second.text)
    return Outcome({one: bet, two: -bet, side: Score(0.0)}, metrics={"seen": seen}, notes={"luck": f"{rng.random()}"})


async def outside(text: str) -> int:
    return len(text)


def last(conversation: Conversation) -> str:
    entry = conversation.entries[-1]
    assert isinstance(entry, Message)
    return entry.text.upper()


async def test_one_episode() -> None:
    done = await play(game(bet=2.0), "heads", Lineup({"one": Scripted(last), "two": ScriptedAgent(last)}))
    assert done.rewards == {"one": 2.0, "two": -2.0, "two/1": 0.0}
    assert done.metrics == {"seen": 1} and done.unjudged == {}
    assert done.transcripts == {
        "one": [("system", "play fair"), ("user", "heads?"), ("one", "HEADS?")],
        "two": [("user", "?"), ("two", "?")],
        "two/1": [("user", "?"), ("two", "?"), ("user", "it said HEADS?"), ("two", "IT SAID HEADS?")],
    }


async def test_the_seed_decides_chance() -> None:
    lineup = {"one": Scripted(last), "two": Scripted(last)}
    luck = [(await play(game, "heads", lineup, seed=seed)).notes["luck"] for seed in (0, 0, 1)]
    assert luck[0] == luck[1] != luck[2]


async def test_a_missing_verdict_is_told() -> None:
    @environment
    async def unsure(task: int, only: Seat) -> Score:
        await only.ask("?")
        return Score(error="nobody knows")

    done = await play(unsure, 0, {"only": Scripted(last)})
    assert (done.rewards, done.unjudged) == ({}, {"only": "nobody knows"})


@environment
async def bad(task: str, only: Seat) -> float | None:
    await only.ask("?")
    if task == "raises":
        raise KeyError(task)
    return float("nan") if task == "nan" else None


@pytest.mark.parametrize(("task", "error"), [("raises", KeyError), ("nan", RewardError), ("nothing", RewardError)])
async def test_what_goes_wrong_is_raised(task: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=task if task != "nothing" else "got no reward"):
        await play(bad, task, {"only": Scripted(last)})


@pytest.mark.parametrize("player", ["alice", Frozen("alice@0")])
async def test_policies_need_a_run(player: str | Frozen) -> None:
    with pytest.raises(SettingError, match="alice"):
        await play(bad, "x", {"only": player})


async def test_a_seat_without_a_player_is_refused() -> None:
    with pytest.raises(SettingError, match="two"):
        await play(game, "x", {"one": Scripted(last)})


async def test_a_person_is_asked_at_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Keyboard:
        def readline(self) -> str:
            return "tails\n"

    monkeypatch.setattr("sys.stdin", Keyboard())
    done = await play(game, "heads", {"one": Human(), "two": Scripted(last)})
    assert ("one", "tails") in done.transcripts["one"]
    assert "[one] play fair\nheads?\n> " in capsys.readouterr().out
