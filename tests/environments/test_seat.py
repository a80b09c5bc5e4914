"""A seat: what it is told and says, its forks, its contexts, its rewards, and what it refuses."""

from __future__ import annotations

import gc
from math import inf, log, nan
from typing import Any
from weakref import ref

import anyio
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparring.environments import Conversation, Place, Reply, Request, Score, Seat, Turn, gather
from sparring.errors import ContextFull, RewardError, SettingError, Unjudged
from tests.environments.conftest import Scripted, episode, saying, seat, texts


async def test_a_conversation_of_asks_and_tells() -> None:
    solver = seat("a", "b")
    solver.system("rules")
    assert not solver.spoke
    reply = await solver.ask("one")
    assert str(reply) == "a"
    solver.tell("two")
    solver.tell("three")
    assert (await solver.ask()).text == "b"
    assert texts(solver.conversation) == [
        *("system: rules", "user: one", "assistant: a"),
        *("user: two", "user: three", "assistant: b"),
    ]
    assert solver.spoke
    records = [(entry.number, entry.record) for entry in solver.conversation.entries if isinstance(entry, Turn)]
    assert records == [(0, ("record", 0)), (1, ("record", 1))]


async def test_a_seat_that_nobody_holds_is_gone_at_once() -> None:
    """In a circle it would keep all of its episode until Python's collector, which holds the event loop, comes by."""
    solver = seat("a")
    await solver.ask("one")
    gone = ref(solver)
    gc.disable()
    try:
        del solver
        assert gone() is None
    finally:
        gc.enable()


async def test_what_is_asked_for_reaches_the_player() -> None:
    running = saying("a", "b")
    solver = Seat("solver", running)
    await solver.ask("one", max_tokens=5, stop=["\n", "END"], timeout=2.5)
    await solver.ask("two")
    assert running.requests == [
        (Place(seat="solver"), Request(turn=0, max_tokens=5, stop=("\n", "END"), timeout=2.5)),
        (Place(seat="solver"), Request(turn=1)),
    ]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"max_tokens": 0}, "max_tokens=0.*: must be at least 1"),
        ({"stop": "END"}, "stop='END'.*: must be a sequence of strings"),
        ({"stop": ("a", "")}, "strings that are not empty"),
        ({"timeout": 0}, "timeout=0.*: must be a finite number of seconds"),
        ({"timeout": inf}, "timeout=inf"),
        ({"timeout": nan}, "timeout=nan"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    solver = seat("a")
    with pytest.raises(SettingError, match=message):
        await solver.ask("hello", **wrong)
    assert texts(solver.conversation) == []


async def test_text_is_text() -> None:
    solver = seat("a")
    reply = await solver.ask("hello")
    for say in (solver.tell, Seat("other", saying()).system):
        with pytest.raises(SettingError, match=r"must be text; str\(reply\) is the text of a reply"):
            say(reply)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="must be text"):
        await solver.ask(3)  # type: ignore[arg-type]
    assert len(solver.conversation.entries) == 2


async def test_a_reply_needs_a_question() -> None:
    solver = seat("a")
    solver.system("rules are no question")
    with pytest.raises(SettingError, match="told nothing since its last one"):
        await solver.ask()
    await solver.ask("go on")
    with pytest.raises(SettingError, match="told nothing since its last one"):
        await solver.ask()


async def test_rules_come_first() -> None:
    solver = seat("a")
    solver.system("one")
    solver.system("two")
    solver.tell("hello")
    with pytest.raises(SettingError, match=r"system\('three'\): must come before"):
        solver.system("three")
    assert texts(solver.conversation) == ["system: one", "system: two", "user: hello"]


# ------------------------------------------------------------------------------------------------ asks without a reply


