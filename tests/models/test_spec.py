"""The contract of a model: every rule has a file that breaks it, and the wording of each refusal is tested.

The first line of a file in tests/fixtures/invalid/model is `# expect: ` and the error line it must give.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from models.spec import METRICS, SpecError, load, parse
from tests.mlflow_server import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
INVALID = sorted((FIXTURES / "invalid" / "model").glob("*.yaml"))
VALID = (FIXTURES / "valid" / "model" / "binary.yaml").read_text()


def faults(text: str, folder: str = "tumor") -> list[str]:
    with pytest.raises(SpecError) as refused:
        parse(text, f"models/{folder}/model.yaml", folder)
    return refused.value.lines


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_one_fault_gives_its_line(path: Path) -> None:
    text = path.read_text()
    expected = text.splitlines()[0].removeprefix("# expect: ")
    assert faults(text)[0] == expected
    assert len(faults(text)) == (2 if path.stem == "class-is-a-boolean" else 1)


def test_there_are_fixtures() -> None:
    assert len(INVALID) > 60


@pytest.mark.parametrize("path", sorted((FIXTURES / "valid" / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_valid(path: Path) -> None:
    spec = parse(path.read_text(), "models/tumor/model.yaml", "tumor")
    assert spec.task == path.stem
    assert set(spec.gate.metrics) <= set(METRICS[spec.task])


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*/model.yaml")), ids=lambda path: path.parent.name)
def test_the_models_here_are_valid(path: Path) -> None:
    assert load(path.parent).name == path.parent.name


def test_every_fault_of_a_file_is_told_at_once() -> None:
    text = (
        VALID.replace("roc_auc", "roc_acu")
        .replace("radius: {method", "radios: {method")
        .replace("column: site", "column: sit")
    )
    assert [line.split(": ")[1] for line in faults(text)] == [
        "gate.metrics.roc_acu",
        "gate.slices.0.column",
        "drift.features.radios",
    ]


def test_a_fault_is_one_line_each() -> None:
    for path in INVALID:
        assert all("\n" not in line and line.startswith("models/tumor/model.yaml") for line in faults(path.read_text()))


def test_names_and_counted_columns() -> None:
    spec = parse(
        VALID.replace("- {name: radius, min: 0, max: 60}", "- {name: radius}\n    - {name: p, count: 3, max: 4}"),
        "x",
        "tumor",
    )
    assert spec.data.names() == ["radius", "p_0", "p_1", "p_2", "site"]
    assert spec.data.by_name()["p_2"].max == 4


def test_defaults_are_safe_ones() -> None:
    spec = parse(VALID, "x", "tumor")
    assert spec.data.columns[0].max_missing == 0
    assert spec.serving.artifact == "onnx"
    assert spec.gate.latency_p99_ms == 50


def test_what_was_read_cannot_be_changed() -> None:
    spec = parse(VALID, "x", "tumor")
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "tumor").mkdir()
    (tmp_path / "tumor" / "model.yaml").write_bytes(b"name: t\xff\n")
    with pytest.raises(SpecError, match=r"^models/tumor/model.yaml: is not UTF-8 text$"):
        load(tmp_path / "tumor")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^models/gone/model.yaml: cannot be read: No such file or directory$"):
        load(tmp_path / "gone")


def test_yaml_that_is_not_a_mapping_of_words() -> None:
    assert faults("") == [
        "models/tumor/model.yaml: must be a mapping with the keys name, description, owner, team, task, …"
    ]
    assert faults(VALID.replace("task: binary", "1: 2\ntask: binary")) == [
        "models/tumor/model.yaml: 1: a key must be text, not int 1"
    ]
    assert "not valid YAML: found unhashable key" in faults("? [a]\n: 2\n")[0]
