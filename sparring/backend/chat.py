"""The renderer of a model's own chat template: prefix-stable, and text stays text.

A template is a program over whole conversations; a context must only grow. So the template is rendered with sentinels where
contents go, which gives its fixed text as pieces; contents are put between the pieces, and each stretch between two special
tokens is tokenized by itself. Special tokens split text in every tokenizer, so this equals tokenizing the whole, except that
a content which spells a special token stays text. Construction proves it on conversations and refuses other templates.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import numpy as np
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from sparring.arrays import I32
from sparring.backend.renderer import Parsed, RenderedMessage
from sparring.errors import SettingError

OPEN, CLOSE = "<think>", "</think>"
_SENTINEL = re.compile(r"SparringContent(\d+)End")
_TODAY = datetime(2024, 7, 26)
"""What templates that print a date print: a context's tokens must not depend on the day."""


def _strftime_now(form: str) -> str:
    return _TODAY.strftime(form)


@dataclass(frozen=True, slots=True)
class _Fixed:
    """Text of the template."""

    text: str


@dataclass(frozen=True, slots=True)
class _Content:
    """Where the content of the conversation's message `index` goes."""

    index: int


_Piece = _Fixed | _Content


class ChatRenderer:
    """A `Renderer` from a tokenizer and its chat template. Raises `SettingError` for a template that cannot be stable."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        template = tokenizer.chat_template
        if not isinstance(template, str):
            raise SettingError(f"chat template {template!r}: the tokenizer must have exactly one, as text")
        self._tokenizer = tokenizer
        self._template = template
        self._codec = _Codec(tokenizer)
        self._probe = _TemplateProbe(self._render)
        self._strip = self._probe.stripped_roles()
        self._closing = self._probe.closing(self._codec.specials)
        end = self._codec.specials[self._closing.removeprefix(self._closing_text)]
        eos = tokenizer.eos_token_id
        self._stop_ids = tuple(dict.fromkeys([end, *([eos] if isinstance(eos, int) else [])]))
