"""`wharf batch` as a user calls it, with real artifacts and real files."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ci import cli
from ci.batching import parts, source
from ci.batching import run as batching
from ci.batching.predict import Said
from ci.workspace import Workspace
from tests.bentos import artifacts
from tests.ci import batch_inputs as inputs


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.table_model(tmp_path_factory.mktemp("model") / "tumor")


@pytest.fixture
def released(workspace: Workspace, model: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with version 3 of tumor in dev, and a registry that does not answer."""
    monkeypatch.chdir(workspace.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    inputs.release(workspace, model)
    return workspace


def batch(*words: object, output: Path) -> int:
    return cli.main(["batch", "tumor", "--output", str(output), *map(str, words)])


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("into", ["parquet", "csv"])
@pytest.mark.parametrize("out_of", ["parquet", "csv"])
def test_every_row_gets_what_the_artifact_says(
    released: Workspace, model: Path, tmp_path: Path, out_of: str, into: str
) -> None:
    rows = inputs.table(500, patient=[f"p{i:04d}" for i in range(500)])
    path = inputs.write(tmp_path / f"in.{out_of}", rows)
    output = tmp_path / "out" / f"scored.{into}"
    output.parent.mkdir()

    assert batch("--input", path, output=output) == 0

    import pandas as pd

    found = pd.read_csv(output) if into == "csv" else pd.read_parquet(output)
    classes, probabilities = inputs.expected(model, rows)
    assert list(found.columns) == [*inputs.NAMES, "patient", "prediction", "probability", "model", "version"]
    assert found["prediction"].tolist() == classes
    assert found["patient"].tolist() == rows["patient"].to_pylist()
    np.testing.assert_allclose(found["probability"], probabilities, atol=1e-6)
    np.testing.assert_allclose(found["a"], rows["a"].to_numpy())
    assert set(found["model"]) == {"tumor"} and set(found["version"]) == {3}
    assert leftovers(output.parent) == [f"scored.{into}", f"scored.{into}.json"]


def test_the_manifest_says_which_version_predicted_what(released: Workspace, model: Path, tmp_path: Path) -> None:
    path = inputs.write(tmp_path / "in.parquet", inputs.table(20, a=[99.0] + [0.0] * 19))
    output = tmp_path / "scored.parquet"
    assert batch("--input", path, output=output) == 0
    manifest = json.loads((tmp_path / "scored.parquet.json").read_text())
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=released.root, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert manifest["input"] == {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert manifest["output"]["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    artifact = hashlib.sha256((model / "artifact.onnx").read_bytes()).hexdigest()
    said = {name: manifest[name] for name in ("model", "version", "environment", "artifact_sha256", "commit", "run")}
    assert said == {
        "model": "tumor",
        "version": 3,
        "environment": "dev",
        "artifact_sha256": artifact,
        "commit": head,
        "run": "a" * 32,
    }
    assert (manifest["rows"], manifest["predicted"], manifest["rejected"]) == (20, 20, 0)
    assert manifest["outside"]["a"] == 1
    assert manifest["started"] <= manifest["ended"]


def test_the_last_environment_with_a_release_is_the_default(released: Workspace, tmp_path: Path) -> None:
    other = artifacts.table_model(tmp_path / "other", max_rows=7)
    inputs.release(released, other, "staging", 2)
    path = inputs.write(tmp_path / "in.parquet", inputs.table(5))
    output = tmp_path / "scored.parquet"
    assert batch("--input", path, output=output) == 0
    assert set(pq.read_table(output)["version"].to_pylist()) == {2}
    assert batch("--input", path, "--environment", "dev", output=output) == 0
    assert set(pq.read_table(output)["version"].to_pylist()) == {3}


def test_without_a_release_it_says_what_to_choose(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    path = inputs.write(tmp_path / "in.parquet", inputs.table(5))
    assert batch("--input", path, output=tmp_path / "o.csv") == 2
    said = capsys.readouterr().err
    assert "ERROR  'tumor' is released nowhere: which version is to predict?" in said
    assert "wharf ship tumor" in said


def test_a_damaged_artifact_is_not_used(released: Workspace, tmp_path: Path) -> None:
    (folder,) = (released.state / "cache" / "artifacts").iterdir()
    content = bytearray((folder / "artifact.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "artifact.onnx").write_bytes(content)
    path = inputs.write(tmp_path / "in.parquet", inputs.table(5))
    assert batch("--input", path, output=tmp_path / "o.csv") == 4  # not taken from the cache, and MLflow is away
    assert not (tmp_path / "o.csv").exists()


BAD = {
    "a": ["1", "", "abc", "1e400", "inf", "2"],
    "b": ["1", "1", "1,5", "1", "1", "1"],
}


@pytest.mark.parametrize("out_of", ["csv", "parquet"])
def test_bad_rows_are_refused_listed_and_nothing_is_lost(
    released: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], out_of: str
) -> None:
    if out_of == "csv":
        rows = inputs.table(6, a=BAD["a"], b=BAD["b"])
        wanted = [
            ["2", "a: is missing"],
            ["3", "a: must be a number, not 'abc'; b: must be a number, not '1,5'"],
            ["4", "a: must be a finite number, not inf"],
            ["5", "a: must be a finite number, not inf"],
        ]
    else:
        rows = inputs.table(6, a=pa.array([1, None, float("nan"), 1e300, float("inf"), 2], pa.float64()))
        wanted = [
            ["2", "a: is missing"],
            ["3", "a: is missing"],
            ["4", "a: is too large for a 32-bit float: 1e+300"],
            ["5", "a: must be a finite number, not inf"],
        ]
    path = inputs.write(tmp_path / f"in.{out_of}", rows)
    output = tmp_path / "o.parquet"
    assert batch("--input", path, output=output) == 3
    said = capsys.readouterr().err
    assert (
        f"4 of 6 rows (66.67%) are rejected, at most 0.00% may be; all of them with reasons: {output}.rejected.csv"
        in said
    )
    assert "row 2: a: is missing" in said
    assert "--max-rejected 0.67" in said
    assert not output.exists() and not Path(f"{output}.json").exists()
    with Path(f"{output}.rejected.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["row", "reason"], *wanted]

    assert batch("--input", path, "--max-rejected", "0.67", output=output) == 0
    found = pq.read_table(output)
    assert found["a"].to_pylist() == [1.0, 2.0]
    manifest = json.loads(Path(f"{output}.json").read_text())
    assert (manifest["rows"], manifest["predicted"], manifest["rejected"], manifest["reused"]) == (6, 2, 4, 6)


def test_rows_of_another_length_are_rejected_by_their_number(released: Workspace, tmp_path: Path) -> None:
    good = "1,2,3,4,5,6"
    path = tmp_path / "in.csv"
    path.write_text("\n".join(["a,b,c,d,e,f", good, "1,2", good, f"{good},7", good, "", ""]))
    output = tmp_path / "o.csv"
    assert batch("--input", path, output=output) == 3
    assert Path(f"{output}.rejected.csv").read_text().splitlines()[1:] == [
        '2,"has 2 values, the header has 6"',
        '4,"has 7 values, the header has 6"',
    ]
    assert batch("--input", path, "--max-rejected", "0.5", output=output) == 0
    assert len(output.read_text().splitlines()) == 1 + 3


def test_missing_columns_are_named_in_one_line(
    released: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = inputs.write(tmp_path / "in.parquet", inputs.table(5).drop_columns(["b", "e"]))
    assert batch("--input", path, output=tmp_path / "o.csv") == 2
    assert f"ERROR  {path}: lacks the columns 'b', 'e'" in capsys.readouterr().err
    assert leftovers(tmp_path) == ["in.parquet", "repository"]


def faulty(name: str, folder: Path) -> list[object]:
    """Return the options of a command that cannot be done."""
    rows = inputs.table(3)
    if name == "text":
        return ["--input", inputs.write(folder / "i.parquet", inputs.table(3, a=["x", "y", "z"]))]
    if name == "taken":
        return ["--input", inputs.write(folder / "i.parquet", inputs.table(3, prediction=[1, 2, 3]))]
    if name == "nested":
        return ["--input", inputs.write(folder / "i.parquet", inputs.table(3, tags=[["x"], [], ["y"]]))]
    if name == "twice":
        (folder / "i.csv").write_text("a,b,c,d,e,f,a\n1,2,3,4,5,6,7\n")
        return ["--input", folder / "i.csv"]
    if name == "empty":
        (folder / "i.csv").write_text("")
        return ["--input", folder / "i.csv"]
    if name == "garbage":
        (folder / "i.parquet").write_bytes(b"no parquet")
        return ["--input", folder / "i.parquet"]
    if name == "suffix":
        return ["--input", folder / "i.txt"]
    if name == "address":
        return ["--input", "s3://bucket/rows.parquet"]
    if name == "nothing":
        return ["--input", folder / "i.parquet"]
    path = inputs.write(folder / "i.parquet", rows)
    return {
        "share": ["--input", path, "--max-rejected", "3"],
        "workers": ["--input", path, "--workers", "0"],
        "environment": ["--input", path, "--environment", "stagin"],
        "unreleased": ["--input", path, "--environment", "prod"],
    }[name]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("text", "column 'a' is string, the model takes numbers"),
        ("taken", "has 'prediction', which the output adds: give `--prefix TEXT`"),
        ("nested", "'tags' (list<element: string>) cannot be written to CSV"),
        ("twice", "column 'a' stands there twice"),
        ("empty", "i.csv: cannot be read as csv: Empty CSV file"),
        ("garbage", "i.parquet: cannot be read as parquet: "),
        ("suffix", "i.txt: must end in .parquet or .csv"),
        ("address", "an address is not read or written, only a file is"),
        ("nothing", "i.parquet: no such file"),
        ("share", "--max-rejected 3: must be a share from 0 to 1"),
        ("workers", "--workers 0: must be at least 1"),
        ("environment", "no environment 'stagin' (did you mean 'staging'?)"),
        ("unreleased", "'tumor' is not released in prod"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    released: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, line: str
) -> None:
    output = tmp_path / "o.csv"
    assert batch(*faulty(name, tmp_path), output=output) == 2
    errors = [word for word in capsys.readouterr().err.splitlines() if "ERROR" in word]
    assert len(errors) == 1 and line in errors[0], errors
    assert not output.exists()


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_an_input_that_is_damaged_in_the_middle_is_one_line(
    released: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    path = inputs.write(tmp_path / f"in.{suffix}", inputs.table(2000))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    damage = 64 if suffix == "csv" else len(content) // 3  # the head of a page must be in it
    content[middle : middle + damage] = b"\xff" * damage
    path.write_bytes(content)
    assert batch("--input", path, "--max-rejected", "1", output=tmp_path / "o.parquet") == 2
    assert f"ERROR  {path}: cannot be read as {suffix}: " in capsys.readouterr().err
    assert not (tmp_path / "o.parquet").exists()


def test_added_columns_may_have_a_prefix(released: Workspace, tmp_path: Path) -> None:
    path = inputs.write(tmp_path / "in.parquet", inputs.table(3, version=["v", "w", "x"]))
    output = tmp_path / "o.parquet"
    assert batch("--input", path, "--prefix", "wharf_", output=output) == 0
    assert pq.read_table(output).column_names[-4:] == [
        *("wharf_prediction", "wharf_probability", "wharf_model", "wharf_version"),
    ]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_no_rows_give_no_rows(released: Workspace, tmp_path: Path, suffix: str) -> None:
    path = inputs.write(tmp_path / f"in.{suffix}", inputs.table(0))
    output = tmp_path / "o.parquet"
    assert batch("--input", path, output=output) == 0
    assert len(pq.read_table(output)) == 0


def test_the_same_again_is_already_there_and_another_input_is_not(
    released: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = inputs.write(tmp_path / "in.parquet", inputs.table(30))
    output = tmp_path / "o.parquet"
    assert batch("--input", path, output=output) == 0
    first = output.stat().st_mtime_ns
    capsys.readouterr()
    assert batch("--input", path, output=output) == 0
    assert "(already there)" in capsys.readouterr().out and output.stat().st_mtime_ns == first
    output.write_bytes(output.read_bytes() + b"x")  # changed by hand: made anew
    assert batch("--input", path, output=output) == 0
    assert len(pq.read_table(output)) == 30
    inputs.write(path, inputs.table(31))
    assert batch("--input", path, output=output) == 0
    assert len(pq.read_table(output)) == 31


KILLED = """
import os, signal, sys
from ci import cli
from ci.batching import parts, source
source._MOST_ROWS = 1000
save = parts.Parts.save
def saved(self, index, said):
    save(self, index, said)
    if index == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
parts.Parts.save = saved
sys.exit(cli.main(sys.argv[2:]))
"""


def killed(workspace: Workspace, path: Path, output: Path, part: int) -> int:
    words = ["batch", "tumor", "--workers", "1", "--input", str(path), "--output", str(output)]
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-c", KILLED, str(part), *words]
    return subprocess.run(
        command, cwd=workspace.root, env=env, check=False, timeout=120, capture_output=True
    ).returncode


def stopped(path: Path, output: Path, part: int) -> None:
    """Run a batch that is interrupted when it has saved `part`."""
    with pytest.MonkeyPatch.context() as patch:
        save = parts.Parts.save

        def saved(self: parts.Parts, index: int, said: Said) -> None:
            save(self, index, said)
            if index == part:
                raise KeyboardInterrupt

        patch.setattr(parts.Parts, "save", saved)
        assert batch("--input", path, "--workers", "1", output=output) == 130
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_killed_batch_goes_on_and_gives_the_same_bytes(
    released: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(source, "_MOST_ROWS", 1000)
    path = inputs.write(tmp_path / f"in.{suffix}", inputs.table(9_500))
    whole, output = tmp_path / f"whole.{suffix}", tmp_path / f"o.{suffix}"
    assert batch("--input", path, output=whole) == 0

    assert killed(released, path, output, 4) == -signal.SIGKILL
    assert not output.exists()
    assert batch("--input", path, output=output) == 0

    manifest = json.loads(Path(f"{output}.json").read_text())
    assert 5000 <= manifest["reused"] < 9500
    assert output.read_bytes() == whole.read_bytes()
    assert leftovers(tmp_path) == sorted(
        [f"in.{suffix}", f"o.{suffix}", f"o.{suffix}.json", "repository", f"whole.{suffix}", f"whole.{suffix}.json"]
    )


def test_parts_of_another_input_or_version_and_damaged_ones_are_not_taken(
    released: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_MOST_ROWS", 1000)
    path = inputs.write(tmp_path / "in.parquet", inputs.table(9_500))
    output = tmp_path / "o.parquet"
    stopped(path, output, 4)
    (folder,) = [entry for entry in (tmp_path / ".o.parquet.parts").iterdir() if entry.is_dir()]
    damaged = folder / "000001.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert batch("--input", path, output=output) == 0
    assert json.loads(Path(f"{output}.json").read_text())["reused"] % 1000 == 0
    assert json.loads(Path(f"{output}.json").read_text())["reused"] >= 4000  # five were done, one is damaged

    output.unlink()
    stopped(path, output, 4)
    inputs.write(path, inputs.table(9_500, seed=1))
    assert batch("--input", path, output=output) == 0
    assert json.loads(Path(f"{output}.json").read_text())["reused"] == 0

    output.unlink()
    stopped(path, output, 4)
    other = artifacts.table_model(tmp_path / "other", max_rows=7)
    changed = artifacts.estimator("regression")  # another artifact under the same name
    artifacts.write(other, artifacts.onnx_bytes(changed, "regression"), model="tumor", task="regression")
    inputs.release(released, other, "prod", 4)
    assert batch("--input", path, output=output) == 0
    manifest = json.loads(Path(f"{output}.json").read_text())
    assert (manifest["reused"], manifest["version"]) == (0, 4)
    assert pq.read_table(output).column_names[-3:] == ["prediction", "model", "version"]


def test_two_commands_do_not_write_the_same_output(
    released: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ci.batching.parts import workshop

    path = inputs.write(tmp_path / "in.parquet", inputs.table(30))
    output = tmp_path / "o.parquet"
    with workshop(output):
        assert batch("--input", path, output=output) == 2
    assert f"--output {output}: another `wharf batch` is writing it" in capsys.readouterr().err
    assert batch("--input", path, output=output) == 0


def test_an_input_that_changes_meanwhile_is_refused(
    released: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = inputs.write(tmp_path / "in.parquet", inputs.table(30))
    each = batching.each

    def changed(*words: object) -> None:
        each(*words)  # type: ignore[arg-type]
        os.utime(path, (time.time(), time.time() + 5))

    monkeypatch.setattr(batching, "each", changed)
    assert batch("--input", path, output=tmp_path / "o.parquet") == 3
    assert "was changed while it was read" in capsys.readouterr().err
    assert not (tmp_path / "o.parquet").exists()


def test_a_ranking_model_recommends_to_the_users_of_the_file(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root)
    made = artifacts.ranking_model(tmp_path / "movies")
    inputs.release(workspace, made)
    from bentos.predictors import load

    items, scores, _ = load(made).recommend(np.array([7, 1, 9]), 2)
    path = tmp_path / "in.csv"
    path.write_text("user,country\n7,DE\n1,FR\n9,IT\nx,ES\n1.5,\n,AT\n")
    words = ["batch", "movies", "--input", str(path), "--k", "2", "--max-rejected", "0.5"]

    assert cli.main([*words, "--output", str(tmp_path / "o.parquet")]) == 0
    found = pq.read_table(tmp_path / "o.parquet")
    assert found.column_names == ["user", "country", "prediction", "score", "known", "model", "version"]
    assert found["user"].to_pylist() == [7, 1, 9]
    assert found["prediction"].to_pylist() == [row.tolist() for row in items]
    assert found["known"].to_pylist() == [True, False, True]
    assert (tmp_path / "o.parquet.rejected.csv").read_text().splitlines()[1:] == [
        "4,\"user: must be a number, not 'x'\"",
        '5,"user: must be a whole number, not 1.5"',
        "6,user: is missing",
    ]

    assert cli.main([*words, "--output", str(tmp_path / "o.csv")]) == 0
    with (tmp_path / "o.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [json.loads(line["prediction"]) for line in lines] == [row.tolist() for row in items]
    np.testing.assert_allclose(json.loads(lines[0]["score"]), scores[0], rtol=1e-5)


def test_json_prints_the_manifest(released: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = inputs.write(tmp_path / "in.parquet", inputs.table(30))
    assert batch("--input", path, "--json", output=tmp_path / "o.csv") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "o.csv.json").read_text())


@pytest.mark.slow
def test_it_does_not_import_mlflow(released: Workspace, tmp_path: Path) -> None:
    path = inputs.write(tmp_path / "in.parquet", inputs.table(30))
    code = "import sys; from ci import cli; c = cli.main(sys.argv[1:]); sys.exit(c or 9 * ('mlflow' in sys.modules))"
    words = ["batch", "tumor", "--input", str(path), "--output", str(tmp_path / "o.csv")]
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=released.root, env=env, check=False, timeout=120)
    assert done.returncode == 0
