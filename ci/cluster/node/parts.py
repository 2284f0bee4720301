"""What the supervisor runs: each part's command, what it waits for, and how it shows that it is ready."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ci.files import sha256_file, write_atomic


@dataclass(frozen=True)
class Probe:
    """How to see that a part is ready: its socket takes a connection, or its address answers 200 over TLS."""

    unix: str = ""
    host: str = ""
    port: int = 0
    path: str = ""  # asked by HTTPS with the certificate below; without it a connection is enough
    authority: str = ""
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True)
class Part:
    """One process of the node."""

    name: str
    command: tuple[str, ...]
    env: dict[str, str]
    files: tuple[str, ...] = ()  # it is started anew when one of them changes
    after: tuple[str, ...] = ()  # the parts that must be ready before it is started
    probe: Probe | None = None
    grace_s: float = 10.0  # between SIGTERM and SIGKILL

    def digest(self) -> str:
        """Return what tells a running process from the one that is wanted now."""
        contents = [sha256_file(Path(file)) if Path(file).is_file() else "" for file in self.files]
        text = json.dumps([self.command, self.env, contents], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, parts: Iterable[Part]) -> str:
    """Write the file that the supervisor reads; return what names this writing of it."""
    generation = str(time.time_ns())
    document = {"generation": generation, "parts": [asdict(part) for part in parts]}
    write_atomic(path, json.dumps(document, indent=1))
    return generation


def read(path: Path) -> tuple[str, list[Part]]:
    """Return the name of this writing and the parts in the order in which they are started.

    Raises OSError, ValueError, KeyError, TypeError for a file that is not what `write` wrote.
    """
    document = json.loads(path.read_text())
    found = [
        Part(
            name=raw["name"],
            command=tuple(raw["command"]),
            env=raw["env"],
            files=tuple(raw["files"]),
            after=tuple(raw["after"]),
            probe=Probe(**raw["probe"]) if raw["probe"] else None,
            grace_s=raw["grace_s"],
        )
        for raw in document["parts"]
    ]
    return str(document["generation"]), found


def ready(probe: Probe | None, timeout_s: float = 2.0) -> bool:
    """Tell whether the part behind `probe` is ready now."""
    if probe is None:
        return True
    try:
        return _asked(probe, timeout_s) if probe.path else _connects(probe, timeout_s)
    except (OSError, http.client.HTTPException):
        return False


def _connects(probe: Probe, timeout_s: float) -> bool:
    family = socket.AF_UNIX if probe.unix else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.settimeout(timeout_s)
        one.connect(probe.unix or (probe.host, probe.port))
    return True


def _asked(probe: Probe, timeout_s: float) -> bool:
    context = ssl.create_default_context(cafile=probe.authority)
    context.load_cert_chain(probe.certificate, probe.key)
    connection = http.client.HTTPSConnection(probe.host, probe.port, timeout=timeout_s, context=context)
    try:
        connection.request("GET", probe.path)
        return connection.getresponse().status == 200
    finally:
        connection.close()
