"""A model behind a server as an opponent in a run: it is asked, it does not learn, and its key stands nowhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparring import Episodes, External, Lineup, Run, Secret, train
from sparring.errors import BackendError, SettingError
from sparring.learner.history import read_events
from sparring.learner.players import Players
from sparring.learner.replay import compare
from sparring.rollout.events import Acted, Evaluated
from tests.agents.server import Answer, completion, serving
from tests.learner.worlds import duel_run


def against(url: str, folder: Path, **changes: Any) -> Run:
    """Alice learns against the server's model, and is measured against it."""
    run = duel_run(folder, deterministic=False)
    opponent = External(url, "opponent", key=Secret("hush-hush"))
    who = Lineup({"first": "alice", "second": opponent})
    assert isinstance(run.train, Episodes) and isinstance(run.held_out, Episodes)
    playing, held_out = (replace(episodes, lineup=who) for episodes in (run.train, run.held_out))
    policies = {"alice": run.named_policies["alice"]}
    return replace(run, train=playing, held_out=held_out, policies=policies, **changes)


def trained(answer: Answer, folder: Path) -> Run:
    with serving(answer) as url:
        run = against(url, folder)
        assert train(run)
    return run


def test_a_run_against_a_server_s_model(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        seen.append(body["authorization"])
        return completion("I raise")

    run = trained(answer, tmp_path)
    assert set(seen) == {"Bearer hush-hush"}
    events = list(read_events(run.path))
    theirs = [event for event in events if isinstance(event, Acted) and event.seat == "second"]
    assert theirs and all(event.sample is None and event.reply is not None for event in theirs)
    assert {event.reply.text for event in theirs if event.reply is not None} == {"I raise"}
    assert {event.version for event in events if isinstance(event, Evaluated)} == {0, 2, 3}
    assert compare(events, run).agrees
    for path in run.path.rglob("*"):
        assert not path.is_file() or b"hush" not in path.read_bytes(), path


def test_what_the_server_refuses_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"answered 401: no such key"):
        trained(lambda body: (401, "no such key"), tmp_path)


def test_a_deterministic_run_has_no_server_in_it(tmp_path: Path) -> None:
    run = against("http://127.0.0.1:9/v1", tmp_path, deterministic=True)
    with pytest.raises(
        SettingError, match=re.escape("'opponent' at http://127.0.0.1:9/v1, which may answer otherwise")
    ):
        train(run)
    assert not run.path.exists()


def test_all_groups_share_what_a_server_is_asked_at_once() -> None:
    players = Players({}, {}, {}, 1)
    url = "http://127.0.0.1:9/v1"
    asked = [players.agents({"second": External(url, name)}, {}, steps={})["second"] for name in ("one", "one", "two")]
    assert asked[0] is asked[1] is not asked[2]
