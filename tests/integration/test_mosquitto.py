"""A real mosquitto: readings arrive, bad ones are counted, a broker that restarts is found again."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.clock import wall_clock
from daemon.model import Scrape
from daemon.telemetry import mqtt
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.mqtt import MqttSettings, MqttSource

pytestmark = pytest.mark.integration

Start = Callable[[list[str]], subprocess.Popen[bytes]]


@pytest.fixture
def broker(
    tmp_path: Path,
    binary: Callable[[str], str],
    start: Start,
    free_port: Callable[[], int],
    listens: Callable[[int, subprocess.Popen[bytes]], None],
) -> tuple[int, Callable[[], subprocess.Popen[bytes]]]:
    """Port with a function that starts the broker there; one user, everybody else refused."""
    port = free_port()
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    passwords.chmod(0o600)
    subprocess.run(
        [binary("mosquitto_passwd"), "-b", str(passwords), "warden", "secret"], check=True, timeout=10
    )
    (tmp_path / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\npersistence false\nuser root\n"
    )

    def _start() -> subprocess.Popen[bytes]:
        process = start([binary("mosquitto"), "-c", str(tmp_path / "mosquitto.conf")])
        listens(port, process)
        return process

    return port, _start


def publish(binary: Callable[[str], str], port: int, payload: str) -> None:
    command = [binary("mosquitto_pub"), "-h", "127.0.0.1", "-p", str(port), "-u", "warden", "-P", "secret"]
    subprocess.run([*command, "-q", "1", "-t", "tidewarden-in/n1", "-m", payload], check=True, timeout=10)


async def until(source: MqttSource, enough: Callable[[list[Scrape]], bool]) -> list[Scrape]:
    found: list[Scrape] = []
    async with asyncio.timeout(30):
        while not enough(found):
            found += await source.read()
            await asyncio.sleep(0.02)
    return found


async def connected(source: MqttSource) -> None:
    async with asyncio.timeout(30):
        while source.error:
            await source.read()
            await asyncio.sleep(0.02)


async def test_readings_arrive_and_a_restarted_broker_is_found_again(
    tmp_path: Path,
    binary: Callable[[str], str],
    broker: tuple[int, Callable[[], subprocess.Popen[bytes]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mqtt, "BACK_OFF_S", (0.05, 0.2))
    port, start_broker = broker
    (tmp_path / "password").write_text("secret\n")
    settings = MqttSettings("127.0.0.1", port, user="warden", password_file=str(tmp_path / "password"))
    source = MqttSource(settings, load_catalogue(), wall_clock)
    try:
        before = await until(source, lambda found: len(found) >= 2)
        process = await asyncio.to_thread(start_broker)
        await connected(source)

        at = wall_clock()
        batch = [
            {"entity": f"gpu n1/gpu{i}", "signal": "temp_c", "value": 60 + i, "at": at} for i in range(2)
        ]
        await asyncio.to_thread(publish, binary, port, json.dumps(batch))
        await asyncio.to_thread(publish, binary, port, "{broken")
        vendor = {"metric": "DCGM_FI_DEV_GPU_UTIL", "labels": {"gpu": "0", "Hostname": "n1"}, "value": 50}
        await asyncio.to_thread(publish, binary, port, json.dumps(vendor))
        found = await until(
            source, lambda scrapes: sum(s.values is not None and len(s.values) for s in scrapes) >= 3
        )

        process.terminate()
        await asyncio.to_thread(process.wait, 10)
        await until(source, lambda scrapes: any(s.error for s in scrapes))
        await asyncio.to_thread(start_broker)
        await connected(source)
        await asyncio.to_thread(publish, binary, port, json.dumps(batch[:1]))
        after = await until(
            source, lambda scrapes: any(s.values is not None and len(s.values) for s in scrapes)
        )
    finally:
        await source.close()

    assert all(scrape.error for scrape in before[:1])
    rows = {
        (series.entity.name, series.signal): value
        for scrape in found
        if scrape.layout is not None and scrape.values is not None
        for series, value in zip(scrape.layout.series, scrape.values.tolist(), strict=True)
    }
    assert rows == {("n1/gpu0", "temp_c"): 60, ("n1/gpu1", "temp_c"): 61, ("n1/gpu0", "util_ratio"): 0.5}
    assert [s.at for s in found if s.layout is not None and len(s.layout.series) == 2] == [at]
    assert source.bad == 1
    assert sum(scrape.dropped for scrape in found) == 1
    assert after[-1].values is not None


async def test_a_wrong_password_is_an_error_and_no_crash(
    broker: tuple[int, Callable[[], subprocess.Popen[bytes]]],
) -> None:
    port, start_broker = broker
    await asyncio.to_thread(start_broker)
    source = MqttSource(MqttSettings("127.0.0.1", port, user="warden"), load_catalogue(), wall_clock)

    try:
        found = await until(source, lambda scrapes: any("not connected" not in s.error for s in scrapes))
    finally:
        await source.close()

    assert "ot authori" in found[-1].error
