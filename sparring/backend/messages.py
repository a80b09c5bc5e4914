"""What every renderer asks of a message before it renders it."""

from collections.abc import Sequence

from sparring.backend.renderer import RenderedMessage
from sparring.errors import SettingError


def check_messages(messages: Sequence[RenderedMessage]) -> None:
    """Raise `SettingError` for a message that is not exactly a role and a content, or whose content is no text."""
    for message in messages:
        if set(message) != {"role", "content"}:
            raise SettingError(
                f"a message with the keys {sorted(message)!r}: exactly 'role' and 'content' are rendered"
            )
        content = message["content"]
        if not isinstance(content, str):
            raise SettingError(f"content {content!r}: must be text")
        try:
            content.encode("utf-8")
        except UnicodeEncodeError as error:
            raise SettingError(f"content {content!r} has half a surrogate pair: it is no text; remove it") from error
