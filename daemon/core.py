"""One tick: frames to a Decision. No I/O, no clock; whatever is fed in is all it knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from daemon import effects, lastresort, plan, regions, undo
from daemon import incident as incidents
from daemon import outlook as outlooks
from daemon.casefile import describe, facts
from daemon.codec import decode, to_plain
from daemon.coldstart import Starts, with_measured, with_starts
from daemon.energy import Meter
from daemon.fleet import Fleet
from daemon.gate import believed
from daemon.guard import Guarded, judge
from daemon.learning import by_state, rules_of, witness_of
from daemon.ledger import OPERATOR, Ledger
from daemon.model import (
    NAN,
    Decision,
    Detector,
    Effect,
    Entity,
    Finding,
    Forecast,
    Frames,
    Incident,
    Judgement,
    Outcome,
    Reason,
    Result,
    Severity,
    Step,
    Verb,
    Verdict,
    Word,
)
from daemon.patterns import PATTERNS
from daemon.policy import Policy
from daemon.posture import Day, is_failure, onset
from daemon.replica import WORK
from daemon.resize import Memory
from daemon.situation import Situation
from daemon.topology import Topology, picture
from daemon.wear import Wear

STANDING_GAP_S = 60.0
OUTLOOK_EVERY_S = 300.0
DEPARTURE = frozenset({"target_down", "engine_out", "engine_down"})
DEPARTURE_S = 300.0
"""How long a replica may take to drain and leave discovery after its pool was made smaller."""
WORDS = {"confirm": Word.CONFIRMED, "refute": Word.REFUTED}


@dataclass(frozen=True, slots=True)
class Command:
    """An operator's word.

    kind : "approve", "reject" (argument = step id), "pause" (argument = seconds), "resume", "confirm", "refute"
    (argument = incident id), "attest" (argument = "ITEM VALUE UNTIL", see daemon.checklist), "undo" (argument = what is
    taken back, see daemon.undo).
    """

    kind: str
    argument: str = ""
    by: str = ""
    at: float = NAN


@dataclass(frozen=True, slots=True)
class Journal:
    """Whether the journal can be written. While it cannot, nothing is changed."""

    is_healthy: bool


Input = Outcome | Forecast | Command | Journal | Judgement


@dataclass(slots=True)
class Standing:
    """A proposal that is made tick after tick: it keeps its id, and only a change of the answer is news."""

    id: str
    reason: Reason | None
    seen: float


@dataclass(slots=True)
class State:
    """Everything the core remembers; dumped and loaded whole.

    shadow : incidents of rules that are only watched. treated : incidents for which something was isolated, and seen
    to be. said : words on rules that the next Decision is to tell. day : what the live checklists measured.
    forecasts : of requests in flight, by pool; work_ahead : pool -> signal -> of tokens a second.
    meter : energy, GPU time and tokens of the last day. undone : what operators took back, see daemon.undo. view : over
    regions, see daemon.regions. resort : see daemon.lastresort. starts : how long replicas took to start.
    """

    book: incidents.Book = field(default_factory=incidents.Book)
    fleet: Fleet = field(default_factory=Fleet)
    memory: Memory = field(default_factory=Memory)
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    work_ahead: dict[str, dict[str, Forecast]] = field(default_factory=dict)
    wear: Wear = field(default_factory=Wear)
    in_flight: dict[str, Step] = field(default_factory=dict)
    standing: dict[str, Standing] = field(default_factory=dict)
    failed_at: dict[str, float] = field(default_factory=dict)
    approved: set[str] = field(default_factory=set)
    rejected: set[str] = field(default_factory=set)
    paused_until: float = -np.inf
    can_journal: bool = True
    serial: int = 0
    at: float = NAN
    shadow: incidents.Book = field(default_factory=lambda: incidents.Book(mark="x"))
    ledger: Ledger = field(default_factory=Ledger)
    treated: list[str] = field(default_factory=list)
    said: list[Judgement] = field(default_factory=list)
    day: Day = field(default_factory=Day)
    meter: Meter = field(default_factory=Meter)
    undone: dict[str, undo.Undone] = field(default_factory=dict)
    view: regions.View = field(default_factory=regions.View)
    resort: lastresort.Resort = field(default_factory=lastresort.Resort)
    watches: list[effects.Watch] = field(default_factory=list)
    starts: Starts = field(default_factory=Starts)


class Core:
    """The deciding part of the daemon. tick and absorb are the only ways in; state changes nowhere else.

    mark : what ids of steps begin with, see Record.mark.
    """

    def __init__(self, policy: Policy, detectors: Mapping[str, Detector], mark: str = "") -> None:
        self.policy = policy
        self._mark = mark
        self.detectors = {n: d for n, d in detectors.items() if n not in policy.disabled}
        self.state = State()
        self.topology = Topology()
        self.outlook = outlooks.Outlook(NAN, NAN, {}, 0.0, NAN)
        self._revision = -1
        self._looked = (-1, NAN)
        self._measured: tuple[Policy, Policy] | None = None

    def tick(
        self,
        frames: Frames,
        asked: Collection[str] | None = None,
        passed: Callable[[str], None] = lambda stage: None,
    ) -> Decision:
        """Decide on one set of frames. Deterministic in (frames, inputs absorbed before).

        asked : names of the detectors that are asked, None = all. Between two ticks, when only events are new, those
        that count scrapes are left alone. passed : told of each stage as it ends, for whoever holds a watch.
        """
        state, at = self.state, frames.at
        state.at = at
        self._look(frames)
        if asked is None:
            state.day.watch(frames, self.topology)
            state.meter.watch(frames, state.fleet)
            if state.starts.watch(frames, state.fleet.scaled):
                self._measured = None
        frames = replace(outlooks.with_outlook(frames, self.outlook, self.policy), told=self.policy.told)
        frames = with_starts(frames, state.starts)
        policy = self._policy_as_measured()
        expired = state.fleet.expire(at)
        passed("look")
        chosen = [d for n, d in self.detectors.items() if asked is None or n in asked]
        claims = (f for d in chosen for f in d.update(frames))
        findings = tuple(f for f in claims if not self._is_leaving(f, at))
        said: list[Effect] = []
        if state.watches and asked is None:
            watches = state.watches
            state.watches, said, idle = effects.look(watches, frames, self.topology)
            state.memory.held.update(effects.held(said, watches, frames))
            findings = (*findings, *idle)
        if any(f.p == f.p for f in findings):
            findings = tuple(believed(findings, {frame.kind: len(frame.entities) for frame in frames}))
        findings, shadowed = by_state(findings, state.ledger, self.policy.rules)
        passed("detect")
        is_fresh = _freshness(frames)
        changes = incidents.update(state.book, at, findings, self.topology, is_fresh)
        watched = incidents.Changes()
        if shadowed or state.shadow.open or state.shadow.candidates:
            watched = incidents.update(state.shadow, at, shadowed, self.topology, is_fresh)
        for closed in changes.closed:
            if closed.cause.startswith(incidents.EXPLAINED):
                state.day.take_over(closed.id, closed.cause.removeprefix(incidents.EXPLAINED).split()[0])
        judged = self._learn(at, changes, watched)
        passed("incident")
        situation = Situation(
            at,
            frames,
            self.topology,
            tuple(state.book.open.values()),
            state.fleet,
            state.forecasts,
            self.outlook,
            policy,
        )
        steps = plan.propose(situation, state.memory)
        steps += regions.propose(frames, state.fleet, self.policy, state.view)
        steps += lastresort.propose(frames, situation.incidents, state.fleet, policy, state.resort)
        if state.undone:
            state.undone = {k: u for k, u in state.undone.items() if at < u.until}
            owner = f"tidewarden/{self.policy.cluster}"
            steps = undo.applied(steps, state.undone, at, state.fleet, self.topology, owner)
        passed("plan")
        verdicts = self._judge(frames, [*steps, *self._notices(changes)])
        passed("guard")
        return Decision(
            at=at,
            opened=changes.opened,
            changed=changes.changed,
            closed=changes.closed,
            verdicts=verdicts,
            findings=findings,
            sentence=sentence(changes, verdicts, expired),
            shadowed=(*watched.opened, *watched.closed),
            judged=judged,
            effects=tuple(said),
        )

    def _policy_as_measured(self) -> Policy:
        """The policy with the cold starts that were seen; made again when one was measured."""
        if self._measured is None or self._measured[0] is not self.policy:
            self._measured = (self.policy, with_measured(self.policy, self.state.starts))
        return self._measured[1]

    # -- rules ----------------------------------------------------------------------------------------

    def _learn(
        self, at: float, changes: incidents.Changes, watched: incidents.Changes
    ) -> tuple[Judgement, ...]:
        """Words on rules that follow from this tick, with those of operators since the last one."""
        state = self.state
        said, state.said = state.said, []
        for opened in (*changes.opened, *watched.opened):
            said.append(Judgement(at, opened.id, rules_of(opened), Word.FIRED))
        for closed in changes.closed:
            if closed.id in state.treated:
                state.treated.remove(closed.id)
                # A claim of load alone also ends when the load is taken away: only what was isolated can heal.
                if not closed.cause.startswith(incidents.EXPLAINED):
                    said.append(
                        Judgement(
                            at, closed.id, rules_of(closed), Word.CONFIRMED, "healed after it was isolated"
                        )
                    )
        for closed in watched.closed:
            witness = witness_of(state.book, closed)
            if witness:
                said.append(
                    Judgement(at, closed.id, rules_of(closed), Word.CONFIRMED, f"{witness} at the same place")
                )
        return tuple(word for word in said if state.ledger.take(word))

    def _is_leaving(self, finding: Finding, at: float) -> bool:
        """Whether a silent replica is one that we have just asked to go: more stand than the pool is to have."""
        pool = self.topology.pool_of.get(finding.entity.name, "")
        fleet = self.state.fleet
        if finding.kind not in DEPARTURE or at - fleet.scaled.get(pool, -np.inf) > DEPARTURE_S:
            return False
        return len(self.topology.engines_in(pool)) > fleet.replicas[pool]

    def absorb(self, given: Input) -> None:
        """Take in what came since the last tick: an outcome, a forecast, an operator's command, the journal's health."""
        state = self.state
        if isinstance(given, Outcome):
            at = given.at if given.at == given.at else state.at
            state.in_flight.pop(given.step.id, None)
            state.fleet.absorb(given, at)
            state.watches = effects.renewed(state.watches, given, self._policy_as_measured(), at)
            state.day.absorb(given, {i.id: onset(i) for i in state.book.open.values() if is_failure(i)}, at)
            key = _key(given.step)
            for standing in [k for k, s in state.standing.items() if s.id == given.step.id]:
                del state.standing[standing]
            if given.result is Result.DONE:
                state.failed_at.pop(key, None)
                if given.step.verb is Verb.ISOLATE and given.step.incident in state.book.open:
                    state.treated.append(given.step.incident)
            else:
                state.failed_at[key] = at
        elif isinstance(given, Forecast):
            if given.signal in WORK:
                state.work_ahead.setdefault(given.target, {})[given.signal] = given
            else:
                state.forecasts[given.target] = given
            self._looked = (-1, NAN)
        elif isinstance(given, Journal):
            state.can_journal = given.is_healthy
        elif isinstance(given, Judgement):
            state.ledger.take(given)
        else:
            self._command(given)

    def _command(self, command: Command) -> None:
        state = self.state
        if command.kind == "approve":
            state.approved.add(command.argument)
        elif command.kind == "reject":
            state.rejected.add(command.argument)
            state.approved.discard(command.argument)
        elif command.kind == "pause":
            state.paused_until = command.at + float(command.argument or "inf")
        elif command.kind == "resume":
            state.paused_until = -np.inf
        elif command.kind == "attest":
            item, value, until = command.argument.split()
            state.day.attested[item] = [float(value), float(until)]
        elif command.kind == "undo":
            order = undo.order(command.argument, command.by, command.at)
            state.undone[undo.key(order)] = order
        elif command.kind in WORDS:
            case = state.ledger.cases.get(command.argument)
            if case is not None:
                by = f"{OPERATOR} {command.by}".strip()
                state.said.append(
                    Judgement(command.at, command.argument, case.rules, WORDS[command.kind], by)
                )
        else:
            raise ValueError(
                f"unknown command {command.kind!r}: approve, reject, pause, resume, confirm, refute, "
                "attest, undo"
            )

    def _look(self, frames: Frames) -> None:
        revision = max((f.revision for f in frames), default=0)
        if revision != self._revision:
            self._revision = revision
            self.topology = picture(frames)
            # After a restart a dead engine is not seen again: while its incident is open, what was done to it stands.
            blamed = {i.scope.name for i in self.state.book.open.values() if i.scope.kind == "engine"}
            self.state.fleet.forget_engines(frozenset(self.topology.pool_of) | blamed)
        # The outlook moves by the hour: every five minutes, and whenever the fleet changes, is often enough.
        if revision != self._looked[0] or not frames.at - self._looked[1] < OUTLOOK_EVERY_S:
            self._looked = (revision, frames.at)
            nodes = self.topology.gpus_on
            out = sum(map(self.state.fleet.is_isolated, nodes))
            self.state.wear.watch(frames.at, len(nodes), out)
            self.outlook = outlooks.look(
                frames.at,
                self.topology,
                self.state.fleet,
                self.policy,
                self.state.forecasts,
                self.state.memory.learnt,
                self.state.wear,
                self.state.work_ahead,
            )

    def _judge(self, frames: Frames, steps: list[Step]) -> tuple[Verdict, ...]:
        """Verdicts that are news: every allowed step, and refusals whose reason changed."""
        state = self.state
        if not steps and not state.standing:
            return ()
        # Who orders a step need not be asked again whether it may happen.
        state.approved |= {self._stand(s, frames.at).id for s in steps if s.arg("ordered_by")}
        now = Guarded(
            at=frames.at,
            frames=frames,
            topology=self.topology,
            fleet=state.fleet,
            policy=self.policy,
            in_flight=tuple(state.in_flight.values()),
            failed_at={s: t for s, t in ((_verb_target(k), t) for k, t in state.failed_at.items())},
            approved=frozenset(state.approved),
            rejected=frozenset(state.rejected),
            paused_until=state.paused_until,
            can_journal=state.can_journal,
        )
        news = []
        for proposal in steps:
            standing = self._stand(proposal, frames.at)
            step = replace(proposal, id=standing.id)
            verdict = judge(step, now)
            if verdict.allowed:
                now.tentative.append(step)
                if step.verb is not Verb.NOTIFY:
                    state.in_flight[step.id] = step
                if step.verb is Verb.RECALL and step.target.name in state.fleet.leases:
                    state.fleet.leases[step.target.name].recalled = frames.at
                state.approved.discard(step.id)
            if (
                verdict.allowed or verdict.reason is not standing.reason
            ) and verdict.reason is not Reason.IN_FLIGHT:
                news.append(verdict)
            standing.reason = verdict.reason
        for key in [k for k, s in state.standing.items() if frames.at - s.seen > STANDING_GAP_S]:
            gone = state.standing.pop(key)
            state.approved.discard(gone.id)
            state.rejected.discard(gone.id)
        return tuple(news)

    def _stand(self, step: Step, at: float) -> Standing:
        # The amount belongs to what is proposed: who approves 5 -> 6 replicas has not approved 5 -> 9.
        key = f"{_key(step)}\t{step.amount:g}\t{step.incident if step.verb is Verb.NOTIFY else ''}"
        standing = self.state.standing.get(key)
        if standing is None or step.verb is Verb.NOTIFY:
            self.state.serial += 1
            standing = self.state.standing[key] = Standing(f"s{self._mark}{self.state.serial:06d}", None, at)
        standing.seen = at
        return standing

    def _notices(self, changes: incidents.Changes) -> list[Step]:
        if Verb.NOTIFY not in self.policy.able:
            return []
        firing = [i for i in (*changes.opened, *changes.changed) if i.severity is not Severity.INFO]
        # What a wider incident has swallowed is resolved too: its page must not stay open for ever.
        resolved = [i for i in changes.closed if i.severity is not Severity.INFO]
        return [notice(i, "firing", self.policy, self.topology) for i in firing] + [
            notice(i, "resolved", self.policy, self.topology) for i in resolved
        ]

    # -- persistence ----------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """JSON value of everything remembered."""
        # Sampled paths are the bulk of a forecast, and the next hour brings new ones.
        bare = {n: _bare(f) for n, f in self.state.forecasts.items()}
        work = {n: {s: _bare(f) for s, f in each.items()} for n, each in self.state.work_ahead.items()}
        return {
            "state": to_plain(replace(self.state, forecasts=bare, work_ahead=work)),
            "detectors": {n: to_plain(d) for n, d in self.detectors.items()},
        }

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Take over a dump. A detector that is new or changed its shape starts fresh rather than not at all."""
        self.state = decode(State, dumped["state"])
        self._measured = None
        for name, fresh in self.detectors.items():
            try:
                self.detectors[name] = decode(type(fresh), dumped["detectors"][name])
            except (KeyError, TypeError, ValueError):
                self.detectors[name] = fresh


