"""What a message over MQTT may say."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.model import Entity
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Key
from daemon.telemetry.mqtt import Note, read_payload

CATALOGUE = load_catalogue()
NOW = 1_000_000.0


def read(*entries: object) -> tuple[list[Note], int]:
    return read_payload(json.dumps(list(entries)).encode(), NOW, CATALOGUE)


def test_a_canonical_reading_names_its_entity() -> None:
    notes, bad = read({"entity": "gpu n3/gpu5", "signal": "temp_c", "value": 61, "at": NOW - 2})

    assert notes == [Note(NOW - 2, 61.0, Entity("gpu", "n3/gpu5"), "temp_c")]
    assert bad == 0


def test_kind_may_stand_apart_and_the_time_may_be_missing() -> None:
    notes, _ = read({"kind": "gpu", "entity": "n3/gpu5", "signal": "temp_c", "value": 61})

    assert notes == [Note(NOW, 61.0, Entity("gpu", "n3/gpu5"), "temp_c")]


def test_a_vendor_series_is_kept_for_the_catalogue() -> None:
    notes, _ = read({"metric": "DCGM_FI_DEV_GPU_TEMP", "labels": {"gpu": 0, "Hostname": "n1"}, "value": 50})

    assert notes == [Note(NOW, 50.0, key=Key("DCGM_FI_DEV_GPU_TEMP", (("Hostname", "n1"), ("gpu", "0"))))]


@pytest.mark.parametrize(
    "entry",
    [
        {"entity": "gpu n3/gpu5", "signal": "warmth", "value": 61},
        {"entity": "toaster n3", "signal": "temp_c", "value": 61},
        {"entity": "gpu ", "signal": "temp_c", "value": 61},
        {"entity": "gpu n3/gpu5", "signal": "temp_c", "value": "61"},
        {"entity": "gpu n3/gpu5", "signal": "temp_c", "value": True},
        {"entity": "gpu n3/gpu5", "signal": "temp_c"},
        {"entity": "gpu n3/gpu5", "signal": "temp_c", "value": 61, "at": NOW + 1e6},
        {"entity": "gpu n3/gpu5", "signal": ["temp_c"], "value": 61},
        {"metric": "unheard_of", "value": 1},
        17,
        None,
    ],
)
def test_a_bad_entry_is_counted_and_the_good_one_beside_it_kept(entry: object) -> None:
    notes, bad = read(entry, {"entity": "gpu n3/gpu5", "signal": "temp_c", "value": 61})

    assert len(notes) == 1
    assert bad == 1


@given(st.binary(max_size=60) | st.from_regex(rb"\[*\{*").map(lambda b: b[:5000]))
def test_garbage_never_raises(payload: bytes) -> None:
    notes, bad = read_payload(payload, NOW, CATALOGUE)

    assert len(notes) + bad >= 0
    assert all(note.value is not None for note in notes)
