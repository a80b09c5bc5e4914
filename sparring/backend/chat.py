"""A renderer from a model's own chat template, prefix-stable by construction.

Only what is new is ever rendered: the template's text is cut at the contents of the messages (`template.py`), and the stretches
between special tokens are tokenized one by one (`codec.py`), so that what was rendered or sampled before cannot change.
"""

from collections.abc import Sequence
from hashlib import sha256

from transformers import PreTrainedTokenizerBase

from sparring.arrays import I32
from sparring.backend.codec import Codec, Fixed
from sparring.backend.messages import check_messages
from sparring.backend.renderer import Parsed, RenderedMessage
from sparring.backend.template import Part, Template
from sparring.errors import SettingError

_USER = {"role": "user", "content": "u"}
_ASSISTANT = {"role": "assistant", "content": "a"}
_THOUGHT = ("<think>", "</think>")


class ChatRenderer:
    """A `Renderer` from a tokenizer and its chat template. Raises `SettingError` for a template that cannot be stable."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._codec = Codec(tokenizer)
        self._template = Template(tokenizer)
        self._thinks = _THOUGHT[1] in self._template.source
        self._closing = self._closing_text()
        self._check_stable()
        end = self._codec.first_special(self._closing)
        assert end is not None, "the closing text ends in a special token"
        eos = tokenizer.eos_token_id
        also = [eos] if isinstance(eos, int) else []
        self._stop_ids = tuple(dict.fromkeys([self._codec.specials[end[0]].id, *also]))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The special token that the template puts behind the assistant's turns, and the tokenizer's end of sequence."""
        return self._stop_ids

    @property
    def fingerprint(self) -> str:
        """sha256 over the template and the tokenizer's definition."""
        return sha256(f"{self._template.source}\0{self._codec.definition}".encode()).hexdigest()

    def start(self, messages: Sequence[RenderedMessage]) -> I32:
        """The template's rendering of the messages, up to where the assistant speaks, i32[T]. What the contents spell stays
        text: no content can forge a special token. Raises `SettingError` for messages that the template refuses."""
        if not messages:
            raise SettingError("a context of no messages: start with at least one")
        check_messages(messages)
        return self._codec.encode(self._template.parts(messages))

    def prompt(self, messages: Sequence[RenderedMessage]) -> I32:
        """The same as `start`."""
        return self.start(messages)

    def extend(self, messages: Sequence[RenderedMessage], previous: I32) -> I32:
        """What closes the turn `previous`, if it did not close itself, then the messages, up to where the assistant speaks."""
        if not messages:
            raise SettingError("a turn after no message: extend with at least one")
        check_messages(messages)
        parts = self._after_turn(messages)
        closed = len(previous) > 0 and int(previous[-1]) in self._stop_ids
        if closed:
            parts[0] = Fixed(parts[0].text.removeprefix(self._closing))
        return self._codec.encode(parts)

    def parse(self, tokens: I32) -> Parsed:
        """The reply in a sampled turn; what stands before the template's closing thinking tag is its reasoning."""
        text = self.text(tokens)
        if not self._thinks or _THOUGHT[1] not in text:
            return Parsed(text=text)
        reasoning, _, rest = text.partition(_THOUGHT[1])
        return Parsed(text=rest.lstrip("\n"), reasoning=reasoning.strip().removeprefix(_THOUGHT[0]).strip("\n"))

    def text(self, tokens: Sequence[int] | I32) -> str:
        """The tokens as text, special tokens left out."""
        return self._codec.decode(tokens)

    def _after_turn(self, messages: Sequence[RenderedMessage]) -> list[Part]:
        """The template's text behind an assistant's turn that these messages follow."""
        return self._template.parts([_USER, _ASSISTANT, *messages])[4:]

    def _closing_text(self) -> str:
        """What the template puts behind an assistant's turn, up to and including its first special token."""
        behind = self._after_turn([_USER])[0].text
        special = self._codec.first_special(behind)
        if special is None:
            raise SettingError(f"the chat template ends the assistant's turns with {behind!r}: a special token is needed there")
        return behind[: special.end()]

    def _check_stable(self) -> None:
        """A longer conversation must begin with the rendering of every shorter one."""
        system = {"role": "system", "content": "s"}
        for opening in ([_USER], [system, _USER]):
            try:
                shorter = self._template.parts(opening)
            except SettingError:
                if len(opening) == 1:
                    raise
                continue  # a template without a system role: such messages are refused when they come
            conversation = opening
            for _ in range(2):
                conversation = [*conversation, _ASSISTANT, _USER]
                longer = self._template.parts(conversation)
                if longer[: len(shorter)] != shorter:
                    pairs = zip(longer, shorter, strict=False)
                    now, then = next((a.text, b.text) for a, b in pairs if a != b)
                    raise SettingError(
                        f"the chat template renders earlier turns anew when the conversation goes on ({then!r} becomes {now!r}): "
                        f"use a template that keeps them"
                    )
                shorter = longer
