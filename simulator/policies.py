"""What the daemon is told about a simulated cluster: the policy an operator of it would write."""

from __future__ import annotations

from daemon.model import Verb
from daemon.policy import Mode, Policy, PoolPolicy
from simulator.spec import WorldSpec

VERBS = tuple(verb for verb in Verb if verb is not Verb.NOTIFY)


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
        )
        for pool in spec.pools
    )
    return Policy(cluster=cluster, mode=mode, pools=pools)
