"""The scraper on real sockets: its pace, its words for failures, what it never counts as one."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from daemon.clock import wall_clock
from daemon.model import Scrape, Target
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.discovery import Static
from daemon.telemetry.fetch import Credentials, redact
from daemon.telemetry.scrape import HttpScraper, ScrapeSettings, phase, slots_of

CATALOGUE = load_catalogue()
PAGE = "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def exporter(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/metrics", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def page(request: web.Request) -> web.Response:
    return web.Response(text=PAGE)


def scraper(*targets: Target, **settings: object) -> HttpScraper:
    known = {"interval_s": 0.2, "timeout_s": 1.0, "engine_timeout_s": 1.0, **settings}
    return HttpScraper([Static(targets)], CATALOGUE, wall_clock, ScrapeSettings(**known))  # type: ignore[arg-type]


async def take(source: HttpScraper, count: int) -> list[Scrape]:
    """The first `count` Scrapes; the deadline only ends a broken test."""
    found: list[Scrape] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found += await source.read()
            await asyncio.sleep(0.005)
    return found


async def first(source: HttpScraper) -> Scrape:
    try:
        return (await take(source, 1))[0]
    finally:
        await source.close()


async def test_an_engine_page_becomes_a_scrape() -> None:
    before = wall_clock()
    async with exporter(page) as address:
        scrape = await first(scraper(Target(address)))

    assert scrape.error == ""
    assert scrape.layout is not None
    assert scrape.values is not None
    assert {s.signal: v for s, v in zip(scrape.layout.series, scrape.values, strict=True)} == {
        "running": 3,
        "waiting": 1,
    }
    assert before <= scrape.at <= wall_clock()
    assert scrape.took_s > 0


async def test_the_layout_is_shared_until_the_series_change() -> None:
    texts = [PAGE, PAGE.replace(" 3", " 4"), PAGE + "vllm:num_preemptions_total 0\n"]

    async def changing(request: web.Request) -> web.Response:
        return web.Response(text=texts.pop(0) if len(texts) > 1 else texts[0])

    async with exporter(changing) as address:
        source = scraper(Target(address))
        one, two, three = (await take(source, 3))[:3]
        await source.close()

    assert one.layout is two.layout
    assert two.layout is not three.layout


async def test_connections_are_kept_and_no_compression_is_asked_for() -> None:
    seen: list[tuple[object, str | None]] = []

    async def noting(request: web.Request) -> web.Response:
        assert request.transport is not None
        seen.append((request.transport.get_extra_info("peername"), request.headers.get("Accept-Encoding")))
        return web.Response(text=PAGE)

    async with exporter(noting) as address:
        source = scraper(Target(address))
        await take(source, 3)
        await source.close()

    assert len({peer for peer, _ in seen}) == 1
    assert {encoding for _, encoding in seen} == {"identity"}


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def test_a_refused_connection_is_called_that() -> None:
    scrape = await first(scraper(Target(f"127.0.0.1:{closed_port()}")))

    assert scrape.error == "connection refused: nothing listens there"
    assert scrape.layout is None
    assert scrape.values is None


async def test_a_dead_name_is_called_a_dns_failure() -> None:
    scrape = await first(scraper(Target("no-such-host.invalid:9100"), timeout_s=10.0))

    assert scrape.error.startswith("DNS failure")


async def test_silence_beyond_the_timeout_is_called_that() -> None:
    async def silent(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response(text=PAGE)

    async with exporter(silent) as address:
        scrape = await first(scraper(Target(address), timeout_s=0.1))

    assert scrape.error == "no answer within 0.1 s"


async def test_a_late_answer_within_the_timeout_is_slow_and_not_down() -> None:
    release = asyncio.Event()

    async def busy(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response(text=PAGE)

    async with exporter(busy) as address:
        source = scraper(Target(address), interval_s=0.05, timeout_s=15.0)
        async with asyncio.timeout(10):
            while source.counts.pending < 3:
                assert await source.read() == []
                await asyncio.sleep(0.01)
        release.set()
        scrape = await first(source)

    assert scrape.error == ""
    assert scrape.took_s > 0.1
    assert source.counts.failed == 0


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: web.Response(status=503), "HTTP status 503, 200 is needed"),
        (lambda: web.Response(status=302, headers={"Location": "/login"}), "HTTP status 302, 200 is needed"),
        (
            lambda: web.Response(text="<html>\nlogin\n</html>\n"),
            "bad body: none of 2 lines is a sample; is this a metrics page?",
        ),
        (lambda: web.Response(text=PAGE * 100), "bad body: 5600 bytes announced, at most 5000 are read"),
    ],
)
async def test_a_bad_answer_costs_that_scrape(answer: Callable[[], web.Response], error: str) -> None:
    async def bad(request: web.Request) -> web.Response:
        return answer()

    async with exporter(bad) as address:
        scrape = await first(scraper(Target(address), body_max=5000))

    assert scrape.error == error


async def test_a_chunked_body_stops_at_the_limit() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x 1\n" * 1000)
        except ConnectionError:
            return response

    async with exporter(endless) as address:
        scrape = await first(scraper(Target(address), body_max=50_000))

    assert scrape.error == "bad body: more than 50000 bytes"


async def test_a_connection_that_breaks_in_the_body_is_a_bad_body() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nvllm:num_requests_running 3\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        scrape = await first(scraper(Target(f"127.0.0.1:{port}")))
    finally:
        server.close()

    assert scrape.error == "bad body: cut off before its announced end"


async def test_one_bad_line_is_counted_and_the_rest_kept() -> None:
    async def spoiled(request: web.Request) -> web.Response:
        return web.Response(text=PAGE + "vllm:num_preemptions_total oops\n")

    async with exporter(spoiled) as address:
        scrape = await first(scraper(Target(address)))

    assert scrape.dropped == 1
    assert scrape.error == ""


async def test_the_bearer_token_is_read_at_every_use(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    seen: list[str | None] = []

    async def guarded(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        token.write_text("two\n")
        return web.Response(text=PAGE)

    async with exporter(guarded) as address:
        source = scraper(Target(address), credentials=Credentials(bearer_token_file=str(token)))
        await take(source, 2)
        await source.close()

    assert seen[:2] == ["Bearer one", "Bearer two"]


async def test_a_missing_token_file_fails_the_scrape_with_its_name(tmp_path: Path) -> None:
    credentials = Credentials(bearer_token_file=str(tmp_path / "absent"))

    async with exporter(page) as address:
        scrape = await first(scraper(Target(address), credentials=credentials))

    assert "absent cannot be read" in scrape.error


async def test_plain_http_behind_https_is_called_a_tls_failure() -> None:
    async with exporter(page) as address:
        scrape = await first(scraper(Target(address, scheme="https")))

    assert scrape.error.startswith("TLS failure")


async def test_a_page_found_twice_is_scraped_once() -> None:
    hits = 0

    async def counting(request: web.Request) -> web.Response:
        nonlocal hits
        hits += 1
        return web.Response(text=PAGE)

    async with exporter(counting) as address:
        source = scraper(Target(address), Target(address, labels=(("pool", "a"),)), interval_s=60.0)
        await take(source, 1)
        await source.close()

    assert hits == 1
    assert source.targets == (Target(address),)


async def test_a_full_buffer_drops_the_oldest_and_counts_it() -> None:
    async with exporter(page) as address:
        source = scraper(Target(address), interval_s=0.05, buffer_max=2)
        await source.read()
        async with asyncio.timeout(20):
            while source.counts.lost < 3:  # noqa: ASYNC110 - the scraper counts, it signals nobody
                await asyncio.sleep(0.01)
        kept = await source.read()
        await source.close()

    assert len(kept) <= 2


def targets(count: int) -> list[Target]:
    return [Target(f"n{i}:9400") for i in range(count)]


def test_a_target_keeps_its_phase_when_others_come_and_go() -> None:
    assert [phase(t) for t in targets(3)] == [phase(t) for t in targets(100)[:3]]


def test_slots_hold_about_a_burst_and_every_target_once() -> None:
    slots = slots_of(targets(1250), burst=32, interval_s=15.0)

    assert len(slots) == 40
    assert {t for slot in slots for t in slot} == set(targets(1250))
    assert max(map(len, slots)) < 2 * 32


def test_gateways_are_asked_first_in_every_round() -> None:
    gateways = [Target("lb0:8404", job="haproxy"), Target("lb1:8404", job="haproxy")]

    first, *rest = slots_of([*targets(1250), *gateways], burst=32, interval_s=15.0)

    assert first[:2] == gateways
    assert not [t for slot in rest for t in slot if t.job == "haproxy"]


async def test_it_says_when_the_first_pages_have_had_their_time() -> None:
    async def sound(request: web.Request) -> web.Response:
        return web.Response(text=PAGE)

    async with exporter(sound) as address:
        source = scraper(Target(address), interval_s=0.2)
        waiting = asyncio.create_task(source.settled())
        await asyncio.sleep(0)
        before = waiting.done()
        await source.read()
        async with asyncio.timeout(5):
            await waiting
        scrapes = await source.read()
        await source.close()

    assert before is False
    assert [s.error for s in scrapes] == [""]


async def test_half_a_cluster_is_waited_for_but_not_for_ever() -> None:
    gate = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text=PAGE)

    async with exporter(page) as quick, exporter(slow) as late:
        source = scraper(Target(quick), Target(late), interval_s=0.4, engine_timeout_s=60.0, timeout_s=60.0)
        await take(source, 1)
        heard_of_one = source._settled.is_set()
        gate.set()
        async with asyncio.timeout(20):
            await source.settled()
        found = {s.target for s in await source.read()}
        await source.close()

        gate.clear()
        deaf = scraper(Target(quick), Target(late), interval_s=0.2, engine_timeout_s=60.0, timeout_s=60.0)
        await deaf.read()
        async with asyncio.timeout(20):
            await deaf.settled()
        gate.set()
        await deaf.close()

    assert heard_of_one is False
    assert late in found


def test_no_targets_is_one_empty_slot() -> None:
    assert slots_of([], burst=32, interval_s=15.0) == [[]]


async def test_a_stalled_loop_skips_the_missed_scrapes_and_counts_them() -> None:
    hits = 0

    async def counting(request: web.Request) -> web.Response:
        nonlocal hits
        hits += 1
        return web.Response(text=PAGE)

    async with exporter(counting) as address:
        source = scraper(Target(address), interval_s=0.05, late_max_s=0.05)
        await take(source, 2)
        stall = asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < stall:
            pass  # the stall itself: nothing else may run meanwhile
        before = hits
        await asyncio.sleep(0)
        await take(source, 2)
        await source.close()

    assert source.counts.missed >= 15
    assert hits - before < 15


@pytest.mark.parametrize(
    "text",
    ["https://user:geheim@host/x", "token=geheim", "Authorization: geheim", "password: geheim"],
)
def test_secrets_are_struck_from_error_texts(text: str) -> None:
    assert "geheim" not in redact(text)
