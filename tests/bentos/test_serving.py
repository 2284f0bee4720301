"""The runtime, called as an ASGI application: what it answers, refuses, logs, counts and sheds."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentos.inputs import Answer
from bentos.predictors import Outputs
from bentos.schema import ArtifactError
from bentos.serving import Runtime
from tests.bentos import artifacts
from tests.bentos.client import call, post

ROW = [0.5, -0.5, 1.0, 0.0, 0.25, -1.0]
NAMED = dict(zip("abcdef", ROW, strict=True))
Start = Callable[..., Runtime]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model folder a task, trained once."""
    made = {
        task: artifacts.table_model(tmp_path_factory.mktemp(task), task)
        for task in ("binary", "multiclass", "regression")
    }
    made["ranking"] = artifacts.ranking_model(tmp_path_factory.mktemp("ranking"))
    return made


@pytest.fixture
def start(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return a function that loads a runtime; keywords change serving.json."""

    def begin(task: str = "binary", **changes: Any) -> Runtime:
        monkeypatch.setenv("WHARF_VERSION", "3")
        monkeypatch.setenv("WHARF_ENVIRONMENT", "dev")
        monkeypatch.setenv("WHARF_PREDICTION_LOG", str(tmp_path / "log"))
        folder = folders[task]
        if changes:
            spec = {**json.loads((folder / "serving.json").read_text()), **changes}
            folder = tmp_path / "model"
            folder.mkdir()
            (folder / "serving.json").write_text(json.dumps(spec))
            (folder / spec["file"]).write_bytes((folders[task] / spec["file"]).read_bytes())
        runtime = Runtime("movies" if task == "ranking" else "tumor")
        runtime.load(folder)
        return runtime

    return begin


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    (file,) = (tmp_path / "log").glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def metric(runtime: Runtime, sample: str) -> float:
    text = runtime.metrics.text()[0].decode()
    found = [line for line in text.splitlines() if line.startswith(sample.split("{")[0] + "{")]
    wanted = sample.split("{")[1].rstrip("}").split(",") if "{" in sample else []
    return sum(float(line.rsplit(" ", 1)[1]) for line in found if all(part in line for part in wanted))


# --- answers ---


def test_objects_and_lists_answer_the_same(start: Start) -> None:
    runtime = start()
    listed = post(runtime, {"rows": [ROW]}).json
    shuffled = post(runtime, {"rows": [dict(reversed(NAMED.items()))]}).json
    assert listed["predictions"] == shuffled["predictions"] and listed["probabilities"] == shuffled["probabilities"]
    assert (listed["model"], listed["version"]) == ("tumor", 3)
    assert listed["predictions"] == ["malignant" if listed["probabilities"][0][1] > 0.5 else "benign"]


def test_a_batch_answers_in_order_as_the_estimator(start: Start) -> None:
    matrix, _ = artifacts.rows(40, seed=5)
    body = {"rows": [row if i % 2 else dict(zip("abcdef", row, strict=True)) for i, row in enumerate(matrix.tolist())]}
    found = post(start("multiclass"), body).json["predictions"]
    expected = artifacts.estimator("multiclass").predict(matrix)
    assert found == [artifacts.CLASSES["multiclass"][i] for i in expected]


def test_regression_answers_numbers(start: Start) -> None:
    matrix, target = artifacts.rows(5, seed=5)
    found = post(start("regression"), {"rows": matrix.tolist()}).json
    np.testing.assert_allclose(found["predictions"], target, rtol=1e-2, atol=1e-2)
    assert "probabilities" not in found


def test_ranking_answers_items_for_known_and_unknown_users(start: Start, tmp_path: Path) -> None:
    found = post(start("ranking"), {"users": [9, 999], "k": 2}).json
    assert found["known"] == [True, False]
    assert [item["item"] for item in found["predictions"][0]] == [50] and found["predictions"][0][0]["title"] == "Ü"
    assert [item["item"] for item in found["predictions"][1]] == [30, 40]
    (line,) = lines(tmp_path)
    assert (line["users"], line["k"], line["predictions"]) == ([9, 999], 2, [[50], [30, 40]])
    assert [len(row) for row in line["scores"]] == [1, 2]


def test_request_id_and_version_are_sent_back(start: Start) -> None:
    runtime = start()
    mine = post(runtime, {"rows": [ROW]}, headers={"x-request-id": "order-17"})
    assert mine.headers["x-request-id"] == mine.json["request_id"] == "order-17"
    assert mine.headers["x-model-version"] == "3"
    for bad in ("x" * 129, "a\tb", "ü", ""):
        made = post(runtime, {"rows": [ROW]}, headers={"x-request-id": bad}).json["request_id"]
        assert made != bad and len(made) == 24
    assert post(runtime, b"{", headers={"x-request-id": "order-18"}).json["request_id"] == "order-18"


# --- refusals ---


@pytest.mark.parametrize(
    ("body", "loc", "msg"),
    [
        ({"rows": [{k: v for k, v in NAMED.items() if k != "c"}]}, ["rows", 0, "c"], "is missing"),
        ({"rows": [ROW, {**NAMED, "g": 1}]}, ["rows", 1, "g"], "unknown column"),
        ({"rows": [{**NAMED, "a": "high"}]}, ["rows", 0, "a"], "must be a number, not 'high'"),
        ({"rows": [["1.5", *ROW[1:]]]}, ["rows", 0, "a"], "must be a number, not '1.5'"),
        ({"rows": [[True, *ROW[1:]]]}, ["rows", 0, "a"], "must be a number, not true"),
        ({"rows": [[None, *ROW[1:]]]}, ["rows", 0, "a"], "must not be null"),
        ({"rows": [[[1], *ROW[1:]]]}, ["rows", 0, "a"], "must be a number, not a list"),
        ({"rows": [[1e300, *ROW[1:]]]}, ["rows", 0, "a"], "is too large for a 32-bit float"),
        ({"rows": [[10**400, *ROW[1:]]]}, None, "is not valid JSON"),
        ({"rows": [ROW[:-1]]}, ["rows", 0], "has 5 values, the schema has 6 columns"),
        ({"rows": [ROW, [*ROW, 1]]}, ["rows", 1], "has 7 values, the schema has 6 columns"),
        ({"rows": [3]}, ["rows", 0], "must be an object or a list, not 3"),
        ({"rows": []}, ["rows"], "is empty"),
        ({"rows": NAMED}, ["rows"], "must be a list of rows, not an object"),
        ({"rows": [ROW] * 1001}, ["rows"], "has 1001 rows, at most 1000 are taken"),
        ({"row": [ROW]}, ["row"], "unknown field (did you mean 'rows'?)"),
        ({}, ["rows"], "is missing"),
        ([ROW], ["body"], "must be an object such as"),
        (b"", None, "the body is empty"),
        (b'{"rows": [[NaN]]}', None, "is not valid JSON"),
        (b"\xff\xfe", None, "is not valid JSON"),
        (b"[" * 100_000, None, "is not valid JSON"),
    ],
)
def test_bad_input_names_the_field_and_leaves_no_traceback(
    start: Start, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], body: Any, loc: Any, msg: str
) -> None:
    runtime = start()
    with caplog.at_level(logging.DEBUG):
        reply = post(runtime, body)
    assert reply.status == (400 if loc is None else 422)
    assert msg in reply.json["error"] and reply.json["request_id"]
    if loc is not None:
        assert loc in [fault["loc"] for fault in reply.json["detail"]]
        assert any(msg in fault["msg"] for fault in reply.json["detail"])
    assert "Traceback" not in caplog.text + "".join(capsys.readouterr())
    assert post(runtime, {"rows": [ROW]}).status == 200


def test_unknown_column_is_likely_the_missing_one(start: Start) -> None:
    columns = [
        {**column, "name": name} for column, name in zip(artifacts.columns(), ["mean_radius", *"bcdef"], strict=True)
    ]
    row = {"mean_radios": 1.0, **dict.fromkeys("bcdef", 1.0)}
    detail = post(start(columns=columns), {"rows": [row]}).json["detail"]
    assert detail == [
        {"loc": ["rows", 0, "mean_radios"], "msg": "unknown column (did you mean 'mean_radius'?)"},
        {"loc": ["rows", 0, "mean_radius"], "msg": "is missing"},
    ]


def test_only_the_first_faults_of_a_wrong_batch_are_listed(start: Start) -> None:
    reply = post(start(), {"rows": [ROW[:-1]] * 500})
    assert len(reply.json["detail"]) == 20 and "(and 499 more)" in reply.json["error"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"users": ["7"]}, "users.0: must be a whole number, not '7'"),
        ({"users": [True]}, "users.0: must be a whole number, not true"),
        ({"users": [2**63]}, "users.0: must be a whole number"),
        ({"users": []}, "users: is empty"),
        ({"users": 7}, "users: must be a list of user ids, not 7"),
        ({"users": [7], "k": 0}, "k: must be a whole number from 1 to 1000, not 0"),
        ({"users": [7], "k": 2.5}, "k: must be a whole number from 1 to 1000, not 2.5"),
        ({"user": [7]}, "user: unknown field (did you mean 'users'?)"),
    ],
)
def test_bad_ranking_input_names_the_field(start: Start, body: Any, said: str) -> None:
    reply = post(start("ranking"), body)
    assert reply.status == 422 and reply.json["error"].startswith(said)


def test_column_types_decide_what_is_accepted(start: Start) -> None:
    columns = artifacts.columns(
        a={"type": "int"},
        b={"type": "category", "values": ["red", "green"], "min": None, "max": None},
        c={"max_missing": 0.1},
    )
    runtime = start(columns=columns)
    good = {**NAMED, "a": 2, "b": "green", "c": 1.0}
    assert post(runtime, {"rows": [good, {**good, "a": 2.0}]}).status == 200
    bad = post(runtime, {"rows": [{**good, "a": 1.5}, {**good, "b": "gren"}, {**good, "b": 1}]}).json["detail"]
    assert [(fault["loc"][1:], fault["msg"]) for fault in bad] == [
        ([0, "a"], "must be a whole number, not 1.5"),
        ([1, "b"], "must be one of red, green, not 'gren' (did you mean 'green'?)"),
        ([2, "b"], "must be one of red, green, not 1"),
    ]
    seen = runtime.handler.read([[2, "green", None, 0, 0, 0]])  # type: ignore[attr-defined]
    assert seen.matrix[0, :2].tolist() == [2, 1] and np.isnan(seen.matrix[0, 2])
    assert seen.logged == [[2, "green", None, 0, 0, 0]]
    assert runtime.handler.read([{k: v for k, v in good.items() if k != "c"}]).logged[0][2] is None  # type: ignore[attr-defined]


def test_whole_number_column_on_the_fast_path(start: Start) -> None:
    runtime = start(columns=artifacts.columns(a={"type": "int"}))
    assert post(runtime, {"rows": [ROW]}).json["error"] == "rows.0.a: must be a whole number, not 0.5"
    assert post(runtime, {"rows": [[3, *ROW[1:]]]}).status == 200


def test_a_body_that_is_too_large_is_refused_without_reading_it(start: Start) -> None:
    runtime = start(max_body_kb=1)
    announced = post(runtime, b"", headers={"content-length": "10485760"})
    assert announced.status == 413 and announced.json["error"] == "the body is larger than 1 KiB"
    taken = 0

    def stream() -> Any:
        nonlocal taken
        for _ in range(160):
            taken += 1
            yield b" " * 65536

    async def chunked() -> int:
        pieces = stream()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": next(pieces), "more_body": True}

        statuses: list[int] = []

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 0))

        await runtime({"type": "http", "path": "/predict", "method": "POST", "headers": []}, receive, send)
        return statuses[0]

    assert asyncio.run(chunked()) == 413
    assert taken == 1


def test_a_body_in_pieces_is_put_together(start: Start) -> None:
    content = json.dumps({"rows": [ROW]}).encode()
    assert post(start(), parts=[content[:10], content[10:20], content[20:]]).status == 200


def test_a_body_that_never_ends_is_408(start: Start) -> None:
    runtime = start(timeout_s=0.05)
    reply = post(runtime, parts=[b'{"rows":'], hang=True)
    assert reply.status == 408 and "did not arrive within 0.05 s" in reply.json["error"]
    assert runtime._taken == 0  # pyright: ignore[reportPrivateUsage]


def test_other_paths_and_methods_say_what_there_is(start: Start) -> None:
    runtime = start()
    assert post(runtime, method="GET").headers["allow"] == "POST"
    assert post(runtime, path="/predictt", method="GET").status == 404
    assert post(runtime, path="/").status == 405
    assert post(runtime, path="/static_content/../../secret", method="GET").status == 404


# --- faults of the model ---


def test_nan_predictions_are_500_and_never_json(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = start("regression")
    monkeypatch.setattr(
        type(runtime.handler._predictor),  # type: ignore[attr-defined]
        "predict",
        lambda self, matrix: Outputs(values=np.where(matrix[:, 0] > 0, np.nan, 1).astype(np.float32)),
    )
    reply = post(runtime, {"rows": [[-1, *ROW[1:]], [1, *ROW[1:]]]})
    assert reply.status == 500 and b"NaN" not in reply.body
    assert reply.json["error"] == "the model gave no finite number for 1 of 2 rows"
    assert reply.json["detail"] == [{"loc": ["rows", 1], "msg": "the prediction is not a finite number"}]
    assert lines(tmp_path)[0]["status"] == 500 and "rows" not in lines(tmp_path)[0]
    assert metric(runtime, 'wharf_requests_total{status="500"}') == 1


def test_a_model_that_raises_takes_one_request_only(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = start()

    def fail(self: Any, matrix: Any) -> Outputs:
        raise RuntimeError("internal detail")

    with monkeypatch.context() as patch:
        patch.setattr(type(runtime.handler._predictor), "predict", fail)  # type: ignore[attr-defined]
        reply = post(runtime, {"rows": [ROW]})
    assert reply.status == 500 and reply.json["error"] == "the model failed: RuntimeError"
    assert b"internal detail" not in reply.body and "internal detail" in caplog.text
    assert post(runtime, {"rows": [ROW]}).status == 200


# --- overload ---


class Slow:
    """A model that takes its time in a thread."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def answer(self, body: Any) -> Answer:
        time.sleep(self.seconds)
        return Answer({"predictions": []}, {"predictions": []})

    def example(self, size: int) -> dict[str, Any]:
        return {}


def slow(runtime: Runtime, seconds: float) -> Runtime:
    runtime.handler = Slow(seconds)
    runtime._base = 1.0  # as measured of such a model: to a thread  # pyright: ignore[reportPrivateUsage]
    return runtime


def test_overload_sheds_some_and_answers_the_others(start: Start, tmp_path: Path) -> None:
    runtime = slow(start(max_concurrency=4), 0.05)

    async def crowd() -> list[Any]:
        return await asyncio.gather(*(call(runtime, {}) for _ in range(40)))

    replies = asyncio.run(crowd())
    assert sorted({reply.status for reply in replies}) == [200, 503]
    assert sum(reply.status == 200 for reply in replies) == 8, "four in work and four waiting"
    shed = next(reply for reply in replies if reply.status == 503)
    assert shed.headers["retry-after"] == "1" and shed.json["error"].startswith("overloaded")
    assert metric(runtime, "wharf_shed_requests_total") == 32
    assert sum(line["status"] == 503 for line in lines(tmp_path)) == 32
    assert post(runtime, {}).status == 200, "the slots are free again"


def test_timeout_is_504_and_keeps_the_slot_until_the_thread_ends(start: Start) -> None:
    runtime = slow(start(timeout_s=0.05), 0.3)

    async def scene() -> tuple[int, int, int]:
        reply = await call(runtime, {})
        held = runtime._taken  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(0.5)
        return reply.status, held, runtime._taken  # pyright: ignore[reportPrivateUsage]

    assert asyncio.run(scene()) == (504, 1, 0)


def test_what_has_waited_too_long_behind_inline_work_is_shed(start: Start) -> None:
    runtime = start(timeout_s=0.2)  # at most a quarter of it is spent waiting
    runtime.handler = Slow(0.02)

    async def crowd() -> list[Any]:
        return await asyncio.gather(*(call(runtime, {}) for _ in range(20)))

    statuses = [reply.status for reply in asyncio.run(crowd())]
    assert statuses[0] == 200 and statuses[-1] == 503
    assert 2 <= statuses.count(200) <= 6
    assert post(runtime, {}).status == 200


# --- log and metrics ---


def test_the_log_joins_request_version_features_and_output(start: Start, tmp_path: Path) -> None:
    runtime = start()
    reply = post(runtime, {"rows": [ROW, NAMED]}, headers={"x-request-id": "order-17"}).json
    post(runtime, {"rows": []})
    good, bad = lines(tmp_path)
    assert {key: good[key] for key in ("id", "model", "version", "environment", "status")} == {
        "id": "order-17",
        "model": "tumor",
        "version": 3,
        "environment": "dev",
        "status": 200,
    }
    assert good["rows"] == [ROW, ROW] and good["predictions"] == reply["predictions"]
    assert good["scores"] == [row[1] for row in reply["probabilities"]]
    assert abs(good["ts"] - time.time()) < 60 and 0 < good["ms"] < 1000
    assert bad["status"] == 422 and bad["error"].startswith("rows: is empty") and "rows" not in bad


def test_metrics_carry_model_version_and_environment(start: Start) -> None:
    runtime = start()
    post(runtime, {"rows": [ROW, [9, 9, *ROW[2:]], [-9, *ROW[1:]]]})
    post(runtime, {"rows": []})
    own = 'environment="dev",model="tumor",version="3"'
    assert metric(runtime, f'wharf_requests_total{{{own},status="200"}}') == 1
    assert metric(runtime, f'wharf_requests_total{{{own},status="422"}}') == 1
    assert metric(runtime, f"wharf_request_seconds_count{{{own}}}") == 2
    assert metric(runtime, f"wharf_predictions_total{{{own}}}") == 3
    assert metric(runtime, 'wharf_out_of_range_total{column="a"}') == 2
    assert metric(runtime, 'wharf_out_of_range_total{column="b"}') == 1
    page = post(runtime, path="/metrics", method="GET")
    assert page.status == 200 and b" NaN" not in page.body and b"wharf_model_info{" in page.body


def test_predictions_go_on_when_the_log_cannot_be_written(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    runtime = start()
    for _ in range(3):
        assert post(runtime, {"rows": [ROW]}).status == 200
    assert metric(runtime, "wharf_prediction_log_lost_total") == 3
    assert capsys.readouterr().err.count("predictions go on unlogged") == 1


def test_a_new_day_is_a_new_file(tmp_path: Path) -> None:
    from bentos.prediction_log import PredictionLog

    log = PredictionLog(tmp_path)
    for moment in (86_399.9, 86_400.1, 86_401.0):
        assert log.write(moment, {"ts": moment})
    log.close()
    assert {file.name: file.read_text().count("\n") for file in tmp_path.iterdir()} == {
        "1970-01-01.jsonl": 1,
        "1970-01-02.jsonl": 2,
    }


# --- pages ---


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "ranking"])
def test_the_document_shows_this_models_schema_with_an_example_that_works(start: Start, task: str) -> None:
    runtime = start(task)
    document = post(runtime, path="/docs.json", method="GET").json
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert post(runtime, body["example"]).status == 200
    if task != "ranking":
        row = document["components"]["schemas"]["Row"]
        assert list(row["properties"]) == list("abcdef") == row["required"]
    assert {"200", "400", "413", "422", "503"} <= set(document["paths"]["/predict"]["post"]["responses"])


