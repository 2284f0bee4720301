"""`wharf promote MODEL --to ENV`: release a version to an environment, as one commit on the target's main branch.

The first environment gets the newest registered version, a later one exactly what ran in the environment before it:
the same run, artifact, evidence and image, even if the bento was rebuilt since.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from functools import cache

from ci import history, registry
from ci.errors import Mistake, Refusal
from ci.git.offer import Base, Draft, Offer, offer
from ci.git.pull_request import text_of
from ci.registry import VersionFacts
from ci.release import Release
from ci.workspace import Workspace


@dataclass(frozen=True)
class Promotion:
    """What a promotion or rollback did."""

    model: str
    environment: str
    version: int
    previous: int | None  # the version that ran there before
    action: str  # promote or rollback
    changed: bool  # False: it was there (or proposed) already, and nothing was done
    commit: str | None
    branch: str  # "main" when it is released; else the branch that waits to be merged
    url: str  # of the pull request
    summary: str  # all of this in one line
    next_steps: list[str]  # commands that accept a proposal
    diff: str  # only of a dry run


def promote(
    workspace: Workspace,
    name: str,
    environment: str,
    version: int | None = None,
    propose: bool = False,
    dry_run: bool = False,
) -> Promotion:
    """Release `version` of `name` to `environment` and return what was done; what is there already stays.

    `version` None: the newest registered one for the first environment, what runs in the environment before it for a
    later one. `propose` on the local target leaves it on a branch of the origin. Raises Mistake (no such version, not
    built), Refusal (not gated, environment order, the target's check), Unavailable.
    """

    @cache  # asked once, also when main moves and the draft is made again
    def newest() -> int:
        number = registry.latest(workspace, name)
        if number is None:
            raise Mistake(f"model '{name}' has no version", tip=f"make one with `wharf ship {name}`")
        return number

    @cache
    def facts(number: int) -> VersionFacts:
        return registry.facts(workspace, name, number)

    def draft_on(base: Base) -> Draft:
        before = base.environment(environment).after
        number = version
        if number is None:
            number = newest() if before is None else _running(workspace, base, name, before)
        known = facts(number)
        if known.verdict != "passed":
            raise Refusal(f"version {number} of '{name}' did not pass the gate: its verdict is '{known.verdict}'")
        if before is None:
            release = _release_of(known, environment)
        else:
            release = _carried_on(workspace, base, known, before, environment)
        return Draft(release, history.release_at(workspace.root, base.commit, environment, name), "promote")

    made = offer(
        workspace,
        name,
        draft_on,
        propose=propose,
        dry_run=dry_run,
        text=lambda draft: text_of(workspace, draft),
    )
    return outcome(made)


def _running(workspace: Workspace, base: Base, name: str, before: str) -> int:
    running = history.release_at(workspace.root, base.commit, before, name)
    if running is None:
        raise Mistake(
            f"nothing of '{name}' is released in {before}, where its next version would come from",
            tip=f"start with `wharf promote {name} --to {base.environments[0].name}`",
        )
    return running.version


def _release_of(known: VersionFacts, environment: str) -> Release:
    if not known.bento or not known.image:
        raise Mistake(
            f"version {known.version} of '{known.model}' has no bento", tip=f"run `wharf build {known.model}`"
        )
    return Release(
        model=known.model,
        environment=environment,
        version=known.version,
        run=known.run,
        bento=known.bento,
        image=known.image,
        artifact=f"sha256:{known.artifact}",
        evidence=f"sha256:{known.evidence}",
        data=f"sha256:{known.data}",
        commit=known.commit,
    )


def _carried_on(workspace: Workspace, base: Base, known: VersionFacts, before: str, environment: str) -> Release:
    """Return the release that `before` has, or once had, of this version; raises Refusal when it never had it."""
    name, number = known.model, known.version
    now = history.release_at(workspace.root, base.commit, before, name)
    if now is None or now.version != number:
        past = history.entries(workspace.root, base.commit, name, before)
        had = [entry.release for entry in past if entry.release and entry.release.version == number]
        if not had:
            raise Refusal(
                f"version {number} of '{name}' was never in {before}, and {environment} comes after {before}",
                tip=f"run `wharf promote {name} --to {before} --version {number}` first",
            )
        now = had[-1]
    for field, said in {"run": known.run, "artifact": f"sha256:{known.artifact}", "commit": known.commit}.items():
        if getattr(now, field) != said:
            raise Refusal(
                f"{before} ran version {number} of '{name}' with {field} {getattr(now, field)}, "
                f"the registry says {said}: they are not the same version"
            )
    return replace(now, environment=environment)


def outcome(made: Offer) -> Promotion:
    """Say what became of an offer."""
    release, before = made.draft.release, made.draft.before
    where, local = f"{release.environment}/{release.model}", made.remote.kind == "local"
    previous = before.version if before else None
    what = f"{where}: version {release.version}"
    was = "" if before is None else f" (was {previous})"
    proposed = "was proposed before" if made.again else "is proposed"
    steps: list[str] = []
    if made.commit is None:
        summary = f"{what} is already there; nothing to do"
    elif made.diff:
        summary = f"{what}{was} would be released; nothing was changed (dry run)"
    elif made.branch == "main":
        summary = f"{what}{was} is released, commit {made.commit[:10]} on {made.remote.name}/main"
    elif made.url:
        summary = f"{what}{was} {proposed}: {made.url}"
    else:
        summary = f"{what}{was} {proposed} on branch {made.branch} of {made.remote.name}"
        steps = [f"git fetch {made.remote.name}"]
        steps += [f"git diff {made.remote.name}/main...{made.remote.name}/{made.branch}"]
        if local:
            steps += [f"wharf promote {release.model} --to {release.environment} --version {release.version}"]
        else:
            steps += [f"open a merge request of {made.branch} into main on {made.remote.url}"]
    return Promotion(
        model=release.model,
        environment=release.environment,
        version=release.version,
        previous=previous,
        action=made.draft.action,
        changed=made.commit is not None and not made.diff and not made.again,
        commit=None if made.diff else made.commit,
        branch=made.branch,
        url=made.url,
        summary=summary,
        next_steps=steps,
        diff=made.diff,
    )


def show(promotion: Promotion, as_json: bool) -> int:
    """Print what a promotion did and return the exit code."""
    if as_json:
        print(json.dumps(asdict(promotion), indent=2))
        return 0
    if promotion.diff:
        print(promotion.diff)
    print(promotion.summary)
    for line in promotion.next_steps:
        print(f"  {line}")
    return 0


def version_number(text: str) -> int:
    """Read the value of `--version` for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a version number (1, 2, 3 …)")
    return int(text)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `wharf promote`."""
    parser.add_argument("model", help="name of the model")
    parser.add_argument("--to", required=True, metavar="ENV", dest="environment", help="environment to release to")
    parser.add_argument(
        "--version",
        type=version_number,
        metavar="N",
        help="default: the newest, or what runs in the environment before",
    )
    parser.add_argument("--propose", action="store_true", help="only leave it on a branch for review")
    parser.add_argument("--dry-run", action="store_true", help="print the commit's diff and change nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    """Promote and print the outcome."""
    made = promote(
        workspace, options.model, options.environment, options.version, propose=options.propose, dry_run=options.dry_run
    )
    return show(made, options.json)
