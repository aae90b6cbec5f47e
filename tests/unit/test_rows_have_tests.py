"""Every row of the reference tables that detection answers to is a test with a name."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MUST_NEVER_ISOLATE = {
    "counter reset after a driver reload or GPU reset": "counter_reset_after_a_driver_reload_or_gpu_reset",
    "reboot": "reboot_that_was_announced",
    "exporter upgrade or restart": "exporter_upgrade",
    "idle node": "idle_node",
    "one application crashing on many GPUs": "one_application_crashing_on_many_gpus",
    "a fleet-wide slowdown": "fleet_wide_slowdown",
    "scrape outage of one exporter": "outage_of_one_exporter",
    "planned drain": "planned_drain",
    "MIG reconfiguration": "mig_reconfiguration",
    "a sticky XID gauge re-read after restart": "sticky_xid_gauge_read_again_after_a_restart",
}
DEFECTS_OF_OTHERS = {
    "a limit tested against the wrong field": "limit_fires_on_the_very_field",
    "an uncorrectable metric filled from the correctable count": "corrected_errors_never_count_as_uncorrectable",
    "counter reset read as an error burst": "counter_that_starts_again_is_not_read_as_a_burst",
    "checks off until configured": "every_check_of_a_hard_fault_is_on_without_a_line",
    "a breaker that also blocks recovery": "spent_budget_blocks_no_recovery",
    "a breaker that replays days-old events when reset": "pause_blocks_no_recovery_and_replays_nothing_old",
    "percentage-only limits useless in small pools": "share_never_forbids_the_only_node",
    "un-cordoning nodes somebody else cordoned": "node_somebody_else_cordoned_is_never_given_back",
    "a node cordoned with no way out": "every_isolation_has_a_way_out",
    "a second fault's stronger action not applied": "stronger_answer_to_a_second_fault",
    "a new quarantine cancelled by the previous recovery": "new_isolation_is_not_undone_by_the_recovery_before",
    "alternating reasons resetting the timer": "reasons_that_alternate_do_not_put_the_repair_off",
}
PATTERNS = {
    "incast": "incast_is_the_marked_receiver_at_line_rate",
    "host cannot drain": "host_that_cannot_drain",
    "PFC storm": "pfc_storm_blames_its_root",
    "victims of it": "pfc_storm_blames_its_root_and_names_the_others_victims",
    "oversubscribed uplink": "many_marked_receivers_with_senders_on_one_leaf",
    "downlink congestion": "receiver_at_line_rate_without_marks_is_a_full_downlink",
    "optic ageing": "corrected_bit_rate_a_decade_above_the_peers",
    "bad cable": "symbol_errors_in_three_of_eight_ticks_make_a_bad_cable",
    "width or speed downgrade": "port_below_the_best_rate_it_had_is_downgraded",
    "lossy or misconfigured PFC": "losses_without_marks_or_pauses_over_half_a_leaf",
    "packet spraying": "packet_spraying_is_quiet",
    "slow receiving software": "receiver_not_ready_for_a_minute_is_slow_software",
}
HARDWARE = {
    "sick NVLink": "nvlink",
    "throttle": "hot_gpu_whose_clock_has_fallen_is_throttled",
    "throttle of several in a rack": "idle_gpu_under_the_brake_of_its_rack",
    "uncorrectable ECC": "double_bit_error_is_uncontained",
    "correctable storm": "storm_of_corrected_errors",
    "fell off the bus": "xid_79_is_a_lost_gpu_at_once",
}
TABLES = {
    "test_faults_md_section3.py": MUST_NEVER_ISOLATE,
    "test_faults_md_section4.py": DEFECTS_OF_OTHERS,
    "test_detector_congestion.py": PATTERNS,
    "test_detector_fault.py": HARDWARE,
}


@pytest.mark.parametrize("file", TABLES)
def test_every_row_has_its_test(file: str) -> None:
    """A test counts when it asserts something, itself or by what it calls."""
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    tests = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and any(isinstance(part, ast.Assert) for part in ast.walk(node))
    }

    without = [row for row, words in TABLES[file].items() if not any(words in name for name in tests)]

    assert without == []
