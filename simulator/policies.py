"""What the daemon is told about a simulated cluster: the policy an operator of it would write."""

from __future__ import annotations

from dataclasses import replace

from daemon.model import Verb
from daemon.policy import Mode, Policy, PoolKind, PoolPolicy
from simulator.gateway import CLASS_SHARES
from simulator.spec import WorldSpec

VERBS = tuple(verb for verb in Verb if verb is not Verb.NOTIFY)


def with_last_resort(policy: Policy) -> Policy:
    """The same for an operator who lets requests be refused and versions be taken back."""
    modes = {**policy.modes, Verb.LIMIT: Mode.AUTO, Verb.ROLLBACK: Mode.AUTO}
    return replace(
        policy, modes=modes, pools=tuple(replace(p, classes=tuple(CLASS_SHARES)) for p in policy.pools)
    )


def policy_of(spec: WorldSpec, cluster: str, mode: Mode = Mode.AUTO) -> Policy:
    """Pools with their objectives and limits, everything else as the daemon's defaults are."""
    pools = tuple(
        PoolPolicy(
            name=pool.name,
            match={"pool": pool.name},
            priority=pool.priority,
            replicas_min=1,
            replicas_max=pool.replicas_max,
            gpus_per_replica=pool.tp,
            ttft_slo_s=pool.ttft_slo_s,
            itl_slo_s=pool.itl_slo_s,
            cold_start_s=pool.cold_start_max_s,
            lendable=pool.lendable,
            kind=PoolKind(pool.kind),
        )
        for pool in spec.pools
    )
    return Policy(cluster=cluster, mode=mode, pools=pools)
