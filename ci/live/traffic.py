"""Send a bounded amount of requests to a model service on this machine."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ci.errors import Mistake, Unavailable
from ci.live.webhook import is_loopback

MAX_REQUESTS = 2000
MAX_SECONDS = 60.0
_TIMEOUT_S = 10.0
_TRIES = 20  # for an answer that says "not now": a service that is being replaced or sheds load


@dataclass(frozen=True)
class Sent:
    """What was answered: the request ids in the order of the bodies, None for a request that was not answered."""

    ids: list[str | None] = field(default_factory=list[str | None])
    seconds: float = 0.0

    @property
    def answered(self) -> int:
        """Number of requests that were answered."""
        return sum(name is not None for name in self.ids)


def batches(rows: Sequence[Any], size: int) -> list[list[Any]]:
    """Return `rows` in lists of at most `size`."""
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


def send(url: str, bodies: Sequence[Mapping[str, Any]], *, max_seconds: float = MAX_SECONDS) -> Sent:
    """POST each body as JSON to `url`/predict over one connection, one after the other.

    Only http to a loopback address is allowed, at most `MAX_REQUESTS` bodies, and it stops after `max_seconds` with
    the rest unsent. A 503 is repeated after the pause that it asks for. Raises Mistake for another address or too many
    bodies, Unavailable when nothing answers there or a body is refused.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not is_loopback(parts.hostname or ""):
        raise Mistake(f"traffic goes to services on this machine only, not to {parts.hostname or url}")
    if len(bodies) > MAX_REQUESTS:
        raise Mistake(f"{len(bodies)} requests are more than the {MAX_REQUESTS} that are sent at once")
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_TIMEOUT_S)
    begun = time.monotonic()
    ids: list[str | None] = []
    try:
        for body in bodies:
            left = max_seconds - (time.monotonic() - begun)
            ids.append(_post(connection, f"{parts.path.rstrip('/')}/predict", body, left) if left > 0 else None)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{url} does not answer ({type(error).__name__})", tip="see `wharf status`") from None
    finally:
        connection.close()
    return Sent(ids, time.monotonic() - begun)


def _post(connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any], left: float) -> str | None:
    text, until = json.dumps(body, allow_nan=False), time.monotonic() + left
    for _ in range(_TRIES):
        status, answer, pause = _once(connection, path, text)
        if status == 200:
            return str(answer["request_id"])
        if status != 503:
            raise Unavailable(f"the service answered {status}: {str(answer.get('error', ''))[:200]}")
        if time.monotonic() + pause > until:
            return None
        time.sleep(pause)
    return None


def _once(connection: http.client.HTTPConnection, path: str, text: str) -> tuple[int, dict[str, Any], float]:
    """Return status, JSON body and the seconds to wait before trying again."""
    headers = {"Content-Type": "application/json"}
    try:
        connection.request("POST", path, text, headers)
        answer = connection.getresponse()
    except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
        connection.close()  # the server may close an idle connection at any time; one new one is allowed
        connection.request("POST", path, text, headers)
        answer = connection.getresponse()
    content = answer.read()
    try:
        found: Any = json.loads(content)
    except ValueError:
        found = {"error": content[:100].decode(errors="replace")}
    pause = answer.getheader("Retry-After") or "0.5"
    seconds = min(float(pause), 2.0) if pause.replace(".", "", 1).isdigit() else 0.5
    return answer.status, found if isinstance(found, dict) else {"error": str(found)}, seconds
