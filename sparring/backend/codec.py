"""Text to tokens and back, where only the template may write special tokens."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from sparring.arrays import I32
from sparring.errors import SettingError


@dataclass(frozen=True, slots=True)
class Fixed:
    """Text of a template: the special tokens that it spells are special tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """Text of a message: whatever it spells stays text."""

    text: str


@dataclass(frozen=True, slots=True)
class Special:
    """One special token between two stretches of text."""

    token: AddedToken
    id: int


class Codec:
    """A copy of a tokenizer that never reads special tokens out of text, so that it can be told where they are.

    Special tokens split text before it is tokenized, so the stretches between them can be tokenized one by one. A special
    token declared to swallow white space beside it does so here too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise SettingError(f"tokenizer {type(tokenizer).__name__!r}: a fast one (tokenizer.json) is needed")
        self.definition = backend.to_str()
        self._plain: Tokenizer = Tokenizer.from_str(self.definition)
        self._plain.no_truncation()
        self._plain.no_padding()
        self._plain.encode_special_tokens = True
        added = self._plain.get_added_tokens_decoder()
        self.specials = {token.content: Special(token, at) for at, token in added.items() if token.special}
        if not self.specials:
            raise SettingError("a tokenizer without special tokens: nothing could end a turn")
        longest_first = sorted(self.specials, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self.special_ids = frozenset(special.id for special in self.specials.values())

    def first_special(self, text: str) -> re.Match[str] | None:
        """Where the first special token of a template's text stands."""
        return self._pattern.search(text)

    def encode(self, parts: Sequence[Fixed | Content]) -> I32:
        """The tokens of the parts put together, i32[T]."""
        return np.array([token for stretch in self._stretches(parts) for token in stretch], np.int32)

    def decode(self, tokens: Sequence[int] | I32, keep: frozenset[int] = frozenset()) -> str:
        """The tokens as text without special tokens, except those in `keep`."""
        dropped = self.special_ids - keep
        ids = [int(token) for token in tokens]
        return str(self._plain.decode([at for at in ids if at not in dropped], skip_special_tokens=False))

    def pieces(self, tokens: I32) -> list[str]:
        """What each token is called, for messages."""
        return [self._plain.id_to_token(int(token)) or f"<{token}>" for token in tokens]

    def _stretches(self, parts: Sequence[Fixed | Content]) -> Iterator[list[int]]:
        text, swallow = "", False
        for item in self._split(parts):
            if isinstance(item, str):
                text += item.lstrip() if swallow and not text else item
                continue
            yield self._tokens(text.rstrip() if item.token.lstrip else text)
            yield [item.id]
            text, swallow = "", item.token.rstrip
        yield self._tokens(text)

    def _split(self, parts: Sequence[Fixed | Content]) -> Iterator[str | Special]:
        for part in parts:
            if isinstance(part, Content):
                yield part.text
                continue
            for piece in self._pattern.split(part.text):
                yield self.specials.get(piece, piece)

    def _tokens(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids) if text else []
