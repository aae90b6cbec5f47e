"""Network trouble: the right pattern at the right end, and what only looks like trouble."""

from collections.abc import Mapping

import numpy as np
from small_frames import frame, frames, kinds, last

from daemon.frame import FrameBuilder
from daemon.model import Finding, Frame, Scrape, Severity, Target
from daemon.policy import Policy
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
from detectors.congestion import CongestionDetector

NODES = tuple(f"n{k}" for k in range(8))
PORTS = tuple(f"{n}/mlx5_0" for n in NODES)
RATE = 50e9
TICK = 15.0
Odd = Mapping[str, Mapping[str, float]]


def ports(at: float, odd: Odd | None = None, *, leaf: Mapping[str, str] | None = None) -> Frame:
    """Eight quiet ports, the first four on leaf l0; `odd` says what some of them show instead."""
    usual = {
        "rate_bytes_s": RATE,
        "state_id": 4.0,
        "rx_bytes_s": 5e9,
        "tx_bytes_s": 5e9,
        "tx_pause_ratio": 0.0,
        "rx_pause_ratio": 0.0,
    }
    on = leaf or {p: f"l{k // 4}" for k, p in enumerate(PORTS)}
    return frame(
        "port",
        at,
        {p: usual | dict((odd or {}).get(p, {})) for p in PORTS},
        {p: {"leaf": on[p]} for p in PORTS},
    )


def say(odd: Odd | None = None, ticks: int = 1, detector: CongestionDetector | None = None) -> list[Finding]:
    judge = detector or CongestionDetector()
    return last(judge, (frames(TICK * k, ports(TICK * k, odd)) for k in range(ticks)))


# -- rate and cable -----------------------------------------------------------------------------------------


def test_a_port_below_the_best_rate_it_had_is_downgraded():
    detector = CongestionDetector()
    detector.update(frames(0.0, ports(0.0)))

    found = detector.update(frames(15.0, ports(15.0, {PORTS[2]: {"rate_bytes_s": RATE / 2}})))

    assert kinds(found) == [("nic_downgrade", "port n2/mlx5_0")]
    assert found[0].evidence[0].peer == RATE


def test_a_port_that_was_slow_from_the_start_is_found_against_its_peers():
    assert kinds(say({PORTS[2]: {"rate_bytes_s": RATE / 2}})) == [("nic_downgrade", "port n2/mlx5_0")]


def test_an_older_generation_of_nodes_is_no_downgrade():
    assert say({p: {"rate_bytes_s": RATE / 2} for p in PORTS[:3]}) == []


def test_a_port_nobody_ever_plugged_in_is_no_bad_cable():
    unused = {PORTS[2]: {"state_id": 1.0, "rate_bytes_s": 1.25e9, "rx_bytes_s": 0.0, "tx_bytes_s": 0.0}}

    assert say(unused, ticks=8) == []


def test_a_port_that_was_up_and_goes_down_is_a_bad_cable():
    detector = CongestionDetector()
    say(detector=detector)

    found = say({PORTS[2]: {"state_id": 1.0}}, detector=detector)

    assert kinds(found) == [("bad_cable", "port n2/mlx5_0")]
    assert found[0].severity is Severity.CRITICAL


def test_symbol_errors_in_three_of_eight_ticks_make_a_bad_cable_and_two_do_not():
    def stream(bad: set[int]) -> list[Finding]:
        detector = CongestionDetector()
        return last(
            detector,
            (
                frames(TICK * k, ports(TICK * k, {PORTS[1]: {"symbol_errors_per_s": float(k in bad)}}))
                for k in range(8)
            ),
        )

    assert stream({1, 4}) == []
    assert kinds(stream({1, 4, 6})) == [("bad_cable", "port n1/mlx5_0")]


def test_a_link_that_went_down_needs_no_second_sign():
    assert kinds(say({PORTS[1]: {"link_downed_per_s": 0.07}})) == [("bad_cable", "port n1/mlx5_0")]


