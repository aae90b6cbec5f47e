"""A service that is given a secret in every place where it takes one, and whose peers repeat it: nothing shows it afterwards."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from test_service_process import Service, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

PROGRAM = Path(__file__).with_name("engine_program.py")
RAY = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from ray_server import RayServer

async def main():
    async with RayServer(port={port}, token="another").running():
        await asyncio.Event().wait()

asyncio.run(main())
"""
OWN = """#!/bin/sh
echo "curl: cannot log in with $OWN_TOKEN" >&2
exit 1
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    engines, ray = [free_port() for _ in range(3)], free_port()
    for name in ("admin", "bearer", "ray", "hook", "signature", "password"):
        (tmp_path / name).write_text(f"sesame-{name}-secret\n")
    (tmp_path / "url").write_text(f"http://127.0.0.1:{free_port()}/sesame-url-secret\n")
    own = tmp_path / "own.sh"
    own.write_text(OWN)
    own.chmod(0o755)
    (tmp_path / "ray.py").write_text(RAY.format(tests=str(Path(__file__).parents[1]), port=ray))
    sources = (
        "  http:\n    interval: 500ms\n    timeout: 400ms\n"
        f"    bearer_token_file: {tmp_path}/bearer\n"
        f"    static: [{{targets: {json.dumps([f'127.0.0.1:{p}' for p in engines])}, labels: {{pool: chat}}}}]\n"
    )
    extra = (
        "mode: auto\npools: [{name: chat, replicas: {min: 4, max: 8}, actions: {scale: ray}}]\nactions: {reroute: own}\nbackends:\n"
        f"  own: {{kind: command, argv: [{own}], env: {{OWN_TOKEN: sesame-own-secret}}}}\n"
        f"  ray: {{kind: ray, address: 'http://127.0.0.1:{ray}', token_path: {tmp_path}/ray, pools: {{chat: shop/Chat}}, "
        "offline_entrypoint: 'true', offline_runtime_env: {env_vars: {KEY: sesame-env-secret}}}\n"
        "notify:\n  channels:\n"
        f"  - {{kind: webhook, name: hook, url_file: {tmp_path}/url, secret_file: {tmp_path}/signature}}\n"
        f"  - {{kind: webhook, name: told, urls: ['http://user:sesame-inline-secret@127.0.0.1:{free_port()}/x']}}\n"
    )
    service = Service(tmp_path, sources, extra)
    text = service.config.read_text()
    service.config.write_text(text.replace("web: {", f"web: {{token_file: {tmp_path}/admin, reads: token, "))
    others = [
        subprocess.Popen([sys.executable, str(PROGRAM), str(port)], stderr=subprocess.DEVNULL)
        for port in engines
    ]
    others.append(subprocess.Popen([sys.executable, str(tmp_path / "ray.py")], stderr=subprocess.DEVNULL))
    try:
        service.sick, service.engines = others[0], engines  # type: ignore[attr-defined]
        yield service
    finally:
        for process in others:
            process.kill()
            process.wait()
        if service.process is not None and service.process.poll() is None:
            service.process.kill()


async def clients(ports: Sequence[int]) -> None:
    """Requests that never pause: a pool without any is given no more replicas."""

    async def ask(port: int) -> None:
        url = f"http://127.0.0.1:{port}/v1/completions"
        with suppress(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.post(url) as answer:
                await answer.read()

    async with asyncio.TaskGroup() as group:
        while True:
            for port in ports:
                group.create_task(ask(port))
            await asyncio.sleep(0.1)


def read(service: Service, path: str) -> str:
    """A page as whoever has the token sees it; the text of a refusal is a page too."""
    token = {"Authorization": "Bearer sesame-admin-secret"}
    request = urllib.request.Request(f"http://127.0.0.1:{service.port}{path}", headers=token)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode(errors="replace"))
    except urllib.error.HTTPError as refused:
        return refused.read().decode(errors="replace")


def everything(service: Service) -> dict[str, str]:
    """Every page that links lead to, and every path of the API that needs no name."""
    api = json.loads(read(service, "/api/v1/openapi.json"))["paths"]
    waiting = ["/", "/metrics", *(p if p.startswith("/api") else f"/api/v1{p}" for p in api if "{" not in p)]
    pages: dict[str, str] = {}
    while waiting and len(pages) < 300:
        path = waiting.pop()
        if path in pages:
            continue
        pages[path] = read(service, path)
        found = re.findall(r'href="(/[^"#]*)"', pages[path])
        waiting += [link.replace("&amp;", "&") for link in found if "logout" not in link]
    return pages


async def test_no_secret_shows_in_a_page_the_journal_the_log_or_an_error(
    service: Service, tmp_path: Path
) -> None:
    asking = asyncio.create_task(clients(service.engines))  # type: ignore[attr-defined]
    await asyncio.to_thread(story, service, tmp_path)
    asking.cancel()


def story(service: Service, tmp_path: Path) -> None:
    service.start()
    service.until(lambda: read(service, "/readyz") != "", 30)
    service.until(lambda: json.loads(read(service, "/api/v1/targets"))["counts"].get("up") == 3, 30)
    service.sick.send_signal(signal.SIGKILL)  # type: ignore[attr-defined]

    def has_failed(verb: str) -> bool:
        rows = json.loads(read(service, "/api/v1/actions"))["actions"]
        return any(r["verb"] == verb and r["result"] in ("refused", "failed", "unknown") for r in rows)

    service.until(lambda: has_failed("scale") and has_failed("reroute"), 90)
    time.sleep(2)  # the channels have been tried, too
    pages = everything(service)
    assert service.process is not None
    service.process.send_signal(signal.SIGTERM)
    out, log = service.process.communicate(timeout=30)
    shown = subprocess.run(
        [sys.executable, "-m", "daemon", "config", "show", "-c", str(service.config)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    journal = "\n".join(
        dump for file in (tmp_path / "state").glob("*.db*") if file.suffix == ".db" for dump in dumped(file)
    )

    places = pages | {"log": out + log, "config show": shown.stdout + shown.stderr, "journal": journal}
    assert len(pages) > 40
    assert "cannot log in with ***" in journal
    assert "token into a file and name it as token_path" in journal
    assert {p: t[max(0, t.find("sesame") - 80) :][:160] for p, t in places.items() if "sesame" in t} == {}


def dumped(file: Path) -> list[str]:
    with sqlite3.connect(file) as database:
        return list(database.iterdump())
