"""The ranges of the node keep clear of the machine's networks."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from ci.cluster.node import addresses
from ci.cluster.node.addresses import Addresses
from ci.errors import Unavailable


def test_the_first_ranges_are_taken_where_nothing_is_in_the_way() -> None:
    assert addresses.choose_ranges([IPv4Network("192.0.2.0/24")]) == ("10.96.0.0/16", "10.97.0.0/16")


@pytest.mark.parametrize("taken", ["10.96.4.0/24", "10.97.0.0/20", "10.0.0.0/9"])
def test_a_range_that_overlaps_a_network_of_the_machine_is_not_taken(taken: str) -> None:
    pods, services = addresses.choose_ranges([IPv4Network(taken)])
    assert (pods, services) == ("10.196.0.0/16", "10.197.0.0/16")


def test_no_free_range_is_said() -> None:
    with pytest.raises(Unavailable, match="every address range"):
        addresses.choose_ranges([IPv4Network("0.0.0.0/0")])


def test_the_default_route_is_no_network() -> None:
    routes = [{"dst": "default", "dev": "eth0"}, {"dst": "192.0.2.0/24"}, {"dst": "192.0.2.7"}]
    assert addresses.networks(routes) == [IPv4Network("192.0.2.0/24"), IPv4Network("192.0.2.7/32")]


def test_pods_send_no_larger_packets_than_the_outer_network_carries() -> None:
    links = [{"ifname": "lo", "mtu": 65536}, {"ifname": "eth0", "mtu": 1400}]
    assert addresses.outer_mtu([{"dst": "default", "dev": "eth0"}], links) == 1400
    assert addresses.outer_mtu([], links) == 1500


def test_what_follows_from_the_ranges() -> None:
    found = Addresses("10.96.0.0/16", "10.97.0.0/16", 5050)
    assert (found.node, found.api, found.dns) == ("10.96.0.1", "10.97.0.1", "10.97.0.10")
    assert (found.server, found.registry, found.prefix) == ("https://10.96.0.1:6443", "127.0.0.1:5050", 16)


def test_the_choice_stays(tmp_path: Path) -> None:
    path = tmp_path / "addresses.json"
    assert addresses.load(path) is None
    path.write_text('{"pods": "10.196.0.0/16", "services": "10.197.0.0/16", "registry_port": 5051, "mtu": 1400}')
    assert addresses.load_or_choose(path) == Addresses("10.196.0.0/16", "10.197.0.0/16", 5051, 1400)