@pytest.mark.parametrize("error", [TimeoutError("late"), ContextFull("full")])
async def test_an_ask_that_failed_can_be_tried_again_and_is_named_apart(error: Exception) -> None:
    running = saying(error, error, "a", "b")
    solver = Seat("solver", running)
    with pytest.raises(type(error)):
        await solver.ask("one")
    with pytest.raises(type(error)):
        await solver.ask("two")
    assert not solver.spoke
    assert (await solver.ask()).text == "a"
    await solver.ask("three")
    assert texts(solver.conversation)[:3] == ["user: one", "user: two", "assistant: a"]
    assert [(request.turn, request.attempt) for _, request in running.requests] == [(0, 0), (0, 1), (0, 2), (1, 0)]


async def test_a_cancelled_ask_leaves_a_seat_that_works() -> None:
    started = anyio.Event()

    class Slow(Scripted):
        async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
            if request.attempt == 0:
                started.set()
                await anyio.sleep_forever()
            return await super().act(conversation, request)

    solver = Seat("solver", Slow(script=lambda conversation, request: "a"))
    async with anyio.create_task_group() as group:
        group.start_soon(solver.ask, "hello")
        await started.wait()
        group.cancel_scope.cancel()
    assert (await solver.ask()).text == "a"


async def test_one_thing_at_a_time() -> None:
    entered, release = anyio.Event(), anyio.Event()

    class Gate(Scripted):
        async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
            entered.set()
            await release.wait()
            return Reply(text="a"), None

    solver = Seat("solver", Gate(script=lambda conversation, request: ""))
    async with anyio.create_task_group() as group:
        group.start_soon(solver.ask, "hello")
        await entered.wait()
        for use in (lambda: solver.tell("x"), lambda: solver.system("x"), solver.fork, solver.new_context):
            with pytest.raises(SettingError, match="while it was still answering"):
                use()
        with pytest.raises(SettingError, match="while it was still answering"):
            await solver.ask("again")
        with pytest.raises(SettingError, match="while it was still answering"):
            solver.reward(1.0)
        release.set()
    assert texts(solver.conversation) == ["user: hello", "assistant: a"]
    assert solver.context_left


# ---------------------------------------------------------------------------------------------------------------- pick


@pytest.mark.parametrize("said", ["hit", " HIT ", "Hit.", "hit .", "\nhit\n", " hIt. \n"])
async def test_a_pick_is_forgiving_about_form(said: str) -> None:
    solver = seat(said)
    assert await solver.pick("?", ("stick", "hit")) == "hit"
    assert (solver.picks, solver.illegal) == (1, 0)


@pytest.mark.parametrize("said", ["", ".", "hit me", "h i t", "stick or hit", "hit..", "'hit'", "hlt"])
async def test_and_strict_about_everything_else(said: str) -> None:
    solver = seat(said, said)
    assert await solver.pick("?", ("stick", "hit")) is None
    assert (solver.picks, solver.illegal) == (2, 2)


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_a_pick_is_tried_again_as_often_as_it_says(retries: int) -> None:
    solver = seat(*["what"] * retries, "no", "yes")
    assert await solver.pick("Is it?", ("yes", "no"), retries=retries) == "no"
    assert (solver.picks, solver.illegal) == (retries + 1, retries)
    shown = texts(solver.conversation)
    assert shown[0] == "user: Is it?\nReply with exactly one of: yes, no."
    again = [line for line in shown[1:] if line.startswith("user")]
    assert again == ["user: That is not one of the options. Reply with exactly one of: yes, no."] * retries


@pytest.mark.parametrize("options", [(), ("a", "A"), ("a", "a."), ("a", " a"), ("",), ("a", "."), "yes"])
async def test_options_that_cannot_be_told_apart_are_refused(options: Any) -> None:
    with pytest.raises(SettingError, match="give at least one, all different, none empty"):
        await seat("a").pick("?", options)
    with pytest.raises(SettingError, match="must be at least 0"):
        await seat("a").pick("?", ("a", "b"), retries=-1)


