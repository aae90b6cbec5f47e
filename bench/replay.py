"""How fast recorded days are played: a simulated cluster is recorded as a store would hold it, and replayed by the command."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from daemon.model import Entity
from simulator.defaults import default_spec
from simulator.faults import Fault
from simulator.recorder import export
from simulator.world import World

EPOCH = 1_780_272_000.0 + 8 * 3600.0
LABELS = ("node", "rack", "pool", "gpus")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.replay", description=__doc__)
    parser.add_argument("--gpus", type=int, default=128)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--step", type=float, default=15.0, help="of the recording, seconds")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        world = World(replace(default_spec(asked.gpus), telemetry_loss=0.0), 1, EPOCH)
        fault = Fault("xid79", Entity("gpu", "n01/gpu1"), EPOCH + 0.3 * asked.hours * 3600.0, 3600.0)
        world.inject(fault)
        export(world, Path(folder), asked.hours * 3600.0, asked.step, LABELS)
        size = sum(f.stat().st_size for f in Path(folder).iterdir())
        command = [
            sys.executable,
            "-m",
            "daemon",
            "replay",
            "--from",
            folder,
            "--days",
            str(asked.hours / 24.0),
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    lost = next((i for i in found["incidents"] if i["kind"] == "gpu_lost"), None)
    result = {
        "gpus": asked.gpus,
        "hours": asked.hours,
        "step_s": asked.step,
        "recording_mb": size / 1e6,
        "wall_s": found["wall_s"],
        "times_real_time": found["speed"],
        "policies": len(found["policies"]),
        "fault_found_after_s": lost["opened_at"] - fault.at if lost else None,
    }
    print(
        f"{asked.gpus} GPUs, {asked.hours:g} h at a step of {asked.step:g} s ({size / 1e6:.0f} MB): {found['speed']:.0f} times real time with "
        f"{len(found['policies'])} controllers; the lost GPU was found {result['fault_found_after_s']} s after its fault"
    )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
