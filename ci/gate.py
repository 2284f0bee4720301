"""`wharf gate MODEL`: check a run on held-out rows with the artifact that will serve, and store the evidence.

Checks: the artifact is the one that was trained and is small enough; the commit of the run holds its code; no held-out
row was trained on; predictions are finite; every metric against its thresholds and against the champion; slices;
latency. A check that cannot run is a failed check. The evidence is stored on the run whether it passed or not.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ci.console import say, step, table
from ci.errors import Refusal
from ci.files import sha256_bytes, sha256_file, write_atomic
from ci.gating import evidence as record
from ci.gating.champion import champion as find_champion
from ci.gating.evidence import Champion, Check, Evidence, Interval
from ci.mlflow_api.store import NoArtifact, Run, Store, connect
from ci.registry import finished_run, read_evidence, serving_file
from ci.workspace import Workspace, load_spec

if TYPE_CHECKING:
    import pandas as pd

    from ci.gating.checks import Rival
    from ci.gating.scoring import Scored
    from ci.release import Release
    from models.spec import ModelSpec


_DIRTY_TAG = "wharf.dirty"


class GateRefusal(Refusal):
    """The gate said no; `evidence` holds all it found."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        count = f"{len(evidence.failed)} of {len(evidence.checks)} checks failed"
        super().__init__(
            [f"gate of '{evidence.model}' refused run {evidence.run}: {count}", *(c.line() for c in evidence.failed)],
            tip=f"the report shows why: .wharf/{report_file(evidence.model, evidence.run)}",
        )


@dataclass(frozen=True)
class Material:
    """What the report is drawn from; parts that could not be had are None."""

    frame: pd.DataFrame | None
    scored: Scored | None
    rival: Rival | None


def report_file(name: str, run_id: str) -> str:
    """Return where the report of a run is kept below `.wharf/`."""
    return f"reports/{name}/gate-{run_id}.html"


def gate(workspace: Workspace, name: str, run_id: str | None = None) -> Evidence:
    """Gate a run of `name` (None: the newest finished one) and return its evidence, which is then stored on the run.

    Evidence that passed before, for the same artifact, thresholds and champion, is returned as it is (`reused`).
    Raises GateRefusal when a check failed, after the evidence was stored; Mistake for a run that is not there or not
    finished; Unavailable when MLflow or the followed git remote does not answer.
    """
    spec = load_spec(workspace, name)
    store = connect(workspace)
    run = finished_run(store, name, run_id)
    found = find_champion(workspace, name)
    released = found if found and found[0].run != run.id else None  # nobody is his own rival
    with tempfile.TemporaryDirectory(prefix="wharf-gate-") as scratch:
        folder = Path(scratch)
        fetched = _fetch(store, run, folder / "run")
        known = _still_valid(store, spec, run, released, is_champion=found is not None and released is None)
        if known and fetched.artifact == known.artifact_sha256:
            return replace(known, reused=True)
        evidence, material = _judge(store, spec, run, fetched, released, folder)
    _store(workspace, store, spec, run, evidence, material)
    if not evidence.passed:
        raise GateRefusal(evidence)
    return evidence


@dataclass(frozen=True)
class _Fetched:
    """What was downloaded of a run; `missing` says why a part of it was not."""

    folder: Path
    file: Path | None
    artifact: str | None  # sha256 of what was downloaded
    missing: str = ""


def _fetch(store: Store, run: Run, folder: Path) -> _Fetched:
    """Download serving.json and the artifact of a run into `folder`."""
    try:
        serving, path = serving_file(store, run)
        file = store.download(run, path, folder / Path(path).name)
    except (Refusal, NoArtifact) as error:
        return _Fetched(folder, None, None, error.lines[0])
    write_atomic(folder / "serving.json", json.dumps(serving))
    return _Fetched(folder, file, sha256_file(file))


def gate_sha256(spec: ModelSpec) -> str:
    """Return the digest of what the gate demands: evidence holds for these demands only."""
    demands = {"task": spec.task, "classes": spec.data.classes, "gate": spec.gate.model_dump()}
    return sha256_bytes(json.dumps(demands, sort_keys=True).encode())


def _still_valid(
    store: Store, spec: ModelSpec, run: Run, released: tuple[Champion, Release] | None, is_champion: bool
) -> Evidence | None:
    """Return evidence of an earlier gate that passed and answers the same question.

    A run that is the champion itself has met the champion of its day: that evidence stays.
    """
    try:
        found = read_evidence(store, run)
    except Refusal:  # not a record that this version reads: gate again
        return None
    if found is None or not found[0].passed or not _committed(run).passed:
        return None
    known = found[0]
    before = known.champion.run if known.champion else None
    same_rival = is_champion or before == (released[0].run if released else None)
    same_run = (known.run, known.artifact_sha256) == (run.id, run.tags.get("wharf.artifact_sha256"))
    return known if same_rival and same_run and known.gate_sha256 == gate_sha256(spec) else None


