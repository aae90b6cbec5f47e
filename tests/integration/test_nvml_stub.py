"""The real nvidia-ml-py on a stand-in driver: readings, a lost GPU, a call that hangs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, binary: Callable[[str], str]) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    source = HERE / "nvml_stub.c"
    command = [
        binary("gcc"),
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Werror",
        str(source),
        "-o",
        str(folder / "libnvidia-ml.so.1"),
    ]
    subprocess.run(command, check=True, timeout=60)
    return folder


def tell(library: Path, steer: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library),
        "NVML_STUB": str(steer),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(HERE / "nvml_story.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def chapters(library: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    told = tell(library, tmp_path_factory.mktemp("steer"))
    assert told.returncode == 0, told.stderr
    found: list[dict[str, Any]] = json.loads(told.stdout)
    return found


def test_a_healthy_gpu_gives_canonical_readings(chapters: list[dict[str, Any]]) -> None:
    gpu0 = chapters[0]["values"]["n1/gpu0"]

    assert gpu0 == {
        "util_ratio": 0.4,
        "sm_clock_mhz": 1980,
        "mem_clock_mhz": 2619,
        "throttle_bits": 0,
        "power_w": 512,
        "energy_j_per_s": 7,
        "temp_c": 50,
        "hbm_total_bytes": 1000,
        "hbm_free_bytes": 400,
        "hbm_used_bytes": 600,
        "ecc_sbe_per_s": 9,
        "ecc_dbe_per_s": 1,
        "rows_remapped_correctable": 1,
        "rows_remapped_uncorrectable": 2,
        "row_remap_pending": 1,
        "row_remap_failed": 0,
        "pcie_link_gen": 5,
        "pcie_link_gen_max": 5,
        "pcie_link_width": 8,
        "pcie_link_width_max": 16,
        "pcie_replay_per_s": 3,
        "pcie_tx_bytes_s": 20_000,
        "pcie_rx_bytes_s": 30_000,
        "nvlink_replay_per_s": 10,
        "nvlink_recovery_per_s": 0,
        "nvlink_crc_per_s": 0,
        "nvml_hang": 0,
        "gpu_lost": 0,
    }
    assert chapters[0]["values"]["n1/gpu3"]["throttle_bits"] == 0x80
    assert chapters[0]["facts"]["n1/gpu1 uuid"] == "GPU-1"
    assert chapters[0]["facts"]["n1/gpu1 sku"] == "NVIDIA H100 80GB HBM3"


def test_a_lost_gpu_is_told_once_and_the_others_go_on(chapters: list[dict[str, Any]]) -> None:
    lost, after = chapters[1], chapters[2]

    assert lost["values"]["n1/gpu1"] == {"gpu_lost": 1}
    assert [
        e["entity"]["name"] if isinstance(e["entity"], dict) else e["entity"][1]
        for e in lost["events"]
        if e["kind"] == "gpu_lost"
    ] == ["n1/gpu1"]
    assert after["values"]["n1/gpu1"] == {"gpu_lost": 1}
    assert after["events"] == []
    assert len(after["values"]["n1/gpu0"]) == 28


def test_an_xid_from_the_driver_is_an_event(chapters: list[dict[str, Any]]) -> None:
    (event,) = [e for e in chapters[1]["events"] if e["kind"] == "xid"]

    assert (event["code"], event["origin"]) == (79, "nvml")


def test_a_hanging_call_is_told_once_and_piles_up_no_threads(chapters: list[dict[str, Any]]) -> None:
    hung = chapters[3:7]

    assert [chapter["values"]["n1/gpu2"] for chapter in hung] == [{"nvml_hang": 1}] * 4
    assert [[e["kind"] for e in chapter["events"]] for chapter in hung] == [["nvml_hang"], [], [], []]
    assert {chapter["threads"] for chapter in hung} == {5}
    assert all(len(chapter["values"]["n1/gpu0"]) == 28 for chapter in hung)


def test_gpus_that_come_back_are_read_again(chapters: list[dict[str, Any]]) -> None:
    back = chapters[7]

    assert len(back["values"]["n1/gpu1"]) == len(back["values"]["n1/gpu2"]) == 28
    assert back["values"]["n1/gpu2"]["nvml_hang"] == 0
    assert back["events"] == []


def test_no_driver_is_a_clear_error(library: Path, tmp_path: Path) -> None:
    (tmp_path / "none").touch()

    told = tell(library, tmp_path)

    assert told.returncode == 3
    assert "install the NVIDIA driver on this host or drop the source" in told.stderr
