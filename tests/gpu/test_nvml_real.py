"""The NVML source on a real driver; skipped where there is none."""

import pytest

from daemon.clock import wall_clock
from daemon.model import SourceError
from daemon.telemetry.catalogue import load_catalogue, shapes_of
from daemon.telemetry.columns import Columns
from daemon.telemetry.nvml import NvmlGpus

pytestmark = pytest.mark.gpu


async def test_a_real_gpu_gives_plausible_readings() -> None:
    source = NvmlGpus("n1", wall_clock, Columns("nvml:n1", shapes_of(load_catalogue())))
    try:
        (one,) = await source.read()
    except SourceError as problem:
        pytest.skip(str(problem))
    (two,) = await source.read()

    assert one.layout is two.layout is not None
    assert one.values is not None
    found = {
        s.signal: v
        for s, v in zip(one.layout.series, one.values.tolist(), strict=True)
        if s.entity.name == "n1/gpu0"
    }
    facts = {f.key: f.value for f in one.layout.facts if f.entity.name == "n1/gpu0"}
    assert 0 <= found["util_ratio"] <= 1
    assert 10 < found["temp_c"] < 110
    assert 1e9 < found["hbm_total_bytes"] < 1e12
    assert 0 < found["hbm_free_bytes"] <= found["hbm_total_bytes"]
    assert found["gpu_lost"] == found["nvml_hang"] == 0
    assert facts["uuid"].startswith("GPU-")
    assert facts["sku"]
    assert one.events == ()
