"""The evidence record: what the gate found, as the exact bytes whose sha256 a release pins.

On the run it lies twice: `evidence/evidence.json` is the newest, `evidence/<first 16 hex of its sha256>/evidence.json`
stays for ever, so that gating a run again (against a newer champion) never takes the proof from a released version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ci.errors import Refusal
from ci.files import sha256_bytes

SCHEMA = 1
NEWEST = "evidence/evidence.json"
REPORT = "evidence/report.html"
VERDICT_TAG = "wharf.verdict"
DIGEST_TAG = "wharf.evidence_sha256"


@dataclass(frozen=True)
class Check:
    """One check of the gate: `passed` compares `value` with `bound` (both None where the check has no figure)."""

    name: str
    value: float | None
    bound: float | None
    passed: bool
    detail: str

    def line(self) -> str:
        """Return the check as one line: name, figure, bound, reason."""
        figure = "not measured" if self.value is None else f"{self.value:.4g}"
        bound = "" if self.bound is None else f" (bound {self.bound:g})"
        return f"{self.name}: {figure}{bound}: {self.detail}"


@dataclass(frozen=True)
class Interval:
    """A metric with its bootstrap interval; `low` and `high` are None where it cannot be resampled."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Champion:
    """The version that is released in the most advanced environment."""

    environment: str
    version: int
    run: str


@dataclass(frozen=True)
class Evidence:
    """What the gate found about one run."""

    model: str
    run: str
    verdict: Literal["passed", "refused"]
    created: str  # UTC, ISO 8601: when the run ended, so that gating again gives the same record
    commit: str
    data_sha256: str
    artifact_sha256: str
    gate_sha256: str  # of the spec's gate section: other thresholds need a new evidence
    rows: int
    champion: Champion | None
    metrics: Mapping[str, Interval]
    checks: tuple[Check, ...]
    schema: int = SCHEMA
    reused: bool = field(default=False, compare=False)  # not part of the record: nothing was measured this time

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]


def dump(evidence: Evidence) -> bytes:
    """Return the record as JSON bytes: same evidence, same bytes."""
    record = asdict(evidence)
    del record["reused"]
    return (json.dumps(_finite(record), indent=2, sort_keys=True) + "\n").encode()


def _finite(value: Any) -> Any:
    """Replace what JSON does not know (NaN, infinity) by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def load(content: bytes, where: str) -> Evidence:
    """Read a record named `where` in errors; raises Refusal when it is not one."""
    try:
        raw: dict[str, Any] = json.loads(content)
        champion = raw["champion"]
        evidence = Evidence(
            model=str(raw["model"]),
            run=str(raw["run"]),
            verdict=raw["verdict"],
            created=str(raw["created"]),
            commit=str(raw["commit"]),
            data_sha256=str(raw["data_sha256"]),
            artifact_sha256=str(raw["artifact_sha256"]),
            gate_sha256=str(raw["gate_sha256"]),
            rows=int(raw["rows"]),
            champion=Champion(**champion) if champion else None,
            metrics={name: Interval(**entry) for name, entry in raw["metrics"].items()},
            checks=tuple(Check(**entry) for entry in raw["checks"]),
            schema=int(raw["schema"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{where}: not an evidence record ({type(error).__name__}: {error})") from None
    if evidence.schema != SCHEMA:
        raise Refusal(f"{where}: schema {evidence.schema} is not the known {SCHEMA}")
    agreed = evidence.passed == (bool(evidence.checks) and not evidence.failed)
    if evidence.verdict not in {"passed", "refused"} or not agreed:
        raise Refusal(f"{where}: verdict '{evidence.verdict}' disagrees with its checks")
    return evidence


def digest(content: bytes) -> str:
    """Return the evidence digest: the sha256 of the exact bytes, as hex."""
    return sha256_bytes(content)


def kept_path(sha256: str, name: str = "evidence.json") -> str:
    """Return where the run keeps the evidence with this digest (or the report beside it)."""
    return f"evidence/{sha256[:16]}/{name}"
