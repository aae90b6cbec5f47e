"""What the storage page says: stores, how long replicas took to start from which, what to read in before a rise."""

from __future__ import annotations

import dataclasses

from daemon import coldstart, storage
from daemon.loop import Daemon
from daemon.model import NAN
from daemon.policy import PoolPolicy
from daemon.web.views import Row

NEEDS = {
    "store": "no store tells anything: node_exporter shows local disks by itself, --collector.mountstats NFS mounts; or scrape a Lustre or Ceph exporter",
    "starts": "no start was seen yet: a replica that starts while the daemon looks is measured (its page tells when its process began, or how long it took)",
}


def warm(daemon: Daemon) -> tuple[storage.Warm, ...]:
    core = daemon.core
    return storage.to_warm(
        daemon.frames.at, core.topology, core.state.fleet, core.policy, core.outlook, core.state.starts
    )


def of(daemon: Daemon) -> Row:
    found, starts = storage.stores(daemon.frames), daemon.core.state.starts
    rows = [_starts(daemon, pool) for pool in sorted(starts.kept)]
    return {
        "at": daemon.frames.at or NAN,
        "stores": [dataclasses.asdict(store) for store in found],
        "starts": rows,
        "warm": [dataclasses.asdict(w) | {"nodes": list(w.nodes)} for w in warm(daemon)],
        "missing": [text for key, text in NEEDS.items() if not (found if key == "store" else rows)],
    }


def _starts(daemon: Daemon, pool: str) -> Row:
    """A pool's starts, and what the planner makes of them."""
    core = daemon.core
    kept = core.state.starts.kept[pool]
    own = core.policy.pool(pool) or PoolPolicy(pool)
    weights = [s.weights_s for s in kept if s.weights_s == s.weights_s]
    return {
        "pool": pool,
        "planned_s": coldstart.expected_s(kept, own),
        "configured_s": own.cold_start_s,
        "last_s": kept[-1].took_s,
        "weights_s": sum(weights) / len(weights) if weights else NAN,
        "sources": [
            {
                "source": source,
                "count": len(group),
                "p50_s": coldstart.quantile(group, 0.5),
                "p95_s": coldstart.quantile(group, 0.95),
            }
            for source, group in sorted(coldstart.by_source(kept).items())
        ],
    }
