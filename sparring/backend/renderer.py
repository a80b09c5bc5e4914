"""How messages become tokens and sampled tokens become a reply, from the model's own chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from sparring.arrays import I32

RenderedMessage = Mapping[str, str]
"""One chat message as templates take it: {"role": "system" | "user" | "assistant" | "tool", "content": text}."""

RenderedTool = Mapping[str, Any]
"""One tool as templates take it: {"type": "function", "function": {"name", "description", "parameters": a JSON schema}}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedCall:
    """A call of a tool: its name and its arguments as JSON text (ASCII). What stood where calls stand and is none has no name,
    and all of its text as arguments."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A reply as text; `reasoning` is what stood between the template's thinking tags, `calls` what were calls of tools, which
    are not in the text."""

    text: str
    reasoning: str = ""
    calls: tuple[ParsedCall, ...] = ()


class Renderer(Protocol):
    """Prefix-stable: the tokens of a conversation are a prefix of those of any longer one that starts with it.

    A context is `start(messages)`, sampled tokens, `extend(messages, stop)`, sampled tokens, ...: what was rendered or sampled
    once is never rendered again. Tokens in, tokens out.
    """

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a turn of the assistant; a sampled one is an action."""
        ...

    @property
    def fingerprint(self) -> str:
        """A digest of template and vocabulary; a run records it and compares it on resume."""
        ...

    def start(self, messages: Sequence[RenderedMessage], tools: Sequence[RenderedTool] = ()) -> I32:
        """The tokens of a context's first messages, up to where the assistant speaks, i32[T]; it is shown the `tools`."""
        ...

    def extend(self, messages: Sequence[RenderedMessage], previous: I32) -> I32:
        """The tokens between the assistant's sampled turn `previous` and its next one: what closes the turn (if `previous` did
        not close itself), then `messages`, up to where the assistant speaks, i32[T]."""
        ...

    def parse(self, tokens: I32, *, tools: bool = False) -> Parsed:
        """The reply in a sampled turn, without its stop token; calls are looked for where there are `tools`."""
        ...

    def calling(self, text: str, calls: Sequence[ParsedCall]) -> str:
        """What an assistant's message says that makes these calls: `parse` finds them in it."""
        ...

    def prompt(self, messages: Sequence[RenderedMessage]) -> I32:
        """The same as `start`; the name that scripts use."""
        ...

    def text(self, tokens: Sequence[int] | I32) -> str:
        """The tokens as text, special tokens left out."""
        ...


def reply_tokens(renderer: Renderer, text: str) -> I32:
    """The tokens that a model would have to sample to say `text`, its stop token included, i32[T]."""
    question = [{"role": "user", "content": "?"}]
    before = renderer.start(question)
    whole = renderer.start([*question, {"role": "assistant", "content": text}, *question])
    assert np.array_equal(whole[: len(before)], before), "renderers are prefix-stable"
    said = whole[len(before) :]
    return said[: int(np.flatnonzero(np.isin(said, renderer.stop_ids))[0]) + 1]


Thinking = Literal["keep", "drop"]
