"""A run's episodes as a file: the whole conversations as they were, and the very trajectories that its learners were given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import anyio
import msgspec
import pytest

from sparring import Drop, Episodes, Frozen, Lineup, Policy, Run, Seat, effect, environment, gather, grpo
from sparring.environments import Message
from sparring.errors import (
    ContextFull,
    EffectError,
    JournalError,
    ReplayDiverged,
    RunChanged,
    SettingError,
    SparringError,
    UnsupportedError,
)
from sparring.learner import export, train
from sparring.learner.history import read_events
from sparring.rollout import Coordinator, Schedule, StoredEpisode, Trajectory, read_episodes
from sparring.rollout.events import Acted, AnyEvent, Died, Ended, Opened, Planned, encode, segment
from sparring.rollout.journal import SqliteSegments
from tests.learner.moods import WELL, run_of, sometimes
from tests.learner.worlds import duel_run

HEARD = Counter[str]()
"""What each episode's seats had heard and said at its end, as often as it was played."""

PLAYED = Counter[str]()
"""How that stood right after the run."""


async def lookup(word: str) -> list[str]:
    if word.startswith("c"):
        raise ValueError("no such word")
    return [word, word[::-1]]


@environment
async def talk(task: dict[str, Any], one: Seat, two: Seat, *, rng: Random, polite: bool = True) -> dict[Seat, float]:
    """Rules, effects that answer and fail, branches, forks with labels, new contexts, turn rewards, and an unjudged end."""
    one.system("Be brief." if polite else "Be rude.")
    luck = rng.random()
    first, second = await gather(one.ask(f"{task['name']} {luck:.3f}"), two.ask(f"you: {task['name']}"))
    try:
        found = await effect(lookup, first.text)
    except EffectError as error:
        found = [str(error)]
    one.tell(f"it means {found[-1]}")
    side = one.fork("aside")
    answer, _ = await gather(one.ask("well?"), side.ask(f"and {second}?"))
    one.reward(0.25)
    two.new_context()
    last = await two.ask(f"they said {answer}")
    two.tell("thank you")
    heard = [
        line.text if isinstance(line, Message) else line.reply.text
        for root in (one, two)
        for seat in root.family
        for conversation in seat.contexts
        for line in conversation.entries
    ]
    HEARD["\n".join(heard)] += 1
    return {one: luck, side: 1.0, two: -float(len(last.text))}


def talk_run(folder: Path, **changes: Any) -> Run:
    plain = duel_run(folder, name="talk", k=1, deterministic=False)
    tasks = [{"name": f"task {number}", "numbers": [number, number / 3]} for number in range(20)]
    who = Lineup({"one": "alice", "two": "bob"})
    return replace(plain, train=Episodes(talk, tasks, who), held_out=None, **changes)


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    HEARD.clear()
    run = talk_run(tmp_path_factory.mktemp("runs"))
    assert train(run)
    PLAYED.update(HEARD)
    return run


def exported(of: Run, path: Path, **choices: Any) -> list[StoredEpisode]:
    done = export(of.path, path, **choices)
    episodes = list(read_episodes(path))
    assert done.episodes == len(episodes)
    return episodes


def trained_units(events: Sequence[AnyEvent]) -> list[Trajectory]:
    """The trajectories of every unit that a step took, as the learners had them."""
    opened = events[0]
    assert isinstance(opened, Opened)
    state = Coordinator(msgspec.convert(opened.run["schedule"], Schedule))
    found: list[Trajectory] = []
    for event in events[1:]:
        state.apply(event)
        if isinstance(event, Planned):
            found += [one for unit in state.batches[event.policy].units for one in unit.trajectories]
    return found


