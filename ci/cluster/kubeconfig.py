"""Read a kubeconfig: where the API server is, how to trust it, and who we are to it.

Supported is what clusters of today hand out: client certificates, tokens, and credential plugins (`exec`, as EKS, GKE
and AKS have). https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ci.errors import Mistake, Unavailable, did_you_mean

_PLUGIN_S = 60
_PLUGIN_API = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")

Json = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """An API server and the way to talk to it."""

    context: str
    url: str
    tls: ssl.SSLContext | bool
    token: str | None
    proxy: str | None
    name: str | None  # the name in its certificate, where it is not the one in `url`


def load(path: Path, context: str | None = None) -> Server:
    """Return the server of `context` (default: the current one).

    Raises Mistake for a file that cannot be used, Unavailable when a credential plugin fails.
    """
    raw = _read(path)
    chosen = context or str(raw.get("current-context") or "")
    where = _named(raw, "contexts", "context", chosen, path)
    cluster = _named(raw, "clusters", "cluster", str(where.get("cluster")), path)
    user = _named(raw, "users", "user", str(where.get("user")), path) if where.get("user") else {}
    for old in ("auth-provider", "username", "password"):
        if old in user:
            raise Mistake(f"{path}: user '{where['user']}': {old}: Kubernetes has removed this way to log in")
    if "exec" in user:
        user = {**user, **_ask_plugin(user["exec"], cluster, path, f"{path}: user '{where['user']}'")}
    return Server(
        context=chosen,
        url=str(cluster.get("server", "")).rstrip("/"),
        tls=_tls(cluster, user, path),
        token=_token(user, path),
        proxy=cluster.get("proxy-url"),
        name=cluster.get("tls-server-name"),
    )


def _read(path: Path) -> Json:
    try:
        raw = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror}", tip="bring the cluster up again with `make cluster`") from None
    except yaml.YAMLError as error:
        raise Mistake(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict):
        raise Mistake(f"{path}: is not a kubeconfig")
    return raw


def _named(raw: Json, plural: str, singular: str, name: str, path: Path) -> Json:
    listed = [entry for entry in raw.get(plural) or [] if isinstance(entry, dict)]
    for entry in listed:
        if entry.get("name") == name:
            return entry.get(singular) or {}
    known = [str(entry.get("name")) for entry in listed]
    raise Mistake(f"{path}: no {singular} '{name}'{did_you_mean(name, known)}", tip=f"{plural}: {', '.join(known)}")


def _token(user: Json, path: Path) -> str | None:
    if "token" in user:
        return str(user["token"])
    if "tokenFile" in user:
        return _file(user["tokenFile"], path).read_text().strip()
    return None


def _file(name: Any, beside: Path) -> Path:
    """Return the path of a file that a kubeconfig names: relative ones are meant from where it stands."""
    found = beside.parent / str(name)
    if not found.is_file():
        raise Mistake(f"{beside}: {found} does not exist")
    return found


def _content(entry: Json, key: str, path: Path) -> bytes | None:
    """Return what stands under `key`-data, or in the file under `key`."""
    data = entry.get(f"{key}-data")
    if data is not None:
        try:
            return data.encode() if "-----BEGIN" in data else base64.b64decode(data, validate=True)
        except (binascii.Error, AttributeError):
            raise Mistake(f"{path}: {key}-data: is not base64") from None
    return _file(entry[key], path).read_bytes() if key in entry else None


def _tls(cluster: Json, user: Json, path: Path) -> ssl.SSLContext | bool:
    if not str(cluster.get("server", "")).startswith("https:"):
        return True
    try:
        authority = _content(cluster, "certificate-authority", path)
        tls = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if cluster.get("insecure-skip-tls-verify"):
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        certificate, key = _content(user, "client-certificate", path), _content(user, "client-key", path)
        if certificate and key:
            # Python takes them from a file only; it is gone before anything is sent.
            with tempfile.NamedTemporaryFile(prefix="wharf-") as file:
                file.write(certificate + b"\n" + key)
                file.flush()
                tls.load_cert_chain(file.name)
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise Mistake(f"{path}: a certificate or key cannot be read: {error}") from None
    return tls


def _ask_plugin(plugin: Mapping[str, Any], cluster: Json, beside: Path, where: str) -> Json:
    """Run a credential plugin and return what it says, in the words of a kubeconfig's user."""
    api = plugin.get("apiVersion")
    if api not in _PLUGIN_API:
        raise Mistake(f"{where}: exec: apiVersion: must be one of {', '.join(_PLUGIN_API)}, not {api!r}")
    spec: Json = {"interactive": False}
    if plugin.get("provideClusterInfo"):
        known = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
        spec["cluster"] = {key: cluster[key] for key in known if key in cluster}
    asked = {"apiVersion": api, "kind": "ExecCredential", "spec": spec}
    env = {str(entry["name"]): str(entry["value"]) for entry in plugin.get("env") or []}
    program = str(plugin["command"])
    if os.sep in program:  # as kubectl has it: meant from where the kubeconfig stands, never from the current folder
        program = str(beside.absolute().parent / program)
    command = [program, *map(str, plugin.get("args") or [])]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **env, "KUBERNETES_EXEC_INFO": json.dumps(asked)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PLUGIN_S,
            check=False,
        )
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise Unavailable(f"{where}: {command[0]}: {said[-1] if said else f'ended with {done.returncode}'}")
        status: Json = dict(json.loads(done.stdout)["status"])
    except FileNotFoundError:
        hint = str(plugin.get("installHint") or "").strip()
        raise Mistake(f"{where}: {command[0]} is not installed", tip=" ".join(hint.split())) from None
    except OSError as error:
        raise Mistake(f"{where}: {command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{where}: {command[0]} said nothing for {_PLUGIN_S} seconds") from None
    except (ValueError, KeyError, TypeError):
        raise Mistake(f"{where}: {command[0]} did not print an ExecCredential") from None
    names = {
        "token": "token",
        "clientCertificateData": "client-certificate-data",
        "clientKeyData": "client-key-data",
    }
    return {names[key]: value for key, value in status.items() if key in names and value}
