"""What the page reader makes of good bodies, bad bodies and bodies that change."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from daemon.telemetry.exposition import ROTATION, Key, Page, Reading

GOLDEN = Path(__file__).parents[1] / "golden"
BODIES = sorted(path.name for path in GOLDEN.glob("*.txt"))


def as_dict(reading: Reading) -> dict[Key, float]:
    return dict(zip(reading.keys, reading.values.tolist(), strict=True))


def oracle(text: str) -> dict[Key, float]:
    """The client library's reading; of a repeated series the first counts."""
    found: dict[Key, float] = {}
    for family in parse_text(text):
        for sample in family.samples:
            found.setdefault(Key(sample.name, tuple(sorted(sample.labels.items()))), sample.value)
    return found


def same(left: dict[Key, float], right: dict[Key, float]) -> bool:
    return left.keys() == right.keys() and all(
        left[k] == right[k] or (math.isnan(left[k]) and math.isnan(right[k])) for k in left
    )


@pytest.mark.parametrize("name", BODIES)
def test_recorded_bodies_read_as_the_client_library_reads_them(name: str) -> None:
    body = (GOLDEN / name).read_bytes()

    reading = Page().parse(body)

    def plain(found: dict[Key, float]) -> dict[Key, float]:
        # The client library adds _total to a counter that HAProxy wrote without it.
        return {Key(k.metric.removesuffix("_total"), k.labels): v for k, v in found.items()}

    assert reading.dropped == 0
    assert same(plain(as_dict(reading)), plain(oracle(body.decode())))


label_names = st.sampled_from(["a", "b", "le", "model_name", "quantile"])
label_values = st.text(st.sampled_from('ab\\"\n{}=,# é中'), max_size=8)
names = st.sampled_from(["up", "x_total", "vllm:running", "h_bucket", "y"])
numbers = st.one_of(st.floats(), st.integers(-(10**18), 10**18).map(float))


