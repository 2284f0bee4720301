"""The Go programs of the node: pinned in `tools/*/go.mod`, built once into the cache, found by their names.

Each tool is a module of its own, because each needs the `replace` lines of its own go.mod. What is compiled is checked:
Go compares every module that it downloads with the sha256 in the tool's committed go.sum, and with `-mod=readonly` it
neither adds to that file nor chooses other versions. The manifests come from those same modules.

A cache entry is `modelwharf/tools/<tool>-<key>/` in the user's cache folder; the key is the sha256 over the tool's
folder, the build's flags, Go's version and the platform. `entry.json` in it holds the sha256 of each file. A file whose
size or time is not the recorded one is hashed again, and an entry that fails is built anew. Entries of older pins stay
until somebody removes them: a node may still run from them.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci.cluster.node import golang
from ci.console import say, step
from ci.errors import Mistake, did_you_mean
from ci.files import sha256_bytes, sha256_file, write_atomic
from ci.images.layers import cache

PINS = Path(__file__).parent / "tools"
_RECORD = "entry.json"
_MEASURED_CORES = 2
_DAMAGED = "is damaged"


@dataclass(frozen=True)
class Tool:
    """A module under `tools/` and what is made from it."""

    name: str
    programs: dict[str, str]  # program: the package of its main function
    seconds: float  # measured with an empty cache of Go's on 2 busy cores
    module: str = ""  # whose version in go.mod is the tool's; "": the tool is this repository's own
    stamps: dict[str, str] = field(default_factory=dict[str, str])  # linker variable: its text, with {version} in it
    manifest: str = ""  # the install manifest's path in the module


def _kubernetes_stamps() -> dict[str, str]:
    values = {
        "gitVersion": "v{version}",
        "gitMajor": "{major}",
        "gitMinor": "{minor}",
        "gitCommit": "",  # a module does not say; the default is a template of git's
        "gitTreeState": "clean",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return {f"{package}.{name}": value for package in packages for name, value in values.items()}


_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
_TOOLS = (
    Tool(
        "kubernetes",
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES},
        seconds=400,
        module="k8s.io/kubernetes",
        stamps=_kubernetes_stamps(),
    ),
    Tool(
        "coredns",
        {"coredns": "github.com/coredns/coredns"},
        seconds=150,
        module="github.com/coredns/coredns",
    ),
    Tool(
        "argocd",
        {"argocd": "github.com/argoproj/argo-cd/v3/cmd"},
        seconds=300,
        module="github.com/argoproj/argo-cd/v3",
        stamps={"github.com/argoproj/argo-cd/v3/common.version": "{version}"},
        manifest="manifests/core-install.yaml",
    ),
    Tool(
        "rollouts",
        {"rollouts-controller": "github.com/argoproj/argo-rollouts/cmd/rollouts-controller"},
        seconds=245,
        module="github.com/argoproj/argo-rollouts",
        stamps={"github.com/argoproj/argo-rollouts/utils/version.version": "{version}"},
        manifest="manifests/install.yaml",
    ),
    Tool("pause", {"pause": "."}, seconds=5),
)
ALL = tuple(tool.name for tool in _TOOLS)


@dataclass(frozen=True)
class Tools:
    """Built tools: `entries` are the cache folders by the tools' names, `versions` say what each is ("3.2.11")."""

    entries: dict[str, Path]
    versions: dict[str, str]

    @property
    def folder(self) -> Path:
        """Return the folder that holds all entries."""
        return next(iter(self.entries.values())).parent

    def path(self, program: str) -> Path:
        """Return where `program` is. Raises Mistake when none of the tools has it."""
        for tool in _TOOLS:
            if tool.name in self.entries and program in tool.programs:
                return self.entries[tool.name] / "bin" / program
        known = [name for tool in _TOOLS for name in tool.programs]
        raise Mistake(f"'{program}' is not among the built programs{did_you_mean(program, known)}")

    def manifest(self, tool: str) -> Path:
        """Return the install manifest, with the CRDs in it, of "argocd" (core) or "rollouts" at the built version.

        Raises Mistake for a tool that has none.
        """
        if tool not in self.entries or not _tool(tool).manifest:
            raise Mistake(f"'{tool}' is not a built tool with an install manifest")
        return self.entries[tool] / "manifests" / f"{tool}.yaml"


