"""Where targets come from, with what happens when that place breaks."""

import asyncio
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from daemon.model import SourceError, Target
from daemon.telemetry.discovery import DnsDiscovery, FileDiscovery, target_of
from daemon.telemetry.dns import ask_srv, question, read_srv


def write(path: Path, text: str, second: int) -> None:
    """Write and date the file: two writes within one tick of the file system's clock would look alike."""
    path.write_text(text)
    os.utime(path, (second, second))


def groups(*addresses: str, **labels: str) -> str:
    return json.dumps([{"targets": list(addresses), "labels": labels}])


async def test_file_sd_json_and_yaml_give_targets_with_labels(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(groups("n1:9400", node="n1", job="dcgm"))
    (tmp_path / "b.yml").write_text(
        "- targets: ['n2:8000']\n  labels: {pool: chat, gpus: 4, __scheme__: https, __metrics_path__: /m}\n"
    )

    found = await FileDiscovery((str(tmp_path / "*"),)).targets()

    assert found == (
        Target("n1:9400", "dcgm", labels=(("node", "n1"),)),
        Target("n2:8000", "", "/m", "https", (("gpus", "4"), ("pool", "chat"))),
    )


async def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write(path, groups("n1:9400"), 1)
    discovery = FileDiscovery((str(path),))
    await discovery.targets()

    write(path, groups("n1:9400", "n2:9400"), 2)

    assert [t.address for t in await discovery.targets()] == ["n1:9400", "n2:9400"]


@pytest.mark.parametrize(
    ("broken", "word"),
    [
        ('[{"targets": ["n1:94', "not readable"),
        ("{}", "a list"),
        ('[{"labels": {}}]', "list `targets`"),
        ('[{"targets": ["n1"]}]', "host:port"),
        ("", "not readable"),
    ],
)
async def test_a_broken_file_keeps_the_last_good_targets_and_says_so(
    tmp_path: Path, broken: str, word: str
) -> None:
    path = tmp_path / "a.json"
    write(path, groups("n1:9400"), 1)
    discovery = FileDiscovery((str(path),))
    await discovery.targets()

    write(path, broken, 2)
    found = await discovery.targets()

    assert [t.address for t in found] == ["n1:9400"]
    assert word in discovery.error
    assert "keeping 1 targets" in discovery.error


async def test_a_repaired_file_clears_the_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write(path, "broken", 1)
    discovery = FileDiscovery((str(path),))
    await discovery.targets()

    write(path, groups("n1:9400"), 2)

    assert len(await discovery.targets()) == 1
    assert discovery.error == ""


async def test_a_removed_file_takes_its_targets_along(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(groups("n1:9400"))
    (tmp_path / "b.json").write_text(groups("n2:9400"))
    discovery = FileDiscovery((str(tmp_path / "*.json"),))
    await discovery.targets()

    (tmp_path / "a.json").unlink()

    assert [t.address for t in await discovery.targets()] == ["n2:9400"]


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(SourceError, match="no user") as caught:
        target_of("admin:geheim@n1:9400", {})

    assert "geheim" not in str(caught.value)


async def test_a_name_is_resolved_to_its_addresses() -> None:
    template = Target("", "vllm", labels=(("pool", "chat"),))

    found = await DnsDiscovery("localhost", 8000, template=template).targets()

    assert "127.0.0.1:8000" in [t.address for t in found]
    assert {(t.job, t.labels) for t in found} == {("vllm", (("pool", "chat"),))}


async def test_a_name_that_stops_resolving_keeps_its_addresses() -> None:
    discovery = DnsDiscovery("localhost", 8000, refresh_s=0.0)
    before = await discovery.targets()

    discovery.name = "no-such-host.invalid"
    after = await discovery.targets()

    assert after == before
    assert "no-such-host.invalid" in discovery.error


def srv_answer(asked: bytes, records: list[tuple[int, str]]) -> bytes:
    body = asked[12:]
    message = struct.pack(">6H", struct.unpack_from(">H", asked)[0], 0x8180, 1, len(records), 0, 0) + body
    for port, host in records:
        name = b"".join(bytes([len(part)]) + part.encode() for part in host.split(".")) + b"\0"
        data = struct.pack(">3H", 0, 0, port) + name
        message += b"\xc0\x0c" + struct.pack(">HHIH", 33, 1, 60, len(data)) + data
    return message


class NameServer(asyncio.DatagramProtocol):
    """A real UDP name server that knows one service."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(srv_answer(data, [(8000, "e1.pool.local"), (8001, "e0.pool.local")]), addr)


async def test_srv_records_give_hosts_with_ports() -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    try:
        found = await ask_srv("_http._tcp.pool.local", (transport.get_extra_info("sockname"),))
    finally:
        transport.close()

    assert found == ["e0.pool.local:8001", "e1.pool.local:8000"]


def test_a_broken_dns_answer_is_refused() -> None:
    whole = srv_answer(question("a.b", 7), [(1, "h.i")])

    for length in range(len(whole)):
        with pytest.raises(SourceError):
            read_srv(whole[:length])


def test_a_dns_name_that_refers_to_itself_ends() -> None:
    loop = struct.pack(">6H", 1, 0x8180, 1, 0, 0, 0) + b"\xc0\x0c" + b"\0\x21\0\1"

    with pytest.raises(SourceError, match="refers to itself"):
        read_srv(loop)
