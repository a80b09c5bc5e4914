"""The extra `inspect`: the package behind the bridge, or what to install."""

# inspect-ai is not where types are checked: what comes from it is Any.
# pyright: reportMissingImports=false

from sparring.errors import UnsupportedError

try:
    from inspect_ai import Task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageTool,
        ChatMessageUser,
        ContentReasoning,
        GenerateConfig,
        get_model,
    )
    from inspect_ai.scorer import Score, mean, scorer, stderr
    from inspect_ai.solver import solver
    from inspect_ai.tool import ToolCall, ToolInfo, ToolParams
except ModuleNotFoundError as missing:
    raise UnsupportedError(f"tasks of inspect-ai need {missing.name!r}: pip install 'sparring[inspect]'") from missing

__all__ = [
    "ChatMessageAssistant",
    "ChatMessageSystem",
    "ChatMessageTool",
    "ChatMessageUser",
    "ContentReasoning",
    "GenerateConfig",
    "MemoryDataset",
    "Sample",
    "Score",
    "Task",
    "ToolCall",
    "ToolInfo",
    "ToolParams",
    "get_model",
    "mean",
    "scorer",
    "solver",
    "stderr",
]
