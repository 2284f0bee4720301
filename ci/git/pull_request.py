"""The text of a promotion's pull request: what changes, and the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ci import registry
from ci.errors import Unavailable
from ci.git import github
from ci.git.offer import Draft
from ci.git.remote import target
from ci.workspace import Workspace, shown_uri, tracking_uri


def text_of(workspace: Workspace, draft: Draft) -> str:
    """Return the pull request's text in GitHub's Markdown; reads the evidence from the registry."""
    release = draft.release
    evidence = registry.evidence(workspace, release.model, release.version)
    pages = f"{github.server()}/{target(workspace).repository}"
    return "\n".join(
        [
            *_change(draft),
            "",
            *_metrics(evidence),
            "",
            *_checks(evidence),
            "",
            "### Where it comes from",
            *_links(workspace, draft, pages),
            "",
            "Written by `wharf promote`. Merging this releases it; closing it changes nothing.",
            "",
            f"Wharf-Release: {release.environment}/{release.model}@{release.version}",
            f"Wharf-Action: {draft.action}",
            "",
        ]
    )


def _change(draft: Draft) -> list[str]:
    release, before = draft.release, draft.before
    was = f"version {before.version}" if before else "nothing"
    return [f"**{release.model}** in **{release.environment}**: {was} → **version {release.version}**"]


def _metrics(evidence: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {_cell(name)} | {_number(metric.get('value'))} | {_interval(metric)} |"
        for name, metric in evidence.get("metrics", {}).items()
    ]
    head = f"### Metrics on {evidence.get('rows', '?')} held-out rows"
    return [head, "", "| metric | value | interval |", "|---|---|---|", *rows]


def _checks(evidence: Mapping[str, Any]) -> list[str]:
    champion = evidence.get("champion")
    against = (
        f"version {champion['version']} of {champion['environment']}" if champion else "no champion yet: none was there"
    )
    rows = [
        f"| {'✅' if check['passed'] else '❌'} | {_cell(check['name'])} | {_number(check.get('value'))} "
        f"| {_number(check.get('bound'))} | {_cell(check.get('detail', ''))} |"
        for check in evidence.get("checks", [])
    ]
    head = [f"### Gate: {evidence.get('verdict', '?')}", f"Compared with {against}."]
    return [*head, "", "| | check | value | bound | detail |", "|---|---|---|---|---|", *rows]


def _links(workspace: Workspace, draft: Draft, pages: str) -> list[str]:
    release = draft.release
    return [
        f"- commit [`{release.commit[:10]}`]({pages}/commit/{release.commit})",
        f"- MLflow run {_run(workspace, release.run)}, registry version {release.version}",
        f"- data `{release.data}`",
        f"- evidence `{release.evidence}`",
        f"- artifact `{release.artifact}`",
        f"- image `{release.image}`",
        f"- all of it checked link by link: `wharf lineage {release.model} --env {release.environment}`",
    ]


def _run(workspace: Workspace, run: str) -> str:
    """Return the run as a link where the MLflow is one that the reader can reach."""
    try:
        uri = tracking_uri(workspace)
    except Unavailable:
        return f"`{run}`"
    host = urlsplit(uri).hostname
    reachable = uri.startswith("http") and host not in {"localhost", "127.0.0.1", "::1"}
    return f"[`{run}`]({shown_uri(uri).rstrip('/')}/#/runs/{run})" if reachable else f"`{run}`"


def _interval(metric: Mapping[str, Any]) -> str:
    if metric.get("low") is None or metric.get("high") is None:
        return ""
    return f"{_number(metric['low'])} to {_number(metric['high'])}"


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else _cell(value)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
