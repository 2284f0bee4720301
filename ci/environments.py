"""Environments: the settings that people edit in `gitops/environments/<name>.yaml`, and their order of promotion."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter
from typing import Annotated

from pydantic import Field, model_validator

from ci.errors import Mistake, did_you_mean
from models.job_settings import Toleration
from models.spec import SpecError, Strict, read

FOLDER = "gitops/environments"
_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"

DnsLabel = Annotated[str, Field(pattern=_LABEL)]
Count = Annotated[int, Field(ge=1, le=1000)]


class Replicas(Strict):
    """How many replicas a model has at the least and at the most; where both are equal nothing scales."""

    min: Count
    max: Count

    @model_validator(mode="after")
    def _possible(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Disruption(Strict):
    """What a node drain may do to a model: exactly one of the two."""

    min_available: Count | None = None
    max_unavailable: Count | None = None

    @model_validator(mode="after")
    def _possible(self) -> Disruption:
        if (self.min_available is None) == (self.max_unavailable is None):
            raise ValueError("give either 'min_available' or 'max_unavailable'")
        return self


class Environment(Strict):
    """The settings of one environment; a model's own needs (cpu, memory, gpu) are in its model.yaml."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,19}$")]
    after: str | None  # the environment a version must have been in before; null: the first one
    registry: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9._-]+)*$")] = "wharf.local"
    namespace: str = "{team}-{environment}"
    replicas: Replicas
    pod_disruption: Disruption
    target_cpu_percent: Annotated[int, Field(ge=10, le=95)] = 70
    cpu_burst: Annotated[float, Field(ge=1, le=16)] = 2.0  # the cpu limit as a multiple of what model.yaml asks for
    prediction_log: Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi)$")] = "1Gi"
    pull_secret: DnsLabel | None = None  # the Secret with the registry's credentials, where the nodes have none
    ingress_namespaces: list[DnsLabel] = Field(
        default=[]
    )  # who may call the models, besides pods of the same namespace
    monitoring_namespace: DnsLabel = "monitoring"
    node_selector: dict[str, str] = Field(default={})
    tolerations: list[Toleration] = Field(default=[])

    @model_validator(mode="after")
    def _possible(self) -> Environment:
        faults = [*_namespace_faults(self.namespace), *_disruption_faults(self)]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def namespace_of(self, team: str, model: str) -> str:
        """Return the namespace that `model` of `team` runs in; raises Mistake when it is no DNS label."""
        name = self.namespace.format(team=team, environment=self.name, model=model)
        if not re.fullmatch(_LABEL, name):
            raise Mistake(f"{FOLDER}/{self.name}.yaml: namespace: '{name}' of model '{model}' is not a DNS label")
        return name


def _namespace_faults(pattern: str) -> list[str]:
    known = ["team", "environment", "model"]
    try:
        words = [word for _, word, _, _ in Formatter().parse(pattern) if word is not None]
    except ValueError as error:
        return [f"namespace: {error} in '{pattern}'"]
    faults = [f"namespace: no placeholder '{{{w}}}'{did_you_mean(w, known)}" for w in words if w not in known]
    if not faults and "environment" not in words:
        faults = ["namespace: needs '{environment}', or two environments would share one namespace"]
    if not faults and not re.fullmatch(_LABEL, pattern.format(team="t", environment="e", model="m")):
        faults = [f"namespace: '{pattern}' does not make a DNS label (lower-case letters, digits, '-')"]
    return faults


def _disruption_faults(environment: Environment) -> list[str]:
    kept, least = environment.pod_disruption.min_available, environment.replicas.min
    if kept is not None and kept >= least:
        return [
            f"pod_disruption.min_available: {kept} of at least {least} replicas leaves none to evict: "
            "a node could never be drained"
        ]
    return []


def parse(text: str, where: str) -> Environment:
    """Read the text of an environment named `where` in errors; raises Mistake with one line a fault."""
    try:
        found = read(text, where, Environment)
    except SpecError as error:
        raise Mistake(error.lines, tip=f"correct {where}; `wharf validate` checks it") from None
    if found.name != Path(where).stem:
        raise Mistake(f"{where}: name: '{found.name}' differs from its file name '{Path(where).stem}'")
    return found


def load_all(root: Path) -> list[Environment]:
    """Return the environments of the repository at `root` in the order of promotion.

    Raises Mistake, one line a fault: broken files, an `after` that is unknown, two that follow the same one, a circle.
    """
    found: dict[str, Environment] = {}
    faults: list[str] = []
    for path in sorted((root / FOLDER).glob("*.y*ml")):
        where = f"{FOLDER}/{path.name}"
        try:
            if path.suffix != ".yaml":
                raise Mistake(f"{where}: must end in .yaml")
            environment = parse(path.read_text(encoding="utf-8"), where)
            found[environment.name] = environment
        except UnicodeDecodeError:
            faults.append(f"{where}: is not UTF-8 text")
        except Mistake as error:
            faults += error.lines
    if not found and not faults:
        faults = [f"{FOLDER}/: holds no environment"]
    if not faults:
        faults = _order_faults(found)
    if faults:
        raise Mistake(faults, tip=f"see the comments in {FOLDER}/")
    return _in_order(found)


def _order_faults(found: dict[str, Environment]) -> list[str]:
    faults: list[str] = []
    follower: dict[str | None, str] = {}
    for name, environment in found.items():
        where, before = f"{FOLDER}/{name}.yaml", environment.after
        if before is not None and before not in found:
            faults.append(f"{where}: after: no environment '{before}'{did_you_mean(before, found)}")
        elif before in follower and before is None:
            faults.append(f"{where}: after: '{follower[None]}' is the first one already; name the one before this")
        elif before in follower:
            faults.append(f"{where}: after: '{follower[before]}' comes after '{before}' already; promotion is one line")
        follower.setdefault(before, name)
    if not faults:
        reached = [environment.name for environment in _in_order(found)]
        faults = [
            f"{FOLDER}/{name}.yaml: after: goes in a circle and never starts at the first environment"
            for name in found
            if name not in reached
        ]
    return faults


def _in_order(found: dict[str, Environment]) -> list[Environment]:
    """Follow `after` from the first environment; what is in a circle is not reached."""
    follower = {environment.after: environment for environment in found.values()}
    order: list[Environment] = []
    name: str | None = None
    while name in follower:
        order.append(follower[name])
        name = order[-1].name
    return order
