"""The shared serving runtime: verify and load, answer POST /predict, log, measure, and shed load.

`Runtime` is a plain ASGI application that every service mounts on its BentoML service (docs/adr/ says why). A request
whose expected work is short is answered on the event loop, a longer one by a thread; what would wait too long is
turned away with 503 and Retry-After, so that overload costs some requests and not all of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from bentos import openapi
from bentos.inputs import Answer, Handler, Refused
from bentos.prediction_log import PredictionLog
from bentos.predictors import load
from bentos.ranking import RankingHandler
from bentos.schema import ArtifactError, ServingSpec
from bentos.tables import TableHandler

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

INLINE_S = 0.002  # work that takes longer than this holds up others: it goes to a thread
RETRY_AFTER_S = 1
_JSON = b"application/json"
_DUMP = orjson.OPT_SERIALIZE_NUMPY
_log = logging.getLogger("wharf.serving")


def settings() -> dict[str, Any]:
    """Return the arguments of `@bentoml.service` that suit a mounted Runtime.

    The runtime has its own time limit and load shedding, which BentoML's do not reach, and its prediction log takes
    the place of the access log.
    """
    return {"workers": 1, "traffic": {"timeout": 3600}, "logging": {"access": {"enabled": False}}}


class Runtime:
    """Serves the model folder beside the code of the bento. `load` makes it ready; before that it answers 503."""

    def __init__(self, model: str) -> None:
        """Prepare to serve `model`; nothing is read yet, so that a build can import the service."""
        self.model, self.ready = model, False
        self.handler: Handler
        self.spec: ServingSpec
        self._log_lines = PredictionLog(None)

    def load(self, folder: Path | None = None) -> None:
        """Verify and load the model, make warm-up predictions, and become ready.

        `folder` is where the model is (default: `model/` beside the package `bentos`). The environment says what was
        released: WHARF_MODEL, WHARF_VERSION, WHARF_ENVIRONMENT, WHARF_ARTIFACT_SHA256, WHARF_PREDICTION_LOG,
        WHARF_BENTO. Raises ArtifactError, one line, when this is not what was released or cannot be served.
        """
        from bentos.metrics import Metrics

        env = os.environ.get
        if env("WHARF_MODEL", self.model) != self.model:
            raise ArtifactError(f"the release is of model '{env('WHARF_MODEL')}', this bento serves '{self.model}'")
        try:
            self.version = int(env("WHARF_VERSION") or 0)  # 0: served without a release
        except ValueError:
            raise ArtifactError(f"WHARF_VERSION: '{env('WHARF_VERSION')}' is not a whole number") from None
        self.environment = env("WHARF_ENVIRONMENT", "")
        predictor = load(folder or Path(__file__).parents[1] / "model", env("WHARF_ARTIFACT_SHA256") or None)
        self.spec = predictor.spec
        if self.spec.model != self.model:
            raise ArtifactError(f"serving.json is of model '{self.spec.model}', this bento serves '{self.model}'")
        self.handler = RankingHandler(predictor) if self.spec.task == "ranking" else TableHandler(predictor)
        self._own = {"model": self.model, "version": self.version}
        self._version_header = (b"x-model-version", str(self.version).encode())
        self._max_body = self.spec.max_body_kb * 1024
        self._max_wait = min(1.0, self.spec.timeout_s / 4)
        self._slots = self.spec.max_concurrency + max(4, self.spec.max_concurrency // 4)
        self._taken, self._pass_began = 0, 0.0
        self._threads = ThreadPoolExecutor(min(self.spec.max_concurrency, 2 * (os.cpu_count() or 1)), "predict")
        self._warm_up()
        log = env("WHARF_PREDICTION_LOG")
        self._log_lines = PredictionLog(Path(log) if log else None)
        artifact, bento = self.spec.sha256, env("WHARF_BENTO", "")
        self.metrics = Metrics(self.model, str(self.version), self.environment, artifact, bento)
        example = self.handler.example(1)
        self._pages = {
            "/": (openapi.page(self.model).encode(), b"text/html; charset=utf-8"),
            "/docs.json": (
                orjson.dumps(openapi.document(self.spec, self.version, self.environment, example)),
                _JSON,
            ),
        }
        self.ready = True

    def load_or_exit(self) -> None:
        """Load; end the process with one line on standard error when the model must not serve."""
        try:
            self.load()
        except ArtifactError as error:
            print(f"not serving {self.model}: {error}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(3)  # an exception here would be a traceback of the server around us, and for it just a bad start

    def close(self) -> None:
        """Finish the work in threads and close the log."""
        self.ready = False
        if hasattr(self, "_threads"):
            self._threads.shutdown(wait=True, cancel_futures=True)
        self._log_lines.close()

    def _warm_up(self) -> None:
        """Predict on example rows: proves that the model answers, and measures how work grows with the body."""

        def best(body: bytes) -> float:
            seconds: list[float] = []
            for _ in range(5):
                begun = time.perf_counter()
                orjson.dumps(self.handler.answer(orjson.loads(body)).response, option=_DUMP)
                seconds.append(time.perf_counter() - begun)
                if sum(seconds) > 0.5:
                    break
            return min(seconds)

        one = orjson.dumps(self.handler.example(1))
        many = orjson.dumps(self.handler.example(min(64, self.spec.max_rows)))
        try:
            first = best(one)
            self._per_byte = max(0.0, best(many) - first) / max(1, len(many) - len(one))
        except Refused as refused:
            raise ArtifactError(f"the warm-up prediction failed: {refused.error}") from None
        except Exception as error:  # whatever the model raises: it cannot serve
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ArtifactError(f"the warm-up prediction failed: {reason}") from error
        self._base = first - self._per_byte * len(one)

    # --- ASGI ---

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (https://asgi.readthedocs.io/en/latest/specs/www.html)."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/predict":
            if scope["method"] == "POST":
                await self._predict(scope, receive, send)
            else:
                await self._error_page(send, 405, "use POST", [(b"allow", b"POST")])
        elif scope["method"] not in ("GET", "HEAD"):
            await self._error_page(send, 405, "use GET, or POST /predict", [(b"allow", b"GET, HEAD")])
        elif not self.ready:
            await self._error_page(send, 503, "not ready", [(b"retry-after", b"1")])
        elif path in self._pages:
            await _send(send, 200, *self._pages[path])
        elif path == "/metrics":
            text, kind = self.metrics.text()
            await _send(send, 200, text, kind.encode())
        elif path.startswith("/static_content/") and path[16:] in openapi.ASSETS:
            kept = [(b"cache-control", b"public, max-age=86400")]
            await _send(send, 200, openapi.asset(path[16:]), openapi.ASSETS[path[16:]].encode(), kept)
        else:
            await self._error_page(send, 404, f"no such path: {path[:80]}")

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, now = time.perf_counter(), time.time()
        request_id, length = "", 0
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = int(value) if value.isdigit() else 0
            elif name == b"x-request-id":
                request_id = _request_id(value)
        request_id = request_id or os.urandom(12).hex()
        headers: list[tuple[bytes, bytes]] = [(b"x-request-id", request_id.encode())]
        answer: Answer | None = None
        error: str | None = None
        try:
            if not self.ready:
                raise Refused(503, "not ready")
            headers.append(self._version_header)
            answer = await self._admit(began, length, receive)
            status = 200
            body = orjson.dumps({**answer.response, **self._own, "request_id": request_id}, option=_DUMP)
        except Refused as refused:
            status, error = refused.status, refused.error
            body = orjson.dumps({"error": error, "detail": refused.detail, "request_id": request_id})
        except Exception as failure:  # one request must not take the process with it
            status, error = 500, f"the model failed: {type(failure).__name__}"
            _log.exception("request %s failed", request_id)
            body = orjson.dumps({"error": error, "detail": [], "request_id": request_id})
        if status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        await _send(send, status, body, _JSON, headers)
        if self.ready:
            self._record(now, time.perf_counter() - began, status, request_id, answer, error)

    def _record(
        self, now: float, seconds: float, status: int, request_id: str, answer: Answer | None, error: str | None
    ) -> None:
        """Count the request and append it to the prediction log."""
        metrics = self.metrics
        metrics.request(status, seconds)
        line: dict[str, Any] = {
            "ts": round(now, 6),
            "id": request_id,
            **self._own,
            "environment": self.environment,
            "status": status,
            "ms": round(seconds * 1000, 3),
        }
        if answer is not None:
            metrics.answer(answer)
            line.update(answer.logged)
        else:
            line["error"] = (error or "")[:200]
            if status == 503:
                metrics.shed()
        if not self._log_lines.write(now, line):
            metrics.log_lost()

    async def _admit(self, began: float, length: int, receive: Receive) -> Answer:
        """Take a slot and answer within the time limit; raises Refused (413, 408, 503, 504) otherwise."""
        if self._taken >= self._slots:
            raise Refused(503, f"overloaded: {self._taken} requests are in work or waiting")
        # All requests that are ready run in one pass of the event loop: those that have waited too long are shed.
        if not self._pass_began:
            self._pass_began = began
            asyncio.get_running_loop().call_soon(self._end_pass)
        elif began - self._pass_began > self._max_wait:
            raise Refused(503, "overloaded: the request has waited too long")
        if length > self._max_body:
            raise Refused(413, f"the body is larger than {self.spec.max_body_kb} KiB")
        self._taken += 1
        job: Future[Answer] | None = None
        reading = True
        try:
            async with asyncio.timeout(self.spec.timeout_s):
                body = await self._body(receive)
                reading = False
                if self._base + self._per_byte * len(body) <= INLINE_S:
                    return self._work(body)
                job = self._threads.submit(self._work, body)
                return await asyncio.wrap_future(job)
        except TimeoutError:
            limit = f"{self.spec.timeout_s:g} s"
            if reading:
                raise Refused(408, f"the body did not arrive within {limit}") from None
            raise Refused(504, f"the model did not answer within {limit}") from None
        finally:
            # A thread cannot be stopped: its slot is free when it has ended, not when its client was answered.
            if job is None or job.done():
                self._taken -= 1
            else:
                loop = asyncio.get_running_loop()
                job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release))

    def _release(self) -> None:
        self._taken -= 1

    def _end_pass(self) -> None:
        self._pass_began = 0.0

    async def _body(self, receive: Receive) -> bytes:
        """Return the whole body; raises Refused (413) as soon as it is too large, without keeping the rest."""
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            parts, size = [body], len(body)
            while message.get("more_body") and size <= self._max_body:
                message = await receive()
                parts.append(message.get("body", b""))
                size += len(parts[-1])
            body = b"".join(parts)
        if message["type"] == "http.disconnect":
            raise Refused(400, "the client went away before the body had arrived")
        if len(body) > self._max_body:
            raise Refused(413, f"the body is larger than {self.spec.max_body_kb} KiB")
        return body

    def _work(self, body: bytes) -> Answer:
        """Parse and predict; on the event loop or in a thread."""
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Refused(400, f"the body is not valid JSON: {error}" if body else "the body is empty") from None
        return self.handler.answer(parsed)

    async def _error_page(
        self, send: Send, status: int, error: str, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        await _send(send, status, orjson.dumps({"error": error, "detail": []}), _JSON, headers)


def _request_id(value: bytes) -> str:
    """Return the client's request id when it is printable ASCII of at most 128 characters, else nothing."""
    text = value.decode("latin-1").strip()
    return text if len(text) <= 128 and text.isascii() and text.isprintable() else ""


async def _send(
    send: Send, status: int, body: bytes, kind: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    base = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *(headers or ())]
    await send({"type": "http.response.start", "status": status, "headers": base})
    await send({"type": "http.response.body", "body": body})
