"""What the Jobs of a model need on a cluster: training and batch prediction. Nothing here decides a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.strict_yaml import Strict

_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class Toleration(Strict):
    """One toleration of the pods, in the words of Kubernetes."""

    key: Annotated[str, Field(min_length=1)]
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("'value' goes with operator Equal, and only with it")
        return self


class Jobs(Strict):
    """How training and batch prediction run as Kubernetes Jobs: quantities for the one pod, and where it may run."""

    cpu: Annotated[str, Field(pattern=r"^[0-9]+m?$")] = "500m"
    memory: Annotated[str, Field(pattern=r"^[0-9]+(Mi|Gi)$")] = "2Gi"
    gpu: Annotated[int, Field(ge=0, le=16)] = 0
    scratch: Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi)$")] = "8Gi"  # room for data and files on the way
    queue: Annotated[str, Field(pattern=_LABEL)] | None = None  # a LocalQueue of Kueue in the namespace of the Jobs
    node_selector: dict[str, str] = Field(default={})
    tolerations: list[Toleration] = Field(default=[])
    deadline_minutes: Annotated[int, Field(ge=1, le=10_080)] = 60