def test_the_swagger_page_needs_no_network(start: Start) -> None:
    runtime = start()
    page = post(runtime, path="/", method="GET").body.decode()
    assert "http" not in page.replace("<html", ""), "no address of another host"
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert f"./static_content/{name}" in page
        assert len(post(runtime, path=f"/static_content/{name}", method="GET").body) > 10_000


# --- what must never become ready ---


def test_before_loading_nothing_is_served() -> None:
    runtime = Runtime("tumor")
    reply = post(runtime, {"rows": [ROW]})
    assert reply.status == 503 and reply.json["error"] == "not ready" and not runtime.ready


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("WHARF_ARTIFACT_SHA256", "0" * 64, "refused to load it"),
        ("WHARF_MODEL", "digits", "the release is of model 'digits', this bento serves 'tumor'"),
        ("WHARF_VERSION", "three", "WHARF_VERSION: 'three' is not a whole number"),
    ],
)
def test_what_was_not_released_is_not_served(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    runtime = Runtime("tumor")
    with pytest.raises(ArtifactError, match=said):
        runtime.load(folders["binary"])
    assert not runtime.ready


def test_a_model_that_answers_nan_at_warm_up_is_not_ready(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bentos.predictors import OnnxPredictor

    nan = Outputs(values=np.array([np.nan], np.float32))
    monkeypatch.setattr(OnnxPredictor, "predict", lambda self, matrix: nan)
    runtime = Runtime("tumor")
    with pytest.raises(ArtifactError, match="the warm-up prediction failed: the model gave no finite number"):
        runtime.load(folders["regression"])
    assert not runtime.ready


def test_a_model_with_other_columns_than_serving_json_is_not_ready(tmp_path: Path) -> None:
    folder = artifacts.table_model(tmp_path, columns=artifacts.columns()[:-1])
    runtime = Runtime("tumor")
    with pytest.raises(ArtifactError, match="the warm-up prediction failed") as raised:
        runtime.load(folder)
    assert "\n" not in str(raised.value) and not runtime.ready
