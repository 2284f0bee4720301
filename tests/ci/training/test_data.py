"""Finding, downloading, checking, splitting and digesting a model's rows."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ci.errors import Mistake, Refusal, Unavailable
from ci.files import sha256_bytes
from ci.training import data
from ci.workspace import Workspace, load_spec
from models.spec import ModelSpec, parse
from tests.mlflow_server import ROOT, free_port
from tests.movielens import make_ratings, write_ratings

BINARY = parse((ROOT / "tests/fixtures/valid/model/binary.yaml").read_text(), "x", "tumor")


@pytest.fixture
def served(tmp_path: Path) -> Generator[tuple[Path, str, list[str]]]:
    """A folder, the address that serves it, and the paths that were asked for."""
    folder, asked = tmp_path / "served", list[str]()
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, format: str, *arguments: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def with_source(spec: ModelSpec, url: str, sha256: str) -> ModelSpec:
    source = spec.data.source.model_copy(update={"kind": "url", "url": url, "sha256": sha256})
    return spec.model_copy(update={"data": spec.data.model_copy(update={"source": source})})


def rows(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {"radius": rng.uniform(0, 60, n), "site": rng.choice(["left", "right"], n), "diagnosis": rng.integers(0, 2, n)}
    )


def test_downloads_once_and_verifies_what_it_kept(workspace: Workspace, served: tuple[Path, str, list[str]]) -> None:
    folder, url, asked = served
    content = write_ratings(folder / "r.zip").read_bytes()
    spec = with_source(load_spec(workspace, "movies"), f"{url}/r.zip", sha256_bytes(content))
    first, second = data.resolve(workspace, spec), data.resolve(workspace, spec)
    assert first == second
    assert first.path is not None and first.path.read_bytes() == content
    assert first.path.is_relative_to(workspace.state / "data")
    assert len(asked) == 1
    first.path.write_bytes(content[:-1])  # a damaged copy is fetched again
    assert data.resolve(workspace, spec).digest == sha256_bytes(content)
    assert first.path.read_bytes() == content
    assert len(asked) == 2


def test_refuses_a_download_that_changed(workspace: Workspace, served: tuple[Path, str, list[str]]) -> None:
    folder, url, _ = served
    (folder / "r.zip").write_bytes(b"other")
    spec = with_source(load_spec(workspace, "movies"), f"{url}/r.zip", "ab" * 32)
    with pytest.raises(Refusal) as refused:
        data.resolve(workspace, spec)
    assert refused.value.lines == [
        f"models/movies/model.yaml: data.source.sha256: {url}/r.zip has {sha256_bytes(b'other')}, not {'ab' * 32}"
    ]
    assert [path for path in (workspace.state / "data").rglob("*") if path.is_file()] == []


def test_without_network_one_line_and_what_to_do(workspace: Workspace) -> None:
    url = f"http://127.0.0.1:{free_port()}/ml-100k.zip"
    with pytest.raises(Unavailable) as refused:
        data.resolve(workspace, with_source(load_spec(workspace, "movies"), url, "ab" * 32))
    assert refused.value.lines == [f"the data of movies cannot be downloaded from {url}"]
    assert refused.value.tip == "download it elsewhere and give it with `wharf train movies --data FILE`"
    assert [path for path in (workspace.state / "data").rglob("*") if path.is_file()] == []


def test_a_server_that_says_no(workspace: Workspace, served: tuple[Path, str, list[str]]) -> None:
    spec = with_source(load_spec(workspace, "movies"), f"{served[1]}/gone.zip", "ab" * 32)
    with pytest.raises(Unavailable, match=r"gone.zip \(it answered 404\)$"):
        data.resolve(workspace, spec)


def test_a_given_file_is_taken_with_its_own_digest(workspace: Workspace, tmp_path: Path) -> None:
    path = write_ratings(tmp_path / "u.data")
    source = data.resolve(workspace, load_spec(workspace, "movies"), path)
    assert source == data.Source(path, sha256_bytes(path.read_bytes()), str(path))
    with pytest.raises(Mistake, match=r"^--data .*nothing.csv: no such file$"):
        data.resolve(workspace, load_spec(workspace, "movies"), tmp_path / "nothing.csv")


def test_bad_rows_are_told_one_line_a_fault(workspace: Workspace, tmp_path: Path) -> None:
    spec = load_spec(workspace, "tumor")
    good = data.load(workspace, spec, data.resolve(workspace, spec))
    bad = good.drop(columns="mean_area")
    bad.loc[3, "mean_radius"] = np.nan
    bad["mean_texture"] = bad["mean_texture"].astype(object)
    bad.loc[4, "mean_texture"] = "wide"
    path = tmp_path / "bad.csv"
    bad.to_csv(path, index=False)
    with pytest.raises(Mistake) as refused:
        data.load(workspace, spec, data.resolve(workspace, spec, path))
    assert len(refused.value.lines) == 1
    assert refused.value.lines[0].startswith("tumor: data: column 'mean_area': is not in the data (did you mean 'mean_")
    bad.assign(mean_area=good["mean_area"]).to_csv(path, index=False)
    with pytest.raises(Mistake) as refused:
        data.load(workspace, spec, data.resolve(workspace, spec, path))
    assert refused.value.lines == [
        "tumor: data: column 'mean_radius': 1 of 569 values are missing: share 0.2%, "
        "at most 0.0% is allowed (max_missing)",
        "tumor: data: column 'mean_texture': 569 of 569 values are not finite numbers, the first in row 0: '10.38'",
    ]


def test_a_fault_in_data_py_names_its_line(workspace: Workspace) -> None:
    spec = load_spec(workspace, "tumor")
    source = data.resolve(workspace, spec)
    path = workspace.models / "tumor" / "data.py"
    path.write_text("def load(source):\n    return 1 / 0\n")
    with pytest.raises(Mistake, match=r"^models/tumor/data.py:2: ZeroDivisionError: division by zero$"):
        data.load(workspace, spec, source)
    path.write_text("def load(source):\n    return [1]\n")
    with pytest.raises(Mistake, match=r"^models/tumor/data.py: load returned list, not a DataFrame$"):
        data.load(workspace, spec, source)
    path.write_text("def lod(source):\n    return 1\n")
    with pytest.raises(Mistake, match=r"^models/tumor/data.py: has no function 'load' \(did you mean 'lod'\?\)$"):
        data.load(workspace, spec, source)
    path.write_text("def load(source:\n")
    with pytest.raises(Mistake, match=r"^models/tumor/data.py:1: SyntaxError"):
        data.load(workspace, spec, source)
    path.unlink()
    with pytest.raises(Mistake, match=r"^models/tumor/data.py: is missing$"):
        data.load(workspace, spec, source)


def test_newer_rows_come_on_top_with_class_names_or_indices(workspace: Workspace) -> None:
    spec = load_spec(workspace, "tumor")
    source = data.resolve(workspace, spec)
    base = data.load(workspace, spec, source)
    named = base.head(3).assign(diagnosis=["benign", "malignant", "benign"])
    frame = data.load(workspace, spec, source, named)
    assert frame["diagnosis"].tolist()[-3:] == [0, 1, 0]
    assert len(frame) == len(base) + 3
    with pytest.raises(Mistake, match="1 of 572 values are not class indices 0 to 1, the first in row 570: 'unclear'"):
        data.load(workspace, spec, source, base.head(3).assign(diagnosis=["benign", "unclear", "benign"]))


def test_a_choice_takes_the_place_of_the_old_rating(workspace: Workspace, tmp_path: Path) -> None:
    spec = load_spec(workspace, "movies")
    source = data.resolve(workspace, spec, write_ratings(tmp_path / "ratings.csv"))
    base = data.load(workspace, spec, source)
    assert not base.duplicated(["user", "item"]).any()
    held = data.split(spec, base)[1].drop_duplicates("user").head(20)
    newer = held[["user", "item"]].assign(rating=5.0, timestamp=int(base["timestamp"].max()) + 60)
    twice = pd.concat([newer.assign(timestamp=newer["timestamp"] + 60), newer], ignore_index=True)
    frame = data.load(workspace, spec, source, twice)
    assert len(frame) == len(base)
    train, now_held = data.split(spec, frame)
    chosen = pd.MultiIndex.from_frame(newer[["user", "item"]])
    assert not pd.MultiIndex.from_frame(train[["user", "item"]]).isin(chosen).any()
    found = now_held[pd.MultiIndex.from_frame(now_held[["user", "item"]]).isin(chosen)]
    assert (found["timestamp"] == base["timestamp"].max() + 120).all() and len(found) == len(newer)


def test_a_row_stays_on_its_side_as_the_data_grows() -> None:
    small, more = rows(400), rows(300, seed=1)
    held = data.split(BINARY, small)[1]
    grown = data.split(BINARY, pd.concat([more, small], ignore_index=True))[1]
    assert len(held) == pytest.approx(400 * BINARY.data.holdout, abs=40)
    assert set(held["radius"]) == set(grown["radius"]) & set(small["radius"])


def test_equal_inputs_fall_on_one_side_whatever_their_label_and_type() -> None:
    small = rows(200)
    twins = small.assign(diagnosis=1 - small["diagnosis"], radius=small["radius"].astype(np.float32))
    train, held = data.split(BINARY, pd.concat([small, twins], ignore_index=True))
    assert not set(train["radius"].astype(np.float32)) & set(held["radius"].astype(np.float32))


def test_the_seed_moves_the_split() -> None:
    other = BINARY.model_copy(update={"training": BINARY.training.model_copy(update={"seed": 99})})
    frame = rows(200)
    assert data.split(BINARY, frame)[1]["radius"].tolist() != data.split(other, frame)[1]["radius"].tolist()


def test_a_split_without_rows_or_without_a_class_is_a_mistake() -> None:
    with pytest.raises(Mistake, match=r"leaves no (training|held-out) rows of 1$"):
        data.split(BINARY, rows(1))
    one_class = rows(50).assign(diagnosis=0)
    with pytest.raises(Mistake, match="leaves no training row of class 'malignant'"):
        data.split(BINARY, one_class)


def test_ranking_holds_out_the_latest_of_each_user(workspace: Workspace) -> None:
    spec = load_spec(workspace, "movies")
    train, held = data.split(spec, make_ratings(users=30, items=50, each=20).sample(frac=1, random_state=0))
    assert held.groupby("user").size().unique().tolist() == [4]  # a fifth
    assert (held.groupby("user")["timestamp"].min() > train.groupby("user")["timestamp"].max()).all()


def test_the_matrix_is_in_schema_order_with_codes() -> None:
    frame = pd.DataFrame({"site": ["right", "left", "up"], "diagnosis": [0, 1, 0], "radius": [1.5, np.nan, 0.1]})
    matrix = data.matrix(BINARY, frame)
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix, np.array([[1.5, 1], [np.nan, 0], [0.1, np.nan]], np.float32), equal_nan=True)
    encoded = data.encode(BINARY, frame)
    assert list(encoded) == ["radius", "site", "diagnosis"]
    assert encoded["radius"][2] == float(np.float32(0.1))


def test_the_digest_is_of_values_not_of_types() -> None:
    frame = rows(20)
    assert data.digest(frame) == data.digest(frame.assign(diagnosis=frame["diagnosis"].astype(float)))
    assert data.digest(frame) == data.digest(frame.reset_index(drop=True).astype({"site": "category"}))
    assert data.digest(frame) != data.digest(frame.assign(diagnosis=1 - frame["diagnosis"]))
    assert data.digest(frame) != data.digest(frame.iloc[::-1])
    assert data.digest(frame) != data.digest(frame.rename(columns={"radius": "width"}))
