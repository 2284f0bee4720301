"""`wharf up`: start the platform, carry the models through the loop, leave them serving.

The platform is the local target, or with `--target cluster` a Kubernetes cluster; what comes after is the same.
Every model that has no release yet is shipped to the first environment; the one named by `first_model` goes on
through all of them. A model that has a release is left alone, so running it again changes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

from ci import status
from ci.console import paint, say, step
from ci.errors import Mistake, Unavailable, WharfError
from ci.files import write_atomic
from ci.local import platform
from ci.workspace import Workspace, shown_uri

if TYPE_CHECKING:
    from ci.release import Release

SHOWN_FIRST = "tumor"  # needs no network, trains in a second
_HEAVY = ("mlflow", "pandas", "sklearn.pipeline", "skl2onnx", "matplotlib.pyplot")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--first", metavar="MODEL", help="the model that goes through all environments")
    parser.add_argument("--platform-only", action="store_true", help="start the platform and no model")
    parser.add_argument("--target", choices=["local", "cluster"], help="where the models run (default: where they did)")
    parser.add_argument(
        "--provider", metavar="NAME", help="of the cluster: kind, node or existing (default: by what is there)"
    )
    parser.add_argument("--context", metavar="NAME", help="the kubeconfig context of an existing cluster")
    parser.add_argument(
        "--yes", action="store_true", help="do not ask before touching a cluster that is not on this machine"
    )


@dataclass
class _Done:
    """What one `wharf up` did."""

    changes: list[str] = field(default_factory=list[str])
    faults: list[tuple[str, WharfError]] = field(default_factory=list[tuple[str, WharfError]])
    skipped: list[tuple[str, Unavailable]] = field(default_factory=list[tuple[str, Unavailable]])


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    names = workspace.model_names()
    first = first_model(names, options.first)
    with platform.only_one_up(workspace):
        done = _Done()
        mlflow, wait = _start(workspace, options, done)
        if not options.platform_only and _missing(workspace, names, first):
            _warm_up()
        wait()
        if not options.platform_only:
            _withdraw_orphans(workspace, names, done)
            _carry(workspace, first, _missing(workspace, names, first), done)
        _wait_for_all(workspace, done)
    _show(workspace, first, mlflow, done)
    return done.faults[0][1].exit_code if done.faults else 0


def first_model(names: list[str], wanted: str | None = None) -> str | None:
    """Return the model that goes through all environments: `wanted`, else `tumor`, else the first by name.

    Raises Mistake when `wanted` is none of `names`.
    """
    if wanted is not None and wanted not in names:
        raise Mistake(f"--first: no model '{wanted}'", tip=f"models here: {', '.join(names) or 'none'}")
    return wanted or (SHOWN_FIRST if SHOWN_FIRST in names else next(iter(names), None))


def _start(workspace: Workspace, options: argparse.Namespace, done: _Done) -> tuple[platform.Part, Callable[[], None]]:
    """Start the platform of the wanted target; return MLflow and what waits for it.

    Raises Mistake for options that do not fit the target, or where this checkout has another target now.
    """
    from ci.cluster import access

    known = access.load(workspace)
    target = options.target or ("cluster" if known or options.provider or options.context else "local")
    if target == "cluster":
        return _start_cluster(workspace, options)
    for word in ("provider", "context"):
        if getattr(options, word):
            raise Mistake(f"--{word}: is for a cluster", tip=f"wharf up --target cluster --{word} …")
    if known:
        raise Mistake(
            f"this checkout runs on a cluster ({known.provider}), and a checkout has one target at a time",
            tip="`make cluster-down` first, or use another clone",
        )
    return _start_local(workspace, done)


def _start_cluster(workspace: Workspace, options: argparse.Namespace) -> tuple[platform.Part, Callable[[], None]]:
    from ci.cluster import provider, up

    chosen = provider.choose(workspace, options.provider, context=options.context, agreed=options.yes)
    url = up.start(workspace, chosen)
    return platform.Part(url, False), lambda: None


def _start_local(workspace: Workspace, done: _Done) -> tuple[platform.Part, Callable[[], None]]:
    """Start the local platform; return MLflow and what waits for it, so that other work is done meanwhile."""
    from ci.local.origin import ensure, sync_user

    mlflow = platform.start_mlflow(workspace)
    with step("origin") as shown:
        fresh = not (workspace.state / "origin.git").is_dir()
        ensure(workspace)
        shown.note = sync_user(workspace)
        if fresh:
            done.changes.append("made the origin")
    with step("agent") as shown:
        agent = platform.start_agent(workspace)
        shown.note = "started" if agent.started else "already there"
    done.changes += ["started MLflow"] * mlflow.started + ["started the agent"] * agent.started

    def wait() -> None:
        with step("MLflow") as shown:
            platform.wait_for_mlflow(workspace, mlflow)
            shown.note = f"{shown_uri(mlflow.url)}{'' if mlflow.started else ' (already there)'}"
        if mlflow.note:
            say(f"    {mlflow.note}")

    return mlflow, wait


def _releases(workspace: Workspace, name: str, environments: list[str]) -> dict[str, Release]:
    """Return the releases of `name` at the origin's main, by environment."""
    from ci.history import release_at, revision

    base = revision(workspace)
    found = {environment: release_at(workspace.root, base, environment, name) for environment in environments}
    return {environment: release for environment, release in found.items() if release}


