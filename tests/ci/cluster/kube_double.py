"""A small real HTTP server that answers as a Kubernetes API server does, as far as `ci.cluster.kube` asks it.

It speaks discovery, get, list (selectors, pages), create, merge patch, server-side apply (as a merge), delete, logs and
readyz, and counts what it was asked. It checks no schema and runs no controller: what the real one does with an object
is tested in tests/cluster.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from ci.cluster import access, argocd
from ci.workspace import Workspace

Json = dict[str, Any]

# (kind, plural, namespaced) by API
KINDS: dict[str, list[tuple[str, str, bool]]] = {
    "/api/v1": [
        ("Namespace", "namespaces", False),
        ("Pod", "pods", True),
        ("ConfigMap", "configmaps", True),
        ("Service", "services", True),
        ("Event", "events", True),
    ],
    "/apis/apps/v1": [("Deployment", "deployments", True), ("ReplicaSet", "replicasets", True)],
    "/apis/apiextensions.k8s.io/v1": [("CustomResourceDefinition", "customresourcedefinitions", False)],
    "/apis/argoproj.io/v1alpha1": [
        ("Application", "applications", True),
        ("ApplicationSet", "applicationsets", True),
        ("AppProject", "appprojects", True),
    ],
}


class KubeDouble:
    """Use as a context manager; `kubeconfig` is the file that leads to it."""

    def __init__(self, folder: Path, *, token: str = "let-me-in") -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}  # by (path of the kind, namespace, name)
        self.logs: dict[tuple[str, str], str] = {}  # by (namespace, pod); what is given by `previous` has a name + "<"
        self.kinds = {api: list(listed) for api, listed in KINDS.items()}
        self.asked: list[tuple[str, str]] = []  # method and path with query
        self.next_answers: list[tuple[int, str, str]] = []  # (status, reason, message) instead of what is asked for
        self.token = token
        self._folder = folder
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    def __enter__(self) -> KubeDouble:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and content are two writes: 40 ms an answer otherwise

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def setup(self) -> None:
                super().setup()
                double._connections.add(self.connection)

            def finish(self) -> None:
                double._connections.discard(self.connection)
                super().finish()

            def do_GET(self) -> None:
                double.answer(self)

            do_POST = do_PATCH = do_DELETE = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Go away; `start` brings it back on the same port with everything that it knew."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            for connection in list(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._server = None

    @property
    def kubeconfig(self) -> Path:
        path = self._folder / "kubeconfig"
        if path.exists():  # one that was written again means new connections
            return path
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": {"token": self.token}}],
            "contexts": [{"name": "double", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "double",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def add(self, *objects: Json) -> None:
        """Put whole objects in, with their status, as if controllers had written it."""
        for obj in objects:
            base = f"/apis/{obj['apiVersion']}" if "/" in obj["apiVersion"] else f"/api/{obj['apiVersion']}"
            plural = next(plural for kind, plural, _ in self.kinds[base] if kind == obj["kind"])
            metadata = obj["metadata"]
            self.objects[f"{base}/{plural}", metadata.get("namespace", ""), metadata["name"]] = obj

    def of(self, kind: str, name: str, namespace: str = "") -> Json:
        """Return one object as it is now."""
        return next(
            obj
            for (_, space, called), obj in self.objects.items()
            if (f"{obj['apiVersion']}/{obj['kind']}", called, space) == (kind, name, namespace)
        )

    # -- answers -------------------------------------------------------------------------------------------------------

    def answer(self, call: BaseHTTPRequestHandler) -> None:
        length = int(call.headers.get("Content-Length") or 0)
        body = json.loads(call.rfile.read(length)) if length else {}
        method, (path, query) = call.command, _split(call.path)
        self.asked.append((method, call.path))
        if path == "/readyz":
            return _send(call, 200, "ok")
        if call.headers.get("Authorization") != f"Bearer {self.token}":
            return _fail(call, 401, "Unauthorized", "Unauthorized")
        if self.next_answers:
            return _fail(call, *self.next_answers.pop(0))
        if path in self.kinds:
            return _send(call, 200, _discovery(self.kinds[path]))
        place = self._place(path)
        if place is None:
            return _send(call, 404, "404 page not found\n")
        kind, namespace, name, part = place
        if part == "log":
            return self._log(call, namespace, name, query)
        answers: dict[str, Callable[[], None]] = {
            "GET": lambda: self._get(call, kind, namespace, name, query),
            "POST": lambda: self._create(call, kind, namespace, body),
            "PATCH": lambda: self._patch(call, kind, namespace, name, body),
            "DELETE": lambda: self._delete(call, kind, namespace, name),
        }
        answers[method]()

    def _place(self, path: str) -> tuple[str, str, str, str] | None:
        """Return (path of the kind, namespace, name, subresource)."""
        api = next((api for api in self.kinds if path.startswith(f"{api}/")), None)
        if api is None:
            return None
        parts = path[len(api) + 1 :].split("/")
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        if parts[0] not in {plural for _, plural, _ in self.kinds[api]}:
            return None
        return f"{api}/{parts[0]}", namespace, parts[1] if len(parts) > 1 else "", parts[2] if len(parts) > 2 else ""

    def _get(self, call: BaseHTTPRequestHandler, kind: str, namespace: str, name: str, query: dict[str, str]) -> None:
        if name:
            found = self.objects.get((kind, namespace, name))
            return _send(call, 200, found) if found else _missing(call, kind, name)
        items = [
            {key: value for key, value in obj.items() if key not in ("apiVersion", "kind")}
            for (of, space, _), obj in sorted(self.objects.items())
            if of == kind
            and namespace in ("", space)
            and _matches(obj, query.get("labelSelector", ""))
            and _has_fields(obj, query.get("fieldSelector", ""))
        ]
        begin, limit = int(query.get("continue", "0")), int(query.get("limit", "0")) or len(items)
        more = str(begin + limit) if begin + limit < len(items) else ""
        _send(call, 200, {"metadata": {"continue": more}, "items": items[begin : begin + limit]})

    def _create(self, call: BaseHTTPRequestHandler, kind: str, namespace: str, body: Json) -> None:
        name = body["metadata"]["name"]
        if (kind, namespace, name) in self.objects:
            return _fail(call, 409, "AlreadyExists", f'{kind.rpartition("/")[2]} "{name}" already exists')
        self.objects[kind, namespace, name] = body
        _send(call, 201, body)

    def _patch(self, call: BaseHTTPRequestHandler, kind: str, namespace: str, name: str, body: Json) -> None:
        applies = call.headers["Content-Type"] == "application/apply-patch+yaml"
        there = self.objects.get((kind, namespace, name))
        if there is None and not applies:
            return _missing(call, kind, name)
        if namespace and applies and ("/api/v1/namespaces", "", namespace) not in self.objects:
            return _fail(call, 404, "NotFound", f'namespaces "{namespace}" not found')
        self.objects[kind, namespace, name] = changed = _merge(there or {}, body)
        if kind.endswith("/customresourcedefinitions"):
            changed["status"] = {"conditions": [{"type": "Established", "status": "True"}]}
            names = changed["spec"]["names"]
            api = f"/apis/{changed['spec']['group']}/{changed['spec']['versions'][0]['name']}"
            self.kinds.setdefault(api, []).append((names["kind"], names["plural"], True))
        _send(call, 200, changed)

    def _delete(self, call: BaseHTTPRequestHandler, kind: str, namespace: str, name: str) -> None:
        if self.objects.pop((kind, namespace, name), None) is None:
            return _missing(call, kind, name)
        _send(call, 200, {"status": "Success"})

    def _log(self, call: BaseHTTPRequestHandler, namespace: str, pod: str, query: dict[str, str]) -> None:
        text = self.logs.get((namespace, pod + ("<" if "previous" in query else "")))
        if text is None:
            return _fail(call, 400, "BadRequest", f"container in pod {pod} is waiting to start")
        lines = text.splitlines(keepends=True)
        _send(call, 200, "".join(lines[-int(query.get("tailLines", len(lines))) :]))


def close_clients(workspace: Workspace) -> None:
    """Close what `ci.cluster.argocd` keeps open from one look to the next."""
    argocd.client(access.require(workspace)).close()
    argocd._client.cache_clear()


def _split(path: str) -> tuple[str, dict[str, str]]:
    parts = urlsplit(path)
    return parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()}


def _discovery(listed: list[tuple[str, str, bool]]) -> Json:
    return {
        "resources": [
            {"name": plural + suffix, "kind": kind, "namespaced": namespaced}
            for kind, plural, namespaced in listed
            for suffix in ("", "/status")
        ]
    }


def _matches(obj: Json, selector: str) -> bool:
    labels = obj["metadata"].get("labels", {})
    for term in filter(None, selector.split(",")):
        key, equals, value = term.partition("=")
        if key not in labels or (equals and labels[key] != value.lstrip("=")):
            return False
    return True


def _has_fields(obj: Json, selector: str) -> bool:
    for term in filter(None, selector.split(",")):
        path, _, value = term.partition("=")
        found: Any = obj
        for part in path.split("."):
            found = found.get(part, {})
        if found != value:
            return False
    return True


def _merge(there: Any, change: Any) -> Any:
    if not isinstance(change, dict):
        return change
    merged = dict(there) if isinstance(there, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _missing(call: BaseHTTPRequestHandler, kind: str, name: str) -> None:
    _fail(call, 404, "NotFound", f'{kind.rpartition("/")[2]} "{name}" not found')


def _fail(call: BaseHTTPRequestHandler, status: int, reason: str, message: str) -> None:
    _send(call, status, {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": status})


def _send(call: BaseHTTPRequestHandler, status: int, content: Json | str) -> None:
    data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    call.send_response(status)
    call.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
    call.send_header("Content-Length", str(len(data)))
    call.end_headers()
    call.wfile.write(data)
