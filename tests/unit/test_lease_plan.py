"""The plan of leases against the best there is: a mixed-integer programme that knows every hour beforehand."""

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from daemon.fleet import Fleet, Lease
from daemon.lease import loans, reserve
from daemon.policy import Budgets, Policy
from daemon.topology import Topology

SIZE, NODES, HOURS = 8, 20, 72
STEP_S = 900.0
TOPOLOGY = Topology(
    nodes=tuple(f"n{k:02d}" for k in range(NODES)),
    gpus_on={f"n{k:02d}": tuple(f"n{k:02d}/gpu{g}" for g in range(SIZE)) for k in range(NODES)},
)
POLICY = Policy(
    lease_min_s=2 * 3600.0,
    lease_max_s=HOURS * 3600.0,
    recall_lead_s=900.0,
    budgets=Budgets(lent_share_max=1.0),
)
RUN = int(POLICY.lease_min_s / STEP_S)


def tide(seed: int) -> np.ndarray:
    """(quarter of an hour,) GPUs needed over three days: a day's tide, drifting, with dents and bursts."""
    rng = np.random.default_rng(seed)
    hours = np.arange(HOURS * 4) / 4.0
    wave = 85.0 + 55.0 * np.sin((hours - 9.0 + rng.uniform(-2, 2)) * 2 * np.pi / 24.0)
    walk = np.cumsum(rng.normal(0.0, 1.2, hours.size))
    bursts = sum(30.0 * (np.abs(hours - at) < 0.6) for at in rng.uniform(0, HOURS, 3))
    return np.clip(wave + walk - walk.mean() + bursts, 8.0, SIZE * NODES)


def lendable(needed: np.ndarray) -> np.ndarray:
    """(quarter,) nodes that may be lent then: the spare stays, and a recall takes its lead."""
    kept = np.array([reserve(float(n), SIZE) for n in needed])
    free = np.floor((SIZE * NODES - kept - needed) / SIZE + 1e-9)
    lead = 1 + int(POLICY.recall_lead_s / STEP_S)
    ahead = [free[t : t + lead].min() for t in range(free.size)]
    return np.maximum(np.array(ahead), 0.0)


def best(most: np.ndarray) -> float:
    """GPU-hours of the best plan: y nodes lent, s begun, e ended in each quarter; what begins stays RUN quarters."""
    n = most.size
    eye, none = np.eye(n), np.zeros((n, n))
    before = np.eye(n, k=-1)
    flow = np.hstack((eye - before, -eye, eye))
    stay = np.hstack((eye, -sum(np.eye(n, k=-k) for k in range(RUN)), none))
    found = milp(
        c=np.concatenate((-np.ones(n), 1e-4 * np.ones(2 * n))),
        constraints=[LinearConstraint(flow, 0.0, 0.0), LinearConstraint(stay, 0.0, np.inf)],
        bounds=Bounds(0.0, np.concatenate((most, np.full(2 * n, NODES)))),
        integrality=np.ones(3 * n),
    )
    assert found.success
    return float(np.rint(found.x[:n]).sum()) * SIZE * STEP_S / 3600.0


def planned(needed: np.ndarray) -> float:
    """GPU-hours of the leases that are given quarter after quarter, and held to their ends."""
    fleet, lent = Fleet(), 0.0
    for t in range(needed.size):
        at = t * STEP_S
        fleet.leases = {n: lease for n, lease in fleet.leases.items() if lease.until > at}
        held = [n for n in TOPOLOGY.nodes if n not in fleet.leases]
        busy = held[: int(np.ceil(needed[t] / SIZE))]
        idle = {n: n not in busy for n in held}
        for loan in loans(at, TOPOLOGY, fleet, needed[t:], STEP_S, POLICY, idle, float(needed[t])):
            fleet.leases[loan.node] = Lease(at, loan.until, loan.gpus)
        lent += len(fleet.leases) * SIZE * STEP_S / 3600.0
    return lent


@pytest.mark.parametrize("seed", range(4))
def test_leases_given_as_they_come_are_as_good_as_the_best_plan(seed: int) -> None:
    needed = tide(seed)

    assert planned(needed) >= 0.97 * best(lendable(needed))
