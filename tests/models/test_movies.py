"""The recommender on made-up ratings with a planted structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bentos.predictors import load as load_predictor
from ci.gating.scoring import predicted
from ci.training import data, export
from models.metrics import compute
from models.movies.data import load
from models.movies.train import fit
from models.spec import load as load_spec
from tests.mlflow_server import ROOT
from tests.movielens import TASTES, make_ratings, write_ratings

SPEC = load_spec(ROOT / "models" / "movies")
PARAMS = {**SPEC.training.params, "rank": 16}


@pytest.mark.parametrize("name", ["ratings.csv", "u.data", "ml-100k.zip"])
def test_reads_the_three_formats(tmp_path: Path, name: str) -> None:
    frame = load(write_ratings(tmp_path / name))
    expected = make_ratings()
    for column in expected:
        assert frame[column].tolist() == expected[column].tolist()
    assert frame["rating"].dtype == float
    assert ("title" in frame) == (name == "ml-100k.zip")
    if "title" in frame:
        assert frame["title"].iloc[0] == f'"Café" {frame["item"].iloc[0]} (1995)'


def test_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("Dear editor,\n")
    with pytest.raises(ValueError, match=r"^letters.txt: neither a tab-separated u.data"):
        load(tmp_path / "letters.txt")
    with pytest.raises(ValueError, match="no built-in data"):
        load(None)


def test_beats_popularity_on_a_planted_structure(tmp_path: Path) -> None:
    frame = make_ratings()
    train, holdout = data.split(SPEC, frame)
    arrays = fit(train, PARAMS, 3)
    export.export(SPEC, arrays, tmp_path)
    predictor = load_predictor(tmp_path)
    held = predicted(predictor, tmp_path, holdout, SPEC)
    relevant, ranked = held.y_true, held.outputs
    assert compute("ranking", "ndcg_lift", relevant, ranked) > 1.3
    assert compute("ranking", "ndcg_at_10", relevant, ranked) > 0.1
    assert compute("ranking", "coverage", relevant, ranked) > 0.1


def test_recommends_the_own_genre_and_nothing_rated(tmp_path: Path) -> None:
    frame = make_ratings()
    export.export(SPEC, fit(frame, PARAMS, 3), tmp_path)
    items, _, known = load_predictor(tmp_path).recommend(np.array([1, 2, 99_999]), 10)
    assert known.tolist() == [True, True, False]
    for user in (1, 2):
        rated = set(frame.loc[frame["user"] == user, "item"])
        assert not rated & set(items[user - 1].tolist())
        assert np.mean((items[user - 1] - 1) % TASTES == (user - 1) % TASTES) > 0.8
    liked = frame[frame["rating"] >= 4]["item"].value_counts()
    assert liked[items[2].tolist()].min() >= liked.nlargest(10).min()


def test_same_rows_in_another_order_give_the_same_factors() -> None:
    frame = make_ratings(users=40, items=60, each=20)
    first, second = fit(frame, PARAMS, 3), fit(frame.sample(frac=1, random_state=1), PARAMS, 3)
    assert all((first[name] == second[name]).all() for name in first)


def test_the_catalogue_holds_the_most_rated() -> None:
    frame = make_ratings(users=40, items=60, each=20)
    arrays = fit(frame, {**PARAMS, "max_items": 25}, 3)
    assert len(arrays["item_ids"]) == 25
    counts = frame["item"].value_counts()
    assert counts[arrays["item_ids"].tolist()].min() >= counts.nlargest(25).min()


def test_a_user_with_one_rating_and_fewer_items_than_factors() -> None:
    frame = pd.DataFrame({"user": [1, 2, 2], "item": [5, 5, 6], "rating": [5.0, 4, 2], "timestamp": [1, 2, 3]})
    arrays = fit(frame, PARAMS, 3)
    assert arrays["user_factors"].shape == (2, 2)
    assert np.isfinite(arrays["user_factors"]).all()
