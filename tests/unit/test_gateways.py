"""What HAProxy, nginx, Envoy and the endpoint picker say becomes pools and classes, and what follows from it."""

from __future__ import annotations

import math

import pytest
from small_frames import frame, frames

from daemon import pools
from daemon.fleet import Fleet
from daemon.frame import FrameBuilder
from daemon.lastresort import Resort, propose
from daemon.model import Entity, Frames, Incident, Scrape, Severity, Target
from daemon.policy import Policy, PoolPolicy
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
from detectors.serving import ServingDetector

CATALOGUE = load_catalogue()
POLICY = Policy(pools=(PoolPolicy("chat", classes=("batch", "free"), ttft_slo_s=2.0),))
ENGINE = 'vllm:num_requests_running{model_name="m"} 40\nvllm:num_requests_waiting{model_name="m"} 1\n'
VLLM = Target("10.0.0.7:8000", labels=(("pool", "chat"),))

ENVOY = """
envoy_cluster_upstream_rq_total{envoy_cluster_name="chat-cluster"} %d00
envoy_cluster_upstream_rq_xx{envoy_cluster_name="chat-cluster",envoy_response_code_class="5"} %d0
envoy_cluster_upstream_rq_xx{envoy_cluster_name="chat-cluster",envoy_response_code_class="2"} %d00
envoy_cluster_upstream_rq_pending_active{envoy_cluster_name="chat-cluster"} 7
envoy_cluster_upstream_rq_pending_overflow{envoy_cluster_name="chat-cluster"} %d0
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="chat-cluster"} %d00000
envoy_cluster_upstream_rq_time_count{envoy_cluster_name="chat-cluster"} %d00
envoy_cluster_membership_total{envoy_cluster_name="chat-cluster"} 3
envoy_cluster_membership_healthy{envoy_cluster_name="chat-cluster"} 2
envoy_vhost_vcluster_upstream_rq_total{envoy_virtual_host="chat-cluster",envoy_virtual_cluster="batch"} %d0
envoy_vhost_vcluster_upstream_rq_time_sum{envoy_virtual_host="chat-cluster",envoy_virtual_cluster="batch"} %d00000
envoy_vhost_vcluster_upstream_rq_time_count{envoy_virtual_host="chat-cluster",envoy_virtual_cluster="batch"} %d0
"""
EPP = """
llm_d_epp_request_total{model_name="m",target_model_name="m",priority="10"} %d00
llm_d_epp_request_total{model_name="m",target_model_name="m",priority="-10"} %d0
llm_d_epp_request_error_total{model_name="m",target_model_name="m",priority="10",error_code="Internal"} %d
llm_d_epp_flow_control_queue_size{fairness_id="a",priority="10",inference_pool="vllm-pool",model_name="m"} 2
llm_d_epp_flow_control_queue_size{fairness_id="b",priority="-10",inference_pool="vllm-pool",model_name="m"} 30
inference_extension_flow_control_queue_size{fairness_id="b",priority="-10",inference_pool="vllm-pool",model_name="m"} 30
llm_d_epp_flow_control_requests_total{outcome="Dispatched",priority="-10"} %d00
llm_d_epp_flow_control_requests_total{outcome="RejectedCapacity",priority="-10"} %d0
llm_d_epp_request_duration_seconds_sum{model_name="m",target_model_name="m",priority="-10"} %d00
llm_d_epp_request_duration_seconds_count{model_name="m",target_model_name="m",priority="-10"} %d0
"""
VTS = """
nginx_vts_upstream_requests_total{upstream="chat",backend="10.0.0.7:8000",code="2xx"} %d00
nginx_vts_upstream_requests_total{upstream="chat",backend="10.0.0.7:8000",code="5xx"} %d0
nginx_vts_upstream_requests_total{upstream="chat",backend="10.0.0.7:8000",code="total"} 99999
nginx_vts_upstream_request_seconds_total{upstream="chat",backend="10.0.0.7:8000"} %d00
nginx_vts_upstream_requests_total{upstream="chat_batch",backend="10.0.0.7:8000",code="2xx"} %d0
nginx_vts_upstream_request_seconds_total{upstream="chat_batch",backend="10.0.0.7:8000"} %d00
"""
HAPROXY = """
haproxy_server_current_sessions{proxy="bk_batch",server="10.0.0.7:8000"} 4
haproxy_backend_http_requests_total{proxy="bk_batch"} %d0
haproxy_backend_current_queue{proxy="bk_batch"} 5
haproxy_backend_total_time_average_seconds{proxy="bk_batch"} 3.5
haproxy_backend_requests_denied_total{proxy="bk_batch"} %d0
"""


def told(text: str, **labels: str) -> Frames:
    """Frames after two scrapes ten seconds apart of a gateway and an engine; %d is 0 at first and 1 then: 100 in ten seconds."""
    builder = FrameBuilder(POLICY)
    for target, page in ((VLLM, ENGINE), (Target("gw:9000", labels=tuple(labels.items())), text)):
        reader = Page(CATALOGUE.wanted, CATALOGUE.keep)
        identity = None
        for k in range(2):
            reading = reader.parse(page.replace("%d", str(k)).encode())
            identity = identity or CATALOGUE.identify(target, reading.keys)
            builder.absorb(Scrape(target.address, 10.0 * k, identity.layout, identity.values(reading.values)))
    return builder.build(10.0)