def ensure(names: Iterable[str] = ALL) -> Tools:
    """Build those of the tools `names` that the cache lacks or holds damaged, and return where all of them are.

    Safe beside another process that does the same: it waits for the other and takes what that has built. An interrupted
    build leaves nothing. Raises Mistake for an unknown tool; Unavailable without a Go that is new enough, without a
    network when modules have to be downloaded, or when a build fails; Refusal when a download is not what go.sum pins.
    """
    wanted = [_tool(name) for name in dict.fromkeys(names)]
    go = golang.find(golang.newest([_required(tool) for tool in wanted]))
    entries = {tool.name: cache() / "tools" / f"{tool.name}-{_key(tool, go)}" for tool in wanted}
    faults = {tool.name: _fault(tool, entries[tool.name]) for tool in wanted}
    for name, fault in faults.items():
        if fault.startswith(_DAMAGED):
            say(f"  The cached {name} {fault}; it is built anew.")
    missing = [tool for tool in wanted if faults[tool.name]]
    if missing:
        say(f"  {_count(missing)} built once from pinned sources: {estimate(missing, _cores())}.")
    for tool in missing:
        with _locked(tool.name):
            if _fault(tool, entries[tool.name]):
                _make(tool, go, entries[tool.name])
    return Tools(entries, {tool.name: _version(tool) for tool in wanted})


def estimate(tools: Iterable[Tool], cores: int) -> str:
    """Say how long it takes to build `tools` on `cores` when Go's cache is empty."""
    seconds = sum(tool.seconds for tool in tools) * _MEASURED_CORES / cores
    if seconds < 20:
        return "some seconds"
    length = f"{round(seconds / 60)} minutes" if seconds >= 90 else "a minute"
    return f"about {length} on {cores} core{'s' * (cores > 1)}, less with what Go's cache holds"


def _count(tools: list[Tool]) -> str:
    programs = [name for tool in tools for name in tool.programs]
    return f"{len(programs)} programs are" if len(programs) > 1 else f"{programs[0]} is"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _tool(name: str) -> Tool:
    found = next((tool for tool in _TOOLS if tool.name == name), None)
    if found is None:
        raise Mistake(f"there is no tool '{name}' of the node{did_you_mean(name, ALL)}; there are {', '.join(ALL)}")
    return found


def _make(tool: Tool, go: golang.Go, entry: Path) -> None:
    """Build `tool` in a temporary folder beside `entry`, then put it in its place."""
    label = tool.name if len(tool.programs) == 1 else f"{tool.name} ({len(tool.programs)} programs)"
    version = _version(tool)
    begun = time.monotonic()
    for left in entry.parent.glob(f".{tool.name}-*"):  # of a build that was killed: this one has the lock
        shutil.rmtree(left, ignore_errors=True)
    with (
        step(f"build {label} {version}".rstrip() + f", {estimate([tool], _cores()).partition(',')[0]}") as shown,
        tempfile.TemporaryDirectory(dir=entry.parent, prefix=f".{tool.name}-", ignore_cleanup_errors=True) as scratch,
    ):
        made = Path(scratch) / "entry"
        (made / "bin").mkdir(parents=True)
        arguments = _arguments(tool, made / "bin")
        shown.note = str(golang.build(go, PINS / tool.name, arguments, Path(scratch) / "go", tool.name))
        for program in tool.programs:
            (made / "bin" / program).chmod(0o755)
        if tool.manifest:
            source = golang.module_folder(go, PINS / tool.name, tool.module) / tool.manifest
            (made / "manifests").mkdir()
            target = made / "manifests" / f"{tool.name}.yaml"
            shutil.copyfile(source, target)  # not its mode: Go's module cache is read-only
        _record(made, tool=tool.name, version=version, seconds=round(time.monotonic() - begun, 1))
        if entry.exists():  # damaged; programs that run from it keep their files
            entry.rename(Path(scratch) / "damaged")
        made.rename(entry)


