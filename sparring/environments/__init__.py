"""What is played: tasks, rules, rewards. Knows nothing of models, tokens or training."""

from sparring.environments.code_verifier import CodeVerifier, Example, Report
from sparring.environments.conversation import Conversation, Message, Place, Text, ToolSpec, Turn
from sparring.environments.environment import Environment, FunctionEnvironment, environment, gold_reply
from sparring.environments.function_tool import tool
from sparring.environments.outcome import Outcome, Rewards, Settled, settle
from sparring.environments.problems import CodeTask, MathTask, code_tasks, human_eval, math_tasks
from sparring.environments.python_tool import python_session, python_tool
from sparring.environments.reply import Reply, ToolCall
from sparring.environments.running import EpisodeRandom, Request, Running, effect, gather, reveal
from sparring.environments.sandbox import Call, Sandbox
from sparring.environments.sandboxing.result import Ending, Limits, SandboxResult
from sparring.environments.score import Score
from sparring.environments.seat import Seat
from sparring.environments.tasks import Generated, Tasks, generated, jsonl, size, split, task_digest
from sparring.environments.tools import Tool
from sparring.environments.verifiers import MathVerifier

__all__ = [
    "Call",
    "CodeTask",
    "MathTask",
    "CodeVerifier",
    "Conversation",
    "Ending",
    "Environment",
    "EpisodeRandom",
    "Example",
    "FunctionEnvironment",
    "Generated",
    "Limits",
    "MathVerifier",
    "Message",
    "Outcome",
    "Place",
    "Reply",
    "Report",
    "Request",
    "Rewards",
    "Running",
    "Sandbox",
    "SandboxResult",
    "Score",
    "Seat",
    "Settled",
    "Tasks",
    "Text",
    "Tool",
    "ToolCall",
    "ToolSpec",
    "Turn",
    "code_tasks",
    "effect",
    "environment",
    "gather",
    "generated",
    "gold_reply",
    "human_eval",
    "math_tasks",
    "jsonl",
    "python_session",
    "python_tool",
    "reveal",
    "settle",
    "size",
    "split",
    "task_digest",
    "tool",
]
