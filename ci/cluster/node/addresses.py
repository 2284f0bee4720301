"""The addresses of the node: ranges for pods and Services that collide with no network of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from ci.cluster.node.layout import API_PORT
from ci.errors import Unavailable
from ci.files import write_atomic
from ci.local import processes
from ci.shell import run

_PAIRS = (
    ("10.96.0.0/16", "10.97.0.0/16"),
    ("10.196.0.0/16", "10.197.0.0/16"),
    ("172.28.0.0/16", "172.29.0.0/16"),
    ("192.168.192.0/19", "192.168.224.0/19"),
)
_REGISTRY_PORTS = range(5050, 5060)
_DEFAULT_MTU = 1500


@dataclass(frozen=True)
class Addresses:
    """What the parts of the node are told; it stays the same until `down`."""

    pods: str
    services: str
    registry_port: int
    mtu: int = _DEFAULT_MTU

    @property
    def node(self) -> str:
        """The address of the bridge and of the node: it is there without any network."""
        return str(IPv4Network(self.pods)[1])

    @property
    def prefix(self) -> int:
        return IPv4Network(self.pods).prefixlen

    @property
    def api(self) -> str:
        """The address of the Service `kubernetes`."""
        return str(IPv4Network(self.services)[1])

    @property
    def dns(self) -> str:
        """The address that CoreDNS's Service must have."""
        return str(IPv4Network(self.services)[10])

    @property
    def server(self) -> str:
        return f"https://{self.node}:{API_PORT}"

    @property
    def registry(self) -> str:
        """Where this machine pushes images."""
        return f"{processes.HOST}:{self.registry_port}"


def load(path: Path) -> Addresses | None:
    """Return the addresses that were chosen, None when there are none yet."""
    try:
        return Addresses(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def load_or_choose(path: Path) -> Addresses:
    """Return the addresses in `path`; at first, choose them and write them there. Raises Unavailable."""
    known = load(path)
    if known is None:
        routes: list[dict[str, Any]] = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]))
        links: list[dict[str, Any]] = json.loads(run(["ip", "-json", "link"]))
        pods, services = choose_ranges(networks(routes))
        known = Addresses(pods, services, processes.free_port(_REGISTRY_PORTS), outer_mtu(routes, links))
        write_atomic(path, json.dumps(asdict(known), indent=2))
    return known


def networks(routes: Iterable[dict[str, Any]]) -> list[IPv4Network]:
    """Return the networks that `ip -json route` names; the default route is none."""
    found: list[IPv4Network] = []
    for route in routes:
        destination = str(route.get("dst", "default"))
        if destination not in ("default", "0.0.0.0/0"):
            found.append(IPv4Network(destination, strict=False))
    return found


def choose_ranges(taken: Iterable[IPv4Network]) -> tuple[str, str]:
    """Return the ranges for pods and for Services that overlap none of `taken`. Raises Unavailable."""
    used = list(taken)
    for pods, services in _PAIRS:
        if not any(IPv4Network(wanted).overlaps(one) for wanted in (pods, services) for one in used):
            return pods, services
    raise Unavailable(
        f"every address range for pods is in use on this machine: {', '.join(pods for pods, _ in _PAIRS)}",
        tip="use another machine, or `--provider existing`",
    )


def outer_mtu(routes: Iterable[dict[str, Any]], links: Iterable[dict[str, Any]]) -> int:
    """Return the packet size of the interface with the default route: pods must not send larger ones."""
    sizes = {str(link["ifname"]): int(link["mtu"]) for link in links}
    outer = [
        sizes[str(route["dev"])] for route in routes if route.get("dst") == "default" and route.get("dev") in sizes
    ]
    return min([*outer, _DEFAULT_MTU])