def bits(one: Trajectory) -> tuple[object, ...]:
    """Everything of a trajectory, comparable."""
    contexts = [
        (
            context.tokens.tobytes(),
            context.action_mask.tobytes(),
            context.logprobs.tobytes(),
            context.versions.tobytes(),
            context.turn.tobytes(),
            context.temperature,
        )
        for context in one.contexts
    ]
    plain = (one.reward, one.policy, one.seat, one.fork, one.label, one.group, one.episode, one.truncated)
    return (*plain, one.turn_rewards.tobytes(), *contexts)


def test_whole_conversations_are_what_the_seats_heard_and_said(talked: Run, tmp_path: Path) -> None:
    episodes = exported(talked, tmp_path / "out.jsonl", run=talked)
    ends = [event for event in read_events(talked.path) if isinstance(event, Ended)]
    assert [(one.group, one.member) for one in episodes] == [(event.group, event.member) for event in ends]
    assert all(one.whole and not one.fault for one in episodes)
    told = Counter[str]()
    for episode in episodes:
        told["\n".join(message.content for one in episode.conversations for message in one.messages)] += 1
    assert told == PLAYED
    first = episodes[0]
    places = [(one.seat, one.fork, one.context) for one in first.conversations]
    assert places == [("one", "", 0), ("one", "1", 0), ("two", "", 0), ("two", "", 1)]
    (main, fork, *_) = first.conversations
    assert [message.role for message in main.messages] == ["system", "user", "assistant", "user", "user", "assistant"]
    assert fork.inherited == 4 and fork.messages[:4] == main.messages[:4]
    assert [message.turn for message in main.messages if message.role == "assistant"] == [0, 1]


def test_an_episode_says_what_it_was(talked: Run, tmp_path: Path) -> None:
    episodes = exported(talked, tmp_path / "out.jsonl", run=talked)
    events = list(read_events(talked.path))
    for episode in episodes:
        assert isinstance(talked.train, Episodes)
        assert episode.content == talked.train.tasks[episode.index]
        assert (episode.run, episode.environment) == ("talk", f"{__name__}:talk")
        assert episode.players == episode.trained == {"one": "alice", "two": "bob"}
        results = {(one.seat, one.fork): one for one in episode.results}
        assert results["one", "1"].label == "aside" and results["one", "1"].reward == 1.0
        assert results["one", ""].turn_rewards == {1: 0.25}
        for one in episode.conversations:
            assert all(bool(message.versions) == (message.role == "assistant") for message in one.messages)
    plans = [event for event in events if isinstance(event, Planned)]
    for plan in plans:
        for episode in episodes:
            assert (plan.step in episode.steps.get(plan.policy, [])) == (episode.group in plan.groups)


@pytest.mark.parametrize("whole", [True, False])
def test_the_trajectories_are_those_that_the_learners_had(talked: Run, tmp_path: Path, whole: bool) -> None:
    episodes = exported(talked, tmp_path / "out.jsonl", run=talked if whole else None, tokens=True)
    back = {(one.group, one.episode, one.seat, one.fork): one for episode in episodes for one in episode.trajectories()}
    units = trained_units(list(read_events(talked.path)))
    assert len(units) == 3 * 2 * 2 * 3, "three steps of two groups of two; three conversations in each"
    for one in units:
        assert bits(back[one.group, one.episode, one.seat, one.fork]) == bits(one)
    assert any(len(one.contexts) == 2 for one in units)


def test_without_the_runs_file_there_are_the_replies_alone(talked: Run, tmp_path: Path) -> None:
    done = export(talked.path, tmp_path / "out.jsonl")
    assert done.replies_alone == done.episodes > 0 and done.under_way == 0
    acted = [event for event in read_events(talked.path) if isinstance(event, Acted)]
    said = Counter(
        message.content
        for episode in read_episodes(tmp_path / "out.jsonl")
        for one in episode.conversations
        for message in one.messages
    )
    assert said == Counter(event.reply.text for event in acted if event.reply is not None)
    (episode, *_) = read_episodes(tmp_path / "out.jsonl")
    assert not episode.whole and episode.content is msgspec.UNSET
    assert {message.role for one in episode.conversations for message in one.messages} == {"assistant"}
    with pytest.raises(SettingError, match="export with --tokens"):
        episode.trajectories()


