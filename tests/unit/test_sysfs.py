"""Port counters as the kernel writes them."""

from pathlib import Path

import numpy as np
import pytest

from daemon.model import Entity, Fact, Shape, SourceError
from daemon.telemetry.catalogue import load_catalogue, shapes_of
from daemon.telemetry.columns import Columns
from daemon.telemetry.sysfs import SysfsPorts, read_ports

SHAPES = shapes_of(load_catalogue())


def lay_port(root: Path, device: str = "mlx5_0", number: str = "1", **files: str) -> Path:
    port = root / device / "ports" / number
    standard = {
        "counters/port_xmit_data": "250\n",
        "counters/port_rcv_data": "1000\n",
        "counters/port_xmit_wait": "7\n",
        "counters/link_downed": "0\n",
        "hw_counters/np_cnp_sent": "12\n",
        "state": "4: ACTIVE\n",
        "phys_state": "5: LinkUp\n",
        "rate": "400 Gb/sec (4X NDR)\n",
        "link_layer": "InfiniBand\n",
    }
    for name, text in {**standard, **{k.replace("__", "/"): v for k, v in files.items()}}.items():
        (port / name).parent.mkdir(parents=True, exist_ok=True)
        (port / name).write_text(text)
    return port


def test_words_become_bytes_and_states_become_codes(tmp_path: Path) -> None:
    lay_port(tmp_path)

    readings, facts = read_ports(tmp_path, "n1")

    port = Entity("port", "n1/mlx5_0")
    assert readings == {
        (port, "tx_bytes_s"): 1000.0,
        (port, "rx_bytes_s"): 4000.0,
        (port, "xmit_wait_per_s"): 7.0,
        (port, "link_downed_per_s"): 0.0,
        (port, "cnp_sent_per_s"): 12.0,
        (port, "state_id"): 4.0,
        (port, "phys_state_id"): 5.0,
        (port, "rate_bytes_s"): 50e9,
    }
    assert facts == (Fact(port, "node", "n1"), Fact(port, "link_layer", "InfiniBand"))


def test_an_unreadable_counter_is_absent_and_not_zero(tmp_path: Path) -> None:
    lay_port(tmp_path, counters__port_xmit_wait="N/A (no PMA)\n")

    readings, _ = read_ports(tmp_path, "n1")

    assert (Entity("port", "n1/mlx5_0"), "xmit_wait_per_s") not in readings


def test_every_signal_read_is_in_the_catalogue(tmp_path: Path) -> None:
    lay_port(tmp_path)

    readings, _ = read_ports(tmp_path, "n1")

    assert {signal for _, signal in readings} <= set(SHAPES["port"])


async def test_the_layout_is_shared_and_counters_are_counters(tmp_path: Path) -> None:
    port = lay_port(tmp_path)
    source = SysfsPorts(tmp_path, "n1", lambda: 9.0, Columns("sysfs:n1", SHAPES))

    (one,) = await source.read()
    (port / "counters/port_xmit_data").write_text("500\n")
    (two,) = await source.read()

    assert one.layout is two.layout is not None
    assert {s.signal: s.shape for s in two.layout.series}["tx_bytes_s"] is Shape.COUNTER
    assert np.array_equal(two.values - one.values, [1000.0] + [0.0] * 7)


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="load the RDMA driver"):
        SysfsPorts(tmp_path / "absent", "n1", lambda: 0.0, Columns("sysfs:n1", SHAPES))
