"""The image of the MLflow server: the locked MLflow, and the clients of what it stores with.

SQLite and a volume need none; those of PostgreSQL and of S3 are the dependency group `server` in pyproject.toml.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ci import requirements
from ci.images import base, builder, dependencies, layers
from ci.images.builder import Config, Image
from ci.images.layers import Entry
from ci.images.registry import Registry
from ci.rendering.manifests import USER

if TYPE_CHECKING:
    from ci.cluster.access import Access
    from ci.workspace import Workspace

REPOSITORY = "wharf-mlflow"
GROUP = "server"
# The image has packages, and no programs that name a Python of the machine that installed them.
_PROGRAM = '#!/bin/sh\nexec python -m mlflow "$@"\n'


def ensure(workspace: Workspace, access: Access) -> str:
    """Return the reference by digest of MLflow's image, built and pushed unless the registry has it.

    Raises Mistake (lock without what is needed), Unavailable (registry, package index).
    """
    registry = Registry(access.push)
    found = base.provide(registry, access, "serving", workspace)
    lock = workspace.root / "uv.lock"
    clients = requirements.group(lock, GROUP) or []
    wanted = requirements.export(lock, ["mlflow", *clients], base.PYTHON, [GROUP])
    parent = dependencies.provide(registry, found, wanted, base.PYTHON)
    layer = layers.pack([Entry("/usr/local/bin/mlflow", content=_PROGRAM.encode())])
    config = Config(user=f"{USER}:{USER}", workdir="/tmp", command=["mlflow", "server"])  # noqa: S108 - in a container
    tag = hashlib.sha256(repr((parent, layer.digest, config)).encode()).hexdigest()[:16]
    image = Image(REPOSITORY, tag, parent, [layer], config, found.architecture)
    return f"{access.registry}/{REPOSITORY}@{builder.publish(registry, image).digest}"
