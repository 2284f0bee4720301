"""`wharf ui`: a static site with every model, its versions by environment, drift and links.

`index.html` has one row a model; each model has a page of its own. Nothing is fetched when a page is read, so the
folder can be opened from the disk or published by CI as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ci import history as releases
from ci.console import say, step
from ci.environments import load_all
from ci.errors import Mistake, Refusal, Unavailable
from ci.files import write_atomic
from ci.gating.evidence import kept_path
from ci.mlflow_api.store import NoArtifact, Store, connect
from ci.pages import charts, html
from ci.registry import evidence_bytes, facts
from ci.release import Release
from ci.status import Application, applications
from ci.workspace import Workspace, load_spec, shown_uri

if TYPE_CHECKING:
    from models.spec import ModelSpec

NEWEST = 20  # versions a page shows: the rest is in MLflow
_MOODS: dict[str, html.Mood] = {"Healthy": "good", "Synced": "good", "Degraded": "bad", "OutOfSync": "warn"}


@dataclass(frozen=True)
class VersionRow:
    """One registered version with what the gate measured."""

    number: int
    run: str
    commit: str
    metrics: Mapping[str, float]
    report: str  # address of its gate report, relative to the site; empty where there is none


@dataclass(frozen=True)
class ModelPage:
    """Everything that the site shows of one model."""

    spec: ModelSpec
    released: Mapping[str, Release]  # by environment
    running: Mapping[str, Application]  # by environment; empty where no target answers
    versions: Sequence[VersionRow]  # newest first
    drift: Mapping[str, dict[str, Any]]  # newest report of `wharf monitor` by environment
    past: Sequence[dict[str, Any]]  # newest first


def write_site(workspace: Workspace, folder: Path) -> list[Path]:
    """Write the site into `folder` and return its pages, the index first; raises Unavailable when MLflow is down."""
    environments = [environment.name for environment in load_all(workspace.root)]
    store = connect(workspace)
    running = _running_now(workspace)
    with ThreadPoolExecutor(8) as pool:
        pages = list(
            pool.map(
                lambda name: _gather(workspace, store, name, environments, running, folder), workspace.model_names()
            )
        )
    written = [folder / "index.html"]
    write_atomic(written[0], _index(pages, environments, shown_uri(store.uri)))
    for page in pages:
        written.append(folder / f"{page.spec.name}.html")
        write_atomic(written[-1], _model(page, environments, shown_uri(store.uri)))
    return written


def _running_now(workspace: Workspace) -> list[Application]:
    """Return what runs; nothing where the cluster does not answer: the rest of the pages is worth having."""
    try:
        return applications(workspace)
    except Unavailable as error:
        say(f"  {error.lines[0]}: the pages say what is released, not how it is")
        return []


def _gather(
    workspace: Workspace, store: Store, name: str, environments: list[str], running: list[Application], folder: Path
) -> ModelPage:
    revision = releases.revision(workspace)
    released = {e: releases.release_at(workspace.root, revision, e, name) for e in environments}
    drift: dict[str, dict[str, Any]] = {}
    for environment in environments:
        source = workspace.state / "reports" / name / environment
        if (source / "latest.json").is_file():
            drift[environment] = json.loads((source / "latest.json").read_text())
            write_atomic(folder / "reports" / name / f"drift-{environment}.html", (source / "latest.html").read_bytes())
    newest = store.newest_number(name) or 0
    rows = [_version(workspace, store, name, number, folder) for number in range(newest, max(newest - NEWEST, 0), -1)]
    return ModelPage(
        spec=load_spec(workspace, name),
        released={environment: release for environment, release in released.items() if release},
        running={app.environment: app for app in running if app.model == name},
        versions=[row for row in rows if row],
        drift=drift,
        past=releases.rows(releases.history(workspace, name))[:NEWEST],
    )


def _version(workspace: Workspace, store: Store, name: str, number: int, folder: Path) -> VersionRow | None:
    """Return what is known of a version, None for one that was deleted or never completed."""
    try:
        known = facts(workspace, name, number)
        proof = json.loads(evidence_bytes(store, name, known.run, known.evidence))
    except (Mistake, Refusal):
        return None
    metrics = {
        metric: float(found["value"]) for metric, found in proof["metrics"].items() if found["value"] is not None
    }
    address, run = f"reports/{name}/v{number}.html", store.run(known.run)
    if run is None:
        return VersionRow(number, known.run, known.commit, metrics, "")
    if not (folder / address).is_file():  # evidence of a version never changes
        try:
            write_atomic(folder / address, store.read(run, kept_path(known.evidence, "report.html")))
        except NoArtifact:
            address = ""
    return VersionRow(number, known.run, known.commit, metrics, address)


def _index(pages: Sequence[ModelPage], environments: Sequence[str], mlflow: str) -> str:
    rows = [
        [
            html.link(page.spec.name, f"{page.spec.name}.html"),
            page.spec.team,
            *(_cell(page, environment) for environment in environments),
            _drift_badge(page),
            page.versions[0].number if page.versions else "none",
        ]
        for page in pages
    ]
    overview = html.table(["model", "team", *environments, "drift", "newest version"], rows)
    links = html.paragraph(html.join(html.text("Runs and versions:"), html.link("MLflow", mlflow)))
    note = "What git says should run in each environment, and how it is."
    return html.page("Models", [html.Section("Overview", overview, note), html.Section("Links", links)])


def _cell(page: ModelPage, environment: str) -> html.Html:
    release, app = page.released.get(environment), page.running.get(environment)
    if release is None:
        return html.text("-")
    parts = [html.text(f"v{release.version}")]
    if app:
        parts.append(html.badge(app.health, _MOODS.get(app.health, "plain")))
        if app.sync != "Synced":
            parts.append(html.badge(app.sync, _MOODS.get(app.sync, "plain")))
    return html.join(*parts)


def _drift_badge(page: ModelPage) -> html.Html:
    if not page.drift:
        return html.text("not measured")
    return _alerts_badge(sum(len(report["alerts"]) for report in page.drift.values()))


def _alerts_badge(count: int) -> html.Html:
    return html.badge(f"{count} alert{'s' * (count != 1)}", "bad") if count else html.badge("no alert", "good")


def _model(page: ModelPage, environments: Sequence[str], mlflow: str) -> str:
    spec = page.spec
    about = [("task", spec.task), ("team", spec.team), ("owner", spec.owner)]
    sections = [
        html.Section("What runs", _running(page, environments)),
        html.Section("Versions", _versions(page, mlflow), "Measured by the gate on held-out data."),
        html.Section("Live traffic", _drift(page), "Newest report of `wharf monitor` by environment."),
        html.Section("History", _history(page), "Who released what, from git."),
        html.Section("About", html.definitions([*about, ("all models", html.link("overview", "index.html"))])),
    ]
    return html.page(spec.name, sections, subtitle=spec.description)


def _running(page: ModelPage, environments: Sequence[str]) -> html.Html:
    rows: list[list[object]] = []
    for environment in environments:
        release, app = page.released.get(environment), page.running.get(environment)
        if release is None:
            rows.append([environment, "no release", "", "", "", ""])
            continue
        address = html.link(app.url, app.url) if app and app.url else ""
        state = html.badge(app.health, _MOODS.get(app.health, "plain")) if app else "no target answers"
        commit, bento = html.code(release.commit[:10]), html.code(release.bento)
        rows.append([environment, f"v{release.version}", state, address, commit, bento])
    return html.table(["environment", "version", "health", "address", "trained at commit", "bento"], rows)


def _versions(page: ModelPage, mlflow: str) -> html.Html:
    if not page.versions:
        return html.paragraph(f"None yet: wharf ship {page.spec.name}")
    metrics = sorted({metric for row in page.versions for metric in row.metrics})
    where = {row.number: [e for e, r in page.released.items() if r.version == row.number] for row in page.versions}
    rows = [
        [
            html.link(f"v{row.number}", row.report) if row.report else f"v{row.number}",
            ", ".join(where[row.number]) or "-",
            *(f"{row.metrics[metric]:.4f}" if metric in row.metrics else "-" for metric in metrics),
            html.link(row.run[:8], f"{mlflow}/#/runs/{row.run}") if mlflow.startswith("http") else row.run[:8],
            html.code(row.commit[:10]),
        ]
        for row in page.versions
    ]
    numeric = range(2, 2 + len(metrics))
    listed = html.table(["version", "runs in", *metrics, "run", "commit"], rows, numeric=list(numeric))
    if len(page.versions) == 1:  # a line needs two points
        return listed
    return html.join(listed, html.grid([_over_versions(page, metric) for metric in page.spec.gate.metrics]))


def _over_versions(page: ModelPage, metric: str) -> html.Html:
    known = [row for row in reversed(page.versions) if metric in row.metrics]
    numbers = [float(row.number) for row in known]
    if len(known) < 2:
        return html.Html("")
    series = [charts.Series(metric, numbers, [row.metrics[metric] for row in known])]
    rule = page.spec.gate.metrics[metric]
    ends = [numbers[0], numbers[-1]]
    for name, bound in (("least", rule.min), ("most", rule.max)):
        if bound is not None:
            series.append(charts.Series(f"{name} allowed", ends, [bound, bound], charts.COLOURS[1], dashed=True))
    title = f"{metric} by version"
    return charts.lines(title, series, "version", metric)


def _drift(page: ModelPage) -> html.Html:
    if not page.drift:
        return html.paragraph(f"Not measured yet: wharf monitor {page.spec.name}")
    parts: list[html.Html] = []
    for environment, report in page.drift.items():
        worst = sorted(report["features"], key=lambda found: -(found["effect"] or 0) / found["threshold"])[:5]
        rows = [[found["feature"], found["method"], _figure(found["effect"]), found["threshold"]] for found in worst]
        full = html.link("the report", f"reports/{page.spec.name}/drift-{environment}.html")
        mood = _alerts_badge(len(report["alerts"]))
        head = html.join(html.text(f"{environment}, v{report['version']}, {report['rows']} rows: "), mood, full)
        parts += [
            html.paragraph(head),
            html.table(["most moved feature", "method", "effect", "threshold"], rows, [2, 3]),
        ]
    return html.join(*parts)


def _figure(value: float | None) -> str:
    return "not judged" if value is None else f"{value:.3f}"


def _history(page: ModelPage) -> html.Html:
    if not page.past:
        return html.paragraph("Never released.")
    rows = [
        [
            str(entry["when"])[:16].replace("T", " "),
            entry["environment"],
            entry["action"],
            f"{_v(entry['from'])} → {_v(entry['to'])}",
            entry["by"],
            html.code(str(entry["commit"])[:10]),
        ]
        for entry in page.past
    ]
    return html.table(["when", "environment", "action", "version", "by", "commit"], rows)


def _v(number: object) -> str:
    return "none" if number is None else f"v{number}"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder to write to (default: .wharf/ui)")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    folder = (options.out or workspace.state / "ui").resolve()
    with step("write the pages") as shown:
        pages = write_site(workspace, folder)
        shown.note = f"{len(pages)} pages"
    print(pages[0].as_uri())
    return 0
