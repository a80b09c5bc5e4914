"""A game of two who want the same: one describes a word without saying it, the other guesses it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparring.environments.environment import environment
from sparring.environments.outcome import Outcome
from sparring.environments.running import reveal
from sparring.environments.seat import Seat


@dataclass(frozen=True, slots=True)
class Word:
    """The word, and words that the description must not hold either."""

    word: str
    taboo: tuple[str, ...] = ()


@environment(hidden={"guesser": ("word", "taboo")}, headline="guessed")
async def describe(task: Word, describer: Seat, guesser: Seat, *, guesses: int = 2) -> Outcome:
    """Both get 1 where the guesser says the word, else 0. A description with a forbidden word (a whole word, in any case) ends
    the game: the describer gets -1, and the guesser, who was not asked, nothing. Nobody forfeits: whatever is said describes,
    or guesses."""
    forbidden = (task.word, *task.taboo)
    told = await describer.ask(
        f"Describe the word '{task.word}' in one sentence without saying: {', '.join(forbidden)}."
    )
    if any(re.search(rf"\b{re.escape(word)}\b", told.text, re.IGNORECASE) for word in forbidden):
        return Outcome({describer: -1.0}, metrics={"guessed": 0.0, "forbidden": 1.0})
    question = f"Which word is described?\n{told.text}\nReply with the word alone."
    for _ in range(guesses):
        said = await guesser.ask(question)
        if reveal(said.text.strip().rstrip(".").casefold() == task.word.casefold()):
            return Outcome({describer: 1.0, guesser: 1.0}, metrics={"guessed": 1.0, "forbidden": 0.0})
        question = "That is not it. Guess again."
    return Outcome({describer: 0.0, guesser: 0.0}, metrics={"guessed": 0.0, "forbidden": 0.0})
