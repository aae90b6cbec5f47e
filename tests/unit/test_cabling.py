"""The leaf of each node from what schedulers, switches or hosts say of their cabling."""

from __future__ import annotations

import json

import pytest

from daemon.cabling import CablingError, ib_leaves, lldp_leaves, slurm_leaves, ufm_leaves
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


IB = """#
# Topology file: generated on Tue Jun  2 10:00:00 2026
#
Switch\t41 "S-b83fd20300a1b2c3"\t\t# "MF0;leaf-a:MQM8700/U1" enhanced port 0 lid 3 lmc 0
[1]\t"H-1070fd0300000001"[1](1070fd0300000001) \t\t# "gpu01 mlx5_0" lid 11 4xHDR
[2]\t"H-1070fd0300000002"[1](1070fd0300000002) \t\t# "gpu02 mlx5_0" lid 12 4xHDR
[40]\t"S-b83fd20300ffffff"[1]\t\t# "MF0;spine-1:MQM8700/U1" lid 1 4xHDR
[41]\t"H-b83fd20300a1b2cb"[1](b83fd20300a1b2cb) \t\t# "Mellanox Technologies Aggregation Node" lid 4 4xHDR

Switch\t41 "S-b83fd20300d4e5f6"\t\t# "MF0;leaf-b:MQM8700/U1" enhanced port 0 lid 5 lmc 0
[1]\t"H-1070fd0300000003"[1](1070fd0300000003) \t\t# "gpu03 mlx5_0" lid 13 4xHDR
[2]\t"H-1070fd0300000022"[1](1070fd0300000022) \t\t# "gpu02 mlx5_1" lid 14 4xHDR

Ca\t1 "H-1070fd0300000001"\t\t# "gpu01 mlx5_0"
[1](1070fd0300000001) \t"S-b83fd20300a1b2c3"[1]\t\t# lid 11 lmc 0 "MF0;leaf-a:MQM8700/U1" lid 3 4xHDR
"""


def test_ibnetdiscover_gives_each_node_its_switches_and_leaves_out_aggregation_nodes():
    assert ib_leaves(IB) == {"gpu01": "leaf-a", "gpu02": "leaf-a+leaf-b", "gpu03": "leaf-b"}


def test_switches_with_one_description_are_told_apart_by_their_guid():
    same = IB.replace("leaf-a", "Quantum").replace("leaf-b", "Quantum")

    assert ib_leaves(same)["gpu01"] == "S-b83fd20300a1b2c3"


UFM = [
    {"description": "Switch IB Port", "system_name": "leaf-a", "number": 1, "peer_node_name": "gpu01"},
    {"description": "Switch IB Port", "system_name": "leaf-a", "number": 2, "peer_node_name": "N/A"},
    {"description": "Switch IB Port", "system_name": "leaf-a", "number": 40, "peer_node_name": "spine-1"},
    {"description": "Switch IB Port", "system_name": "spine-1", "number": 1, "peer_node_name": "leaf-a"},
    {"description": "Computer IB Port", "system_name": "gpu01", "dname": "HCA-2/1", "peer_node_name": "leaf-b"},
    {"description": "Computer IB Port", "system_name": "gpu02", "dname": "HCA-1/1", "peer_node_name": "leaf-b"},
    {"description": "Switch IB Port", "system_name": "leaf-a", "peer_node_name": "Mellanox Technologies Aggregation Node"},
]  # fmt: skip


def test_ports_of_ufm_give_each_node_its_switches_from_either_end():
    assert ufm_leaves(UFM) == {"gpu01": "leaf-a+leaf-b", "gpu02": "leaf-b"}
    assert ufm_leaves([p for p in UFM if p["description"].startswith("Computer")]) == {
        "gpu01": "leaf-b",
        "gpu02": "leaf-b",
    }


def test_what_is_no_port_of_ufm_is_named():
    with pytest.raises(
        CablingError, match="entry 2: found 'leaf-a'; write what GET /ufmRest/resources/ports"
    ):
        ufm_leaves([UFM[0], "leaf-a"])


LLDP = {
    "n01": {"lldp": {"interface": {"eth0": {"via": "LLDP", "chassis": {"leaf7": {"id": {"type": "mac", "value": "aa"}}}}}}},
    "n02": {"lldp": {"interface": [
        {"rail0": {"chassis": {"leaf7": {}}}}, {"rail1": {"chassis": {"leaf8": {}}}}, {"mgmt": {"chassis": {"id": {"value": "bb:cc"}}}},
    ]}},
    "n03": {"lldp": {}},
}  # fmt: skip


def test_neighbours_of_hosts_are_their_leaves_and_who_sees_none_is_left_out():
    assert lldp_leaves(LLDP) == {"n01": "leaf7", "n02": "bb:cc+leaf7+leaf8"}


def test_what_is_no_output_of_lldpctl_is_named():
    with pytest.raises(CablingError, match="node n09: found 'offline'; write what `lldpctl -f json`"):
        lldp_leaves({**LLDP, "n09": "offline"})


@pytest.mark.parametrize(
    ("name", "text", "leaf"),
    [
        ("ib.txt", IB, "leaf-a"),
        ("ufm.json", json.dumps(UFM), "leaf-a+leaf-b"),
        ("lldp.json", json.dumps(LLDP).replace("n01", "gpu01"), "leaf7"),
    ],
)
def test_every_kind_of_file_places_nodes(tmp_path, name, text, leaf):
    path = tmp_path / name
    path.write_text(text)

    places = parse(f"topology: {{file: {path}}}").policy().places

    assert places["gpu01"] == {"leaf": leaf}
