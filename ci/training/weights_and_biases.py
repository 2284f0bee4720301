"""Send a staged run to Weights & Biases as well: online with a key, to offline files when asked, or not at all.

MLflow is the record; W&B is a second view of it. A failure here is said and tagged, and never loses the MLflow run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from ci.console import say
from ci.training.tracking import Staged

_INIT_S = 20.0


Mode = Literal["online", "offline", "off"]


def mode() -> Mode:
    """Return `online`, `offline` or `off`, by WANDB_MODE and WANDB_API_KEY."""
    wanted = os.environ.get("WANDB_MODE", "").lower()
    if wanted in {"offline", "dryrun"}:
        return "offline"
    if wanted == "disabled" or not os.environ.get("WANDB_API_KEY"):
        return "off"
    return "online"


def record(staged: Staged, folder: Path, state: Path) -> str:
    """Record the staged run and return what becomes the tag `wharf.wandb`: off, offline, an address, or failed.

    Offline files go to `state`/wandb. The W&B run has the id of the staged run, so that doing it twice is one run.
    """
    how = mode()
    if how == "off":
        say("W&B: off (set WANDB_API_KEY, or WANDB_MODE=offline)")
        return "off"
    try:
        where = _send(staged, folder, state, how)
    except Exception as error:  # whatever W&B or the network does, the MLflow run must be finished
        reason = str(error).strip().splitlines()
        say(f"W&B: failed ({type(error).__name__}: {reason[0] if reason else ''}); the run is complete in MLflow")
        return "failed"
    say(f"W&B: {where}")
    return where if how == "online" else "offline"


def _send(staged: Staged, folder: Path, state: Path, how: Literal["online", "offline"]) -> str:
    import wandb

    state.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        init_timeout=_INIT_S, silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True
    )
    run: Any = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "modelwharf"),
        id=staged.id,
        resume="allow" if how == "online" else None,
        name=f"{staged.model}-{staged.fingerprint[:8]}",
        group=staged.model,
        job_type="train",
        config={**staged.params, **staged.tags, "dataset_digest": staged.dataset["digest"]},
        dir=str(state),
        mode=how,
        settings=settings,
    )
    try:
        pictures = sorted((folder / "artifacts" / "plots").glob("*.png"))
        run.log({f"plots/{path.stem}": wandb.Image(str(path)) for path in pictures})
        run.summary.update(staged.metrics)
    finally:
        run.finish()
    return str(run.url) if how == "online" else f"offline files in {Path(run.dir).parent}"
