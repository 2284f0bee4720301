"""The loop in seconds: each step cold and warm, and the time from a push until the new version answers.

Run with `python -m tests.bench.bench_loop`. Cold is a fresh clone whose environment is installed and whose `.wharf`
is empty; warm is the same command again.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from pathlib import Path

import requests
from sklearn.datasets import load_breast_cancer

from tests.e2e.newcomer import User, newcomer

ROUNDS = 5
_STEP = re.compile(r"^  ✓ (.+?)  (?:.*  )?([0-9.]+)s$")


def steps(said: str) -> dict[str, float]:
    """Return the seconds of each step that a command showed on standard error."""
    found = (match for line in said.splitlines() if (match := _STEP.match(line)))
    return {match[1]: float(match[2]) for match in found}


def timed(user: User, *words: str) -> tuple[float, dict[str, float]]:
    begun = time.monotonic()
    user.wharf(*words)
    return time.monotonic() - begun, steps(user.said)


def until_answered(user: User, url: str, version: int) -> float:
    """Return the seconds until `url` answers with `version`."""
    begun, row = time.monotonic(), load_breast_cancer(return_X_y=True)[0][:1].tolist()
    while requests.post(f"{url}/predict", json={"rows": row}, timeout=30).json()["version"] != version:
        time.sleep(0.02)
    return time.monotonic() - begun


def takeover(user: User) -> list[float]:
    """Switch dev between two versions by commits; return the seconds from the end of each push to the new answer."""
    contract = user.clone / "models/tumor/model.yaml"
    contract.write_text(contract.read_text().replace("C: 0.3", "C: 0.5"))
    user.git("commit", "-qam", "Regularise tumor less")
    user.git("pull", "-q", "--no-rebase", "--no-edit", "wharf", "main")
    user.git("push", "-q", "wharf", "HEAD:main")
    user.wharf("ship", "tumor")
    url = user.wait_for("tumor", "dev", 2)["url"]
    seconds: list[float] = []
    for turn in range(ROUNDS):
        version = 1 + turn % 2
        user.wharf("promote", "tumor", "--to", "dev", "--version", str(version))
        seconds.append(until_answered(user, url, version))
        user.wait_for("tumor", "dev", version)
    return seconds


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="wharf-bench-") as folder:
        user = newcomer(Path(folder) / "modelwharf")
        try:
            cold, by_step = timed(user, "up")
            warm, again = timed(user, "up")
            print("## The loop\n\n| step | cold, s | again, s |\n|---|---:|---:|")
            for name, seconds in by_step.items():
                print(
                    f"| {name} | {seconds:.1f} | {again[name]:.1f} |"
                    if name in again
                    else f"| {name} | {seconds:.1f} | |"
                )
            print(f"| **wharf up** | {cold:.1f} | {warm:.1f} |\n")
            waits = takeover(user)
            print(f"End of the push until the new version answers, {ROUNDS} times: ", end="")
            print(f"median {statistics.median(waits):.1f} s, worst {max(waits):.1f} s\n")
        finally:
            user.wharf("down")


if __name__ == "__main__":
    main()
