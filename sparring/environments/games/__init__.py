"""Games with short prompts, for self-play and for studies whose answer is known. Kuhn poker is `examples/kuhn.py`.

Moves are picked from a list. Who still says something else after one more try forfeits, which is a loss (-1, the other +1), and
a draw where both do at the same time. The metric `illegal` counts every such reply.
"""

from sparring.environments.games.connect_four import connect_four
from sparring.environments.games.describe import Word, describe
from sparring.environments.games.nim import Heaps, nim
from sparring.environments.games.simultaneous import matching_pennies, rock_paper_scissors
from sparring.environments.games.tic_tac_toe import tic_tac_toe

__all__ = [
    "Heaps",
    "Word",
    "connect_four",
    "describe",
    "matching_pennies",
    "nim",
    "rock_paper_scissors",
    "tic_tac_toe",
]