def _missing(workspace: Workspace, names: list[str], first: str | None) -> list[tuple[str, str]]:
    """Return the (model, environment) pairs that have no release yet, in the order in which they are made."""
    from ci.environments import load_all

    order = [environment.name for environment in load_all(workspace.root)]
    found: list[tuple[str, str]] = []
    for name in sorted(names, key=lambda name: (name != first, name)):
        there = _releases(workspace, name, order)
        wanted = order if name == first else order[:1]
        found += [(name, environment) for environment in wanted if environment not in there]
    return found


def _orphans(workspace: Workspace, names: list[str]) -> set[tuple[str, str]]:
    """Return the (model, environment) pairs whose release means nothing here.

    Releases come with a clone, and they stay in git when `.wharf` is forgotten; the registry of this machine then
    does not know their version. A bento that is only missing here is built again: the same inputs give the same one.
    """
    from ci.build import build, exists
    from ci.environments import load_all
    from ci.registry import facts

    order = [environment.name for environment in load_all(workspace.root)]
    found: set[tuple[str, str]] = set()
    for name in names:
        for environment, release in _releases(workspace, name, order).items():
            try:
                known = facts(workspace, name, release.version).run == release.run
                if known and not exists(workspace, release.image):
                    with step(f"build {name} again") as shown:
                        known = build(workspace, name, release.version).image == release.image
                        shown.note = f"version {release.version}"
            except Mistake:
                known = False
            if not known:
                found.add((name, environment))
    return found


def _withdraw_orphans(workspace: Workspace, names: list[str], done: _Done) -> None:
    """Take out releases that mean nothing here: no champion can be compared with, and nothing can be served."""
    from ci.withdraw import withdraw

    if orphans := _orphans(workspace, names):
        with step("withdraw releases that this registry does not know") as shown:
            withdraw(workspace, orphans)
            shown.note = ", ".join(sorted(f"{name} in {environment}" for name, environment in orphans))
        done.changes.append(f"withdrew {len(orphans)} releases of another registry")


def _warm_up() -> None:
    """Import what training needs while MLflow starts: both take seconds, on different cores."""

    def work() -> None:
        for module in _HEAVY:
            importlib.import_module(module)

    threading.Thread(target=work, name="imports", daemon=True).start()


def _carry(workspace: Workspace, first: str | None, missing: list[tuple[str, str]], done: _Done) -> None:
    """Make the releases that are missing.

    While the agent brings a version of the first model up, the next model trains: the steps alternate.
    """
    climb = [pair for pair in missing if pair[0] == first]
    others = [pair for pair in missing if pair[0] != first]
    failed: set[str] = set()
    for name, environment in [pair for both in zip_longest(climb, others) for pair in both if pair]:
        if name not in failed and not _ship_or_climb(workspace, name, environment, first, done):
            failed.add(name)


def _ship_or_climb(workspace: Workspace, name: str, environment: str, first: str | None, done: _Done) -> bool:
    """Make one release and tell whether it worked; a fault of one model does not stop the others.

    For the first environment it is the whole chain from training on.
    """
    from ci.environments import load_all
    from ci.promote import promote
    from ci.ship import ship

    order = [each.name for each in load_all(workspace.root)]
    before = order[order.index(environment) - 1] if environment != order[0] else None
    try:
        if before is None:
            promotion = ship(workspace, name)
        else:
            _wait_for(workspace, name, before)
            with step(f"promote {name} to {environment}") as shown:
                promotion = promote(workspace, name, environment)
                shown.note = promotion.summary
    except WharfError as error:
        for line in error.lines:
            say(f"    {line}")
        # With everything else at hand it is the data of this model that needs a network which is not there.
        if isinstance(error, Unavailable) and name != first and platform.mlflow_answers(workspace):
            done.skipped.append((name, error))
        else:
            done.faults.append((name, error))
        return False
    if promotion.changed:
        done.changes.append(f"released {name} version {promotion.version} to {promotion.environment}")
    return True


