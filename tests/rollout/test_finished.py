"""Episodes gathered from a journal's events."""

from __future__ import annotations

from sparring.rollout.events import Acted, Admitted, AnyEvent, Ended, Restarted
from sparring.rollout.finished import Finished, Gathering


def admitted(group: int) -> Admitted:
    return Admitted(group=group, source=0, index=group, task="d" * 64, lineup=0, trained=["a"])


def acted(group: int, member: int, turn: int) -> Acted:
    return Acted(group=group, member=member, seat="one", turn=turn, request=b"r")


def gathered(gathering: Gathering, *events: AnyEvent) -> list[Finished]:
    return [one for event in events if (one := gathering.add(event)) is not None]


def test_an_episode_has_what_it_did_in_order_and_nothing_of_the_others() -> None:
    gathering = Gathering(2)
    found = gathered(
        gathering,
        admitted(0),
        admitted(1),
        acted(0, 1, 0),
        acted(1, 1, 0),
        acted(0, 0, 0),
        acted(0, 1, 1),
        Ended(group=0, member=1),
    )
    assert [(one.admitted.group, one.ended.member) for one in found] == [(0, 1)]
    assert list(found[0].past) == [acted(0, 1, 0), acted(0, 1, 1)]
    assert gathering.under_way == 3
    assert gathering.groups == {0, 1}


def test_a_group_is_forgotten_with_its_last_episode() -> None:
    gathering = Gathering(2)
    assert len(gathered(gathering, admitted(0), Ended(group=0, member=0), Ended(group=0, member=1))) == 2
    assert gathering.groups == frozenset()
    assert gathering.under_way == 0


def test_what_an_episode_did_before_it_started_again_counts_no_more() -> None:
    gathering = Gathering(1)
    events = (admitted(0), acted(0, 0, 0), Restarted(group=0, member=0), acted(0, 0, 1), Ended(group=0, member=0))
    (one,) = gathered(gathering, *events)
    assert list(one.past) == [acted(0, 0, 1)]
