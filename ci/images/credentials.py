"""The user's logins to registries, as `docker login` and `podman login` keep them."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.errors import Mistake
from ci.shell import CommandFailed, run

_DOCKER_HUB = "https://index.docker.io/v1/"


@dataclass(frozen=True, repr=False)
class Credentials:
    """`basic` is what follows "Basic " in an Authorization header."""

    basic: str


def credentials(host: str) -> Credentials | None:
    """Return the login to `host`, None when there is none; raises Mistake when a credential helper fails."""
    for path in _files():
        try:
            raw: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise Mistake(f"{path}: cannot be read: {error}", tip="log in again") from None
        for name in _names(host):
            helper = raw.get("credHelpers", {}).get(name)
            if not helper and name in raw.get("auths", {}):
                if basic := raw["auths"][name].get("auth"):
                    return Credentials(basic)
                helper = raw.get("credsStore")
            if helper:
                return _helped(helper, name)
    return None


def _files() -> list[Path]:
    podman = [Path(os.environ["REGISTRY_AUTH_FILE"])] if os.environ.get("REGISTRY_AUTH_FILE") else []
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        podman.append(Path(runtime) / "containers" / "auth.json")
    docker = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    return [*podman, docker]


def _names(host: str) -> list[str]:
    return [host, _DOCKER_HUB] if host == "docker.io" else [host, f"https://{host}"]


def _helped(helper: str, name: str) -> Credentials | None:
    """Ask a program `docker-credential-…` (https://github.com/docker/docker-credential-helpers)."""
    program = f"docker-credential-{helper}"
    try:
        raw = json.loads(run([program, "get"], stdin=name, timeout=60))
    except CommandFailed as error:
        if "not found" in error.stderr.lower():
            return None
        said = (error.stderr.strip().splitlines() or [f"code {error.code}"])[-1]
        raise Mistake(f"{program}: {said}", tip="log in to the registry again") from None
    except FileNotFoundError:
        raise Mistake(f"{program}: is not on the PATH, and the login to {name} is kept there") from None
    return Credentials(base64.b64encode(f"{raw['Username']}:{raw['Secret']}".encode()).decode())
