"""XIDs as they come in to claims: bursts, repeats, what accompanies what, what cancels what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from daemon.model import Entity, Event, Finding, Severity
from detectors import xid
from detectors.claims import Claim, trust

DAY_S = 86400.0
MONTH_S = 30 * DAY_S
DUPLICATE_S = 90.0
"""The kernel log, NVML and the gauge tell of one event at different times; within this span they mean the same."""
BURST_S = 180.0
"""Events of one code on one GPU closer together than this are one burst."""
BURST_OF = {13: 15.0}
WEDGED_S = 300.0
"""119 or 120 in two bursts within this: the driver does not get through to the firmware any more."""
TIMEOUTS = frozenset({119, 120})
FATAL_REPEATS = 5
DOMAIN_S = 60.0
"""NVLink errors of several GPUs of one node within this have one origin, and it reported first."""


@dataclass(slots=True)
class Burst:
    """Events of one code on one GPU that are one: first, last : when. origin : of the first. apps : programs named."""

    first: float
    last: float
    origin: str
    apps: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Bursts:
    """What is remembered of driver errors, and the claims that stand because of them.

    seen : (entity, code) -> bursts of the last day; of lost GPUs of the last 30 days. claims : (entity, kind, code).
    """

    seen: dict[tuple[Entity, int], list[Burst]] = field(default_factory=dict)
    crashes: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    claims: dict[tuple[Entity, str, int], Claim] = field(default_factory=dict)

    def hear(self, event: Event, told: Mapping[str, str]) -> None:
        """Take one event in."""
        code = int(event.code)
        found = xid.classify(code, event.text, told)
        if code in xid.CANCELS:
            self._drop(event.entity, code=xid.CANCELS[code])
        if code == 154:
            self._driver_says(event, found)
            return
        bursts, is_new = self._burst(event, code, found)
        if not is_new:
            for (entity, _, of), claim in self.claims.items():
                if entity == event.entity and of == code:
                    claim.hear(event.origin, event.text)
            return
        if found.kind and not self._is_overruled(event, found):
            self._claim(event, code, found, len(bursts))

    def _burst(self, event: Event, code: int, found: xid.XidClass) -> tuple[list[Burst], bool]:
        span = MONTH_S if found is xid.LOST else DAY_S
        bursts = self.seen.setdefault((event.entity, code), [])
        bursts[:] = [b for b in bursts if event.at - b.last < span]
        if bursts:
            last = bursts[-1]
            gap = event.at - last.last
            # Another witness of what is known already comes later than the burst is long where that is short.
            is_echo = event.origin != last.origin and gap < DUPLICATE_S
            if gap < BURST_OF.get(code, BURST_S) or is_echo:
                last.last = max(last.last, event.at)
                if event.app and event.app not in last.apps:
                    last.apps.append(event.app)
                if trust(event.origin) > trust(last.origin):
                    last.origin = event.origin
                return bursts, False
        bursts.append(Burst(event.at, event.at, event.origin, [event.app] if event.app else []))
        return bursts, True

    # -- claims -----------------------------------------------------------------------------------------

    def _claim(self, event: Event, code: int, found: xid.XidClass, count: int) -> None:
        kind, severity, rule, text = found.kind, found.severity, found.rule, event.text[:200]
        rejected: tuple[str, ...] = ()
        if found is xid.LOST and count >= 2:
            rule, text = "fault.lost_again", f"loss number {count} within 30 days: replace the GPU. {text}"
        elif found is xid.CONTAINED and count >= 2:
            kind, severity, rule = "gpu_uncontained", Severity.CRITICAL, "fault.xid_contained_again"
            text = f"contained errors in {count} bursts within 24 h: drain and reset. {text}"
        elif code in TIMEOUTS and self._wedged(event.entity, event.at):
            kind, rule = "driver_wedged", "fault.xid_wedged"
            text = f"two firmware time-outs within 5 min: only a reboot helps. {text}"
        elif found in (xid.UNCONTAINED, xid.FIRMWARE, xid.NVLINK) and count >= FATAL_REPEATS:
            kind, severity, rule = "gpu_repeat", Severity.CRITICAL, "fault.xid_repeat"
            text = f"XID {code} in {count} bursts within 24 h: replace the GPU. {text}"
        elif found is xid.APPLICATION:
            severity, rule, rejected = self._application(event, code, severity, rule)
        elif found is xid.NVLINK:
            leader = self._first_reporter(event)
            if leader is not None:
                leader.count += 1
                leader.text = f"{leader.count} GPUs of the node report within a minute, this one first. {event.text[:120]}"
                return
            link = xid.link_of(event.text)
            text = f"link {link}: {text}" if link else text
        self.claims[event.entity, kind, code] = Claim(
            event.at, kind, rule, severity, found.certainty, event.code, event.origin, text, count, rejected
        )

    def _wedged(self, entity: Entity, at: float) -> bool:
        firsts = [b.first for code in TIMEOUTS for b in self.seen.get((entity, code), ())]
        return sum(1 for t in firsts if at - t < WEDGED_S) >= 2

    def _application(
        self, event: Event, code: int, severity: Severity, rule: str
    ) -> tuple[Severity, str, tuple[str, ...]]:
        """One program that crashes says nothing of the GPU; two programs in two bursts within a day do."""
        if code in xid.FOLLOWERS:
            return severity, rule, ("sick hardware: the code only says that a program was ended",)
        crashes = self.crashes.setdefault(event.entity.name, [])
        crashes[:] = [c for c in crashes if event.at - c[0] < DAY_S] + [(event.at, event.app)]
        bursts = 1 + sum(later - earlier > BURST_S for (earlier, _), (later, _) in pairwise(crashes))
        apps = {app for _, app in crashes if app}
        if bursts >= 2 and len(apps) >= 2:
            why = f"one program's mistake: {len(apps)} different programs failed in {bursts} bursts"
            return Severity.WARNING, "fault.xid_app_hardware", (why,)
        return severity, rule, (f"sick hardware: {max(1, len(apps))} program in {bursts} bursts within 24 h",)

    def _first_reporter(self, event: Event) -> Claim | None:
        """The claim of another GPU of the same node that reported its NVLink within the last minute."""
        node = event.entity.name.split("/", 1)[0]
        for (entity, kind, _), claim in self.claims.items():
            near = entity.name.split("/", 1)[0] == node and entity != event.entity
            if near and kind == "nvlink_fault" and 0.0 <= event.at - claim.at <= DOMAIN_S:
                return claim
        return None

    # -- the driver's own word --------------------------------------------------------------------------

    def _driver_says(self, event: Event, found: xid.XidClass) -> None:
        """XID 154 overrides what the table made of the same burst; a GPU that is gone stays gone."""
        if not event.text:
            return  # only the kernel log says what 154 asks for
        for key, claim in list(self.claims.items()):
            entity, kind, _ = key
            if entity != event.entity or kind in ("gpu_lost", "gpu_app") or event.at - claim.at > BURST_S:
                continue
            if found.kind != kind:
                del self.claims[key]
        if found.kind:
            self.claims[event.entity, found.kind, 154] = Claim(
                event.at,
                found.kind,
                "fault.xid_action",
                found.severity,
                found.certainty,
                154.0,
                event.origin,
                event.text[:200],
            )

    def _is_overruled(self, event: Event, found: xid.XidClass) -> bool:
        """Whether the driver has just said what to do about this GPU; then the table is not asked."""
        if found in (xid.LOST, xid.APPLICATION):
            return False
        return any(
            entity == event.entity and code == 154 and 0.0 <= event.at - claim.at < BURST_S
            for (entity, _, code), claim in self.claims.items()
        )

    def _drop(self, entity: Entity, code: int) -> None:
        for key in [k for k in self.claims if k[0] == entity and k[2] == code]:
            del self.claims[key]

    # -- what stands ------------------------------------------------------------------------------------

    def standing(self, at: float, hold_s: float, silent: frozenset[str]) -> list[Finding]:
        """Claims that still stand. silent : GPUs whose telemetry is gone; a lost one stays claimed while it is."""
        found = []
        for key, claim in list(self.claims.items()):
            entity, kind, code = key
            is_silent = entity.kind == "gpu" and entity.name in silent
            if at - claim.at > hold_s and not (is_silent and kind in ("gpu_lost", "driver_wedged")):
                del self.claims[key]
                continue
            if code == 167 and is_silent:
                # Alone it says little; that the GPU went with it says all.
                claim.kind, claim.rule, claim.severity, claim.score = (
                    "gpu_lost",
                    "fault.xid_lost",
                    Severity.CRITICAL,
                    0.95,
                )
            if code in xid.FOLLOWERS and self._is_accompanied(entity, code, claim.at):
                continue
            found.append(claim.finding(at, entity))
        return found

    def _is_accompanied(self, entity: Entity, code: int, at: float) -> bool:
        """Whether another error of the same GPU lies close: then that one tells the story."""
        return any(
            who == entity and other != code and any(abs(b.first - at) < BURST_S for b in bursts)
            for (who, other), bursts in self.seen.items()
        )
