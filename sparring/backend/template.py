"""A chat template taken apart: its fixed text, with places where the contents of the messages go.

A template is a program over a whole conversation. Rendered with sentinels for contents, it shows its fixed text; what it does
to contents (keep them, or strip white space around them) is found by rendering padded sentinels.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sparring.arrays import I32
from sparring.backend.codec import Content, Fixed
from sparring.backend.renderer import RenderedMessage, RenderedTool
from sparring.errors import SettingError

Part = Fixed | Content

_SENTINEL = re.compile(r"SparringContent(\d+)End")
_PADDING = " \n\t"
_DAY = datetime(2024, 7, 26)
_TREATMENTS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)


class Template:
    """The chat template of a tokenizer. Raises `SettingError` where there is none, or more than one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        try:
            self.source: str = tokenizer.get_chat_template()
        except ValueError as error:
            remedy = "put one into the model's folder as chat_template.jinja"
            raise SettingError(f"the tokenizer has no usable chat template ({error}): {remedy}") from error
        self._tokenizer = tokenizer
        self._treatments: dict[str, Callable[[str], str]] = {}

    def text(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[RenderedTool] = (), *, speak: bool = True
    ) -> str:
        """The template's own rendering; `speak` ends it where the assistant begins. Raises `SettingError` if it refuses.

        A template that prints today's date always prints 26 July 2024: tokens must not depend on the day.
        """
        try:
            rendered = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self.source,
                add_generation_prompt=speak,
                tokenize=False,
                strftime_now=_DAY.strftime,
            )
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            raise SettingError(f"the chat template refuses messages of the roles {roles!r}: {error}") from error
        assert isinstance(rendered, str), type(rendered)
        return rendered

    def parts(
        self, messages: Sequence[RenderedMessage], tools: Sequence[RenderedTool] = (), *, speak: bool = True
    ) -> list[Part]:
        """The rendering as fixed text and contents in turn, beginning and ending with fixed text: content i at 2 i + 1."""
        marked = [_with(message, f"SparringContent{at}End") for at, message in enumerate(messages)]
        pieces = _SENTINEL.split(self.text(marked, tools, speak=speak))
        if pieces[1::2] != [str(at) for at in range(len(messages))]:
            roles = [message["role"] for message in messages]
            raise SettingError(
                f"the chat template drops, doubles, reorders or rewrites contents of messages of the roles {roles!r}: "
                "use a template that renders each message once, in order"
            )
        parts: list[Part] = [Fixed(text) for text in pieces]
        for at, message in enumerate(messages):
            parts[2 * at + 1] = Content(self.treated(message))
        return parts

    def treated(self, message: RenderedMessage) -> str:
        """The content as the template renders it: as it is, or without the white space around it."""
        role = message["role"]
        if role not in self._treatments:
            self._treatments[role] = self._find_treatment(role)
        return self._treatments[role](message["content"])

    def tokens(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[RenderedTool] = ()) -> I32:
        """The tokens that the tokenizer itself gives for `text(messages)`, special tokens in contents included, i32[T]."""
        return np.array(self._tokenizer(self.text(messages, tools), add_special_tokens=False)["input_ids"], np.int32)

    def _find_treatment(self, role: str) -> Callable[[str], str]:
        around = {"system": ([], ["user"]), "user": ([], []), "assistant": (["user"], [])}
        before, after = around.get(role, (["user", "assistant"], []))

        def rendered(content: str) -> str:
            return self.text(
                [_plain(r) for r in before] + [{"role": role, "content": content}] + [_plain(r) for r in after]
            )

        mark = "SparringContent9End"
        padded = _PADDING + mark + _PADDING[::-1]
        plain, given = rendered(mark), rendered(padded)
        for treatment in _TREATMENTS:
            if given == plain.replace(mark, treatment(padded)):
                return treatment
        raise SettingError(
            f"the chat template rewrites the content of {role!r} messages: use one that keeps or strips it"
        )


def _plain(role: str) -> RenderedMessage:
    return {"role": role, "content": "x"}


def _with(message: RenderedMessage, content: str) -> dict[str, str]:
    return {"role": message["role"], "content": content}
