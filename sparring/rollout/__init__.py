"""How play becomes data: episodes, groups, admission by staleness, the journal."""

from sparring.rollout.budget import Bound, StalenessBudget, Waiting
from sparring.rollout.buffer import RolloutBuffer
from sparring.rollout.check import Checked, check_environment
from sparring.rollout.coordinator import Coordinator
from sparring.rollout.curriculum import Curriculum
from sparring.rollout.faults import Faults
from sparring.rollout.journal import Journal, JournalStatistics, MemorySegments, SegmentStore, SqliteSegments
from sparring.rollout.ledger import Ledger
from sparring.rollout.phases import Phase
from sparring.rollout.play import Finished, play
from sparring.rollout.schedule import Choice, Schedule, Source
from sparring.rollout.slots import Slots
from sparring.rollout.stored import StoredEpisode, read_episodes
from sparring.rollout.trajectory import Batch, Context, Trajectory, Unit, trajectories

__all__ = [
    "Batch",
    "Bound",
    "Checked",
    "Choice",
    "Context",
    "Coordinator",
    "Curriculum",
    "Faults",
    "Finished",
    "Journal",
    "JournalStatistics",
    "Ledger",
    "MemorySegments",
    "Phase",
    "RolloutBuffer",
    "Schedule",
    "SegmentStore",
    "Slots",
    "Source",
    "SqliteSegments",
    "StalenessBudget",
    "StoredEpisode",
    "Trajectory",
    "Unit",
    "Waiting",
    "check_environment",
    "play",
    "read_episodes",
    "trajectories",
]
