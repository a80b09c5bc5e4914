"""The study of Kuhn poker: strategies and their average against the game's tree, what a policy is asked, and short runs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks._answers import Answer, Answers
from benchmarks._kuhn import PLAIN, WORDED, Asked, Point, averaged, exploitable, picture, point, strategy_of
from benchmarks.kuhn import RECIPES, Recipe, kuhn_run, told, trained
from benchmarks.kuhn_lm import legal, read
from benchmarks.kuhn_lm import told as told_of_lines
from sparring import Adam, Lineup, Policy, Scripted, play
from sparring.environments import Conversation, Message
from sparring.environments.openspiel_exploitability import information_sets
from sparring.learner import train
from tests.backend.test_small_gradient import KEYS, exact, value

ORDER = [one.key for one in information_sets(PLAIN)]
EVEN = dict.fromkeys(ORDER, 0.5)
EQUILIBRIUM = {"0": 1 / 3, "1": 0, "2": 1, "0pb": 0, "1pb": 2 / 3, "2pb": 1} | {
    "0p": 1 / 3, "1p": 0, "2p": 1, "0b": 0, "1b": 1 / 3, "2b": 1,
}  # fmt: skip


def drawn(rng: Random) -> dict[str, float]:
    return {key: rng.random() for key in ORDER}


def test_what_is_known_of_exploitability() -> None:
    assert set(ORDER) == set(KEYS)
    assert exploitable(EVEN) == pytest.approx(11 / 24)
    assert exploitable(EQUILIBRIUM) == pytest.approx(0, abs=1e-9)


def test_the_average_wins_what_the_strategies_win_on_average() -> None:
    """Against anybody, in either seat: that is what drawing one of them for each game does. A plain mean does not."""
    rng = Random(0)
    for _ in range(20):
        several, other = [drawn(rng) for _ in range(3)], drawn(rng)
        mixed = averaged(several)
        assert value(mixed, other) == pytest.approx(np.mean([value(one, other) for one in several]))
        assert value(other, mixed) == pytest.approx(np.mean([value(other, one) for one in several]))
    plain = {key: float(np.mean([one[key] for one in several])) for key in ORDER}
    assert abs(value(plain, other) - value(mixed, other)) > 1e-3


def test_who_never_comes_there_says_nothing_about_it() -> None:
    bold, meek = EVEN | {"0": 1.0, "0pb": 1.0}, EVEN | {"0": 0.0, "0pb": 0.25}
    assert averaged([bold, meek])["0pb"] == 0.25 and averaged([bold, meek])["0"] == 0.5
    assert averaged([bold, bold | {"0pb": 0.0}])["0pb"] == 0.5, "nobody comes there"


def answer(step: int, strategy: dict[str, float]) -> Answer:
    return Answer(step=step, values=[strategy[key] for key in ORDER], seconds=2.0 * step, illegal=0.25)


def test_a_point_averages_the_second_half() -> None:
    answers = [answer(0, EVEN), answer(10, EVEN | {"0": 1.0}), answer(20, EQUILIBRIUM)]
    found = point(answers, games=8)
    assert (found.step, found.hands, found.seconds, found.illegal) == (20, 160, 40.0, 0.25)
    assert found.last == pytest.approx(0, abs=1e-9)
    assert found.average == pytest.approx(exploitable(averaged([EVEN | {"0": 1.0}, EQUILIBRIUM])))
    assert found.strategy == pytest.approx(EQUILIBRIUM)
    assert point(answers[:1], games=8).average == pytest.approx(11 / 24)


async def test_a_policy_is_asked_at_every_information_set() -> None:
    """In the game's words; the value is how likely the second action is."""
    asked = list[str]()

    def bold(conversation: Conversation) -> str:
        entry = conversation.entries[-1]
        assert isinstance(entry, Message)
        asked.append(entry.text)
        return "Bet" if entry.text.startswith(("2", "0pb")) else "Pass"

    lineup = Lineup({"first": Scripted(bold), "second": Scripted(bold)})
    values = [(await play(Asked(game=PLAIN), task, lineup)).metrics["bets"] for task in range(12)]
    assert strategy_of(values) == {key: float(key[0] == "2" or key == "0pb") for key in ORDER}
    assert asked[0] == f"{ORDER[0]}\nReply with exactly one of: Pass, Bet."
    assert Asked(game=PLAIN).described() != Asked(game=WORDED).described()


