"""The pages, their JSON twins, probes, metrics on a daemon with a past."""

from __future__ import annotations

import html.parser
import json
import re
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from web_town import Town, first_gpu, lived, pages

from daemon import web
from daemon.model import GONE, NAN, Forecast, Scrape
from daemon.policy import Mode
from daemon.settings import Settings
from daemon.telemetry import load_catalogue
from daemon.web import plot, words
from simulator.faults import Fault

PAGES = (
    "/",
    "/targets",
    "/nodes",
    "/incidents",
    "/actions",
    "/forecast",
    "/rules",
    "/posture",
    "/cost",
    "/regions",
    "/pools",
    "/storage",
    "/jobs",
    "/fleet",
    "/config",
    "/login",
)
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "rect"}


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    found = lived(0.7, Mode.AUTO, Fault("xid79", first_gpu(), 600.0, 3600.0))
    yield found
    found.daemon.record.close()


@pytest.fixture
def young() -> Town:
    return lived(0.2, Mode.AUTO)


@pytest.fixture
def newborn() -> Town:
    return lived(0.0, Mode.OBSERVE)


@pytest.fixture
def large() -> Town:
    return lived(0.1, Mode.AUTO, gpus=128)


class Checker(html.parser.HTMLParser):
    """Collects what is wrong with a page: tags that do not match, ids that stand twice, addresses elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        for name in ("href", "src", "action"):
            if known.get(name):
                self.links.append(str(known[name]))
        if "style" in known or any(n.startswith("on") for n in known):
            self.problems.append(f"<{tag}> carries inline style or script")
        if known.get("id"):
            self.ids.append(str(known["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")


def check(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    if checker.open:
        checker.problems.append(f"left open: {checker.open}")
    if len(set(checker.ids)) != len(checker.ids):
        checker.problems.append("an id stands twice")
    return checker


async def test_every_page_is_valid_small_and_refers_to_nothing_elsewhere(town: Town) -> None:
    id = town.daemon.record.incidents()[-1].id
    step = next(r.step.id for r in town.daemon.record.steps() if r.outcome)
    async with pages(town) as client:
        for path in (*PAGES, f"/incidents/{id}", f"/actions/{step}", "/nodes/n00"):
            async with client.get(path) as answer:
                text = await answer.text()

                checker = check(text)

                assert answer.status == 200
                assert checker.problems == []
                assert all(link.startswith(("/", "?", "#")) for link in checker.links)
                assert not re.search(r"https?://(?!www\.w3\.org)", text)
                assert len(text) < 100_000
                assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")


async def test_every_link_of_every_page_leads_somewhere(town: Town) -> None:
    async with pages(town) as client:
        links: set[str] = set()
        for path in PAGES:
            async with client.get(path) as answer:
                links |= {link for link in check(await answer.text()).links if link.startswith("/")}

        broken = []
        for link in sorted(links):
            async with client.get(link) as answer:
                if answer.status != 200:
                    broken.append((link, answer.status))

        assert len(links) > 20
        assert broken == []


async def test_a_page_has_a_json_twin_without_nan(town: Town) -> None:
    async with pages(town) as client:
        for path in ("overview", "status", "targets", "nodes", "incidents", "actions", "forecast"):
            async with client.get(f"/api/v1/{path}") as answer:
                body = json.loads(await answer.text(), parse_constant=pytest.fail)

                assert answer.status == 200
                assert isinstance(body, dict)


async def test_an_incident_tells_why_what_was_done_and_when(town: Town) -> None:
    found = next(i for i in town.daemon.record.incidents() if i.kind == "gpu_lost")
    async with pages(town) as client, client.get(f"/api/v1/incidents/{found.id}") as answer:
        body = await answer.json()

    assert body["title"] == "GPU fell off the bus"
    assert body["scope"] == str(first_gpu())
    assert body["evidence"][0]["entity"] == str(first_gpu())
    assert {s["verb"] for s in body["steps"]} >= {"reroute", "isolate"}
    assert body["timeline"][0]["text"].startswith("opened, critical")
    assert [e["at"] for e in body["timeline"]] == sorted(e["at"] for e in body["timeline"])
    assert any(e["type"] == "outcome" and "done" in e["text"] for e in body["timeline"])


async def test_an_action_is_explained_in_sentences(town: Town) -> None:
    row = next(r for r in town.daemon.record.steps(state="done") if r.step.verb == "isolate")
    async with pages(town) as client, client.get(f"/api/v1/actions/{row.step.id}") as answer:
        body = await answer.json()

    assert body["explanation"][0].startswith("Proposed: isolate ")
    assert any(s.startswith("Price: it takes away") for s in body["explanation"])
    assert any(s.startswith("The guard allowed it") for s in body["explanation"])
    assert any(s.startswith("It was done, and the change was seen in the world") for s in body["explanation"])
    assert [e["type"] for e in body["timeline"]] == ["verdict", "intent", "outcome", "effect"]
    assert body["timeline"][-1]["text"].startswith("as expected after ")


async def test_the_forecast_page_draws_history_and_bands_without_script(town: Town) -> None:
    async with pages(town) as client, client.get("/forecast") as answer:
        text = await answer.text()

    assert text.count('class="band wide"') >= 1
    assert text.count('class="line past"') >= 1
    assert 'class="now"' in text


async def test_the_forecast_page_tells_each_pools_chance_and_the_clusters_own_series(town: Town) -> None:
    cluster = town.daemon.core.policy.cluster
    bands = np.array([[40.0] * 24, [52.0] * 24])
    made = Forecast(town.now, cluster, "gpus_needed", 3600.0, (0.5, 0.9), bands, skill=0.8)
    town.daemon.foresight.others[cluster, "gpus_needed"] = made
    try:
        async with pages(town) as client:
            async with client.get("/forecast") as answer:
                text = await answer.text()
            async with client.get("/api/v1/forecast") as answer:
                body = await answer.json()
    finally:
        del town.daemon.foresight.others[cluster, "gpus_needed"]

    check(text)
    assert "The whole cluster" in text
    assert body["cluster"] == [{"signal": "gpus_needed", "skill_ratio": 0.8, "q50": 40.0, "q90": 52.0}]
    assert set(body["pools"][0]["short"]) == {"chance", "exhausted_in_s", "gpu_hours"}


async def test_what_is_not_there_is_told_as_a_problem_document(town: Town) -> None:
    async with pages(town) as client:
        for path, status, word in (
            ("/api/v1/incidents/i99999", 404, "i99999"),
            ("/api/v1/actions/nothing", 404, "nothing"),
            ("/api/v1/forecast?pool=nothing", 404, "chat"),
            ("/api/v1/actions?state=odd", 400, "awaiting"),
            ("/api/v1/actions?limit=0", 400, "1 to 2000"),
            ("/api/v1/nowhere", 404, "/api/v1/nowhere"),
            ("/targets?page=99", 400, "99"),
        ):
            async with client.get(path) as answer:
                body = await answer.json(content_type="application/problem+json")

                assert (answer.status, body["status"]) == (status, status)
                assert word in body["detail"]


async def test_a_browser_gets_trouble_as_a_page(town: Town) -> None:
    async with (
        pages(town) as client,
        client.get("/incidents/i99999", headers={"Accept": "text/html"}) as answer,
    ):
        text = await answer.text()

    assert answer.status == 404
    assert "no incident i99999" in text
    assert check(text).problems == []


async def test_names_from_the_network_are_never_markup(town: Town) -> None:
    bad = '<script>alert("x")</script>'
    town.daemon.builder.absorb(Scrape(bad, town.now, None, None, error=bad, took_s=NAN))
    await town.beat()
    async with pages(town) as client:
        for path in ("/", "/targets"):
            async with client.get(path) as answer:
                text = await answer.text()

                assert "<script>alert" not in text
    assert "&lt;script&gt;" in text
    town.daemon.builder.absorb(Scrape(bad, town.now, None, None, error=GONE))
    await town.beat()


async def test_the_probes_tell_what_holds_and_what_does_not(town: Town) -> None:
    async with pages(town) as client:
        for path in ("/healthz", "/livez", "/-/healthy", "/readyz", "/-/ready"):
            async with client.get(path) as answer:
                assert (answer.status, await answer.text()) == (200, "ok\n")
        async with client.get("/readyz?verbose") as answer:
            lines = (await answer.text()).splitlines()
            assert [line[:3] for line in lines] == ["[+]"] * 4 + ["ok"]

        was, town.now = town.now, town.now + 600.0
        async with client.get("/livez") as answer:
            assert answer.status == 503
            assert "loop ticks: failed" in await answer.text()
        town.now = was


async def test_metrics_are_valid_and_say_what_the_pages_say(town: Town) -> None:
    async with pages(town) as client, client.get("/metrics") as answer:
        found = {
            (s.name, *sorted(s.labels.items())): s.value
            for family in text_string_to_metric_families(await answer.text())
            for s in family.samples
        }

    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert found["tidewarden_ticks_total",] == town.daemon.status.ticks
    assert (
        found["tidewarden_targets", ("state", "up")] == (town.daemon.frames["target"].column("up") == 1).sum()
    )
    assert found["tidewarden_mode_info", ("mode", "auto")] == 1
    assert found["tidewarden_journal_healthy",] == 1
    assert found["tidewarden_pool_replicas", ("pool", "chat")] > 0
    assert (
        found["tidewarden_forecast_peak_requests", ("lead", "72h"), ("pool", "chat"), ("quantile", "0.9")] > 0
    )
    assert sum(v for k, v in found.items() if k[0] == "tidewarden_incidents_open") == len(
        town.daemon.core.state.book.open
    )
    assert all(name.startswith("tidewarden_") for name, *_ in found)


async def test_steps_and_refusals_are_counted_as_they_happen(young: Town) -> None:
    town = young
    async with pages(town) as client:
        town.world.inject(Fault("xid79", first_gpu(), town.now, 3600.0))
        while not town.outcomes.qsize():
            await town.beat()
            if town.daemon.core.state.in_flight:
                await town.outcomes.get()
                break
        async with client.get("/metrics") as answer:
            text = await answer.text()

    assert re.search(r'tidewarden_steps_total\{result="done",verb="(reroute|isolate)"\} [1-9]', text)
    assert re.search(r"tidewarden_incidents_opened_total\{kind=.*\} [1-9]", text)


async def test_the_stream_tells_each_decision(town: Town) -> None:
    async with pages(town) as client, client.get("/api/v1/stream") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert await answer.content.readuntil(b"\n\n") == b"retry: 3000\n\n"

        await town.beat()
        event = (await answer.content.readuntil(b"\n\n")).decode()

    assert event.startswith(("event: tick\n", "event: decision\n"))
    assert json.loads(event.split("data: ")[1])["at"] == town.now


async def test_a_port_that_is_taken_names_its_holder_and_the_remedy(town: Town) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        settings = Settings.model_validate({"web": {"listen": f"127.0.0.1:{port}"}})

        with pytest.raises(
            web.ListenError, match=rf"127\.0\.0\.1:{port}: held by pid \d+ \(.+\); stop it, or set web.listen"
        ):
            async with web.serving(town.daemon, settings, None, load_catalogue()):
                pass


async def test_a_daemon_that_has_seen_nothing_yet_still_has_pages(newborn: Town) -> None:
    town = newborn
    async with pages(town) as client:
        for path in (*PAGES, *(f"/api/v1/{p}" for p in ("overview", "status", "forecast")), "/metrics"):
            async with client.get(path) as answer:
                assert answer.status == 200, path
        async with client.get("/readyz") as answer:
            assert answer.status == 503
            assert "first round scraped" in await answer.text()


async def test_a_future_that_is_not_known_is_not_called_safe(newborn: Town) -> None:
    async with pages(newborn) as client, client.get("/forecast") as answer:
        text = await answer.text()

    assert text.count("not known") == 3
    assert "not in sight" not in text
    assert "not within the horizon" not in text


async def test_rendering_a_page_of_128_gpus_stays_cheap(large: Town) -> None:
    town = large
    async with pages(town) as client:
        for path in PAGES:
            async with client.get(path) as answer:
                await answer.read()
            begun = time.process_time()
            async with client.get(path) as answer:
                size = len(await answer.read())
            spent = time.process_time() - begun

            # A wide bound against a mistake of an order of magnitude; the measured figures are in bench/.
            assert spent < 0.3, path
            assert size < 100_000, path


def test_a_plot_breaks_its_line_at_a_gap() -> None:
    drawn = plot.Plot(
        "t", "u", NAN, [plot.Line("a", "past", [(0.0, 1.0), (1.0, NAN), (2.0, 3.0), (3.0, 2.0)])]
    ).svg()

    path = re.search(r'class="line past" d="([^"]*)"', drawn)
    assert path is not None
    assert (path.group(1).count("M"), path.group(1).count("L")) == (2, 1)


def test_every_reason_a_guard_can_give_has_words() -> None:
    assert set(words.REASONS) == set(words.Reason)


async def test_an_incident_page_has_its_case_file(town: Town) -> None:
    async with pages(town) as client:
        async with client.get("/api/v1/incidents/i00001") as answer:
            case = (await answer.json())["case"]
        async with client.get("/incidents/i00001") as answer:
            text = await answer.text()

    assert case["hypothesis"].startswith("The GPU fell off the bus (gpu n00/gpu0; 100% sure)")
    assert case["evidence"][0].startswith("gpu n00/gpu0: xid 79 from ")
    assert re.search(r'<td rowspan="\d+">GPU fell off the bus<', text), "a claim has its title"
    assert case["response"].startswith("routing weight 0 at once")
    assert "Hypothesis" in text
    assert "confirmed, by healed after it was isolated" in text


async def test_a_page_shows_what_was_measured_when_the_incident_opened(town: Town) -> None:
    """What is measured last, once it is mended, tells nobody why it was believed."""
    async with pages(town) as client:
        stories = {}
        for incident in town.daemon.record.incidents(limit=50):
            async with client.get(f"/api/v1/incidents/{incident.id}") as answer:
                stories[incident.id] = (await answer.json())["case"]
        changed = next(id for id, case in stories.items() if case["at_first"])
        async with client.get(f"/incidents/{changed}?lang=zh") as answer:
            text = await answer.text()

    entry = next(
        e for e in town.daemon.record.events(type="case", limit=500) if e.payload["incident"] == changed
    )
    first, now = entry.payload["case"]["evidence"], stories[changed]["evidence"]
    assert stories[changed]["at_first"] == [line for line in first if line not in now] != []
    assert "开启时" in text


async def test_rules_that_cannot_fire_are_listed_with_the_line_that_enables_them(town: Town) -> None:
    async with pages(town) as client:
        async with client.get("/api/v1/blindspots") as answer:
            found = {b["rule"]: b for b in (await answer.json())["blindspots"]}
        async with client.get("/rules") as answer:
            text = await answer.text()

    assert found["fault.rows_exhausted"]["missing"] == ["gpu.banks_no_rows"]
    assert "DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_NONE" in found["fault.rows_exhausted"]["remedy"]
    assert "sources.kernel_log" in found["fault.host_io_error"]["remedy"]
    assert "fault.xid_lost" not in found
    assert "fault.rows_exhausted" in text


async def test_the_tide_calendar_tells_the_free_gpus_of_each_hour(town: Town) -> None:
    async with pages(town) as client, client.get("/api/v1/forecast") as answer:
        body = json.loads(await answer.text())

    days, needed = body["calendar"], body["needed"]["gpus"]["0.9"]
    first = next(v for v in days[0]["free"] if v is not None)
    assert len(days) in (7, 8)
    assert all(len(d["free"]) == len(d["lent"]) == 24 for d in days)
    assert first == pytest.approx(
        body["outlook"]["gpus_usable"] - needed[0], abs=body["outlook"]["gpus_usable"]
    )
    assert sum(v is not None for d in days for v in d["free"]) == min(len(needed), 24 * 8)


async def test_the_configuration_is_shown_without_its_secrets(town: Town) -> None:
    settings = Settings.model_validate(
        {"mode": "advise", "sources": {"prometheus": {"url": "http://kim:sesame@127.0.0.1:9090"}}}
    )
    async with pages(town, settings) as client, client.get("/config") as answer:
        text = await answer.text()

    assert "mode: advise" in text
    assert "sesame" not in text
    assert "********" in text


async def test_nodes_are_found_by_rack_and_state(town: Town) -> None:
    async with pages(town) as client:
        async with client.get("/nodes?rack=r1") as answer:
            text = await answer.text()
            assert "n02" in text
            assert ">n00<" not in text
        async with client.get("/nodes/nowhere") as answer:
            assert answer.status == 404
        async with client.get("/fleet?by=colour") as answer:
            assert (answer.status, "busy, memory, temperature, power" in await answer.text()) == (400, True)


async def test_an_incident_and_a_node_carry_what_they_looked_like(town: Town) -> None:
    async with pages(town) as client:
        async with client.get("/api/v1/nodes/n01") as answer:
            node = json.loads(await answer.text())
        id = next(i.id for i in town.daemon.record.incidents() if i.kind == "gpu_lost")
        async with client.get(f"/api/v1/incidents/{id}") as answer:
            told = json.loads(await answer.text())
        async with client.get(f"/incidents/{id}") as answer:
            assert "What it looked like" in await answer.text()

    assert {t["signal"] for t in node["traces"]} >= {"temp_c", "power_w", "running", "rx_bytes_s"}
    assert all(len(t["at"]) == len(t["value"]) == len(t["peers_median"]) for t in node["traces"])
    assert f"gpu {first_gpu().name}" in {t["entity"] for t in told["traces"]}
