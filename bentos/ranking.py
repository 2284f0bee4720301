"""Ranking models: `{"users": [...], "k": 10}` to the best items of each user."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from bentos.inputs import Answer, Refused, fault, fields_of, shown, unprocessable
from bentos.predictors import Predictor

MOST_ITEMS = 1000
_INT64 = 2**63


class RankingHandler:
    """Validates users and k, and recommends."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._spec = predictor, predictor.spec

    def answer(self, body: Any) -> Answer:
        given = fields_of(body, "users", ("k",))
        users, k = self._users(given["users"]), _count(given.get("k", 10))
        items, scores, known = self._predictor.recommend(np.array(users, np.int64), k)
        if not all(np.isfinite(row).all() for row in scores):
            raise Refused(500, "the model gave a score that is not a finite number")
        listed = [row.tolist() for row in items]
        predictions = [
            [_item(self._predictor.title(item), item, score) for item, score in zip(row, marks, strict=True)]
            for row, marks in zip(listed, scores, strict=True)
        ]
        logged = {"users": users, "k": k, "predictions": listed, "scores": scores}
        found = int(known.sum())
        counts = {name: count for name, count in (("known", found), ("unknown", len(users) - found)) if count}
        return Answer({"predictions": predictions, "known": known.tolist()}, logged, classes=counts)

    def example(self, size: int) -> dict[str, Any]:
        return {"users": list(range(1, size + 1)), "k": 5}

    def _users(self, users: Any) -> list[int]:
        if not isinstance(users, list):
            raise unprocessable([fault("users", msg=f"must be a list of user ids, not {shown(users)}")])
        given, most = cast(list[Any], users), self._spec.max_rows
        if not given:
            raise unprocessable([fault("users", msg="is empty: send at least one user id")])
        if len(given) > most:
            raise unprocessable([fault("users", msg=f"has {len(given)} ids, at most {most} are taken")])
        faults = [
            fault("users", i, msg=f"must be a whole number, not {shown(user)}")
            for i, user in enumerate(given)
            if type(user) is not int or not -_INT64 <= user < _INT64
        ]
        if faults:
            raise unprocessable(faults)
        return given


def _count(k: Any) -> int:
    if type(k) is not int or not 1 <= k <= MOST_ITEMS:
        raise unprocessable([fault("k", msg=f"must be a whole number from 1 to {MOST_ITEMS}, not {shown(k)}")])
    return k


def _item(title: str | None, item: int, score: np.float32) -> dict[str, Any]:
    return {"item": item, "score": score} if title is None else {"item": item, "title": title, "score": score}
