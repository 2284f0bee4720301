"""Ratings in the formats of MovieLens, made up: the real ones may not be redistributed.

Viewers belong to one of four tastes and films to one of four genres. A viewer rates films of the own genre four times
as often as others and likes them; some films are popular with everybody. A recommender that learns finds the genre,
and recommending what is popular does not.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

TASTES = 4


def make_ratings(users: int = 120, items: int = 160, each: int = 40, seed: int = 5) -> pd.DataFrame:
    """Return `each` ratings of each user: user, item, rating (1 to 5), timestamp; ids begin with 1."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.sqrt(1 + rng.permutation(items))
    parts: list[pd.DataFrame] = []
    for user in range(users):
        own = np.arange(items) % TASTES == user % TASTES
        chance = popularity * np.where(own, 4.0, 1.0)
        chosen = rng.choice(items, size=each, replace=False, p=chance / chance.sum())
        ratings = np.where(own[chosen], rng.integers(4, 6, each), rng.integers(1, 4, each))
        times = 880_000_000 + user * 1000 + np.arange(each)
        parts.append(pd.DataFrame({"user": user + 1, "item": chosen + 1, "rating": ratings, "timestamp": times}))
    return pd.concat(parts, ignore_index=True)


def write_ratings(path: Path, ratings: pd.DataFrame | None = None) -> Path:
    """Write ratings to `path` and return it; the name decides the format.

    `*.csv`: ratings.csv of a newer MovieLens. `*.zip`: like ml-100k.zip with u.data and u.item (titles in Latin-1).
    Anything else: a plain u.data.
    """
    frame = make_ratings() if ratings is None else ratings
    if path.suffix == ".csv":
        names = {"user": "userId", "item": "movieId"}
        frame.rename(columns=names).to_csv(path, index=False)
        return path
    plain = frame.to_csv(sep="\t", header=False, index=False)
    if path.suffix != ".zip":
        path.write_text(plain)
        return path
    items = io.StringIO()
    for item in sorted(frame["item"].unique()):
        items.write(f'{item}|"Café" {item} (1995)|01-Jan-1995||http://example.org/{item}{"|0" * 19}\n')
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-100k/u.data", plain)
        archive.writestr("ml-100k/u.item", items.getvalue().encode("latin-1"))
    return path