def test_settings_are_those_that_the_run_was_started_with(tmp_path: Path) -> None:
    run = talk_run(tmp_path, steps=1)
    assert isinstance(run.train, Episodes)
    rude = replace(run, train=replace(run.train, environment=talk(polite=False)))
    assert train(rude)
    episodes = exported(rude, tmp_path / "out.jsonl", run=run)
    assert {one.conversations[0].messages[0].content for one in episodes} == {"Be rude."}


# -------------------------------------------------------------------------------------------------- episodes that went wrong


@pytest.mark.parametrize(
    ("how", "changes", "fault"),
    [
        ("raises", {}, "KeyError"),
        ("hangs", {"episode_deadline": 0.05}, "deadline"),
        ("hangs", {"pacing": Drop(seconds=0.05)}, "late"),
        ("unjudged", {}, ""),
    ],
)
def test_episodes_that_went_wrong_are_told_until_then(
    tmp_path: Path, how: str, changes: dict[str, Any], fault: str
) -> None:
    run = run_of(tmp_path, sometimes(how), steps=2, group_size=3, **changes)
    assert train(run)
    episodes = exported(run, tmp_path / "out.jsonl", run=run, tokens=True)
    wrong = [one for one in episodes if one.fault or any(result.unjudged for result in one.results)]
    assert wrong and {one.fault for one in wrong} == {fault}
    for episode in episodes:
        (only,) = episode.conversations
        assert [message.role for message in only.messages] == ["user", "assistant"] or episode.fault == "late"
    assert all(not one.trajectories() for one in wrong)


@environment
async def stubborn(task: int, only: Seat) -> float:
    """Goes on whatever is raised."""
    for _ in range(3):
        await only.ask("more")
    while True:
        try:
            await only.ask("and more", timeout=0.001)
        except (TimeoutError, ContextFull):
            await anyio.sleep(0.001)
        except SparringError:
            continue


def test_an_episode_that_would_never_stop_asking_is_told_to_its_end(tmp_path: Path) -> None:
    run = run_of(tmp_path, stubborn, episode_deadline=0.1, max_faults=1.0, max_refill=2, steps=1)
    with pytest.raises(Exception, match="nothing to train on"):
        train(run)
    with_ends = exported(run, tmp_path / "out.jsonl", run=run)
    assert with_ends and all(one.fault == "deadline" for one in with_ends)
    for episode in with_ends:
        (only,) = episode.conversations
        said = [message.content for message in only.messages if message.role == "user"]
        assert said[:3] == ["more"] * 3 and set(said[3:]) <= {"and more"}


@environment
async def curious(task: int, only: Seat) -> float:
    left = only.context_left
    return float(len((await only.ask(f"{left > 0}")).text))


@environment(resumable=False)
async def live(task: int, only: Seat) -> float:
    return float(len((await only.ask(f"task {task}")).text))


def test_what_only_a_model_can_tell_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, curious, steps=1)
    assert train(run)
    with pytest.raises(UnsupportedError, match="asks for context_left, which only a model can tell"):
        export(run.path, tmp_path / "out.jsonl", run=run)
    assert not (tmp_path / "out.jsonl").exists() and not list(tmp_path.glob(".*partial")), "no half of a file is left"
    assert export(run.path, tmp_path / "out.jsonl").episodes > 0


def test_what_holds_something_live_is_told_as_replies(tmp_path: Path) -> None:
    run = run_of(tmp_path, live, steps=1)
    assert train(run)
    done = export(run.path, tmp_path / "out.jsonl", run=run)
    assert done.replies_alone == done.episodes > 0


# ----------------------------------------------------------------------------------------------------------------- refusals


@environment
async def changed(task: dict[str, Any], one: Seat, two: Seat, *, polite: bool = True) -> dict[Seat, float]:
    await one.ask("something else")
    return {one: 0.0, two: 0.0}


