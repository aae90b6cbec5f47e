"""Which node a page speaks of when nobody has put labels on its target."""

import pytest

from daemon.cli.first_round import placed
from daemon.frame import FrameBuilder
from daemon.model import Entity, Scrape, Target
from daemon.policy import Policy
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
from daemon.topology import Topology, picture

CATALOGUE = load_catalogue()
GPUS = 'DCGM_FI_DEV_SM_CLOCK{gpu="0",UUID="GPU-a",Hostname="%s"} 1980\n'
HOST = 'node_memory_MemTotal_bytes 1e9\nnode_uname_info{nodename="%s",release="6.1"} 1\n'
OLD_HOST = "node_memory_MemTotal_bytes 1e9\n"
ENGINE = 'vllm:num_requests_running{model_name="m"} 1\n'


BALANCER = 'haproxy_server_status{proxy="chat",server="%s",state="UP"} 1\n'


def scraped(pages: dict[str, str], **labels: str) -> list[Scrape]:
    """One scrape of each of these pages, by address. labels : of every target."""
    found = []
    for address, text in pages.items():
        reading = Page(CATALOGUE.wanted, CATALOGUE.keep).parse(text.encode())
        identity = CATALOGUE.identify(Target(address, labels=tuple(labels.items())), reading.keys)
        found.append(Scrape(address, 100.0, identity.layout, identity.values(reading.values)))
    return found


def seen(pages: dict[str, str], **labels: str) -> Topology:
    builder = FrameBuilder(Policy())
    for scrape in scraped(pages, **labels):
        builder.absorb(scrape)
    return picture(builder.build(100.0))


def advice(pages: dict[str, str], **labels: str) -> list[str]:
    """What the doctor says of who stands where."""
    layouts = [s.layout for s in scraped(pages, **labels) if s.layout is not None]
    return [f"{row.state} {row.what}: {row.found}" for row in placed(seen(pages, **labels), layouts)]


def test_three_pages_of_a_host_known_by_its_address_are_one_node():
    found = seen({"10.0.0.7:9400": GPUS % "gpu07", "10.0.0.7:9100": HOST % "gpu07", "10.0.0.7:8000": ENGINE})

    assert found.nodes == ("gpu07",)
    assert found.gpus_on == {"gpu07": ("gpu07/gpu0",)}
    assert found.engines_on == {"gpu07": ("10.0.0.7:8000",)}
    assert {found.node_of(Entity("target", f"10.0.0.7:{port}")) for port in (9400, 9100, 8000)} == {"gpu07"}


def test_a_label_goes_before_what_the_page_calls_its_host():
    assert seen({"10.0.0.7:9100": HOST % "gpu07"}, node="n1").nodes == ("n1",)


@pytest.mark.parametrize("name", ["localhost", "localhost.localdomain", "0a1b2c3d4e5f", "(none)"])
def test_what_many_hosts_or_only_a_container_is_called_names_no_node(name: str):
    """Ten machines from one image must not become one node, nor a machine another one with each start of its exporter."""
    found = seen({"10.0.0.7:9100": HOST % name, "10.0.0.8:9100": HOST % name, "10.0.0.8:9400": GPUS % name})

    assert found.nodes == ("10.0.0.7", "10.0.0.8")
    assert found.gpus_on["10.0.0.8"] == ("10.0.0.8/gpu0",)


def test_an_exporter_that_names_no_host_does_not_hide_the_one_that_does():
    found = seen({"10.0.0.7:9400": GPUS % "gpu07", "10.0.0.7:9100": OLD_HOST, "10.0.0.7:8000": ENGINE})

    assert found.engines_on["gpu07"] == ("10.0.0.7:8000",)


def test_behind_an_address_with_several_nodes_no_engine_is_put_anywhere():
    """Ports of one host that are tunnels to several."""
    found = seen({"10.0.0.7:9400": GPUS % "gpu07", "10.0.0.7:9401": GPUS % "gpu08", "10.0.0.7:8000": ENGINE})

    assert found.nodes == ("gpu07", "gpu08")
    assert not any(found.engines_on.values())
    assert found.node_of(Entity("engine", "10.0.0.7:8000")) == ""


def test_the_doctor_says_who_is_joined_to_nothing():
    strangers = {"10.0.0.1:8404": BALANCER % "10.0.0.9:8000", "10.0.0.7:8000": ENGINE}
    namesakes = {"10.0.0.7:9100": HOST % "ubuntu", "10.0.0.8:9100": HOST % "ubuntu", "10.0.0.7:8000": ENGINE}
    whole = {"10.0.0.7:9400": GPUS % "gpu07", "10.0.0.7:9100": HOST % "gpu07", "10.0.0.7:8000": ENGINE}

    assert advice(strangers) == [
        "WARN engines: 1 of 2 have no page of their own, only a load balancer's word: 10.0.0.9:8000",
        "WARN engines: 1 of 2 have no node: 10.0.0.7:8000",
    ]
    assert advice(namesakes) == [
        "WARN engines: 1 of 1 have a node and no GPUs: 10.0.0.7:8000",
        "WARN node ubuntu: 2 exporters of kind node speak of it: 10.0.0.7:9100, 10.0.0.8:9100",
    ]
    assert advice(whole, gpus="0") == ["OK engines: 1 with node and GPUs"]