@given(option=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4))
async def test_an_option_can_always_be_picked_by_saying_it(option: str) -> None:
    """Also one that ends with a full stop, or that changes its length in lower case."""
    assume(option.strip().removesuffix(".").strip())
    assert await seat(option).pick("?", (option, "something else entirely"), retries=0) == option


# ---------------------------------------------------------------------------------------------------- forks, contexts


async def test_a_fork_is_a_trajectory_of_its_own() -> None:
    running = saying("a", "b", "c", "d")
    solver = Seat("solver", running)
    await solver.ask("shared")
    one, two = solver.fork("bold"), solver.fork()
    await one.ask("for one")
    await two.ask("for two")
    await solver.ask("for all")
    assert texts(one.conversation) == ["user: shared", "assistant: a", "user: for one", "assistant: b"]
    assert texts(two.conversation)[2:] == ["user: for two", "assistant: c"]
    assert texts(solver.conversation)[2:] == ["user: for all", "assistant: d"]
    assert one.conversation.inherited == two.conversation.inherited == 2
    assert [(place.fork, request.turn) for place, request in running.requests] == [
        *(("", 0), ("1", 0), ("2", 0), ("", 1)),
    ]
    one.reward(1.0)
    assert (one.turn_rewards, two.turn_rewards, solver.turn_rewards) == ({0: 1.0}, {}, {})
    assert (one.name, one.label, two.label) == ("solver", "bold", "")


async def test_a_fork_has_not_spoken_by_inheritance() -> None:
    solver = seat("a")
    await solver.ask("hello")
    fork = solver.fork()
    assert not fork.spoke
    with pytest.raises(RewardError, match=r"Seat\('solver/1'\).reward\(1.0\): it has not spoken yet"):
        fork.reward(1.0)


async def test_a_question_told_before_the_fork_can_be_asked_in_it() -> None:
    solver = seat("a", "b")
    solver.tell("question")
    assert [(await solver.fork().ask()).text for _ in range(2)] == ["a", "b"]


def test_forks_are_numbered_and_know_each_other() -> None:
    root = seat()
    one = root.fork("x")
    deep = one.fork()
    two = root.fork()
    forks = [root.fork() for _ in range(9)]
    keys = ["solver", "solver/1", "solver/1.1", "solver/2", *(f"solver/{number}" for number in range(3, 12))]
    for member in (root, one, deep, two, forks[-1]):
        assert [seat.key for seat in member.family] == keys
    assert (deep.label, deep.fork("y").label, two.label) == ("x", "y", "")
    assert len({root, one, deep, two}) == 4
    assert repr(deep) == "Seat('solver/1.1')"


async def test_a_new_context_keeps_the_rules_and_the_trajectory() -> None:
    running = saying("a", "b")
    solver = Seat("solver", running)
    solver.system("rules")
    await solver.ask("one")
    solver.reward(1.0)
    solver.new_context()
    assert texts(solver.conversation) == ["system: rules"]
    await solver.ask("two")
    solver.reward(0.5)
    assert solver.turn_rewards == {0: 1.0, 1: 0.5}
    assert [texts(context)[1:] for context in solver.contexts] == [
        ["user: one", "assistant: a"],
        ["user: two", "assistant: b"],
    ]
    places = [(place.fork, place.context, request.turn) for place, request in running.requests]
    assert places == [("", 0, 0), ("", 1, 1)]


async def test_a_fork_of_a_later_context_starts_at_its_own_first() -> None:
    running = saying("a", "b", "c")
    solver = Seat("solver", running)
    await solver.ask("one")
    solver.new_context()
    fork = solver.fork()
    await fork.ask("two")
    fork.new_context()
    await fork.ask("three")
    places = [(place.fork, place.context, request.turn) for place, request in running.requests]
    assert places == [("", 0, 0), ("1", 0, 0), ("1", 1, 1)]
    assert fork.conversation.inherited == 0
    assert len(solver.contexts) == 2


