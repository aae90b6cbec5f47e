"""Storage that answers late or not at all, and replicas that start late."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.claims import say
from detectors.stats import Index, middle

LEAST_READS = 2.0
"""Reads a second from which their mean time says something."""
SLOW_TIMES = 3.0
"""A read that takes so many times its usual time is slow. Source: bench on simulated stores, drill slow-store; judgement."""
SHARED_LEAST_S, DISK_LEAST_S = 0.010, 0.005
"""Below this nobody waits, however much it has grown: a read over a network, a read of a local NVMe."""
RESENT_SHARE = 0.02
"""Requests sent again from which a mount is losing them. Source: judgement; a healthy NFS mount resends below one in a thousand."""
KEPT_MINUTES = 240
KNOWN_MINUTES = 20
ADOPT_S = 6 * 3600.0
"""What has lasted so long becomes the usual: a store that was moved to slower disks is no incident for ever."""
START_TIMES = 2.0
"""A start that takes twice the usual time is late."""
SIGNALS = (
    "reads_per_s",
    "read_s_per_s",
    "writes_per_s",
    "errors_per_s",
    "resent_per_s",
    "health",
    "busy_ratio",
)
FAILED = 2.0
STORAGE = "storage"
"""Kind of a store that many nodes share, as a scope."""


@dataclass(slots=True)
class Usual:
    """What a store's reads usually take. minute : since when `fresh` gathers. past : one median a minute, oldest first.
    median : of `past`, NaN until enough minutes are known."""

    minute: float = NAN
    fresh: list[float] = field(default_factory=list)
    past: list[float] = field(default_factory=list)
    median: float = NAN

    def push(self, at: float, value: float) -> None:
        if self.fresh and at - self.minute >= 60.0:
            self.past = [*self.past, statistics.median(self.fresh)][-KEPT_MINUTES:]
            self.fresh = []
            if len(self.past) >= KNOWN_MINUTES:
                self.median = statistics.median(self.past)
        if not self.fresh:
            self.minute = at
        self.fresh.append(value)


@dataclass(slots=True)
class StorageDetector:
    """usual : of each share by its name, of all local disks under "". raised : store -> since when it is claimed slow."""

    usual: dict[str, Usual] = field(default_factory=dict)
    raised: dict[Entity, float] = field(default_factory=dict)

    def update(self, frames: Frames) -> list[Finding]:
        store = frames["store"]
        found = _late_starts(frames["pool_start"])
        if not store.entities:
            self.raised = {}
            return found
        table = store.columns(SIGNALS)
        reads, spent = table[:, 0], table[:, 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            took = np.where(reads >= LEAST_READS, spent / reads, NAN)
        members = _members(store.facts.get("share", ("",) * len(store.entities)))
        slow: list[Finding] = []
        for share, rows in members.items():
            if share:
                slow += self._slow_share(store, share, rows, took, reads)
            else:
                slow += self._slow_disks(store, rows, took)
        self.raised = {f.entity: f.since for f in slow}
        return [*found, *slow, *_errors(store, members, table)]

    def _slow_share(
        self, store: Frame, share: str, members: Index, took: Array, reads: Array
    ) -> list[Finding]:
        """Most nodes late: the store. Some late while most are not: their mounts."""
        known = members[np.isfinite(took[members])]
        if not known.size:
            return []
        usual = self.usual.setdefault(share, Usual())
        base = usual.median
        limit = max(SHARED_LEAST_S, SLOW_TIMES * base)
        late = rows_of(known, took > limit)
        mean = float(took[known] @ reads[known] / reads[known].sum())
        whole = Entity(STORAGE, share)
        is_adopted = store.at - self.raised.get(whole, store.at) > ADOPT_S
        if not late or base != base or is_adopted:
            usual.push(store.at, mean)
        if not late or base != base:
            return []
        if 2 * len(late) > known.size:
            here = f"{len(late)} of {known.size} nodes that read it"
            text = f"{share} takes {mean * 1e3:.0f} ms a read ({here})"
            return [self._claim(store.at, "shared_slow", whole, mean, base, text)]
        found = []
        for i in late:
            text = f"a read takes {took[i] * 1e3:.0f} ms there while most nodes wait {base * 1e3:.1f} ms for the same store"
            found.append(self._claim(store.at, "mount_slow", _store(store, i), float(took[i]), base, text))
        return found

    def _slow_disks(self, store: Frame, members: Index, took: Array) -> list[Finding]:
        known = members[np.isfinite(took[members])]
        if not known.size:
            return []
        usual = self.usual.setdefault("", Usual())
        base = usual.median
        found = []
        for i in rows_of(known, took > max(DISK_LEAST_S, SLOW_TIMES * base)) if base == base else ():
            text = f"a read takes {took[i] * 1e3:.1f} ms, disks like it take {base * 1e3:.2f} ms"
            found.append(self._claim(store.at, "disk_slow", _store(store, i), float(took[i]), base, text))
        # One sick disk among many hardly moves the median, and it must not become the usual.
        usual.push(store.at, middle(took[known]))
        return found

    def _claim(self, at: float, rule: str, entity: Entity, took: float, base: float, text: str) -> Finding:
        since = self.raised.get(entity, at)
        evidence = Evidence("read_time", took * 1e3, "ms", base * 1e3)
        return say(
            at,
            f"storage.{rule}",
            entity,
            "store_slow",
            0.8,
            Severity.WARNING,
            evidence,
            since=since,
            text=text,
        )


def _store(store: Frame, row: int) -> Entity:
    return Entity("store", store.entities[row])


@lru_cache(maxsize=4)
def _members(shares: tuple[str, ...]) -> dict[str, Index]:
    """share -> its rows, "" = local disks."""
    found: dict[str, list[int]] = {}
    for i, share in enumerate(shares):
        found.setdefault(share, []).append(i)
    return {share: np.array(members, dtype=np.intp) for share, members in found.items()}


def rows_of(members: Index, mask: NDArray[np.bool_]) -> list[int]:
    """Those of the rows at which a mask is true."""
    found: list[int] = members[mask[members]].tolist()
    return found


def _errors(store: Frame, members: dict[str, Index], table: Array) -> list[Finding]:
    """Time-outs and lost requests of each mount, and what a storage cluster says of itself."""
    reads, writes, errors, resent, health = table[:, 0], table[:, 2], table[:, 3], table[:, 4], table[:, 5]
    with np.errstate(invalid="ignore", divide="ignore"):
        again = np.where(reads + writes >= LEAST_READS, resent / (reads + writes) - 1.0, NAN)
    fails, is_sick = (errors > 0) | (again > RESENT_SHARE), health >= FAILED
    if not (fails.any() or is_sick.any()):
        return []
    found = []
    for share, rows in members.items():
        failing = rows_of(rows, fails)
        if failing and share and 2 * len(failing) > len(rows):
            where = f"{len(failing)} of {len(rows)} nodes"
            found.append(_failing(store.at, Entity(STORAGE, share), errors[failing], again[failing], where))
        else:
            found += [_failing(store.at, _store(store, i), errors[[i]], again[[i]], "here") for i in failing]
        sick = rows_of(rows, is_sick)
        if sick:
            entity = Entity(STORAGE, share) if share else _store(store, sick[0])
            evidence = Evidence("health", float(health[sick[0]]), "code")
            text = f"{entity.name} reports an error state of its own"
            found.append(
                say(
                    store.at,
                    "storage.unhealthy",
                    entity,
                    "store_errors",
                    0.9,
                    Severity.CRITICAL,
                    evidence,
                    text=text,
                )
            )
    return found


def _failing(at: float, entity: Entity, errors: Array, again: Array, where: str) -> Finding:
    rate = float(np.nansum(errors))
    share = float(np.nanmax(again)) if np.isfinite(again).any() else NAN
    return say(
        at,
        "storage.errors",
        entity,
        "store_errors",
        0.8,
        Severity.WARNING,
        Evidence("timeouts", rate, "1/s"),
        Evidence("sent_again", share, "ratio"),
        text=f"requests to {entity.name} find no answer in time or are sent again ({where})",
    )


def _late_starts(starts: Frame) -> list[Finding]:
    """Pools whose last replica took long to start. Nothing is changed for it: the planner takes the longer time into account."""
    last, usual = starts.column("cold_start_last_s"), starts.column("cold_start_p50_s")
    return [
        say(
            starts.at, "storage.start_slow", Entity("pool", starts.entities[i]), "start_slow", 0.7, Severity.INFO,
            Evidence("start", float(last[i]), "s", float(usual[i])),
            text=f"the last replica took {last[i]:.0f} s to serve, others before it {usual[i]:.0f} s",
        )
        for i in np.flatnonzero(last > START_TIMES * usual)
    ]  # fmt: skip