def line_of(name: str, labels: dict[str, str], value: float, stamp: int | None, blank: str) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

    inside = ",".join(f'{k}="{escaped(v)}"' for k, v in labels.items())
    number = {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN" if math.isnan(value) else repr(value))
    return (
        f"{name}{{{inside}}}{blank}{number}{'' if stamp is None else f' {stamp}'}\n"
        if labels
        else (f"{name}{blank}{number}{'' if stamp is None else f' {stamp}'}\n")
    )


lines = st.builds(
    line_of,
    names,
    st.dictionaries(label_names, label_values, max_size=3),
    numbers,
    st.none() | st.integers(0, 2 * 10**12),
    st.sampled_from([" ", "  ", "\t"]),
)
bodies = st.lists(
    st.one_of(lines, st.sampled_from(["# HELP x a {b} text\n", "# TYPE up gauge\n", "\n", "# note\n"]))
)


@settings(max_examples=300, deadline=None)
@given(st.lists(bodies, min_size=1, max_size=3))
def test_any_sequence_of_pages_reads_as_the_client_library_reads_it(pages: list[list[str]]) -> None:
    page = Page()

    for page_lines in pages:
        text = "".join(page_lines)
        reading = page.parse(text.encode())

        assert same(as_dict(reading), oracle(text))


@settings(max_examples=150, deadline=None)
@given(st.lists(bodies, min_size=1, max_size=3))
def test_a_filtered_page_is_the_full_page_less_the_unwanted(pages: list[list[str]]) -> None:
    page = Page(lambda metric: metric in ("up", "h_bucket"))

    for page_lines in pages:
        reading = page.parse("".join(page_lines).encode())
        full = Page().parse("".join(page_lines).encode())

        wanted = {k: v for k, v in as_dict(full).items() if k.metric in ("up", "h_bucket")}
        assert same(as_dict(reading), wanted)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_never_raises(body: bytes) -> None:
    page = Page()

    page.parse(body)
    reading = page.parse(body)

    assert len(reading.keys) == len(reading.values)


def test_keys_stay_the_same_object_while_only_values_change() -> None:
    page = Page()
    first = page.parse(b'a{x="1"} 1\nb 2\n')

    second = page.parse(b'a{x="1"} 17.5\nb NaN\n')

    assert second.keys is first.keys
    assert second.values[0] == 17.5
    assert np.isnan(second.values[1])
    assert page.learned_total == 1


def test_series_in_another_order_keep_their_slots() -> None:
    page = Page()
    first = page.parse(b"a 1\nb 2\nc 3\n")

    second = page.parse(b"c 30\na 10\nb 20\n")

    assert second.keys is first.keys
    assert second.values.tolist() == [10.0, 20.0, 30.0]


def test_a_new_series_makes_new_keys() -> None:
    page = Page()
    first = page.parse(b"a 1\n")

    second = page.parse(b"a 1\nb 2\n")

    assert second.keys is not first.keys
    assert as_dict(second) == {Key("a", ()): 1.0, Key("b", ()): 2.0}


def test_a_wanted_series_in_the_place_of_an_unwanted_one_is_seen_at_once() -> None:
    page = Page(lambda metric: metric == "wanted_bytes")
    before = page.parse(b'unwanted_bytes{d="1"} 1\nother_thing 3\n')

    after = page.parse(b'wanted_bytes{d="1"} 5\nother_thing 3\n')

    assert before.keys == ()
    assert as_dict(after) == {Key("wanted_bytes", (("d", "1"),)): 5.0}


def test_a_change_hidden_from_the_quick_look_is_seen_within_one_rotation() -> None:
    # Same length, same last eight bytes of the name and of the text: only the whole line tells them apart.
    page = Page(lambda metric: metric == "bb_total_bytes")
    page.parse(b'aa_total_bytes{device="mlx5_0"} 1\n')

    seen = [len(page.parse(b'bb_total_bytes{device="mlx5_0"} 1\n').keys) for _ in range(ROTATION)]

    assert seen[-1] == 1


@pytest.mark.parametrize(
    ("body", "expected", "dropped"),
    [
        (b"a 1\nb 2", {"a": 1.0}, 1),
        (b"a 1\nb", {"a": 1.0}, 1),
        (b'a 1\nb{x="cut', {"a": 1.0}, 1),
        (b"a 1\n# EOF", {"a": 1.0}, 0),
        (b"a 1\r\nb 2\r\n", {"a": 1.0, "b": 2.0}, 0),
        (b"a 1\na 5\n", {"a": 1.0}, 1),
        (b"a one\nb 2\n", {"a": math.nan, "b": 2.0}, 1),
        (b"a 1_000\nb 2\n", {"a": math.nan, "b": 2.0}, 1),
        (b"9a 1\nb 2\n", {"b": 2.0}, 1),
        (b'a{x="\xff"} 1\nb 2\n', {"b": 2.0}, 1),
        (b'a{x="1" y="2"} 1\nb 2\n', {"b": 2.0}, 1),
        (b'a{x="1",x="2"} 1\nb 2\n', {"b": 2.0}, 1),
        (b"a 1 1700000000000\n", {"a": 1.0}, 0),
        (b"a +Inf\nb -Inf\n", {"a": math.inf, "b": -math.inf}, 0),
        (b"", {}, 0),
        (b"<html><body>no</body></html>\n", {}, 1),
        (b'{"quoted.name",x="1"} 4\n', {"quoted.name": 4.0}, 0),
    ],
)
def test_a_bad_line_costs_that_line_and_is_counted(
    body: bytes, expected: dict[str, float], dropped: int
) -> None:
    page = Page()

    first = page.parse(body)
    again = page.parse(body)

    for reading in (first, again):
        found = {k.metric: v for k, v in as_dict(reading).items()}
        assert found == pytest.approx(expected, nan_ok=True)
        assert reading.dropped == dropped


def test_a_value_that_turns_unreadable_is_nan_and_counted() -> None:
    page = Page()
    page.parse(b"a 1\nb 2\n")

    reading = page.parse(b"a oops\nb 3\n")

    assert math.isnan(reading.values[0])
    assert reading.values[1] == 3.0
    assert reading.dropped == 1


def test_a_repeated_series_that_becomes_another_is_seen_at_once() -> None:
    page = Page()
    page.parse(b'up{a="",b=""} 1\nup{a="",b=""} 1\n')

    reading = page.parse(b'up{a="",b=""} 1\nup 5\n')

    assert as_dict(reading) == {Key("up", (("a", ""), ("b", ""))): 1.0, Key("up", ()): 5.0}
    assert reading.dropped == 0


@pytest.mark.parametrize(
    "before", [b"\n", b"up\n", b"# note\n", b"up{\n", b"x\n", b"<html>\n", b"up_total 1\n"]
)
def test_any_line_that_becomes_a_wanted_series_is_seen_at_once(before: bytes) -> None:
    page = Page(lambda metric: metric == "up_total_seconds")
    page.parse(before)

    reading = page.parse(b"up_total_seconds 5\n")

    assert reading.values.tolist() == [5.0]


def test_an_unreadable_line_that_becomes_readable_is_read() -> None:
    page = Page()
    page.parse(b'a{x="1} 3\nb oops\n')

    reading = page.parse(b'a{x="1"} 3\nb 4\n')

    assert as_dict(reading) == {Key("a", (("x", "1"),)): 3.0, Key("b", ()): 4.0}


def test_exemplars_and_timestamps_are_read_past_in_every_scrape() -> None:
    text = (
        "# TYPE h histogram\n"
        'h_bucket{le="1.0"} 11 # {trace_id="KdwA"} 0.67\n'
        'h_bucket{le="+Inf"} 17 # {trace_id="ab"} 1.0 1520879607.7\n'
        "h_count 17\nh_sum 324789.3\nh_created 1520430000.123\n# EOF\n"
    )
    page = Page()
    first = page.parse(text.encode())

    second = page.parse(text.replace(" 17 ", " 18 ").encode())

    expected = {
        Key(s.name, tuple(sorted(s.labels.items()))): s.value
        for family in parse_openmetrics(text)
        for s in family.samples
    }
    assert as_dict(first) == expected
    assert second.values[1] == 18.0
    assert second.keys is first.keys


def test_a_body_of_64_mib_is_read_whole() -> None:
    line = (
        b'big_metric_with_a_long_name{device="some_device",index="%07d",text="' + b"x" * 400 + b'"} 1234.5\n'
    )
    body = b"".join(line % i for i in range(64 * 1024 * 1024 // len(line)))
    page = Page(lambda metric: metric == "tail")

    reading = page.parse(body + b"tail 1\n")
    again = page.parse(body + b"tail 2\n")

    assert (reading.values.tolist(), again.values.tolist()) == ([1.0], [2.0])
    assert page.learned_total == 1


def test_one_endless_line_is_dropped_without_delay() -> None:
    body = b'a{x="' + b"\\" * 4_000_001 + b"\nb 1\n"

    reading = Page().parse(body)

    assert as_dict(reading) == {Key("b", ()): 1.0}
    assert reading.dropped == 1