async def test_a_question_does_not_outlive_its_context() -> None:
    solver = seat("a")
    solver.tell("lost")
    solver.new_context()
    with pytest.raises(SettingError, match="told nothing"):
        await solver.ask()


def test_how_much_still_fits() -> None:
    solver = seat()
    assert solver.context_left == 1000
    solver.tell("x")
    assert solver.context_left == 999
    solver.new_context()
    assert solver.context_left == 1000


# -------------------------------------------------------------------------------------------------------------- rewards


async def test_turn_rewards_add_up_on_the_last_reply() -> None:
    solver = seat("a", "b")
    with pytest.raises(RewardError, match="it has not spoken yet"):
        solver.reward(1.0)
    await solver.ask("one")
    solver.reward(1)
    solver.reward(0.5)
    await solver.ask("two")
    solver.reward(Score(-1.0))  # type: ignore[arg-type]
    assert solver.turn_rewards == {0: 1.5, 1: -1.0}


@pytest.mark.parametrize("value", [nan, inf, "1", None, [1.0]])
async def test_a_reward_is_a_finite_number(value: Any) -> None:
    solver = seat("a")
    await solver.ask("one")
    with pytest.raises(RewardError, match=r"must be (finite|a number)"):
        solver.reward(value)
    with pytest.raises(Unjudged):
        solver.reward(Score(error="nobody"))  # type: ignore[arg-type]
    assert solver.turn_rewards == {}


# ----------------------------------------------------------------------------------------------------------------- choosing


async def test_a_choice_is_probabilities_of_the_options_and_leaves_no_trace() -> None:
    """Shares of what the options have together, however unlikely that is."""
    running = saying("a")
    running.likely = {"yes": -1000.0, "no": -1000.0 + log(3)}
    judge = Seat("judge", running)
    judge.system("Judge.")
    before = judge.conversation.digest
    assert await judge.choose("So?", ("yes", "no")) == pytest.approx({"yes": 0.25, "no": 0.75})
    assert judge.conversation.digest == before and not judge.spoke
    assert running.chosen == [(["system: Judge.", "user: So?"], ("yes", "no"), "choose judge")]
    await judge.ask("Go on.")
    assert texts(judge.conversation) == ["system: Judge.", "user: Go on.", "assistant: a"]


async def test_what_is_never_said_has_no_probability() -> None:
    running = saying()
    running.likely = {"yes": 0.0, "no": -inf}
    assert await Seat("judge", running).choose("So?", ("yes", "no")) == {"yes": 1.0, "no": 0.0}


async def test_one_seat_chooses_in_several_branches_that_do_not_use_it() -> None:
    running = saying("a")
    running.likely = {"yes": 0.0, "no": 0.0}
    judge, other = Seat("judge", running), Seat("other", running)
    with episode(running):
        await gather(judge.choose("1?", ("yes", "no")), judge.choose("2?", ("yes", "no")))
        named = {said[-1]: asked for said, _, asked in running.chosen}
        assert named == {"user: 1?": "choose judge (branch 0)", "user: 2?": "choose judge (branch 1)"}
        with pytest.raises(SettingError, match="used in another: which came first would be chance"):
            await gather(judge.choose("3?", ("yes", "no")), told(judge))
        with pytest.raises(SettingError, match="which came first would be chance"):
            await gather(told(other), other.choose("4?", ("yes", "no")))


async def told(one: Seat) -> None:
    one.tell("something")


@pytest.mark.parametrize("options", [(), ("a", "A"), ("a", ""), "ab"])
async def test_options_are_checked(options: Any) -> None:
    with pytest.raises(SettingError, match=r"choose\(options="):
        await seat().choose("which", options)


async def test_a_question_is_text() -> None:
    with pytest.raises(SettingError, match=r"was asked 3: must be text"):
        await seat().choose(3, ("a", "b"))  # type: ignore[arg-type]
