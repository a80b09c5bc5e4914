"""The renderer of a model that needs no download: for whoever wants its tokens and not its weights. Loads torch only then."""

from importlib import import_module
from pathlib import Path
from typing import cast

from sparring.backend.renderer import Renderer

_BUNDLED = "smollm2-135m-instruct"
"""`sparring.backend.models.SMOLLM2`, which comes as a package."""


def renderer_at_hand(model: str) -> Renderer | None:
    """The renderer of a local folder or of the demo's model.

    None for a model that may have to be fetched, and without the torch extra. Raises `SettingError` for a folder without a
    usable tokenizer.
    """
    if model != _BUNDLED and not Path(model).expanduser().is_dir():
        return None
    try:
        models, chat = import_module("sparring.backend.models"), import_module("sparring.backend.chat")
        tokenizers = import_module("transformers").AutoTokenizer
    except ModuleNotFoundError:
        return None
    return cast(Renderer, chat.ChatRenderer(tokenizers.from_pretrained(models.resolve_model(model))))
