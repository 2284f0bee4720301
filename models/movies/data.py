"""MovieLens ratings (Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015)."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pandas as pd

_COLUMNS = ["user", "item", "rating", "timestamp"]


def load(source: Path | None) -> pd.DataFrame:
    """Return the columns user, item (int), rating (0.5 to 5), timestamp (s), and `title` where there are titles.

    `source`: the zip of MovieLens 100K, or of a newer MovieLens with ratings.csv, or one of their files u.data
    (tab-separated) and ratings.csv alone, which have no titles. Raises ValueError for anything else.
    """
    if source is None:
        raise ValueError("the ratings need a file: there is no built-in data")
    if not zipfile.is_zipfile(source):
        return _ratings(source.read_bytes(), source.name)
    with zipfile.ZipFile(source) as archive:
        members = {name.rsplit("/", 1)[-1]: name for name in archive.namelist()}
        ratings = next((name for name in ("u.data", "ratings.csv") if name in members), None)
        if ratings is None:
            raise ValueError(f"{source.name}: the zip holds neither u.data nor ratings.csv")
        frame = _ratings(archive.read(members[ratings]), ratings)
        if "u.item" in members:
            titles = pd.read_csv(
                io.BytesIO(archive.read(members["u.item"])),
                sep="|",
                header=None,
                usecols=[0, 1],
                names=["item", "title"],
                encoding="latin-1",
                quoting=3,
            )
        elif "movies.csv" in members:
            titles = pd.read_csv(io.BytesIO(archive.read(members["movies.csv"])), usecols=["movieId", "title"])
            titles = titles.rename(columns={"movieId": "item"})
        else:
            return frame
    return frame.assign(title=frame["item"].map(titles.set_index("item")["title"]).fillna("").astype(str))


def _ratings(content: bytes, name: str) -> pd.DataFrame:
    first = content.split(b"\n", 1)[0].strip()
    if first == b"userId,movieId,rating,timestamp":
        frame = pd.read_csv(io.BytesIO(content), header=0, names=_COLUMNS)
    elif first.count(b"\t") == 3:
        frame = pd.read_csv(io.BytesIO(content), sep="\t", header=None, names=_COLUMNS)
    else:
        raise ValueError(
            f"{name}: neither a tab-separated u.data (user, item, rating, timestamp) nor a ratings.csv "
            "(userId,movieId,rating,timestamp)"
        )
    return frame.assign(rating=pd.to_numeric(frame["rating"], errors="raise").astype(float))