def test_the_words_are_those_of_the_example() -> None:
    said = {one.key: (one.text, tuple(one.actions)) for one in information_sets(WORDED)}
    assert said["2"] == ("Your card is K. Moves so far: none.", ("check", "bet"))
    assert said["0p"] == ("Your card is J. Moves so far: check.", ("check", "bet"))
    assert said["1b"] == ("Your card is Q. Moves so far: bet.", ("fold", "call"))
    assert said["1pb"] == ("Your card is Q. Moves so far: check-bet.", ("fold", "call"))
    assert len(legal()) == 24 and len({json.dumps(one) for one in legal()}) == 24
    for one in legal():
        rules, asked = one["prompt"]
        assert rules["content"] == WORDED.rules and one["completion"] in asked["content"]


def test_the_first_step_of_a_run_goes_where_the_exact_gradient_points(tmp_path: Path) -> None:
    """Through episodes, advantages and the mean over 2.25 moves a game: 1500 games, whose noise along it is some 4 %."""
    recipe = Recipe(learning_rate=1.0, kl=1e-9, beta1=0.9, steps=1, games=1500)
    run = kuhn_run("table", recipe, 0, tmp_path)
    assert isinstance(run.policies, Policy)
    slow = replace(run.policies, learning_rate=1e6, adam=Adam(eps=1e6, grad_clip_norm=0.0))
    answers = Answers()
    assert train(replace(run, policies=slow, deterministic=True), watchers=[answers])
    before, after = (strategy_of(one.values) for one in answers.found)
    assert before == pytest.approx(EVEN)
    moved = np.array([np.log(after[key] / (1 - after[key])) for key in ORDER])
    wanted = np.array([2 * exact(before)[key] / 2.25 for key in ORDER])
    assert moved @ wanted / (wanted @ wanted) == pytest.approx(1.0, abs=0.15)
    assert np.corrcoef(moved, wanted)[0, 1] > 0.9


@pytest.mark.parametrize("model", RECIPES)
def test_self_play_becomes_less_exploitable(model: str) -> None:
    curve = trained(model, replace(RECIPES[model], steps=30, games=64), 0)
    assert [one.step for one in curve] == [0, 10, 20, 30]
    assert curve[0].last == pytest.approx(11 / 24) and curve[-1].last < 0.9 * curve[0].last
    assert curve[-1].hands == 30 * 64


def planted(last: float, average: float, step: int = 10) -> Point:
    return Point(step=step, hands=80, seconds=1.0, last=last, average=average, illegal=0.5, strategy=EVEN)


def test_what_is_told(tmp_path: Path) -> None:
    good, bad = [planted(0.4, 0.4, 0), planted(0.3, 0.09)], [planted(0.4, 0.4, 0), planted(0.05, 0.11)]
    assert [row.met for row in told("x", good)] == [None, None, None, True]
    assert [row.met for row in told("x", bad)] == [None, None, None, False]
    drawing = picture({"table": [good, bad], "network": [good]})
    assert drawing.count("<svg") == drawing.count("</svg>") == 3 and "network: exploitability" in drawing
    path = tmp_path / "0.jsonl"
    for curve, met in (
        ([planted(0.4, 0.4, 0), planted(0.5, 0.27)], True),
        ([planted(0.4, 0.4), planted(0.1, 0.3)], False),
    ):
        path.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in curve))
        assert [row.met for row in told_of_lines("x", read(path)) if row.met is not None] == [met]
