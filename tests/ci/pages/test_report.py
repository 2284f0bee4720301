"""Reports: complete without network, escaped, right in their figures, for each task and without predictions."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from ci.gate import Material
from ci.gating.checks import Rival, measure, threshold, unrunnable
from ci.gating.evidence import Champion, Check, Evidence
from ci.gating.scoring import Scored
from ci.mlflow_api.store import Run
from ci.pages.charts import Estimate, Series, bars, estimates, heat_map, lines, number, points, ticks
from ci.pages.html import Section, badge, paragraph, png, table, text
from ci.pages.report import calibration, confusion, evidence_report, page, roc_curve
from models.metrics import Ranked
from models.spec import ModelSpec, parse

METRIC = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "r2", "ranking": "ndcg_at_10"}
PLOTS = {
    "binary": ["ROC", "Calibration", "Confusion at 0.5", "Probability of yes"],
    "multiclass": ["Confusion", "Recall by class", "Calibration"],
    "regression": ["Predicted against actual", "Absolute error"],
    "ranking": ["NDCG@k", "Recall@k"],
}


class Strict(HTMLParser):
    """Refuses a page whose elements are not closed in order, or that would load something."""

    void = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "iframe", "object"}
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in {"src", "srcset"} or str(value).startswith("data:")
        self.seen.append(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(document: str) -> list[str]:
    """Return the element names of a page after checking its form; no plot may hold a figure that is not finite."""
    parser = Strict()
    parser.feed(document)
    parser.close()
    assert parser.open == []
    assert "http://" not in document and "https://" not in document and "@import" not in document
    for drawing in re.findall(r"<svg.*?</svg>", document, re.DOTALL):
        assert not re.search(r'="[^"]*\b(nan|inf)\b', drawing)
    return parser.seen


def contract(task: str) -> ModelSpec:
    classes = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"]}.get(task)
    names = ["user", "item", "rating", "timestamp"] if task == "ranking" else ["x", "kind"]
    columns = [{"name": name, "type": "int" if task == "ranking" else "float"} for name in names]
    if task != "ranking":
        columns[1] = {"name": "kind", "type": "category", "values": ["<b>", "w"]}  # type: ignore[dict-item]
    raw = {
        "name": "tiny",
        "description": "Tells <yes> from no.",
        "owner": "tests",
        "team": "tests",
        "task": task,
        "data": {
            "source": {"kind": "builtin"},
            "target": "rating" if task == "ranking" else "y",
            "columns": columns,
            **({"classes": classes} if classes else {}),
        },
        "gate": {"metrics": {METRIC[task]: {"min": 0.1}}},
        "serving": {"artifact": "npz" if task == "ranking" else "onnx"},
    }
    return parse(yaml.safe_dump(raw), "model.yaml", "tiny")


def material(task: str, rows: int = 150) -> tuple[pd.DataFrame, Scored]:
    random = np.random.default_rng(4)
    frame = pd.DataFrame({"x": random.normal(size=rows), "kind": random.choice(["<b>", "w"], rows)})
    frame.loc[0, "x"] = np.nan
    y: Any
    outputs: Any
    if task == "ranking":
        y = [np.unique(random.integers(0, 30, 4)) for _ in range(rows)]
        items, popular = (np.array([random.permutation(30)[:20] for _ in range(rows)]) for _ in range(2))
        outputs = Ranked(items, popular, 30)
        frame = pd.DataFrame({name: np.arange(rows) for name in ("user", "item", "rating", "timestamp")})
    elif task == "regression":
        y = random.normal(size=rows)
        outputs = y + random.normal(scale=0.3, size=rows)
    elif task == "multiclass":
        y = random.integers(0, 3, rows)
        outputs = np.eye(3)[y] + random.uniform(size=(rows, 3))
        outputs /= outputs.sum(axis=1, keepdims=True)
    else:
        y = random.integers(0, 2, rows)
        outputs = np.clip(0.5 * y + random.uniform(0, 0.6, rows), 0, 1)
    inputs = np.arange(rows) if task == "ranking" else np.zeros((rows, 2), np.float32)
    predictor: Any = SimpleNamespace()
    return frame, Scored(task, predictor, y, outputs, inputs, rows)


def evidence(
    spec: ModelSpec, scored: Scored | None, *, champion: bool = False, extra: tuple[Check, ...] = ()
) -> Evidence:
    metrics = measure(spec.gate, scored) if scored else {}
    checks = tuple(threshold(name, "min", 0.1, found) for name, found in metrics.items()) + extra
    return Evidence(
        model="tiny",
        run="a" * 32,
        verdict="passed" if all(check.passed for check in checks) else "refused",
        created="2026-01-01T00:00:00+00:00",
        commit="c" * 40,
        data_sha256="d" * 64,
        artifact_sha256="e" * 64,
        gate_sha256="f" * 64,
        rows=150,
        champion=Champion("prod", 3, "b" * 32) if champion else None,
        metrics=metrics,
        checks=checks,
    )


RUN = Run("a" * 32, "FINISHED", 0, 1, "", {"wharf.dirty": "true"}, {"C": "0.3"})


@pytest.mark.parametrize("task", METRIC)
def test_a_report_of_each_task_is_complete(task: str) -> None:
    spec = contract(task)
    frame, scored = material(task)
    rival = Rival(Champion("prod", 3, "b" * 32), scored)
    found = evidence(spec, scored, champion=True, extra=(Check("latency.p99_ms", 0.5, 20, True, "fine"),))
    document = evidence_report(found, "1" * 64, spec, RUN, Material(frame, scored, rival))
    assert checked(document).count("svg") == len(PLOTS[task]) + 1
    for title in [*PLOTS[task], "Metrics against their bounds"]:
        assert f"<figcaption>{title}</figcaption>" in document
    assert "version 3 in prod" in document and "champion, version 3" in document
    assert "uncommitted changes" in document
    assert "1" * 64 in document and "d" * 64 in document
    assert "Tells &lt;yes&gt; from no." in document
    assert "prefers-color-scheme: dark" in document and "@media print" in document


def test_a_refusal_stands_first_with_its_reason() -> None:
    spec = contract("binary")
    frame, scored = material("binary")
    failed = Check("metric.recall.min", 0.71, 0.9, False, "0.7100 is <below> 0.9")
    document = evidence_report(
        evidence(spec, scored, extra=(failed,)), "1" * 64, spec, RUN, Material(frame, scored, None)
    )
    checked(document)
    assert '<span class="badge bad">refused</span>' in document
    assert "metric.recall.min: 0.71 (bound 0.9): 0.7100 is &lt;below&gt; 0.9" in document
    rows = re.findall(r"<tr><td><span[^>]*>(\w+)</span></td><td>([\w.]+)</td>", document)
    assert rows[0] == ("failed", "metric.recall.min")


def test_a_report_without_predictions_says_why() -> None:
    spec = contract("binary")
    found = evidence(spec, None, extra=(unrunnable("predictions.finite", None, "the artifact is damaged"),))
    document = evidence_report(found, "1" * 64, spec, RUN, Material(None, None, None))
    assert "svg" not in checked(document)
    assert "could not be checked: the artifact is damaged" in document


def test_nan_predictions_are_not_drawn() -> None:
    spec = contract("binary")
    frame, scored = material("binary")
    broken = Scored("binary", scored.predictor, scored.y_true, np.full(150, np.nan), scored.inputs, 0)
    document = evidence_report(evidence(spec, broken), "1" * 64, spec, RUN, Material(frame, broken, None))
    checked(document)
    assert "Not drawn" in document and "could not be checked" in document


def test_the_roc_curve_has_the_area_of_the_metric() -> None:
    y, score = np.array([0, 0, 1, 1, 1, 0]), np.array([0.1, 0.4, 0.4, 0.8, 0.9, 0.95])
    false, true = roc_curve(y, score)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    area = sum((false[i + 1] - false[i]) * (true[i + 1] + true[i]) / 2 for i in range(len(false) - 1))
    assert area == pytest.approx(5.5 / 9)


def test_calibration_is_the_share_in_each_bin() -> None:
    given, share = calibration(np.array([0.1, 0.15, 0.95, 1.0]), np.array([False, True, True, True]))
    assert given == pytest.approx([0.125, 0.975]) and share == pytest.approx([0.5, 1.0])


def test_confusion_counts_true_by_predicted() -> None:
    assert confusion(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]), 3) == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_what_is_not_html_is_escaped() -> None:
    evil = '<script>alert("x")</script>'
    parts = [
        text(evil),
        badge(evil),
        table([evil], [[evil]]),
        paragraph(evil),
        png(b"\x89PNG", evil),
        lines(evil, [Series(evil, [0, 1], [0, 1])], evil, evil),
        points(evil, [Series(evil, [0, 1], [0, 1])], evil, evil),
        bars(evil, [evil], [(evil, [1.0])], evil),
        heat_map(evil, [evil], [[1]], evil, evil),
        estimates(evil, [Estimate(evil, 1.0)]),
    ]
    document = page(evil, [Section(evil, part, evil) for part in parts], verdict=(evil, "bad"), subtitle=evil)
    assert "script" not in checked(document)


@pytest.mark.parametrize(
    "drawn",
    [
        lines("t", [Series("s", [], [])], "x", "y"),
        lines("t", [Series("s", [0, 1, 2], [1, float("nan"), 3])], "x", "y"),
        lines("t", [Series("s", [5, 5], [0, 0])], "x", "y"),
        points("t", [Series("s", [1, float("inf")], [2, 2])], "x", "y", diagonal=True),
        bars("t", [], [], "y"),
        bars("t", ["a", "b"], [("s", [float("nan"), 0.0])], "y", bound=0.5),
        bars("t", [f"name {i}" for i in range(60)], [("s", [float(i) for i in range(60)])], "y"),
        estimates("t", [Estimate("m", float("nan")), Estimate("m", 1.0, 1.0, 1.0, 1.0, 1.0)]),
        estimates("t", []),
    ],
)
def test_odd_data_is_drawn_without_nonsense(drawn: str) -> None:
    checked(drawn)


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.97, 1.003, [0.97, 0.98, 0.99, 1.0]),
        (-3, 12, [-2, 0, 2, 4, 6, 8, 10, 12]),
        (0, 1.5e6, [0, 5e5, 1e6, 1.5e6]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, found: list[float]) -> None:
    told = ticks(low, high)
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in told) and 3 <= len(told) <= 11
    assert set(found) & set(told), told


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.99691, "0.9969"), (1234.5, "1,234"), (2.5e7, "2.5e+07"), (1e-5, "1e-05"), (float("nan"), "none")],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown
