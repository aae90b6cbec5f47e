"""Runs the NVML source on the stand-in driver and prints what it saw; started by test_nvml_stub.py.

In a process of its own: the real nvidia-ml-py finds its library once, through LD_LIBRARY_PATH.
"""

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

from daemon.clock import wall_clock
from daemon.codec import to_plain
from daemon.model import SourceError
from daemon.telemetry.catalogue import load_catalogue, shapes_of
from daemon.telemetry.columns import Columns
from daemon.telemetry.nvml import NvmlGpus

STEER = Path(os.environ["NVML_STUB"])


async def read(source: NvmlGpus) -> dict[str, object]:
    (scrape,) = await source.read()
    assert scrape.layout is not None
    assert scrape.values is not None
    values: dict[str, dict[str, float]] = {}
    for series, value in zip(scrape.layout.series, scrape.values.tolist(), strict=True):
        values.setdefault(series.entity.name, {})[series.signal] = value
    facts = {f"{f.entity.name} {f.key}": f.value for f in scrape.layout.facts}
    threads = sum(t.name.startswith("nvml-") for t in threading.enumerate())
    return {"values": values, "facts": facts, "events": to_plain(scrape.events), "threads": threads}


async def story() -> list[dict[str, object]]:
    source = NvmlGpus("n1", wall_clock, Columns("nvml:n1", shapes_of(load_catalogue())), deadline_s=0.5)
    chapters = [await read(source)]
    (STEER / "lost1").touch()
    (STEER / "xid3").write_text("79")
    chapters += [await read(source), await read(source)]
    (STEER / "hang2").touch()
    chapters += [await read(source) for _ in range(4)]
    (STEER / "hang2").unlink()
    (STEER / "lost1").unlink()
    while source._cards[2].worker.is_busy:  # noqa: ASYNC110 - a thread in the driver signals nobody
        await asyncio.sleep(0.01)
    chapters.append(await read(source))
    (STEER / "hang0").touch()  # and left hanging: the process must end all the same
    chapters.append(await read(source))
    return chapters


try:
    json.dump(asyncio.run(story()), sys.stdout)
except SourceError as problem:
    print(f"SourceError: {problem}", file=sys.stderr)
    sys.exit(3)
