"""What a seat said."""

from dataclasses import dataclass, field
from typing import Literal

from sparring.errors import SettingError

StopReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that a reply asked for: the tool's name and its arguments as JSON text.

    What was no call, though it stood where calls stand, has no name, and all of its text as arguments.
    """

    name: str
    arguments: str

    async def run(self) -> str:
        """The tool's answer. Only the calls of a reply that a seat gave know their tools."""
        raise SettingError(f"{self!r}: run() works on the calls of a seat's reply, after Seat.tools(...)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One reply. `str(reply)` is its text alone and `repr(reply)` leaves the reasoning out, so that an f-string, also one of a
    list of replies, cannot leak the reasoning to another seat.

    `stop` says why it ended: by itself ("stop"), cut at the token limit ("length"), or to call tools ("tool_calls").
    """

    text: str
    reasoning: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    stop: StopReason = "stop"

    def __str__(self) -> str:
        return self.text