def test_a_corrected_bit_rate_a_decade_above_the_peers_is_an_ageing_optic_at_every_tick():
    rates = {p: {"corrected_bits_per_s": 200.0} for p in PORTS} | {
        PORTS[5]: {"corrected_bits_per_s": 20_000.0}
    }
    detector = CongestionDetector()

    seen = [kinds(detector.update(frames(TICK * k, ports(TICK * k, rates)))) for k in range(12)]

    assert seen[4:] == [[("optic_ageing", "port n5/mlx5_0")]] * 8


# -- pause ------------------------------------------------------------------------------------------------


def test_a_pfc_storm_blames_its_root_and_names_the_others_victims():
    storm = {PORTS[0]: {"tx_pause_ratio": 0.7, "rx_bytes_s": 1e7}} | {
        p: {"rx_pause_ratio": 0.3} for p in PORTS[1:4]
    }

    found = say(storm)

    assert kinds(found) == [
        ("pause_victim", "port n1/mlx5_0"),
        ("pause_victim", "port n2/mlx5_0"),
        ("pause_victim", "port n3/mlx5_0"),
        ("pfc_storm", "port n0/mlx5_0"),
    ]
    assert {f.severity for f in found if f.kind == "pause_victim"} == {Severity.INFO}


def test_who_paused_first_is_the_root_although_another_pauses_more_now():
    detector = CongestionDetector()
    began = {PORTS[0]: {"tx_pause_ratio": 0.5, "rx_bytes_s": 1e7}}
    say(began, detector=detector)

    later = began | {PORTS[1]: {"tx_pause_ratio": 0.9, "rx_bytes_s": 1e7}}
    found = detector.update(frames(15.0, ports(15.0, later)))

    assert [f.entity.name for f in found if f.kind == "pfc_storm"] == [PORTS[0]]


def test_two_leaves_have_two_roots():
    storm = {p: {"tx_pause_ratio": 0.6, "rx_bytes_s": 1e7} for p in (PORTS[0], PORTS[4])}

    assert [k for k, _ in kinds(say(storm))] == ["pfc_storm", "pfc_storm"]


def test_pauses_without_a_receive_rate_accuse_only_with_a_second_witness():
    blind = {"tx_pause_ratio": 0.6, "rx_bytes_s": np.nan}

    alone = say({PORTS[0]: blind})
    with_victims = say({PORTS[0]: blind, PORTS[1]: {"rx_pause_ratio": 0.4}})

    assert [f.kind for f in alone] == []
    assert ("pfc_storm", "port n0/mlx5_0") in kinds(with_victims)


def test_storm_events_of_the_driver_need_no_pause_counters():
    event = {p: {"tx_pause_ratio": np.nan, "rx_pause_ratio": np.nan} for p in PORTS}
    event[PORTS[0]] |= {"pause_storm_per_s": 0.1, "rx_bytes_s": 0.0}

    assert kinds(say(event)) == [("pfc_storm", "port n0/mlx5_0")]


def test_a_host_that_cannot_drain_pauses_while_it_receives_below_line_rate():
    found = say({PORTS[0]: {"tx_pause_ratio": 0.4, "rx_bytes_s": 0.5 * RATE}})

    assert kinds(found) == [("host_drain", "port n0/mlx5_0")]


def test_a_host_with_pcie_stalls_that_receives_little_is_no_storm():
    strained = {
        "tx_pause_ratio": 0.3,
        "rx_bytes_s": 0.02 * RATE,
        "pcie_stall_ratio": 0.4,
        "rx_discards_phy_per_s": 80.0,
    }

    assert kinds(say({PORTS[0]: strained})) == [("host_drain", "port n0/mlx5_0")]


# -- congestion -------------------------------------------------------------------------------------------


def test_incast_is_the_marked_receiver_at_line_rate_and_not_its_senders():
    odd = {PORTS[0]: {"rx_bytes_s": 0.95 * RATE, "cnp_sent_per_s": 5000.0}}
    odd |= {p: {"cnp_handled_per_s": 600.0} for p in PORTS[1:4]}

    found = say(odd)

    assert kinds(found) == [("incast", "port n0/mlx5_0")]
    assert found[0].severity is Severity.INFO


def test_many_marked_receivers_with_senders_on_one_leaf_are_its_uplink():
    odd = {p: {"cnp_handled_per_s": 400.0} for p in PORTS[:4]} | {
        p: {"ecn_marked_per_s": 900.0} for p in PORTS[4:]
    }

    assert kinds(say(odd)) == [("uplink_congestion", "leaf l0")]


