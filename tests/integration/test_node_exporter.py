"""A real node_exporter, scraped live, with a laid-out InfiniBand tree."""

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.clock import wall_clock
from daemon.model import Scrape, Target
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.discovery import Static
from daemon.telemetry.scrape import HttpScraper, ScrapeSettings
from daemon.telemetry.sysfs import read_ports

pytestmark = pytest.mark.integration


def lay_infiniband(sys: Path) -> Path:
    """The files node_exporter's infiniband collector insists on, for one 400G port."""
    port = sys / "class/infiniband/mlx5_0/ports/1"
    files = {
        "state": "4: ACTIVE\n",
        "phys_state": "5: LinkUp\n",
        "rate": "400 Gb/sec (4X NDR)\n",
        "link_layer": "InfiniBand\n",
        "counters/port_xmit_data": "1000\n",
        "counters/port_rcv_data": "2500\n",
        "counters/port_xmit_wait": "42\n",
        "counters/symbol_error": "3\n",
        "counters/link_downed": "1\n",
        "counters/link_error_recovery": "2\n",
        "counters/port_rcv_errors": "0\n",
        "counters/port_xmit_discards": "5\n",
        "counters/port_rcv_remote_physical_errors": "6\n",
        "hw_counters/np_cnp_sent": "7\n",
        "hw_counters/rp_cnp_handled": "8\n",
        "hw_counters/out_of_sequence": "9\n",
        "hw_counters/packet_seq_err": "10\n",
    }
    for name, text in files.items():
        (port / name).parent.mkdir(parents=True, exist_ok=True)
        (port / name).write_text(text)
    board = sys / "class/infiniband/mlx5_0"
    (board / "board_id").write_text("MT_0000000838\n")
    (board / "fw_ver").write_text("28.39.1002\n")
    (board / "hca_type").write_text("MT4129\n")
    return port


def memory_bytes() -> int:
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(memory["MemTotal"].split()[0]) * 1024


async def scrape_twice(address: str) -> tuple[Scrape, Scrape]:
    target = Target(address, labels=(("node", "n1"), ("rack", "r1")))
    source = HttpScraper([Static((target,))], load_catalogue(), wall_clock, ScrapeSettings(interval_s=0.3))
    found: list[Scrape] = []
    try:
        async with asyncio.timeout(30):
            while len(found) < 2:
                found += await source.read()
                await asyncio.sleep(0.05)
    finally:
        await source.close()
    return found[0], found[1]


def signals(scrape: Scrape) -> dict[tuple[str, str], float]:
    assert scrape.error == ""
    assert scrape.layout is not None
    assert scrape.values is not None
    found: dict[tuple[str, str], float] = {}
    for series, value in zip(scrape.layout.series, scrape.values.tolist(), strict=True):
        key = (series.entity.name, series.signal)
        found[key] = found.get(key, 0.0) + value
    return found


async def test_a_live_node_gives_node_and_port_signals(
    tmp_path: Path,
    binary: Callable[[str], str],
    start: Callable[[list[str]], subprocess.Popen[bytes]],
    free_port: Callable[[], int],
    answers: Callable[[str, subprocess.Popen[bytes]], None],
) -> None:
    port_files = lay_infiniband(tmp_path / "sys")
    port = free_port()
    process = start(
        [
            binary("prometheus-node-exporter"),
            f"--web.listen-address=127.0.0.1:{port}",
            f"--path.sysfs={tmp_path / 'sys'}",
            "--collector.ethtool",
        ]
    )
    await asyncio.to_thread(answers, f"http://127.0.0.1:{port}/metrics", process)

    one, two = await scrape_twice(f"127.0.0.1:{port}")

    found = signals(one)
    assert found["n1", "cpus"] == os.cpu_count()
    assert found["n1", "mem_total_bytes"] == memory_bytes()
    assert abs(found["n1", "clock_s"] - one.at) < 5
    assert found["n1", "cpu_idle_s_per_s"] > 0
    assert found["n1/mlx5_0", "tx_bytes_s"] == 4000
    assert found["n1/mlx5_0", "rx_bytes_s"] == 10000
    assert found["n1/mlx5_0", "rate_bytes_s"] == 50e9
    assert found["n1/mlx5_0", "state_id"] == 4
    assert found["n1/mlx5_0", "phys_state_id"] == 5
    assert found["n1/mlx5_0", "xmit_wait_per_s"] == 42
    assert found["n1/mlx5_0", "link_downed_per_s"] == 1
    assert found["n1/mlx5_0", "remote_phys_errors_per_s"] == 6
    assert two.at > one.at
    # The exporter and the daemon's own reading of the same files agree; node_exporter 1.5 leaves hw_counters out.
    own = {
        (e.name, signal): value for (e, signal), value in read_ports(port_files.parents[2], "n1")[0].items()
    }
    exported = {key: value for key, value in found.items() if key[0] == "n1/mlx5_0"}
    assert exported.items() <= own.items()
    assert own["n1/mlx5_0", "cnp_handled_per_s"] == 8
    assert own["n1/mlx5_0", "seq_errors_per_s"] == 10