def test_another_run_is_refused(talked: Run, tmp_path: Path) -> None:
    assert isinstance(talked.train, Episodes)
    out = tmp_path / "out.jsonl"
    other = replace(talked, train=replace(talked.train, tasks=[{"name": "other"}] * 20))
    with pytest.raises(RunChanged, match=r"task \d+ of train source 0 is not the one that group \d+ was played with"):
        export(talked.path, out, run=other)
    with pytest.raises(ReplayDiverged, match="was asked something else than in the journal"):
        export(talked.path, out, run=replace(talked, train=replace(talked.train, environment=changed)))
    with pytest.raises(RunChanged, match="has 2 training sources, the journal 1"):
        export(talked.path, out, run=replace(talked, train=[talked.train, talked.train]))
    assert not out.exists()


def test_nothing_is_overwritten_and_nothing_made_of_nothing(talked: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("precious")
    with pytest.raises(SettingError, match="is there already: name a new one"):
        export(talked.path, tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "precious"
    with pytest.raises(SettingError, match=r"has no journal\.db"):
        export(tmp_path, tmp_path / "out.jsonl")
    with pytest.raises(SettingError, match="its folder is not there"):
        export(talked.path, tmp_path / "nowhere" / "out.jsonl")
    with pytest.raises(JournalError, match="cannot be written"):
        export(talked.path, Path("/proc/out.jsonl"))


def test_episodes_under_way_are_counted_and_left_out(talked: Run, tmp_path: Path) -> None:
    events = list(read_events(talked.path))
    last = max(index for index, event in enumerate(events) if isinstance(event, Ended))
    (tmp_path / "cut").mkdir()
    store = SqliteSegments(tmp_path / "cut" / "journal.db")
    store.append(segment([encode(event) for event in events[:last]]))
    store.close()
    done = export(tmp_path / "cut", tmp_path / "out.jsonl", run=talked)
    assert (done.under_way, done.episodes) == (1, sum(isinstance(event, Ended) for event in events) - 1)


def test_an_episode_that_ended_two_processes_is_told_without_its_code(tmp_path: Path) -> None:
    """The journal up to an episode's end, which two processes did not live to see; the others of the run are told whole."""
    run = run_of(tmp_path / "first", WELL, steps=1)
    assert train(run)
    events = list(read_events(run.path))
    cut, fatal = next((index, event) for index, event in enumerate(events) if isinstance(event, Ended))
    again = replace(run, folder=tmp_path / "again")
    again.path.mkdir(parents=True)
    store = SqliteSegments(again.path / "journal.db")
    died = [Died(life=life, group=fatal.group, member=fatal.member) for life in ("a", "b")]
    store.append(segment([encode(event) for event in (*events[:cut], *died)]))
    store.close()
    assert train(again)
    episodes = exported(again, tmp_path / "out.jsonl", run=again)
    told = {(one.group, one.member): one for one in episodes}
    ill = told.pop((fatal.group, fatal.member))
    assert (ill.fault, ill.whole) == ("quarantined", False) and told
    assert [message.role for one in ill.conversations for message in one.messages] == ["assistant"]
    assert all(one.whole and not one.fault for one in told.values())


def test_players_that_do_not_learn_are_named(tmp_path: Path) -> None:
    """Their tokens are told too; they make no trajectories."""
    plain = run_of(tmp_path, talk, steps=1, policies={"alice": Policy("m", grpo())})
    tasks = [{"name": f"{number}"} for number in range(9)]
    run = replace(plain, train=Episodes(talk, tasks, Lineup({"one": "alice", "two": Frozen("alice@0")})))
    assert train(run)
    for episode in exported(run, tmp_path / "out.jsonl", run=run, tokens=True):
        assert episode.trained == {"one": "alice"} and episode.players["two"] != "alice"
        assert all(one.tokens is not None for one in episode.conversations)
        assert {one.seat for one in episode.trajectories()} == {"one"}