def test_a_leaf_with_two_hosts_has_no_three_receivers_and_both_of_them_are_enough():
    leaves = {p: "l0" if k < 6 else "l1" for k, p in enumerate(PORTS)}
    senders = {p: {"cnp_handled_per_s": 400.0} for p in PORTS[:6]}

    def found(marked: tuple[str, ...]) -> list[tuple[str, str]]:
        odd = senders | {p: {"ecn_marked_per_s": 900.0} for p in marked}
        return kinds(CongestionDetector().update(frames(0.0, ports(0.0, odd, leaf=leaves))))

    assert found(PORTS[6:]) == [("uplink_congestion", "leaf l0")]
    assert found(PORTS[6:7]) == []


def test_a_full_uplink_slows_senders_elsewhere_too_and_is_still_the_leaf_that_is_not_marked():
    odd = {p: {"cnp_handled_per_s": 400.0} for p in PORTS} | {
        p: {"cnp_handled_per_s": 400.0, "ecn_marked_per_s": 900.0} for p in PORTS[:4]
    }

    assert kinds(say(odd)) == [("uplink_congestion", "leaf l1")]


def test_a_receiver_at_line_rate_without_marks_is_a_full_downlink_while_a_sender_waits_for_it():
    waiting = {"xmit_wait_per_s": 4e6, "tx_bytes_s": 3e9}

    found = say({PORTS[0]: {"rx_bytes_s": 0.95 * RATE}, PORTS[1]: waiting})

    assert kinds(found) == [("downlink_congestion", f"port {PORTS[0]}")]


def test_a_sender_at_line_rate_waits_for_its_own_link():
    own = {"xmit_wait_per_s": 4e6, "tx_bytes_s": 0.95 * RATE}

    assert say({PORTS[0]: {"rx_bytes_s": 0.95 * RATE}, PORTS[1]: own}) == []


def test_packet_spraying_is_quiet():
    assert (
        say({p: {"out_of_sequence_per_s": 50_000.0, "seq_errors_per_s": 0.0} for p in PORTS}, ticks=10) == []
    )


def test_losses_without_marks_or_pauses_over_half_a_leaf_are_its_configuration():
    lossy = {p: {"seq_errors_per_s": 60.0, "ack_timeouts_per_s": 1.0} for p in PORTS[:4]}

    found = say(lossy)

    assert ("lossy_fabric", "leaf l0") in kinds(found)
    assert not [f for f in found if f.entity.kind == "port" and f.severity is not Severity.INFO]


def test_losses_under_congestion_marks_are_not_a_misconfigured_fabric():
    odd = {
        p: {"seq_errors_per_s": 60.0, "ack_timeouts_per_s": 1.0, "ecn_marked_per_s": 50.0} for p in PORTS[:4]
    }

    assert say(odd) == []


def test_receiver_not_ready_for_a_minute_is_slow_software():
    odd = {PORTS[3]: {"rnr_naks_per_s": 40.0}}

    assert say(odd, ticks=3) == []
    assert kinds(say(odd, ticks=6)) == [("slow_receiver", "port n3/mlx5_0")]


# -- what the switches count themselves ----------------------------------------------------------------------


def switch_ports(at: float, odd: Odd | None = None) -> Frame:
    """A leaf with eight hosts on ports 1 to 8 and four uplinks, as infiniband_exporter tells it."""
    names = [f"0xabc/{k}" for k in range(1, 13)]
    usual = {"tx_bytes_s": 5e9, "rate_bytes_s": RATE, "xmit_wait_per_s": 0.0, "discards_per_s": 0.0}
    facts = {
        name: {"switch": "l0", "far": f"{NODES[k]} HCA-1", "far_port": "1", "far_kind": "CA"}
        if k < 8
        else {"switch": "l0", "far": "spine1", "far_port": str(k), "far_kind": "SW"}
        for k, name in enumerate(names)
    }
    return frame("switchport", at, {n: usual | dict((odd or {}).get(n, {})) for n in names}, facts)


FULL = {"tx_bytes_s": 0.97 * RATE, "xmit_wait_per_s": 1e9}