MOUNTSTATS = """device 10.0.0.9:/models mounted on /models with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.0,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=10.0.0.1,local_lock=none,addr=10.0.0.9
\tage:\t13968
\tcaps:\tcaps=0xfff7,wtmult=512,dtsize=32768,bsize=0,namlen=255
\tnfsv4:\tbm0=0xfdffafff,bm1=0xf9be3e,bm2=0x0,acl=0x0,pnfs=not configured
\tsec:\tflavor=1,pseudoflavor=1
\tevents:\t52 226 0 0 1 13 398 0 0 331 0 47 0 0 77 0 0 77 0 0 0 0 0 0 0 0 0
\tbytes:\t1207640230 0 0 0 1210214218 4096 295483 0
\tRPC iostats version: 1.0  p/v: 100003/4 (nfs)
\txprt:\ttcp 832 0 1 0 11 6428 6428 0 12154 0 24 26 5726
\tper-op statistics
\t        NULL: 0 0 0 0 0 0 0 0
\t        READ: 1298 1310 3 207680 1210292152 6 79386 79407
\t       WRITE: 2 2 0 500 400 0 10 12
"""
MOUNTINFO = "36 25 0:33 / /models rw,relatime shared:19 - nfs4 10.0.0.9:/models rw,vers=4.0,addr=10.0.0.9\n"
DISKSTATS = """ 259       0 nvme0n1 5000 0 409600 2500 100 0 8000 50 0 1300 2550 0 0 0 0
 259       1 nvme0n1p1 4000 0 400000 2000 90 0 7000 40 0 1200 2040 0 0 0 0
   8       0 sda 77 0 616 10 0 0 0 0 0 10 10 0 0 0 0
"""


async def test_a_live_exporter_tells_of_a_local_disk_and_of_an_nfs_mount(
    tmp_path: Path,
    binary: Callable[[str], str],
    start: Callable[[list[str]], subprocess.Popen[bytes]],
    free_port: Callable[[], int],
    answers: Callable[[str, subprocess.Popen[bytes]], None],
) -> None:
    proc = tmp_path / "proc"
    (proc / "42").mkdir(parents=True)
    (proc / "self").symlink_to("42")
    (proc / "42" / "mountstats").write_text(MOUNTSTATS)
    (proc / "42" / "mountinfo").write_text(MOUNTINFO)
    (proc / "diskstats").write_text(DISKSTATS)
    port = free_port()
    process = start(
        [
            binary("prometheus-node-exporter"),
            f"--web.listen-address=127.0.0.1:{port}",
            f"--path.procfs={proc}",
            "--collector.disable-defaults",
            "--collector.diskstats",
            "--collector.mountstats",
        ]
    )
    await asyncio.to_thread(answers, f"http://127.0.0.1:{port}/metrics", process)

    one, _ = await scrape_twice(f"127.0.0.1:{port}")

    found = {key: value for key, value in signals(one).items() if key[0].startswith("n1/")}
    disk, mount = "n1/nvme0n1", "n1/10.0.0.9:/models"
    assert {name for name, _ in found} == {disk, mount}
    assert found[disk, "reads_per_s"] == 5000
    assert found[disk, "read_bytes_s"] == 409600 * 512
    assert found[disk, "read_s_per_s"] == 2.5
    assert found[disk, "busy_ratio"] == 1.3
    assert found[mount, "reads_per_s"] == 1298
    assert found[mount, "writes_per_s"] == 2
    assert found[mount, "read_bytes_s"] == 1210214218
    assert found[mount, "read_s_per_s"] == 79.407
    assert found[mount, "resent_per_s"] == 1312
    assert found[mount, "errors_per_s"] == 3
