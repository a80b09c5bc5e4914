"""How a sampler stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerStatistics:
    """Sequences, slots, bytes of keys and values (`cache_bytes` of sequences, `kept_bytes` for later ones), and since the
    sampler was made: tokens of contexts that were computed, those whose keys and values were kept, tokens drawn, steps."""

    waiting: int
    filling: int
    running: int
    slots: int
    cache_bytes: int
    kept_bytes: int
    prompt_tokens: int
    reused_tokens: int
    drawn_tokens: int
    decode_steps: int
