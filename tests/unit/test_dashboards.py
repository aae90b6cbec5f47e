"""The dashboards as files: current, importable, and held to the rules of Grafana's dashboard linter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from daemon.telemetry import load_catalogue
from dashboards.build import BOARDS, LANGUAGES, ROOT, files
from dashboards.panel import board_json

ALL = [
    pytest.param(board_json(board, language), id=f"{name}-{language}")
    for name, board in BOARDS.items()
    for language in LANGUAGES
]
UNITS = {
    "short", "none", "percentunit", "s", "bytes", "Bps", "celsius", "watt", "hertz", "kwatth", "cps", "pps", "reqps", "ops",
    "dateTimeAsIso",
}  # fmt: skip


def filled(expr: str) -> str:
    """A query with its variables replaced as Grafana would."""
    for name, value in (("__rate_interval", "1m"), ("job", ".+"), ("instance", ".+"), ("target", ".+")):
        expr = expr.replace(f"${name}", value)
    return expr


def exprs(board: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return found + [a["expr"] for a in board["annotations"]["list"]]


def test_generated_files_are_current() -> None:
    stale = [
        name
        for name, text in files().items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text() != text
    ]

    assert stale == [], "run `make dashboards`"


def test_no_dashboard_is_left_behind_that_nobody_builds() -> None:
    built = {Path(name) for name in files()}
    found = {p.relative_to(ROOT) for p in (ROOT / "dashboards").glob("*/*.json")}

    assert found <= built


def test_the_nine_dashboards_have_stable_and_unique_uids() -> None:
    uids = [board_json(board, language)["uid"] for board in BOARDS.values() for language in LANGUAGES]

    assert len(BOARDS) == 9
    assert len(set(uids)) == len(uids)
    assert all(re.fullmatch(r"tidewarden-[a-z-]{1,29}", uid) for uid in uids)


@pytest.mark.parametrize("board", ALL)
def test_a_dashboard_can_be_imported_with_no_edit(board: dict[str, Any]) -> None:
    assert "__inputs" not in board
    assert "id" not in board
    names = [v["name"] for v in board["templating"]["list"]]
    assert names[0] == "datasource"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    sources = [panel["datasource"]["uid"] for panel in board["panels"]]
    sources += [t["datasource"]["uid"] for panel in board["panels"] for t in panel["targets"]]
    sources += [a["datasource"]["uid"] for a in board["annotations"]["list"]]
    sources += [v["datasource"]["uid"] for v in board["templating"]["list"] if v["type"] == "query"]
    assert set(sources) == {"${datasource}"}


@pytest.mark.parametrize("board", ALL)
def test_panels_have_title_description_and_known_unit_and_do_not_overlap(board: dict[str, Any]) -> None:
    cells: set[tuple[int, int]] = set()
    titles = [panel["title"] for panel in board["panels"]]

    assert len(set(titles)) == len(titles)
    for panel in board["panels"]:
        assert panel["title"]
        assert len(panel["description"]) > 5
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells
        assert max(x for x, _ in own) < 24
        cells |= own


@pytest.mark.parametrize("board", ALL)
def test_every_query_is_promql_and_uses_only_variables_that_exist(board: dict[str, Any]) -> None:
    known = {v["name"] for v in board["templating"]["list"]} | {"__rate_interval"}

    for expr in exprs(board):
        promql_parser.parse(filled(expr))
        assert set(re.findall(r"\$(\w+)", expr)) <= known


@pytest.mark.parametrize("board", ALL)
def test_every_selector_is_narrowed_by_a_variable(board: dict[str, Any]) -> None:
    for expr in exprs(board):
        for name, labels in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expr):
            wanted = ["job=~", "instance=~"] if name.startswith("tidewarden_") else ['instance=~"$target"']
            assert all(w in labels for w in wanted), f"{name} in {expr}"


@pytest.mark.parametrize("board", ALL)
def test_rates_use_the_rate_interval_and_are_taken_before_sums(board: dict[str, Any]) -> None:
    for expr in exprs(board):
        windows = set(re.findall(r"\[([^\]]+)\]", expr))
        assert windows <= {"$__rate_interval", "1h"}
        assert not re.search(r"(rate|increase)\(\s*(sum|avg|max)", expr)
        if "histogram_quantile" in expr:
            assert expr.count("histogram_quantile(") == len(re.findall(r"sum by \(le[,)]", expr))


@pytest.mark.parametrize("board", ALL)
def test_counters_are_never_drawn_raw(board: dict[str, Any]) -> None:
    for expr in exprs(board):
        for match in re.finditer(r"([a-zA-Z_:][\w:]*_total)\{[^}]*\}(\[?)", expr):
            is_state = match[1] in ("tidewarden_steps_total", "tidewarden_gpu_lent_seconds_total")
            assert match[2] or is_state, f"{match[1]} without rate in {expr}"


def test_every_vendor_name_comes_from_the_catalogue() -> None:
    catalogue = load_catalogue()
    found = {
        name
        for board in BOARDS.values()
        for expr in exprs(board_json(board, "en"))
        for name in re.findall(r"([a-zA-Z_:][\w:]*)\{", expr)
        if not name.startswith("tidewarden_")
    }

    assert found
    assert [name for name in found if not catalogue.wanted(name)] == []


def test_shares_are_never_added_up() -> None:
    for board in BOARDS.values():
        for panel in board.panels:
            if panel.unit == "percentunit":
                assert not panel.stacked, panel.title.en


def test_both_languages_draw_the_same_queries() -> None:
    for board in BOARDS.values():
        assert exprs(board_json(board, "en")) == exprs(board_json(board, "zh"))
        for panel in board.panels:
            assert re.search(r"[\u4e00-\u9fff]", panel.title.zh) or panel.title.zh == panel.title.en == "CPU"


def test_config_maps_hold_the_dashboards_for_the_sidecar() -> None:
    for language in LANGUAGES:
        text = (ROOT / f"deploy/grafana/configmap-{language}.yaml").read_text()
        found = list(yaml.safe_load_all(text))

        assert len(found) == len(BOARDS)
        for document in found:
            assert document["metadata"]["labels"]["grafana_dashboard"] == "1"
            [body] = document["data"].values()
            assert json.loads(body)["panels"]
            assert len(body) < 1024 * 1024
