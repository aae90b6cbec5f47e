"""Sentences of the kernel become events; a log is followed through rotation."""

import math
import os
from pathlib import Path

import pytest

from daemon.clock import VirtualLoop, run_virtual
from daemon.model import Entity, Event, SourceError
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.kernel_log import KernelLog, pci_key, read_sentence

GPUS = {"0000:3b:00": "n1/gpu2"}
PORTS = load_catalogue().ports


def sentence(text: str) -> Event | None:
    return read_sentence(text, 5.0, "n1", GPUS, PORTS.port)


@pytest.mark.parametrize(
    ("text", "entity", "code", "app"),
    [
        ("NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python3, GPU has fallen off the bus.", Entity("gpu", "n1/gpu2"), 79, "python3"),
        ("[  12.3] NVRM: Xid (PCI:00000000:3B:00.0): 48, pid='<unknown>', name=<unknown>, DBE", Entity("gpu", "n1/gpu2"), 48, ""),
        ("NVRM: Xid (0000:3b:00): 31, Ch 00000010", Entity("gpu", "n1/gpu2"), 31, ""),
        ("NVRM: Xid (PCI:0000:af:00): 63, pid=9, name=vllm", Entity("node", "n1"), 63, "vllm"),
        ("Nov 12 10:00:00 n1 kernel: [1.0] NVRM: Xid (PCI:0000:3b:00): 119, pid=5, name=a, Timeout", Entity("gpu", "n1/gpu2"), 119, "a"),
        ("NVRM: Xid (PCI:0000:3b:00): 154", Entity("gpu", "n1/gpu2"), 154, ""),
    ],
)  # fmt: skip
def test_an_xid_names_gpu_code_and_program(text: str, entity: Entity, code: float, app: str) -> None:
    event = sentence(text)

    assert event == Event(5.0, entity, "xid", code, "kernel_log", text, app)


@pytest.mark.parametrize(
    ("text", "kind", "entity", "app"),
    [
        ("Out of memory: Killed process 4242 (vllm) total-vm:1kB", "oom_kill", Entity("node", "n1"), "vllm"),
        ("oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task=python3,pid=7,uid=0", "oom_kill", Entity("node", "n1"), "python3"),
        ("INFO: task nvidia-smi:991 blocked for more than 120 seconds.", "hung_task", Entity("node", "n1"), "nvidia-smi"),
        ("EXT4-fs (sda1): Remounting filesystem read-only", "fs_readonly", Entity("node", "n1"), ""),
        ("blk_update_request: I/O error, dev nvme0n1, sector 2048", "io_error", Entity("node", "n1"), ""),
        ("mce: [Hardware Error]: Machine check events logged", "mce", Entity("node", "n1"), ""),
        ("NVRM: GPU0 NVLink: fatal error detected on link 3", "nvlink", Entity("node", "n1"), ""),
        ("mlx5_core 0000:3b:00.0 rdma3: Link down", "link_down", Entity("port", "n1/mlx5_3"), ""),
        ("igb 0000:01:00.0 eth0: igb: eth0 NIC Link is Down", "link_down", Entity("node", "n1"), ""),
        ("bnxt_en 0000:01:00.0 eth7: NIC Link is Down", "link_down", Entity("port", "n1/eth7"), ""),
    ],
)  # fmt: skip
def test_other_faults_are_told_apart(text: str, kind: str, entity: Entity, app: str) -> None:
    event = sentence(text)

    assert event is not None
    assert (event.kind, event.entity, event.app) == (kind, entity, app)
    assert math.isnan(event.code)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "eth0: link becomes ready",
        "usb 1-1: new high-speed USB device",
        "docker0: Link down",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module",
    ],
)
def test_ordinary_sentences_are_no_events(text: str) -> None:
    assert sentence(text) is None


@pytest.mark.parametrize("text", ["0000:3b:00", "PCI:0000:3B:00", "00000000:3B:00.0", "0000:3b:00.0"])
def test_pci_addresses_have_one_form(text: str) -> None:
    assert pci_key(text) == "0000:3b:00"


def xid(code: int) -> str:
    return f"NVRM: Xid (PCI:0000:3b:00): {code}, pid=1, name=a\n"


def follow(path: Path) -> KernelLog:
    return KernelLog(str(path), "n1", lambda: 5.0, gpus=lambda: GPUS)


async def codes(log: KernelLog) -> list[float]:
    return [event.code for scrape in await log.read() for event in scrape.events]


async def test_only_what_is_written_after_the_start_counts(tmp_path: Path) -> None:
    path = tmp_path / "kern.log"
    path.write_text(xid(79))
    log = follow(path)

    before = await codes(log)
    with path.open("a") as file:
        file.write("noise\n" + xid(48))

    assert before == []
    assert await codes(log) == [48]
    assert await codes(log) == []


async def test_a_line_written_in_two_parts_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "kern.log"
    path.touch()
    log = follow(path)

    with path.open("a") as file:
        file.write(xid(94)[:20])
    half = await codes(log)
    with path.open("a") as file:
        file.write(xid(94)[20:])

    assert half == []
    assert await codes(log) == [94]


async def test_nothing_is_lost_when_the_file_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "kern.log"
    path.touch()
    log = follow(path)

    with path.open("a") as file:
        file.write(xid(31))
    os.rename(path, tmp_path / "kern.log.1")
    path.write_text(xid(45))

    assert await codes(log) == [31, 45]


async def test_a_file_between_rename_and_create_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "kern.log"
    path.touch()
    log = follow(path)

    os.rename(path, tmp_path / "kern.log.1")
    gone = await codes(log)
    path.write_text(xid(45))

    assert gone == []
    assert await codes(log) == [45]


async def test_a_file_cut_short_in_place_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "kern.log"
    path.write_text(xid(79) * 10)
    log = follow(path)

    path.write_text(xid(13))

    assert await codes(log) == [13]


def test_a_log_that_cannot_be_opened_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="give the service read access"):
        follow(tmp_path / "absent")


def test_a_node_that_says_it_reboots_is_heard() -> None:
    event = read_sentence("reboot: Restarting system", 5.0, "n0", {})

    assert event is not None
    assert (event.kind, event.entity) == ("reboot", Entity("node", "n0"))


def test_an_event_ends_the_wait_and_a_line_that_means_nothing_does_not(tmp_path: Path) -> None:
    path = tmp_path / "kern.log"
    path.touch()
    woken: list[float] = []

    async def live(loop: VirtualLoop) -> None:
        source = KernelLog(str(path), "n0", loop.time)
        loop.call_at(5.0, path.write_text, "usb 1-1: new device\n")
        loop.call_at(9.1, path.write_text, "usb 1-1: new device\nEXT4-fs error (device sda1)\n")
        await source.changed()
        woken.append(loop.time())
        assert [e.kind for s in await source.read() for e in s.events] == ["io_error"]
        assert await source.read() == []

    run_virtual(live)

    assert woken == [9.5]
