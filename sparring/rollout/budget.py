"""When a group may be admitted and which units a step may take, so that no token is trained on when it is too old.

For each trained policy: `s` versions are committed, `i <= s` is the oldest version with which any of its samplers may
still start a token, `k(d)` is the bound at step `d` (`max_staleness`; it may change, `K` is its largest value), `B` the units
of a step. A *unit* is one policy's share of one group; *outstanding* units are admitted and neither trained nor dropped. Step
`s` turns version `s` into `s + 1`. `due(i)` is the last step `d` with `d' - k(d') <= i` for every step `d'` up to it: `i + k`
where `k` never changes.

1. A group is admitted, for all the policies that train in it or for none, while `s*B + outstanding < (due(i) + 1)*B`
   holds for each; its units are due at `due(i)`: that is the last step that may train on them. With `most_outstanding`, B or
   more, it is also kept waiting while `(s - i)*B + outstanding` are as many: what came in between a step and its version would
   play with the version before.
2. Samplers never go back to an older version (kept by the samplers; `install` refuses to).
3. Step `s` may take `B` finished units if afterwards, for every `j = 0..K`, at most `j*B` outstanding units are due at
   or before `s + j`. Otherwise it waits, for named units.
4. A unit leaves by a step or by a drop, never for its age.
6. Admission ends when `s*B + outstanding = steps*B`; a drop opens it again for a replacement. In phases, `steps` is here
   those that the policy is to have made when the present phase ends: it ends with nothing outstanding, and a paused policy,
   which has made them, admits and reserves nothing.

(Rule 5 is about reuse, which takes no part in this.)

*Why nothing is stale.* Let `O(d)` be the outstanding units due at or before `d`. As `i` never falls, and `due` with it, units
are admitted in the order of their due steps, so when the last unit due by `d` came in, every outstanding unit was due by `d`,
and rule 1 says `O(d) <= (d + 1 - s)*B`. Drops only lower `O(d)`. A step raises `s` by one, and rule 3 with `j = d - s` says
exactly that the bound still holds afterwards (`j <= K`, as `i <= s` and `due(s) <= s + K`). At `d = s - 1` it reads
`O(s - 1) <= 0`: nothing outstanding is overdue. A unit admitted at `i` has no token older than `i` (rule 2) and is trained at
a step `s <= due(i)`, so its age is at most `s - i <= k(s)`, by what `due` means.

*When k changes.* All this holds for any `k(d) >= 0`. Where it falls, what was admitted before was due early enough. Where it
rises, by more than one a step too, `due` follows as far as the steps on the way allow, so that units stay in order.

*Why it never locks.* Let all units be finished and all versions installed. A policy with `B` outstanding units can
step: taking the earliest due first takes `min(B, O(d))` of those due by `d`, and `O(s + j) - j*B <= B` is all that rule
3 asks for. A policy with fewer is open to admission, as `s*B + outstanding < (s + 1)*B` and `due(s) >= s`, and as with
`i = s` fewer than `B` are fewer than `most_outstanding`. So whatever the policies of a group, one can step or all can admit.

*Pinned* (for bit-equal runs): the unit at position `n`, the n-th admitted of its policy, trains exactly at step `n // B`,
plays with the largest `d - k(d)` of the steps `d` up to that one (or with version 0), and is admitted once `i` is there. A
drop leaves a hole, so a batch may be smaller than `B`, even empty.

This is a state machine without I/O or clock. Each call costs at most O((K + 1)*B). Misuse is an `AssertionError`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sparring.errors import RunChanged
from sparring.rollout.books import Book, BudgetStatistics, PinnedBook, ReadyBook, Waiting
from sparring.rollout.bound import Bound
from sparring.rollout.phases import Phase, stages

__all__ = ["Bound", "BudgetStatistics", "StalenessBudget", "Waiting"]


class StalenessBudget:
    """The rule of this module for every trained policy of a run. Units are named by their group; policies by their name."""

    def __init__(self, bounds: Mapping[str, Bound], *, pinned: bool = False, phases: Sequence[Phase] = ()) -> None:
        books = PinnedBook if pinned else ReadyBook
        self._books: dict[str, Book] = {policy: books(policy, bound) for policy, bound in bounds.items()}
        self._pinned = pinned
        self._stages = stages(phases, {policy: bound.steps for policy, bound in bounds.items()})
        self._stage = 0
        self._enter()

    def may_admit(self, policies: Collection[str]) -> str | None:
        """None where a group may be admitted for all of `policies` at once, else a sentence that names what it waits for.

        Policies whose admission has ended (`closed`) are frozen and must be left out.
        """
        assert policies, "a group that trains nobody is not admitted"
        for policy in policies:
            book = self._books[policy]
            assert not book.closed, f"{policy}: admission has ended"
            blocked = book.blocked()
            if blocked is not None:
                return blocked
        return None

    def admit(self, unit: str, policies: Collection[str]) -> Mapping[str, int]:
        """Admit one unit for each policy; returns the step at which each is due."""
        blocked = self.may_admit(policies)
        assert blocked is None, f"{unit} is not admissible: {blocked}"
        for policy in policies:
            assert unit not in self._books[policy].units, f"{policy}/{unit} is already outstanding"
        return {policy: self._books[policy].admit(unit) for policy in policies}

    def finish(self, policy: str, unit: str) -> None:
        """The unit is complete and may be taken by a step."""
        self._books[policy].finish(unit)

    def drop(self, policy: str, unit: str) -> None:
        """The unit leaves untrained, in flight or finished; a unit of a planned batch cannot."""
        self._books[policy].drop(unit)

    def candidate(self, policy: str) -> tuple[str, ...] | Waiting:
        """The batch that the next step may take now, in order of admission, or what it waits for.

        Finished units are chosen earliest due first, then earliest finished: if any choice satisfies rule 3, this one does.
        """
        return self._books[policy].candidate()

    def take(self, policy: str, units: Sequence[str]) -> None:
        """Plan a batch (in order of admission). Its units stay outstanding until `step`."""
        self._books[policy].take(units)

    def step(self, policy: str) -> int:
        """The planned batch is committed; returns the new version."""
        version = self._books[policy].step()
        self._enter()
        return version

    def install(self, policy: str, version: int) -> None:
        """Every sampler of the policy now starts tokens with `version` or a later one."""
        book = self._books[policy]
        assert book.installed <= version <= book.version, (policy, book.installed, version, book.version)
        book.installed = version

    def version(self, policy: str) -> int:
        """Versions committed, which is also the number of the next step."""
        return self._books[policy].version

    def installed(self, policy: str) -> int:
        """The oldest version with which a token may still start."""
        return self._books[policy].installed

    def outstanding(self, policy: str) -> int:
        """Units admitted and neither trained nor dropped."""
        return len(self._books[policy].units)

    def due(self, policy: str, unit: str) -> int:
        """The last step that may train on an outstanding unit."""
        return self._books[policy].units[unit].due

    def meant(self, policy: str) -> int:
        """The step that a unit admitted now would train, if all before it trained and none was dropped."""
        book = self._books[policy]
        return book.place // book.bound.units_per_step

    def limit(self, policy: str) -> int:
        """The steps that the policy will have made when the present phase ends; without phases all of them."""
        return self._books[policy].limit

    def paused(self, policy: str) -> bool:
        """Whether it makes no step in the present phase."""
        return policy not in self._stages[self._stage].moving

    def phase_left(self) -> str | None:
        """What the next phase waits for, as a sentence; None in the last one, and where there are none."""
        if self._stage + 1 == len(self._stages):
            return None
        until = self._stages[self._stage].until
        left = [f"step {until[name] - 1} of {name}" for name, book in self._books.items() if book.version < until[name]]
        return f"the next phase waits for {' and '.join(left)}"

    def closed(self, policy: str) -> bool:
        """Whether admission has ended, because the outstanding units suffice for all the steps left (rule 6): of the phase, if
        there are phases."""
        return self._books[policy].closed

    def done(self, policy: str) -> bool:
        """Whether all steps are committed."""
        return self._books[policy].done

    def overdue(self) -> tuple[tuple[str, str], ...]:
        """(policy, unit) of every outstanding unit that no step may train on any more: by the proof above, none."""
        return tuple((policy, unit) for policy, book in self._books.items() for unit in book.overdue())

    def statistics(self) -> Mapping[str, BudgetStatistics]:
        """How each policy stands."""
        return {policy: book.statistics() for policy, book in self._books.items()}

    def state(self) -> dict[str, Any]:
        """Everything as plain JSON data."""
        books = {policy: book.state() for policy, book in self._books.items()}
        return {"schema": 1, "pinned": self._pinned, "policies": books}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Become what `state` described. Raises `RunChanged` for other policies, bounds or mode; `steps` may have grown."""
        if data["pinned"] != self._pinned or set(data["policies"]) != set(self._books):
            held = f"pinned={data['pinned']!r} and policies {sorted(data['policies'])!r}"
            now = f"pinned={self._pinned!r} and {sorted(self._books)!r}"
            raise RunChanged(f"the run was started with {held}, now it has {now}: use the same, or a new run name")
        restored = {policy: type(book)(policy, book.bound) for policy, book in self._books.items()}
        for policy, book in restored.items():
            book.restore(data["policies"][policy])
        self._books, self._stage = restored, 0
        self._enter()

    def _enter(self) -> None:
        """Go on to the stage that the versions made are in, and let each policy be admitted for as long as it lasts."""
        last = len(self._stages) - 1
        while self._stage < last and all(
            self._books[name].version >= until for name, until in self._stages[self._stage].until.items()
        ):
            self._stage += 1
        for name, until in self._stages[self._stage].until.items():
            self._books[name].limit = until
