"""Finds the real programs the tests run against; starts and stops them by their own process id."""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGES = {
    "gcc": "gcc libc6-dev",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-node-exporter": "prometheus-node-exporter",
    "victoria-metrics": "victoria-metrics",
    "mosquitto": "mosquitto",
    "mosquitto_pub": "mosquitto-clients",
    "mosquitto_passwd": "mosquitto",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "chromium": "chromium",
    "haproxy": "haproxy",
    "etcd": "etcd-server",
    "prometheus-blackbox-exporter": "prometheus-blackbox-exporter",
}

Start = Callable[[list[str]], subprocess.Popen[bytes]]


def find_binary(name: str) -> str:
    """Path of a program. Without it the test is skipped with the package to install; under CI=true it fails."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found:
        return found
    message = f"{name} is missing: apt-get install {PACKAGES.get(name, name)} (tests/integration/install.sh)"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def binary() -> Callable[[str], str]:
    return find_binary


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def free_port() -> Callable[[], int]:
    return _free_port


@pytest.fixture
def answers() -> Callable[[str, subprocess.Popen[bytes]], None]:
    return wait_for_http


@pytest.fixture
def listens() -> Callable[[int, subprocess.Popen[bytes]], None]:
    return wait_for_port


def wait_for_http(url: str, process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> None:
    """Until the server answers 200. Fails the test when it ends or stays silent."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"{process.args!r} ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    pytest.fail(f"{url} did not answer within {timeout_s:g} s")


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"{process.args!r} ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"nothing listens on port {port} after {timeout_s:g} s")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program that ends with the test; its output lies in tmp_path."""
    running: list[subprocess.Popen[bytes]] = []

    def _start(command: list[str]) -> subprocess.Popen[bytes]:
        with (tmp_path / f"output-{len(running)}.log").open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path)
        running.append(process)
        return process

    yield _start
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