def _judge(
    store: Store,
    spec: ModelSpec,
    run: Run,
    fetched: _Fetched,
    released: tuple[Champion, Release] | None,
    folder: Path,
) -> tuple[Evidence, Material]:
    """Run all checks; returns the evidence and what its report is drawn from."""
    from ci.gating import checks as check
    from ci.gating.scoring import score

    done = [_artifact_check(run, fetched), *_tag_checks(run)]
    if fetched.file:
        done.append(check.size(fetched.file.stat().st_size / 1e6, spec.gate.artifact_mb))
    else:
        done.append(check.unrunnable("artifact.size_mb", spec.gate.artifact_mb, fetched.missing))
    frame, reference, reason = _frames(store, run, folder)
    if frame is not None and reference is not None:
        done.append(check.attempt("data.unseen", 0, lambda: check.unseen(frame, reference)))
    else:
        done.append(check.unrunnable("data.unseen", 0, reason))
    scored: Scored | None = None
    if frame is not None:
        try:
            scored = score(fetched.folder, run.tags.get("wharf.artifact_sha256", ""), frame, spec)
        except Exception as error:  # fail closed: whatever a broken artifact raises, the checks that need it fail
            reason = str(error) or type(error).__name__
    rival: Rival | None = None
    metrics: Mapping[str, Interval] = {}
    if frame is None or scored is None:
        demanded = check.names_of(spec.gate, released is not None)
        done += [check.unrunnable(name, bound, reason) for name, bound in demanded]
    else:
        rival = _rival(store, spec, frame, released, folder / "champion") if released else None
        if rival and any(rule.champion for rule in spec.gate.metrics.values()):
            done.append(_champion_unseen(store, rival.champion, frame, folder / "champion"))
        metrics = check.measure(spec.gate, scored)
        done += _prediction_checks(spec, scored, rival, frame, metrics)
    verdict = "passed" if all(one.passed for one in done) else "refused"
    evidence = Evidence(
        model=spec.name,
        run=run.id,
        verdict=verdict,
        created=datetime.fromtimestamp((run.ended or run.started) / 1000, UTC).isoformat(timespec="seconds"),
        commit=run.tags.get("wharf.commit", ""),
        data_sha256=run.tags.get("wharf.data_sha256", ""),
        artifact_sha256=run.tags.get("wharf.artifact_sha256", ""),
        gate_sha256=gate_sha256(spec),
        rows=0 if frame is None else len(frame),
        champion=released[0] if released else None,
        metrics=metrics,
        checks=tuple(done),
    )
    return evidence, Material(frame, scored, rival)


def _prediction_checks(
    spec: ModelSpec, scored: Scored, rival: Rival | None, frame: pd.DataFrame, metrics: Mapping[str, Interval]
) -> list[Check]:
    from ci.gating import checks as check

    done = [check.finite(scored)]
    for metric, rule in spec.gate.metrics.items():
        for kind, bound in (("min", rule.min), ("max", rule.max)):
            if bound is not None:
                done.append(check.threshold(metric, kind, bound, metrics[metric]))
        if rule.champion:
            against = rule.champion
            done.append(
                check.attempt(
                    f"metric.{metric}.champion",
                    -against.max_drop,
                    lambda m=metric, a=against: check.against_champion(m, a, scored, rival),
                )
            )
    for rule in spec.gate.slices:
        done += check.attempt_all(f"slice.{rule.column}.{rule.metric}", lambda r=rule: check.slices(r, scored, frame))
    bound = spec.gate.latency_p99_ms
    return [*done, check.attempt("latency.p99_ms", bound, lambda: check.latency(scored, bound))]


def _artifact_check(run: Run, fetched: _Fetched) -> Check:
    said = run.tags.get("wharf.artifact_sha256", "")
    if fetched.artifact is None:
        return Check("artifact.sha256", None, None, False, f"could not be checked: {fetched.missing}")
    same = fetched.artifact == said
    words = "is what training recorded" if same else f"is not what training recorded ({said[:16] or 'nothing'}…)"
    return Check("artifact.sha256", None, None, same, f"{fetched.artifact[:16]}… {words}")


def _tag_checks(run: Run) -> list[Check]:
    """Check that the run names its data and its commit in full: without them nothing can be followed back.

    Tags can be changed by hand, the digest of the recorded dataset input cannot: both must agree.
    """
    data, commit = run.tags.get("wharf.data_sha256", ""), run.tags.get("wharf.commit", "")
    named = bool(re.fullmatch(r"[0-9a-f]{64}", data))
    said = f"{data[:16]}… is the recorded dataset" if named else f"the run's tag wharf.data_sha256 is '{data}'"
    if named and not any(digest and data.startswith(digest) for digest in run.datasets):
        recorded = ", ".join(run.datasets) or "none"
        named, said = False, f"the run's tag says {data[:36]}, its recorded dataset is {recorded}"
    known = bool(re.fullmatch(r"[0-9a-f]{40}", commit))
    return [
        Check("data.digest", None, None, named, said),
        Check("run.commit", None, None, known, commit if known else f"the run's tag wharf.commit is '{commit}'"),
        _committed(run),
    ]


