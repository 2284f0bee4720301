"""A thin synchronous face of the Kubernetes API.

Kinds are written `v1/Pod`, `apps/v1/Deployment`, `argoproj.io/v1alpha1/Application`; objects are plain data. It
speaks HTTP by itself: kr8s needs 0.6 s to be imported, asks for every API group before the first call, and leaves the
client's key behind in a temporary file, where `wharf status` is to answer at once.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from ci.cluster import kubeconfig
from ci.errors import Mistake, Unavailable
from ci.shell import CommandFailed

if TYPE_CHECKING:
    import httpx

    from ci.cluster.access import Access

Json = dict[str, Any]
T = TypeVar("T")

MANAGER = "modelwharf"
_CONNECT_S, _READ_S = 3.0, 30.0
_PAGE = 500
_FIRST = {"Namespace": 0, "CustomResourceDefinition": 1}  # what everything else needs
_AGAIN = {429, 500, 502, 503, 504}  # what an API server that is starting, or has lost etcd for a moment, answers


class Rejected(Mistake):
    """The API server says no: `status` is its code, `reason` its word for it (NotFound, AlreadyExists, Forbidden…)."""

    def __init__(self, line: str, status: int, reason: str, tip: str = "") -> None:
        super().__init__(line, tip)
        self.status, self.reason = status, reason


class Kube:
    """A cluster. May be used by several threads at once; keeps its connections open.

    Every method raises Unavailable when the API server cannot be reached or cannot serve now, and Rejected (a Mistake)
    when it says no; both in one line.
    """

    def __init__(self, path: Path, context: str | None = None) -> None:
        import httpx

        from ci.cluster.bearer import Bearer

        self._server = kubeconfig.load(path, context)
        token = self._server.token
        self._auth = Bearer(token, lambda: kubeconfig.load(path, context).token) if token else None
        self._client = httpx.Client(**self._settings())
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}

    def _settings(self) -> dict[str, Any]:
        import httpx

        return {
            "base_url": self._server.url,
            "headers": {"User-Agent": "modelwharf", "Accept": "application/json"},
            "auth": self._auth,
            "verify": self._server.tls,
            "proxy": self._server.proxy,
            "timeout": httpx.Timeout(_READ_S, connect=_CONNECT_S),
            "trust_env": False,  # a company's proxy does not know the way to a cluster on this machine
        }

    def close(self) -> None:
        """Close the connections; a command that ends does it by itself."""
        self._client.close()

    def __enter__(self) -> Kube:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- objects -------------------------------------------------------------------------------------------------------

    def get(self, kind: str, name: str, namespace: str | None = None) -> Json | None:
        """Return an object, None when there is none (or not even its kind)."""
        try:
            return self._call("GET", self._path(kind, namespace, name), what=_what(kind, name, namespace)).json()
        except Rejected as error:
            if error.status == 404:
                return None
            raise

    def list(
        self, kind: str, namespace: str | None = None, labels: str | None = None, *, fields: str | None = None
    ) -> list[Json]:
        """Return the objects of a kind, in one namespace or (None) in all, that match both selectors."""
        path, what = self._path(kind, namespace), _what(kind, "", namespace)
        query: dict[str, Any] = {"limit": _PAGE, "labelSelector": labels, "fieldSelector": fields}
        found: list[Json] = []
        while True:
            try:
                page = self._call("GET", path, what=what, query=query).json()
            except Rejected as error:
                if error.status != 410 or "limit" not in query:
                    raise
                found.clear()  # the first pages are too old by now: all at once, then
                del query["limit"], query["continue"]
                continue
            api, _, word = kind.rpartition("/")
            found += [{"apiVersion": api, "kind": word, **item} for item in page["items"]]
            query["continue"] = page["metadata"].get("continue")
            if not query["continue"]:
                return found

    def create(self, obj: Mapping[str, Any]) -> Json:
        """Create an object and return it as it is stored; raises Rejected (AlreadyExists) when it is there."""
        kind, name, namespace = _identity(obj)
        body = json.dumps(obj)
        return self._call("POST", self._path(kind, namespace), what=_what(kind, name, namespace), body=body).json()

    def patch(
        self, kind: str, name: str, namespace: str | None, body: Mapping[str, Any], *, part: str | None = None
    ) -> Json:
        """Change an object by a JSON merge patch and return it; `part` is a subresource, such as `scale`."""
        path = self._path(kind, namespace, name) + (f"/{part}" if part else "")
        form = "application/merge-patch+json"
        return self._call("PATCH", path, what=_what(kind, name, namespace), body=json.dumps(body), form=form).json()

    def delete(self, kind: str, name: str, namespace: str | None = None, *, wait_s: float = 0) -> bool:
        """Delete an object and what belongs to it; tell whether there was one.

        With `wait_s` it waits until the object is gone, and raises Unavailable when it still is there after that.
        """
        what, path = _what(kind, name, namespace), self._path(kind, namespace, name)
        try:
            self._call("DELETE", path, what=what, body=json.dumps({"propagationPolicy": "Background"}))
        except Rejected as error:
            if error.status == 404:
                return False
            raise
        if wait_s and not self.wait(lambda: self.get(kind, name, namespace) is None, wait_s):
            raise Unavailable(f"{what}: is still there after {wait_s:g} seconds: a finalizer or a controller holds it")
        return True

    def apply(self, objects: Iterable[Mapping[str, Any]], *, timeout_s: float = 60) -> None:
        """Make the objects so (server-side apply): namespaces and definitions of kinds first, then in their order.

        Goes on trying for `timeout_s` in all while the API server is away, or does not know a kind or a namespace yet.
        """
        ends = time.monotonic() + timeout_s
        for obj in sorted(objects, key=lambda each: _FIRST.get(str(each["kind"]), len(_FIRST))):
            while True:
                try:
                    self._apply(obj, ends)
                    break
                except (Unavailable, Rejected) as error:
                    passing = isinstance(error, Unavailable) or error.status in {404, 409}
                    if not passing or time.monotonic() > ends:
                        raise
                    time.sleep(0.3)

    def _apply(self, obj: Mapping[str, Any], ends: float) -> None:
        kind, name, namespace = _identity(obj)
        self._call(
            "PATCH",
            self._path(kind, namespace, name),
            what=_what(kind, name, namespace),
            query={"fieldManager": MANAGER, "force": "true"},
            body=json.dumps(obj),
            form="application/apply-patch+yaml",
        )
        if obj["kind"] == "CustomResourceDefinition":
            self.wait(lambda: _established(self.get(kind, name)), max(1.0, ends - time.monotonic()))

    # -- pods ----------------------------------------------------------------------------------------------------------

    def logs(
        self,
        pod: str,
        namespace: str,
        *,
        container: str | None = None,
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
    ) -> Iterator[str]:
        """Give the lines that a container has written; `previous`: the one before its last restart."""
        import httpx

        flags = {"follow": "true" if follow else None, "previous": "true" if previous else None}
        query = _given({"container": container, "tailLines": tail, **flags})
        what = _what("v1/Pod", pod, namespace)
        timeout = httpx.Timeout(None if follow else _READ_S, connect=_CONNECT_S)
        path = f"{self._path('v1/Pod', namespace, pod)}/log"
        try:
            with self._client.stream(
                "GET", path, params=query, timeout=timeout, extensions=self._extensions()
            ) as response:
                if response.is_error:
                    response.read()
                    raise self._fault(response, what)
                yield from response.iter_lines()
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def run(
        self, pod: str, namespace: str, command: Sequence[str], *, container: str | None = None, timeout_s: float = 60
    ) -> str:
        """Run a command in a container and return its standard output.

        Raises CommandFailed when it fails, Unavailable when it neither ends nor writes anything for `timeout_s`.
        """
        import httpx
        import httpx_ws

        from ci.cluster.execute import ERRORS, OUTPUT, STATUS, execute

        query = _given({"command": [*command], "container": container, "stdout": "true", "stderr": "true"})
        path = f"{self._path('v1/Pod', namespace, pod)}/exec"
        try:
            said = execute(self._settings(), path, query, self._extensions(), timeout_s)
        except TimeoutError:
            raise Unavailable(f"`{' '.join(command)}` in pod {pod}: said nothing for {timeout_s:g} seconds") from None
        except httpx_ws.WebSocketUpgradeError as error:
            raise self._fault(error.response, _what("v1/Pod", pod, namespace)) from None
        except (httpx_ws.WebSocketDisconnect, httpx_ws.WebSocketNetworkError, httpx.TransportError) as error:
            raise self._unreachable(error) from None
        status: Json = json.loads(said[STATUS])
        if status.get("status") != "Success":
            causes = (status.get("details") or {}).get("causes") or []
            code = next((int(each["message"]) for each in causes if each.get("reason") == "ExitCode"), 1)
            raise CommandFailed(command, code, said[ERRORS].decode(errors="replace") or str(status.get("message")))
        return said[OUTPUT].decode(errors="replace")

    # -- the server ----------------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Tell whether the API server answers and says that it is ready."""
        import httpx

        try:
            return self._client.get("/readyz", timeout=_CONNECT_S, extensions=self._extensions()).is_success
        except httpx.TransportError:
            return False

    def wait(self, check: Callable[[], T], timeout_s: float, interval_s: float = 0.3) -> T | None:
        """Ask `check` until what it returns is true, and return that; None after `timeout_s`.

        An API server that is away meanwhile is waited for; raises its Unavailable when it is still away at the end.
        """
        ends = time.monotonic() + timeout_s
        while True:
            fault: Unavailable | None = None
            try:
                if found := check():
                    return found
            except Unavailable as error:
                fault = error
            if time.monotonic() + interval_s > ends:
                if fault:
                    raise fault
                return None
            time.sleep(interval_s)

    def _path(self, kind: str, namespace: str | None, name: str | None = None) -> str:
        plural, namespaced = self._kind(kind)
        parts = [_base(kind)]
        if namespaced and namespace:
            parts += ["namespaces", quote(namespace)]
        elif namespaced and name:
            raise Mistake(f"{_what(kind, name)}: a namespace is missing")
        return "/".join([*parts, plural, *([quote(name)] if name else [])])

    def _kind(self, kind: str) -> tuple[str, bool]:
        """Return the plural of a kind and whether it lives in namespaces; raises Rejected (NotFound) when unknown."""
        base, word = _base(kind), kind.rpartition("/")[2]
        if word not in self._kinds.get(base, {}):
            try:
                listed = self._call("GET", base, what=f"the API {base}").json()["resources"]
            except Rejected as error:
                if error.status != 404:
                    raise
                listed = []
            self._kinds[base] = {
                each["kind"]: (each["name"], each["namespaced"]) for each in listed if "/" not in each["name"]
            }
        if word not in self._kinds[base]:
            raise Rejected(
                f"the cluster does not know {kind}", 404, "NotFound", tip="`make cluster` installs what is missing"
            )
        return self._kinds[base][word]

    def _call(
        self,
        method: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, Any] | None = None,
        body: str | None = None,
        form: str = "application/json",
    ) -> httpx.Response:
        import httpx

        headers = {"Content-Type": form} if body is not None else {}
        for last in (False, True):
            try:
                response = self._client.request(
                    method,
                    path,
                    params=_given(query or {}),
                    content=body,
                    headers=headers,
                    extensions=self._extensions(),
                )
                break
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                # A connection that was kept open is closed when the server restarts; all but creation may be repeated.
                if last or method == "POST":
                    raise self._unreachable(error) from None
            except httpx.TransportError as error:
                raise self._unreachable(error) from None
        else:
            raise AssertionError("unreachable")
        if response.is_error:
            raise self._fault(response, what)
        return response

    def _extensions(self) -> dict[str, Any]:
        return {"sni_hostname": self._server.name} if self._server.name else {}

    def _unreachable(self, error: Exception) -> Unavailable:
        cause = str(error).removeprefix("[Errno 111] ") or type(error).__name__
        return Unavailable(
            f"the cluster's API server ({self._server.context}, {self._server.url}) does not answer: {cause}",
            tip="`make cluster` brings it up again",
        )

    def _fault(self, response: httpx.Response, what: str) -> Unavailable | Rejected:
        import httpx

        said: Any = None
        text = response.reason_phrase
        with contextlib.suppress(ValueError, httpx.StreamError):  # of a refused exec only the code is left
            text = response.text.strip() or text
            said = response.json()
        status: Json = said if isinstance(said, dict) else {}
        why = " ".join(str(status.get("message") or text).split())
        if response.status_code in _AGAIN:
            return Unavailable(f"{what}: the API server cannot serve now: {why}")
        tip = "the credentials in the kubeconfig are not accepted" if response.status_code == 401 else ""
        return Rejected(f"{what}: {why}", response.status_code, str(status.get("reason") or ""), tip)


def connect(access: Access) -> Kube:
    """Return the cluster that `access` leads to; raises Mistake when its kubeconfig cannot be used."""
    return Kube(access.kubeconfig, access.context)


def _base(kind: str) -> str:
    api = kind.rpartition("/")[0]
    return f"/apis/{api}" if "/" in api else f"/api/{api}"


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in query.items() if value is not None}


def _what(kind: str, name: str, namespace: str | None = None) -> str:
    word = kind.rpartition("/")[2]
    return f"{word} {name}{f' in {namespace}' if namespace else ''}" if name else f"{word}s"


def _identity(obj: Mapping[str, Any]) -> tuple[str, str, str | None]:
    metadata = obj["metadata"]
    name = metadata.get("name") or metadata.get("generateName") or ""
    return f"{obj['apiVersion']}/{obj['kind']}", str(name), metadata.get("namespace")


def _established(definition: Json | None) -> bool:
    conditions = ((definition or {}).get("status") or {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)
