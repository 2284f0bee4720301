"""Go, which builds the node's programs: whether there is one that can, and builds that show how they get on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ci.console import say
from ci.errors import Refusal, Unavailable, WharfError
from ci.shell import CommandFailed, run

_OFFICIAL_FOLDER = "/usr/local/go/bin"  # where go.dev says to put it; a root shell's PATH often lacks it
_INSTALL = "install it from https://go.dev/dl, and put its bin folder on PATH"
# What decides the bytes of a program besides its sources and flags.
_SETTINGS = ("GOVERSION", "GOHOSTARCH", "GOAMD64", "GOARM64", "GOEXPERIMENT", "GOFIPS140")
_LINES_SHOWN = 12
_BEAT_S = 30.0
_PACKAGE = re.compile(r"[\w.~-]+(/[\w.~-]+)*")  # with -v, go prints each package that it compiles
_CHECKSUM = ("SECURITY ERROR", "checksum mismatch", "missing go.sum entry")
_NETWORK = (
    "dial tcp",
    "no such host",
    "i/o timeout",
    "connection refused",
    "TLS handshake",
    "Forbidden",
    "proxyconnect",
)


@dataclass(frozen=True)
class Go:
    """A Go that is new enough: its program, and the settings that decide what it makes."""

    program: str
    settings: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        """Return what is set for every call, so that a user's own settings change neither the pins nor the result."""
        return {
            "GOTOOLCHAIN": "local",  # no other Go is downloaded behind the user's back
            "GOFLAGS": "-mod=readonly",
            "GOWORK": "off",
            "GOOS": "linux",
            "GOARCH": self.settings["GOHOSTARCH"],
            "CGO_ENABLED": "0",
        }


def find(required: str) -> Go:
    """Return the Go of this machine.

    Raises Unavailable when there is none, or one older than `required` ("1.25.5").
    """
    program = shutil.which("go") or shutil.which("go", path=_OFFICIAL_FOLDER)
    if program is None:
        raise Unavailable(f"Go {required} or newer, which builds the node's programs, is not installed", tip=_INSTALL)
    try:
        # Not in the project's folder, where a go.mod could ask for another version.
        output = run([program, "env", "-json", *_SETTINGS], cwd=Path("/"), env={"GOTOOLCHAIN": "local"}, timeout=30)
    except (CommandFailed, OSError, subprocess.TimeoutExpired) as fault:
        raise Unavailable(f"{program} does not run: {str(fault).splitlines()[-1]}", tip=_INSTALL) from fault
    settings: dict[str, str] = json.loads(output)
    if _numbers(settings["GOVERSION"]) < _numbers(required):
        raise Unavailable(
            f"the node's programs need Go {required} or newer, and {program} is {settings['GOVERSION']}", tip=_INSTALL
        )
    return Go(program, settings)


def newest(versions: Sequence[str]) -> str:
    """Return the newest of Go `versions` such as "1.25.5"."""
    return max(versions, key=_numbers)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in found.groups()) if found else (99,)  # a development version


@dataclass
class Progress:
    """What a build has done so far."""

    downloaded: int = 0  # modules
    compiled: int = 0  # packages

    def __str__(self) -> str:
        parts = [f"{self.downloaded:,} modules downloaded"] if self.downloaded else []
        return ", ".join([*parts, f"{self.compiled:,} packages compiled"] if self.compiled else parts) or "all cached"


def build(go: Go, module: Path, arguments: Sequence[str], temporary: Path, name: str) -> Progress:
    """Run `go build` with `arguments` in the folder `module`, and return what it had to do.

    Where there is no terminal on which the seconds tick, a line is shown every half minute. Raises Refusal when a
    download is not what go.sum says, Unavailable with the last lines of Go's output when anything else fails.
    """
    temporary.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [go.program, "build", "-v", "-buildvcs=false", *arguments],
        cwd=module,
        env={**os.environ, **go.environment(), "GOTMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,  # Go does not end its compilers when it is told to end: the group is
    )
    progress, rest = Progress(), deque[str](maxlen=200)
    reader = threading.Thread(target=_read, args=(process, progress, rest), daemon=True)
    reader.start()
    begun = time.monotonic()
    try:
        while True:
            try:
                code = process.wait(timeout=_BEAT_S)
                break
            except subprocess.TimeoutExpired:
                if not sys.stderr.isatty():
                    say(f"    … {name}: {time.monotonic() - begun:.0f}s, {progress}")
    finally:
        _end(process)
        reader.join(timeout=10)
    if code != 0:
        raise _failure(name, list(rest))
    return progress


def _read(process: subprocess.Popen[str], progress: Progress, rest: deque[str]) -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            if _PACKAGE.fullmatch(line.strip()):
                progress.compiled += 1
            elif line.startswith("go: downloading "):
                progress.downloaded += 1
            elif line.strip():
                rest.append(line.rstrip())


def _end(process: subprocess.Popen[str]) -> None:
    """End Go and its compilers if they still run: asked first, so that Go removes its temporary files."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(name: str, output: list[str]) -> WharfError:
    text = "\n".join(output)
    lines = [f"Go could not build {name}; the end of what it said:", *(f"  {line}" for line in output[-_LINES_SHOWN:])]
    if any(sign in text for sign in _CHECKSUM):
        return Refusal(
            lines, tip="what was downloaded is not what go.sum pins: `go clean -modcache`, or another GOPROXY"
        )
    if any(sign in text for sign in _NETWORK):
        return Unavailable(lines, tip="Go's modules are downloaded the first time: is there a network, or a GOPROXY?")
    if "no space left on device" in text:
        return Unavailable(lines, tip="all the programs need about 6 GB for Go's caches and 1 GB for themselves")
    return Unavailable(lines)


def module_folder(go: Go, module: Path, path: str) -> Path:
    """Return the folder in Go's module cache with the sources of `path`, which a build in `module` has verified.

    Raises Unavailable when it is not there.
    """
    try:
        folder = run([go.program, "list", "-m", "-f", "{{.Dir}}", path], cwd=module, env=go.environment()).strip()
    except CommandFailed as fault:
        raise Unavailable(fault.lines) from fault
    if not folder or not Path(folder).is_dir():
        raise Unavailable(f"the sources of {path} are not in Go's module cache")
    return Path(folder)
