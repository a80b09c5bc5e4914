"""The renderer of a model's own chat template: prefix-stable, and text stays text.

A context only grows, but a template is a program over whole conversations. So its fixed text is taken apart (`template`), and
what stands between two special tokens is tokenized by itself (`codec`): special tokens split text in every tokenizer, so this
gives the tokens of the whole, except that a content which spells a special token stays text. What continues a context is cut
out of the rendering of a small conversation in front of it. Construction proves on probes that each piece is what the template
gives at its place in the whole, and refuses a template for which that is not so.
"""

from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256

import numpy as np
from transformers import PreTrainedTokenizerBase

from sparring.arrays import I32
from sparring.backend.codec import Codec, Content, Fixed
from sparring.backend.messages import check_messages
from sparring.backend.renderer import Parsed, ParsedCall, RenderedMessage, RenderedTool
from sparring.backend.template import Template
from sparring.backend.tool_form import ToolForm, check_tools, tool_form
from sparring.errors import SettingError

OPEN, CLOSE = "<think>", "</think>"
"""What reasoning stands between, in templates that have it."""

_ASKED: RenderedMessage = {"role": "user", "content": "Q"}
_SAID: RenderedMessage = {"role": "assistant", "content": "A"}
_ODD = "na\u00efve \u6f22\u5b57 \U0001f600\u200d\U0001f525 e\u0301"
_PROBES = ("What is 1 + 2?", "trailing \n", "  indented\n\ttwice", _ODD, "x")
_REPLIES = ("3", "It is 3.\n", "\u00fcber \U0001f600 done ", "yes", "no")
_REMEDY = "put a template that only appends into the model's folder as chat_template.jinja"


class ChatRenderer:
    """A `Renderer` from a tokenizer with a chat template.

    Raises `SettingError` for a template that is missing, has no special token at the end of an assistant's turn, or changes
    what came before when a conversation grows; the message shows what became what.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._codec = Codec(tokenizer)
        self._template = Template(tokenizer)
        closing = self._codec.encode([Fixed(self._find_closing())])
        eos = tokenizer.eos_token_id
        end = int(closing[-1])
        self._stop_ids = (end, eos) if isinstance(eos, int) and eos != end else (end,)
        self._closing_length = len(closing)
        self._thinks = CLOSE in self._template.source
        self._tag_ids = frozenset(self._codec.specials[tag].id for tag in (OPEN, CLOSE) if tag in self._codec.specials)
        _Proof(self, self._codec, self._template).run()
        self._begins_thinking = self._template.text([_ASKED]).rstrip().endswith(OPEN)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The template's end-of-turn token, then the tokenizer's end of text if that is another."""
        return self._stop_ids

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of the template and of the tokenizer's definition."""
        return sha256(f"{self._template.source}\0{self._codec.definition}".encode()).hexdigest()

    @property
    def thinks(self) -> bool:
        """Whether the template knows reasoning."""
        return self._thinks

    def start(self, messages: Sequence[RenderedMessage], tools: Sequence[RenderedTool] = ()) -> I32:
        """The tokens of a context's first messages, up to where the assistant speaks, i32[T]; it is shown the `tools`.

        Raises `SettingError` for no messages, a message that is not a role and a text, roles that the template refuses, and
        tools where it moves them or writes calls as no JSON.
        """
        if not messages:
            raise SettingError("a context of no messages: start with at least one")
        check_messages(messages)
        if tools:
            check_tools(tools, self._codec)
        if tools or _answers(messages):
            messages, tools = self._tool_form.opened(messages, tools)
        return self._codec.encode(self._template.parts(messages, tools))

    def extend(self, messages: Sequence[RenderedMessage], previous: I32) -> I32:
        """What closes the sampled turn `previous`, if it does not end in a stop token, then `messages`, up to where the
        assistant speaks, i32[T]. Raises `SettingError` as `start` does, but takes no messages too."""
        check_messages(messages)
        if _answers(messages):
            messages = self._tool_form.told(messages)
        behind = self._template.parts([_ASKED, _SAID, *messages])[4:]  # after the assistant's content
        tokens = self._codec.encode(behind)
        closed = len(previous) > 0 and int(previous[-1]) in self._stop_ids
        return tokens[self._closing_length :] if closed else tokens

    def parse(self, tokens: I32, *, tools: bool = False) -> Parsed:
        """The reply in a sampled turn, without its stop token; what stands between thinking tags goes to `reasoning`, and calls
        are looked for in the rest."""
        ids = [int(token) for token in tokens]
        if ids and ids[-1] in self._stop_ids:
            ids.pop()
        text, reasoning = self._codec.decode(ids, keep=self._tag_ids | (self._call_ids if tools else frozenset())), ""
        if self._thinks and (self._begins_thinking or text.lstrip().startswith(OPEN)):
            reasoning, _, text = text.lstrip().removeprefix(OPEN).partition(CLOSE)
            text = text.lstrip()
        text, calls = self._tool_form.calls.read(text) if tools else (text, ())
        return Parsed(text=text, reasoning=reasoning.strip(), calls=calls)

    def calling(self, text: str, calls: Sequence[ParsedCall]) -> str:
        """What an assistant's message says that makes these calls."""
        return self._tool_form.calls.write(text, calls)

    def prompt(self, messages: Sequence[RenderedMessage]) -> I32:
        """The same as `start`."""
        return self.start(messages)

    def text(self, tokens: Sequence[int] | I32) -> str:
        """The tokens as text, special tokens left out."""
        return self._codec.decode(tokens)

    @cached_property
    def _tool_form(self) -> ToolForm:
        """Found when tools are first used: a template is not refused for what nobody needs."""
        return tool_form(self._template, self._codec)

    @cached_property
    def _call_ids(self) -> frozenset[int]:
        """The special tokens that a call is written with."""
        around = self._tool_form.calls.opening + self._tool_form.calls.closing
        return frozenset(special.id for text, special in self._codec.specials.items() if text in around)

    def _find_closing(self) -> str:
        """The template's text from the end of the assistant's content through the special token that ends the turn."""
        behind = self._template.parts([_ASKED, _SAID, _ASKED])[4].text
        found = self._codec.first_special(behind)
        if found is None:
            raise SettingError(
                f"the chat template puts {behind!r} after the assistant's turn, without a special token: nothing could end a "
                f"turn; {_REMEDY} and ends turns with one"
            )
        closing = behind[: found.end()]
        last = self._template.parts([_ASKED, _SAID], speak=False)[4].text
        if not last.startswith(closing):
            raise SettingError(
                f"the chat template ends an assistant's turn with {closing!r} before a user's and with {last!r} at the end of "
                f"a conversation; {_REMEDY} and always ends a turn alike"
            )
        return closing


