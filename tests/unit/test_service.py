"""Sources from settings, and what the service manager is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from web_town import Town, lived

from daemon import service
from daemon.model import Entity, Fact, Layout, Scrape, Series, SourceError
from daemon.policy import Mode
from daemon.settings import Settings
from daemon.telemetry.history import History
from daemon.telemetry.kernel_log import KernelLog
from daemon.telemetry.scrape import HttpScraper

AT = 1_780_000_000.0


def clock() -> float:
    return AT


def settings(**sources: object) -> Settings:
    return Settings.model_validate({"sources": sources})


async def test_every_configured_source_is_made(tmp_path: Path) -> None:
    (tmp_path / "n0.log").touch()
    (tmp_path / "ports").mkdir()
    tree = settings(
        http={"static": [{"targets": ["127.0.0.1:9400"], "labels": {"node": "n0"}}]},
        prometheus={"url": "http://127.0.0.1:9090", "live": True},
        sysfs={"root": str(tmp_path / "ports")},
        kernel_log=[{"path": str(tmp_path / "n0.log"), "node": "n0"}],
        mqtt={"host": "127.0.0.1"},
    )

    catalogue, sources, history = service.sources_of(tree, clock)

    assert set(sources) == {"http", "prometheus", "sysfs", "kernel_log:n0", "mqtt"}
    assert isinstance(history, History)
    assert catalogue.signals["gpu"]
    for source in sources.values():
        await source.close()


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"kernel_log": [{"path": "/nowhere/kmsg"}]}, "kernel log /nowhere/kmsg"),
        ({"sysfs": {"root": "/nowhere"}}, "/nowhere is no folder"),
        ({"http": {"static": [{"targets": ["no-port"]}]}}, "is not host:port"),
        ({"http": {}}, "give static, file_sd, dns or kubernetes"),
        ({"prometheus": {"url": "prometheus:9090"}}, "an http:// or https:// address is needed"),
        ({"prometheus": {"url": "http://127.0.0.1:9090"}}, "live: true"),
    ],
)
def test_a_source_that_is_asked_for_and_impossible_says_so(tree: dict[str, object], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        service.sources_of(settings(**tree), clock)


@pytest.mark.skipif(not service.nvml_trouble(), reason="this host has an NVIDIA driver")
def test_asking_for_nvml_without_a_driver_is_an_error_and_not_asking_is_none(tmp_path: Path) -> None:
    (tmp_path / "n0.log").touch()

    with pytest.raises(SourceError, match=r"sources\.nvml: .*; install the NVIDIA driver"):
        service.sources_of(settings(nvml={}), clock)
    _, sources, _ = service.sources_of(
        settings(kernel_log=[{"path": str(tmp_path / "n0.log"), "node": "n0"}]), clock
    )

    assert set(sources) == {"kernel_log:n0"}


async def test_a_paced_source_is_read_once_an_interval() -> None:
    class Counting:
        reads = 0

        async def read(self) -> tuple[Scrape, ...]:
            self.reads += 1
            return ()

        async def close(self) -> None:
            return

    source = Counting()
    paced = service.Paced(source, interval_s=3600.0)

    for _ in range(5):
        await paced.read()

    assert source.reads == 1


@pytest.fixture
def town() -> Town:
    return lived(0.05, Mode.OBSERVE)


def test_a_kernel_log_asks_for_the_gpus_of_its_own_node(town: Town, tmp_path: Path) -> None:
    series, facts = [], []
    for node in ("a0", "a1"):
        gpu = Entity("gpu", f"{node}/gpu0")
        series.append(Series("temp_c", gpu))
        facts.append(Fact(gpu, "pci", "00000000:3B:00.0"))
    layout = Layout("both", tuple(series), tuple(facts))
    town.daemon.builder.absorb(Scrape("both", town.now + 1.0, layout, np.array([50.0, 51.0])))
    town.now += 1.0
    town.daemon.tick()
    (tmp_path / "log").touch()
    logs = {n: KernelLog(str(tmp_path / "log"), n, clock) for n in ("a0", "a1")}

    service.bind_gpu_names(logs, town.daemon)

    assert logs["a0"].gpus() == {"0000:3b:00": "a0/gpu0"}
    assert logs["a1"].gpus() == {"0000:3b:00": "a1/gpu0"}


def test_engine_names_from_the_settings_win(town: Town) -> None:
    _, sources, _ = service.sources_of(
        settings(http={"static": [{"targets": ["127.0.0.1:1"]}], "engines": {"srv1": "10.0.0.1:8000"}}), clock
    )

    service.bind_gpu_names(sources, town.daemon)

    scraper = sources["http"]
    assert isinstance(scraper, HttpScraper)
    assert scraper.engines()["srv1"] == "10.0.0.1:8000"


async def test_the_service_manager_hears_ready_once_and_status(town: Town) -> None:
    said: list[str] = []
    enough = asyncio.Event()

    def notify(message: str) -> bool:
        said.append(message)
        if message.startswith("WATCHDOG"):
            enough.set()
        return True

    task = asyncio.create_task(service.report(town.daemon, notify))
    await enough.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert said[0] == "READY=1"
    assert said[1].startswith("STATUS=observe mode, ")
    assert "targets up" in said[1]
    assert said.count("WATCHDOG=1") == 1


def test_a_reload_of_nothing_says_so(town: Town) -> None:
    problems = service.reload(town.daemon, None)

    assert len(problems) == 1
    assert "started without a configuration file" in town.daemon.status.reload_error


ICS = "BEGIN:VCALENDAR\nBEGIN:VEVENT\nSUMMARY:{}\nDTSTART:{}\nEND:VEVENT\nEND:VCALENDAR\n"


def test_a_reload_reads_the_calendar_file_again_and_a_broken_one_changes_nothing(
    town: Town, tmp_path: Path
) -> None:
    days, config = tmp_path / "events.ics", tmp_path / "config.yaml"
    config.write_text(f"cluster: town\ncalendar:\n  files: [{days}]\n")

    def names() -> list[str]:
        return [o.group for o in town.daemon.foresight.calendar(AT, AT + 30 * 86400.0)]

    days.write_text(ICS.format("launch", "20260610"))
    first, known = service.reload(town.daemon, config), names()
    days.write_text(ICS.format("sale", "20260612"))
    second, then = service.reload(town.daemon, config), names()
    days.write_text(ICS.format("sale", "tomorrow"))
    broken = service.reload(town.daemon, config)

    assert (first, known) == ([], ["launch"])
    assert (second, then) == ([], ["sale"])
    assert [p.path for p in broken] == ["calendar.files.0"]
    assert "'tomorrow' in zone 'UTC' is no time" in town.daemon.status.reload_error
    assert names() == ["sale"]
