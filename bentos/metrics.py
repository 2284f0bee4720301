"""What Prometheus reads of a serving process.

prometheus_client is imported when the metrics are made and not before: under `bentoml serve` it must see
PROMETHEUS_MULTIPROC_DIR, and then BentoML's own /metrics shows these beside its own.
"""

from __future__ import annotations

import os
from typing import Any

from bentos.inputs import Answer

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_DECADES = tuple(10.0**power for power in range(-3, 7))
_VALUES = (*(-bound for bound in reversed(_DECADES)), 0.0, *_DECADES)
_LABELS = ("model", "version", "environment")


class Metrics:
    """Counters and histograms of one model version, all labelled model, version and environment."""

    def __init__(self, model: str, version: str, environment: str, artifact: str, bento: str) -> None:
        from prometheus_client import (
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            ProcessCollector,
            disable_created_metrics,
        )

        disable_created_metrics()

        # Under `bentoml serve` the values go through files and any registry does; alone, this one is ours.
        self._registry = CollectorRegistry()
        self._shared = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
        if not self._shared:
            ProcessCollector(registry=self._registry)  # memory, processor seconds, open files
        labels: dict[str, Any] = {"registry": self._registry}
        own = (model, version, environment)

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(name, text, (*_LABELS, *more), **labels)

        requests = counter("wharf_requests", "Requests to /predict by HTTP status.", "status")
        predictions = counter("wharf_predictions", "Predictions by class (ranking: known and unknown users).", "class")
        outside = counter(
            "wharf_out_of_range", "Input values outside of the schema's min and max, by column.", "column"
        )
        self._requests = _Children(requests, own)
        self._predictions = _Children(predictions, own)
        self._outside = _Children(outside, own)
        shed = counter("wharf_shed_requests", "Requests answered 503 because the process was overloaded.")
        lost = counter("wharf_prediction_log_lost", "Lines of the prediction log that could not be written.")
        self._shed, self._lost = shed.labels(*own), lost.labels(*own)
        text = "Seconds from the request to its answer."
        self._seconds = Histogram("wharf_request_seconds", text, _LABELS, buckets=_SECONDS, **labels).labels(*own)
        self._values: Any = Histogram(
            "wharf_prediction_value", "Predicted values of a regression.", _LABELS, buckets=_VALUES, **labels
        )
        self._values = self._values.labels(*own)
        info = Gauge(
            "wharf_model_info",
            "The model version that serves, always 1.",
            (*_LABELS, "artifact", "bento"),
            multiprocess_mode="livemax",
            **labels,
        )
        info.labels(*own, artifact, bento).set(1)

    def request(self, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.get(str(status)).inc()
        self._seconds.observe(seconds)

    def answer(self, answer: Answer) -> None:
        """Count what was predicted, and from which values outside of the schema's range."""
        for name, count in answer.classes.items():
            self._predictions.get(name).inc(count)
        for value in answer.values:
            self._values.observe(value)
        for column, count in answer.outside.items():
            self._outside.get(column).inc(count)

    def shed(self) -> None:
        """Count a request that was turned away."""
        self._shed.inc()

    def log_lost(self) -> None:
        """Count a line of the prediction log that could not be written."""
        self._lost.inc()

    def text(self) -> tuple[bytes, str]:
        """Return the exposition text and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess

        registry = self._registry
        if self._shared:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


class _Children:
    """Keeps the child of each label value: looking it up in prometheus_client costs more than counting."""

    def __init__(self, family: Any, own: tuple[str, ...]) -> None:
        self._family, self._own, self._known = family, own, dict[str, Any]()

    def get(self, value: str) -> Any:
        child = self._known.get(value)
        if child is None:
            child = self._known[value] = self._family.labels(*self._own, value)
        return child
