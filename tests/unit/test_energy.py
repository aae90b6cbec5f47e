"""Energy and money of a day, on frames with known answers and against the simulator's own meter."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from web_town import lived

from daemon.codec import decode, to_plain
from daemon.energy import IDLE, J_PER_KWH, LENT, Meter, bills, bought, power_by, pue_of, share_of_revenue
from daemon.fleet import Fleet, Lease
from daemon.model import NAN, Frame, Frames
from daemon.policy import Cost, Mode
from daemon.settings import Settings
from daemon.web import thrift

PRICES = Cost("EUR", gpu_hour=2.0, kwh=0.2, pue=1.5, carbon_g_per_kwh=400.0, revenue_per_day=1000.0)


def frame(at: float, kind: str, names: list[str], facts: dict[str, list[str]], **signals: Any) -> Frame:
    columns = [np.broadcast_to(np.asarray(v, dtype=float), len(names)) for v in signals.values()]
    return Frame(
        at, kind, tuple(names), tuple(signals), np.column_stack(columns), np.zeros(len(names)),
        {k: tuple(v) for k, v in facts.items()}, 1,
    )  # fmt: skip


def town(at: float, power: Any = 500.0, pools: tuple[str, ...] = ("chat", "chat", "", "")) -> Frames:
    gpus = ["n1/gpu0", "n1/gpu1", "n2/gpu0", "n3/gpu0"]
    return Frames(
        at,
        {
            "gpu": frame(at, "gpu", gpus, {"pool": list(pools), "rack": ["a", "a", "b", "b"]}, power_w=power),
            "pool": frame(at, "pool", ["chat"], {}, generation_tokens_s=1000.0, prompt_tokens_s=4000.0),
        },
    )


def day(hours: float = 2.0, **changes: Any) -> Meter:
    meter, fleet = Meter(), Fleet(leases={"n2": Lease(0.0, 1e9, 1.0)})
    for minute in range(round(60 * hours) + 1):
        meter.watch(town(60.0 * minute, **changes), fleet)
    return meter


def test_energy_tokens_and_money_of_a_pool_are_what_was_drawn() -> None:
    chat, idle, lent = bills(day(), PRICES)

    assert (chat.name, idle.name, lent.name) == ("chat", IDLE, LENT)
    assert chat.gpu_hours == pytest.approx(4.0)
    assert chat.energy_kwh == pytest.approx(2.0)
    assert chat.facility_kwh == pytest.approx(3.0)
    assert chat.tokens == pytest.approx(7.2e6)
    assert chat.kwh_per_mtoken == pytest.approx(3.0 / 7.2)
    assert chat.money == pytest.approx(4.0 * 2.0 + 3.0 * 0.2)
    assert chat.money_per_mtoken == pytest.approx(8.6 / 7.2)
    assert chat.carbon_kg == pytest.approx(1.2)
    assert idle.gpu_hours == lent.gpu_hours == pytest.approx(2.0)
    assert np.isnan([idle.tokens, idle.money_per_mtoken]).all()


def test_a_gpu_that_tells_no_power_is_not_free() -> None:
    chat = bills(day(power=[600.0, NAN, 100.0, 100.0]), PRICES)[0]

    assert chat.energy_kwh == pytest.approx(2 * 600.0 * 2 * 3600.0 / J_PER_KWH)


def test_without_power_or_prices_nothing_is_made_up() -> None:
    silent = bills(day(power=NAN), PRICES)[0]
    unpriced = bills(day(), Cost())[0]

    assert np.isnan([silent.energy_kwh, silent.money, silent.carbon_kg]).all()
    assert silent.gpu_hours == pytest.approx(4.0)
    assert np.isnan([unpriced.money, unpriced.money_per_mtoken, unpriced.carbon_kg]).all()
    assert unpriced.energy_kwh == pytest.approx(2.0)


def test_time_nobody_watched_is_not_charged() -> None:
    meter = Meter()

    for at in (0.0, 60.0, 7200.0, 7260.0):
        meter.watch(town(at), Fleet())

    assert bills(meter, PRICES)[0].gpu_hours == pytest.approx(4 / 60)


def test_scaling_down_saves_against_the_busiest_hour() -> None:
    meter = Meter()
    for minute in range(3 * 60 + 1):
        pools = ("chat", "chat", "chat", "chat") if minute < 60 else ("chat", "", "", "")
        meter.watch(town(60.0 * minute, pools=pools), Fleet())

    assert bills(meter, PRICES)[0].saved_gpu_hours == pytest.approx(2 * 3.0, abs=0.2)


def test_racks_and_nodes_draw_what_their_gpus_draw() -> None:
    frames = town(0.0, power=[100.0, 200.0, 300.0, NAN])

    assert power_by(frames, "rack") == {"a": 300.0, "b": 300.0}
    nodes = power_by(frames, "node")
    assert (nodes["n1"], nodes["n2"]) == (300.0, 300.0)
    assert np.isnan(nodes["n3"])


def test_share_of_revenue_is_of_whole_days() -> None:
    spent = sum(bill.money for bill in bills(day(), PRICES))

    # the third hour has just begun
    assert share_of_revenue(day(), PRICES) == pytest.approx(spent * 24 / 3 / 1000.0)
    assert np.isnan(share_of_revenue(day(), Cost(gpu_hour=1.0)))


def test_the_meter_survives_a_restart() -> None:
    meter = day()

    assert decode(Meter, json.loads(json.dumps(to_plain(meter)))) == meter


def test_prices_come_from_the_configuration() -> None:
    settings = Settings.model_validate({"cost": {"currency": "EUR", "gpu_hour": 2.5, "pue": 1.3}})

    cost = settings.policy().cost

    assert (cost.currency, cost.gpu_hour, cost.pue) == ("EUR", 2.5, 1.3)
    assert np.isnan([cost.kwh, cost.revenue_per_day]).all()


def test_metered_energy_is_that_of_the_simulated_gpus() -> None:
    born, town = lived(0.0, Mode.AUTO), lived(1.0, Mode.AUTO)
    drawn = town.world.gpus.counters[:, energy_column()] - born.world.gpus.counters[:, energy_column()]
    counted = float(drawn.sum()) / J_PER_KWH

    said = thrift.of(town.daemon)
    for each in (born, town):
        each.daemon.record.close()

    assert said["total"]["energy_kwh"] == pytest.approx(counted, rel=0.05)
    assert said["total"]["gpu_hours"] == pytest.approx(32.0, rel=0.05)
    assert said["missing"] == ["no prices: set cost.gpu_hour or cost.kwh in the configuration"]


def energy_column() -> int:
    from simulator import devices

    return devices.COUNTERS.index("energy_j_per_s")


def test_a_measured_pue_stands_over_the_configured_one() -> None:
    meter = Meter()
    for minute in range(121):
        given = town(60.0 * minute)
        facility = frame(60.0 * minute, "region", ["here"], {}, pue_ratio=1.2)
        meter.watch(Frames(given.at, {**given.by_kind, "region": facility}), Fleet())

    assert bills(meter, PRICES)[0].facility_kwh == pytest.approx(2.0 * 1.2)
    assert pue_of(day().hours, PRICES) == 1.5


def test_the_base_is_bought_on_demand_and_the_peaks_as_spot() -> None:
    meter = Meter()
    for minute in range(26 * 60):
        is_busy = 9 <= minute // 60 % 24 < 15
        meter.watch(town(60.0 * minute, pools=("chat", "chat", "chat" if is_busy else "", "")), Fleet())

    (said,) = bought(meter, replace(PRICES, spot_gpu_hour=0.5))

    assert "2 GPUs were in use all day" in said
    assert "up to 3 GPUs" in said
    assert bought(meter, PRICES) == []
    assert bought(day(), replace(PRICES, spot_gpu_hour=0.5)) == []
