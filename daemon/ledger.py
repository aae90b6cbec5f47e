"""How often each rule was right: what it claimed, what was confirmed, what was refuted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from daemon.model import Judgement, Word
from daemon.rules import RULES, RuleState

KEPT = 4000
Z = 1.959964
"""Of a 95 % interval."""
OPERATOR = "operator"
"""How the `by` of a person's word begins."""


@dataclass(slots=True)
class Tally:
    fired: int = 0
    confirmed: int = 0
    refuted: int = 0

    def precision(self) -> float:
        """Share of the judged claims that were right; NaN before any was judged."""
        judged = self.confirmed + self.refuted
        return self.confirmed / judged if judged else math.nan

    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the precision; (0, 1) before any claim was judged.

        Source: Wilson (1927); it holds its level at the small numbers that are judged here.

        >>> [round(v, 3) for v in Tally(40, 35, 0).interval()]
        [0.901, 1.0]
        """
        n = self.confirmed + self.refuted
        if not n:
            return 0.0, 1.0
        share, z2 = self.confirmed / n, Z * Z
        centre = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(slots=True)
class Case:
    """What is known of one incident's rules. word : confirmed or refuted, "" = nobody has said."""

    rules: tuple[str, ...]
    word: str = ""
    by: str = ""


@dataclass(slots=True)
class Ledger:
    """tallies : rule -> counts. cases : incident -> its rules and the word on it, the last KEPT of them."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    cases: dict[str, Case] = field(default_factory=dict)

    def take(self, said: Judgement) -> bool:
        """Count one word; whether it changed anything. Taken twice it counts once."""
        case = self.cases.get(said.incident)
        if said.word is Word.FIRED:
            if case is not None:
                return False
            self.cases[said.incident] = Case(said.rules)
            for rule in said.rules:
                self._tally(rule).fired += 1
            if len(self.cases) > KEPT:
                del self.cases[next(iter(self.cases))]
            return True
        if case is None or case.word == said.word.value:
            return False
        if case.by.startswith(OPERATOR) and not said.by.startswith(OPERATOR):
            return False
        for rule in case.rules:
            tally = self._tally(rule)
            if case.word:
                setattr(tally, case.word, getattr(tally, case.word) - 1)
            setattr(tally, said.word.value, getattr(tally, said.word.value) + 1)
        case.word, case.by = said.word.value, said.by
        return True

    def _tally(self, rule: str) -> Tally:
        return self.tallies.setdefault(rule, Tally())

    def state_of(self, rule: str, told: Mapping[str, RuleState]) -> RuleState:
        """What becomes of a rule's claims now: the operator's word, else its own, else promotion by its record.

        A rule that nobody entered in the book is on: it belongs to a detector that was plugged in.
        """
        if rule in told:
            return told[rule]
        known = RULES.get(rule)
        if known is None or known.state is not RuleState.SHADOW:
            return known.state if known else RuleState.ON
        return RuleState.ON if self.is_promoted(rule) else RuleState.SHADOW

    def is_promoted(self, rule: str) -> bool:
        """Whether a shadow rule has earned it: the lower bound of its precision reaches what the book asks."""
        tally, known = self.tallies.get(rule), RULES.get(rule)
        return bool(tally and known and tally.interval()[0] >= known.precision)