class _Proof:
    """Conversations that are rendered both ways, by the template as a whole and by the renderer piece by piece."""

    def __init__(self, renderer: ChatRenderer, codec: Codec, template: Template) -> None:
        self._renderer, self._codec, self._template = renderer, codec, template

    def run(self) -> None:
        """Raise `SettingError` at the first difference."""
        self._special_tokens_stay_text()
        turns = [m for q, a in zip(_PROBES, _REPLIES, strict=True) for m in (_user(q), _assistant(a))]
        system: RenderedMessage = {"role": "system", "content": "Answer \u00e0 propos.\n"}
        conversations: list[list[RenderedMessage]] = [turns, turns[2:6], turns[4:10]]
        if self._accepts([system, _ASKED]):
            conversations += [[system, *turns[:2]], [system, *turns]]
        if self._accepts([_ASKED, _SAID, _ASKED, _ASKED]):
            conversations.append([*turns[:2], turns[2], turns[4], turns[5]])
        if self._renderer.thinks:
            conversations.append([turns[0], _assistant(f"{OPEN}\nhm\n{CLOSE}\n\n3"), *turns[2:4]])
        for conversation in conversations:
            self._grows(conversation)
            self._is_the_templates(conversation)

    def _accepts(self, messages: list[RenderedMessage]) -> bool:
        try:
            self._template.text(messages)
        except SettingError:
            return False
        return True

    def _special_tokens_stay_text(self) -> None:
        for text, special in self._codec.specials.items():
            if special.id in self._codec.encode([Content(f"a{text}b")]).tolist():
                raise SettingError(
                    f"the tokenizer reads {text!r} in a message as a special token: use another tokenizer"
                )

    def _grows(self, conversation: list[RenderedMessage]) -> None:
        """Text: up to each turn of the assistant, the shorter conversation is a prefix of the whole."""
        whole = self._template.text(conversation)
        for at, message in enumerate(conversation):
            if message["role"] == "assistant":
                before = self._template.text(conversation[:at]) + self._template.treated(message)
                if not whole.startswith(before):
                    raise SettingError(
                        f"the chat template rewrites earlier turns: {_difference(before, whole)}; {_REMEDY}"
                    )

    def _is_the_templates(self, conversation: list[RenderedMessage]) -> None:
        """Tokens: each piece is what the template gives at its place in the whole (replies aside: those are sampled)."""
        fresh: list[RenderedMessage] = []
        said: I32 | None = None
        for at, message in enumerate([*conversation, _SAID]):
            if message["role"] != "assistant":
                fresh.append(message)
                continue
            piece = self._renderer.start(fresh) if said is None else self._renderer.extend(fresh, said)
            whole = self._template.tokens(conversation[:at])
            place = whole if said is None else whole[len(whole) - len(piece) :]
            if not np.array_equal(piece, place):
                raise SettingError(
                    f"the chat template cannot be tokenized piece by piece: {self._codec.pieces(piece)!r} is "
                    f"{self._codec.pieces(place)!r} in the whole; {_REMEDY}"
                )
            fresh, said = [], self._codec.encode([Content(self._template.treated(message))])


def _difference(shorter: str, whole: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(shorter, whole, strict=False)) if a != b), min(len(shorter), len(whole))
    )
    start = max(0, at - 20)
    return f"{shorter[start : at + 40]!r} becomes {whole[start : at + 40]!r} when the conversation goes on"


def _answers(messages: Sequence[RenderedMessage]) -> bool:
    return any(message["role"] == "tool" for message in messages)


def _user(content: str) -> RenderedMessage:
    return {"role": "user", "content": content}


def _assistant(content: str) -> RenderedMessage:
    return {"role": "assistant", "content": content}