def test_a_switch_port_at_line_rate_with_more_waiting_is_the_hosts_full_link():
    found = CongestionDetector().update(frames(0.0, ports(0.0), switch_ports(0.0, {"0xabc/3": FULL})))

    assert kinds(found) == [("downlink_congestion", "port n2/mlx5_0")]
    assert (found[0].rule, found[0].score > 0.9) == ("congestion.downlink_switch", True)


def test_what_host_ports_let_guess_is_not_said_where_the_switch_shows_its_link_is_free():
    guess = {PORTS[0]: {"rx_bytes_s": 0.95 * RATE}, PORTS[5]: {"xmit_wait_per_s": 5e5}}
    alone = CongestionDetector().update(frames(0.0, ports(0.0, guess)))
    beside = CongestionDetector().update(frames(0.0, ports(0.0, guess), switch_ports(0.0)))

    assert kinds(alone) == [("downlink_congestion", f"port {PORTS[0]}")]
    assert beside == []


def test_a_switch_that_waits_for_credit_below_line_rate_faces_a_host_that_does_not_take_it():
    held = {"tx_bytes_s": 0.4 * RATE, "xmit_wait_per_s": 1e9}
    found = CongestionDetector().update(frames(0.0, ports(0.0), switch_ports(0.0, {"0xabc/3": held})))

    assert kinds(found) == [("host_drain", "port n2/mlx5_0")]


def test_half_of_the_uplinks_full_is_the_leaf_and_one_is_not():
    two, one = ({f"0xabc/{k}": FULL for k in range(9, 9 + n)} for n in (2, 1))
    leaf = CongestionDetector().update(frames(0.0, ports(0.0), switch_ports(0.0, two)))

    assert kinds(leaf) == [("uplink_congestion", "leaf l0")]
    assert CongestionDetector().update(frames(0.0, ports(0.0), switch_ports(0.0, one))) == []


def test_a_switch_page_that_is_missing_refutes_nothing():
    guess = {PORTS[0]: {"rx_bytes_s": 0.95 * RATE}, PORTS[5]: {"xmit_wait_per_s": 5e5}}
    silent = {f"0xabc/{k}": {"tx_bytes_s": np.nan} for k in range(1, 13)}

    found = CongestionDetector().update(frames(0.0, ports(0.0, guess), switch_ports(0.0, silent)))

    assert kinds(found) == [("downlink_congestion", f"port {PORTS[0]}")]


def test_a_full_downlink_is_told_from_the_page_of_the_switches_to_the_hosts_port():
    catalogue, builder, detector = load_catalogue(), FrameBuilder(Policy()), CongestionDetector()
    pages = {
        Target("fabric1:9315"): """\
infiniband_switch_port_transmit_data_bytes_total{{guid="0x7cfe",port="10"}} {full}
infiniband_switch_port_transmit_wait_total{{guid="0x7cfe",port="10"}} {waits}
infiniband_switch_port_rate_bytes_per_second{{guid="0x7cfe",port="10"}} 1.25e+10
infiniband_switch_uplink_info{{guid="0x7cfe",port="10",switch="l1",uplink="n01 HCA-1",uplink_port="1",uplink_type="CA"}} 1
""",
        Target("n01:9100", labels=(("node", "n01"),)): """\
node_infiniband_port_data_received_bytes_total{{device="mlx5_0",port="1"}} {full}
node_infiniband_rate_bytes_per_second{{device="mlx5_0",port="1"}} 1.25e+10
""",
    }
    for k in range(4):
        at = 1000.0 + 15.0 * k
        for target, text in pages.items():
            body = text.format(full=1e12 + k * 15.0 * 1.22e10, waits=1e9 + k * 15.0 * 5e8).encode()
            reading = Page(catalogue.wanted, catalogue.keep).parse(body)
            identity = catalogue.identify(target, reading.keys)
            builder.absorb(Scrape(target.address, at, identity.layout, identity.values(reading.values)))
        found = detector.update(builder.build(at + 1.0))

    assert kinds(found) == [("downlink_congestion", "port n01/mlx5_0")]
    assert found[0].text == "l1 port 10 sends at line rate to n01/mlx5_0 and more waits"
