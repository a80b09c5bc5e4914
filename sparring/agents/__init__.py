"""Who plays: policies, scripted players, people; and line-ups of them."""

from sparring.agents.action import Action, Sample
from sparring.agents.agent import Agent, Chooser
from sparring.agents.endpoint import EndpointAgent, Secret
from sparring.agents.lineup import External, Frozen, Human, League, Lineup, Player, Scripted, name_of
from sparring.agents.policy import PolicyAgent, Sampling, rendered
from sparring.agents.scripted import HumanAgent, ScriptedAgent

__all__ = [
    "Action",
    "Agent",
    "Chooser",
    "EndpointAgent",
    "External",
    "Frozen",
    "Human",
    "HumanAgent",
    "League",
    "Lineup",
    "Player",
    "PolicyAgent",
    "Sample",
    "Sampling",
    "Scripted",
    "ScriptedAgent",
    "Secret",
    "name_of",
    "rendered",
]