def _wait_for(workspace: Workspace, name: str, environment: str, version: int | None = None) -> None:
    with step(f"serve {name} in {environment}") as shown:

        def watch(message: str) -> None:
            shown.note = message

        shown.note = platform.wait_healthy(workspace, name, environment, version, watch=watch)


def _wait_for_all(workspace: Workspace, done: _Done) -> None:
    """Wait until everything that has a release is Healthy; what is not gets its line."""
    from ci.environments import load_all

    order = [environment.name for environment in load_all(workspace.root)]
    running = {(a.model, a.environment, a.version) for a in status.applications(workspace) if a.well}
    failed = {name for name, _ in done.faults}
    for name in workspace.model_names():
        for environment, release in _releases(workspace, name, order).items():
            if (name, environment, release.version) in running or name in failed:
                continue
            try:
                _wait_for(workspace, name, environment, release.version)
            except Unavailable as error:
                say(f"    {error.lines[0]}")
                done.faults.append((name, error))


def _show(workspace: Workspace, first: str | None, mlflow: platform.Part, done: _Done) -> None:
    found = status.applications(workspace)
    print()
    if found:
        print(status.as_table(found))
        print()
    for title, link in _links(workspace, first, mlflow, found):
        print(f"{title.ljust(18)} {link}")
    for name, error in done.skipped:
        print(f"\n{paint('left out', 'yellow')} {name}: {error.lines[0]}")
        print(f"         get its data on another machine, then `wharf ship {name} --data FILE`")
    for name, error in done.faults:
        print(f"\n{paint('not done', 'red')} {name}: {error.lines[0]}{f' ({error.tip})' if error.tip else ''}")
    if not done.changes and not done.faults:
        print("\nNothing to change: everything that has a release runs.")
    print("\nNext:")
    if shutil.which("wharf") is None:  # `make up` needs no activated environment, the commands below do
        print(f"  {'. .venv/bin/activate'.ljust(42)} {paint('makes wharf a command of this shell', 'dim')}")
    for command, why in _next(first, found):
        print(f"  {command.ljust(42)} {paint(why, 'dim')}")


def _links(
    workspace: Workspace, first: str | None, mlflow: platform.Part, found: list[status.Application]
) -> list[tuple[str, str]]:
    links = [("MLflow", shown_uri(mlflow.url))]
    shown = [a for a in found if a.model == first and a.version] or [a for a in found if a.version]
    if shown:
        last = shown[-1]
        report = report_copy(workspace, last.model, last.environment)
        links += [(f"Report of {last.model}", report)] if report else []
        links.append(("Swagger page", f"{last.url}/"))
    return links


def report_copy(workspace: Workspace, name: str, environment: str) -> str:
    """Return the address of a local copy of the evidence report of what is released, empty when MLflow has none.

    MLflow offers an HTML artifact for download only; a copy opens in the browser.
    """
    from ci.mlflow_api.store import connect

    release = _releases(workspace, name, [environment]).get(environment)
    if release is None:
        return ""
    path = workspace.state / "reports" / name / str(release.version) / "evidence.html"
    if not path.is_file():
        try:
            store = connect(workspace)
            run = store.run(release.run)
            if run is None:
                return ""
            write_atomic(path, store.read(run, "evidence/report.html"))
        except WharfError:
            return ""
    return path.as_uri()


def _next(first: str | None, found: list[status.Application]) -> list[tuple[str, str]]:
    if not first or not found:
        return [
            ("wharf new NAME", "makes the directory of a model"),
            ("wharf ship NAME", "trains it and carries it to the first environment"),
            ("make down", "stops everything"),
        ]
    last = [a for a in found if a.model == first] or found
    back = (f"wharf lineage {last[-1].model} --env {last[-1].environment}", "from what runs back to the data")
    if last[-1].target != "local":  # the demo sends its traffic to this machine
        return [(f"wharf status {last[-1].model}", "with its pods"), back, ("wharf ui", "a page with every model")]
    return [
        back,
        ("make demo", "shifts the traffic and watches a challenger be proposed"),
        ("wharf ui", "a page with every model"),
    ]
