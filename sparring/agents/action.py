"""What a player did: a reply, and, if a policy made it, the exact tokens."""

from dataclasses import dataclass

from sparring.arrays import F32, I32
from sparring.environments import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sampled turn. The context so far is, turn after turn, `prompt` then `tokens`.

    prompt       i32[P]  what was rendered since the last turn, or, where `whole`, the entire context up to here
    whole                so it is in a context's first turn and in a fork's first own one
    tokens       i32[T]  what was sampled, the stop token included
    logprobs     f32[T]  under the distribution sampled from
    versions             runs (version, tokens) that cover T
    temperature          of that distribution
    """

    prompt: I32
    whole: bool
    tokens: I32
    logprobs: F32
    versions: tuple[tuple[int, int], ...]
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A reply; `sample` is None for players that do not sample tokens (scripted, human)."""

    reply: Reply
    sample: Sample | None = None
