"""The whole loop on the local target, as a newcomer runs it: real MLflow, real bentos, real git, real processes.

The tests of this file are one story in order, on one platform that the first of them starts.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from tests.e2e.newcomer import User, newcomer
from tests.movielens import write_ratings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    somebody = newcomer(tmp_path_factory.mktemp("newcomer") / "modelwharf")
    try:
        yield somebody
    finally:
        somebody.wharf("down")


def rows_of_tumor(count: int) -> list[list[float]]:
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer(return_X_y=True)[0][:count].tolist()


def test_up_serves_and_promotes(user: User) -> None:
    user.wharf("up")
    for environment in ("dev", "staging", "prod"):
        row = user.wait_for("tumor", environment, 1)
        answer = requests.post(row["url"] + "/predict", json={"rows": rows_of_tumor(3)}, timeout=10)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["predictions"] == ["malignant"] * 3  # the first three rows of the data set are
        assert (body["model"], body["version"]) == ("tumor", 1)
        assert body["request_id"]
    user.wait_for("digits", "dev", 1)


def test_movies_from_a_file(user: User, tmp_path: Path) -> None:
    user.wharf("ship", "movies", "--data", str(write_ratings(tmp_path / "ratings.csv")))
    row = user.wait_for("movies", "dev", 1)
    body = requests.post(row["url"] + "/predict", json={"users": [1, 10**9], "k": 5}, timeout=10).json()
    assert [len(ranked) for ranked in body["predictions"]] == [5, 5]
    assert body["known"] == [True, False]


def test_up_again_changes_nothing(user: User) -> None:
    before = user.git("ls-remote", "wharf", "refs/heads/main")
    pids = {key: row.get("pid") for key, row in user.status().items()}
    begun = time.monotonic()
    user.wharf("up")
    assert time.monotonic() - begun < 60
    assert user.git("ls-remote", "wharf", "refs/heads/main") == before
    assert {key: row.get("pid") for key, row in user.status().items()} == pids


def test_every_link_of_the_lineage_holds(user: User) -> None:
    lineage = json.loads(user.wharf("lineage", "tumor", "--env", "prod", "--json"))
    assert lineage["verified"] is True
    assert all(link["ok"] for link in lineage["links"])


def test_a_dead_service_comes_back_without_a_lost_request(user: User) -> None:
    row = user.status()["tumor", "prod"]
    psutil.Process(row["pid"]).send_signal(signal.SIGKILL)
    for _ in range(20):
        answer = requests.post(row["url"] + "/predict", json={"rows": rows_of_tumor(1)}, timeout=60)
        assert answer.status_code == 200
    assert user.wait_for("tumor", "prod", 1)["pid"] != row["pid"]


def test_the_releases_come_back_by_git_pull(user: User) -> None:
    head = user.git("rev-parse", "HEAD")
    user.git("pull", "--quiet", "wharf", "main")
    assert user.git("merge-base", head, "HEAD") == head  # nothing of the user's was rewritten
    release = yaml.safe_load((user.clone / "gitops/releases/prod/tumor.yaml").read_text())
    assert release["version"] == 1
    user.wharf("validate")


def test_a_hand_written_release_is_refused(user: User) -> None:
    release = user.clone / "gitops/releases/prod/tumor.yaml"
    release.write_text(release.read_text().replace("version: 1", "version: 7"))
    user.git("commit", "-qam", "Just a small change")
    user.git("push", "wharf", "HEAD:main", code=1)
    assert "gitops/releases/prod/tumor.yaml" in user.said
    user.git("reset", "-q", "--hard", "HEAD~1")


def test_a_new_version_takes_over_and_rollback_is_a_commit(user: User) -> None:
    contract = user.clone / "models/tumor/model.yaml"
    contract.write_text(contract.read_text().replace("C: 0.3", "C: 0.5"))
    user.git("commit", "-qam", "Regularise tumor less")
    user.git("push", "-q", "wharf", "HEAD:main")
    user.wharf("ship", "tumor")
    user.wait_for("tumor", "dev", 2)
    user.wharf("promote", "tumor", "--to", "prod", "--version", "2", code=3)  # it was never in staging
    user.wharf("promote", "tumor", "--to", "staging")
    user.wait_for("tumor", "staging", 2)
    user.wharf("rollback", "tumor", "--env", "staging")
    user.wait_for("tumor", "staging", 1)
    actions = [entry["action"] for entry in json.loads(user.wharf("history", "tumor", "--env", "staging", "--json"))]
    assert actions == ["rollback", "promote", "promote"]


def test_drift_ends_in_a_proposal_and_not_in_a_deployment(user: User) -> None:
    before = user.status()["tumor", "prod"]["version"]
    user.wharf("demo")
    assert "promote/" in user.git("ls-remote", "wharf", "refs/heads/promote/*")
    assert user.status()["tumor", "prod"]["version"] == before


def test_a_new_model_works_as_it_stands(user: User) -> None:
    user.wharf("new", "wine")
    user.git("add", "-A")
    user.git("commit", "-q", "-m", "Add wine")
    user.wharf("validate")
    user.git("pull", "--quiet", "--no-rebase", "--no-edit", "wharf", "main")
    user.git("push", "-q", "wharf", "HEAD:main")
    user.wharf("ship", "wine")
    row = user.wait_for("wine", "dev", 1)
    contract = yaml.safe_load((user.clone / "models/wine/model.yaml").read_text())
    example = [column["min"] for column in contract["data"]["columns"]]
    answer = requests.post(row["url"] + "/predict", json={"rows": [example]}, timeout=10)
    assert answer.status_code == 200, answer.text


def test_the_pages_in_a_real_browser(user: User, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH")
    index = user.wharf("ui").strip()
    overview = dom(browser, index, tmp_path)
    for name in ("tumor", "digits", "movies", "wine"):
        assert f'href="{name}.html"' in overview
    tumor = dom(browser, index.replace("index.html", "tumor.html"), tmp_path)
    assert "no target answers" not in tumor
    assert "<svg" in tumor  # metrics over versions
    assert "drift-prod.html" in tumor
    report = dom(browser, index.replace("index.html", "reports/tumor/v1.html"), tmp_path)
    assert "passed" in report


def dom(browser: str, address: str, folder: Path) -> str:
    """Return the page as the browser understood it; fails when the browser reports an error on it."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--disable-quic", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [browser, *flags, "--enable-logging=stderr", "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def test_down_stops_everything(user: User) -> None:
    pids = [row["pid"] for row in user.status().values()]
    user.wharf("down")
    assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody has collected yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