def _committed(run: Run) -> Check:
    """Check that the commit of the run holds the code that the run is made from."""
    dirty = run.tags.get(_DIRTY_TAG, "")
    detail = "all code of the run is in its commit"
    if dirty == "true":
        detail = "made from changes that are in no commit: commit them and train again"
    elif dirty != "false":
        detail = f"the run's tag {_DIRTY_TAG} is '{dirty}', not 'false'"
    return Check("run.committed", None, None, dirty == "false", detail)


def _frames(store: Store, run: Run, folder: Path) -> tuple[pd.DataFrame | None, pd.DataFrame | None, str]:
    """Return the held-out rows and the kept training rows, or None and the reason."""
    import pandas as pd

    found: list[pd.DataFrame | None] = []
    reason = ""
    for name in ("holdout.parquet", "reference.parquet"):
        try:
            found.append(pd.read_parquet(store.download(run, name, folder / name)))
        except (NoArtifact, OSError, ValueError) as error:  # pyarrow's errors are ValueError and OSError
            reason = reason or f"{name}: {error}"
            found.append(None)
    if found[0] is not None and found[0].empty:
        return None, found[1], "holdout.parquet: no rows"
    return found[0], found[1], reason


def _rival(
    store: Store, spec: ModelSpec, frame: pd.DataFrame, released: tuple[Champion, Release], folder: Path
) -> Rival:
    """Score the champion on the same held-out rows, with the artifact that its release pins."""
    from ci.gating.checks import Rival
    from ci.gating.scoring import score

    champion, release = released
    run = store.run(champion.run)
    if run is None:
        return Rival(champion, None, f"MLflow has no run {champion.run}")
    fetched = _fetch(store, run, folder)
    if fetched.file is None:
        return Rival(champion, None, fetched.missing)
    try:
        return Rival(champion, score(folder, release.artifact.removeprefix("sha256:"), frame, spec))
    except Exception as error:  # fail closed: the checks against the champion fail with this reason
        return Rival(champion, None, str(error) or type(error).__name__)


def _champion_unseen(store: Store, champion: Champion, frame: pd.DataFrame, folder: Path) -> Check:
    """Check that the champion's training rows, as far as its run kept them, hold none of the held-out rows."""
    import pandas as pd

    from ci.gating import checks as check

    def compare() -> Check:
        run = store.run(champion.run)
        if run is None:
            return check.unrunnable("champion.unseen", 0, f"MLflow has no run {champion.run}")
        kept = store.download(run, "reference.parquet", folder / "reference.parquet")
        return check.unseen_by(champion, frame, pd.read_parquet(kept))

    return check.attempt("champion.unseen", 0, compare)


def _store(
    workspace: Workspace, store: Store, spec: ModelSpec, run: Run, evidence: Evidence, material: Material
) -> None:
    """Attach evidence and report to the run; the digest tag comes last and makes it count."""
    from ci.pages.report import evidence_report

    content = record.dump(evidence)
    sha256 = record.digest(content)
    page = evidence_report(evidence, sha256, spec, run, material).encode()
    write_atomic(workspace.state / report_file(spec.name, run.id), page)
    files = {
        record.kept_path(sha256, "report.html"): page,
        record.kept_path(sha256): content,
        record.REPORT: page,
        record.NEWEST: content,
    }
    for path, data in files.items():
        store.write(run, path, data)
    store.set_run_tags(run.id, {record.VERDICT_TAG: evidence.verdict, record.DIGEST_TAG: sha256})


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name of the model")
    parser.add_argument("--run", help="MLflow run id (default: the newest finished run)")
    parser.add_argument("--json", action="store_true", help="print the evidence as JSON")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    with step(f"gate {options.model}") as progress:
        try:
            found = gate(workspace, options.model, options.run)
            progress.note = f"passed{' before, nothing to do' if found.reused else ''}"
            refusal = None
        except GateRefusal as error:
            found, refusal = error.evidence, error
            progress.note = "refused"
    print(record.dump(found).decode().rstrip() if options.json else _shown(found))
    report = workspace.state / report_file(options.model, found.run)
    if report.is_file():
        say(f"  report: {report}")
    if refusal:
        raise refusal
    return 0


def _shown(found: Evidence) -> str:
    def figure(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    rows = [
        ["✓" if one.passed else "✗", one.name, figure(one.value), figure(one.bound), one.detail] for one in found.checks
    ]
    return table(["", "CHECK", "VALUE", "BOUND", "DETAIL"], rows)
