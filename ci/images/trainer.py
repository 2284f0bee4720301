"""The image of jobs (training, batch predictions): every package of the lock, and as the last layer the repository.

It is a clone of one commit, HEAD, with its `.git`, so that a run can name the commit that it was made from. What
is not committed is not in it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ci import requirements
from ci.errors import Mistake
from ci.images import base, builder, dependencies, layers
from ci.images.builder import Config, Image
from ci.images.layers import Entry
from ci.images.registry import Registry
from ci.rendering.manifests import USER
from ci.shell import CommandFailed, git, run

if TYPE_CHECKING:
    from ci.cluster.access import Access
    from ci.workspace import Workspace

REPOSITORY = "wharf-trainer"
CHECKOUT = "/srv/modelwharf/repo"
_RECIPE = 1  # goes up when the way of packing changes
_PACKAGES = ("bentos", "ci", "infra", "models")
_PROGRAM = '#!/bin/sh\nexec python -m ci.cli "$@"\n'
_ENV = {
    "PYTHONPATH": f"{dependencies.SITE}:{CHECKOUT}",
    "BENTOML_DO_NOT_TRACK": "true",
    "MPLCONFIGDIR": "/tmp/matplotlib",  # noqa: S108 - in a container
}


def ensure(workspace: Workspace, access: Access) -> str:
    """Return the reference by digest of the training image of HEAD, built and pushed unless the registry has it.

    The command is `wharf`, the working folder the checkout, the user the one of the serving images. `.wharf` in the
    checkout is an empty folder, for a volume. Raises Mistake (no commit), Unavailable (registry, package index).
    """
    registry = Registry(access.push)
    commit = _head(workspace.root)
    found = base.provide(registry, access, "tools", workspace)
    lock = git(workspace.root, "show", f"{commit}:uv.lock") + "\n"
    with tempfile.TemporaryDirectory(prefix="wharf-trainer-") as folder:
        locked = Path(folder) / "uv.lock"
        locked.write_text(lock, encoding="utf-8")
        wanted = requirements.export(locked, requirements.direct(locked), base.PYTHON)
        parent = dependencies.provide(registry, found, wanted, base.PYTHON)
        tag = f"{commit[:12]}-{hashlib.sha256(repr((_RECIPE, parent, commit, _ENV)).encode()).hexdigest()[:16]}"
        known = registry.digest(REPOSITORY, tag)
        if known is None:
            layer = layers.pack(checkout(workspace.root, commit, Path(folder) / "repo"))
            config = Config(
                env=_ENV,
                labels={"org.opencontainers.image.title": REPOSITORY, "org.opencontainers.image.revision": commit},
                user=f"{USER}:{USER}",
                workdir=CHECKOUT,
                entrypoint=["wharf"],
            )
            known = builder.publish(
                registry, Image(REPOSITORY, tag, parent, [layer], config, found.architecture)
            ).digest
    return f"{access.registry}/{REPOSITORY}@{known}"


def checkout(root: Path, commit: str, target: Path) -> list[Entry]:
    """Return the entries of a checkout of `commit` of the repository at `root`, made in `target`; always the same."""
    empty = target.parent / "no-template"
    empty.mkdir()
    quiet = ("-c", "core.logAllRefUpdates=false", "-c", "pack.threads=1", "-c", "advice.detachedHead=false")
    run(["git", "init", "--quiet", "--initial-branch=main", f"--template={empty}", str(target)])
    git(target, *quiet, "fetch", "--quiet", "--depth=1", "--no-tags", root.resolve().as_uri(), commit)
    git(target, *quiet, "update-ref", "refs/heads/main", commit)
    # Files first, then an index without their times: those of this machine mean nothing in the image.
    git(target, *quiet, "reset", "--quiet", "--hard", commit)
    (target / ".git" / "index").unlink()
    git(target, *quiet, "read-tree", commit)
    for left in ("FETCH_HEAD", "ORIG_HEAD", "logs"):
        path = target / ".git" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in _PACKAGES:
        if (target / name).is_dir():
            dependencies.compile_all(target / name, f"{CHECKOUT}/{name}", base.PYTHON)
    entries = layers.tree(target, CHECKOUT, owner=USER)
    folders = {Path(entry.path).parent for entry in entries} | {Path(CHECKOUT) / ".git" / "refs" / "tags"}
    folders |= {above for folder in folders for above in folder.parents if above.is_relative_to(CHECKOUT)}
    return [
        *entries,
        *(Entry(folder.as_posix(), owner=USER) for folder in sorted(folders)),
        Entry(f"{CHECKOUT}/.wharf", owner=USER),
        Entry("/usr/local/bin/wharf", content=_PROGRAM.encode()),
        # A pod may run as another user than the one that the files belong to.
        Entry("/etc/gitconfig", content=f"[safe]\n\tdirectory = {CHECKOUT}\n".encode(), mode=0o644),
    ]


def _head(root: Path) -> str:
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    except CommandFailed:
        raise Mistake(f"{root} has no git commit: the training image is made of one", tip="commit first") from None
