"""A stored episode played again by changed code: its replies are those of the journal, its rewards those of now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.agents import Action
from sparring.environments import Conversation, Environment, Request
from sparring.errors import SparringError, UnsupportedError
from sparring.rollout.episode import Episode, EpisodePlan, run_episode, scored
from sparring.rollout.events import Acted, Admitted, Affected, Ended
from sparring.rollout.past import Effects, NoReply, StoredAnswers
from sparring.rollout.trajectory import Trajectory, trajectories


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What all episodes of a source are played again with. `deadline` is in seconds; `score` is what those get that fail, if
    they get anything."""

    environment: Environment[Any]
    seed: int
    deadline: float
    effects: Effects = "anew"
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """What an episode comes to now: how it `ended`, its judged trajectories, and how many journaled replies nobody asked for.

    With `no_reply` it could not be played to its end; `cut` if a fault had cut it off then, so that there are no more replies.
    """

    ended: Ended
    trajectories: tuple[Trajectory, ...] = ()
    unasked: int = 0
    no_reply: NoReply | None = None
    cut: bool = False

    @property
    def unknown(self) -> bool:
        """Whether nobody can say what it would have come to."""
        return self.no_reply is not None and not self.cut


class _NoModel:
    """The player of every seat: nobody is asked for anything."""

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        raise AssertionError(f"seat {conversation.place.seat!r} was asked while stored replies were scored")

    def context_left(self, conversation: Conversation) -> int:
        raise UnsupportedError(
            f"seat {conversation.place.seat!r}: context_left is the model's to say, and stored replies are scored without one"
        )


async def again(
    stage: Stage,
    task: Any,
    admitted: Admitted,
    before: Ended,
    past: Sequence[Acted | Affected],
    policies: Mapping[str, str],
) -> Again:
    """Play the episode that ended as `before`; `policies` says which policy is trained in which seat. Waits for the environment
    and for effects, never for a player.

    What would stop a run (a reward that is none, a wrong setting) is a fault of the episode here. Chance is what it was: it
    is seeded with the task that was played then.
    """
    answers = StoredAnswers(past, stage.effects)
    plan = EpisodePlan(
        environment=stage.environment,
        task=task,
        task_digest=admitted.task,
        agents=dict.fromkeys(stage.environment.seats, _NoModel()),
        trained=frozenset(policies),
        seed=stage.seed,
        group=admitted.group,
        member=before.member,
        deadline=stage.deadline,
    )
    try:
        ended, seats = await run_episode(Episode(plan, answers.keep, answers), plan)
    except NoReply as error:
        ended = Ended(group=admitted.group, member=before.member, fault="no reply", detail=str(error))
        return Again(ended=ended, no_reply=error, cut=error.more and bool(before.fault))
    except SparringError as error:
        ended = Ended(group=admitted.group, member=before.member, fault=type(error).__name__, detail=str(error))
        return Again(ended=ended)
    if ended.fault and stage.score is not None:
        ended = scored(ended, seats, plan.trained, stage.score)
    replies = sum(isinstance(event, Acted) for event in past)
    made = trajectories(answers.heard, ended, policies)
    return Again(ended=ended, trajectories=tuple(made), unasked=replies - len(answers.heard))
