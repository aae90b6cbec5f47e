"""The leaf of each node from Slurm's topology.conf."""

from __future__ import annotations

import pytest

from daemon.cabling import CablingError, slurm_leaves
from daemon.config import ConfigError, parse

TREE = """# two leaves under one spine
SwitchName=leaf1 Nodes=n[01-03],x7 LinkSpeed=400
switchname=leaf2 \\
  nodes=rack[1-2]n[8-9]
SwitchName=spine Switches=leaf[1-2]
"""


def test_nodes_get_the_switch_they_hang_on():
    found = slurm_leaves(TREE)

    assert [n for n, leaf in found.items() if leaf == "leaf1"] == ["n01", "n02", "n03", "x7"]
    assert [n for n, leaf in found.items() if leaf == "leaf2"] == ["rack1n8", "rack1n9", "rack2n8", "rack2n9"]
    assert len(found) == 8


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("SwitchName=b Nodes=n[4-2]", "'4-2'"),
        ("SwitchName=b Nodes=n[1-", "write a range"),
        ("SwitchName=b", "either Nodes= or Switches="),
        ("SwitchName=b Nodes=a1", "hangs on a already"),
        ("Nodes=n1", "write SwitchName="),
        ("SwitchName=b Nodes n1", "KEY=VALUE"),
        ("SwitchName=b Nodes=n[1-999999999]", "mistyped range"),
    ],
)
def test_a_line_that_cannot_be_understood_is_named_with_its_remedy(line, says):
    with pytest.raises(CablingError) as caught:
        slurm_leaves(f"SwitchName=a Nodes=a1\n{line}")

    assert caught.value.line == 2
    assert says in str(caught.value)


def test_a_topology_conf_places_nodes_and_the_configuration_wins(tmp_path):
    path = tmp_path / "topology.conf"
    path.write_text(TREE)

    policy = parse(f"topology: {{file: {path}, nodes: {{n02: {{rack: r1, leaf: other}}}}}}").policy()

    assert policy.places["n01"] == {"leaf": "leaf1"}
    assert policy.places["n02"] == {"rack": "r1", "leaf": "other"}


def test_a_wrong_topology_conf_is_reported_with_its_own_line(tmp_path):
    path = tmp_path / "topology.conf"
    path.write_text("SwitchName=a Nodes=n1\nSwitchName=b Nodes=n1\n")

    with pytest.raises(ConfigError) as caught:
        parse(f"topology: {{file: {path}}}")

    assert str(caught.value.problems[0]).startswith(f"{path}:2: ")
    assert "n1 hangs on a already" in str(caught.value)
