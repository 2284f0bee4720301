"""The install manifests of Argo CD and Argo Rollouts as their projects publish them, by version and sha256.

On the single node they come with the modules that the programs are built from (`ci.cluster.node.tools`), whose content
go.sum checks. Elsewhere they are fetched once into the cache. What has another digest than the one pinned here is
neither used nor kept: a changed tag installs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.errors import Refusal, Unavailable
from ci.files import sha256_bytes, write_atomic
from ci.images.layers import cache

Json = dict[str, Any]
_FETCH_S = 60.0
_SOURCE = "https://raw.githubusercontent.com/argoproj"


@dataclass(frozen=True)
class Pin:
    """One file of one version: where it is, and what it must be."""

    version: str
    url: str
    sha256: str


PINS: Mapping[str, Pin] = {
    # The newest version of the day, which has the fixes of the advisories of 2026.
    "argocd": Pin(
        "v3.5.4",
        f"{_SOURCE}/argo-cd/v3.5.4/manifests/install.yaml",
        "1feb02cc7bacf3a379da58b0ca8c6f07d18288cd04d531dabd08816375e5e010",
    ),
    # The version that the node builds, so that what the tests run is what other clusters get.
    "rollouts": Pin(
        "v1.8.3",
        f"{_SOURCE}/argo-rollouts/v1.8.3/manifests/install.yaml",
        "bb5398c2f7a5a9cfa5fe221ebef74bd248dd13aafdaf0fd215e6d93cd917bb5b",
    ),
}


def folder() -> Path:
    """Return the folder in which manifests are kept; it may not exist yet."""
    return cache() / "manifests"


def pinned(program: str) -> list[Json]:
    """Return the objects of the pinned install manifest of `argocd` or `rollouts`, fetched when the cache lacks it.

    Raises Unavailable (it cannot be fetched) and Refusal (what was fetched is not what is pinned).
    """
    pin = PINS[program]
    kept = folder() / f"{program}-{pin.version}.yaml"
    try:
        data = kept.read_bytes()
    except FileNotFoundError:
        data = b""
    if sha256_bytes(data) != pin.sha256:
        data = _fetch(program, pin, kept)
        write_atomic(kept, data)
    return parse(data)


def parse(data: bytes) -> list[Json]:
    """Return the objects of a manifest; what was parsed once is kept as JSON, which is read 40 times as fast."""
    known = folder() / f"{sha256_bytes(data)}.json"
    try:
        return json.loads(known.read_bytes())
    except (FileNotFoundError, ValueError):
        pass
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = [one for one in yaml.load_all(data, Loader=loader) if one]
    write_atomic(known, json.dumps(found), durable=False)
    return found


def _fetch(program: str, pin: Pin, kept: Path) -> bytes:
    import requests

    try:
        response = requests.get(pin.url, timeout=_FETCH_S)
        response.raise_for_status()
    except requests.RequestException as error:
        raise Unavailable(
            f"the install manifest of {program} {pin.version} cannot be fetched: {_cause(error)}",
            tip=f"without a network put {pin.url} into {kept}",
        ) from None
    found = sha256_bytes(response.content)
    if found != pin.sha256:
        raise Refusal(
            f"{pin.url}: its sha256 is {found}, pinned is {pin.sha256}: nothing of it was used",
            tip="if upstream has published it anew, check why, then change the pin in ci/cluster/upstream.py",
        )
    return response.content


def _cause(error: Exception) -> str:
    return str(error).splitlines()[0][:200] or type(error).__name__
