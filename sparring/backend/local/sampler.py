"""Continuous batching on the engine thread: requests join between two steps and leave when they are done.

A step is either part of the prompts that wait to be computed or one token for every running sequence. With nothing to do the
sampler sleeps; a new or cancelled request wakes it. Rows of different adapters go through one pass. What a context begins with
and was computed before, with the same weights, is kept and not computed again (`Prefixes`).

Sequences that follow a model change their weights between two steps. Keys and values of all that they hold so far are computed
again then, so that each token is made by one version alone, the one it is stamped with.

`deterministic` makes a sequence's tokens and log-probs independent of what else is drawn: on a CPU a product in fp32 gives
each row the same bits wherever it stands as long as the number of rows is the same, so prompts are computed one by one, padded
to whole blocks, and decoding always computes `slots` rows of one adapter, each row looking at as many blocks of cached tokens
as it needs itself. Nothing is kept for later sequences, and none can follow a model.

Letters: `B` rows of a pass, `T` tokens, `V` vocabulary, `D` hidden.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from sparring.arrays import F32, I32
from sparring.backend.check_request import check_request, checked_tokens
from sparring.backend.local.attention import Pass, decoding_view, forward, prompt_view
from sparring.backend.local.base import BaseModel
from sparring.backend.local.cache import KeyValueCache
from sparring.backend.local.client import Engine, TorchSamplingClient
from sparring.backend.local.draw import draw, likeliest, uniforms
from sparring.backend.local.lora import Segment, Weights
from sparring.backend.local.prefixes import Prefixes
from sparring.backend.local.readout import read_out
from sparring.backend.local.request import Drawn, Group, Request, passes, segments
from sparring.backend.local.scheduler import Scheduler
from sparring.backend.local.scoring import option_logprobs, token_logprobs
from sparring.backend.local.source import Source, Stamped
from sparring.backend.local.standing import SamplerStatistics
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.errors import BackendError, SettingError, UnsupportedError

PREFILL_TOKENS = {"cpu": 1024, "cuda": 2048}
"""Tokens of prompts in one step; a longer prompt is computed in parts. More of them fill a larger device, and hold more
scores: [heads, tokens of the step, tokens looked at]."""

PREFILL_RUN = 8
"""Steps spent on prompts before running sequences get one."""

KEPT_BYTES = 2**28
"""Memory for keys and values that is kept while nothing is drawn."""

PREFIX_BYTES = 2**29
"""Memory for keys and values of what is over, kept for contexts that begin alike."""

_ROWS, _PROMPT, _WIDTH, _BLOCK = 8, 16, 32, 64


class TorchSampler:
    """Draws from adapters on one base. Registers itself with the engine; `open` makes clients, on any thread.

    `slots` bounds how many sequences are drawn at once, `cache_tokens` slots x tokens of the longest; more wait in order.
    `prefix_bytes` bounds what is kept of sequences that are over.
    """

    def __init__(
        self,
        base: BaseModel,
        engine: Engine,
        *,
        slots: int = 64,
        cache_tokens: int = 65536,
        prefill_tokens: int | None = None,
        prefix_bytes: int = PREFIX_BYTES,
        deterministic: bool = False,
    ) -> None:
        if prefill_tokens is None:
            prefill_tokens = PREFILL_TOKENS[base.device.type]
        for name, value in {"slots": slots, "cache_tokens": cache_tokens, "prefill_tokens": prefill_tokens}.items():
            if value < 1:
                raise SettingError(f"{name}={value!r}: must be at least 1")
        if prefix_bytes < 0:
            raise SettingError(f"prefix_bytes={prefix_bytes!r}: must be at least 0, which keeps nothing")
        if deterministic and base.dtype != torch.float32:
            raise SettingError(
                f"deterministic=True with {base.dtype}: only float32 products are independent of their place"
            )
        self._base, self._engine, self._deterministic = base, engine, deterministic
        self._prefill_tokens = _whole(prefill_tokens, _BLOCK)
        self._cache = KeyValueCache.of(base, slots=slots, max_tokens=cache_tokens)
        self._prefixes = Prefixes(self._cache, 0 if deterministic else prefix_bytes)
        self._schedule = Scheduler(self._cache)
        self._inbox: deque[Request] = deque()
        self._in_step: list[Drawn] = []
        self._prefill_run = 0
        self._prompt_tokens = self._reused_tokens = self._drawn_tokens = self._decode_steps = 0
        engine.register(self)

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return self._base.vocabulary

    @property
    def context_length(self) -> int:
        """The longest sequence the model takes, in tokens."""
        return self._base.context_length

    def open(
        self, weights: Weights | None, *, version: int, release: Callable[[], None] = lambda: None
    ) -> TorchSamplingClient:
        """A client of these weights, which must never change (None: of the base alone)."""
        return self.follow(Source(Stamped(version=version, weights=weights)), release=release)

    def follow(self, source: Source, *, release: Callable[[], None] = lambda: None) -> TorchSamplingClient:
        """A client of the weights that `source` has at each step. Raises `UnsupportedError` for a moving one where the sampler
        is deterministic: when a publication meets a sequence depends on the clock."""
        if source.moving and self._deterministic:
            raise UnsupportedError("weights that follow the model are not deterministic; sample from snapshots")
        return TorchSamplingClient(self, self._engine, source, release=release)

    def forget(self, weights: Weights) -> None:
        """Keep nothing that was made with these weights: nobody will sample from them. Engine thread only."""
        self._prefixes.forget(weights)

    def request(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int, *, source: Source) -> Request:
        """Check and queue a request. Raises `SettingError` and `ContextFull` as `SamplingClient.sample` says."""
        tokens = checked_tokens(prompt, self._base.vocabulary)
        check_request(tokens, params, n, self._base.context_length)
        request = Request(tokens, params, n, source=source, decode=self._decode_text)
        self._inbox.append(request)
        self._engine.wake()
        return request

    def statistics(self) -> SamplerStatistics:
        """How it stands; read from any thread, each number by itself."""
        return SamplerStatistics(
            waiting=len(self._schedule.waiting) + sum(len(request.drawn) for request in list(self._inbox)),
            filling=sum(len(group.members) for group in self._schedule.filling),
            running=len(self._schedule.running),
            slots=self._cache.slots,
            cache_bytes=self._cache.bytes,
            kept_bytes=self._prefixes.kept_bytes,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            drawn_tokens=self._drawn_tokens,
            decode_steps=self._decode_steps,
        )

    def logprobs(self, weights: Weights | None, tokens: I32) -> F32:
        """Log-prob of each token given those before it, f32[T], the first NaN. Engine thread only."""
        return token_logprobs(self._base, weights, tokens)

    def options(self, weights: Weights | None, prompt: I32, options: Sequence[I32]) -> F32:
        """Log-prob of each option after the prompt, f32[n]. Engine thread only."""
        return option_logprobs(self._base, weights, prompt, options)

    @torch.inference_mode()
    def step(self) -> bool:
        """Part of the prompts, or one token for each running sequence; False when there is nothing to do."""
        while self._inbox:
            self._schedule.add(self._inbox.popleft())
        self._schedule.remove(lambda request: request.cancelled)
        for request in self._schedule.requests():
            if request.follow():
                self._schedule.refill(request)
        if not self._schedule.filling:
            self._schedule.admit()
        if self._schedule.filling and (self._prefill_run < PREFILL_RUN or not self._schedule.running):
            self._prefill_run += 1
            self._prefill()
        elif self._schedule.running:
            self._prefill_run = 0
            self._decode_all()
        else:
            assert self._schedule.idle
            if self._cache.bytes > KEPT_BYTES:
                self._cache.release()
            return False
        self._in_step = []
        return True

    def fail(self, error: BaseException) -> None:
        """Fail the requests of the step that raised `error`; outside of a step, all of them."""
        while self._inbox:
            self._schedule.add(self._inbox.popleft())
        stepping = {drawn.request for drawn in self._in_step}
        failed = [request for request in self._schedule.requests() if not stepping or request in stepping]
        self._in_step = []
        self._schedule.remove(lambda request: request in failed)
        reason = error
        if not isinstance(error, BackendError):
            reason = BackendError(f"sampling failed: {error!r}")
            reason.__cause__ = error
        for request in failed:
            if not request.cancelled:
                self._engine.fail(request.pending, reason)

    def _prefill(self) -> None:
        """Compute the next part of the first contexts; sequences whose context is complete get their next token."""
        groups = self._next_groups()
        self._in_step = [drawn for group in groups for drawn in group.members]
        start = groups[0].done
        counts = [min(group.rest, self._prefill_tokens) for group in groups]
        block = _BLOCK if self._deterministic else _PROMPT
        length = _whole(max(counts), block)
        self._cache.reserve(self._schedule.rows, start + length)
        tokens = np.zeros((len(groups), length), np.int64)
        for row, (group, count) in enumerate(zip(groups, counts, strict=True)):
            tokens[row, :count] = group.context[start : start + count]
        slots = self._tensor([group.slot for group in groups])
        views = [prompt_view(self._base, start, length)]
        given = Pass(self._cache, slots, start, views, reads=len(groups), read=slots)
        positions = torch.arange(start, start + length, device=self._base.device)[None].expand(len(groups), -1)
        parts: list[Segment] = [(group.adapter, 1) for group in groups]
        hidden = forward(self._base, self._tensor(tokens), positions, parts, given)
        self._prompt_tokens += sum(counts)
        for group, count in zip(groups, counts, strict=True):
            group.done += count
        ends = [
            (row, count - 1) for row, (group, count) in enumerate(zip(groups, counts, strict=True)) if not group.rest
        ]
        if ends:
            rows, last = self._tensor(np.array(ends)).T
            self._begin([groups[row] for row, _ in ends], hidden[rows, last])

    def _next_groups(self) -> list[Group]:
        """The first contexts that fit into one step and go on from the same place, those of one adapter beside each other."""
        filling = self._schedule.filling
        block = _BLOCK if self._deterministic else _PROMPT
        self._reuse(filling[0])
        taken, width = [filling[0]], _whole(filling[0].rest, block)
        if self._deterministic:
            return taken
        for group in filling[1:]:
            self._reuse(group)
            if group.done != taken[0].done:
                continue
            widest = max(width, _whole(group.rest, block))
            together = passes([taken[0].members[0], group.members[0]])
            if len(together) > 1 or widest * (len(taken) + 1) > self._prefill_tokens:
                break
            taken.append(group)
            width = widest
        return sorted(taken, key=lambda group: id(group.adapter))

    def _reuse(self, group: Group) -> None:
        """Take what is kept of a context that is about to be computed, all but its last token, whose state is wanted."""
        if group.done == 0 and (names := self._prefixes.find(group.adapter, group.context[:-1])):
            self._cache.reserve(self._schedule.rows, len(group.context))
            group.done = self._prefixes.load(names, group.slot)
            self._reused_tokens += group.done

    def _begin(self, groups: Sequence[Group], hidden: Tensor) -> None:
        """Let groups run whose context is complete: copy keys and values to all members, draw each its next token."""
        logits = self._logits(hidden, [(group.adapter, 1) for group in groups])
        members, rows, slots = [], [], [group.slot for group in groups]
        for row, group in enumerate(groups):
            length = len(group.context)
            self._cache.copy(group.slot, [drawn.slot for drawn in group.members[1:]], length)
            for drawn in group.members:
                drawn.length = length
            members += group.members
            rows += [row] * len(group.members)
            self._schedule.start(group)
        self._draw(members, logits[self._tensor(rows)])
        for group, slot in zip(groups, slots, strict=True):
            self._prefixes.keep(group.adapter, group.context, slot)

    def _decode_all(self) -> None:
        """One token for every running sequence."""
        in_order = self._schedule.compact()
        running = list(self._schedule.running)
        self._decode_steps += 1
        if not self._deterministic:
            for part in passes(running):
                self._decode(part, in_order=in_order and len(part) == len(running))
            return
        by_adapter = sorted(running, key=lambda drawn: id(drawn.request.adapter))
        for _, rows in groupby(by_adapter, key=lambda drawn: id(drawn.request.adapter)):
            self._decode_fixed(list(rows))

    def _decode(self, running: list[Drawn], *, in_order: bool) -> None:
        """Rows of all adapters in one pass, in as few rows and looking at as few cached tokens as there are."""
        self._in_step = running
        count = len(running)
        width = _whole(max(drawn.length for drawn in running) + 1, _WIDTH)
        reads = min(_whole(count, _ROWS), self._cache.slots)
        if not self._cache.fits(max(reads, self._schedule.rows), width):
            reads = count
        self._cache.reserve(max(reads, self._schedule.rows), width)
        lengths = [drawn.length for drawn in running] + [0] * (reads - count)
        parts, place = segments(running, reads)
        slots = self._tensor([drawn.slot for drawn in running])
        given = Pass(
            self._cache,
            slots,
            self._tensor(lengths[:count]),
            [decoding_view(self._base, self._tensor(lengths), width)],
            reads=reads,
            read=None
            if in_order
            else self._tensor([drawn.slot for drawn in running] + [running[0].slot] * (reads - count)),
        )
        order = list(range(reads))
        if place is not None:
            order = place + sorted(set(order) - set(place))
            given.place, given.back = self._tensor(order), self._tensor(np.argsort(order))
        rows = np.zeros((2, reads), np.int64)
        rows[:, order[:count]] = [[drawn.tokens[-1] for drawn in running], lengths[:count]]
        tokens, positions = self._tensor(rows)[..., None]
        hidden = forward(self._base, tokens, positions, parts, given)[:, 0]
        logits = self._logits(hidden, parts)
        for drawn in running:
            drawn.length += 1
        self._draw(running, logits[:count] if place is None else logits[self._tensor(place)])

    def _decode_fixed(self, running: list[Drawn]) -> None:
        """Rows of one adapter, always `slots` of them, each looking at whole blocks of its own number."""
        self._in_step = running
        count, slots = len(running), self._cache.slots
        lengths = [drawn.length for drawn in running] + [0] * (slots - count)
        widths = [_whole(length + 1, _BLOCK) for length in lengths[:count]]
        self._cache.reserve(self._schedule.rows, max(widths))
        used = [drawn.slot for drawn in running]
        views = [
            decoding_view(
                self._base, self._tensor(lengths), width, self._tensor(np.flatnonzero(np.equal(widths, width)))
            )
            for width in sorted(set(widths))
        ]
        given = Pass(
            self._cache,
            self._tensor(used),
            self._tensor(lengths[:count]),
            views,
            reads=slots,
            read=self._tensor(used + [used[0]] * (slots - count)),
        )
        tokens = self._tensor([drawn.tokens[-1] for drawn in running] + [0] * (slots - count))
        parts: list[Segment] = [(running[0].request.adapter, slots)]
        hidden = forward(self._base, tokens[:, None], self._tensor(lengths)[:, None], parts, given)[:, 0]
        logits = self._logits(hidden, parts)[:count]
        for drawn in running:
            drawn.length += 1
        self._draw(running, logits)

    def _logits(self, hidden: Tensor, parts: Sequence[Segment]) -> Tensor:
        """f32[B, V] of states [B, D], which went through these adapters; in a fixed number of rows where that matters."""
        count = hidden.shape[0]
        if self._deterministic and count < self._cache.slots:
            padding = self._cache.slots - count
            hidden = torch.cat([hidden, hidden.new_zeros(padding, hidden.shape[1])])
            parts = [*parts, (parts[-1][0], padding)]
        return read_out(self._base.head, hidden, parts)[:count].float()

    def _draw(self, drawn: Sequence[Drawn], logits: Tensor) -> None:
        """The next token of each sequence; those that are done leave."""
        shapes = [one.request.shape for one in drawn]
        uniform = uniforms([one.key for one in drawn], [len(one.tokens) for one in drawn])
        if self._deterministic:
            shaped: Sequence[Tensor] = [row.clone() for row in logits.split(1)]
            pairs = [draw(row, shapes[i : i + 1], uniform[i : i + 1]) for i, row in enumerate(shaped)]
            tokens, logprobs = (
                [token for pair in pairs for token in pair[0]],
                np.concatenate([pair[1] for pair in pairs]),
            )
        else:
            shaped, (tokens, logprobs) = logits.split(1), draw(logits, shapes, uniform)
        for one, row in zip(drawn, shaped, strict=True):
            if one.request.params.top_logprobs:
                one.top.append(likeliest(row[0], one.request.shape, one.request.params.top_logprobs))
        self._drawn_tokens += len(drawn)
        for one, token, logprob in zip(drawn, tokens, logprobs.tolist(), strict=True):
            one.append(token, logprob)
            if one.stop is not None:
                self._prefixes.keep(one.request.adapter, one.context[: one.length], one.slot)
                self._schedule.finish(one)
                self._settle(one.request)

    def _settle(self, request: Request) -> None:
        result: list[SampledSequence] | None = request.result()
        if result is not None and not request.cancelled:
            if request.then is not None:
                request.then(result)
            self._engine.succeed(request.pending, result)

    def _decode_text(self, tokens: Sequence[int]) -> str:
        return str(self._base.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _tensor(self, values: Sequence[int] | np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.int64), device=self._base.device)


def _whole(count: int, block: int) -> int:
    """The least number of whole blocks that holds `count`."""
    return -(-count // block) * block
