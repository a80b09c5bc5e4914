"""The renderer of a model that needs no download: for whoever wants its tokens and not its weights."""

from pathlib import Path

from transformers import AutoTokenizer

from sparring.backend.chat import ChatRenderer
from sparring.backend.models import SMOLLM2, resolve_model


def renderer_at_hand(model: str) -> ChatRenderer | None:
    """The renderer of a local folder or of `SMOLLM2`; None for a model that may have to be fetched from the hub.

    Raises `SettingError` for a folder without a usable tokenizer.
    """
    if model != SMOLLM2 and not Path(model).expanduser().is_dir():
        return None
    return ChatRenderer(AutoTokenizer.from_pretrained(resolve_model(model)))