def test_envoy_tells_of_a_pool_and_of_its_virtual_clusters() -> None:
    found = told(ENVOY, pools="chat-cluster=chat")
    pool, classes = found["pool"], found["class"]

    assert pool.value("chat", "gateway_arrivals_per_s") == 10.0
    assert pool.value("chat", "gateway_errors_per_s") == 1.0
    assert pool.value("chat", "gateway_queue") == 7.0
    assert pool.value("chat", "refused_per_s") == 1.0
    assert pool.value("chat", "gateway_latency_s") == pytest.approx(1.0)
    assert (pool.value("chat", "members"), pool.value("chat", "members_up")) == (3.0, 2.0)
    assert classes.entities == ("chat/batch",)
    assert classes.value("chat/batch", "arrivals_per_s") == 1.0
    assert pools.latency_s(classes.columns(("latency_s", "latency_s_per_s", "answered_per_s")))[
        0
    ] == pytest.approx(10.0)


def test_the_endpoint_picker_tells_of_its_pool_and_its_priorities_and_no_name_counts_twice() -> None:
    found = told(EPP, pool="chat", classes="10=interactive,-10=batch")
    pool, classes = found["pool"], found["class"]

    assert pool.value("chat", "gateway_arrivals_per_s") == 11.0
    assert pool.value("chat", "gateway_queue") == 32.0
    assert pool.value("chat", "refused_per_s") == 1.0
    assert set(classes.entities) == {"chat/interactive", "chat/batch"}
    assert (classes.value("chat/interactive", "queue"), classes.value("chat/batch", "queue")) == (2.0, 30.0)
    assert classes.value("chat/interactive", "errors_per_s") == 0.1
    assert pools.latency_s(classes.columns(("latency_s", "latency_s_per_s", "answered_per_s")))[
        classes.entities.index("chat/batch")
    ] == pytest.approx(10.0)


def test_nginx_tells_of_engines_pools_and_classes() -> None:
    found = told(VTS, pools="chat_batch=chat/batch")

    assert found["engine"].value("10.0.0.7:8000", "lb_errors_per_s") == 1.0
    assert found["pool"].value("chat", "gateway_arrivals_per_s") == 11.0
    assert found["pool"].value("chat", "gateway_latency_s") == pytest.approx(100 / 110)
    assert found["class"].value("chat/batch", "arrivals_per_s") == 1.0
    assert found["class"].value("chat/batch", "answered_per_s") == 1.0


def test_haproxy_tells_of_a_class_that_has_a_backend_of_its_own() -> None:
    found = told(HAPROXY, pools="bk_batch=chat/batch")["class"]

    assert found.value("chat/batch", "arrivals_per_s") == 1.0
    assert found.value("chat/batch", "queue") == 5.0
    assert found.value("chat/batch", "latency_s") == 3.5
    assert found.value("chat/batch", "refused_per_s") == 1.0


def test_stub_status_counts_for_the_pool_it_is_said_to_serve() -> None:
    found = told("nginx_http_requests_total %d00\nnginx_connections_active 3\n", pool="chat")

    assert found["pool"].value("chat", "gateway_arrivals_per_s") == 10.0
    assert math.isnan(found["pool"].value("chat", "gateway_queue"))


# -- what follows ---------------------------------------------------------------------------------------------


def test_what_a_gateway_holds_is_demand() -> None:
    row = told(EPP, pool="chat")["pool"]

    assert row.value("chat", "waiting") == 33.0
    assert row.value("chat", "concurrency") == 73.0
    assert row.value("chat", "lb_sessions_per_s") == 11.0


def test_without_a_gateway_a_pool_is_as_its_engines_say() -> None:
    row = told("nothing 1\n")["pool"]

    assert (row.value("chat", "waiting"), row.value("chat", "concurrency")) == (1.0, 41.0)
    assert math.isnan(row.value("chat", "gateway_queue"))


def test_a_queue_at_the_gateway_is_felt_though_no_engine_has_it() -> None:
    given = told(EPP, pool="chat")

    (finding,) = [f for f in ServingDetector().update(given) if f.kind == "queue_growth"]

    assert str(finding.entity) == "pool chat"
    assert ("held_by_gateway", 32.0) in [(e.name, e.value) for e in finding.evidence]


def limits(frames_: Frames) -> list[tuple[str, float, str]]:
    queue = Incident("i1", "queue_growth", Entity("pool", "chat"), -600.0, 10.0, Severity.WARNING, ())
    found = propose(frames_, [queue], Fleet(), POLICY, Resort())
    return [(str(s.target), s.amount, s.reason) for s in found]


def test_a_class_of_which_nothing_comes_is_not_refused_and_the_reason_says_how_much_does() -> None:
    rows = {"chat/batch": {"arrivals_per_s": 0.0}, "chat/free": {"arrivals_per_s": 3.2}}
    pool = frame("pool", 10.0, {"chat": {"running": 40.0, "waiting": 60.0}})

    ((target, amount, why),) = limits(frames(10.0, pool, frame("class", 10.0, rows)))

    assert (target, amount) == ("class chat/free", 0.0)
    assert "3.2 requests/s of it come" in why
    assert limits(frames(10.0, pool))[0][0] == "class chat/batch"


def test_a_balancer_without_a_healthy_member_breaks_the_circuit() -> None:
    memory, asked = Resort(), []
    for k in range(5):
        at = 15.0 * k
        pool = frame("pool", at, {"chat": {"members": 3.0, "members_up": 0.0}})
        asked += propose(frames(at, pool), [], Fleet(), POLICY, memory)

    assert [(str(s.target), s.amount, s.arg("how")) for s in asked][:1] == [("pool chat", 0.0, "break")]
