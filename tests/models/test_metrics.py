"""The metrics against scikit-learn and against hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics as reference

from models import metrics
from models.metrics import Ranked, compute, liked_items, ndcg_per_user, recall_per_user, take
from models.spec import METRICS

RNG = np.random.default_rng(3)
TRUTH = RNG.integers(0, 2, 400)
SCORE = np.round(np.clip(0.3 * TRUTH + RNG.random(400) * 0.7, 0, 1), 2)  # rounded: ties
K_TRUTH = RNG.integers(0, 4, 300)
TABLE = RNG.dirichlet(np.ones(4), 300)
VALUES = RNG.normal(size=200)
GUESS = VALUES + RNG.normal(scale=0.3, size=200)

EXPECTED = {
    ("binary", "roc_auc"): reference.roc_auc_score(TRUTH, SCORE),
    ("binary", "average_precision"): reference.average_precision_score(TRUTH, SCORE),
    ("binary", "accuracy"): reference.accuracy_score(TRUTH, SCORE >= 0.5),
    ("binary", "precision"): reference.precision_score(TRUTH, SCORE >= 0.5),
    ("binary", "recall"): reference.recall_score(TRUTH, SCORE >= 0.5),
    ("binary", "f1"): reference.f1_score(TRUTH, SCORE >= 0.5),
    ("binary", "log_loss"): reference.log_loss(TRUTH, np.clip(SCORE, 1e-15, 1 - 1e-15)),
    ("binary", "brier"): reference.brier_score_loss(TRUTH, SCORE),
    ("multiclass", "accuracy"): reference.accuracy_score(K_TRUTH, TABLE.argmax(1)),
    ("multiclass", "f1_macro"): reference.f1_score(K_TRUTH, TABLE.argmax(1), average="macro"),
    ("multiclass", "recall_min"): reference.recall_score(K_TRUTH, TABLE.argmax(1), average=None).min(),
    ("multiclass", "log_loss"): reference.log_loss(K_TRUTH, TABLE),
    ("regression", "rmse"): reference.root_mean_squared_error(VALUES, GUESS),
    ("regression", "mae"): reference.mean_absolute_error(VALUES, GUESS),
    ("regression", "r2"): reference.r2_score(VALUES, GUESS),
}
CASES = {"binary": (TRUTH, SCORE), "multiclass": (K_TRUTH, TABLE), "regression": (VALUES, GUESS)}


@pytest.mark.parametrize(("task", "metric"), EXPECTED)
def test_equals_scikit_learn(task: str, metric: str) -> None:
    assert compute(task, metric, *CASES[task]) == pytest.approx(EXPECTED[task, metric], rel=1e-12)


def test_every_metric_of_the_contract_is_computed() -> None:
    ranked = Ranked(np.array([[1, 2]]), np.array([[2, 3]]), 5)
    cases = {**CASES, "ranking": ([np.array([1])], ranked)}
    for task, names in METRICS.items():
        for name in names:
            assert isinstance(compute(task, name, *cases[task]), float), (task, name)


def test_binary_takes_two_columns_of_probabilities() -> None:
    both = np.column_stack([1 - SCORE, SCORE])
    assert compute("binary", "roc_auc", TRUTH, both) == compute("binary", "roc_auc", TRUTH, SCORE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_predictions_that_are_no_numbers(bad: float) -> None:
    scores = SCORE.copy()
    scores[[3, 5]] = bad
    with pytest.raises(ValueError, match="2 of 400 predictions are NaN or infinite"):
        compute("binary", "accuracy", TRUTH, scores)


def test_refuses_no_rows_and_lengths_that_differ() -> None:
    with pytest.raises(ValueError, match="0 true values"):
        compute("regression", "mae", [], [])
    with pytest.raises(ValueError, match="400 true values, 399 predictions"):
        compute("binary", "accuracy", TRUTH, SCORE[1:])
    with pytest.raises(ValueError, match="0 users"):
        compute("ranking", "ndcg_at_10", [], Ranked(np.zeros((0, 10), int), np.zeros((0, 10), int), 5))


def test_one_class_only_has_no_roc_auc() -> None:
    assert math.isnan(compute("binary", "roc_auc", [1, 1], [0.2, 0.9]))
    assert math.isnan(compute("binary", "recall", [0, 0], [0.2, 0.9]))


def test_ndcg_by_hand() -> None:
    items = np.array([[7, 1, 9], [1, 2, 3]])
    relevant = [np.array([1, 9]), np.array([4])]
    by_hand = (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert ndcg_per_user(relevant, items, k=3) == pytest.approx([by_hand, 0])
    assert recall_per_user(relevant, items, k=2) == pytest.approx([0.5, 0])


def test_ndcg_of_a_perfect_ranking_is_one_for_few_and_for_many_liked_items() -> None:
    items = np.arange(10)[None, :]
    assert ndcg_per_user([np.array([0])], items) == pytest.approx([1])
    assert ndcg_per_user([np.arange(50)], items) == pytest.approx([1])


def test_lift_and_coverage() -> None:
    ranked = Ranked(items=np.array([[1, 2, -1], [2, 3, -1]]), baseline=np.array([[5, 1, 2], [5, 3, 2]]), catalogue=6)
    relevant = [np.array([1]), np.array([2])]
    assert compute("ranking", "ndcg_at_10", relevant, ranked) == 1
    assert compute("ranking", "ndcg_lift", relevant, ranked) == pytest.approx(2 / (1 / math.log2(3) + 1 / 2))
    assert compute("ranking", "coverage", relevant, ranked) == pytest.approx(3 / 6)


def test_lift_over_a_useless_baseline_is_not_defined() -> None:
    assert math.isnan(compute("ranking", "ndcg_lift", [np.array([1])], Ranked(np.array([[1]]), np.array([[2]]), 3)))


def test_liked_items_leaves_out_users_who_liked_nothing() -> None:
    users, liked = liked_items([3, 1, 1, 2, 1], [10, 11, 12, 13, 14], [5, 4, 3.5, 1, 4.5])
    assert users.tolist() == [1, 3]
    assert [part.tolist() for part in liked] == [[11, 14], [10]]
    assert liked_items([1], [2], [3])[0].tolist() == []


def test_take_repeats_rows_of_every_task() -> None:
    rows = np.array([1, 1])
    relevant, ranked = take(
        "ranking", [np.array([1]), np.array([2])], Ranked(np.array([[1], [2]]), np.array([[1], [3]]), 4), rows
    )
    assert compute("ranking", "ndcg_at_10", relevant, ranked) == 1
    assert ranked.baseline.tolist() == [[3], [3]]
    assert take("multiclass", K_TRUTH, TABLE, rows)[1].tolist() == TABLE[[1, 1]].tolist()


def test_liked_is_four_stars() -> None:
    assert metrics.LIKED == 4.0
