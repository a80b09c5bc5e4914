"""What is being drawn: a request of one caller, the sequences it asked for, and groups of them that share a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from secrets import randbits

import numpy as np

from sparring.arrays import I32
from sparring.backend.local.draw import Shape, draw_key
from sparring.backend.local.full import FullWeights
from sparring.backend.local.lora import Segment, Weights
from sparring.backend.local.source import Source
from sparring.backend.pending import PendingResult
from sparring.backend.sampling import SampledSequence, SamplingParams, Stop, runs

Decode = Callable[[Sequence[int]], str]


class Request:
    """`n` sequences that continue one prompt with the weights of one source. `cancelled` may be set by the caller's thread at
    any time; `then` is called on the engine thread with what was drawn."""

    def __init__(self, prompt: I32, params: SamplingParams, n: int, *, source: Source, decode: Decode) -> None:
        self.prompt, self.params = prompt, params
        self._source, self._stamped = source, source.now
        self.pending: PendingResult[list[SampledSequence]] = PendingResult("sample")
        self.cancelled = False
        self.then: Callable[[Sequence[SampledSequence]], None] | None = None
        self.shape = Shape(temperature=params.temperature, top_p=params.top_p, top_k=params.top_k)
        self.stop_ids = frozenset(params.stop_ids)
        seed = params.seed if params.seed is not None else randbits(64)
        self.drawn = [Drawn(self, draw_key(seed, index), decode) for index in range(n)]

    @property
    def adapter(self) -> Weights | None:
        """The weights that its next tokens are made with."""
        return self._stamped.weights

    @property
    def version(self) -> int:
        """The version of these weights."""
        return self._stamped.version

    def follow(self) -> bool:
        """Take the weights that its source has now; whether they are others than before. Engine thread only."""
        before, self._stamped = self._stamped, self._source.now
        return self._stamped is not before

    @property
    def needs(self) -> int:
        """How many tokens of keys and values one of its sequences can come to."""
        return len(self.prompt) + self.params.max_tokens

    @property
    def same_prompt(self) -> tuple[int, bytes]:
        """Equal for requests whose prompts give equal keys and values, now and after their sources have moved."""
        return id(self._source if self._source.moving else self.adapter), self.prompt.tobytes()

    def result(self) -> list[SampledSequence] | None:
        """All sequences, once all are finished."""
        if any(drawn.stop is None for drawn in self.drawn):
            return None
        found = [drawn.result() for drawn in self.drawn]
        return [sequence for sequence in found if sequence is not None]


class Drawn:
    """One sequence: the tokens so far and where it stands.

    slot    where its keys and values are, or -1
    length  how many tokens have keys and values: the prompt and all drawn ones but the newest
    top     for each token the likeliest ones in its place and their log-probs, where the request asks for them
    """

    __slots__ = ("_stop_strings", "key", "length", "logprobs", "request", "slot", "stop", "tokens", "top", "versions")

    def __init__(self, request: Request, key: int, decode: Decode) -> None:
        self.request, self.key = request, key
        self.slot, self.length = -1, 0
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.top: list[tuple[list[int], list[float]]] = []
        self.stop: Stop | None = None
        self._stop_strings = StopStrings(request.params.stop, decode) if request.params.stop else None

    @property
    def context(self) -> I32:
        """The prompt and what was drawn so far, i32[T]."""
        return np.concatenate([self.request.prompt, np.array(self.tokens, np.int32)])

    def append(self, token: int, logprob: float) -> None:
        """Take a token that the request's weights made; sets `stop` when it ends the sequence."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.versions.append(self.request.version)
        if token in self.request.stop_ids or (self._stop_strings is not None and self._stop_strings.found(self.tokens)):
            self.stop = "stop"
        elif len(self.tokens) == self.request.params.max_tokens:
            self.stop = "length"

    def result(self) -> SampledSequence | None:
        """The finished sequence, or None."""
        if self.stop is None:
            return None
        return SampledSequence(
            tokens=np.array(self.tokens, np.int32),
            logprobs=np.array(self.logprobs, np.float32),
            stop=self.stop,
            versions=runs(self.versions),
            top_tokens=np.array([tokens for tokens, _ in self.top], np.int32) if self.top else None,
            top_logprobs=np.array([logprobs for _, logprobs in self.top], np.float32) if self.top else None,
        )


class StopStrings:
    """Looks for strings in the text of a growing sequence, decoding only its end.

    Text before `anchor` is left alone: the window after it begins at a whole character and is longer than any string, so a
    string that a new token completes lies within the window.
    """

    def __init__(self, strings: Sequence[str], decode: Decode) -> None:
        self._strings, self._decode = tuple(strings), decode
        self._longest = max(len(string) for string in strings)
        self._anchor = 0

    def found(self, tokens: Sequence[int]) -> bool:
        """Whether the text holds one of the strings, now that the last token has come."""
        text = self._decode(tokens[self._anchor :])
        if any(string in text for string in self._strings):
            return True
        later = (self._anchor + len(tokens)) // 2
        if len(text) > 4 * self._longest and later > self._anchor:
            tail = self._decode(tokens[later:])
            if len(tail) >= self._longest and text.endswith(tail):
                self._anchor = later
        return False


@dataclass(slots=True)
class Group:
    """Sequences whose common context is being computed, in the slot of the first; `done` tokens of it are.

    `context` i32[P] is their prompt, and with weights that changed under way what was drawn before too.
    """

    members: list[Drawn]
    context: I32
    done: int = field(default=0)

    @classmethod
    def of(cls, drawn: Drawn) -> Group:
        """Of one sequence, as far as it is drawn."""
        return cls([drawn], drawn.context)

    @property
    def adapter(self) -> Weights | None:
        """The weights that it is computed with."""
        return self.members[0].request.adapter

    @property
    def slot(self) -> int:
        """Where the context's keys and values are computed."""
        return self.members[0].slot

    @property
    def rest(self) -> int:
        """How many tokens of the context are still to be computed."""
        return len(self.context) - self.done


def passes(drawn: Sequence[Drawn]) -> list[list[Drawn]]:
    """Which sequences may go through one forward pass: all those on adapters together, those of each full model apart."""
    found: dict[int, list[Drawn]] = {}
    for one in drawn:
        weights = one.request.adapter
        found.setdefault(id(weights) if isinstance(weights, FullWeights) else 0, []).append(one)
    return list(found.values())


def segments(running: Sequence[Drawn], rows: int) -> tuple[list[Segment], list[int] | None]:
    """Adapters of a pass of `rows` rows, and for each sequence its row in it (None: rows are in the order of the sequences)."""
    order = sorted(range(len(running)), key=lambda i: id(running[i].request.adapter))
    found: list[Segment] = [(running[i].request.adapter, 1) for i in order]
    found.append((found[-1][0], rows - len(running)))
    place = [0] * len(running)
    for row, i in enumerate(order):
        place[i] = row
    return found, None if place == list(range(len(running))) else place