def _arguments(tool: Tool, folder: Path) -> list[str]:
    packages = list(tool.programs.values())
    # Several go into a folder, each under the last part of its package's path; one is given its name.
    output = str(folder) + "/" if len(packages) > 1 else str(folder / next(iter(tool.programs)))
    return [*_flags(tool), "-o", output, *packages]


def _flags(tool: Tool) -> list[str]:
    """Return the flags of the build: without symbols, and with the version that the program reports."""
    version = _version(tool)
    major, _, rest = version.partition(".")
    texts = {"version": version, "major": major, "minor": rest.partition(".")[0]}
    stamps = [f"-X {variable}={text.format_map(texts)}" for variable, text in tool.stamps.items()]
    return ["-trimpath", "-ldflags", " ".join(["-s -w", *stamps])]


def _key(tool: Tool, go: golang.Go) -> str:
    """Return what the built files depend on, as the first 16 digits of a sha256."""
    sources = {path.name: sha256_file(path) for path in sorted((PINS / tool.name).iterdir()) if path.is_file()}
    inputs = {
        "sources": sources,  # go.mod, go.sum, and the program where it is ours
        "go": dict(go.settings),
        "flags": _flags(tool),
        "programs": tool.programs,
        "manifest": tool.manifest,
    }
    return sha256_bytes(json.dumps(inputs, sort_keys=True).encode())[:16]


def _version(tool: Tool) -> str:
    """Return the pinned version without its "v"; "" for a program of this repository."""
    if not tool.module:
        return ""
    return _pinned(tool, rf"^(?:require)?\s+{re.escape(tool.module)} v(\S+)")


def _required(tool: Tool) -> str:
    return _pinned(tool, r"^go (\S+)")


def _pinned(tool: Tool, pattern: str) -> str:
    pins = PINS / tool.name / "go.mod"
    found = re.search(pattern, pins.read_text(), re.MULTILINE)
    if found is None:
        raise Mistake(f"{pins.relative_to(PINS.parents[3])}: no line that matches `{pattern}`")
    return found[1]


def _record(entry: Path, **about: str | float) -> None:
    files = {str(path.relative_to(entry)): _facts(path) for path in sorted(entry.rglob("*")) if path.is_file()}
    write_atomic(entry / _RECORD, json.dumps({**about, "files": files}, indent=2) + "\n")


def _facts(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(path), "size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}


def _fault(tool: Tool, entry: Path) -> str:
    """Say what keeps `entry` from being used for `tool`; "" when nothing does."""
    if not entry.is_dir():
        return "is not built"
    try:
        recorded: dict[str, dict[str, Any]] = json.loads((entry / _RECORD).read_text())["files"]
        wanted = [f"bin/{program}" for program in tool.programs]
        wanted += [f"manifests/{tool.name}.yaml"] if tool.manifest else []
        return next((f"{_DAMAGED} ({name})" for name in wanted if not _same(entry / name, recorded[name])), "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        return f"{_DAMAGED} ({_RECORD}: {type(fault).__name__})"


def _same(path: Path, was: dict[str, Any]) -> bool:
    """Tell whether the file is what was recorded: by size and time, by its hash where the time is another."""
    if not path.is_file() or path.stat().st_size != was["size"]:
        return False
    if path.parent.name == "bin" and not os.access(path, os.X_OK):
        return False
    return path.stat().st_mtime_ns == was["mtime_ns"] or sha256_file(path) == was["sha256"]


@contextmanager
def _locked(name: str) -> Generator[None]:
    """Let one process at a time build the tool `name`."""
    folder = cache() / "tools"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"wait for another process that builds {name}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