def _bare(forecast: Forecast) -> Forecast:
    return replace(forecast, ranks=np.empty((0, 0)), rivals={})


def _key(step: Step) -> str:
    return "\t".join((step.verb.value, *step.target))


def _verb_target(key: str) -> tuple[Verb, Entity]:
    verb, kind, name = key.split("\t")
    return Verb(verb), Entity(kind, name)


def _freshness(frames: Frames) -> Callable[[Entity], bool]:
    """entity -> whether its telemetry could show that it is well. Groups and pools are fresh when anything is."""
    limit = 60.0

    def is_fresh(entity: Entity) -> bool:
        frame = frames[entity.kind]
        if entity.kind == "target":
            return not frame.value(entity.name, "silent_s") > limit
        if entity.name in frame.entities:
            return bool(frame.age_s[frame.entities.index(entity.name)] <= limit)
        # What has vanished tells nothing: silence is no recovery.
        return entity.kind not in ("gpu", "port", "node")

    return is_fresh


def notice(incident: Incident, status: str, policy: Policy, topology: Topology) -> Step:
    """The step that tells people. Labels hold stable values only; numbers stand in the description."""
    around = [e for e in topology.scopes(incident.scope) if e.kind != incident.scope.kind]
    kinds = [e.kind for e in around]
    pattern = PATTERNS[incident.kind]
    args = {
        "cluster": policy.cluster,
        "description": describe(incident),
        "family": pattern.family,
        "incident": incident.id,
        "kind": incident.kind,
        "scope": incident.scope.name,
        "scope_kind": incident.scope.kind,
        "severity": incident.severity.value,
        "starts_at": f"{incident.opened:.3f}",
        "ends_at": f"{incident.closed:.3f}" if status == "resolved" else "",
        **facts(incident),
        # Where it is, for routes and silences; a fault that touches two pools belongs to neither.
        **{e.kind: e.name for e in around if kinds.count(e.kind) == 1},
        "status": status,
        "summary": f"{pattern.title}: {incident.scope}" + (f" ({incident.cause})" if incident.cause else ""),
    }
    return Step(
        id="",
        verb=Verb.NOTIFY,
        target=Entity("incident", incident.id),
        amount=1.0 if status == "firing" else 0.0,
        reason=f"{status}: {args['summary']}",
        incident=incident.id,
        args=tuple(sorted(args.items())),
    )


def sentence(changes: incidents.Changes, verdicts: tuple[Verdict, ...], expired: list[str]) -> str:
    """One sentence on what this tick changed, "" when nothing did."""
    parts = [f"{i.id} {i.kind} opened on {i.scope}" for i in changes.opened]
    parts += [f"{i.id} {i.kind} closed on {i.scope} ({i.cause})" for i in changes.closed]
    parts += [f"lease of {n} ended" for n in expired]
    for verdict in verdicts:
        if verdict.step.verb is Verb.NOTIFY:
            continue
        how = "starts" if verdict.allowed else f"refused ({verdict.reason})"
        parts.append(f"{verdict.step.verb} {verdict.step.target} {how}: {verdict.step.reason}")
    return "; ".join(parts)
