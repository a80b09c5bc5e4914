"""Every error that sparring raises on purpose, as one tree.

A user's bad input is a `ValueError` subclass whose message names the value and the remedy; everything else says which
part of a run cannot go on. Programming mistakes inside sparring are plain `assert`s.
"""


class SparringError(Exception):
    """The root: catching it catches what sparring raises on purpose and nothing else."""


class SettingError(SparringError, ValueError):
    """A setting, field or argument that cannot be used; the message names it and what to write instead."""


class UnsupportedError(SparringError, ValueError):
    """Something that the chosen backend, agent or version of sparring cannot do; said at start, never ignored."""


class RewardError(SparringError, ValueError):
    """An environment returned something that is not a reward for its seats."""


class Unjudged(SparringError):
    """A `Score` that holds an error was used as a number; uncaught in an environment, its episode is masked and counted."""


class EffectError(SparringError):
    """An effect (tool, verifier, service) failed or ran out of time; raised again, identically, when it is replayed."""


class ContextFull(SparringError):
    """A seat was asked for a reply that cannot fit into its policy's context; nothing was cut."""


class ReplayDiverged(SparringError):
    """A replayed episode or update asked for, or computed, something other than what the journal holds."""


class RunLocked(SparringError):
    """Another process holds the run folder."""


class RunChanged(SparringError):
    """A resumed run's settings, environment, renderer or tasks differ from those that it was started with."""


class JournalError(SparringError):
    """The journal could not be written or read: a full disk, a damaged file, a newer schema."""


class BackendError(SparringError):
    """An operation on a model failed while it was computed; the message names the operation."""


class NonFinite(BackendError):
    """A loss or gradient became NaN or infinite; the message names the step and the units."""


class CheckFailed(SparringError):
    """A conformance check saw something that its contract forbids; the message says what."""


class TooManyFaults(SparringError):
    """More episodes failed than the run's ceiling allows; the message shows the first failure."""


class Collapsed(SparringError):
    """A figure of the run's steps left the bounds that a gauge gives it; the message names it and its last values."""


class Stalled(SparringError):
    """Nothing moved for the run's stall deadline; the message says what each part waits for."""
