"""What is played: tasks, rules, rewards. Knows nothing of models, tokens or training."""

from sparring.environments.conversation import Conversation, Message, Place, Text, Turn
from sparring.environments.environment import Environment, FunctionEnvironment, environment
from sparring.environments.outcome import Outcome, Rewards, Settled, settle
from sparring.environments.reply import Reply, ToolCall
from sparring.environments.running import EpisodeRandom, Request, Running, effect, gather, reveal
from sparring.environments.score import Score
from sparring.environments.seat import Seat
from sparring.environments.tasks import Generated, Tasks, generated, jsonl, size, split, task_digest
from sparring.environments.verifiers import MathVerifier

__all__ = [
    "Conversation",
    "Environment",
    "EpisodeRandom",
    "FunctionEnvironment",
    "Generated",
    "MathVerifier",
    "Message",
    "Outcome",
    "Place",
    "Reply",
    "Request",
    "Rewards",
    "Running",
    "Score",
    "Seat",
    "Settled",
    "Tasks",
    "Text",
    "ToolCall",
    "Turn",
    "effect",
    "environment",
    "gather",
    "generated",
    "jsonl",
    "reveal",
    "settle",
    "size",
    "split",
    "task_digest",
]
