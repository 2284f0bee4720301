"""Remove the node: everything that `bring_up` and its parts made on this machine, and nothing else.

What belongs to the node is known by where it is: processes by the environment that the supervisor gave them, shims by
the socket of our containerd, pods by their cgroup, mounts by our folders, chains and settings by what was there
before. Each step can be repeated, so that a `down` that was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from ci.cluster.node import bringup, cgroups, configuration, network, parts
from ci.cluster.node.layout import Layout
from ci.console import step
from ci.errors import Unavailable
from ci.files import sha256_bytes
from ci.local import processes
from ci.shell import CommandFailed, run

_SUPERVISOR_S = 90.0
_PODS_S = 5.0  # what containers get between SIGTERM and SIGKILL
_UNMOUNT_S = 10.0
_OCTAL = re.compile(r"\\([0-7]{3})")


def take_down(layout: Layout) -> list[str]:
    """Remove the node and return what was removed, in words; an empty list when there is none.

    Raises Unavailable when something is held by others; the same call again goes on from there.
    """
    if not layout.state.exists() and not layout.run.exists():
        return []
    done: list[str] = []
    with step("stop the node's parts") as shown:
        if count := stop_parts(layout):
            done.append(f"{count} processes of the node")
        shown.note = f"{count} processes"
    with step("remove the pods") as shown:
        shims, pods = stop_pods(layout)
        if shims or pods:
            done.append(f"{shims} pods")
        shown.note = f"{shims} pods"
        # Resolved, as the kernel lists them: somebody may have put the state on a larger disk by a link.
        if mounts := unmount((layout.state.resolve(), layout.run.resolve())):
            done.append(f"{mounts} mounts")
        cgroups.remove(layout)
    with step("restore the network"):
        if before := network.recall(layout):
            done += network.restore(before)
    with step("remove the node's state"):
        _remove_strays(layout)
        if before:
            network.forget_folders(before)
        # The record of what was there before goes last: an interrupted `down` still needs it.
        for folder in (layout.run, layout.state):
            if folder.exists() and remove(folder, last=layout.before):
                done.append(str(folder))
    return done


# -- processes ---------------------------------------------------------------------------------------------------------


def stop_parts(layout: Layout) -> int:
    """End the supervisor, which ends its parts in order, and parts that a killed supervisor left; count them."""
    before = set(_ours(layout))
    if mark := bringup.supervisor_mark(layout):
        with contextlib.suppress(ProcessLookupError):
            os.kill(mark.pid, signal.SIGTERM)
        processes.wait_until(lambda: not processes.alive(mark), _SUPERVISOR_S)
    processes.end(_ours(layout))
    return len(before)


def _ours(layout: Layout) -> list[psutil.Process]:
    """Return the supervisor, the parts, and what they started but the shims, which hold pods."""
    roles = ["supervisor", *(file.stem for file in (layout.run / "parts").glob("*.json"))]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        roles += [part.name for part in parts.read(layout.parts)[1]]
    shims = {shim.pid for shim in _shims(layout)}
    return [process for process in processes.owned(layout.state, *roles) if process.pid not in shims]


def _shims(layout: Layout) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
            command = process.cmdline()
        except psutil.Error:
            continue  # ended meanwhile
        if command and Path(command[0]).name.startswith("containerd-shim") and str(layout.containerd_socket) in command:
            found.append(process)
    return found


def stop_pods(layout: Layout) -> tuple[int, int]:
    """End every process in the pods' cgroups and every shim of our containerd; count shims and processes."""
    held = [psutil.Process(pid) for pid in cgroups.pids(layout) if psutil.pid_exists(pid)]
    processes.end(held, _PODS_S)
    for pid in cgroups.pids(layout):  # what was started meanwhile
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shims = _shims(layout)
    sockets = [socket_of(shim.cmdline()) for shim in shims]
    processes.end(shims, 1.0)
    for socket in sockets:
        socket.unlink(missing_ok=True)
    return len(shims), len(held)


def socket_of(command: list[str]) -> Path:
    """Return where the shim with this command line listens: containerd 1.6 and 1.7 put it there for every daemon."""
    options = dict(itertools.pairwise(command))
    name = "/".join([options["-address"], options["-namespace"], options["-id"]])
    return Path("/run/containerd/s") / sha256_bytes(name.encode())


# -- mounts ------------------------------------------------------------------------------------------------------------


def mounts_below(folders: Iterable[Path], mountinfo: str) -> list[str]:
    """Return the mounts in `mountinfo` below `folders`, the deepest and latest first.

    A mount at one of `folders` itself is not the node's: somebody gave it a disk of its own.
    """
    found: list[str] = []
    for line in mountinfo.splitlines():
        # The kernel writes a space in a path as \040.
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), line.split()[4])
        if any(Path(point) != folder and Path(point).is_relative_to(folder) for folder in folders):
            found.append(point)
    return found[::-1]


def unmount(folders: Iterable[Path], seconds: float = _UNMOUNT_S) -> int:
    """Unmount everything below `folders` and count it. Raises Unavailable when something stays busy."""
    wanted, count = list(folders), 0
    deadline = time.monotonic() + seconds
    while points := mounts_below(wanted, Path("/proc/self/mountinfo").read_text()):
        for point in points:
            # Lazily, when time is nearly over: what still looks at it keeps it until it ends.
            late = time.monotonic() > deadline - seconds / 2
            try:
                run(["umount", *(["--lazy"] if late else []), point])
                count += 1
            except CommandFailed:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{point} cannot be unmounted", tip="run the same command again") from None
                time.sleep(0.1)
    return count


# -- files -------------------------------------------------------------------------------------------------------------


def _remove_strays(layout: Layout) -> None:
    """Remove what programs of the node put outside of our folders and leads into them."""
    for link in Path("/var/log/containers").glob("*"):
        if link.is_symlink() and link.readlink().is_relative_to(layout.pod_logs):
            link.unlink()
    # A result is called NETWORK-SANDBOX-INTERFACE; each sandbox has a folder in containerd's state.
    sandboxes = {folder.name for folder in layout.containerd.glob("io.containerd.grpc.v1.cri/sandboxes/*")}
    for result in Path("/var/lib/cni/results").glob("*"):
        if result.name.startswith(f"{configuration.CONTEXT}-") or sandboxes & set(result.name.split("-")):
            result.unlink()


def remove(folder: Path, last: Path) -> bool:
    """Remove what is in `folder`, `last` after all else, and the folder; tell whether there was anything.

    A link, or the mount of a disk, in the folder's place stays: it was made by somebody else. Raises Unavailable while
    something is mounted below, for then removing would go on into what others keep there.
    """
    if left := mounts_below([folder.resolve()], Path("/proc/self/mountinfo").read_text()):
        raise Unavailable(f"{left[0]} is still mounted: nothing in {folder} was removed", tip="run it again")
    entries = sorted(folder.iterdir(), key=lambda entry: entry == last)
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if folder.is_symlink() or folder.is_mount():
        return bool(entries)
    folder.rmdir()
    return True
