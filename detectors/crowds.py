"""Replicas at which requests pile up, as the gateway sees it and their own page confirms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.stats import Groups, groups, peers, rows
from detectors.usual import Usual

Flags = NDArray[np.bool_]
SIGNALS = ("lb_sessions", "lb_done_per_s", "generation_tokens_s", "prompt_tokens_s", "running", "waiting")
SESSIONS, DONE, TOKENS, PROMPTS, RUNNING, WAITING = range(len(SIGNALS))
LEAST = 8.0
TIMES = 2.5
"""A request stays so many times longer than at peers: at an equal rate the replica has as many more sessions open
(Little's law). Judgement: below it the statistics of minutes are surer, see docs/en/reference/stragglers.md."""
NO_MORE = 1.5
"""Who does more work than this against its peers is given more, not slow. Judgement."""
ALONE = 0.2
"""More of a group than this at once, and more than one, have a cause in common: nobody is blamed. Judgement."""
ELSEWHERE = 0.5
"""With less than this share of its sessions on the replica's own page, the rest are on the way."""


@dataclass(slots=True)
class Crowds:
    """Many sessions open against its peers and its own past, while it completes no more and makes no more tokens.

    Uneven routing gives a replica more sessions *and* more completions; long answers give it more sessions *and* more
    tokens; long prompts keep it busy with prompts. None of them is claimed. usual : sessions of each engine. chance : engine -> chance of all looks in a row that
    showed a crowd, were its sessions Poisson of the usual mean. These engines teach nothing meanwhile.
    Source: docs/en/reference/serving.md.
    """

    usual: Usual = field(default_factory=Usual)
    chance: dict[str, float] = field(default_factory=dict)

    def update(self, engine: Frame, fails: Flags, elapsed_s: float) -> list[Finding]:
        """fails : (engine,) its page did not answer the last time, so that its figures are old. elapsed_s : since the
        last look."""
        table = engine.columns(SIGNALS)
        sessions = table[:, SESSIONS]
        teaches = np.array([name not in self.chance for name in engine.entities], dtype=bool)
        usual = self.usual.before(engine.entities, sessions, elapsed_s, teaches)
        many = (sessions >= LEAST) & (sessions >= TIMES * usual)
        if not many.any():
            self.chance = {}
            return []
        table[fails, TOKENS:] = NAN
        blank = ("",) * len(engine.entities)
        peer, version = engine.facts.get("peer", blank), engine.facts.get("version", blank)
        # A version that is slow as a whole is no crowd: it is taken back, not drained.
        where = groups(tuple(f"{p}|{v}" if p else "" for p, v in zip(peer, version, strict=True)))
        around = peers(sessions, where, least=1).median
        # In a rush all have several times what they had: only who has several times what the others have stands out.
        many &= ~(sessions < TIMES * around)
        many &= _lags(table[:, DONE], sessions, where)
        # A queue that builds and melts leaves those that run as fast as ever; where most are on the way nothing runs.
        held = table[:, RUNNING] + np.nan_to_num(table[:, WAITING])
        worked_on = np.where(held < ELSEWHERE * sessions, sessions, table[:, RUNNING])
        many &= fails | _lags(table[:, TOKENS], worked_on, where)
        many &= ~(table[:, PROMPTS] > NO_MORE * peers(table[:, PROMPTS], where, least=1).median)
        many &= ~_shared(many, where)
        before, self.chance = self.chance, {}
        found = []
        for i in rows(many):
            name = engine.entities[i]
            # Means of few looks are off by about one; a reading that was looked at before says nothing new.
            at_once = _tail(float(sessions[i]), max(float(usual[i]), float(around[i])) + 1.0)
            is_new = not engine.age_s[i] >= elapsed_s
            self.chance[name] = before.get(name, 1.0) * (at_once if is_new or name not in before else 1.0)
            found.append(self._claim(engine, table, i, float(around[i]), bool(fails[i])))
        return found

    def _claim(self, engine: Frame, table: Array, i: int, peer: float, fails: bool) -> Finding:
        name, sessions = engine.entities[i], float(table[i, SESSIONS])
        held = float(table[i, RUNNING] + np.nan_to_num(table[i, WAITING]))
        if fails:
            text = "network or host: its own page does not get through either"
        elif held < ELSEWHERE * sessions:
            text = f"network: its page shows {held:.0f} requests where the gateway waits for {sessions:.0f}"
        else:
            text = f"engine: it works on {held:.0f} requests and makes no more tokens than peers with fewer"
        return say(
            engine.at,
            "serving.requests_stuck",
            Entity("engine", name),
            "requests_stuck",
            0.8,
            Severity.WARNING,
            Evidence("sessions_at_gateway", sessions, "", peer),
            Evidence("completed_at_gateway", float(table[i, DONE]), "1/s"),
            Evidence("tokens", float(table[i, TOKENS]), "1/s"),
            Evidence("running_on_its_page", held, ""),
            text=text,
            rejected=(
                "uneven routing: it completes no more than its peers",
                "a sick exporter: the gateway's own count of sessions says it"
                if fails
                else "long answers or prompts: it makes and reads no more tokens than its peers",
            ),
            p=self.chance[name],
        )


def _shared(many: Flags, where: Groups) -> Flags:
    """(engine,) among so many of its group at once that they have a cause in common."""
    shared = np.zeros(many.size, dtype=bool)
    for member in where.member:
        group = member[member >= 0]
        hit = group[many[group]]
        shared[hit] = hit.size > max(1.0, ALONE * group.size)
    return shared


def _lags(rate: Array, among: Array, where: Groups) -> Flags:
    """(engine,) does no more than its peers, and far less for each of those it is `among` than they. False where it is not known."""
    each = rate / np.maximum(among, 1.0)
    no_more: Flags = rate <= NO_MORE * peers(rate, where, least=1).median
    return no_more & (TIMES * each <= peers(each, where, least=1).median)


def _tail(count: float, mean: float) -> float:
    """Chance of so many or more, Poisson, from above: the first term and a geometric series for the rest.

    >>> round(_tail(10, 3.67), 3)
    0.005
    """
    if count <= mean:
        return 1.0
    term = math.exp(count * math.log(mean) - mean - math.lgamma(count + 1.0))
    return min(1.0, term * (count + 1.0) / (count + 1.0 - mean))
