"""What each family of signals shows of a replica, in units of its own noise."""

from __future__ import annotations

import numpy as np

from daemon.model import NAN, Array, Frame
from detectors.gpupace import GpuPace
from detectors.hostload import HostLoad
from detectors.replicapace import ReplicaPace
from detectors.scales import HALF, QUARTER, Flags, in_units
from detectors.stats import Groups, Index, groups, peers

FAMILIES = (
    "step", "lead", "lead_and_step", "clock_and_step", "host_and_step", "first_token", "share", "heat", "power", "errors",
    "long_step", "long_lead",
)  # fmt: skip
"""step : time a step at equal load. lead : activity of the rank its group waits for over the others'. lead_and_step : the
smaller of the two, since a rank that is waited for makes the step as much longer. clock_and_step : the same with the clock of that GPU
under the peers'. host_and_step : the same with the cores of its node in use over comparable nodes. first_token : time to
the first token over the peers'. share : work given and not done. heat : degrees over the peers, in tens. power : power under
the peers', in tenths. errors : log of 1 + errors of links and memory a second. All over a quarter of an hour but the last four of these.
long_step, long_lead : step and lead over half an hour, where what is small and steady stands out of its noise."""
CAP = 8.0
"""No sign counts more: one that runs wild must not decide alone. Judgement."""
GPU_SIGNALS = ("temp_c", "power_w", "nvlink_replay_per_s", "pcie_replay_per_s", "ecc_sbe_per_s")


def signs(
    gpu: Frame, engine: Frame, node: Frame, gpus: GpuPace, replicas: ReplicaPace, hosts: HostLoad
) -> tuple[Array, Index]:
    """(engine, FAMILIES), 0 = nothing or not measured, NaN = a replica without peers or work; and (engine,) row of the GPU
    that would be blamed, -1 = none stands out."""
    size = len(engine.entities)
    by_peer = groups(gpu.facts.get("peer", ("",) * len(gpu.entities)))
    alike = replicas.alike(engine)
    lead, clock = in_units(gpus.steps, QUARTER, by_peer), in_units(gpus.clocks, QUARTER, by_peer)
    suspect = _most(np.nan_to_num(np.fmax(lead, 0.0)) + np.nan_to_num(np.fmax(clock, 0.0)), gpu, engine)
    step = in_units(replicas.lags, QUARTER, alike)
    temp, power, *errors = gpu.columns(GPU_SIGNALS).T
    own_lead = _of(lead, suspect)
    host = in_units(hosts.excess, QUARTER, groups(("",) * len(node.entities)))
    told = {
        "step": step,
        "lead": own_lead,
        "lead_and_step": np.minimum(step, own_lead),
        "clock_and_step": np.minimum(step, _of(clock, suspect)),
        "host_and_step": np.minimum(step, _of(host, _rows(engine, node))),
        "first_token": in_units(replicas.firsts, QUARTER, alike),
        "share": 1.0 - replicas.work if replicas.work.size == size else np.full(size, NAN),
        "heat": _of(temp - peers(temp, by_peer).median, suspect) / 10.0,
        "power": 10.0 * _of(1.0 - power / peers(power, by_peer).median, suspect),
        "long_step": in_units(replicas.lags, HALF, alike),
        "long_lead": _of(in_units(gpus.steps, HALF, by_peer), suspect),
        "errors": _of(np.log1p(np.nansum(np.array(errors), axis=0)), suspect),
    }
    found = np.stack([np.clip(np.nan_to_num(told[name]), -CAP, CAP) for name in FAMILIES], axis=1)
    found[~np.isfinite(step) | ~compared(alike)] = NAN
    return found, suspect


def compared(where: Groups) -> Flags:
    """(entity,) in a group of three or more: the own past is no second witness."""
    sizes = (where.member >= 0).sum(axis=1)
    return (where.of >= 0) & (sizes[where.of] >= 3) if sizes.size else np.zeros(where.of.size, dtype=bool)


def _most(amount: Array, gpu: Frame, engine: Frame) -> Index:
    """(engine,) row of the GPU of each replica that shows most; -1 where none shows anything."""
    found = np.full(len(engine.entities), -1, dtype=np.intp)
    place = {name: i for i, name in enumerate(engine.entities)}
    owners = gpu.facts.get("engine", ())
    for row in np.argsort(amount, kind="stable").tolist():
        if amount[row] > 0 and owners and owners[row] in place:
            found[place[owners[row]]] = row
    return found


def _rows(engine: Frame, node: Frame) -> Index:
    """(engine,) row of its node, -1 = unknown."""
    place = {name: i for i, name in enumerate(node.entities)}
    homes = engine.facts.get("node", ("",) * len(engine.entities))
    return np.array([place.get(home, -1) for home in homes], dtype=np.intp)


def _of(values: Array, row: Index) -> Array:
    """(row,) the values there, NaN where the row is -1."""
    if not values.size:
        return np.full(row.size, NAN)
    return np.where(row >= 0, values[row], NAN)
